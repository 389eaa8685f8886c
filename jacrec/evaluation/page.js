// Tables are sorted by a click on a heading, or by Enter: numbers by their value, cells without one last, equal cells as they were.
"use strict";
const value = (cell) => {
  const text = cell.textContent.trim().replace(/−/g, "-").replace(/,(?=\d{3})/g, "");
  const number = text.match(/^[^\w.+-]*([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)/i);
  return number ? Number(number[1]) : text;
};
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  if (!body) continue;
  const sort = (head, column) => {
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const rows = [...body.rows].map((row) => [value(row.cells[column]), row]);
    const numeric = rows.some(([x]) => typeof x === "number");
    const absent = (x) => numeric && typeof x !== "number";
    rows.sort(([a], [b]) => absent(a) || absent(b) ? absent(a) - absent(b) : (falling ? -1 : 1) * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head, column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head, column); });
  });
}
