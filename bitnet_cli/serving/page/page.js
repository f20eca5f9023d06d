// The page: what is shown, what happens. Conversations are store.js's, text is made into elements by markdown.js, and everything else that
// comes from a model or a file is set as text.

import { markdown } from "./markdown.js";
import { SETTINGS, add, deepest, load, newChat, path, readChats, save, siblings } from "./store.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = SETTINGS.filter((name) => name !== "system" && name !== "schema");
const THEMES = ["", "light", "dark"];
const REDRAW = 60; // milliseconds between two drawings of an answer that grows
const LARGEST_FILE = 20 << 20; // bytes

let chats = load();
let chat = chats[0] ?? newChat(stored("settings"));
let props = {};
let running = null; // {controller, node} while an answer comes
let editing = null; // the node whose text is being edited

function stored(name, value) {
  const key = "bitnet." + name;
  try {
    if (value !== undefined) localStorage.setItem(key, JSON.stringify(value));
    return JSON.parse(localStorage.getItem(key) ?? "null") ?? undefined;
  } catch {
    return undefined;
  }
}

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== false && value !== undefined) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

const button = (text, label, onclick, more = {}) => make("button", { type: "button", "aria-label": label, title: label, onclick, ...more }, text);

function say(text, fault = false) {
  $("status").textContent = text;
  $("status").classList.toggle("fault", fault);
}

function keep() {
  if (chat.leaf && !chats.includes(chat)) chats.unshift(chat);
  try {
    save(chats);
  } catch {
    say("This browser has no room left for conversations: export them, and delete some.", true);
  }
}

// What is shown

function drawList() {
  const items = [...chats].sort((a, b) => b.at - a.at).map((one) => {
    const open = button(one.title || "New chat", undefined, () => choose(one), { title: one.title });
    const remove = button("✕", `Delete ${one.title}`, () => removeChat(one));
    return make("li", { "aria-current": one === chat ? "true" : false }, open, remove);
  });
  $("list").replaceChildren(...items);
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} – bitnet` : "bitnet";
}

function drawMessages() {
  $("messages").replaceChildren(...path(chat).map(drawMessage));
  drawContext();
}

function drawMessage(node) {
  const mine = node.role === "user";
  const busy = running?.node === node;
  const body = make("div", { class: "text" });
  const parts = [make("h2", {}, mine ? "You" : props.model ?? "Model")];
  if (editing === node) parts.push(editor(node));
  else {
    if (node.reasoning) {
      const thought = make("details", { class: "thought", open: busy && !node.content }, make("summary", {}, "Thoughts"), make("div", {}, node.reasoning));
      parts.push(thought);
    }
    if (mine) body.textContent = node.content;
    else body.append(markdown(node.content));
    for (const block of body.querySelectorAll("pre")) block.append(button("Copy", "Copy this code", () => copy(block.firstChild.textContent)));
    parts.push(body);
    if (!busy) parts.push(tools(node));
  }
  return make("article", { class: `${node.role}${busy ? " busy" : ""}`, id: node.id, "aria-busy": busy ? "true" : false }, ...parts);
}

function tools(node) {
  const others = siblings(chat, node);
  const number = others.indexOf(node);
  const box = make("div", { class: "tools" });
  if (others.length > 1) {
    const go = (to) => () => branch(others[to]);
    box.append(button("‹", "Earlier version", go(number - 1), { disabled: number === 0 }));
    box.append(make("span", { "aria-label": `Version ${number + 1} of ${others.length}` }, `${number + 1}/${others.length}`));
    box.append(button("›", "Later version", go(number + 1), { disabled: number === others.length - 1 }));
  }
  const off = { disabled: Boolean(running) };
  box.append(button("Copy", "Copy this message", () => copy(node.content)));
  if (node.role === "user") box.append(button("Edit", "Edit this message", () => edit(node), off));
  else box.append(button("Retry", "Write another answer", () => answer(node.parent), off));
  if (node.stats) box.append(make("span", { class: "stats" }, node.stats));
  return box;
}

function editor(node) {
  const area = make("textarea", { rows: 4, "aria-label": "New text of this message" });
  area.value = node.content;
  const done = () => {
    editing = null;
    drawMessages();
    $("prompt").focus();
  };
  const go = () => {
    const text = area.value.trim();
    editing = null;
    if (text) answer(add(chat, "user", text, node.parent).id);
    else done();
  };
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(), done();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), go();
  });
  return make("div", {}, area, make("div", { class: "tools" }, button("Send", "Send the new text", go), button("Cancel", "Leave it as it was", done)));
}

function drawContext() {
  const used = path(chat).findLast((node) => node.used)?.used ?? 0;
  $("context").value = props.n_ctx ? used / props.n_ctx : 0;
  $("context-text").textContent = props.n_ctx ? `context ${used} of ${props.n_ctx}` : "context";
}

function draw() {
  drawList();
  drawMessages();
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
}

const atEnd = () => $("messages").scrollHeight - $("messages").scrollTop - $("messages").clientHeight < 60;
const toEnd = () => ($("messages").scrollTop = $("messages").scrollHeight);

// What the user does

function choose(one) {
  stop();
  chat = one;
  editing = null;
  say("");
  draw();
  toEnd();
  $("side").classList.remove("open");
  $("prompt").focus();
}

function removeChat(one) {
  if (!confirm(`Delete “${one.title}”? It is kept nowhere else.`)) return;
  if (one === chat) stop();
  chats = chats.filter((other) => other !== one);
  keepWithout(one);
}

function keepWithout(one) {
  if (one === chat) chat = newChat(stored("settings"));
  keep();
  draw();
}

function branch(node) {
  chat.leaf = deepest(chat, node.id);
  keep();
  draw();
}

function edit(node) {
  editing = node;
  drawMessages();
  $(node.id).querySelector("textarea").focus();
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    say("This browser does not let the page copy; select the text instead.", true);
  }
}

function stop() {
  running?.controller.abort();
}

function send() {
  const text = $("prompt").value.trim();
  if (!text || running) return;
  $("prompt").value = "";
  grow();
  answer(add(chat, "user", text, chat.leaf).id);
}

// An answer

function request(parent) {
  const s = chat.settings;
  const messages = path(chat, parent).map(({ role, content }) => ({ role, content }));
  if (s.system) messages.unshift({ role: "system", content: s.system });
  const body = { model: $("model").value, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of NUMBERS) if (s[name]) body[name] = Number(s[name]);
  if (s.schema) body.response_format = { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(s.schema) } };
  return body;
}

const headers = () => {
  const key = stored("key");
  return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
};

async function answer(parent) {
  const node = add(chat, "assistant", "", parent);
  const here = chat;
  const mine = (running = { controller: new AbortController(), node });
  say("Writing …");
  draw();
  toEnd();
  try {
    await write(node, request(parent), mine.controller.signal);
    say(node.finish === "length" ? "The answer was cut: it is as long as it may be, or the context is full." : "Done.", node.finish === "length");
  } catch (error) {
    const stopped = error.name === "AbortError";
    node.finish = stopped ? "stopped" : "failed";
    say(stopped ? "Stopped." : error.message, !stopped);
    if (!node.content && !node.reasoning) {
      delete here.nodes[node.id];
      here.leaf = siblings(here, node).at(-1)?.id ?? parent;
    }
  }
  if (running === mine) running = null;
  keep();
  const follow = atEnd();
  draw();
  if (follow) toEnd();
}

async function write(node, body, signal) {
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  if (!response.ok) throw new Error(await fault(response));
  let drawn = 0;
  let timer = 0;
  const show = () => {
    timer = 0;
    drawn = performance.now();
    const follow = atEnd();
    $(node.id)?.replaceWith(drawMessage(node));
    if (follow) toEnd();
  };
  for await (const event of events(response.body)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices[0];
    node.content += choice?.delta.content ?? "";
    node.reasoning += choice?.delta.reasoning_content ?? "";
    node.finish = choice?.finish_reason ?? node.finish;
    if (event.timings) node.stats = `${event.timings.predicted_n} tokens, ${event.timings.predicted_per_second.toFixed(1)} tokens/s`;
    if (event.usage) node.used = event.usage.total_tokens;
    if (!timer) timer = setTimeout(show, Math.max(0, REDRAW - (performance.now() - drawn)));
  }
  clearTimeout(timer);
  if (!node.finish) throw new Error("The connection to the server broke off.");
}

async function fault(response) {
  try {
    const { error } = await response.json();
    if (response.status === 401) return "The server asks for an API key: Settings has a place for it.";
    const wait = response.headers.get("retry-after");
    return error.message + (response.status === 429 && wait ? `; try again in ${wait} s` : "");
  } catch {
    return `The server answered ${response.status}.`;
  }
}

// Server-sent events -> the JSON of each, up to [DONE].
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (held + value).split("\n");
      held = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        yield JSON.parse(line.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Settings, import and export, theme

function openSettings() {
  const form = $("settings-form");
  for (const name of SETTINGS) form.elements[name].value = chat.settings[name] ?? "";
  form.elements.key.value = stored("key") ?? "";
  $("schema-fault").textContent = "";
  $("settings").showModal();
}

function closeSettings(event) {
  const form = $("settings-form");
  try {
    if (form.elements.schema.value.trim()) JSON.parse(form.elements.schema.value);
  } catch (error) {
    event.preventDefault();
    $("schema-fault").textContent = `The schema is not JSON: ${error.message}`;
    form.elements.schema.focus();
    return;
  }
  for (const name of SETTINGS) chat.settings[name] = form.elements[name].value.trim();
  stored("settings", chat.settings);
  stored("key", form.elements.key.value.trim());
  keep();
  facts();
}

function exportAll() {
  const url = URL.createObjectURL(new Blob([JSON.stringify(chats, null, 1)], { type: "application/json" }));
  make("a", { href: url, download: "bitnet-chats.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

async function importFile() {
  const [file] = $("file").files;
  $("file").value = "";
  if (!file) return;
  try {
    if (file.size > LARGEST_FILE) throw new Error("it is larger than 20 MB");
    const found = readChats(JSON.parse(await file.text()));
    if (!found.length) throw new Error("there is no conversation in it");
    const ids = new Set(found.map((one) => one.id));
    chats = [...found, ...chats.filter((one) => !ids.has(one.id))];
    keep();
    choose(found[0]);
    say(`Imported: ${found.length}.`);
  } catch (error) {
    say(`The file cannot be imported: ${error.message}`, true);
  }
}

function theme(next) {
  const name = next === undefined ? (stored("theme") ?? "") : stored("theme", next);
  if (name) document.documentElement.dataset.theme = name;
  else delete document.documentElement.dataset.theme;
  $("theme").setAttribute("aria-label", `Theme: ${name || "as the system"}`);
}

function grow() {
  const area = $("prompt");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

async function facts() {
  try {
    const listed = await fetch("/v1/models", { headers: headers() });
    if (!listed.ok) return say(await fault(listed), true);
    const names = (await listed.json()).data.map((model) => model.id);
    const before = $("model").value || stored("model");
    $("model").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(before)) $("model").value = before;
    const response = await fetch(`/props?model=${encodeURIComponent($("model").value)}`, { headers: headers() });
    if (response.ok) props = await response.json();
    else say(await fault(response), true);
    drawContext();
  } catch {
    say("The server cannot be reached.", true);
  }
}

function side(open) {
  $("side").classList.toggle("open", open);
  $("open-side").setAttribute("aria-expanded", String(open));
  (open ? $("new") : $("open-side")).focus();
}

$("new").addEventListener("click", () => choose(newChat(stored("settings"))));
$("export").addEventListener("click", exportAll);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", importFile);
$("theme").addEventListener("click", () => theme(THEMES[(THEMES.indexOf(stored("theme") ?? "") + 1) % THEMES.length]));
$("open-side").addEventListener("click", () => side(true));
$("close-side").addEventListener("click", () => side(false));
$("open-settings").addEventListener("click", openSettings);
$("settings-form").addEventListener("submit", closeSettings);
$("settings-reset").addEventListener("click", () => {
  for (const name of SETTINGS) $("settings-form").elements[name].value = "";
});
$("model").addEventListener("change", () => {
  stored("model", $("model").value);
  facts();
});
$("stop").addEventListener("click", stop);
$("prompt").addEventListener("input", grow);
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) event.preventDefault(), send();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && $("side").classList.contains("open")) side(false);
  else if (event.key === "Escape" && !$("settings").open) stop();
});
window.addEventListener("storage", (event) => {
  // Another window has written: what is shown here stays, the list is the newer one.
  if (event.key === "bitnet.chats" && !running) {
    chats = load();
    chat = chats.find((one) => one.id === chat.id) ?? chat;
    draw();
  }
});

theme();
draw();
toEnd();
facts();
$("prompt").focus();
