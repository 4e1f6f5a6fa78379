// The form of a schedule: fields that do not apply are hidden. Without this all of them show.
// Previews: the times by the clock of whoever looks, where that is another. Only the browser knows it.
// The list: it is not fetched anew under someone who is being asked whether an action is meant.
"use strict";

(() => {
  const APPLIES = {
    cron: (value) => value("kind") === "cron",
    every: (value) => value("kind") === "interval",
    unit: (value) => value("kind") === "interval",
    run_at: (value) => value("kind") === "date",
    start_at: (value) => value("kind") !== "date",
    end_at: (value) => value("kind") !== "date",
    max_runs: (value) => value("kind") !== "date",
    blackout_action: (value) => value("blackout") !== "",
    max_instances: (value) => value("overlap") !== "allow",
    retry_backoff: (value) => Number(value("max_retries")) > 0,
  };

  const showFields = (form) => {
    const value = (name) => form.elements[name]?.value;
    for (const [name, applies] of Object.entries(APPLIES)) {
      const field = form.querySelector(`.schedule-field.field-${name}`);
      if (field) field.hidden = !applies(value);
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
