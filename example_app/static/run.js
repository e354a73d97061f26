// A run of the server that this page reads. Its topic is in the page's address, so that a reload finds it.

import { showState } from "./show.js";

const STATES = {
  finished: "finished", cancelled: "stopped",
  shutdown: "failed: the server was stopped", lost: "failed: its server died", timeout: "failed: it took too long",
};

export class Run {
  // `kind` is "jobs" or "answers". `handlers` are functions of the events' data, by name.
  constructor(kind, stateId, client, handlers, onChange = () => {}) {
    Object.assign(this, { kind, stateId, client, handlers, onChange });
    this.source = null;
    this.setState("idle", "not started");
    // The topic, and the ID after which its events begin.
    const known = /^([a-z]+\.[0-9a-f]{32})@(.*)$/.exec(new URLSearchParams(location.search).get(kind) ?? "");
    if (!known?.[1].startsWith(`${kind}.`)) return;
    [, this.topic, this.lastEventId] = known;
    this.follow();
  }

  setState(state, text) {
    this.state = state;
    showState(this.stateId, state, text);
    this.onChange(state);
  }

  async start(query = {}) {
    this.source?.close();
    this.source = null;
    this.setState("connecting", "starting");
    let response;
    try {
      response = await fetch(`/runs/${this.kind}?${new URLSearchParams(query)}`, { method: "POST" });
    } catch {
      return this.setState("failed", "the server does not answer, try again");
    }
    if (!response.ok) return this.setState("failed", (await response.text()).trim());
    const { topic, start } = await response.json();
    Object.assign(this, { topic, lastEventId: start });
    this.remember(`${topic}@${start}`);
    this.follow();
  }

  remember(value) {
    const url = new URL(location.href);
    if (value) url.searchParams.set(this.kind, value);
    else url.searchParams.delete(this.kind);
    history.replaceState(null, "", url);
  }

  get url() {
    const query = new URLSearchParams({ client: this.client });
    // Of a job only the latest event matters, with which a stream without an ID begins.
    if (this.kind === "answers" && this.lastEventId) query.set("last_event_id", this.lastEventId);
    return `/events/${this.topic}?${query}`;
  }

  follow() {
    this.source?.close(); // of another run, if the button was pressed twice
    const source = this.source = new EventSource(this.url);
    this.setState("connecting");
    source.addEventListener("open", () => this.setState("open", "running"));
    source.addEventListener("gap", () => this.handlers.gap?.());
    for (const [name, handle] of Object.entries(this.handlers)) {
      if (name === "gap") continue;
      source.addEventListener(name, (event) => {
        this.lastEventId = event.lastEventId;
        handle(JSON.parse(event.data));
      });
    }
    source.addEventListener("end", ({ data }) => {
      source.close(); // or the browser would reconnect once more, and get a 204
      const { state, reason } = JSON.parse(data);
      this.setState(state === "failed" ? "failed" : "finished", STATES[reason] ?? STATES[state] ?? "failed");
    });
    source.addEventListener("error", () => {
      this.setState("lost", "lost, reconnecting");
      if (source.readyState === EventSource.CLOSED) this.retry(source);
    });
  }

  // The browser gives up after an error response, and does not tell which. Ask, and follow again unless there is no run.
  async retry(source) {
    const abort = new AbortController();
    let status = 0;
    try {
      ({ status } = await fetch(this.url, { signal: abort.signal }));
    } catch {
      // The server is away.
    }
    abort.abort();
    if (this.source !== source) return; // another run was started
    if (status === 404) {
      this.remember(null);
      this.setState("idle", "forgotten by the server");
    } else {
      setTimeout(() => { if (this.source === source) this.follow(); }, status === 200 ? 0 : 3000);
    }
  }

  async cancel() {
    try {
      const response = await fetch(`/runs/${this.topic}/cancel`, { method: "POST" });
      if (!response.ok) this.setState(this.state, `not stopped: ${(await response.text()).trim()}`);
    } catch {
      this.setState(this.state, "not stopped: the server does not answer");
    }
  }
}
