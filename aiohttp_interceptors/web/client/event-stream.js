// docs/browser.md describes the protocol between tabs. Times are in milliseconds.

const CONNECT_TIMEOUT = 30_000; // until the response headers
const MAX_DELAY = 30_000; // between two attempts, unless the server asks for more
const SETTLE = 500; // without an event, after which a connection is quiet
const PING = 5_000; // between questions to the leader
const REMEMBERED = 200; // entries that are compared with those of the leader

const HUB_ID = /^([0-9a-f]{10})-(\d+)$/; // an epoch and an offset

/** Compare two IDs; NaN if their order is not known. */
function compareIds(a, b) {
  const [left, right] = [a, b].map((id) => HUB_ID.exec(id));
  if (left && left[1] === right?.[1]) return Number(BigInt(left[2]) - BigInt(right[2]));
  return a === b ? 0 : NaN;
}

/** An incremental parser of event streams (WHATWG HTML 9.2.6). */
export class Parser {
  retry = null;
  #decoder = new TextDecoder();
  #line = "";
  #afterCr = false;
  #id = null;
  #data = [];
  #type = "";

  constructor(lastEventId = "") {
    this.lastEventId = lastEventId;
  }

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
    else if (name === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
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

/** RFC 9110, 10.2.3 */
const retryAfter = (value) => Math.max((/^\d+$/.test(value) ? value * 1000 : Date.parse(value) - Date.now()) || 0, 0);

class Connection {
  open = false;
  stopped = false;
  failures = 0;
  wake = () => {};

  constructor(tab) {
    this.tab = tab;
    this.lastEventId = tab.lastEventId;
    this.run();
  }

  stop() {
    this.stopped = true;
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
      this.renewed = outcome.again;
      if (this.renewed) continue;
      if (!outcome.final) {
        const { retry } = this.tab;
        const delay = Math.min(Math.max(retry, 10) * 2 ** this.failures++, Math.max(retry, MAX_DELAY));
        this.serverDelay = outcome.retryAfter ?? 0;
        outcome.delay = Math.max(delay, this.serverDelay) * (1 + Math.random() / 2);
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
    const { access, options } = this.tab;
    const { method, headers: given, body, credentials, reconnect, heartbeat } = options;
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
      await null; // close() in headers() ends this connection
      const headers = new Headers(typeof given === "function" ? await given() : given);
      new Headers(access.headers).forEach((value, name) => headers.set(name, value));
      headers.set("Accept", "text/event-stream");
      const id = unescape(encodeURIComponent(this.lastEventId)); // in UTF-8, as an EventSource sends it
      if (id) headers.set("Last-Event-ID", id);
      const url = access.url ?? this.tab.url;
      const response = await fetch(url, { method, headers, body, credentials, signal, cache: "no-store" });
      clearTimeout(timer);
      outcome.status = response.status;
      if (!(await this.accepts(response, outcome))) return outcome;
      outcome.reason = "cut";
      this.open = true;
      this.tab.onOpen();
      const parser = new Parser(this.lastEventId);
      const seconds = heartbeat ?? response.headers.get("Event-Stream-Heartbeat");
      let chunks = 0;
      const watch = (wait, isLast) => {
        const before = chunks;
        // A page that did not run first reads what has arrived.
        const check = () => (chunks > before ? watch(seconds * 1_500) : isLast ? giveUp() : watch(SETTLE, true));
        timer = setTimeout(check, wait);
      };
      if (seconds > 0) watch(seconds * 1_500);
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (this.stopped) return;
        if (done) return { ...outcome, reason: "ended" };
        chunks += 1;
        this.failures = 0;
        const entries = parser.push(value);
        this.tab.retry = parser.retry ?? this.tab.retry;
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
      const { access, options, url } = this.tab;
      const renewal = !this.renewed && (await options.onUnauthorized?.({ status, url: access.url ?? url }));
      outcome.again = Boolean(renewal);
      outcome.final ||= !renewal;
      Object.assign(access, renewal);
      return false;
    }
    if (status === 200 && /^text\/event-stream *(;|$)/i.test(headers.get("Content-Type"))) return true;
    outcome.reason = status === 204 ? "finished" : "refused";
    outcome.final ||= status < 500 && ![408, 425, 429].includes(status);
    outcome.retryAfter = retryAfter(headers.get("Retry-After"));
    return false;
  }
}

/** For browsers that cannot read a response as it arrives. */
class NativeConnection {
  constructor(tab) {
    this.tab = tab;
    const url = new URL(tab.url);
    if (tab.lastEventId) url.searchParams.set("last_event_id", tab.lastEventId);
    this.source = new EventSource(url, { withCredentials: tab.options.credentials === "include" });
    this.source.onopen = () => tab.onOpen();
    this.source.onerror = () => {
      const final = this.source.readyState === CLOSED || !tab.options.reconnect;
      tab.onError({ reason: final ? "refused" : "cut", final });
    };
    tab.types.forEach((type) => this.listen(type));
  }

  onEvent = ({ type, data, lastEventId: id }) => {
    if (data !== undefined) this.tab.onEntries([{ type, data, id }]);
  };

  listen(type) {
    this.source.addEventListener(type, this.onEvent);
  }

  hurry() {}

  stop() {
    this.source.close();
  }
}

/**
 * The tab with the Web Lock leads, and sends what it receives to the others. Each of them has its own connection until
 * its position is known to be one of the leader's.
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
  asked = 0; // when a question without an answer was asked

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
    this.asked = 0;
    this.sequence = 0;
    this.tab.connect();
    this.announce();
  }

  stepDown() {
    this.leads = false;
    this.requestLock();
    this.goAlone();
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
    else this.goAlone();
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

  goAlone() {
    this.follows = false;
    this.leader = null;
    this.own = [];
    this.tab.connect();
    this.ask();
  }

  ask() {
    this.asked ||= Date.now();
    this.post({ type: "ask" });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.onTimer(), this.follows ? PING : SETTLE);
  }

  onTimer() {
    if (this.asked && Date.now() - this.asked >= PING) {
      this.asked = 0;
      this.requestLock({ steal: true }); // the leader does not run any more
    } else {
      this.ask();
      this.tryToFollow();
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
      this.tab.onState(leader.open, error);
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
      else this.goAlone();
    }
  }

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
    const { leader, buffer, own, tab } = this;
    if (!leader || this.leads || this.follows || (tab.connection?.open && !leader.open)) return;
    const position = tab.lastEventId;
    const quiet = Date.now() - this.quietSince;
    let known;
    const common = buffer.findLastIndex((entry) => (known = own.findLastIndex((each) => isSame(each, entry))) >= 0);
    if (common >= 0) this.follow(common + 1, "", own.slice(known + 1));
    else if (position && compareIds(position, leader.id) >= 0) {
      if (quiet < SETTLE) return; // an event without an ID may follow
      this.follow(buffer.findLastIndex(({ id }) => compareIds(id, position) <= 0) + 1, position);
    } else if (leader.open && tab.connection?.open && !buffer.length && !(leader.isEvent && position)) {
      // Both are idle. A late start is waited for.
      if (quiet < (own.length || !leader.total ? 4 * SETTLE : 2 * PING)) return;
      tab.lastEventId = leader.id || position;
      this.follow(0);
    }
  }

  follow(start, through = "", skipped = []) {
    const entries = this.buffer.slice(start);
    const { open } = this.leader;
    this.follows = true;
    this.through = through;
    this.skipped = skipped;
    this.tab.disconnect();
    this.ask();
    this.tab.deliver(entries);
    this.tab.onState(open);
  }
}

const isSame = (one, other) => one.id === other.id && one.type === other.type && one.data === other.data;

/** Do what a browser may forbid, such as to a sandboxed frame. */
function tryTo(callback) {
  try {
    callback();
  } catch {}
}

const canStream = () => globalThis.ReadableStream && "body" in Response.prototype;

class Tab {
  state = CONNECTING;
  running = false;
  closed = new AbortController();
  types = new Set();
  total = 0;
  retry = 1_000;
  access = {}; // what onUnauthorized returned

  constructor(target, url, options) {
    this.target = target;
    this.url = url;
    this.options = options;
    this.key = `event-stream ${JSON.stringify([url, options.identity, options.credentials])}`;
    this.lastEventId = options.lastEventId ?? "";
    this.isEvent = false; // whether the last entry was an event, and not only an ID
    if (options.resume) tryTo(() => ([this.lastEventId, this.isEvent] = JSON.parse(sessionStorage.getItem(this.key))));
  }

  start(canShare = this.options.identity != null && navigator.locks && canStream()) {
    this.stop(CONNECTING);
    if (this.state === CLOSED) return;
    this.running = true;
    if (canShare) tryTo(() => (this.sharing = new Sharing(this)));
    if (!this.sharing) this.connect();
  }

  stop(state) {
    this.running = false;
    this.sharing = this.sharing?.leave();
    this.disconnect();
    this.setState(state);
  }

  connect() {
    this.connection ??= new (canStream() ? Connection : NativeConnection)(this);
  }

  disconnect() {
    this.connection = this.connection?.stop();
  }

  onOpen() {
    this.sharing?.onOpen();
    this.onState(true);
  }

  onEntries(entries) {
    this.sharing?.beforeEntries(entries);
    this.deliver(entries);
    this.sharing?.afterEntries(entries);
  }

  onError(outcome) {
    const { reason, status, delay, final } = outcome;
    if (final) this.stop(CLOSED);
    else this.sharing?.announce({ reason, status, delay, final });
    this.onState(false, outcome);
  }

  onState(open, error) {
    this.setState(open ? OPEN : CONNECTING);
    if (error && (this.running || error.final)) this.target.dispatchEvent(Object.assign(new Event("error"), error));
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
    const stored = JSON.stringify([this.lastEventId, this.isEvent]);
    if (this.options.resume) tryTo(() => sessionStorage.setItem(this.key, stored));
  }

  setState(state) {
    if (this.state === state || this.state === CLOSED) return;
    this.state = state;
    if (state === CLOSED) this.closed.abort();
    this.target.dispatchEvent(new Event("statechange"));
    if (this.state === OPEN) this.target.dispatchEvent(new Event("open"));
  }
}

const [CONNECTING, OPEN, CLOSED] = [0, 1, 2];

export class EventStream extends EventTarget {
  #tab;

  constructor(url, options = {}) {
    super();
    const { identity } = options;
    const asked = { method: options.method, credentials: options.withCredentials ? "include" : options.credentials };
    const { url: href, method, credentials } = new Request(url, asked);
    const { reconnect = method === "GET" } = options;
    if (identity != null && (typeof identity !== "string" || method !== "GET" || !reconnect)) {
      throw new TypeError("an identity is a string, of a GET request that is repeated");
    }
    if (!canStream() && (method !== "GET" || options.headers)) {
      throw new TypeError("an EventSource sends no headers and no body");
    }
    const tab = (this.#tab = new Tab(this, href, { ...options, method, credentials, reconnect }));
    for (const type of ["open", "message", "error", "gap", "statechange"]) {
      this[`on${type}`] = null;
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    const { signal } = tab.closed;
    const listen = (types, listener) => {
      // Some events are those of the document.
      for (const type of types) globalThis.addEventListener?.(type, listener, { signal, capture: true });
    };
    if (reconnect) {
      // A page that does not run has no connection, and does not lead.
      listen(["pagehide", "freeze"], () => tab.stop(CONNECTING));
      listen(["pageshow", "resume"], () => tab.running || tab.start());
      listen(["online"], () => tab.connection?.hurry());
    }
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
    this.#tab.stop(CLOSED);
  }
}

for (const each of [EventStream, EventStream.prototype]) Object.assign(each, { CONNECTING, OPEN, CLOSED });
