// The load of the machine: its stream, numbers and charts.

import { Chart, clock } from "./chart.js";
import { bytes, percent, rate, show, showState } from "./show.js";

const WINDOW = 60; // samples that are drawn
const STALE = 5000; // milliseconds without a sample; the server takes one per second

const mean = ({ cores }) => cores.reduce((sum, core) => sum + core, 0) / cores.length;

export class Load {
  constructor(url) {
    this.url = url;
    this.samples = []; // and {time, lost} in place of those that were lost
    this.received = Date.now();
    this.lastEventId = "";
    this.reset("");
    setInterval(() => this.checkAge(), 500);
  }

  follow() {
    const source = new EventSource(`${this.url}&${new URLSearchParams({ last_event_id: this.lastEventId })}`);
    this.setState("connecting");
    source.addEventListener("open", () => this.setState("open"));
    source.addEventListener("load", (event) => this.onSample(event));
    source.addEventListener("error", () => {
      this.setState("lost", "lost, reconnecting");
      // A browser reconnects after a lost connection, but not after an error response such as a proxy's 502. A new
      // EventSource gets the ID in its URL.
      if (source.readyState === EventSource.CLOSED) setTimeout(() => this.follow(), 3000);
    });
  }

  setState(state, text) {
    this.state = state;
    showState("load-state", state, text);
    this.checkAge();
  }

  // Dim the numbers that are no longer true. A server that is frozen leaves the connection open.
  checkAge() {
    const age = Date.now() - this.received;
    const stale = this.last !== null && (this.state === "lost" || age > STALE);
    document.body.classList.toggle("stale-numbers", stale);
    show("load-stale", stale ? `The numbers are from ${clock(this.samples.at(-1).time)}.` : "");
  }

  // Mark what is missing between the previous sample and this one. The text stays when the mark has left the charts.
  markLost(sample, reason) {
    const before = this.samples.at(-1);
    this.samples.push({ time: (before.time + sample.time) / 2, lost: { from: before.time, to: sample.time } });
    show("load-lost", `${reason}: nothing is known from ${clock(before.time)} to ${clock(sample.time)}.`);
  }

  reset(runId) {
    this.runId = runId;
    this.count = this.missing = this.repeated = 0;
    this.last = null;
  }

  onSample(event) {
    const sample = JSON.parse(event.data);
    this.lastEventId = event.lastEventId;
    const [runId] = event.lastEventId.split("-");
    if (runId !== this.runId) { // a server that was restarted, or another one; each counts from 1
      // Its history may overlap with the samples of this page.
      this.samples = this.samples.filter(({ time }) => time < sample.time);
      if (this.samples.at(-1)?.lost) this.samples.pop();
      const steps = this.samples.slice(1).map(({ time }, index) => time - this.samples[index].time);
      if (sample.time - this.samples.at(-1)?.time > 2 * Math.min(...steps)) {
        this.markLost(sample, "The server was restarted or replaced, and its history is lost");
      }
      this.reset(runId);
    }
    if (this.last !== null && sample.number <= this.last) {
      this.repeated++;
      return;
    }
    const missing = this.last === null ? 0 : sample.number - this.last - 1;
    if (missing > 0) this.markLost(sample, `The page was away for too long and lost ${missing} samples`);
    this.missing += missing;
    this.received = Date.now();
    this.last = sample.number;
    this.count++;
    this.samples = [...this.samples, sample].slice(-WINDOW);
    this.draw(sample);
    this.checkAge();
  }

  draw(sample) {
    const setNumber = (card, name, text) => {
      document.querySelector(`#${card} [data-value="${name}"]`).textContent = text;
    };
    setNumber("cpu", "mean", percent(mean(sample)));
    setNumber("memory", "used", bytes(sample.memory_used));
    setNumber("memory", "of", `of ${bytes(sample.memory_total)}`);
    for (const name of ["received", "sent"]) setNumber("network", name, rate(sample[name]));
    for (const name of ["read", "written"]) setNumber("disk", name, rate(sample[name]));

    this.charts ??= makeCharts(sample.cores.length);
    sample.cores.forEach((core, index) => { this.charts.cores[index].textContent = percent(core); });
    for (const chart of this.charts.all) chart.draw(this.samples);

    const format = (count) => (count === 0 ? "none" : `${count}`);
    const line = document.getElementById("load-count");
    Object.assign(line.dataset, {
      last: this.last, count: this.count, missing: this.missing, repeated: this.repeated,
    });
    show("load-count", `${this.count} samples, ${format(this.missing)} missing, ${format(this.repeated)} repeated`);
  }
}

function makeCharts(cores) {
  const hue = (index) => Math.round((index * 360) / cores + 200) % 360;
  const color = (index) => `hsl(${hue(index)} 60% var(--core-lightness))`;
  const lines = Array.from({ length: cores }, (_, index) => ({
    label: `core ${index}`, color: color(index), value: (sample) => sample.cores[index] ?? null,
  }));
  const all = { color: "var(--text)", width: 2, value: mean };
  const line = (name, index) => ({
    color: index === 0 ? "var(--first)" : "var(--second)", width: 2, dash: index === 0 ? [] : [6, 4],
    value: (sample) => sample[name],
  });
  const used = {
    color: "var(--first)", width: 2,
    value: (sample) => (100 * sample.memory_used) / sample.memory_total,
  };
  return {
    cores: lines.map(keyOf),
    all: [
      new Chart("#cpu figure", [...lines, all], percent, 100),
      new Chart("#memory figure", [used], percent, 100),
      new Chart("#network figure", ["received", "sent"].map(line), rate),
      new Chart("#disk figure", ["read", "written"].map(line), rate),
    ],
  };
}

function keyOf({ label, color }) {
  const item = document.createElement("li");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = color;
  const value = document.createElement("span");
  const name = document.createElement("span");
  name.className = "quiet";
  name.textContent = label;
  item.append(swatch, name, value);
  document.querySelector("#cpu .key").append(item);
  return value;
}
