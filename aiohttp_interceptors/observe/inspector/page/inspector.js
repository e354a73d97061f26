// The page of the inspector. What comes from users is only ever set as text: the page's policy forbids anything else.

const element = (id) => document.getElementById(id);

function make(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// Nothing is touched that has not changed: a page that is read stays still, and a selection survives.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// How values are written

const whole = new Intl.NumberFormat("en");
const number = (value) => (value === null || value === undefined ? "–" : whole.format(value));

function size(bytes) {
  if (bytes === null || bytes === undefined) return "–";
  if (bytes < 1000) return `${bytes} B`;
  const unit = bytes < 1e6 ? ["kB", 1e3] : bytes < 1e9 ? ["MB", 1e6] : ["GB", 1e9];
  return `${(bytes / unit[1]).toFixed(bytes / unit[1] < 10 ? 1 : 0)} ${unit[0]}`;
}

function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

const milliseconds = (value) => (value === null ? "–" : `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`);
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString("en-GB");

function list(shown, count) {
  return shown.join(", ") + (count > shown.length ? ` and ${number(count - shown.length)} more` : "");
}

// The columns

const KINDS = { topics: "topics", channel: "channel", "aiohttp-sse": "aiohttp-sse" };

const STREAM_COLUMNS = [
  { name: "path", title: "Path", of: (row) => row.path },
  { name: "kind", title: "Kind", of: (row) => KINDS[row.kind] ?? row.kind },
  { name: "owners", title: "Owners", label: "owners", kind: "text", of: (row) => list(row.owners, row.owner_count) },
  { name: "topics", title: "Topics", label: "topics", kind: "text", of: (row) => list(row.topics, row.topic_count) },
  { name: "peer", title: "Peer", label: "peer", of: (row) => row.peer },
  { name: "age", title: "Age", label: "age", kind: "number", down: true, of: (row) => duration(now - row.opened) },
  { name: "offset", title: "Offset", label: "offset", kind: "number", down: true, of: (row) => (row.offset === null ? "" : number(row.offset)) },
  { name: "behind", title: "Behind", label: "behind", kind: "number", down: true, of: (row) => number(row.behind) + (row.evicted ? "+" : ""), slow: (row) => row.behind + row.evicted > 0 },
  { name: "unsent", title: "Unsent", label: "unsent", kind: "number", down: true, of: (row) => size(row.unsent), slow: (row) => row.unsent > 0 },
];

const TOPIC_COLUMNS = [
  { name: "topic", title: "Topic", kind: "text", of: (row) => (row.finished ? `${row.topic} (finished)` : row.topic) },
  { name: "hub", title: "Hub", of: (row) => row.hub, unlessSingle: true },
  { name: "rate", title: "Per second", kind: "number", of: (row) => row.rate.toFixed(1) },
  { name: "subscribers", title: "Subscribers", kind: "number", of: (row) => number(row.subscribers) },
  { name: "records", title: "Records", kind: "number", of: (row) => number(row.records) },
  { name: "bytes", title: "Size", kind: "number wide", of: (row) => size(row.bytes) },
];

// A table whose rows the server sends when they change

class Table {
  constructor(id, columns, firstCell) {
    this.table = element(id);
    this.head = this.table.tHead.rows[0];
    this.body = this.table.tBodies[0];
    this.columns = columns;
    this.firstCell = firstCell; // makes the content of the first cell, of a key
    this.rows = new Map();
    for (const column of columns) {
      const cell = make("th", column.kind ?? "");
      cell.scope = "col";
      cell.textContent = column.title;
      this.head.append(cell);
    }
  }

  // `fresh`: a new connection, whose first sample has all rows.
  update({ rows, order }, fresh) {
    for (const [key, data] of Object.entries(rows)) {
      const known = this.rows.get(key);
      if (known) known.data = data;
      else this.rows.set(key, this.makeRow(key, data));
    }
    if (fresh || order) this.arrange(order ?? []);
    for (const row of this.rows.values()) this.show(row);
  }

  makeRow(key, data) {
    const line = make("tr");
    const cells = this.columns.map((column, index) => {
      const cell = make(index ? "td" : "th", column.kind ?? "");
      if (!index) cell.scope = "row";
      if (column.label) cell.dataset.label = column.label;
      line.append(cell);
      return cell;
    });
    const target = this.firstCell ? this.firstCell(cells[0], key) : cells[0];
    return { key, data, line, cells, target };
  }

  show({ data, cells, target }) {
    this.columns.forEach((column, index) => {
      setText(index ? cells[index] : target, column.of(data));
      if (column.slow) {
        cells[index].classList.toggle("slow", column.slow(data));
        cells[index].classList.toggle("zero", !column.slow(data));
      }
    });
  }

  arrange(order) {
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    const kept = new Set(order);
    for (const [key, row] of this.rows) {
      if (!kept.has(key)) { row.line.remove(); this.rows.delete(key); }
    }
    let next = this.body.firstElementChild;
    for (const key of order) {
      const line = this.rows.get(key)?.line;
      if (!line) continue;
      if (line === next) next = next.nextElementSibling;
      else this.body.insertBefore(line, next);
    }
    if (focused && focused !== document.activeElement) {
      if (focused.isConnected) focused.focus({ preventScroll: true });
      else this.body.querySelector("button")?.focus({ preventScroll: true });
    }
  }
}

// Streams

function pathCell(cell, key) {
  const button = make("button", "link");
  button.type = "button";
  button.dataset.key = key;
  button.tabIndex = -1;
  cell.append(button);
  return button;
}

const streams = new Table("streams", STREAM_COLUMNS, pathCell);
const topics = new Table("topics", TOPIC_COLUMNS);
let now = Date.now() / 1000; // the server's clock

streams.body.addEventListener("click", (event) => {
  const button = event.target.closest("tr").querySelector("button[data-key]");
  // A click that ends a selection of text opens nothing.
  if (button.contains(event.target) || getSelection().isCollapsed) openDetail(button.dataset.key);
});

// One row is in the order of the Tab key, and the arrow keys go to the others.
function rove(target) {
  for (const button of streams.body.querySelectorAll('button[tabindex="0"]')) button.tabIndex = -1;
  if (target) target.tabIndex = 0;
}

streams.body.addEventListener("focusin", (event) => rove(event.target.closest("button")));

function keepOneTabStop() {
  const current = streams.body.querySelectorAll('button[tabindex="0"]');
  if (current.length !== 1) rove(streams.body.querySelector("button"));
}

streams.body.addEventListener("keydown", (event) => {
  const line = event.target.closest("tr");
  const to = {
    ArrowDown: () => line.nextElementSibling,
    ArrowUp: () => line.previousElementSibling,
    Home: () => streams.body.firstElementChild,
    End: () => streams.body.lastElementChild,
  }[event.key]?.();
  if (!to) return;
  event.preventDefault();
  const button = to.querySelector("button");
  rove(button);
  button.focus();
});

function showStreams({ total, matching, own, ...delta }, fresh) {
  streams.update(delta, fresh);
  keepOneTabStop();
  const shown = streams.rows.size;
  const parts = [`${number(total)} open`];
  if (query.filter) parts.push(`${number(matching)} match`);
  if (shown < matching) parts.push(`the first ${number(shown)} are shown`);
  if (own) parts.push(`and ${number(own)} of this inspector`);
  setText(element("stream-count"), parts.join(", "));
  element("no-streams").hidden = shown > 0;
  setText(element("no-streams"), total ? "No stream matches." : "No stream is open.");
  showDetail();
}

function showTopics({ total, matching, ...delta }, fresh) {
  topics.update(delta, fresh);
  const shown = topics.rows.size;
  const parts = [`${number(total)} known`];
  if (query.topics) parts.push(`${number(matching)} match`);
  if (shown < matching) parts.push(`the busiest ${number(shown)} are shown`);
  setText(element("topic-count"), parts.join(", "));
  element("no-topics").hidden = shown > 0;
  setText(element("no-topics"), total ? "No topic matches." : "No topic has records or subscribers.");
}

// Hubs

const hubCards = new Map();
const HUB_NUMBERS = [
  ["published", "published", number], ["delivered", "delivered", number], ["subscribers", "subscribers", number],
  ["catching up", "catching_up", number], ["groups", "groups", number], ["gaps", "gaps", number],
  ["runs", "runs", number], ["topics", "topics", number], ["records", "records", number], ["size", "bytes", size],
  ["evicted", "evicted", number], ["latest", "latest", number], ["offset", "offset", number], ["epoch", "epoch", String],
];

function hubState(hub) {
  const broker = hub.broker ? `${hub.broker}: ` : "";
  if (hub.state === "down") return [`${broker}down for ${duration(now - hub.since)} (since ${clock(hub.since)}). ${hub.error}`, "bad"];
  if (hub.state === "connecting") return [`${broker}not connected yet`, "bad"];
  if (hub.state === "no broker") return ["no broker: the history is in this process", ""];
  const age = hub.confirmation_age === null ? "" : `, confirmed ${hub.confirmation_age.toFixed(1)} s ago`;
  return hub.ready ? [`${broker}connected${age}`, "good"] : [`${broker}connected, but not confirming${age}`, "bad"];
}

function showHubs(hubs) {
  element("no-hubs").hidden = hubs.length > 0;
  for (const column of TOPIC_COLUMNS.filter((each) => each.unlessSingle)) {
    const index = TOPIC_COLUMNS.indexOf(column) + 1;
    for (const cell of topics.table.querySelectorAll(`tr > :nth-child(${index})`)) cell.hidden = hubs.length < 2;
  }
  for (const hub of hubs) {
    if (!hubCards.has(hub.name)) hubCards.set(hub.name, makeHubCard(hub.name));
    const { state, values } = hubCards.get(hub.name);
    const [text, className] = hubState(hub);
    setText(state, text);
    state.className = `hub-state ${className}`;
    for (const [node, name, format] of values) setText(node, format(hub[name]));
  }
}

function makeHubCard(name) {
  const card = make("article", "hub");
  const head = make("div", "hub-head");
  const state = make("span", "hub-state");
  const numbers = make("dl", "numbers");
  head.append(make("strong", "", name), state);
  const values = HUB_NUMBERS.map(([title, field, format]) => {
    const pair = make("div");
    const value = make("dd");
    pair.append(make("dt", "", title), value);
    numbers.append(pair);
    return [value, field, format];
  });
  card.append(head, numbers);
  element("hubs").append(card);
  return { state, values };
}

// Plots

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300; // seconds
const HEIGHT = 100;
const SECOND = 0;

class Plot {
  // `lines` are [name, index of the value in a sample].
  constructor(id, title, lines, format) {
    this.title = title;
    this.format = format;
    const figure = element(id);
    const caption = make("figcaption");
    const first = make("span", "quiet");
    this.top = make("span");
    first.append(make("span", "", title), this.top);
    caption.append(first);
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.svg.setAttribute("role", "img");
    this.path("base").setAttribute("d", `M0 ${HEIGHT}H${WIDTH}`);
    this.lines = lines.map(([name, index], position) => {
      const className = ["one", "two", "three"][position];
      const key = make("span", `key ${className}`, `${name} `);
      const value = make("span");
      key.append(value);
      caption.append(key);
      return { name, index, value, path: this.path(className) };
    });
    figure.append(caption, this.svg);
  }

  path(className) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", className);
    this.svg.append(path);
    return path;
  }

  // The current second is not over, so it is left out.
  draw(samples, end) {
    const whole = samples.filter((sample) => sample[SECOND] < end && sample[SECOND] >= end - WIDTH);
    const values = this.lines.flatMap(({ index }) => whole.map((sample) => sample[index] ?? 0));
    const top = Math.max(...values, 1e-9);
    const last = whole.at(-1);
    for (const { index, path, value } of this.lines) {
      path.setAttribute("d", this.line(whole, index, top, end));
      const current = last && last[SECOND] >= end - 2 ? last[index] : null;
      setText(value, this.format(current));
    }
    setText(this.top, values.length ? `highest ${this.format(top <= 1e-9 ? 0 : top)}` : "");
    const current = this.lines.map((line) => `${line.name} ${line.value.textContent}`).join(", ");
    this.svg.setAttribute("aria-label", `${this.title}: ${current}; ${this.top.textContent}`);
  }

  // A second without a value interrupts the line. A single point is drawn as a short stroke.
  line(samples, index, top, end) {
    let drawn = "";
    let before = -Infinity;
    for (const sample of samples) {
      const value = sample[index];
      if (value === null) continue;
      const x = WIDTH - (end - 1 - sample[SECOND]);
      const y = HEIGHT - (value / top) * (HEIGHT - 4);
      drawn += sample[SECOND] - before > 1 ? `M${x - 0.5} ${y.toFixed(1)}L${x} ${y.toFixed(1)}` : `L${x} ${y.toFixed(1)}`;
      before = sample[SECOND];
    }
    return drawn;
  }
}

const plots = [
  new Plot("plot-events", "Events per second", [["published", 1], ["delivered", 2]], number),
  new Plot("plot-streams", "Streams per second", [["opened", 3], ["closed", 4]], number),
  new Plot("plot-latency", "Longest wait in each second", [["event loop", 5], ["flush", 6], ["publish", 7]], milliseconds),
];
let samples = [];

function showSamples(received, fresh) {
  if (fresh) samples = [];
  const first = received[0]?.[SECOND];
  samples = [...samples.filter((sample) => sample[SECOND] < first), ...received].slice(-WIDTH);
  for (const plot of plots) plot.draw(samples, Math.floor(now));
}

// Facts

const MAX_FACTS = 400;
const facts = element("facts");

function showFacts(received, fresh) {
  if (fresh) facts.replaceChildren();
  for (const fact of received) {
    const line = make("li", fact.notable ? "notable" : "");
    const at = make("time", "", clock(fact.at));
    at.dateTime = new Date(fact.at * 1000).toISOString();
    line.append(at, make("span", "name", fact.name), make("span", "where", fact.where));
    if (fact.text) line.append(make("span", "what", fact.text));
    facts.prepend(line);
  }
  while (facts.children.length > MAX_FACTS) facts.lastElementChild.remove();
  element("no-facts").hidden = facts.children.length > 0;
}

element("notable").addEventListener("change", (event) => facts.classList.toggle("only-notable", event.target.checked));

// One stream

const detail = element("detail");
let chosen = null; // the key of the stream

const FIELDS = [
  ["path", (row) => row.path], ["route", (row) => row.route || "none"], ["method", (row) => row.method],
  ["kind", (row) => KINDS[row.kind] ?? row.kind], ["owners", (row) => list(row.owners, row.owner_count) || "none"],
  ["topics", (row) => list(row.topics, row.topic_count) || "none"], ["peer", (row) => row.peer || "unknown"],
  ["open since", (row) => `${clock(row.opened)}, for ${duration(now - row.opened)}`],
  ["sent", (row) => (row.events === undefined ? "not counted" : `${number(row.events)} events of ${size(row.bytes)}, as ${size(row.bytes_sent)}`)],
  ["dropped", (row) => (row.dropped === undefined ? "not counted" : `${number(row.dropped)} events`)],
  ["offset", (row) => (row.offset === null ? "none" : number(row.offset))],
  ["behind", (row) => `${number(row.behind)} ${row.kind === "topics" ? "records" : "events"}${row.evicted ? ", and others that the history does not keep any more" : ""}`],
  ["unsent", (row) => size(row.unsent) + (row.paused ? ", and the client does not read" : "")],
];
const fields = FIELDS.map(([title, of]) => {
  const value = make("dd");
  element("detail-fields").append(make("dt", "", title), value);
  return { value, of };
});

function openDetail(key) {
  chosen = key;
  rove(streams.rows.get(key)?.target);
  showDetail();
  detail.showModal();
  element("detail-title").focus();
}

function showDetail() {
  if (chosen === null) return;
  const row = streams.rows.get(chosen);
  element("detail-gone").hidden = Boolean(row);
  for (const button of [element("end-stream"), ...element("end-owners").children]) button.disabled = !row;
  element("raw-toggle").disabled = !row && !watching;
  if (!row) keepFocus();
  if (!row) return;
  setText(element("detail-title"), row.data.path);
  for (const { value, of } of fields) setText(value, of(row.data));
  const owners = element("end-owners");
  if ([...owners.children].map((button) => button.dataset.owner).join("\n") !== row.data.owners.join("\n")) {
    owners.replaceChildren(...row.data.owners.map((owner) => {
      const button = make("button", "danger", `End all of ${owner}`);
      button.type = "button";
      button.dataset.owner = owner;
      return button;
    }));
  }
}

// A button that is disabled loses the focus, and the next key would go to no element of the dialog.
function keepFocus() {
  if (document.activeElement.matches("#detail :disabled")) element("detail-close").focus();
}

element("detail-close").addEventListener("click", () => detail.close());
detail.addEventListener("close", () => {
  stopWatching();
  const button = streams.rows.get(chosen)?.target ?? streams.body.querySelector("button");
  chosen = null;
  (button ?? element("filter")).focus();
});

element("end-stream").addEventListener("click", async () => {
  const row = streams.rows.get(chosen);
  if (!row) return;
  const { path, peer } = row.data;
  if (await confirmed("End this stream?", `${path} of ${peer || "an unknown peer"}. Its client may reconnect.`, "End stream")) {
    await act("end", { process: process.key, stream: row.key }, "The stream was ended.");
  }
});

element("end-owners").addEventListener("click", async (event) => {
  const owner = event.target.dataset.owner;
  if (owner === undefined) return;
  const text = `All streams of ${owner} end, on all nodes of the Hubs. Its clients may reconnect unless its access was revoked.`;
  if (await confirmed("End all streams of this owner?", text, "End all")) {
    await act("disconnect", { owner }, `The streams of ${owner} were ended.`);
  }
});

async function act(action, body, done) {
  let text;
  try {
    const response = await fetch(action, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
    text = response.ok ? done : `Refused (${response.status}): ${(await response.text()).slice(0, 300)}`;
  } catch {
    text = "The server cannot be reached.";
  }
  announce(text);
}

let fading;
function announce(text) {
  // Inside the dialog that is open: the rest of the page is inert.
  (detail.open ? detail : document.body).append(element("message"));
  element("message").textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => { element("message").textContent = ""; }, 8000);
}

// Confirmation: Cancel has the focus, and Escape cancels.

const confirmation = element("confirm");
let answer = () => {};

function confirmed(title, text, action) {
  element("confirm-title").textContent = title;
  element("confirm-text").textContent = text;
  element("confirm-yes").textContent = action;
  confirmation.showModal();
  return new Promise((resolve) => { answer = resolve; });
}

element("confirm-yes").addEventListener("click", () => { answer(true); confirmation.close(); });
element("confirm-no").addEventListener("click", () => { answer(false); confirmation.close(); });
// Its close event is late, and would answer the next question.
confirmation.addEventListener("cancel", () => answer(false));

// The raw view

const MAX_WRITES = 300;
const raw = element("raw");
let watching = null;

element("raw-toggle").addEventListener("click", () => (watching ? stopWatching() : watch(chosen)));

function watch(key) {
  raw.replaceChildren();
  raw.hidden = false;
  element("raw-toggle").setAttribute("aria-pressed", "true");
  element("raw-toggle").textContent = "Stop";
  element("raw-state").textContent = "Opening …";
  let note = "";
  watching = new EventSource(`raw?${new URLSearchParams({ process: process.key, stream: key })}`);
  watching.addEventListener("tap", (event) => {
    const tap = JSON.parse(event.data);
    if (tap.compressed) note = "The stream is compressed: only the sizes of its writes are shown. ";
    else note = tap.masked ? "Each byte of data, IDs and comments is shown as x. " : "";
    element("raw-state").textContent = `${note}Waiting for the next write …`;
  });
  watching.addEventListener("writes", (event) => {
    const { writes, skipped } = JSON.parse(event.data);
    for (const write of writes) showWrite(write);
    if (skipped) raw.append(make("span", "at", `${number(skipped)} writes are not shown, because they came too fast.\n`));
    while (raw.children.length > MAX_WRITES) raw.firstElementChild.remove();
    element("raw-state").textContent = `${note}Only part of what is written is shown if it comes too fast.`;
    raw.scrollTop = raw.scrollHeight;
  });
  watching.addEventListener("ended", () => stopWatching("The stream has ended."));
  watching.addEventListener("error", () => {
    if (watching?.readyState === EventSource.CLOSED) stopWatching("The stream has ended, or the server refuses.");
  });
}

function showWrite({ at, size: bytes, shown, text }) {
  const line = make("span");
  line.append(make("span", "at", `${clock(at)}  ${number(bytes)} bytes\n`));
  for (const part of text.split(/(\r\n|\r|\n)/)) {
    if (/^[\r\n]/.test(part)) line.append(make("span", "end", part.replace("\r", "\\r").replace("\n", "\\n")), "\n");
    else if (part) line.append(part);
  }
  if (shown && shown < bytes) line.append(make("span", "at", `… and ${number(bytes - shown)} bytes more\n`));
  line.append("\n");
  raw.append(line);
}

function stopWatching(why = "Nothing is read while this is off.") {
  watching?.close();
  watching = null;
  element("raw-toggle").setAttribute("aria-pressed", "false");
  element("raw-toggle").textContent = "Watch";
  element("raw-state").textContent = why;
}

// Sorting and filtering, which the server does

const query = { filter: "", sort: "behind", order: "descending", topics: "" };

function showSort() {
  STREAM_COLUMNS.forEach((column, index) => {
    const cell = streams.head.cells[index];
    if (column.name === query.sort) cell.setAttribute("aria-sort", query.order);
    else cell.removeAttribute("aria-sort");
  });
  element("sort").value = query.sort;
}

function sortBy(column, order) {
  query.sort = column.name;
  query.order = order;
  showSort();
  connect();
}

STREAM_COLUMNS.forEach((column, index) => {
  const button = make("button", "", column.title);
  button.type = "button";
  const natural = column.down ? "descending" : "ascending";
  const other = column.down ? "ascending" : "descending";
  button.addEventListener("click", () => {
    sortBy(column, query.sort === column.name && query.order === natural ? other : natural);
  });
  streams.head.cells[index].replaceChildren(button);
  const option = make("option", "", column.title.toLowerCase());
  option.value = column.name;
  element("sort").append(option);
});

element("sort").addEventListener("change", (event) => {
  const column = STREAM_COLUMNS.find((each) => each.name === event.target.value);
  sortBy(column, column.down ? "descending" : "ascending");
});

let typing;
function onType(input, name) {
  element(input).addEventListener("input", (event) => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      query[name] = event.target.value.trim();
      connect();
    }, 250);
  });
}
onType("filter", "filter");
onType("topic-filter", "topics");

// The connection

const STALE = 8; // seconds without a sample
const RETRY = 3; // seconds
let source = null;
let fresh = true;
let paused = false;
let lastSample = 0;
let interval = 1; // seconds between two samples
let process = { key: "", name: "" };
let retrying;

function connect() {
  clearTimeout(retrying);
  source?.close();
  source = new EventSource(`feed?${new URLSearchParams(query)}`);
  source.addEventListener("open", () => { fresh = true; });
  source.addEventListener("sample", (event) => {
    lastSample = performance.now();
    const sample = JSON.parse(event.data);
    if (paused && !fresh) { missed = true; return; }
    show(sample);
  });
  source.addEventListener("error", (event) => lost(event.target));
}

let missed = false; // samples that were not shown, so that the next one is not enough

function show(sample) {
  ({ now, interval, process } = sample);
  setText(element("process"), process.name);
  showHubs(sample.hubs);
  showStreams({ ...sample.streams, rows: sample.stream_rows }, fresh);
  showTopics({ ...sample.topics, rows: sample.topic_rows }, fresh);
  showSamples(sample.samples, fresh);
  showFacts(sample.facts, fresh);
  fresh = false;
  document.body.classList.remove("away");
  showState();
}

function showState() {
  if (paused) setText(element("state"), "Paused");
  else if (!document.body.classList.contains("away")) setText(element("state"), interval < 1.5 ? "Live" : `Live, every ${interval} s`);
}

function away(text) {
  document.body.classList.add("away");
  setText(element("state"), text);
}

// An EventSource reconnects by itself unless the server has answered with an error.
async function lost(failed) {
  if (failed !== source) return;
  away("The connection was lost. Reconnecting …");
  if (failed.readyState !== EventSource.CLOSED) return;
  clearTimeout(retrying);
  retrying = setTimeout(connect, RETRY * 1000);
  try {
    const { status } = await fetch("./", { method: "HEAD" });
    if (failed === source && (status === 401 || status === 403)) {
      away(`The server refuses this page (${status}). Reload it to sign in again.`);
    }
  } catch {
    // It is away, as is said already.
  }
}

setInterval(() => {
  const seconds = (performance.now() - lastSample) / 1000;
  if (!document.body.classList.contains("away") && seconds > Math.max(STALE, 3 * interval)) away(`No news for ${duration(seconds)}.`);
}, 1000);

element("pause").addEventListener("click", () => {
  paused = !paused;
  element("pause").setAttribute("aria-pressed", String(paused));
  document.body.classList.toggle("paused", paused);
  showState();
  if (!paused && missed) {
    missed = false;
    connect();
  }
});

showSort();
connect();
