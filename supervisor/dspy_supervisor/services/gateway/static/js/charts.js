// Charts over time, drawn by uPlot: the colours of the page, values in words below the pointer, and arrow keys for those
// who have no pointer.

import { h, say } from "./dom.js";
import { clock } from "./format.js";

const HEIGHT = 156;
const LEAST_S = 60; // an axis shows at least so long
const drawn = new Set();

/** One chart: a title, what it says now or where it is pointed at, and its lines. */
export class Chart {
  /**
   * lines: [{name, colour, area?, stepped?, dashed?}], colour being a custom property of the page's style.
   * words(values, why): the text for one moment; unit(value): how the axis writes a number.
   */
  constructor(title, lines, { unit, words, least }) {
    this.lines = lines;
    this.unit = unit;
    this.words = words;
    this.least = least; // what the axis holds at least
    this.span = 600;
    this.data = [[], ...lines.map(() => [])];
    this.why = [];
    this.readout = h("p", { class: "readout", "aria-live": "off" });
    this.place = h("div", { class: "plot" });
    const key = h("span", { class: "key", "aria-hidden": "true" });
    for (const line of lines) {
      key.append(h("i", { class: `line ${line.colour}${line.dashed ? " dashed" : ""}` }), line.name);
    }
    this.figure = h(
      "figure",
      { class: "chart", tabindex: "0", role: "group", "aria-label": `Chart: ${title}. Arrow keys read it.` },
      h("figcaption", {}, h("span", { class: "name" }, title), lines.length > 1 ? key : null),
      this.readout,
      this.place,
    );
    this.figure.addEventListener("keydown", (event) => this.walk(event));
    this.figure.addEventListener("blur", () => this.point(null));
    new ResizeObserver(() => this.resize()).observe(this.place);
    drawn.add(this);
  }

  /** Show these: data is [at, values of each line...], why the words beside each moment, span seconds up to now. */
  show(data, why, span) {
    this.data = data;
    this.why = why;
    this.span = span;
    if (!this.plot && this.place.clientWidth) this.draw();
    else this.plot?.setData(data);
    if (this.plot?.cursor.idx === null || this.plot?.cursor.idx === undefined) this.read(null);
  }

  draw() {
    this.plot?.destroy();
    this.plot = null;
    if (this.place.clientWidth) this.plot = new uPlot(this.options(), this.data, this.place);
  }

  resize() {
    const width = this.place.clientWidth;
    if (!width) return;
    if (!this.plot) this.draw();
    else if (this.plot.width !== width) this.plot.setSize({ width, height: HEIGHT });
  }

  read(place) {
    const at = place ?? this.data[0].length - 1;
    const values = this.data.slice(1).map((line) => line[at]);
    const text = at < 0 ? "nothing seen yet" : this.words(values, this.why[at] ?? "");
    say(this.readout, place === null || at < 0 ? text : `${clock(this.data[0][at])}: ${text}`);
  }

  walk(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30, Home: -1e9, End: 1e9 }[event.key];
    if (step === undefined || !this.plot || !this.data[0].length) return;
    event.preventDefault();
    this.readout.setAttribute("aria-live", "polite");
    const last = this.data[0].length - 1;
    this.point(Math.min(last, Math.max(0, (this.walked ?? last) + step)));
  }

  point(place) {
    this.walked = place;
    if (place === null) this.readout.setAttribute("aria-live", "off");
    const left = place === null ? -10 : this.plot?.valToPos(this.data[0][place], "x");
    this.plot?.setCursor({ left, top: place === null ? -10 : HEIGHT / 3 });
    this.read(place);
  }

  options() {
    const ink = colour("--ink-3"), grid = colour("--grid");
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: ink, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    return {
      width: this.place.clientWidth,
      height: HEIGHT,
      padding: [8, 30, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "moments", setSeries: false }, drag: { x: false, y: false }, y: false, points: { size: 6 } },
      hooks: { setCursor: [(plot) => this.read(plot.cursor.left >= 0 ? (plot.cursor.idx ?? null) : null)] },
      scales: {
        x: { time: true, range: () => this.moments() },
        y: { range: (_, low, high) => [0, Math.max(this.least, (high ?? 0) * 1.12)] },
      },
      axes: [
        { ...axis, size: 30, space: 72, gap: 10, grid: { show: false }, values: (_, at) => at.map((one) => this.moment(one)) },
        { ...axis, size: 52, space: 34, gap: 6, values: (_, ticks) => ticks.map((tick) => this.unit(tick)) },
      ],
      series: [{}, ...this.lines.map((line) => this.series(line))],
    };
  }

  /** Return where the axis begins and ends: now, and the span before it, or what is known of that where it is less. */
  moments() {
    const now = Date.now() / 1000;
    const known = Math.max(LEAST_S, now - (this.data[0][0] ?? now));
    return [now - Math.min(this.span, known), now];
  }

  series(line) {
    const stroke = colour(`--${line.colour}`);
    return {
      label: line.name,
      stroke,
      width: 1.75,
      dash: line.dashed ? [5, 4] : undefined,
      fill: line.area ? `${stroke}22` : undefined,
      paths: line.stepped ? uPlot.paths.stepped({ align: 1 }) : uPlot.paths.linear(),
      points: { show: false },
    };
  }

  moment(at) {
    const date = new Date(at * 1000);
    const [begin, end] = this.moments();
    const shown = end - begin;
    if (shown > 172_800) return date.toLocaleDateString("en", { day: "numeric", month: "short" });
    return date.toTimeString().slice(0, shown < 300 ? 8 : 5);
  }
}

/** Draw all charts anew: the colours changed. */
export function redraw() {
  for (const chart of drawn) chart.draw();
}

function colour(property) {
  return getComputedStyle(document.documentElement).getPropertyValue(property).trim();
}
