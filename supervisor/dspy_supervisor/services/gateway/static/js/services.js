// The processes beside the workers: what each does, and whether it is well.

import { attribute, byId, h, keyed, say } from "./dom.js";
import { count, many, span } from "./format.js";

const WHAT = {
  telemetry: "asks GPUs and host how they are",
  controller: "moves the limits",
  slurm: "brings tasks to a cluster",
  gateway: "serves this page",
  tracing: "sends spans",
};

/** Show the supervisor and its services. */
export function showServices(status) {
  const supervisor = { name: "supervisor", pid: status.pid, restarts: 0, note: `up for ${span(Math.floor(status.uptime_s))}` };
  const others = Object.entries(status.services ?? {}).map(([name, one]) => {
    const trouble = one.failed || one.problem || one.trouble || (one.pid ? "" : "does not run");
    const restarts = one.restarts ? `replaced ${count(one.restarts)} ${one.restarts === 1 ? "time" : "times"}` : "";
    return { name, pid: one.pid, trouble, note: trouble || restarts || WHAT[name] || "" };
  });
  keyed(
    byId("services"),
    [supervisor, ...others],
    (one) => one.name,
    () => h("li", {}, h("span", { class: "dot", "aria-hidden": "true" }), h("b"), h("span", { class: "pid" }), h("span", { class: "note" })),
    (node, one) => {
      attribute(node, "data-state", one.trouble ? "failed" : "running");
      say(node.children[1], one.name);
      say(node.children[2], one.pid ? `pid ${one.pid}` : "no process");
      say(node.children[3], one.note);
    },
  );
  const version = status.gateway?.version ? `dspy-supervisor ${status.gateway.version}` : "dspy-supervisor";
  const quarantined = status.quarantined ? ` · ${many(status.quarantined, "file")} in quarantine/` : "";
  say(byId("foot"), `${version} · mode ${status.mode} · durability ${status.durability}${quarantined}`);
}
