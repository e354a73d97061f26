// The page of a room: who is here, what is written, and a form to write.

import { Conversation } from "./conversation.js";
import { client, dropOnClick } from "./drop.js";
import { Presence } from "./presence.js";
import { show, showState } from "./show.js";

const room = (new URLSearchParams(location.search).get("room") ?? "lobby").toLowerCase();
const conversation = new Conversation(document.getElementById("lines"));
const presence = new Presence((text) => show("here", text));
let state = "connecting";
let last = ""; // the id of the latest event, or the one that the stream began with

function enter(entered, text) {
  state = entered;
  showState("room-state", state, text);
}

function follow() {
  const source = new EventSource(`/events/room?${new URLSearchParams({ room, client, last_event_id: last })}`);
  const on = (name, take) => source.addEventListener(name, (event) => {
    last = event.lastEventId;
    take(JSON.parse(event.data));
  });
  on("line", (line) => conversation.add(line));
  on("gap", ({ reason }) => conversation.tellGap(reason));
  on("here", ({ server, count }) => {
    presence.note(server, count);
    conversation.announce(); // it comes after the history
  });
  source.addEventListener("server", ({ data }) => show("server", `on server ${data}`));
  source.addEventListener("open", () => enter("open"));
  source.addEventListener("error", () => {
    enter("lost", "lost, reconnecting");
    presence.forget(); // nobody knows now
    show("server", "");
    // A browser comes back by itself from a lost connection, and says which event it has, but not from an answer that
    // is no stream, such as a proxy's 502. A new source is told where the old one was.
    if (source.readyState === EventSource.CLOSED) setTimeout(follow, 3000);
  });
}

const form = document.getElementById("say");
const { name, text } = form.elements;
let sending = false;
let key = newKey(); // of the line that is being written: whoever sends it again sends it with the same one

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
  if (problem) return; // the text stays where it is, to be sent again
  text.value = "";
  key = newKey();
  conversation.goToEnd();
}

text.addEventListener("input", () => { if (!sending) key = newKey(); });
form.addEventListener("submit", (event) => {
  event.preventDefault();
  say();
});

// A name for each tab, so that two of them can talk to each other.
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

follow();
dropOnClick(() => state === "open");
