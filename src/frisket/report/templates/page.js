// Sorting by a column's head (a button: works from the keyboard), and frames that end at a column's edge.
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = button.closest("table"), column = Number(button.dataset.column);
    const first = button.dataset.first, other = first === "descending" ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    for (const sorted of table.querySelectorAll("th[aria-sort]")) sorted.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1, body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => {
      const text = row.cells[column].dataset.value;
      return { row, value: text === undefined ? null : column === 0 ? text : Number(text) };
    });
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return sign * (column === 0 ? a.value.localeCompare(b.value) : a.value - b.value);
    });
    body.append(...rows.map((entry) => entry.row));
  });
}
function fit(frame) {
  const table = frame.querySelector("table"), cells = Array.from(table.tHead.lastElementChild.cells);
  frame.style.maxWidth = "";
  if (!frame.clientWidth) return;
  if (table.offsetWidth > frame.clientWidth) {
    const ends = cells.map((cell) => cell.offsetLeft + cell.offsetWidth).filter((end) => end <= frame.clientWidth);
    if (ends.length > 1) frame.style.maxWidth = `${ends[ends.length - 1] + 2}px`;
  }
  more(frame);
}
function more(frame) {
  frame.classList.toggle("more", frame.scrollLeft + frame.clientWidth < frame.scrollWidth - 1);
}
const frames = Array.from(document.querySelectorAll(".scroll"));
for (const frame of frames) frame.addEventListener("scroll", () => more(frame), { passive: true });
addEventListener("resize", () => frames.forEach(fit));
document.addEventListener("toggle", (event) => event.target.querySelectorAll(".scroll").forEach(fit), true);
frames.forEach(fit);
