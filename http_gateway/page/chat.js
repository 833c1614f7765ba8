// The chat: sends messages, shows answers as they arrive, and stops them.

import { stream } from "./api.js";
import { keep, messages, MessageView } from "./conversation.js";
import { requestFields, settings } from "./settings.js";

const STARTERS = ["It was a fine morning in the country, and", "In the beginning", "Who are you?"];
const NEAR_PIXELS = 90;

const list = document.getElementById("messages");
const scroll = document.getElementById("scroll");
const prompt = document.getElementById("prompt");
const send = document.getElementById("send");
const stop = document.getElementById("stop");
let running = null;
let model = { has_chat_template: true };

/** Takes the description of the served model. */
export function serve(described) {
  model = described;
}

function showEmpty() {
  document.getElementById("empty").hidden = messages.length > 0;
}

function isAtEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < NEAR_PIXELS;
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function add(message) {
  const view = new MessageView(message, retry);
  list.append(view.root);
  return view;
}

function grow() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function body() {
  const fields = { ...requestFields(), stream: true, stream_options: { include_usage: true, include_prompt_progress: true } };
  const sent = messages.filter((each) => each.content).map(({ role, content }) => ({ role, content }));
  if (!model.has_chat_template) return ["/v1/completions", { ...fields, prompt: sent.at(-1).content, max_tokens: fields.max_tokens ?? 256 }];
  const system = settings().system.trim();
  return ["/v1/chat/completions", { ...fields, messages: system ? [{ role: "system", content: system }, ...sent] : sent }];
}

function facts(usage, began, first) {
  if (!first) return "";
  const tokens = usage.completion_tokens;
  const seconds = (performance.now() - first) / 1000;
  const parts = [`${tokens} token${tokens === 1 ? "" : "s"}`];
  if (tokens > 1 && seconds > 0) parts.push(`${((tokens - 1) / seconds).toFixed(1)} tokens/s`);
  parts.push(`first after ${((first - began) / 1000).toFixed(2)} s`);
  return parts.join(" · ");
}

async function read(view, path, sent, signal) {
  const message = view.message;
  const began = performance.now();
  const usage = { completion_tokens: 0 };
  let first = 0;
  for await (const chunk of stream(path, sent, signal)) {
    if (chunk.usage) Object.assign(usage, chunk.usage);
    const choice = chunk.choices[0];
    const progress = chunk.prompt_progress;
    if (progress && !first) {
      message.facts = `Reading the conversation: ${progress.computed_tokens} of ${progress.total_tokens} tokens`;
      view.drawSoon();
      continue;
    }
    const content = choice?.delta?.content ?? choice?.text ?? "";
    const reasoning = choice?.delta?.reasoning_content ?? "";
    if (content || reasoning) {
      first ||= performance.now();
      if (!chunk.usage) usage.completion_tokens += 1;
    }
    const follows = isAtEnd();
    message.content += content;
    if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
    message.facts = facts(usage, began, first);
    view.drawSoon();
    if (follows) requestAnimationFrame(toEnd);
  }
}

async function answer() {
  const view = add({ role: "assistant", content: "" });
  const [path, sent] = body();
  messages.push(view.message);
  running = new AbortController();
  send.hidden = true;
  stop.hidden = false;
  view.draw(true);
  toEnd();
  try {
    await read(view, path, sent, running.signal);
  } catch (error) {
    if (error.name === "AbortError") view.message.facts = `${view.message.facts || "Nothing yet"} · stopped`;
    else view.message.error = error.message;
  }
  running = null;
  view.draw(false);
  if (isAtEnd()) toEnd();
  send.hidden = false;
  stop.hidden = true;
  keep();
}

/** Answers again: what follows the question is dropped. */
function retry(view) {
  if (running) return;
  const at = messages.indexOf(view.message);
  messages.splice(at);
  while (list.children.length > at) list.lastChild.remove();
  answer();
}

function say(text) {
  if (running || !text.trim()) return;
  const message = { role: "user", content: text.trim() };
  messages.push(message);
  add(message);
  showEmpty();
  keep();
  answer();
}

function submit() {
  if (running) return;
  say(prompt.value);
  prompt.value = "";
  grow();
}

/** Connects the chat to the page, and shows the conversation that was kept. */
export function connectChat() {
  messages.forEach(add);
  showEmpty();
  toEnd();
  for (const text of STARTERS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", () => say(text));
    const item = document.createElement("li");
    item.append(button);
    document.getElementById("starters").append(item);
  }
  document.getElementById("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  });
  stop.addEventListener("click", () => running?.abort());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
  });
  document.getElementById("new").addEventListener("click", () => {
    running?.abort();
    messages.length = 0;
    list.replaceChildren();
    keep();
    showEmpty();
    prompt.focus();
  });
}
