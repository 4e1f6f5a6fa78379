// The form of a schedule: fields that do not apply are hidden. Without this all of them show.
// Previews: the times by the clock of whoever looks, where that is another. Only the browser knows it.
// The list: it is not fetched anew under someone who is being asked whether an action is meant.
"use strict";

(() => {
  const showFields = (form) => {
    for (const element of form.querySelectorAll("[data-only-if]")) {
      const { field, values, negated } = JSON.parse(element.dataset.onlyIf);
      const holds = values.includes(form.elements[field]?.value) !== negated;
      element.closest(".schedule-field").hidden = !holds;
    }
  };

  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const own = new Intl.DateTimeFormat("en-GB", { weekday: "short", hour: "2-digit", minute: "2-digit" });

  const showOwnTimes = () => {
    for (const head of document.querySelectorAll("[data-own-zone][hidden]")) {
      if (!zone || zone === "UTC" || zone === head.dataset.ownZone) continue;
      head.hidden = false;
      head.title = zone;
      for (const cell of head.closest("table").querySelectorAll("[data-own-time]")) {
        cell.hidden = false;
        cell.textContent = own.format(new Date(cell.dataset.ownTime)).replace(",", "");
      }
    }
  };

  const start = () => {
    showOwnTimes();
    const form = document.getElementById("schedule_form");
    if (!form?.elements.kind) return;
    showFields(form);
    form.addEventListener("input", () => showFields(form));
  };

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.querySelector("details.confirm[open]")) event.preventDefault();
  });
  document.addEventListener("htmx:afterSwap", showOwnTimes);

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
