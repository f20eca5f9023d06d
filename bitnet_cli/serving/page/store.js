// Conversations, in the browser's own store and nowhere else.
//
// A conversation is a tree: {id, title, at, settings, nodes, leaf}. A node is a message {id, parent, role, content, reasoning, finish, stats};
// to edit a message or to retry an answer adds a sibling, and `leaf` says which branch is shown. Nothing is overwritten.

const KEY = "bitnet.chats";
export const SETTINGS = ["system", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty", "max_tokens", "seed", "schema"];
const ROLES = ["user", "assistant"];
const LONGEST_TITLE = 60;

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const newChat = (settings = {}) => ({ id: newId(), title: "", at: Date.now(), settings: { ...settings }, nodes: {}, leaf: null });

export function load() {
  try {
    return readChats(JSON.parse(localStorage.getItem(KEY) ?? "[]"));
  } catch {
    return [];
  }
}

// Throws where the browser has no room left.
export function save(chats) {
  localStorage.setItem(KEY, JSON.stringify(chats.filter((chat) => chat.leaf)));
}

// What a file or the store holds -> conversations. Only what is known is taken over, each part by its type; the rest is left out.
export function readChats(value) {
  const chats = [];
  for (const given of Array.isArray(value) ? value : []) {
    if (typeof given !== "object" || given === null || typeof given.nodes !== "object" || given.nodes === null) continue;
    const chat = newChat();
    if (typeof given.id === "string") chat.id = given.id.slice(0, 64);
    if (typeof given.title === "string") chat.title = given.title.slice(0, LONGEST_TITLE);
    if (Number.isFinite(given.at)) chat.at = given.at;
    for (const name of SETTINGS) if (typeof given.settings?.[name] === "string") chat.settings[name] = given.settings[name];
    for (const [id, node] of Object.entries(given.nodes)) {
      if (typeof node !== "object" || node === null || !ROLES.includes(node.role) || typeof node.content !== "string") continue;
      const text = (name) => (typeof node[name] === "string" ? node[name] : "");
      chat.nodes[id] = { id, parent: null, role: node.role, content: node.content, reasoning: text("reasoning"), finish: text("finish"), stats: text("stats"), used: Number(node.used) || 0 };
    }
    for (const node of Object.values(chat.nodes)) {
      const parent = given.nodes[node.id].parent;
      if (typeof parent === "string" && Object.hasOwn(chat.nodes, parent)) node.parent = parent;
    }
    for (const node of Object.values(chat.nodes)) if (inACircle(chat, node)) node.parent = null;
    chat.leaf = Object.hasOwn(chat.nodes, given.leaf) ? given.leaf : deepest(chat, null);
    if (chat.leaf) chats.push(chat);
  }
  return chats;
}

function inACircle(chat, node) {
  const seen = new Set();
  for (let at = node; at; at = chat.nodes[at.parent]) {
    if (seen.has(at.id)) return true;
    seen.add(at.id);
  }
  return false;
}

export function add(chat, role, content, parent) {
  const node = { id: newId(), parent, role, content, reasoning: "", finish: "", stats: "", used: 0 };
  chat.nodes[node.id] = node;
  chat.leaf = node.id;
  chat.at = Date.now();
  if (!chat.title && role === "user") chat.title = content.trim().split("\n")[0].slice(0, LONGEST_TITLE);
  return node;
}

// The messages from the first one to a node, or to the leaf.
export function path(chat, id = chat.leaf) {
  const nodes = [];
  for (let node = chat.nodes[id]; node; node = chat.nodes[node.parent]) nodes.unshift(node);
  return nodes;
}

export const siblings = (chat, node) => Object.values(chat.nodes).filter((other) => other.parent === node.parent && other.role === node.role);

// The last message of the newest branch under a node.
export function deepest(chat, id) {
  for (;;) {
    const next = Object.values(chat.nodes).filter((node) => node.parent === id).at(-1);
    if (!next) return id;
    id = next.id;
  }
}
