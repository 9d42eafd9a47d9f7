"use strict";

// -------------------------------------------------------------------------------------------------------------- sorting

/** A table whose headings are buttons: ascending, descending, and the order of the records. */
function sortable(table) {
  const body = table.tBodies[0];
  const inOrder = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];

  function key(row, column) {
    const cell = row.cells[column];
    return headings[column].classList.contains("number") ? Number(cell.dataset.key ?? NaN) : cell.textContent;
  }

  /** Cells without a number come last, whatever the direction. */
  function compare(a, b, sign) {
    if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return a === b ? 0 : sign * (a < b ? -1 : 1);
  }

  function sort(column) {
    const heading = headings[column];
    const next = { none: "ascending", ascending: "descending", descending: "none" }[heading.getAttribute("aria-sort")];
    for (const other of headings) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", next);
    const keyed = inOrder.map((row) => [key(row, column), row]);
    if (next !== "none") keyed.sort(([a], [b]) => compare(a, b, next === "ascending" ? 1 : -1));
    body.append(...keyed.map(([, row]) => row));
  }

  headings.forEach((heading, column) => {
    if (heading.classList.contains("plain")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => sort(column));
  });
}

const tables = [...document.querySelectorAll("table.data")];
tables.forEach(sortable);

// ------------------------------------------------------------------------------------------------------------ filtering

const filter = document.querySelector(".filter");
const [words, backbone, method] = ["text", "backbone", "method"].map((name) => document.getElementById(`filter-${name}`));
const rows = tables.flatMap((table) =>
  [...table.tBodies[0].rows].map((row) => ({ row, table, text: row.textContent.toLowerCase() })),
);
const points = [...document.querySelectorAll(".point")].map((point) => ({
  point,
  text: `${point.dataset.backbone} ${point.getAttribute("aria-label")}`.toLowerCase(),
}));

function applyFilter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (text, { dataset }) =>
    wanted.every((word) => text.includes(word)) &&
    (!backbone.value || dataset.backbone === backbone.value) &&
    (!method.value || dataset.method === method.value);
  const left = new Map(tables.map((table) => [table, 0]));
  for (const { row, table, text } of rows) {
    row.hidden = !fits(text, row);
    if (!row.hidden) left.set(table, left.get(table) + 1);
  }
  for (const [table, count] of left) table.closest(".scroll").nextElementSibling.hidden = count > 0;
  for (const { point, text } of points) point.classList.toggle("out", !fits(text, point));
  for (const shown of document.querySelectorAll(".plot, .figures li")) {
    shown.hidden = Boolean(backbone.value) && shown.dataset.backbone !== backbone.value;
  }
  const total = [...left.values()].reduce((sum, count) => sum + count, 0);
  filter.querySelector("output").textContent = `${total} of ${rows.length} rows`;
}

filter.hidden = false;
filter.addEventListener("input", applyFilter);
filter.addEventListener("submit", (event) => event.preventDefault());
filter.addEventListener("reset", () => setTimeout(applyFilter));
applyFilter();

/** A link to a row that the filter has put away shows all rows again. */
addEventListener("hashchange", () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.closest("[hidden]")) {
    filter.reset();
    applyFilter();
    target.scrollIntoView();
  }
});

// ---------------------------------------------------------------------------------------------------------------- plots

/** One panel is shown at a time; of its points one is reached by Tab, the others by arrow keys. */
function operate(plot) {
  const panels = [...plot.querySelectorAll(".panel")];
  const chosen = { merit: plot.querySelector(".merit"), cost: plot.querySelector(".cost") };
  const readout = plot.querySelector(".readout");

  function show() {
    for (const panel of panels) {
      panel.hidden = panel.dataset.merit !== chosen.merit.value || panel.dataset.cost !== chosen.cost.value;
    }
    readout.textContent = "";
  }

  for (const panel of panels) {
    const own = [...panel.querySelectorAll(".point")];
    const reach = (point) => own.forEach((other) => other.setAttribute("tabindex", other === point ? 0 : -1));
    reach(own[0]);
    panel.addEventListener("keydown", (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const end = { Home: 0, End: -1 }[event.key];
      const shown = own.filter((point) => !point.classList.contains("out"));
      const at = shown.indexOf(document.activeElement);
      if ((move ?? end) === undefined || !shown.length) return;
      event.preventDefault();
      shown.at(move === undefined ? end : (at + move) % shown.length).focus();
    });
    panel.addEventListener("focusin", ({ target }) => {
      const point = target.closest(".point");
      reach(point);
      readout.textContent = point.getAttribute("aria-label");
    });
    panel.addEventListener("pointerover", ({ target }) => {
      const point = target.closest(".point");
      if (point) readout.textContent = point.getAttribute("aria-label");
    });
  }
  for (const select of Object.values(chosen)) select.addEventListener("change", show);
  plot.querySelector(".choose").hidden = false;
  show();
}

document.querySelectorAll(".plot").forEach(operate);
