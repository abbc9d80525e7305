// The gateway's /v1: questions, orders and the stream of news, with the token where there is one.
// Paths are relative, so that the page works below a prefix as well.

const KEPT_AS = "dspy-token";
const PATIENCE_MS = 20_000;
let token = kept();

/** What the gateway refused, in its own words. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Return whether there is a token. */
export function hasToken() {
  return token !== "";
}

/** Use this token from now on; it is kept until the tab is closed. Nothing forgets it. */
export function useToken(value) {
  token = value;
  try {
    if (value) sessionStorage.setItem(KEPT_AS, value);
    else sessionStorage.removeItem(KEPT_AS);
  } catch {
    // A browser that keeps nothing: it holds until the page is left.
  }
}

/** Return the answer to GET v1/PATH, parsed. Throws Problem, and TypeError where nobody answers. */
export async function get(path, query = {}) {
  return (await ask("GET", path, query)).json();
}

/** Return the answer as text. */
export async function getText(path, query = {}) {
  return (await ask("GET", path, query)).text();
}

/** Order something; returns what the gateway answered. */
export async function order(method, path, body = {}) {
  const answer = await ask(method, path, {}, body);
  return answer.status === 204 ? {} : answer.json();
}

/** Hand each event of a stream of server-sent events to `take(name, data)` until it ends or `signal` says so. */
export async function listen(path, signal, take) {
  const answer = await send("GET", path, {}, undefined, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "";;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) event(text.slice(0, end), take);
  }
}

function event(block, take) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
  }
  if (data.length) take(name, data.join("\n"));
}

function ask(method, path, query, body) {
  return send(method, path, query, body, AbortSignal.timeout(PATIENCE_MS));
}

async function send(method, path, query, body, signal) {
  const asked = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const url = `v1/${path}${asked.length ? `?${new URLSearchParams(asked)}` : ""}`;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const answer = await fetch(url, { method, headers, body: sent, signal, cache: "no-store" });
  if (!answer.ok) throw await problem(answer);
  return answer;
}

async function problem(answer) {
  const text = await answer.text();
  try {
    const told = JSON.parse(text);
    return new Problem(answer.status, told.detail ?? told.title ?? text);
  } catch {
    return new Problem(answer.status, text.trim().slice(0, 500) || `the gateway answered ${answer.status}`);
  }
}

function kept() {
  try {
    return sessionStorage.getItem(KEPT_AS) ?? "";
  } catch {
    return "";
  }
}
