// The seed: a stream of twenty events, which the server ends.

import { show, showState } from "./show.js";

const SEEDS = 20;

export function followSeed(url) {
  const list = document.getElementById("seed-events");
  for (let number = 1; number <= SEEDS; number++) list.append(document.createElement("li"));
  [...list.children].forEach((item, index) => { item.textContent = `${index + 1}`; });
  let count = 0;

  const source = new EventSource(url);
  source.addEventListener("open", () => showState("seed-state", "open"));
  source.addEventListener("foo", (event) => {
    count++;
    show("seed-count", `${count}`);
    const item = list.children[Number(event.lastEventId) - 1];
    item.textContent = `foo ${event.data}`;
    item.classList.add("received");
  });
  source.addEventListener("error", () => {
    // This page never closes the stream. The browser stops reconnecting after a 204 or an error response.
    if (source.readyState === EventSource.CONNECTING) showState("seed-state", "lost", "lost, reconnecting");
    else if (count >= SEEDS) showState("seed-state", "finished");
    else showState("seed-state", "lost", "refused; reload the page");
  });
}
