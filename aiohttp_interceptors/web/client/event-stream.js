// event-stream.d.ts describes the interface, docs/browser.md the protocol between tabs. Times are in milliseconds.

const CONNECT_TIMEOUT = 30_000; // until the response headers
const MAX_DELAY = 30_000; // between two attempts, unless the server asks for more
const SETTLE = 2_000; // without an event, after which a connection has caught up
const PING = 10_000; // between two questions to the leader
const ANSWER = 5_000; // that the leader has to answer
const REMEMBERED = 200; // entries that are compared with those of the leader

const HUB_ID = /^([0-9a-f]{10})-(\d+)$/; // an epoch and an offset

/** Compare like a sort function; NaN if the order is not known. */
function compareIds(a, b) {
  if (a === b) return 0;
  const [, epoch, left] = HUB_ID.exec(a) ?? [];
  const [, other, right] = HUB_ID.exec(b) ?? [];
  if (!epoch || epoch !== other) return NaN;
  return left.length - right.length || (left < right ? -1 : 1);
}

/** An incremental parser of event streams (WHATWG HTML 9.2.6). */
export class Parser {
  retry = null;
  #decoder = new TextDecoder();
  #line = "";
  #afterCr = false;
  #id = null; // of the current event
  #data = [];
  #type = "";

  constructor(lastEventId = "") {
    this.lastEventId = lastEventId;
  }

  /** Return the entries that a chunk completes: events, and IDs without one. `hasId` says whether it is a new ID. */
  push(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    const entries = [];
    if (!text) return entries;
    const lines = text.split(/\r\n|\r|\n/);
    if (this.#afterCr && text[0] === "\n") lines.shift();
    this.#afterCr = text.endsWith("\r");
    lines[0] = this.#line + lines[0];
    this.#line = lines.pop();
    for (const line of lines) {
      if (line) this.#onField(line);
      else this.#onBlankLine(entries);
    }
    return entries;
  }

  #onField(line) {
    const [, name, value = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.retry = Math.min(value, 2 ** 31 - 1);
  }

  #onBlankLine(entries) {
    const hasId = this.#id !== null;
    if (hasId) this.lastEventId = this.#id;
    const entry = { id: this.lastEventId, hasId };
    if (this.#data.length) entries.push({ ...entry, type: this.#type || "message", data: this.#data.join("\n") });
    else if (hasId) entries.push(entry);
    this.#id = null;
    this.#data = [];
    this.#type = "";
  }
}

/** Parse a Retry-After (RFC 9110, 10.2.3). */
function retryAfter(value) {
  return Math.max((/^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.now()) || 0, 0);
}

/** Requests a stream until it ends for good. */
class Connection {
  open = false;
  stopped = false;
  retry = 1_000;
  failures = 0;
  access = {}; // what onUnauthorized returned
  wake = () => {};

  constructor(tab) {
    this.tab = tab;
    this.lastEventId = tab.lastEventId;
    this.run();
  }

  stop() {
    this.stopped = true;
    this.open = false;
    this.abort.abort();
    this.wake();
  }

  hurry() {
    if (!this.serverDelay) this.wake();
  }

  async run() {
    while (!this.stopped) {
      const outcome = await this.attempt();
      this.open = false;
      if (this.stopped) return;
      if (outcome.again) continue;
      if (!outcome.final) {
        const delay = Math.min(Math.max(this.retry, 10) * 2 ** this.failures++, Math.max(this.retry, MAX_DELAY));
        this.serverDelay = outcome.retryAfter;
        outcome.delay = Math.max(delay, this.serverDelay || 0) * (1 + Math.random() / 4);
      }
      this.tab.onError(outcome);
      if (outcome.final || this.stopped) return;
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, Math.min(outcome.delay, 2 ** 31 - 1));
        this.wake = () => resolve(clearTimeout(timer));
      });
    }
  }

  async attempt() {
    const { method, headers: given, body, credentials, reconnect, heartbeat } = this.tab.options;
    const abort = (this.abort = new AbortController());
    const { signal } = abort;
    const outcome = { reason: "unreachable", final: !reconnect };
    let timer;
    const giveUp = () => {
      outcome.reason = "stalled";
      abort.abort();
    };
    if (reconnect) timer = setTimeout(giveUp, CONNECT_TIMEOUT);
    try {
      const headers = new Headers(typeof given === "function" ? await given() : given);
      new Headers(this.access.headers).forEach((value, name) => headers.set(name, value));
      headers.set("Accept", "text/event-stream");
      // in UTF-8, as an EventSource sends it
      const id = String.fromCharCode(...new TextEncoder().encode(this.lastEventId));
      if (id) headers.set("Last-Event-ID", id);
      const url = this.access.url ?? this.tab.url;
      const response = await fetch(url, { method, headers, body, credentials, signal, cache: "no-store" });
      clearTimeout(timer);
      outcome.status = response.status;
      if (!(await this.accepts(response, outcome))) return outcome;
      outcome.reason = "cut";
      this.open = true;
      this.tab.onOpen();
      const parser = new Parser(this.lastEventId);
      const seconds = heartbeat ?? response.headers.get("Event-Stream-Heartbeat");
      const limit = seconds > 0 ? seconds * 2_000 + 1_000 : 0;
      let heard = Date.now();
      let wasLate;
      const watch = () => {
        const silence = Date.now() - heard;
        // The page did not run for some time: first read what has arrived.
        const isLate = silence > limit + 1_000 && !wasLate;
        wasLate = isLate;
        if (silence < limit || isLate) timer = setTimeout(watch, isLate ? 1_000 : limit - silence);
        else giveUp();
      };
      if (limit) watch();
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (this.stopped) return;
        if (done) return { ...outcome, reason: "ended" };
        heard = Date.now();
        this.failures = 0;
        const entries = parser.push(value);
        this.retry = parser.retry ?? this.retry;
        this.lastEventId = parser.lastEventId;
        if (entries.length) this.tab.onEntries(entries);
      }
    } catch (error) {
      return { ...outcome, error };
    } finally {
      clearTimeout(timer);
      abort.abort();
    }
  }

  async accepts({ status, headers }, outcome) {
    if (status === 401 || status === 403) {
      outcome.reason = "unauthorized";
      const { onUnauthorized } = this.tab.options;
      const access = !this.renewed && (await onUnauthorized?.({ status, url: this.access.url ?? this.tab.url }));
      // What is refused at once is not renewed again.
      this.renewed = outcome.again = Boolean(access);
      outcome.final ||= !access;
      Object.assign(this.access, access);
      return false;
    }
    this.renewed = false;
    const isStream = /^text\/event-stream *(;|$)/i.test(headers.get("Content-Type"));
    if (status === 200 && isStream) return true;
    outcome.reason = status === 204 ? "finished" : "refused";
    outcome.final ||= status < 500 && ![408, 425, 429].includes(status);
    outcome.retryAfter = retryAfter(headers.get("Retry-After"));
    return false;
  }
}

/** For a browser that cannot read a response as it arrives. */
class NativeConnection {
  types = new Set();

  constructor(tab) {
    this.tab = tab;
    const url = new URL(tab.url);
    if (tab.lastEventId) url.searchParams.set("last_event_id", tab.lastEventId);
    this.source = new EventSource(url, { withCredentials: tab.options.credentials === "include" });
    this.source.onopen = () => tab.onOpen();
    this.source.onerror = () => {
      const final = this.source.readyState === CLOSED;
      tab.onError({ reason: final ? "refused" : "cut", final });
    };
    tab.types.forEach((type) => this.listen(type));
  }

  listen(type) {
    if (this.types.has(type)) return;
    this.types.add(type);
    this.source.addEventListener(type, ({ data, lastEventId: id }) => {
      if (data !== undefined) this.tab.onEntries([{ type, data, id }]);
    });
  }

  stop() {
    this.source.close();
  }
}

/**
 * The tab with the Web Lock leads, and sends what it receives to the others. Each of them has its own connection until
 * its position is known to be one of the leader's, and again when it cannot be sure any more.
 */
class Sharing {
  term = 0; // a later leader has a higher one
  leads = false;
  follows = false;
  sequence = 0; // of the leader's next entry
  leader = null; // its position when the buffer began
  buffer = []; // its entries since then
  own = []; // the latest ones of the own connection
  quietSince = 0;
  through = ""; // a follower skips entries up to this ID
  skipped = []; // and these
  asked = 0; // when the leader was asked that has not answered

  constructor(tab) {
    this.tab = tab;
    this.channel = new BroadcastChannel(tab.key);
    this.channel.onmessage = ({ data }) => this.onMessage(data);
    this.requestLock({ ifAvailable: true });
  }

  leave() {
    clearTimeout(this.timer);
    this.channel.close();
    this.lock.abort();
    this.lock = null;
  }

  requestLock(options) {
    this.lock?.abort();
    const lock = (this.lock = new AbortController());
    const onGrant = (held) => {
      if (this.lock !== lock) return;
      if (held) {
        this.lead();
        return new Promise((release) => lock.signal.addEventListener("abort", release));
      }
      this.requestLock();
      this.goAlone();
    };
    navigator.locks.request(this.tab.key, options ?? { signal: lock.signal }, onGrant).catch(() => {
      if (this.lock !== lock) return;
      if (this.leads) this.stepDown(); // another tab has taken the lock
      else this.tab.start(false); // the page may have no locks
    });
  }

  lead() {
    clearTimeout(this.timer);
    this.term = Math.max(Date.now(), this.term + 1);
    this.leads = true;
    this.follows = false;
    this.sequence = 0;
    this.tab.connect();
    this.announce();
  }

  stepDown() {
    this.leads = false;
    this.requestLock();
    this.compareAnew();
  }

  goAlone() {
    this.follows = false;
    this.tab.connect();
    this.compareAnew();
  }

  announce(error) {
    if (!this.leads) return;
    const { lastEventId: id, isEvent, total, connection } = this.tab;
    this.post({ type: "lead", leader: { id, isEvent, total, open: connection.open }, error });
  }

  post(message) {
    this.channel.postMessage({ ...message, term: this.term, sequence: this.sequence });
  }

  onOpen() {
    if (this.leads) this.announce();
    else this.compareAnew();
  }

  beforeEntries(entries) {
    if (!this.leads) return;
    this.post({ type: "entries", entries });
    this.sequence += entries.length;
  }

  afterEntries(entries) {
    if (this.leads) return;
    this.quietSince = Date.now();
    this.own = [...this.own, ...entries].slice(-REMEMBERED);
    this.tryToFollow();
  }

  compareAnew() {
    this.leader = null;
    this.own = [];
    this.ask();
  }

  ask() {
    this.asked ||= Date.now();
    this.post({ type: "ask" });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onTimer(), this.follows ? PING : SETTLE);
  }

  onTimer() {
    if (this.asked && Date.now() - this.asked >= ANSWER) {
      this.asked = 0;
      this.requestLock({ steal: true }); // the leader does not run any more
    } else {
      this.tryToFollow();
      this.ask();
    }
  }

  onMessage(message) {
    if (message.type === "ask") return this.announce();
    if (message.term < this.term) return;
    const isNew = message.term > this.term;
    if (this.leads) return isNew && this.stepDown();
    this.asked = 0;
    if (message.type === "lead") this.onLead(message, isNew);
    else if (!isNew) this.onLeaderEntries(message);
  }

  onLead({ term, sequence, leader, error }, isNew) {
    const position = this.tab.lastEventId;
    const isInLine = isNew ? compareIds(position, leader.id) >= 0 : sequence === this.sequence;
    this.term = term;
    this.sequence = sequence;
    if (!this.follows) {
      if (!isInLine || isNew || !this.leader) {
        this.buffer = [];
        this.quietSince = Date.now();
        this.leader = leader;
      }
      this.leader.open = leader.open;
      this.tryToFollow();
    } else if (isInLine) {
      if (isNew) this.through = position;
      this.tab.onLeaderState(leader.open, error);
    } else this.goAlone();
  }

  onLeaderEntries({ sequence, entries }) {
    const isInLine = sequence === this.sequence;
    this.sequence = sequence + entries.length;
    if (this.follows) {
      if (isInLine) this.tab.deliver(entries.filter((entry) => !this.isKnown(entry)));
      else this.goAlone();
    } else if (this.leader) {
      this.buffer.push(...entries);
      if (isInLine && this.buffer.length <= REMEMBERED) this.tryToFollow();
      else this.compareAnew();
    }
  }

  /** Return whether the own connection had an entry. */
  isKnown(entry) {
    if (this.through && entry.hasId) {
      if (compareIds(entry.id, this.through) <= 0) return true;
      this.through = "";
    }
    const isKnown = this.skipped.length > 0 && isSame(this.skipped[0], entry);
    this.skipped = isKnown ? this.skipped.slice(1) : [];
    return isKnown;
  }

  tryToFollow() {
    const { leader, buffer, own } = this;
    if (!leader || this.leads || this.follows) return;
    const position = this.tab.lastEventId;
    let known;
    const common = buffer.findLastIndex((entry) => (known = own.findLastIndex((each) => isSame(each, entry))) >= 0);
    if (common >= 0) this.follow(common + 1, "", own.slice(known + 1));
    else if (position && compareIds(position, leader.id) >= 0) {
      this.follow(buffer.findLastIndex(({ id }) => compareIds(id, position) <= 0) + 1, position);
    } else if (this.isIdle()) {
      this.tab.lastEventId = leader.id || position;
      this.follow(0);
    }
  }

  isIdle() {
    const { id, isEvent, total, open } = this.leader;
    const quiet = Date.now() - this.quietSince;
    if (!open || !this.tab.connection?.open || this.buffer.length || quiet < SETTLE) return false;
    if (isEvent && compareIds(this.tab.lastEventId, id) < 0) return false;
    return this.own.length > 0 || !total || quiet > PING;
  }

  follow(start, through = "", skipped = []) {
    const entries = this.buffer.slice(start);
    const { open } = this.leader;
    this.follows = true;
    this.through = through;
    this.skipped = skipped;
    this.buffer = this.own = [];
    this.leader = null;
    this.tab.disconnect();
    this.ask();
    this.tab.deliver(entries);
    this.tab.onLeaderState(open);
  }
}

function isSame(one, other) {
  return one.id === other.id && one.type === other.type && one.data === other.data;
}

const canStream = () => typeof ReadableStream === "function" && "body" in Response.prototype;

class Tab {
  state = CONNECTING;
  connection = null;
  sharing = null;
  running = false;
  closed = new AbortController();
  types = new Set();
  total = 0;
  isEvent = false; // whether the last one was an event, and not only an ID

  constructor(target, url, options) {
    this.target = target;
    this.url = url;
    this.options = options;
    this.key = `event-stream ${JSON.stringify([url, options.identity, options.credentials])}`;
    this.lastEventId = options.lastEventId ?? "";
    if (options.resume) Object.assign(this, JSON.parse(sessionStorage.getItem(this.key)));
  }

  start(canShare = this.options.identity != null && navigator.locks && canStream()) {
    if (this.state === CLOSED) return;
    this.stop();
    this.running = true;
    if (canShare) this.sharing = new Sharing(this);
    else this.connect();
  }

  stop() {
    this.running = false;
    this.sharing?.leave();
    this.sharing = null;
    this.disconnect();
  }

  connect() {
    this.connection ??= new (canStream() ? Connection : NativeConnection)(this);
  }

  disconnect() {
    this.connection?.stop();
    this.connection = null;
  }

  onOpen() {
    this.sharing?.onOpen();
    this.setState(OPEN, new Event("open"));
  }

  onEntries(entries) {
    this.sharing?.beforeEntries(entries);
    this.deliver(entries);
    this.sharing?.afterEntries(entries);
  }

  onError(outcome) {
    const { reason, status, delay, final } = outcome;
    if (final) this.stop();
    else this.sharing?.announce({ reason, status, delay });
    this.setState(final ? CLOSED : CONNECTING);
    this.target.dispatchEvent(Object.assign(new Event("error"), outcome));
  }

  onLeaderState(open, error) {
    this.setState(open ? OPEN : CONNECTING, open && new Event("open"));
    if (error) this.target.dispatchEvent(Object.assign(new Event("error"), error));
  }

  deliver(entries) {
    const { origin } = new URL(this.url);
    for (const { type, data, id } of entries) {
      if (!this.running) break;
      this.lastEventId = id;
      this.isEvent = data !== undefined;
      this.total += 1;
      if (this.isEvent) this.target.dispatchEvent(new MessageEvent(type, { data, lastEventId: id, origin }));
    }
    const { lastEventId, isEvent } = this;
    if (this.options.resume) sessionStorage.setItem(this.key, JSON.stringify({ lastEventId, isEvent }));
  }

  setState(state, event) {
    if (this.state === state || this.state === CLOSED) return;
    this.state = state;
    if (state === CLOSED) this.closed.abort();
    this.target.dispatchEvent(new Event("statechange"));
    if (event && this.state === state) this.target.dispatchEvent(event);
  }
}

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 2;

export class EventStream extends EventTarget {
  #tab;

  constructor(url, options = {}) {
    super();
    const { method = "GET", withCredentials, identity = null, reconnect = method === "GET" } = options;
    const credentials = options.credentials ?? (withCredentials ? "include" : "same-origin");
    if (identity !== null && method !== "GET") throw new TypeError(`tabs cannot share a ${method} request`);
    if (!canStream() && (method !== "GET" || options.headers)) {
      throw new TypeError("the EventSource of this browser sends no headers and no body");
    }
    const { href } = new URL(url, globalThis.location?.href);
    const tab = (this.#tab = new Tab(this, href, { ...options, method, identity, credentials, reconnect }));
    for (const type of ["open", "message", "error", "gap", "statechange"]) {
      this[`on${type}`] = null;
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    // A page that is frozen, or kept for the back button, has no connection and does not lead.
    const stop = () => {
      tab.stop();
      tab.setState(CONNECTING);
    };
    const start = () => tab.running || tab.start();
    const hurry = () => tab.connection?.hurry?.();
    const { document } = globalThis;
    const { signal } = tab.closed;
    const listen = (target, type, listener) => target?.addEventListener?.(type, listener, { signal });
    listen(globalThis, "pagehide", stop);
    listen(globalThis, "pageshow", start);
    listen(globalThis, "online", hurry);
    listen(document, "freeze", stop);
    listen(document, "resume", start);
    tab.start();
  }

  get url() {
    return this.#tab.url;
  }

  get readyState() {
    return this.#tab.state;
  }

  get lastEventId() {
    return this.#tab.lastEventId;
  }

  addEventListener(type, ...others) {
    super.addEventListener(type, ...others);
    this.#tab.types.add(type);
    this.#tab.connection?.listen?.(type);
  }

  close() {
    this.#tab.stop();
    this.#tab.setState(CLOSED);
  }
}

for (const each of [EventStream, EventStream.prototype]) Object.assign(each, { CONNECTING, OPEN, CLOSED });
