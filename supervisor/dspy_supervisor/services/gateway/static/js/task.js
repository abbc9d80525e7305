// One task, from its put to its end: its story, what it was given, what came out, and what can be done with it.

import { Problem, get, getText, order } from "./api.js";
import { confirm, perform, words } from "./dialogs.js";
import { attribute, byId, h, say } from "./dom.js";
import { bytes, clock, epoch, span } from "./format.js";
import { NAMES } from "./tasks.js";

const AGAIN_MS = 1000;
const LONGEST = 20_000; // characters of one text that are shown
const LINES = 500; // of its output
const OUTPUT = 100_000; // characters of it
const STREAMS = ["stdout", "stderr", "job"];
const access = { writable: false };
let current = null;

/** Say whether tasks may be cancelled and retried from here. */
export function allow(writable) {
  if (access.writable !== writable) {
    access.writable = writable;
    current?.buttons();
  }
}

/** Show the task with this id; the address of the page names it. */
export function openTask(id) {
  location.hash = `task=${encodeURIComponent(id)}`;
}

/** Follow the address of the page, now and whenever it changes. */
export function watchAddress() {
  const dialog = byId("task");
  const look = () => {
    const id = decodeURIComponent(/^#task=(.+)$/.exec(location.hash)?.[1] ?? "");
    if (current?.id === id) return;
    current?.end();
    current = id ? new Sheet(id, dialog) : null;
    if (!id && dialog.open) dialog.close();
  };
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#task=")) history.pushState(null, "", location.pathname + location.search);
    look();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  window.addEventListener("hashchange", look);
  window.addEventListener("popstate", look);
  look();
}

class Sheet {
  constructor(id, dialog) {
    this.id = id;
    this.path = `tasks/${encodeURIComponent(id)}`;
    this.over = false;
    this.drawn = "";
    this.stop = new AbortController();
    this.badge = h("span", { class: "state" });
    this.facts = h("p", { class: "facts" });
    this.story = h("ol", { class: "story" });
    this.why = h("p", { class: "explain", hidden: true });
    this.parts = h("div", { class: "parts" });
    this.actions = h("div", { class: "actions" });
    this.output = new Map();
    dialog.replaceChildren(
      h("header", {}, h("h2", { id: "task-title" }, id), h("button", { type: "button", class: "quiet icon close", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
      h("div", { class: "inside", tabindex: "0", role: "region", "aria-label": "Task" }, h("div", { class: "line" }, this.badge, this.facts), this.actions, this.why, h("h3", {}, "Story"), this.story, this.parts),
    );
    if (!dialog.open) dialog.showModal();
    this.load();
  }

  end() {
    clearTimeout(this.later);
    this.stop.abort();
  }

  async load() {
    clearTimeout(this.later);
    try {
      const [task, { story }] = await Promise.all([get(this.path), get(`${this.path}/story`)]);
      if (this.stop.signal.aborted) return;
      this.over = ["done", "failed", "quarantined"].includes(task.state);
      this.show(task, story);
      if (!this.over) this.explain();
      this.read();
    } catch (error) {
      if (this.stop.signal.aborted) return;
      say(this.facts, error instanceof Problem && error.status === 404 ? "There is no such task (any more)." : words(error));
      if (error instanceof Problem && error.status === 404) return;
    }
    if (!this.over) this.later = setTimeout(() => this.load(), AGAIN_MS);
  }

  async explain() {
    try {
      const { explanation } = await get(`${this.path}/explain`);
      if (this.stop.signal.aborted) return;
      attribute(this.why, "hidden", this.over);
      say(this.why, `${explanation[0].toUpperCase()}${explanation.slice(1)}.`);
    } catch {
      attribute(this.why, "hidden", true); // it moved on, or nobody answers: the story says more
    }
  }

  show(task, story) {
    this.task = task;
    say(this.badge, NAMES[task.state] ?? task.state);
    attribute(this.badge, "data-state", task.state);
    const known = (value) => typeof value === "number";
    say(this.facts, [
      task.class, task.kind, task.attempt > 0 ? `attempt ${task.attempt + 1}` : null,
      known(task.wait_ms) ? `waited ${span(task.wait_ms / 1e3)}` : null,
      known(task.duration_ms) ? `ran ${span(task.duration_ms / 1e3)}` : null,
    ].filter(Boolean).join(" · "));
    if (this.over) attribute(this.why, "hidden", true);
    const drawn = JSON.stringify([task, story]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    this.story.replaceChildren(...story.map(step));
    this.buttons();
    const record = task.record ?? {};
    this.parts.replaceChildren(
      ...part("Result", "runner_result" in record ? record.runner_result : undefined),
      ...part("Payload", task.payload_head ?? task.payload, task.payload_bytes),
      ...this.logs(),
      ...part("Whole record", task.record, 0, false),
    );
  }

  buttons() {
    if (!this.task) return;
    const state = this.task.state;
    const button = (text, kind, onclick) => h("button", { type: "button", class: kind, onclick }, text);
    const shown = [];
    if (access.writable && ["pending", "claimed", "delayed"].includes(state)) shown.push(button("Cancel this task", "danger", () => this.cancel()));
    if (access.writable && state === "failed") shown.push(button("Try it again", "main", () => this.retry()));
    this.actions.replaceChildren(...shown);
  }

  async cancel() {
    const runs = this.task.state === "claimed";
    const text = runs ? "It runs now: its processes are ended, and what it had done so far stays as it is." : "It does not run yet, and will not.";
    if (!(await confirm({ title: "Cancel this task?", text: `${text} It is kept in failed/ with the cause cancelled, and can be tried again.`, yes: "Cancel the task", danger: true }))) return;
    await perform(() => order("POST", `${this.path}/cancel`), `Cancelled: ${this.id}.`);
    this.load();
  }

  async retry() {
    if (!(await confirm({ title: "Try this task again?", text: "It goes back to the queue with its first attempt before it, and its record of failure is replaced when it ends.", yes: "Try it again" }))) return;
    await perform(() => order("POST", `${this.path}/retry`), `Back in the queue: ${this.id}.`);
    this.load();
  }

  /** Return the boxes for what the task wrote; they are there once it wrote something. */
  logs() {
    for (const stream of STREAMS) {
      if (this.output.has(stream)) continue;
      const text = h("pre", { tabindex: "0", role: "region", "aria-label": stream });
      this.output.set(stream, h("details", { class: "part", hidden: true }, h("summary", {}, `Output: ${stream}`), text));
    }
    return [...this.output.values()];
  }

  /** Read the last lines of it again. A connection that follows it would be one of the few that a browser has. */
  async read() {
    for (const [stream, box] of this.output) {
      try {
        const text = await getText(`${this.path}/logs`, { stream, tail: LINES });
        if (this.stop.signal.aborted || !text) continue;
        const place = box.lastChild;
        const atEnd = place.scrollTop + place.clientHeight >= place.scrollHeight - 4;
        box.hidden = false;
        say(place, text.slice(-OUTPUT));
        if (atEnd) place.scrollTop = place.scrollHeight;
      } catch {
        return; // the story says whether the task is there at all
      }
    }
  }
}

function step({ at, what, text, traceback, stacks, state }) {
  const trace = traceback ?? stacks;
  const when = epoch(at);
  return h(
    "li",
    { "data-what": what === "ended" ? `ended-${state}` : what },
    h("time", {}, when === null ? "" : clock(when, true)),
    h("p", {}, text),
    trace ? h("details", { open: what === "ended" }, h("summary", {}, traceback ? "Traceback" : "Stacks"), h("pre", { tabindex: "0", role: "region", "aria-label": "Traceback" }, trace)) : null,
  );
}

function part(name, value, size = 0, open = true) {
  if (value === undefined || value === null) return [];
  let text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  if (text.length > LONGEST) text = `${text.slice(0, LONGEST)}\n… ${bytes(text.length - LONGEST)} more`;
  const note = size ? ` (its beginning; ${bytes(size)} in all)` : "";
  return [h("details", { class: "part", open }, h("summary", {}, `${name}${note}`), h("pre", { tabindex: "0", role: "region", "aria-label": name }, text))];
}
