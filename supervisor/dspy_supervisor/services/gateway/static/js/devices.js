// GPUs and the host: what they do, and how much of them is left. What a device does not tell is not drawn.

import { attribute, byId, h, keyed, say, svg } from "./dom.js";
import { bytes, many, percent, three } from "./format.js";

/** Show the devices of a status. */
export function showDevices(status) {
  const place = byId("devices");
  place.gpus ??= place.appendChild(h("ul", { class: "gpus" }));
  place.none ??= place.appendChild(h("p", { class: "empty" }));
  place.host ??= place.appendChild(h("div", { class: "gpu host" }, h("p", { class: "name" }, "Host"), h("dl", { class: "meters" })));
  const gpus = status.gpus ?? [];
  keyed(place.gpus, gpus, (gpu) => gpu.uuid, makeGpu, updateGpu);
  attribute(place.none, "hidden", gpus.length > 0);
  say(place.none, status.services?.telemetry ? "No GPU was found. It is looked for again each minute." : "GPUs are not looked at in this mode.");
  const host = status.host;
  attribute(place.host, "hidden", !host);
  if (host) meters(place.host.children[1], hostMeters(host));
}

function makeGpu() {
  return h(
    "li",
    { class: "gpu" },
    h("p", { class: "name" }),
    h("p", { class: "badge" }),
    h("dl", { class: "meters" }),
    h("p", { class: "note" }),
  );
}

function updateGpu(node, gpu) {
  const [name, badge, list, note] = node.children;
  say(name, gpu.name || gpu.uuid);
  attribute(name, "title", gpu.uuid);
  attribute(node, "data-state", gpu.usable === false ? "failed" : "running");
  say(badge, gpu.usable === false ? gpu.status ?? "not usable" : "");
  const used = known(gpu.memory_total) && known(gpu.memory_free) ? gpu.memory_total - gpu.memory_free : null;
  meters(list, [
    { name: "Busy", share: gpu.utilization, text: percent(gpu.utilization) },
    { name: "Memory", share: used === null ? null : used / gpu.memory_total, text: used === null ? null : `${bytes(used)} of ${bytes(gpu.memory_total)}` },
    { name: "Power", share: known(gpu.power_w) && gpu.power_cap_w ? gpu.power_w / gpu.power_cap_w : null, text: known(gpu.power_w) ? `${three(gpu.power_w)}${known(gpu.power_cap_w) ? ` of ${three(gpu.power_cap_w)}` : ""} W` : null },
    { name: "Heat", share: known(gpu.temperature_c) ? gpu.temperature_c / (gpu.slowdown_c || 100) : null, text: known(gpu.temperature_c) ? `${three(gpu.temperature_c)} °C` : null },
  ]);
  const why = gpu.throttle_reasons ?? [];
  const processes = known(gpu.processes) ? many(gpu.processes, "process", "processes") : "";
  say(note, gpu.obstacle ?? [processes, why.length ? `slowed by ${why.join(", ")}` : ""].filter(Boolean).join(" · "));
}

function hostMeters(host) {
  const used = known(host.memory_limit) && known(host.memory_free) ? host.memory_limit - host.memory_free : null;
  const stalls = [["CPU", host.psi_cpu], ["memory", host.psi_memory], ["disk", host.psi_io]].filter(([, share]) => known(share) && share >= 0.005);
  return [
    { name: "CPU", share: host.cpu_busy, text: known(host.cpu_busy) ? `${percent(host.cpu_busy)}${known(host.cpus) ? ` of ${three(host.cpus)}` : ""}` : null },
    { name: "Memory", share: used === null ? null : used / host.memory_limit, text: used === null ? null : `${bytes(used)} of ${bytes(host.memory_limit)}` },
    { name: "Stalled", share: Math.max(0, ...stalls.map(([, share]) => share)), text: stalls.length ? stalls.map(([name, share]) => `${name} ${percent(share)}`).join(", ") : "nothing" },
  ];
}

function meters(list, rows) {
  keyed(
    list,
    rows.filter((row) => row.text !== null && known(row.share)),
    (row) => row.name,
    (row) => h("div", { class: "meter" }, h("dt", {}, row.name), h("dd", { class: "bar", "aria-hidden": "true" }, svg("svg", { viewBox: "0 0 100 6", preserveAspectRatio: "none" }, svg("rect", { class: "held", width: 100, height: 6 }), svg("rect", { class: "taken", height: 6 }))), h("dd", { class: "value" })),
    (node, row) => {
      const share = Math.min(1, Math.max(0, row.share));
      attribute(node, "data-full", share > 0.95);
      attribute(node.children[1].firstChild.children[1], "width", (100 * share).toFixed(1));
      say(node.children[2], row.text);
    },
  );
}

function known(value) {
  return typeof value === "number" && Number.isFinite(value);
}
