// What failed of late, in groups of the same cause, each with an example and its traceback.

import { get } from "./api.js";
import { attribute, byId, choice, h, keyed, say } from "./dom.js";
import { ago, clock, count } from "./format.js";
import { openTask } from "./task.js";

const EVERY_MS = 10_000;
const RANGES = [["1 h", 3600], ["24 h", 86_400], ["All", ""]];

/** The groups of failures. */
export class Failures {
  constructor() {
    this.since = 86_400;
    this.askedAt = 0;
    this.counted = null;
    this.groups = [];
    byId("failures-choice").append(choice("Failures of the last", RANGES, this.since, (since) => { this.since = since; this.load(); }));
    this.none = byId("failures").appendChild(h("p", { class: "empty" }));
    this.list = byId("failures").appendChild(h("ul", { class: "groups" }));
  }

  /** Ask anew where something failed since, or a while has passed. */
  look(status) {
    const counted = Object.values(status.classes).reduce((total, one) => total + one.failed, 0);
    const waited = Date.now() - this.askedAt;
    if ((counted !== this.counted && waited > 1500) || waited > EVERY_MS) {
      this.counted = counted;
      this.load();
    }
  }

  async load() {
    this.askedAt = Date.now();
    try {
      const { groups } = await get("failures", { since_s: this.since });
      this.show(groups);
    } catch {
      // What was shown stays; the connection says that it is old.
    }
  }

  show(groups) {
    attribute(this.none, "hidden", groups.length > 0);
    say(this.none, this.since === "" ? "Nothing has failed." : `Nothing failed in the last ${this.since === 3600 ? "hour" : "24 hours"}.`);
    keyed(this.list, groups, (group) => [group.cause, group.class, group.type, group.example_id && group.message.replace(/\d+/g, "*")].join("|"), makeGroup, updateGroup);
  }
}

function makeGroup() {
  const node = h(
    "li",
    {},
    h(
      "details",
      { class: "group" },
      h(
        "summary",
        {},
        h("span", { class: "times" }),
        h("span", { class: "what" }, h("b"), h("span", { class: "message" })),
        h("span", { class: "when" }),
      ),
      h("div", { class: "inside" }, h("pre", { class: "trace", tabindex: "0", role: "region", "aria-label": "Traceback" }), h("p", {}, h("button", { type: "button", class: "small", onclick: () => openTask(node.example) }, "See the latest of them"), h("code"))),
    ),
  );
  return node;
}

function updateGroup(node, group) {
  node.example = group.example_id;
  const [summary, inside] = node.firstChild.children;
  const [times, what, when] = summary.children;
  say(times, `${count(group.count)}×`);
  attribute(times, "aria-label", `${group.count} times`);
  say(what.children[0], `${group.type ?? words(group.cause)} in ${group.class}`);
  say(what.children[1], group.message);
  say(when, ago(group.last_at));
  attribute(when, "title", clock(group.last_at));
  const trace = inside.children[0];
  attribute(trace, "hidden", !group.traceback);
  say(trace, group.traceback ?? "");
  say(inside.children[1].children[1], group.example_id);
}

/** Return a cause of the record as words. */
export function words(cause) {
  const known = { oom: "Out of memory", timeout: "Timed out", exception: "Exception", signal: "Killed by a signal", cancelled: "Cancelled", crashed: "Worker died" };
  return known[cause] ?? (cause ? cause[0].toUpperCase() + cause.slice(1).replaceAll("_", " ") : "Unknown");
}
