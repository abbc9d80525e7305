// The dashboard: every second a status comes, and each part shows its own of it.

import { hasToken } from "./api.js";
import { redraw } from "./charts.js";
import { Classes } from "./classes.js";
import { showDevices } from "./devices.js";
import { askToken } from "./dialogs.js";
import { attribute, byId, h, say } from "./dom.js";
import { Failures } from "./failures.js";
import { clock, span } from "./format.js";
import { Live } from "./live.js";
import { Series } from "./series.js";
import { showServices } from "./services.js";
import { Slurm } from "./slurm.js";
import { Summary } from "./summary.js";
import { allow, watchAddress } from "./task.js";
import { Tasks } from "./tasks.js";
import { startTheme } from "./theme.js";
import { Trends } from "./trends.js";

const STATES = { connecting: "Connecting", live: "Live", late: "Late", lost: "Connection lost", refused: "Token needed", away: "Paused" };

const series = new Series();
const summary = new Summary(series);
const trends = new Trends(series);
const classes = new Classes(series, (name) => trends.choose(name));
const failures = new Failures();
const slurm = new Slurm();
const tasks = new Tasks();
const live = new Live(onStatus, onConnection);
const lost = { text: h("span"), button: h("button", { type: "button", class: "small", onclick: () => live.connect() }, "Try now") };

function onStatus(status) {
  const writable = status.gateway?.writable === true;
  series.push(Date.now() / 1000, status);
  allow(writable);
  say(byId("where").firstChild, status.queue_dir);
  attribute(byId("where"), "title", `instance ${status.instance}, mode ${status.mode}`);
  attribute(byId("access"), "hidden", writable && !hasToken());
  say(byId("access"), writable ? "May change things" : "Read only");
  summary.show(status);
  classes.show(status, writable);
  trends.draw();
  failures.look(status);
  showDevices(status);
  slurm.look(status);
  tasks.look(status);
  showServices(status);
  attribute(document.body, "data-empty", series.isEmpty());
  attribute(document.body, "data-ready", true);
}

function onConnection({ state, why, at, againAt }) {
  attribute(byId("connection"), "data-state", state);
  say(byId("connection").lastChild, STATES[state]);
  attribute(document.body, "data-connection", state);
  const since = at ? ` What you see is of ${clock(at / 1000)}, ${span(Math.max(0, Math.round((Date.now() - at) / 1000)))} ago.` : "";
  const banner = byId("lost");
  attribute(banner, "hidden", !["lost", "late", "refused"].includes(state));
  if (banner.hidden) return;
  if (!banner.firstChild) banner.append(lost.text, lost.button);
  const again = againAt ? ` Trying again in ${Math.max(1, Math.ceil((againAt - Date.now()) / 1000))} s.` : state === "lost" ? " Trying again." : "";
  if (state === "late") say(lost.text, `${why === "no news" ? "No news come in" : why}.${since}`);
  else if (state === "lost") say(lost.text, `Connection lost: ${why}.${since}${again}`);
  else say(lost.text, `This gateway shows nothing without its token.`);
  say(lost.button, state === "refused" ? "Enter the token" : "Try now");
  lost.button.onclick = state === "refused" ? askAgain : () => live.connect();
}

async function askAgain() {
  const text = hasToken() ? "The token that was given does not fit, or you want another." : "It is the setting http_token of the supervisor. It is kept in this tab until you close it.";
  if (await askToken(text)) live.connect();
}

byId("access").addEventListener("click", askAgain);
startTheme(redraw);
watchAddress();
live.start();
