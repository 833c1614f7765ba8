// The conversation: its messages on the page, and in the browser's storage.

import { render } from "./markdown.js";
import { read, write } from "./settings.js";

const NAME = "fiddler.conversation";

export const messages = read(NAME, []);

/** Keeps the conversation. */
export function keep() {
  write(NAME, messages);
}

function make(name, className, ...children) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...children);
  return made;
}

function button(text, onClick) {
  const made = make("button", "quiet", text);
  made.type = "button";
  made.addEventListener("click", onClick);
  return made;
}

/** One message on the page. */
export class MessageView {
  constructor(message, onRetry) {
    this.message = message;
    this.onRetry = onRetry;
    this.isDrawn = true;
    this.root = make("article", `message ${message.role}`);
    this.root.setAttribute("aria-label", message.role === "user" ? "You" : "The model");
    if (message.role === "user") {
      this.root.append(message.content);
      return;
    }
    this.reasoning = make("details", "reasoning", make("summary", "", "Reasoning"), make("p", ""));
    this.body = make("div", "body");
    this.facts = make("div", "facts");
    this.root.append(this.reasoning, this.body, this.facts);
    this.draw(false);
  }

  /** Draws at the next frame, however many pieces arrive until then. */
  drawSoon() {
    if (!this.isDrawn) return;
    this.isDrawn = false;
    requestAnimationFrame(() => this.draw(this.isWriting));
  }

  draw(isWriting) {
    this.isDrawn = true;
    this.isWriting = isWriting;
    const { content, reasoning, error, facts } = this.message;
    this.reasoning.hidden = !reasoning;
    this.reasoning.open = isWriting && !content;
    this.reasoning.lastChild.textContent = reasoning ?? "";
    this.body.replaceChildren(...render(content));
    this.body.classList.toggle("writing", isWriting);
    this.facts.replaceChildren(facts ?? "");
    if (!isWriting && content) {
      this.facts.append(button("Copy", () => navigator.clipboard?.writeText(content)));
    }
    if (!isWriting) this.facts.append(button("Try again", () => this.onRetry(this)));
    this.root.querySelector(".error")?.remove();
    if (error) this.body.after(make("p", "error", error));
  }
}
