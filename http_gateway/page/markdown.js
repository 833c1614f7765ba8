// Markdown to elements: what models write, and nothing that a text could do harm with. No HTML is ever parsed.

const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\*\*(.+?)\*\*|__(.+?)__|\*([^*\s](?:[^*]*[^*\s])?)\*|\[([^\]]+)\]\((https?:\/\/[^\s)]+)\)/g;
const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/;
const BULLET = /^\s*[-*+]\s+(.*)$/;
const NUMBER = /^\s*(\d{1,9})[.)]\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const QUOTE = /^>\s?(.*)$/;

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

/** The nodes of one line of text. */
function inline(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) nodes.push(text.slice(from, match.index));
    from = match.index + match[0].length;
    const [, ticks, code, strong, strong2, em, label, link] = match;
    if (ticks) nodes.push(element("code", code.trim()));
    else if (strong ?? strong2) nodes.push(element("strong", ...inline(strong ?? strong2)));
    else if (em) nodes.push(element("em", ...inline(em)));
    else {
      const anchor = element("a", ...inline(label));
      anchor.href = link;
      anchor.target = "_blank";
      anchor.rel = "noopener noreferrer";
      nodes.push(anchor);
    }
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

function lines(texts) {
  return texts.flatMap((text, index) => (index ? [element("br"), ...inline(text)] : inline(text)));
}

/** The elements of a text. */
export function render(text) {
  const blocks = [];
  const source = text.split("\n");
  let at = 0;
  const takeWhile = (pattern) => {
    const taken = [];
    while (at < source.length && pattern.test(source[at])) taken.push(source[at++].match(pattern));
    return taken;
  };
  while (at < source.length) {
    const line = source[at];
    const fence = line.match(FENCE);
    if (!line.trim()) at += 1;
    else if (fence) {
      const code = [];
      for (at += 1; at < source.length && !source[at].trim().startsWith(fence[1]); at += 1) code.push(source[at]);
      at += 1;
      blocks.push(element("pre", element("code", code.join("\n"))));
    } else if (HEADING.test(line)) {
      const [, marks, title] = line.match(HEADING);
      blocks.push(element(`h${Math.min(marks.length + 2, 5)}`, ...inline(title)));
      at += 1;
    } else if (BULLET.test(line)) {
      blocks.push(element("ul", ...takeWhile(BULLET).map((item) => element("li", ...inline(item[1])))));
    } else if (NUMBER.test(line)) {
      const items = takeWhile(NUMBER);
      const list = element("ol", ...items.map((item) => element("li", ...inline(item[2]))));
      list.start = Number(items[0][1]);
      blocks.push(list);
    } else if (QUOTE.test(line)) {
      blocks.push(element("blockquote", ...lines(takeWhile(QUOTE).map((item) => item[1]))));
    } else {
      const paragraph = [];
      while (at < source.length && source[at].trim() && ![FENCE, HEADING, BULLET, NUMBER, QUOTE].some((each) => each.test(source[at]))) {
        paragraph.push(source[at++]);
      }
      blocks.push(element("p", ...lines(paragraph)));
    }
  }
  return blocks;
}
