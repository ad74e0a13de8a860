// A click on a heading sorts the table by that column; empty cells are always last.
document.querySelectorAll("table.sortable").forEach(table => {
  table.querySelectorAll("thead th[data-sort] button").forEach(button => {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const column = [...head.parentNode.children].indexOf(head);
      const numeric = head.dataset.sort === "number";
      const down = head.getAttribute("aria-sort") === "ascending" || (numeric && !head.hasAttribute("aria-sort"));
      const key = row => {
        const cell = row.children[column];
        const text = cell ? cell.dataset.value ?? cell.textContent.trim() : "";
        return text === "" ? null : numeric ? Number(text) : text.toLowerCase();
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((a, b) => {
        const x = key(a), y = key(b);
        if (x === null || y === null) return (x === null) - (y === null);
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      });
      rows.forEach(row => { row.classList.remove("ruled"); body.append(row); });
      table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
});
// Open all details for printing.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(d => { d.open = true; }));
