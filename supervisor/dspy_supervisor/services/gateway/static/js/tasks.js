// The list of tasks, newest first: searched, filtered, and kept fresh while its first page is shown.

import { get } from "./api.js";
import { words } from "./dialogs.js";
import { attribute, byId, h, keyed, say } from "./dom.js";
import { ago, clock, epoch, span } from "./format.js";
import { openTask } from "./task.js";

const EVERY_MS = 3000;
const PAGE = 15;
const TYPING_MS = 300;
const STATES = ["pending", "claimed", "delayed", "done", "failed"];
/** What a state is called: to people a claimed task runs. */
export const NAMES = { pending: "waiting", claimed: "running", delayed: "delayed", done: "done", failed: "failed" };

/** The list. */
export class Tasks {
  constructor() {
    this.rows = [];
    this.next = null;
    this.pages = 1;
    this.seen = "";
    this.askedAt = 0;
    this.asked = 0;
    this.form();
    const heads = [["Task", ""], ["State", ""], ["Class", "wide"], ["Submitted", ""], ["Waited", "wide"], ["Ran", "middle"], ["What happened", "middle"]];
    this.body = h("tbody");
    this.table = h("table", {}, h("thead", {}, h("tr", {}, ...heads.map(([name, kind]) => h("th", { scope: "col", class: kind || null }, name)))), this.body);
    this.none = h("div", { class: "empty" });
    this.more = h("button", { type: "button", onclick: () => this.load(true) }, "Show more");
    byId("tasks").append(this.table, this.none, this.more);
  }

  form() {
    const select = (name, label, options) => h("label", {}, h("span", { class: "unseen" }, label), h("select", { name }, ...options.map(([value, text]) => h("option", { value }, text))));
    this.classes = select("class", "Class", [["", "All classes"]]);
    const form = byId("search");
    form.append(
      h("label", { class: "grow" }, h("span", { class: "unseen" }, "Search for an id, a kind, a cause or a message"), h("input", { type: "search", name: "q", placeholder: "Search: id, kind, cause, message", autocomplete: "off", spellcheck: "false" })),
      select("state", "State", [["", "All states"], ...STATES.map((state) => [state, NAMES[state]])]),
      this.classes,
    );
    form.addEventListener("submit", (event) => { event.preventDefault(); this.fresh(); });
    form.addEventListener("input", () => { clearTimeout(this.typing); this.typing = setTimeout(() => this.fresh(), TYPING_MS); });
  }

  /** Ask anew where the counts of a status say that something moved. */
  look(status) {
    this.status = status;
    const options = this.classes.lastChild;
    for (const name of Object.keys(status.classes)) {
      if (![...options.options].some((option) => option.value === name)) options.append(h("option", { value: name }, name));
    }
    const seen = JSON.stringify(Object.values(status.classes).map((one) => [one.pending, one.inflight, one.done, one.failed]));
    if ((seen !== this.seen || Date.now() - this.askedAt > 5 * EVERY_MS) && Date.now() - this.askedAt > EVERY_MS && this.pages === 1) {
      this.seen = seen;
      this.load(false);
    } else {
      this.draw();
    }
  }

  /** Begin at the first page. */
  fresh() {
    this.pages = 1;
    return this.load(false);
  }

  async load(more) {
    const number = ++this.asked;
    this.askedAt = Date.now();
    const wanted = Object.fromEntries(new FormData(byId("search")));
    try {
      const page = await get("tasks", { ...wanted, q: wanted.q.trim(), limit: PAGE, cursor: more ? this.next : "" });
      if (number !== this.asked) return; // another question was asked meanwhile
      if (more) this.pages += 1;
      const known = new Set(more ? this.rows.map((row) => row.id) : []);
      this.rows = [...(more ? this.rows : []), ...page.tasks.filter((row) => !known.has(row.id))];
      this.next = page.next;
      this.filtered = Object.values(wanted).some((value) => value !== "");
      this.draw();
    } catch (error) {
      if (number === this.asked && !this.rows.length) this.blank(h("p", {}, words(error)));
    }
  }

  draw() {
    keyed(this.body, this.rows, (row) => row.id, makeRow, updateRow);
    attribute(this.table, "hidden", !this.rows.length);
    attribute(this.none, "hidden", this.rows.length > 0);
    attribute(this.more, "hidden", !this.next);
    if (this.rows.length || !this.status) return;
    if (this.filtered) return this.blank(h("p", {}, "No task fits this search."));
    const command = `dspy-supervisor submit --queue-dir ${quoted(this.status.queue_dir)} '{"text": "to be or not to be"}'`;
    this.blank(h("p", {}, "No task yet. This submits one:"), h("pre", { class: "command", tabindex: "0", role: "region", "aria-label": "Command" }, command));
  }

  blank(...lines) {
    if (this.none.textContent !== lines.map((line) => line.textContent).join("")) this.none.replaceChildren(...lines);
  }
}

function makeRow({ id }) {
  return h(
    "tr",
    {},
    h("td", { class: "id" }, h("button", { type: "button", class: "link", onclick: () => openTask(id) }, id)),
    h("td", {}, h("span", { class: "state" })),
    h("td", { class: "wide" }),
    h("td", {}),
    h("td", { class: "wide number" }),
    h("td", { class: "middle number" }),
    h("td", { class: "middle message" }, h("bdi"), h("span")), // a message may turn the direction of the text
  );
}

function updateRow(node, row) {
  const [, state, task_class, submitted, waited, ran, message] = node.children;
  say(state.firstChild, NAMES[row.state] ?? row.state);
  attribute(state.firstChild, "data-state", row.state);
  say(task_class, row.class ?? "");
  const at = epoch(row.submitted_at);
  say(submitted, ago(at));
  attribute(submitted, "title", clock(at));
  say(waited, row.wait_ms === null ? "" : span(row.wait_ms / 1e3));
  const started = epoch(row.started_at);
  say(ran, row.duration_ms !== null ? span(row.duration_ms / 1e3) : row.state === "claimed" && started ? `${span(Math.max(0, Math.floor(Date.now() / 1000 - started)))} so far` : "");
  const attempts = row.attempt > 0 ? `attempt ${row.attempt + 1}` : "";
  say(message.firstChild, row.message ?? "");
  say(message.lastChild, attempts && row.message ? ` · ${attempts}` : attempts);
  attribute(message, "title", row.message);
}

function quoted(text) {
  return /^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}
