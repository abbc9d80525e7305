// Questions before something changes, and what came of it.

import { Problem, hasToken, useToken } from "./api.js";
import { byId, h, say } from "./dom.js";

const NOTICE_MS = 8000;
const place = byId("notice");
let leaving = null;

/**
 * Ask before something changes; returns the fields' values, or null for no.
 * question: {title, text, yes, no?, danger?, fields: [{name, label, type, value, min, max, required}]}
 */
export function confirm({ title, text, yes, no = "Leave it", danger = false, fields = [] }) {
  const dialog = byId("question");
  const form = h("form", { method: "dialog" });
  form.append(h("h2", { id: "question-title" }, title), h("p", {}, text));
  for (const { name, label, ...rest } of fields) {
    form.append(h("label", {}, label, h("input", { name, autocomplete: "off", spellcheck: "false", ...rest })));
  }
  const refuse = h("button", { type: "button", onclick: () => dialog.close() }, no);
  form.append(h("div", { class: "answers" }, refuse, h("button", { type: "submit", value: "yes", class: danger ? "danger" : "main" }, yes)));
  dialog.replaceChildren(form);
  dialog.returnValue = "";
  dialog.showModal();
  (form.querySelector("input") ?? refuse).focus();
  return new Promise((resolve) => {
    dialog.addEventListener(
      "close",
      () => {
        resolve(dialog.returnValue === "yes" ? Object.fromEntries(new FormData(form)) : null);
        dialog.replaceChildren();
      },
      { once: true },
    );
  });
}

/** Do something that may be refused, and say what came of it; returns whether it was done. */
export async function perform(what, done) {
  try {
    await what();
  } catch (error) {
    notice(words(error), "bad");
    return false;
  }
  notice(done, "good");
  return true;
}

/** Return what an error says to a person. */
export function words(error) {
  if (error instanceof Problem) return error.status === 401 ? "That needs the token of this gateway." : error.message;
  return error.name === "TimeoutError" ? "No answer within 20 s: it may have been done." : "The gateway does not answer.";
}

/** Show a line for a while. */
export function notice(text, tone) {
  const top = document.querySelector("dialog[open]") ?? document.body; // what lies below a dialog is not told
  if (place.parentNode !== top) top.append(place);
  place.dataset.tone = tone;
  say(place, text);
  clearTimeout(leaving);
  leaving = setTimeout(() => say(place, ""), NOTICE_MS);
}

/** Ask for the token; returns whether one was given or taken back. */
export async function askToken(text) {
  const given = await confirm({
    title: "Token of this gateway",
    text,
    fields: [{ name: "token", label: "Token", type: "password", value: "" }],
    yes: "Use it",
    no: hasToken() ? "Keep the one I gave" : "Go on without",
  });
  if (!given) return false;
  useToken(given.token.trim());
  return true;
}
