/**
 * Event streams for pages: an `EventSource` that sends headers and bodies, backs off, notices a dead connection, renews
 * its access, and shares one connection between all tabs. See `event-stream.d.ts` for the interface.
 *
 * `Parser` turns bytes into entries, `Connection` keeps a response open, `Sharing` decides which tab has a connection,
 * and `EventStream` is what a page uses. No dependency, no build step.
 */

const CONNECT_TIMEOUT = 30_000; // milliseconds until the response headers, of a request that may be repeated
const MAX_DELAY = 30_000; // milliseconds between two attempts, unless the server asks for more
const STABLE = 10_000; // milliseconds after which an open connection counts as a success, even without an event
const SETTLE = 2_000; // milliseconds without an event, after which two idle connections are at the same position
const PING = 10_000; // milliseconds between two questions of a tab to the leader
const ANSWER = 5_000; // milliseconds that a leader has to answer
const REMEMBERED = 1_000; // entries that a tab on its own connection compares with those of the leader

// The last event ID of a Hub is an epoch and an offset. Those of one epoch have an order.
const HUB_ID = /^([0-9a-f]{10})-(\d+)$/;

/** Compare two event IDs: a number like that of a sort function, or NaN if they have no known order. */
function compareIds(a, b) {
  if (a === b) return 0;
  const [, epoch, left] = HUB_ID.exec(a) ?? [];
  const [, other, right] = HUB_ID.exec(b) ?? [];
  if (!epoch || epoch !== other) return NaN;
  return left.length - right.length || (left < right ? -1 : 1);
}

/** Parse an event stream incrementally, as WHATWG HTML 9.2.6 specifies. */
export class Parser {
  retry = null; // milliseconds
  #decoder = new TextDecoder(); // removes a byte order mark
  #line = "";
  #afterCr = false;
  #data = [];
  #type = "";
  #id;

  constructor(lastEventId = "") {
    this.lastEventId = this.#id = lastEventId;
  }

  /** Return the entries that a chunk completes: `{type, data, id}` of an event, or `{id}` if only the ID has changed. */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    const entries = [];
    if (!text) return entries;
    const endsWithCr = text.endsWith("\r");
    if (this.#afterCr && text.startsWith("\n")) text = text.slice(1);
    this.#afterCr = endsWithCr;
    const lines = text.split(/\r\n|\r|\n/);
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    for (const line of lines) {
      if (line) this.#field(line);
      else this.#dispatch(entries);
    }
    return entries;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + (line[colon + 1] === " " ? 2 : 1));
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.retry = Math.min(Number(value), 2 ** 31 - 1);
  }

  #dispatch(entries) {
    const id = this.#id;
    if (this.#data.length) entries.push({ type: this.#type || "message", data: this.#data.join("\n"), id });
    else if (id !== this.lastEventId) entries.push({ id });
    this.lastEventId = id;
    this.#data = [];
    this.#type = "";
  }
}

/** Return the milliseconds that a `Retry-After` asks for (RFC 9110, 10.2.3), or 0. */
function retryAfter(value) {
  if (!value) return 0;
  return Math.max((/^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.now()) || 0, 0);
}

/** Write an ID as an `EventSource` does: in UTF-8, of which a header value holds the bytes. */
function headerValue(id) {
  return String.fromCharCode(...new TextEncoder().encode(id));
}

/**
 * A response that is requested again until it ends for good. `listener` has `onOpen()`, `onEntries(entries)`, and
 * `onError(outcome)`, whose outcome has `final` if there is no further attempt.
 */
class Connection {
  open = false;
  #stopped = false;
  #failures = 0;
  #renewed = false;
  #access = {}; // what onUnauthorized returned
  #abort = new AbortController();
  #wake = () => {};

  constructor(url, options, lastEventId, listener) {
    this.url = url;
    this.options = options;
    this.lastEventId = lastEventId;
    this.retry = 1_000;
    this.listener = listener;
    this.#run();
  }

  stop() {
    this.#stopped = true;
    this.open = false;
    this.#abort.abort();
    this.#wake();
  }

  /** Make the next attempt now, unless the server asked to wait. */
  hurry() {
    if (!this.waitsForServer) this.#wake();
  }

  async #run() {
    while (!this.#stopped) {
      const outcome = await this.#attempt();
      this.open = false;
      if (this.#stopped) return;
      if (outcome.again) continue;
      if (!outcome.final) {
        const growing = Math.min(this.retry * 2 ** this.#failures++, Math.max(MAX_DELAY, this.retry));
        this.waitsForServer = outcome.retryAfter > 0;
        outcome.delay = Math.max(growing, outcome.retryAfter ?? 0) * (1 + Math.random() / 4);
      }
      this.listener.onError(outcome);
      if (outcome.final) return;
      if (!this.#stopped) await this.#sleep(outcome.delay);
    }
  }

  async #sleep(milliseconds) {
    await new Promise((resolve) => {
      this.#wake = resolve;
      setTimeout(resolve, Math.min(milliseconds, 2 ** 31 - 1));
    });
  }

  /** Request the stream and read it to its end. Returns why it ended. */
  async #attempt() {
    const { method = "GET", body, credentials, reconnect } = this.options;
    const abort = (this.#abort = new AbortController());
    let reason = "unreachable";
    let status;
    const giveUp = () => {
      reason = "stalled";
      abort.abort();
    };
    let timer = reconnect ? setTimeout(giveUp, CONNECT_TIMEOUT) : undefined;
    try {
      const given = this.options.headers;
      const headers = new Headers(typeof given === "function" ? await given() : given);
      new Headers(this.#access.headers).forEach((value, name) => headers.set(name, value));
      headers.set("Accept", "text/event-stream");
      if (this.lastEventId) headers.set("Last-Event-ID", headerValue(this.lastEventId));
      if (this.#stopped) return {};
      const url = this.#access.url ?? this.url;
      const { signal } = abort;
      const response = await fetch(url, { method, headers, body, credentials, cache: "no-store", signal });
      clearTimeout(timer);
      status = response.status;
      const refusal = await this.#refusal(response);
      if (refusal) return { status, ...refusal };
      reason = "cut";
      this.#renewed = false;
      this.open = true;
      const opened = Date.now();
      this.listener.onOpen();
      const parser = new Parser(this.lastEventId);
      const reader = response.body.getReader();
      const limit = this.#limit(response);
      let heard = performance.now();
      const watch = () => {
        const due = heard + limit - performance.now();
        // A timer that is much too late is that of a page that was not running: what has arrived is read first.
        if (due > 0 || due < -1_000 - limit) timer = setTimeout(watch, Math.max(due, 1_000));
        else giveUp();
      };
      if (limit) timer = setTimeout(watch, limit);
      for (;;) {
        const { done, value } = await reader.read();
        if (this.#stopped) return {};
        if (Date.now() - opened > STABLE) this.#failures = 0;
        if (done) return { reason: "ended", status, final: !reconnect };
        heard = performance.now();
        const entries = parser.push(value);
        this.retry = parser.retry ?? this.retry;
        this.lastEventId = parser.lastEventId;
        if (entries.length) {
          this.#failures = 0;
          this.listener.onEntries(entries);
        }
      }
    } catch (error) {
      return { reason, status, error, final: !reconnect };
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  /** Return the milliseconds without a byte after which the connection is dead; 0 for no limit. */
  #limit(response) {
    const seconds = Number(this.options.heartbeat ?? response.headers.get("Event-Stream-Heartbeat"));
    return seconds > 0 ? seconds * 2_000 + 1_000 : 0;
  }

  /** Return the outcome of a response that is no stream, or undefined. */
  async #refusal(response) {
    const { status, headers } = response;
    if (status === 401 || status === 403) return this.#renew(status);
    if (status === 204) return { reason: "finished", final: true };
    if (status === 200 && /^text\/event-stream(;|$)/i.test(headers.get("Content-Type") ?? "")) return;
    const temporary = status === 408 || status === 425 || status === 429 || status >= 500;
    const final = !temporary || !this.options.reconnect;
    return { reason: "refused", retryAfter: retryAfter(headers.get("Retry-After")), final };
  }

  /** Ask the page for other headers or another URL. Access that is refused at once is not asked for again. */
  async #renew(status) {
    const { onUnauthorized } = this.options;
    const refused = { reason: "unauthorized", final: true };
    if (!onUnauthorized || this.#renewed) return refused;
    const access = await onUnauthorized({ status, url: this.#access.url ?? this.url });
    if (!access) return refused;
    this.#renewed = true;
    this.#access = { ...this.#access, ...access };
    return { again: true };
  }
}

/**
 * Decides whether a tab has a connection. The tab with the Web Lock leads: it sends what it receives to the others.
 *
 * Each tab starts on a connection of its own, from its own position, as an `EventSource` would. It follows the leader
 * as soon as its position is known to be one of the leader's. A tab that cannot be sure (another leader with another
 * position, a lost message, a page that was frozen) goes on alone from its last event ID, until it is sure again.
 */
class Sharing {
  #term = 0; // of the leader; a later leader has a higher one
  #leads = false;
  #follows = false;
  #sequence = 0; // of the next entry that the leader sends
  #leader = null; // its latest position: {id, isEvent, total, open}
  #anchor = null; // the leader's position when the buffer starts
  #buffer = []; // the entries of the leader since then, while this tab is alone
  #own = []; // the latest entries of this tab's own connection
  #lastEntryAt = 0;
  #through = ""; // a follower skips entries up to this ID
  #skipped = []; // and these entries
  #asked = 0; // when the leader was asked, or 0 once it has answered
  #lock = null;

  constructor(name, tab) {
    this.name = name;
    this.tab = tab;
    this.channel = new BroadcastChannel(name);
    this.channel.onmessage = ({ data }) => this.#onMessage(data);
    this.#request({ ifAvailable: true });
  }

  leave() {
    clearTimeout(this.timer);
    this.channel.close();
    this.#lock?.abort();
    this.#lock = null;
  }

  // The lock

  #request(options) {
    this.#lock?.abort();
    const lock = (this.#lock = new AbortController());
    const onGrant = (held) => {
      if (this.#lock !== lock) return;
      if (!held) {
        this.#request();
        return this.#goAlone();
      }
      this.#lead();
      return new Promise((release) => lock.signal.addEventListener("abort", release));
    };
    navigator.locks.request(this.name, options ?? { signal: lock.signal }, onGrant).catch(() => {
      if (this.#lock !== lock) return;
      if (this.#leads) this.#stepDown(); // another tab has taken the lock
      else this.tab.stopSharing(); // the browser refuses locks to this page
    });
  }

  #lead() {
    clearTimeout(this.timer);
    this.#term = Math.max(Date.now(), this.#term + 1);
    this.#leads = true;
    this.#follows = false;
    this.#sequence = 0;
    this.tab.connect();
    this.announce();
  }

  #stepDown() {
    this.#leads = false;
    this.#request();
    this.#startAgain();
  }

  /** Tell the other tabs the position and the state of this one, if it leads. */
  announce(error) {
    if (!this.#leads) return;
    const { lastEventId: id, isEvent, total, connection } = this.tab;
    this.#post({ type: "lead", sequence: this.#sequence, leader: { id, isEvent, total, open: connection.open }, error });
  }

  #post(message) {
    this.channel.postMessage({ ...message, term: this.#term });
  }

  // The own connection

  onOpen() {
    if (this.#leads) this.announce();
    else this.#startAgain();
  }

  onEntries(entries) {
    if (this.#leads) {
      this.#post({ type: "entries", sequence: this.#sequence, entries });
      this.#sequence += entries.length;
    }
  }

  /** Called after the page has received entries of the own connection. */
  afterEntries(entries) {
    if (this.#leads) return;
    this.#lastEntryAt = Date.now();
    this.#own = [...this.#own, ...entries].slice(-REMEMBERED);
    this.#follow();
  }

  #goAlone() {
    this.#follows = false;
    this.tab.connect();
    this.#startAgain();
  }

  /** Compare with the leader from here on. */
  #startAgain() {
    this.#anchor = null;
    this.#own = [];
    this.#lastEntryAt = Date.now();
    this.#ask();
  }

  // Messages

  #ask() {
    this.#asked ||= Date.now();
    this.#post({ type: "ask" });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#onTimer(), this.#follows ? PING : SETTLE);
  }

  #onTimer() {
    if (this.#asked && Date.now() - this.#asked >= ANSWER) {
      this.#asked = 0;
      this.#request({ steal: true }); // the leader does not run any more
    } else {
      this.#follow();
      this.#ask();
    }
  }

  #onMessage(message) {
    if (message.type === "ask") return this.announce();
    if (message.term < this.#term) return;
    const isNew = message.term > this.#term;
    if (this.#leads) {
      if (isNew) this.#stepDown();
      return;
    }
    this.#asked = 0;
    if (message.type === "lead") this.#onLead(message, isNew);
    else if (!isNew) this.#onLeaderEntries(message);
  }

  #onLead({ term, sequence, leader, error }, isNew) {
    this.#term = term;
    this.#leader = leader;
    if (this.#follows) {
      if (isNew ? compareIds(this.tab.lastEventId, leader.id) >= 0 : sequence === this.#sequence) {
        if (isNew) this.#through = this.tab.lastEventId;
        this.#sequence = sequence;
        this.tab.onLeaderState(leader.open, error);
      } else this.#goAlone();
      return;
    }
    if (isNew || !this.#anchor || sequence !== this.#sequence) {
      this.#anchor = leader;
      this.#buffer = [];
      this.#sequence = sequence;
      this.#lastEntryAt = Date.now();
    }
    this.#follow();
  }

  #onLeaderEntries({ sequence, entries }) {
    if (sequence !== this.#sequence) {
      if (this.#follows) this.#goAlone();
      else this.#startAgain();
      return;
    }
    this.#sequence += entries.length;
    if (this.#follows) return this.tab.deliver(entries.filter((entry) => !this.#isKnown(entry)));
    this.#buffer.push(...entries);
    if (this.#buffer.length > REMEMBERED) this.#startAgain();
    else this.#follow();
  }

  /** Return whether a follower has already had an entry, from a connection of its own. */
  #isKnown(entry) {
    if (this.#through && compareIds(entry.id, this.#through) <= 0) return true;
    this.#through = "";
    if (this.#skipped.length && isSame(this.#skipped[0], entry)) return Boolean(this.#skipped.shift());
    this.#skipped = [];
    return false;
  }

  /** Follow the leader, if the position of this tab is known to be one of those in the buffer. */
  #follow() {
    if (!this.#anchor || this.#leads || this.#follows) return;
    const position = this.tab.lastEventId;
    const buffer = this.#buffer;
    const last = this.#own.at(-1);
    const index = last ? buffer.findLastIndex((entry) => isSame(entry, last)) : -1;
    const ahead = buffer.length ? this.#own.findLastIndex((entry) => isSame(entry, buffer.at(-1))) : -1;
    if (index >= 0) this.#startFollowing(buffer.slice(index + 1));
    else if (ahead >= 0) this.#startFollowing([], "", this.#own.slice(ahead + 1));
    else if (position && compareIds(position, this.#anchor.id) >= 0) {
      this.#startFollowing(buffer.filter((entry) => !(compareIds(entry.id, position) <= 0)), position);
    } else if (this.#isIdle(position)) this.#startFollowing([]);
  }

  /** Return whether both connections are open and have nothing more to send. */
  #isIdle(position) {
    const { total, id, isEvent } = this.#anchor;
    if (!this.tab.connection?.open || !this.#leader.open || this.#buffer.length) return false;
    if (Date.now() - this.#lastEntryAt < SETTLE || (isEvent && compareIds(position, id) < 0)) return false;
    return this.#own.length > 0 || total === 0;
  }

  #startFollowing(entries, through = "", skipped = []) {
    this.#follows = true;
    this.#through = through;
    this.#skipped = skipped;
    this.#buffer = this.#own = [];
    this.#anchor = null;
    this.tab.disconnect();
    this.#ask();
    this.tab.deliver(entries);
    this.tab.onLeaderState(this.#leader.open);
  }
}

function isSame(one, other) {
  return one.id === other.id && one.type === other.type && one.data === other.data;
}

/** What one `EventStream` has received and holds: its position, and a connection or a part in a shared one. */
class Tab {
  connection = null;
  total = 0; // entries received
  #sharing = null;
  #running = false;

  constructor(page, key, url, options) {
    this.page = page;
    this.key = key;
    this.url = url;
    this.options = options;
    const stored = options.resume ? stored(key) : null;
    this.lastEventId = stored?.id ?? options.lastEventId ?? "";
    this.isEvent = stored?.isEvent ?? false; // whether the last entry was an event, and not a mere ID
    this.start();
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    const canShare = this.options.identity != null && globalThis.navigator?.locks && globalThis.BroadcastChannel;
    if (canShare && canStream()) this.#sharing = new Sharing(this.key, this);
    else this.connect();
  }

  /** Let go of everything that a page must not hold while it does not run. */
  stop() {
    this.#running = false;
    this.#sharing?.leave();
    this.#sharing = null;
    this.disconnect();
  }

  stopSharing() {
    this.#sharing?.leave();
    this.#sharing = null;
    this.connect();
  }

  connect() {
    const Kind = canStream() ? Connection : NativeConnection;
    this.connection ??= new Kind(this.url, this.options, this.lastEventId, this);
  }

  disconnect() {
    this.connection?.stop();
    this.connection = null;
  }

  // What the connection calls

  onOpen() {
    this.#sharing?.onOpen();
    this.page.onOpen();
  }

  onEntries(entries) {
    this.#sharing?.onEntries(entries);
    this.deliver(entries);
    this.#sharing?.afterEntries(entries);
  }

  onError(outcome) {
    const { reason, status, delay } = outcome;
    if (outcome.final) this.stop();
    else this.#sharing?.announce({ reason, status, delay });
    this.page.onError(outcome);
  }

  // What the connection of another tab has received

  onLeaderState(open, error) {
    if (open) this.page.onOpen();
    else this.page.onError(error);
  }

  deliver(entries) {
    for (const { type, data, id } of entries) {
      this.lastEventId = id;
      this.isEvent = data !== undefined;
      this.total += 1;
      if (this.isEvent) this.page.onEvent(type, data, id);
      if (!this.#running) break;
    }
    if (this.options.resume) store(this.key, { id: this.lastEventId, isEvent: this.isEvent });
  }
}

function store(key, position) {
  try {
    sessionStorage.setItem(key, JSON.stringify(position));
  } catch {
    // no storage, or a full one: a reload starts anew
  }
}

function stored(key) {
  try {
    return JSON.parse(sessionStorage.getItem(key));
  } catch {
    return null;
  }
}

function canStream() {
  return typeof ReadableStream === "function" && "body" in Response.prototype;
}

/** The connection of a browser that cannot read a response as it arrives: its own `EventSource`. */
class NativeConnection {
  #source;
  #types = new Set();

  constructor(url, { withCredentials }, lastEventId, listener) {
    const target = new URL(url);
    if (lastEventId) target.searchParams.set("last_event_id", lastEventId);
    this.#source = new EventSource(target, { withCredentials });
    this.listener = listener;
    this.#source.onopen = () => listener.onOpen();
    this.#source.onerror = () => {
      const final = this.#source.readyState === 2;
      listener.onError({ reason: final ? "refused" : "cut", final });
    };
    listener.page.types.forEach((type) => this.listen(type));
  }

  get open() {
    return this.#source.readyState === 1;
  }

  listen(type) {
    if (this.#types.has(type)) return;
    this.#types.add(type);
    this.#source.addEventListener(type, ({ data, lastEventId: id }) => {
      if (data !== undefined) this.listener.onEntries([{ type, data, id }]);
    });
  }

  hurry() {}

  stop() {
    this.#source.close();
  }
}

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

/** An event stream for a page. The interface is that of `EventSource`, and more: see `event-stream.d.ts`. */
export class EventStream extends EventTarget {
  onopen = null;
  onmessage = null;
  onerror = null;
  ongap = null;
  onstatechange = null;
  #url;
  #origin;
  #state = CONNECTING;
  #tab;
  #types = new Set();
  #listening = new AbortController();

  constructor(url, options = {}) {
    super();
    const { method = "GET", identity, withCredentials, reconnect = method === "GET" } = options;
    if (identity != null && method !== "GET") throw new TypeError(`a ${method} request cannot be shared by tabs`);
    if (!canStream() && (method !== "GET" || options.headers)) {
      throw new TypeError("this browser cannot read a response as it arrives, and its EventSource sends no such request");
    }
    const address = new URL(url, globalThis.location?.href);
    this.#url = address.href;
    this.#origin = address.origin;
    const credentials = options.credentials ?? (withCredentials ? "include" : "same-origin");
    const key = `event-stream ${JSON.stringify([this.#url, identity ?? null, credentials])}`;
    for (const type of ["open", "message", "error", "gap", "statechange"]) {
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    const page = {
      types: this.#types,
      onOpen: () => this.#setState(OPEN) && this.dispatchEvent(new Event("open")),
      onEvent: (type, data, lastEventId) =>
        this.dispatchEvent(new MessageEvent(type, { data, lastEventId, origin: this.#origin })),
      onError: (outcome) => this.#onError(outcome),
    };
    this.#tab = new Tab(page, key, this.#url, { ...options, method, credentials, reconnect });
    this.#watchPage();
  }

  get url() {
    return this.#url;
  }

  get readyState() {
    return this.#state;
  }

  get lastEventId() {
    return this.#tab.lastEventId;
  }

  addEventListener(type, listener, options) {
    super.addEventListener(type, listener, options);
    this.#types.add(type);
    this.#tab?.connection?.listen?.(type);
  }

  close() {
    this.#tab.stop();
    this.#setState(CLOSED);
    this.#listening.abort();
  }

  #setState(state) {
    if (this.#state === state || this.#state === CLOSED) return false;
    this.#state = state;
    this.dispatchEvent(new Event("statechange"));
    return this.#state === state;
  }

  #onError(outcome) {
    if (this.#state === CLOSED) return;
    this.#setState(outcome?.final ? CLOSED : CONNECTING);
    if (outcome?.final) this.#listening.abort();
    if (outcome) this.dispatchEvent(Object.assign(new Event("error"), outcome));
  }

  /** A page that is frozen, or kept for the back button, holds no connection and does not lead. */
  #watchPage() {
    const { signal } = this.#listening;
    const stop = () => {
      this.#tab.stop();
      this.#setState(CONNECTING);
    };
    const start = () => this.#tab.start();
    const listen = (target, type, listener) => target?.addEventListener?.(type, listener, { signal });
    listen(globalThis, "pagehide", stop);
    listen(globalThis, "pageshow", start);
    listen(globalThis.document, "freeze", stop);
    listen(globalThis.document, "resume", start);
    listen(globalThis, "online", () => this.#tab.connection?.hurry());
  }
}

[EventStream, EventStream.prototype].forEach((each) => Object.assign(each, { CONNECTING, OPEN, CLOSED }));
