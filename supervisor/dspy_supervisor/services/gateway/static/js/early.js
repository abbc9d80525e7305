// Before the first paint: the colours that were chosen here. A classic script, since modules wait for the page.
"use strict";
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("dspy-colours");
  } catch {
    // A browser that keeps nothing: the system's colours, then.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.colours = chosen;
})();
