// The page of the experiments: a job, an answer, and the stream that ends.

import { client, dropOnClick } from "./drop.js";
import { Run } from "./run.js";
import { Seed } from "./seed.js";
import { percent, show } from "./show.js";

const element = (id) => document.getElementById(id);
const clientOf = (name) => `${client}-${name}`; // each stream has its own

const job = new Run("jobs", "job-state", clientOf("job"), {
  progress({ step, of }) {
    Object.assign(element("job-progress"), { max: of, value: step });
    show("job-count", percent((100 * step) / of));
  },
});
element("job-start").addEventListener("click", () => job.start());

let tokens = 0; // that the page has
let total = 0;
const text = element("answer-text");
const stop = element("answer-stop");
const count = ({ number, of }) => {
  [tokens, total] = [number, of];
  show("answer-count", `${tokens} of ${total} tokens`);
};
const answer = new Run("answers", "answer-state", clientOf("answer"), {
  begin(event) {
    text.textContent = event.text;
    count(event);
  },
  token(event) {
    text.append(event.text);
    count(event);
  },
  gap() {
    const gap = document.createElement("span");
    gap.className = "gap";
    gap.textContent = "[The server lost a part of the answer.] ";
    text.append(gap);
  },
}, (state) => {
  text.setAttribute("aria-busy", `${state === "open"}`); // a screen reader reads the text when it is whole
  const running = state === "open";
  stop.hidden = !running && !(tokens < total && ["finished", "failed"].includes(state));
  stop.textContent = running ? "Stop" : "Continue";
});
element("answer-start").addEventListener("click", () => answer.start());
stop.addEventListener("click", () => (answer.state === "open" ? answer.cancel() : answer.start({ after: tokens })));

const seed = new Seed("/events/seed", clientOf("seed"));
element("seed-start").addEventListener("click", () => seed.start());

dropOnClick(() => [job, answer, seed].filter(({ state }) => state === "open").map((stream) => stream.client));

// Not all browsers have an event for cookie changes.
const cookies = () => show("cookies", document.cookie || "none");
setInterval(cookies, 1000);
cookies();
