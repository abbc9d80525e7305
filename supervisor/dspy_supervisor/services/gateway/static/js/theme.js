// Light, dark, or as the system says.

import { byId, svg } from "./dom.js";

const ORDER = ["system", "light", "dark"];
const SHAPES = {
  system: "M8 1.5a6.5 6.5 0 1 0 0 13a6.5 6.5 0 1 0 0-13ZM8 3v10a5 5 0 0 0 0-10Z",
  light: "M8 4.5a3.5 3.5 0 1 0 0 7a3.5 3.5 0 1 0 0-7ZM7.4 0h1.2v2.6H7.4ZM7.4 13.4h1.2V16H7.4ZM0 7.4h2.6v1.2H0ZM13.4 7.4H16v1.2h-2.6Z",
  dark: "M6 1.2A7 7 0 1 0 14.8 10A6 6 0 0 1 6 1.2Z",
};

/** Let the button in the head change the colours; `onchange()` when they did. */
export function startTheme(onchange) {
  const button = byId("theme");
  const shape = svg("path", { "fill-rule": "evenodd", fill: "currentColor" });
  button.append(svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, "aria-hidden": "true" }, shape));
  const show = () => {
    const chosen = document.documentElement.dataset.colours ?? "system";
    shape.setAttribute("d", SHAPES[chosen]);
    button.setAttribute("aria-label", `Colours: ${chosen === "system" ? "as the system" : chosen}`);
    button.title = button.getAttribute("aria-label");
  };
  button.addEventListener("click", () => {
    const chosen = ORDER[(ORDER.indexOf(document.documentElement.dataset.colours ?? "system") + 1) % ORDER.length];
    if (chosen === "system") delete document.documentElement.dataset.colours;
    else document.documentElement.dataset.colours = chosen;
    try {
      if (chosen === "system") localStorage.removeItem("dspy-colours");
      else localStorage.setItem("dspy-colours", chosen);
    } catch {
      // It holds until the page is left.
    }
    show();
    onchange();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", onchange);
  show();
}
