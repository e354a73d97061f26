// A stream of twenty events, which the server ends.

import { show, showState } from "./show.js";

const SEEDS = 20;

export class Seed {
  constructor(url, client) {
    this.client = client;
    this.url = `${url}?${new URLSearchParams({ client })}`;
    this.list = document.getElementById("seed-events");
    this.source = null;
    this.reset();
  }

  setState(state, text) {
    this.state = state;
    showState("seed-state", state, text);
  }

  reset() {
    this.source?.close();
    this.count = 0;
    show("seed-count", "0");
    this.list.replaceChildren(...Array.from({ length: SEEDS }, (_, index) => {
      const item = document.createElement("li");
      item.textContent = `${index + 1}`;
      return item;
    }));
  }

  start() {
    this.reset();
    this.setState("connecting");
    const source = this.source = new EventSource(this.url);
    source.addEventListener("open", () => this.setState("open"));
    source.addEventListener("foo", (event) => {
      this.count++;
      show("seed-count", `${this.count}`);
      const item = this.list.children[Number(event.lastEventId) - 1];
      item.textContent = `foo ${event.data}`;
      item.classList.add("received");
    });
    source.addEventListener("error", () => {
      // This page does not close the stream. The browser stops reconnecting after a 204 or an error response.
      if (source.readyState === EventSource.CONNECTING) this.setState("lost", "lost, reconnecting");
      else if (this.count >= SEEDS) this.setState("finished");
      else this.setState("lost", "refused; start it again");
    });
  }
}
