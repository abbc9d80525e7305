// Numbers and times as people read them. What is not known is a dash.

const UNKNOWN = "–";
const JOINT = "\u00a0"; // a number and its unit stay on one line
const known = (value) => typeof value === "number" && Number.isFinite(value);
const plain = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** Return a count: 1,234 or 56.7k. */
export function count(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 100_000) return plain.format(value);
  const [divisor, unit] = value < 1e6 ? [1e3, "k"] : value < 1e9 ? [1e6, "M"] : [1e9, "G"];
  return `${three(value / divisor)}${unit}`;
}

/** Return a length of time given in seconds: 340 ms, 2.1 s, 4 min, 3 h, 2 d. */
export function span(seconds) {
  if (!known(seconds)) return UNKNOWN;
  if (seconds < 0.001) return `${plain.format(seconds * 1e6)}${JOINT}µs`;
  if (seconds < 1) return `${three(seconds * 1e3)}${JOINT}ms`;
  if (seconds < 100) return `${three(seconds)}${JOINT}s`;
  if (seconds < 5400) return `${plain.format(seconds / 60)}${JOINT}min`;
  if (seconds < 129_600) return `${three(seconds / 3600)}${JOINT}h`;
  return `${three(seconds / 86_400)}${JOINT}d`;
}

/** Return how many happen, where `perSecond` do: by the second, or by the minute where `like`, beside it, are fewer. */
export function rate(perSecond, like = perSecond) {
  if (!known(perSecond)) return UNKNOWN;
  if (like >= 10 && perSecond < 10) return `${three(perSecond)}/s`;
  return perSecond >= 10 ? `${count(perSecond)}/s` : `${three(perSecond * 60)}/min`;
}

/** Return a size given in bytes. */
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  if (value < 1024) return `${value}${JOINT}B`;
  const units = ["KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length, Math.floor(Math.log2(value) / 10));
  return `${three(value / 1024 ** power)}${JOINT}${units[power - 1]}`;
}

/** Return a share of 0 to 1. */
export function percent(share) {
  return known(share) ? `${plain.format(share * 100)}${JOINT}%` : UNKNOWN;
}

/** Return three figures of a number, without idle zeros. */
export function three(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 100) return plain.format(value);
  return String(Number(value.toPrecision(value < 1 ? 2 : 3)));
}

/** Return epoch seconds of RFC 3339, of a number of seconds, or null. */
export function epoch(value) {
  if (known(value)) return value;
  const at = typeof value === "string" ? Date.parse(value) / 1000 : NaN;
  return Number.isNaN(at) ? null : at;
}

/** Return the time of day of epoch seconds, with the day where that is not today; `precise` adds milliseconds. */
export function clock(at, precise = false) {
  if (!known(at)) return UNKNOWN;
  const date = new Date(at * 1000);
  let text = date.toTimeString().slice(0, 8);
  if (precise) text += `.${String(date.getMilliseconds()).padStart(3, "0")}`;
  if (date.toDateString() === new Date().toDateString()) return text;
  return `${date.toLocaleDateString("en", { day: "numeric", month: "short" })} ${text}`;
}

/** Return how long ago epoch seconds are: "now", "12 s ago", "4 min ago". */
export function ago(at) {
  if (!known(at)) return UNKNOWN;
  const seconds = Math.max(0, Date.now() / 1000 - at);
  return seconds < 2 ? "now" : `${span(Math.floor(seconds))} ago`;
}

/** Return a number with its noun: "1 task", "3 tasks". */
export function many(number, one, more = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : more}`;
}
