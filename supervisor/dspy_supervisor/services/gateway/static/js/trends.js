// The chosen class over time: what ran and what might have, what waited, how much got done and how long it took; and each
// change of its limit with the reason.

import { get } from "./api.js";
import { Chart } from "./charts.js";
import { byId, choice, h, keyed, say } from "./dom.js";
import { clock, count, many, rate, span } from "./format.js";

const RANGES = [["10 min", 600], ["1 h", 3600], ["24 h", 86_400], ["14 d", 1_209_600]];
const POINTS = 360; // of history in one chart
const HISTORY_MS = 60_000;
const CHANGES = 6;

/** The charts of one class. */
export class Trends {
  constructor(series) {
    this.series = series;
    this.span = 600;
    this.name = null;
    this.asked = 0;
    const whole = (value) => (Number.isInteger(value) ? count(value) : "");
    this.charts = {
      running: new Chart(
        "Running, and the limit",
        [{ name: "running", colour: "c-run", area: true, stepped: true }, { name: "limit", colour: "c-limit", stepped: true, dashed: true }],
        { unit: whole, least: 2, words: ([run, limit], why) => `${count(run)} of ${count(limit)}${why ? ` · ${why}` : ""}` },
      ),
      waiting: new Chart("Waiting", [{ name: "waiting", colour: "c-wait", area: true }], {
        unit: whole, least: 4, words: ([pending]) => many(pending, "task"),
      }),
      throughput: new Chart(
        "Ended",
        [{ name: "done", colour: "c-done", area: true }, { name: "failed", colour: "c-fail" }],
        { unit: rate, least: 0.05, words: ([done, failed]) => `${rate(done)} done, ${rate(failed)} failed` },
      ),
      latency: new Chart(
        "From submit to result",
        [{ name: "p50", colour: "c-run" }, { name: "p99", colour: "c-slow" }],
        { unit: span, least: 0.001, words: ([p50, p99]) => `half within ${span(p50)}, 99 % within ${span(p99)}` },
      ),
    };
    byId("charts").append(...Object.values(this.charts).map((chart) => chart.figure));
    byId("trends-choice").append(choice("Range", RANGES, this.span, (seconds) => this.range(seconds)));
  }

  /** Show this class from now on. */
  choose(name) {
    if (name === this.name) return;
    this.name = name;
    say(byId("trends-title"), `${name} over time`);
    this.draw();
  }

  range(seconds) {
    this.span = seconds;
    this.draw();
    this.recall();
  }

  /** Draw what is known now; asks for the history where it is old. */
  draw() {
    if (!this.name) return;
    const seen = this.series.since(this.name, Date.now() / 1000 - this.span * 1.02);
    const { charts, span: range } = this;
    charts.running.show([seen.at, seen.inflight, seen.limit], seen.why, range);
    charts.waiting.show([seen.at, seen.pending], seen.why, range);
    charts.throughput.show([seen.at, seen.done, seen.failed], seen.why, range);
    charts.latency.show([seen.at, seen.p50, seen.p99], seen.why, range);
    this.list(seen);
    if (Date.now() - this.asked > HISTORY_MS) this.recall();
  }

  async recall() {
    this.asked = Date.now();
    const step = Math.max(60, Math.ceil(this.span / POINTS / 60) * 60);
    try {
      const { rows } = await get("history", { since_s: this.span, step_s: step });
      this.series.remember(rows);
    } catch {
      return; // the charts show what was seen here; the connection tells the rest
    }
    this.draw();
  }

  list(seen) {
    const changes = [];
    for (let place = 1; place < seen.at.length; place++) {
      const [before, after] = [seen.limit[place - 1], seen.limit[place]];
      if (before === null || after === null || before === after) continue;
      changes.push({ at: seen.at[place], before, after, why: seen.why[place] });
    }
    const shown = changes.slice(-CHANGES).reverse();
    const box = byId("changes");
    this.heading ??= box.appendChild(h("h3"));
    this.rows ??= box.appendChild(h("ol"));
    say(this.heading, shown.length ? "Changes of the limit" : `The limit did not change in this time`);
    keyed(
      this.rows,
      shown,
      (change) => `${change.at}`,
      () => h("li", {}, h("time"), h("span", { class: "step" }), h("span", { class: "why" })),
      (row, { at, before, after, why }) => {
        say(row.children[0], clock(at));
        say(row.children[1], `${before} → ${after}`);
        row.children[1].className = after > before ? "step up" : "step down";
        say(row.children[2], why);
      },
    );
  }
}
