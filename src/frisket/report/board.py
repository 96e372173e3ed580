"""One board of the leaderboard: a table of models under one protocol and data set, its curves, all its numbers.

Use     board_section(board); published_tables(tables); heading("miou")          # parts of frisket.report.report's page
Source  our choice. Published rows stand in a board's table only where frisket.report.results says they may.
"""

from collections.abc import Sequence

from frisket.report.markup import Html, Line, chart, join, tag
from frisket.report.published import Table
from frisket.report.results import TASKS, Board, curve, scalar
from frisket.report.tables import MEASURES, Column, below, best_of, cell, column, columns, rank, row_name, table


def heading(task: str) -> str:
    """A task's heading."""
    return TASKS.get(task, task.replace("_", " ").capitalize())


def board_section(board: Board) -> Html:
    """One board: its protocol, table, curves and all its numbers."""
    title = board.note if board.task == "latency" else board.preset or heading(board.task)
    where = tag("span", " on ", tag("code", board.data)) if board.data else None
    facts = f" ({board.note})" if board.note and board.task != "latency" else ""
    cols = columns(board.task, [entry.numbers for entry in board.entries])
    apart = [col for col in cols if board.task == "latency" and rank(col.key) >= 3]
    shown = [table_of(board, [col for col in cols if col not in apart], title)]
    shown += [table_of(board, apart, f"{title}: memory, MACs")] if apart else []
    return join(
        tag("h3", title, where, facts),
        tag("p", "Protocol. ", board.protocol, class_="protocol"),
        shown,
        charts(board),
        everything(board),
    )


def table_of(board: Board, cols: Sequence[Column], title: str) -> Html:
    """The board's models as rows, ours and, where they may stand beside them, published ones."""
    several = len(board.evaluations) > 1
    weight = Column("parameters", "", "params, M", "plain", lower=True)
    side = Column("image_size", "", "input px", "count")
    rows = []
    tops = {col.key: best_of(col, board.entries) for col in cols}
    for entry in board.entries:
        size = entry.evaluation.parameters(entry.label)
        modelless = size is None and "parameters" in entry.evaluation.report
        cells = [
            cell(side, None if modelless else scalar(entry.evaluation.report.get("image_size"))),
            cell(weight, None if size is None else size / 1e6),
        ]
        for col in cols:
            value = scalar(entry.numbers.get(col.key))
            error = str(entry.numbers.get(col.key.rpartition("/")[0] + "/error", ""))
            best = value is not None and value == tops[col.key]
            cells.append(cell(col, value, small=below(entry.numbers, col.key), best=best, title=error))
        wrong = entry.numbers.get("agreement/ok") == 0
        marks = [
            tag("span", "masks differ from fp32: no times", class_="pill bad") if wrong else None,
            tag("small", f"run {entry.evaluation.name}") if several else None,
        ]
        rows.append(tag("tr", row_name(entry.label, marks), *cells))
    for printed in board.published:
        for name, values in printed.rows.items():
            cells = [cell(side, None), cell(weight, None), *(cell(col, values.get(col.key)) for col in cols)]
            pill = tag("span", "published", class_="pill")
            who = row_name(name, pill, tag("small", printed.source))
            rows.append(tag("tr", who, *cells, class_="published"))
    return table(f"{heading(board.task)}: {title}, {board.data}", [side, weight, *cols], rows)


def charts(board: Board) -> Html | None:
    """Every list of numbers as a curve: precision over recall, mIoU over clicks, images/s over batch, else by place."""
    names = list(dict.fromkeys(k for e in board.entries for k, v in e.numbers.items() if curve(v)))
    names = [name for name in names if not name.startswith("samples/")]
    made: list[Html] = []
    sizes: list[Html] = []

    def draw(y: str, x: str | None, title: str, x_label: str, y_label: str, unit: bool = False) -> None:
        lines = []
        scale = 100 if column(board.task, y).kind == "percent" and not unit else 1
        for entry in board.entries:
            ys = curve(entry.numbers.get(y))
            xs = curve(entry.numbers.get(x)) if x else None
            if ys:
                spots = xs or [float(place) for place in range(1, len(ys) + 1)]
                lines.append(Line(entry.label, spots, [scale * value for value in ys]))
        y_label += ", %" if scale == 100 else ""
        (sizes if y.endswith(("_s", "_m", "_l")) else made).append(
            chart(lines, x=x_label, y=y_label, title=title, unit=unit)
        )

    for name in names:
        where, _, measure = name.rpartition("/")
        beside = {
            other: f"{where}/{other}" for other in ("recall", "threshold", "batch") if f"{where}/{other}" in names
        }
        if measure in beside and len(beside) and measure != "recall":
            continue  # an axis of its neighbours
        if measure == "precision" and "recall" in beside:
            draw(name, beside["recall"], "Precision over recall", "recall", "precision", unit=True)
        elif measure == "recall" and f"{where}/precision" in names:
            continue
        elif "threshold" in beside:
            draw(
                name,
                beside["threshold"],
                f"{MEASURES.get(measure, measure.upper())} over threshold",
                "threshold",
                measure,
            )
        elif "batch" in beside:
            draw(name, beside["batch"], "Throughput of the encoder", "batch", MEASURES.get(measure, measure))
        elif measure.startswith("miou"):
            size = {"miou": "", "miou_s": ", small", "miou_m": ", medium", "miou_l": ", large"}.get(measure, measure)
            draw(name, None, f"mIoU over clicks{size}", "clicks", "mIoU")
        else:
            draw(name, None, name, "number", measure.replace("_", " "))
    shown = tag("div", *made, class_="charts") if any(made) else None
    if not any(sizes):
        return shown
    return join(shown, tag("details", tag("summary", "Curves by size"), tag("div", *sizes, class_="charts")))


def everything(board: Board) -> Html:
    """Every scalar and word under its own key, folded away."""
    keys = list(
        dict.fromkeys(k for e in board.entries for k, v in e.numbers.items() if isinstance(v, str | int | float))
    )
    cols = [Column(entry.label, "", entry.label, "plain") for entry in board.entries]
    rows = []
    for key in keys:
        cells = []
        for entry in board.entries:
            raw = entry.numbers.get(key)
            value = scalar(raw)
            text = raw if isinstance(raw, str) else "–" if value is None else f"{value:.6g}"
            cells.append(tag("td", text, data_value=None if value is None else repr(value)))
        rows.append(tag("tr", row_name(key, code=True), *cells))
    inner = table(f"All numbers of {board.preset or board.task}", cols, rows, first="Key in eval.json")
    return tag("details", tag("summary", "All numbers"), inner)


def published_tables(tables: Sequence[Table]) -> Html:
    """Printed tables side by side, each with its data, protocol and source; never joined."""
    shown = []
    for printed in tables:
        cols = [column(printed.task, key) for key in printed.columns]
        rows = [
            tag(
                "tr",
                row_name(name),
                *(cell(col, values.get(col.key), text=printed.words[name].get(col.key)) for col in cols),
            )
            for name, values in printed.rows.items()
        ]
        caption = f"Published, {heading(printed.task)}: {printed.data}, {printed.source}"
        first, rest = printed.data, printed.source
        if printed.task == "latency":
            first, rest = rest, first
        parts = (
            tag("h4", first, tag("span", "published", class_="pill")),
            tag("p", f"{printed.protocol}. ", tag("cite", rest), class_="protocol"),
            table(caption, cols, rows),
        )
        shown.append(tag("div", *parts, class_="card"))
    return tag("div", *shown, class_="cards")
