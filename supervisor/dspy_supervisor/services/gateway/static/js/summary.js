// The whole in one sentence and a few numbers.

import { attribute, byId, h, keyed, say, svg } from "./dom.js";
import { count, many, rate, span } from "./format.js";

const MANY_FAILURES = 0.2; // share of the tasks that ended of late

/** Return {tone, text} for a status: what an operator should know first; `recent` is {done, failed} per second. */
export function verdict(status, recent) {
  const classes = Object.entries(status.classes);
  const sum = (field) => classes.reduce((total, [, one]) => total + (one[field] ?? 0), 0);
  const pending = sum("pending"), inflight = sum("inflight");
  if (status.running === false) return { tone: "bad", text: "The supervisor does not run." };
  if (status.problem) return { tone: "bad", text: sentence(`Nothing runs: ${status.problem}`) };
  if (status.stopping) return { tone: "warn", text: `Stopping: ${many(inflight, "task")} still ${inflight === 1 ? "runs" : "run"}.` };
  for (const [name, one] of classes) {
    if (one.state === "failed") return { tone: "bad", text: sentence(`Class ${name} has failed: ${one.reason}`) };
  }
  const paused = classes.filter(([, one]) => one.state === "paused");
  if (paused.length) {
    const waiting = paused.reduce((total, [, one]) => total + one.pending, 0);
    const names = paused.length === classes.length ? "Everything" : paused.map(([name]) => name).join(", ");
    return { tone: "warn", text: `${names} ${paused.length > 1 && names !== "Everything" ? "are" : "is"} paused${waiting ? `, ${many(waiting, "task")} ${waiting === 1 ? "waits" : "wait"}` : ""}.` };
  }
  for (const [name, one] of classes) {
    if (one.reason && one.pending) return { tone: "warn", text: sentence(`${name}: ${one.reason}`) };
  }
  for (const [name, one] of Object.entries(status.services ?? {})) {
    if (one.failed) return { tone: "warn", text: sentence(`Process ${name} was given up: ${one.failed}`) };
  }
  const ended = recent.done + recent.failed;
  if (ended > 0 && recent.failed / ended > MANY_FAILURES) {
    return { tone: "bad", text: `${Math.round((100 * recent.failed) / ended)} % of the tasks that ended of late failed.` };
  }
  if (inflight) return { tone: "good", text: `${many(inflight, "task")} ${inflight === 1 ? "runs" : "run"}${pending ? `, ${count(pending)} ${pending === 1 ? "waits" : "wait"}` : ", nothing waits"}${left(pending, ended)}.` };
  if (pending) return { tone: "calm", text: `${many(pending, "task")} ${pending === 1 ? "waits" : "wait"} for a start.` };
  if (status.delayed) return { tone: "calm", text: `${many(status.delayed, "task")} ${status.delayed === 1 ? "waits" : "wait"} for their time.` };
  return sum("done") + sum("failed") ? { tone: "calm", text: "Nothing waits, nothing runs." } : { tone: "calm", text: "Ready for the first task." };
}

/** The headline and the tiles. */
export class Summary {
  constructor(series) {
    this.series = series;
  }

  show(status) {
    const classes = Object.keys(status.classes);
    const sum = (field) => classes.reduce((total, name) => total + (status.classes[name][field] ?? 0), 0);
    const now = (field) => classes.reduce((total, name) => total + (this.series.tail(name, field, 1)[0] ?? 0), 0);
    const recent = { done: now("done"), failed: now("failed") };
    const { tone, text } = verdict(status, recent);
    say(byId("headline"), text);
    attribute(byId("headline"), "data-tone", tone);
    const running = sum("inflight"), failed = sum("failed"), done = sum("done");
    const slowest = worst(status.latency);
    document.title = `${running || sum("pending") ? `${count(running)} of ${count(running + sum("pending"))} · ` : ""}dspy-supervisor`;
    const tiles = [
      { name: "Waiting", value: count(sum("pending")), note: status.delayed ? `and ${count(status.delayed)} for their time` : "", field: "pending", colour: "c-wait" },
      { name: "Running", value: count(running), note: `of ${many(sum("limit"), "place")}`, field: "inflight", colour: "c-run" },
      { name: "Done", value: rate(recent.done), note: `${count(done)} since the start`, field: "done", colour: "c-done" },
      { name: "Failed", value: rate(recent.failed, Math.max(recent.done, recent.failed)), note: `${count(failed)} since the start`, field: "failed", colour: "c-fail", alarm: recent.failed > 0 },
      { name: "Submit to result", value: span(slowest?.total_p50_s), note: slowest ? `99 % within ${span(slowest.total_p99_s)}` : "nothing ended yet", field: "p50", colour: "c-slow" },
    ];
    keyed(
      byId("tiles"),
      tiles,
      (tile) => tile.name,
      (tile) => h("div", { class: "tile" }, h("dt", {}, tile.name), h("dd", { class: "value" }), h("dd", { class: "note" }), sparkline(tile.colour)),
      (node, tile) => {
        say(node.children[1], tile.value);
        say(node.children[2], tile.note);
        attribute(node, "data-alarm", tile.alarm);
        sparkle(node.children[3].firstChild, this.together(classes, tile.field));
      },
    );
  }

  together(classes, field) {
    const lines = classes.map((name) => this.series.tail(name, field, 120));
    const length = Math.max(0, ...lines.map((line) => line.length));
    const join = field === "p50" ? Math.max : (a, b) => a + b;
    return Array.from({ length }, (_, place) => lines.reduce((total, line) => join(total, line[place] ?? 0), 0));
  }
}

/** Return a small line without axes, which `sparkle` draws. */
export function sparkline(colour) {
  return h("dd", { class: `spark ${colour}`, "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 120 24", preserveAspectRatio: "none" }, svg("path", { class: "under" }), svg("path", { class: "over" })));
}

/** Draw values, the last at the right edge, from 0 to the greatest. */
export function sparkle(picture, values) {
  const top = Math.max(...values, 1e-9);
  const points = values.map((value, place) => `${120 - (values.length - 1 - place)},${(23 - (21 * value) / top).toFixed(1)}`);
  const line = points.length > 1 ? `M${points.join("L")}` : "";
  attribute(picture.children[1], "d", line);
  attribute(picture.children[0], "d", line && `${line}L120,24L${120 - values.length + 1},24Z`);
}

function worst(latency) {
  const known = Object.values(latency ?? {}).filter((one) => typeof one?.total_p99_s === "number");
  return known.sort((a, b) => b.total_p99_s - a.total_p99_s)[0];
}

function left(pending, perSecond) {
  const seconds = pending / perSecond;
  return seconds > 20 && perSecond > 0 ? `: about ${span(Math.round(seconds))} of work` : "";
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
