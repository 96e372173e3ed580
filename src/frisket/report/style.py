"""How the report looks and what little it does: CSS and JavaScript, put into the page, so that it opens offline.

Our choice. Light and dark follow the reader's system; tables scroll inside their own frame on a phone; sorting is a
button in a column's head, so it works from the keyboard.
"""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #1c1f24; --muted: #5f6670; --rule: #dedbd3; --soft: #f1efe9;
  --accent: #0b6b6b; --mark: #fff3cf; --bad: #b3261e;
  --c0: #0b6b8f; --c1: #c4502f; --c2: #3a7d34; --c3: #7f4ea3; --c4: #a87400; --c5: #b0376f; --c6: #4b5a6a;
  --c7: #1f8f84;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "Liberation Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --card: #1b1f25; --ink: #e7e5e0; --muted: #9aa3ad; --rule: #333a43; --soft: #22272e;
    --accent: #66c7c0; --mark: #3b3420; --bad: #ff8a80;
    --c0: #5fb7de; --c1: #ef8a66; --c2: #86c77b; --c3: #c09be0; --c4: #e0b04a; --c5: #ec86b4; --c6: #a3b3c4;
    --c7: #5ed0c3;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }
main, header.top, footer { max-width: 76rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header.top { padding-top: clamp(1.8rem, 5vw, 3.5rem); }
h1, h2, h3 { font-family: var(--serif); font-weight: 600; line-height: 1.2; text-wrap: balance; }
h1 { font-size: clamp(1.9rem, 4.5vw, 2.7rem); margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.6rem; margin: 3.2rem 0 .8rem; padding-top: .9rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1.18rem; margin: 2rem 0 .35rem; }
p { margin: .5rem 0; max-width: 72ch; }
code { font: .86em/1.4 var(--mono); overflow-wrap: anywhere; }
a { color: var(--accent); text-underline-offset: .15em; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
.muted { color: var(--muted); }
.lead { color: var(--muted); font-size: 1.03rem; }
.protocol { color: var(--muted); font-size: .92rem; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem .8rem; z-index: 9; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: 1.1rem 0 0; }
.scroll { overflow-x: auto; margin: .8rem 0 1rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; max-width: 100%; width: fit-content; }
table { border-collapse: separate; border-spacing: 0; font-size: .92rem;
  font-variant-numeric: tabular-nums lining-nums; }
th, td { padding: .42rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { font-weight: 600; color: var(--muted); font-size: .82rem; vertical-align: bottom;
  background: var(--soft); }
thead tr:not(:last-child) th { border-bottom: 0; padding-bottom: 0; }
thead th.group { text-align: center; color: var(--ink); }
thead th.group span { display: block; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
th[scope=row], thead th:first-child { text-align: left; }
th[scope=row] { position: sticky; left: 0; background: var(--card); font-weight: 500; white-space: normal;
  min-width: 8.5rem; max-width: 20rem; overflow-wrap: anywhere; z-index: 1; }
th .name { display: inline-block; width: max-content; max-width: 18rem; }
thead th:first-child { position: sticky; left: 0; z-index: 2; }
tbody tr:hover > * { background: var(--soft); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: .1rem 0; margin: 0; cursor: pointer;
  display: inline-flex; gap: .3em; align-items: baseline; }
th button::after { content: "↕"; opacity: .35; font-size: .85em; }
th[aria-sort=ascending] button::after { content: "↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: "↓"; opacity: 1; }
th button:hover { color: var(--accent); }
td small, th small { display: block; color: var(--muted); font-size: .78em; font-weight: 400; }
td.best { font-weight: 700; }
td.best span { background: var(--mark); border-radius: 3px; padding: .08em .3em; margin: 0 -.3em; }
td.words { text-align: left; white-space: normal; max-width: 26rem; }
tr.published > * { color: var(--muted); font-style: italic; }
.pill { display: inline-block; font: 600 .68rem/1.5 var(--sans); letter-spacing: .03em;
  border: 1px solid currentColor;
  border-radius: 99px; padding: 0 .5em; margin-left: .5em; color: var(--accent); vertical-align: .1em; }
.pill.bad { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1rem;
  margin: 1rem 0; }
.chart { margin: 0; padding: .9rem 1rem .7rem; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px;
  max-width: 37rem; }
.chart-title { display: flex; gap: .3rem .8rem; flex-wrap: wrap; font-size: .92rem; align-items: baseline; }
.chart svg { width: 100%; height: auto; display: block; margin-top: .3rem; }
.chart text { font: 12.5px var(--sans); fill: var(--muted); font-variant-numeric: tabular-nums; }
.chart .rule { stroke: var(--rule); stroke-width: 1; }
.curve { fill: none; stroke-width: 2.2; stroke-linejoin: round; stroke-linecap: round; }
.dot { stroke: var(--card); stroke-width: 1.2; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; list-style: none; margin: .4rem 0 0; padding: 0;
  font-size: .85rem; }
.legend li { overflow-wrap: anywhere; }
.key { display: inline-block; width: 1.1em; height: .28em; border-radius: 2px; margin-right: .45em;
  vertical-align: .25em; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 0 2.2rem; }
.card { min-width: 0; }
h4 { font: 600 1rem/1.3 var(--serif); margin: 1.4rem 0 .2rem; }
.card .protocol { margin: .2rem 0; font-size: .85rem; } .card .scroll { margin: .5rem 0 .3rem; }
cite { font-style: normal; color: var(--ink); }
.picture { margin: 1rem 0 1.4rem; }
.picture div { overflow-x: auto; border: 1px solid var(--rule); border-radius: 8px; background: var(--card);
  width: fit-content;
  max-width: 100%; }
.picture img { display: block; width: auto; height: auto; max-width: max(100%, 46rem); }
figcaption { color: var(--muted); font-size: .88rem; margin-bottom: .35rem; }
details { margin: .7rem 0; }
details > summary { cursor: pointer; color: var(--accent); font-size: .95rem; padding: .15rem 0; width: fit-content; }
details[open] > summary { margin-bottom: .3rem; }
pre { background: var(--soft); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto;
  font: .84rem/1.5 var(--mono);
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .15rem 1rem; font-size: .88rem;
  margin: .6rem 0; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 4rem; padding-bottom: 3rem; color: var(--muted); font-size: .88rem; }
@media (max-width: 34rem) {
  th, td { padding: .4rem .55rem; } th[scope=row] { min-width: 6.5rem; max-width: 11.5rem; }
  th .name { max-width: 10rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .35rem; }
}
@media print { .scroll, .chart, .picture div { border-color: #bbb; } nav, .skip { display: none; } }
""" + "".join(
    f".curve.c{i} {{ stroke: var(--c{i}); }} .dot.c{i} {{ fill: var(--c{i}); }}\n"
    f".key.c{i} {{ background: var(--c{i}); }}\n"
    for i in range(8)
)

SCRIPT = """
for (const button of document.querySelectorAll("table.sortable thead button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), table = button.closest("table"), column = Number(button.dataset.column);
    const first = button.dataset.first || "descending";
    const other = first === "descending" ? "ascending" : "descending";
    const way = head.getAttribute("aria-sort") === first ? other : first;
    for (const one of table.querySelectorAll("th[aria-sort]")) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way);
    const sign = way === "ascending" ? 1 : -1, body = table.tBodies[0];
    const rows = Array.from(body.rows, (row) => {
      const cell = row.cells[column], text = cell.dataset.value;
      return { row, value: text === undefined ? null : column === 0 ? text : Number(text) };
    });
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return sign * (column === 0 ? a.value.localeCompare(b.value) : a.value - b.value);
    });
    body.append(...rows.map((one) => one.row));
  });
}
"""
