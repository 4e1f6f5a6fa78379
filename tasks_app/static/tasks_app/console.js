// Live parts: what has not changed is left as it is, and what someone has opened stays open.
"use strict";

(() => {
  const shown = new WeakMap();
  let opened = [];

  document.addEventListener("htmx:beforeSwap", ({ detail: { target, xhr }, detail }) => {
    if (shown.get(target) === xhr.responseText && xhr.status !== 286) detail.shouldSwap = false;
    shown.set(target, xhr.responseText);
    opened = [...document.querySelectorAll("details[id][open]")].map(({ id }) => id);
  });

  document.addEventListener("htmx:afterSwap", () => {
    for (const id of opened) document.getElementById(id)?.setAttribute("open", "");
  });
})();
