// The stream of the supervisor's status, once a second, and how that connection is.
// It says what it knows: `late` when news stay out, `lost` when nobody answers, and since when.

import { listen, Problem } from "./api.js";

const LATE_MS = 3500; // three beats missed
const DEAD_MS = 12_000; // a stream so silent leads nowhere
const HIDDEN_MS = 20_000; // a page that nobody sees gives its connection back
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];

/** The connection; `onstatus(status)` for each news, `onstate(state)` when `state` changes, and each second it is not live. */
export class Live {
  constructor(onstatus, onstate) {
    this.onstatus = onstatus;
    this.onstate = onstate;
    this.state = "connecting"; // live, late, lost, refused, away
    this.at = null; // ms, when the last news came
    this.why = "";
    this.againAt = null; // ms, when the next try is
    this.failures = 0;
    this.stream = null;
    this.hiddenAt = null;
  }

  start() {
    setInterval(() => this.look(), 500);
    document.addEventListener("visibilitychange", () => {
      this.hiddenAt = document.hidden ? Date.now() : null;
      if (!document.hidden && this.state !== "live") this.connect();
    });
    // A browser that keeps a page to go back to keeps its connections, too, and has only six.
    window.addEventListener("pagehide", () => this.leave("the page was left"));
    window.addEventListener("pageshow", (event) => event.persisted && this.connect());
    this.connect();
  }

  /** Give the connection back. */
  leave(why) {
    const stream = this.stream;
    this.stream = null;
    stream?.abort();
    this.tell("away", why);
  }

  /** Try now. */
  connect() {
    this.stream?.abort();
    this.againAt = null;
    this.read((this.stream = new AbortController()));
  }

  async read(stream) {
    let why = "the stream ended";
    try {
      this.openedAt = Date.now();
      await listen("live", stream.signal, (name, data) => this.take(name, data));
    } catch (error) {
      if (error instanceof Problem && (error.status === 401 || error.status === 403)) {
        if (this.stream === stream) this.tell("refused", error.message);
        return;
      }
      why = error instanceof Problem ? error.message : "the gateway does not answer";
    }
    if (this.stream !== stream) return; // another one was opened
    this.againAt = Date.now() + PAUSES_MS[Math.min(this.failures, PAUSES_MS.length - 1)];
    this.failures += 1;
    this.tell("lost", why);
  }

  take(name, data) {
    if (name === "problem") this.tell("late", JSON.parse(data).detail);
    if (name !== "status") return;
    const status = JSON.parse(data);
    this.at = Date.now();
    this.failures = 0;
    this.tell("live", "");
    this.onstatus(status);
  }

  look() {
    const now = Date.now();
    if (this.hiddenAt && now - this.hiddenAt > HIDDEN_MS && this.state === "live") {
      this.leave("paused while the page was hidden");
    } else if (this.state === "lost") {
      if (this.againAt && now >= this.againAt) this.connect();
      this.onstate(this);
    } else if (["live", "late", "connecting"].includes(this.state)) {
      const silent = now - Math.max(this.at ?? 0, this.openedAt);
      if (silent > DEAD_MS) {
        this.stream?.abort();
      } else if (silent > LATE_MS && this.state !== "connecting") {
        this.tell("late", "no news");
      }
    }
  }

  tell(state, why) {
    const before = this.state;
    this.state = state;
    this.why = why;
    if (state !== before || state === "late") this.onstate(this);
  }
}
