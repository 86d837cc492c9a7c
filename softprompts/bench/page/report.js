"use strict";

// Colours: those of the system, until the switch says otherwise.
{
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => { button.textContent = dark() ? "Light colours" : "Dark colours"; };
  const remember = (theme) => { try { localStorage.setItem("softprompts-theme", theme); } catch { /* a page without storage */ } };
  try {
    const theme = localStorage.getItem("softprompts-theme");
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  } catch { /* the same */ }
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
  button.hidden = false;
}

// Tables: a click on a head sorts the rows of each group, best or first ahead; a second one turns them round, a third
// restores the order. What has no value stays at the end.
for (const table of document.querySelectorAll("table")) {
  const heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells ?? [])];
  const original = new Map([...table.tBodies].map((body) => [body, [...body.rows]]));
  const isHeading = (row) => row.cells.length === 1 && row.cells[0].colSpan > 1;
  const valueOf = (row, column) => row.cells[column]?.dataset.value ?? row.cells[column]?.textContent.trim() ?? "";
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));

  const sort = (column, direction) => {
    heads.forEach((head, index) => {
      if (index === column && direction) head.setAttribute("aria-sort", direction);
      else head.removeAttribute("aria-sort");
    });
    const sign = direction === "descending" ? -1 : 1;
    for (const [body, rows] of original) {
      const movable = rows.filter((row) => !isHeading(row));
      if (direction) {
        const keyed = movable.map((row) => [valueOf(row, column), row]);
        keyed.sort(([a], [b]) => {
          if (a === "" || b === "") return (a === "") - (b === "");
          if (isNumber(a) && isNumber(b)) return sign * (Number(a) - Number(b));
          return sign * a.localeCompare(b, "en", { numeric: true });
        });
        body.append(...rows.filter(isHeading), ...keyed.map(([, row]) => row));
      } else {
        body.append(...rows);
      }
    }
  };

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", column ? "column " + (column + 1) : "name");
    head.append(button);
    button.addEventListener("click", () => {
      const values = [...original.values()].flat().filter((row) => !isHeading(row)).map((row) => valueOf(row, column));
      const numbers = values.some(isNumber) && values.every((value) => value === "" || isNumber(value));
      const higher = numbers && head.classList.contains("number") && table.dataset.higherIsBetter !== "false";
      const order = higher ? ["descending", "ascending", null] : ["ascending", "descending", null];
      sort(column, order[(order.indexOf(head.getAttribute("aria-sort")) + 1) % 3]);
    });
  });
}
