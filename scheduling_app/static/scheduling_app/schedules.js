// The form of a schedule: of the timing's fields, only those of the chosen kind show. Without this all of them do.
// The list: it is not fetched anew under someone who is being asked whether an action is meant.
"use strict";

(() => {
  const FIELDS = {
    cron: ["cron", "start_at", "end_at"],
    interval: ["every", "unit", "start_at", "end_at"],
    date: ["run_at"],
  };

  const show = (form, kind) => {
    for (const name of new Set(Object.values(FIELDS).flat())) {
      const field = form.querySelector(`.schedule-field.field-${name}`);
      if (field) field.hidden = !FIELDS[kind].includes(name);
    }
  };

  const start = () => {
    const form = document.getElementById("schedule_form");
    const chosen = form?.querySelector("[name=kind]:checked");
    if (!chosen) return;
    show(form, chosen.value);
    form.addEventListener("change", (event) => {
      if (event.target.name === "kind") show(form, event.target.value);
    });
  };

  document.addEventListener("htmx:beforeRequest", (event) => {
    if (event.target.querySelector("details.confirm[open]")) event.preventDefault();
  });

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
