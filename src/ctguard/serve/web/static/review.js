// What every page has: filters that apply at once, and the keys of the lists.
"use strict";

for (const select of document.querySelectorAll("select[data-submit]")) {
  select.addEventListener("change", () => select.form.requestSubmit());
}

const writes = (target) => target instanceof Element && target.matches("input:not([type=range]), select, textarea");

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (writes(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const field = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (field) {
    field.focus();
    event.preventDefault();
    return;
  }
  const links = [...document.querySelectorAll("[data-rows] td.number a")];
  const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
  if (links.length && step) {
    const at = links.indexOf(document.activeElement);
    links[Math.min(Math.max(at + step, 0), links.length - 1)].focus();
    event.preventDefault();
  }
});
