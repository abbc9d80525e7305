// The jobs of a Slurm cluster that tasks became.

import { get } from "./api.js";
import { attribute, byId, h, keyed, say } from "./dom.js";
import { ago, clock, epoch, many } from "./format.js";
import { openTask } from "./task.js";

const EVERY_MS = 5000;
const MOST = 50;

/** The panel of jobs, which is there only where a bridge to Slurm is. */
export class Slurm {
  constructor() {
    this.askedAt = 0;
    this.none = byId("slurm").appendChild(h("p", { class: "empty" }, "No job is on the cluster."));
    const head = ["Job", "Task", "State", "Submitted", "Where"].map((name) => h("th", { scope: "col" }, name));
    this.rows = h("tbody");
    this.table = h("table", {}, h("thead", {}, h("tr", {}, ...head)), this.rows);
    byId("slurm").append(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Slurm jobs" }, this.table));
  }

  look(status) {
    const bridge = status.services?.slurm;
    attribute(byId("slurm-panel"), "hidden", !bridge);
    if (!bridge || Date.now() - this.askedAt < EVERY_MS) return;
    this.askedAt = Date.now();
    this.load(bridge);
  }

  async load(bridge) {
    let jobs;
    try {
      ({ jobs } = await get("slurm/jobs"));
    } catch {
      return; // what was shown stays
    }
    say(byId("slurm-note"), bridge.trouble || bridge.problem || many(jobs.length, "job"));
    attribute(this.none, "hidden", jobs.length > 0);
    attribute(this.table, "hidden", jobs.length === 0);
    keyed(this.rows, jobs.slice(0, MOST), (job) => `${job.id ?? ""}|${job.task_id ?? ""}`, makeJob, updateJob);
  }
}

function makeJob() {
  const row = h("tr", {}, h("td"), h("td", {}, h("button", { type: "button", class: "link", onclick: () => openTask(row.task) })), h("td"), h("td"), h("td"));
  return row;
}

function updateJob(row, job) {
  const [id, task, state, since, where] = row.children;
  const at = epoch(job.submitted_at);
  row.task = job.task_id;
  say(id, job.id ?? "not yet");
  say(task.firstChild, row.task ?? "");
  say(state, (job.state ?? "unknown").toLowerCase());
  say(since, ago(at));
  attribute(since, "title", clock(at));
  say(where, job.nodes ?? job.reason ?? "");
}
