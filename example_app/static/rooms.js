// The page of a room: the number of pages, the lines, and a form.

import { Conversation } from "./conversation.js";
import { client, dropOnClick } from "./drop.js";
import { Presence } from "./presence.js";
import { show, showState } from "./show.js";

const room = (new URLSearchParams(location.search).get("room") ?? "lobby").toLowerCase();
const conversation = new Conversation(document.getElementById("lines"));
const presence = new Presence((text) => show("here", text));

// How long the lines are kept, by what keeps them.
const STORES = {
  memory: "Lines are kept for an hour, in the memory of the server.",
  SqliteBroker: "Lines are kept for an hour in a file, also when the server is restarted.",
  RedisBroker: "Lines are kept for an hour in Valkey or Redis, also when this server is restarted.",
};

let state = "connecting";
let lastEventId = "";

function setState(newState, text) {
  state = newState;
  showState("room-state", state, text);
}

function follow() {
  const source = new EventSource(`/events/room?${new URLSearchParams({ room, client, last_event_id: lastEventId })}`);
  const on = (name, handle) => source.addEventListener(name, (event) => {
    lastEventId = event.lastEventId;
    handle(JSON.parse(event.data));
  });
  on("line", (line) => conversation.add(line));
  on("gap", ({ reason }) => conversation.showGap(reason));
  on("here", ({ server, count }) => {
    presence.set(server, count);
    conversation.announce(); // this event comes after the history
  });
  source.addEventListener("server", ({ data }) => {
    const server = JSON.parse(data);
    show("server", `on server ${server.name}`);
    conversation.list.dataset.empty = `Nothing here yet. ${STORES[server.store] ?? ""}`;
  });
  source.addEventListener("logout", () => {
    source.close();
    presence.clear();
    show("server", "");
    setState("lost", "signed out; reload to come back");
    setSignedOut(true);
  });
  source.addEventListener("open", () => setState("open"));
  source.addEventListener("error", () => {
    setState("lost", "lost, reconnecting");
    presence.clear();
    show("server", "");
    // A browser reconnects with the last event ID after a lost connection, but not after an error response such as a
    // proxy's 502. A new EventSource gets the ID in its URL.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 3000);
  });
}

// Firefox remembers which buttons were disabled when the page is reloaded, so the page says it each time.
function setSignedOut(signedOut) {
  for (const button of document.querySelectorAll("#say button, #drop, #logout")) button.disabled = signedOut;
}

const form = document.getElementById("say");
const { name, text } = form.elements;
let sending = false;
let key = newKey(); // idempotency key of the line in the form, also used when it is sent again

function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function say() {
  if (sending || !text.value.trim()) return;
  sending = true;
  const body = new URLSearchParams({ name: name.value, text: text.value, key });
  let problem = "";
  try {
    const response = await fetch(`/say?${new URLSearchParams({ room })}`, { method: "POST", body });
    if (!response.ok) problem = (await response.text()).trim();
  } catch {
    problem = "the server does not answer";
  }
  sending = false;
  show("unsent", problem && `Not sent: ${problem}.`);
  if (problem) return; // the text stays in the form, to be sent again
  text.value = "";
  key = newKey();
  conversation.scrollToEnd();
}

text.addEventListener("input", () => { if (!sending) key = newKey(); });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});

// Each tab has its own name.
name.value = sessionStorage.getItem("name") ?? `guest ${100 + Math.floor(Math.random() * 900)}`;
const rememberName = () => sessionStorage.setItem("name", name.value);
name.addEventListener("change", rememberName);
rememberName();

const rooms = document.querySelector("#rooms ul");
const linkOf = () => [...rooms.querySelectorAll("a")].find((link) => link.textContent === room);
if (!linkOf()) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = `?${new URLSearchParams({ room })}`;
  link.textContent = room;
  item.append(link);
  rooms.append(item);
}
linkOf().setAttribute("aria-current", "page");
document.title = `${room} – Rooms`;
show("room", room);

document.getElementById("logout").addEventListener("click", () => fetch("/logout", { method: "POST" }));
setSignedOut(false);
follow();
dropOnClick(() => (state === "open" ? [client] : []));
