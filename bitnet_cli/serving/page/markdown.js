// Markdown -> elements. Text of a model becomes text nodes and elements of a few kinds, never HTML, and no attribute of its making but the
// address of a link, which must be of the web or of mail. Images are shown as links: to load one would tell its server that it was read.
//
// Blocks: headings, paragraphs, fences, lists, quotes, tables, rules. Inside: code, bold, italic, strike, links.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(\s+|$)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 8;

export function markdown(text, depth = 0) {
  const out = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let found;
    if (!line.trim()) at += 1;
    else if ((found = FENCE.exec(line))) at = fence(out, lines, at, found);
    else if ((found = HEADING.exec(line))) {
      inline(make(out, "h" + Math.min(6, found[1].length + 2)), found[2]); // the page has h1 and h2 of its own
      at += 1;
    } else if (RULE.test(line)) {
      make(out, "hr");
      at += 1;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const inner = [];
      while (at < lines.length && (found = QUOTE.exec(lines[at]))) inner.push(found[1]), (at += 1);
      make(out, "blockquote").append(markdown(inner.join("\n"), depth + 1));
    } else if (ITEM.test(line) && depth < DEEPEST) at = list(out, lines, at, depth);
    else if (line.includes("|") && DIVIDER.test(lines[at + 1] ?? "") && lines[at + 1].includes("-")) at = table(out, lines, at);
    else at = paragraph(out, lines, at);
  }
  return out;
}

function make(parent, name, text) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function fence(out, lines, at, [, mark]) {
  const body = [];
  for (at += 1; at < lines.length; at += 1) {
    const end = lines[at].trim();
    if (end.length >= mark.length && end === mark[0].repeat(end.length)) break;
    body.push(lines[at]);
  }
  make(make(out, "pre"), "code", body.join("\n"));
  return at + 1;
}

function list(out, lines, at, depth) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const element = make(out, ordered ? "ol" : "ul");
  if (ordered) element.start = parseInt(mark, 10);
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (!found || found[1].length !== indent.length || /\d/.test(found[2]) !== ordered) break;
    const inner = [found[4]];
    const room = indent.length + found[2].length + 1;
    for (at += 1; at < lines.length; at += 1) {
      const deeper = lines[at].search(/\S/);
      if (deeper === -1 ? !((lines[at + 1] ?? "").search(/\S/) >= room) : deeper < room && !(deeper > indent.length && ITEM.test(lines[at]))) break;
      inner.push(lines[at].slice(Math.min(room, Math.max(deeper, 0))));
    }
    const item = markdown(inner.join("\n"), depth + 1);
    const only = item.childNodes.length && item.firstChild.nodeName === "P" ? item.firstChild : null;
    if (only) only.replaceWith(...only.childNodes);
    make(element, "li").append(item);
    while (at < lines.length && !lines[at].trim() && ITEM.exec(lines[at + 1] ?? "")?.[1].length === indent.length) at += 1;
  }
  return at;
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(out, lines, at) {
  const element = make(out, "table");
  const head = make(make(element, "thead"), "tr");
  for (const cell of cells(lines[at])) inline(make(head, "th"), cell);
  const body = make(element, "tbody");
  for (at += 2; at < lines.length && lines[at].includes("|"); at += 1) {
    const row = make(body, "tr");
    for (const cell of cells(lines[at])) inline(make(row, "td"), cell);
  }
  return at;
}

function paragraph(out, lines, at) {
  const body = [lines[at]];
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at];
    if (!line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line)) break;
    body.push(line);
  }
  inline(make(out, "p"), body.map((line) => line.trimStart()).join("\n"));
  return at;
}

// The earliest of these in a text; each has no nested quantifier, so that no text takes long.
const INLINE = /(`+)([^`]|[^`].*?[^`])\1(?!`)|\\([!-/:-@[-`{-~])|!?\[([^[\]\n]*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"\n]*")?\)|<(https?:\/\/[^<>\s]+)>|(\*\*|__)(?=\S)(.+?)(?<=\S)\7|(?<!\w)(\*|_)(?=\S)([^*_]+?)(?<=\S)\9(?!\w)|~~(?=\S)(.+?)(?<=\S)~~|\bhttps?:\/\/[^\s<>()]+[^\s<>().,;:!?'"]|\n/s;

function inline(parent, text, depth = 0) {
  while (text) {
    const found = depth < DEEPEST ? INLINE.exec(text) : null;
    if (!found) break;
    parent.append(text.slice(0, found.index));
    text = text.slice(found.index + found[0].length);
    const [all, , code, escaped, label, address, bare, , bold, , italic, strike] = found;
    if (code !== undefined) make(parent, "code", code.trim() || code);
    else if (escaped !== undefined) parent.append(escaped);
    else if (label !== undefined) link(parent, address, label || address, depth);
    else if (bare !== undefined) link(parent, bare, bare, DEEPEST);
    else if (bold !== undefined) inline(make(parent, "strong"), bold, depth + 1);
    else if (italic !== undefined) inline(make(parent, "em"), italic, depth + 1);
    else if (strike !== undefined) inline(make(parent, "del"), strike, depth + 1);
    else if (all === "\n") make(parent, "br");
    else link(parent, all, all, DEEPEST);
  }
  parent.append(text);
}

function link(parent, address, label, depth) {
  let url;
  try {
    url = new URL(address);
  } catch {
    url = null;
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) {
    parent.append(label === address ? label : `${label} (${address})`);
    return;
  }
  const element = make(parent, "a");
  element.href = url.href;
  element.rel = "noopener noreferrer nofollow";
  element.target = "_blank";
  inline(element, label, depth + 1);
}
