// A chart of the last minute, drawn by uPlot in the colours of the page.

/* global uPlot */

const SECONDS = 60;
const dark = matchMedia("(prefers-color-scheme: dark)");

// A canvas cannot use var(--name), so the colour is read from the computed style of the figure.
function computed(figure, color) {
  figure.style.color = color;
  const result = getComputedStyle(figure).color;
  figure.style.color = "";
  return result;
}

export const clock = (second) => new Date(second * 1000).toLocaleTimeString();

export class Chart {
  // `lines` are {color, width, dash, value(sample)}. The scale ends at `top`, or follows the data if it is null.
  constructor(selector, lines, format, top = null) {
    this.figure = document.querySelector(selector);
    this.lines = lines;
    this.format = format;
    this.top = top;
    this.samples = [];
    this.make();
    new ResizeObserver(() => this.plot.setSize(this.size())).observe(this.figure);
    dark.addEventListener("change", () => { this.plot.destroy(); this.make(); });
  }

  draw(samples) {
    this.samples = samples;
    this.plot.setData(this.data());
    this.figure.dataset.samples = samples.filter(({ lost }) => !lost).length;
    this.figure.dataset.times = samples.map(({ time }) => time).join(" ");
    this.figure.dataset.lost = samples.length - this.figure.dataset.samples;
  }

  data() {
    const { samples } = this;
    return [samples.map((sample) => sample.time), ...this.lines.map((line) => samples.map(
      (sample) => (sample.lost ? null : line.value(sample)), // null interrupts the line
    ))];
  }

  // Fill the time of which nothing is known.
  drawLost({ ctx, bbox, valToPos }, color) {
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
    ctx.clip();
    ctx.fillStyle = color;
    for (const { lost } of this.samples) {
      if (!lost) continue;
      const left = valToPos(lost.from, "x", true);
      const width = Math.max(2, valToPos(lost.to, "x", true) - left);
      ctx.globalAlpha = 0.15;
      ctx.fillRect(left, bbox.top, width, bbox.height);
      ctx.globalAlpha = 1;
      ctx.font = `${12 * devicePixelRatio}px system-ui, sans-serif`;
      Object.assign(ctx, { textAlign: "left", textBaseline: "top" });
      if (width > ctx.measureText("lost").width) ctx.fillText("lost", left + 2, bbox.top + 2);
    }
    ctx.restore();
  }

  size() {
    return { width: this.figure.clientWidth, height: this.figure.clientHeight };
  }

  make() {
    const axis = {
      stroke: computed(this.figure, "var(--quiet)"),
      grid: { stroke: computed(this.figure, "var(--grid)"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const end = () => this.samples.at(-1)?.time ?? Date.now() / 1000;
    // No label at the far left, where it would overlap the scale.
    const label = (second) => (second < end() - SECONDS + 5 ? "" : clock(second));
    const wait = computed(this.figure, "var(--wait)");
    const options = {
      ...this.size(),
      legend: { show: false },
      hooks: { draw: [(plot) => this.drawLost(plot, wait)] },
      cursor: { show: false },
      padding: [8, 12, 0, 0],
      scales: {
        x: { range: () => [end() - SECONDS, end()] },
        y: { range: (_, __, max) => [0, this.top ?? Math.max(1000, max * 1.1)] },
      },
      axes: [
        { ...axis, space: 90, size: 28, values: (_, seconds) => seconds.map(label) },
        { ...axis, space: 36, size: 68, values: (_, values) => values.map(this.format) },
      ],
      series: [{}, ...this.lines.map(({ color, width = 1, dash = [] }) => ({
        width, dash, stroke: computed(this.figure, color), points: { show: false },
      }))],
    };
    this.plot = new uPlot(options, this.data(), this.figure);
    this.figure.dataset.lines = this.lines.length;
  }
}
