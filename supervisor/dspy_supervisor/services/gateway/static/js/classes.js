// The classes: places and who has them, what waits, how long it takes, and the orders that a class takes.

import { order } from "./api.js";
import { confirm, perform } from "./dialogs.js";
import { attribute, byId, h, keyed, say, svg } from "./dom.js";
import { count, many, rate, span } from "./format.js";
import { sparkle, sparkline } from "./summary.js";

const MOST_SLOTS = 24; // more places than these are drawn as one bar
const BADGES = { running: "", paused: "paused", failed: "failed" };

/** The list of classes; `onchoose(name)` when one is chosen. */
export class Classes {
  constructor(series, onchoose) {
    this.series = series;
    this.onchoose = onchoose;
    this.chosen = null;
    this.status = null;
    this.pauseAll = h("button", { type: "button", class: "small", onclick: () => this.toggleAll() });
    byId("classes-actions").append(this.pauseAll);
  }

  show(status, writable) {
    this.status = status;
    this.writable = writable;
    const names = Object.keys(status.classes);
    if (!this.chosen || !names.includes(this.chosen)) this.choose(busiest(status.classes));
    keyed(
      byId("classes"),
      names,
      (name) => name,
      (name) => this.make(name),
      (row, name) => this.update(row, name, status.classes[name], status.latency?.[name] ?? {}),
    );
    attribute(this.pauseAll, "hidden", !writable);
    say(this.pauseAll, this.allPaused() ? "Resume all" : "Pause all");
  }

  choose(name) {
    this.chosen = name;
    this.onchoose(name);
    for (const [other, row] of byId("classes").keyed ?? []) mark(row, other === name);
  }

  make(name) {
    const pick = h("button", { type: "button", class: "pick", title: "Show over time", onclick: () => this.choose(name) }, name);
    const row = h(
      "li",
      { class: "class" },
      h("div", { class: "who" }, pick, h("span", { class: "badge" }), h("p", { class: "handler" })),
      h("div", { class: "places" }, svg("svg", { class: "slots", role: "img" }), h("p", { class: "why" })),
      figure("Waiting"),
      figure("Waits"),
      figure("Runs"),
      figure("Done"),
      figure("Failed"),
      h("dl", { class: "graph" }, h("dt", {}, "Ended per second"), sparkline("c-done")),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", class: "small", onclick: () => this.toggle(name) }),
        h("button", { type: "button", class: "small", "aria-label": `Limit of ${name}`, onclick: () => this.limit(name) }, "Limit"),
      ),
    );
    mark(row, name === this.chosen);
    return row;
  }

  update(row, name, one, told) {
    const [who, places, waiting, wait, run, done, failed, graph, actions] = row.children;
    const troubled = one.reason && one.state === "running";
    attribute(row, "data-state", troubled ? "troubled" : one.state);
    attribute(row, "data-idle", !one.inflight && !one.pending && !one.done && !one.failed);
    say(who.children[1], troubled ? "held up" : BADGES[one.state] ?? one.state);
    say(who.children[2], one.handler ?? "no handler");
    attribute(who.children[2], "title", one.handler);
    drawSlots(places.firstChild, one);
    say(places.children[1], one.reason ?? occupied(one));
    value(waiting, count(one.pending));
    value(wait, span(told.wait_p50_s), tail(told.wait_p99_s));
    value(run, span(told.run_p50_s), tail(told.run_p99_s));
    value(done, count(one.done), rate(this.series.tail(name, "done", 1)[0]));
    value(failed, count(one.failed), one.retried ? `${count(one.retried)} retried` : "");
    attribute(failed, "data-alarm", one.failed > 0);
    sparkle(graph.children[1].firstChild, this.series.tail(name, "done", 120));
    attribute(actions, "hidden", !this.writable);
    const paused = one.state !== "running";
    say(actions.children[0], paused ? "Resume" : "Pause");
    attribute(actions.children[0], "aria-label", `${paused ? "Resume" : "Pause"} ${name}`);
  }

  allPaused() {
    return Object.values(this.status.classes).every((one) => one.state === "paused");
  }

  async toggle(name) {
    const one = this.status.classes[name];
    if (one.state !== "running") return resume([name], `Resume ${name}?`, one);
    return pause([name], `Pause ${name}?`, one.inflight, one.pending);
  }

  async toggleAll() {
    const all = Object.values(this.status.classes);
    const sum = (field) => all.reduce((total, one) => total + one[field], 0);
    if (this.allPaused()) return resume(null, "Resume all classes?", { pending: sum("pending") });
    return pause(null, "Pause all classes?", sum("inflight"), sum("pending"));
  }

  async limit(name) {
    const one = this.status.classes[name];
    const given = await confirm({
      title: `Limit of ${name}`,
      text: `How many tasks of this class may run at once. It stays as you set it until the configuration is loaded anew; the policy no longer moves it. Now: ${one.limit}, at most ${one.limit_max}.`,
      fields: [{ name: "limit", label: "Tasks at once", type: "number", value: one.limit, min: 0, max: one.limit_max, required: true }],
      yes: "Set the limit",
    });
    if (!given) return;
    const limit = Number(given.limit);
    await perform(() => order("PUT", `classes/${name}/limit`, { limit }), `The limit of ${name} is ${limit} now.`);
  }
}

/** Return in words who has the places of a class, and what holds its limit where something does. */
function occupied(one) {
  if (!one.limit_max && !one.inflight) return "no places here";
  const why = one.limit_why && one.limit_reason !== "not_binding" ? ` · ${one.limit_why}` : "";
  return `${one.inflight} of ${many(one.limit, "place")}${why}`;
}

async function pause(names, title, running, waiting) {
  const given = await confirm({
    title,
    text: `What runs goes on to its end (${many(running, "task")}); what waits (${many(waiting, "task")}) waits until it is resumed.`,
    fields: [{ name: "reason", label: "Reason, which others are told", type: "text", value: "" }],
    yes: "Pause",
  });
  if (!given) return;
  const body = { ...(names && { classes: names }), ...(given.reason && { reason: given.reason }) };
  await perform(() => order("POST", "queue/pause", body), `Paused: ${names ?? "all classes"}.`);
}

async function resume(names, title, { pending }) {
  if (!(await confirm({ title, text: `${many(pending, "task")} that wait may start at once.`, yes: "Resume" }))) return;
  await perform(() => order("POST", "queue/resume", names ? { classes: names } : {}), `Resumed: ${names ?? "all classes"}.`);
}

function figure(name) {
  return h("dl", { class: "figure" }, h("dt", {}, name), h("dd", { class: "value" }), h("dd", { class: "note" }));
}

function value(node, text, note = "") {
  say(node.children[1], text);
  say(node.children[2], note);
}

function tail(seconds) {
  return typeof seconds === "number" ? `99 % < ${span(seconds)}` : "";
}

function mark(row, chosen) {
  attribute(row, "data-chosen", chosen);
  attribute(row.querySelector(".pick"), "aria-pressed", String(chosen));
}

function busiest(classes) {
  const weight = (one) => one.inflight * 1e6 + one.pending * 1e3 + Math.min(999, one.done + one.failed);
  return Object.keys(classes).sort((a, b) => weight(classes[b]) - weight(classes[a]))[0];
}

/** Draw the places of a class: taken, free, and those that its limit holds back. */
function drawSlots(picture, one) {
  const most = Math.max(one.limit_max ?? 0, one.limit, one.inflight);
  const drawn = `${one.inflight}/${one.limit}/${most}`;
  if (picture.dataset.drawn === drawn) return;
  picture.dataset.drawn = drawn;
  attribute(picture, "aria-label", `${one.inflight} of ${many(one.limit, "place")} taken, ${most} at most`);
  const bar = most > MOST_SLOTS;
  const width = bar ? 168 : Math.min(26, Math.max(7, Math.floor((168 - 3 * (most - 1)) / Math.max(1, most))));
  attribute(picture, "viewBox", "0 0 168 12");
  const part = (kind, x, wide) => svg("rect", { class: kind, x, y: 0.5, width: Math.max(0, wide), height: 11, rx: 2.5 });
  if (bar) {
    const scale = (number) => (168 * number) / most;
    const [taken, free] = [scale(one.inflight), scale(one.limit)]; // free places are drawn clear: nothing may lie below them
    picture.replaceChildren(part("held", free, 168 - free), part("free", 0.5, free - 1), part("taken", 0, taken));
    return;
  }
  const kind = (place) => (place < one.inflight ? "taken" : place < one.limit ? "free" : "held");
  picture.replaceChildren(...Array.from({ length: most }, (_, place) => part(kind(place), place * (width + 3) + 0.5, width - 1)));
}
