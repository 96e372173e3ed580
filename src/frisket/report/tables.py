"""Tables of numbers: how a key of eval.json becomes a column, and results the rows of a sortable table.

Use     board_tables(board); overview(boards); published_table(table); all_numbers(board)
Source  our choice. Known measures are shown as people quote them (mIoU and AP in percent, edges as fractions), any
        other number under its own key, so that a new task shows without a line here. templates/parts.html draws them.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frisket.report.chart import number
from frisket.report.published import Published
from frisket.report.results import COUNTS, WORDS, Board, Entry, scalar


@dataclass(frozen=True)
class Column:
    """One number of a table. group and name: the two lines of its head; kind: percent, fraction, count or plain."""

    key: str
    group: str
    name: str
    kind: str = "plain"
    lower: bool = False

    def cell(self, value: float | None, **more: Any) -> "Cell":
        """The number as it stands in a cell."""
        if value is None:
            text = "–"
        elif self.kind == "percent":
            text = f"{100 * value:.1f}"
        elif self.kind == "fraction":
            text = f"{value:.3f}"
        else:
            text = number(value) if self.kind == "count" or abs(value) >= 1000 else f"{value:.3g}"
        return Cell(text, value, **more)


@dataclass(frozen=True)
class Cell:
    """One number as shown. small: a line under it; best: the column's best of ours; title: told on hovering."""

    text: str
    value: float | None = None
    small: str = ""
    best: bool = False
    title: str = ""


@dataclass(frozen=True)
class Row:
    """One line of a table. note: a small line under its name; pill: a mark beside it."""

    name: str
    cells: list[Cell]
    note: str = ""
    pill: str = ""
    published: bool = False


@dataclass(frozen=True)
class Table:
    """A sortable table; its first column is the rows' names, headed `first`."""

    caption: str
    columns: Sequence[Column]
    rows: list[Row]
    first: str = "Model"

    @property
    def groups(self) -> list[tuple[str, int]]:
        """(words, columns) of the head's first line; [] when no column has any."""
        runs = [(group, len(list(them))) for group, them in itertools.groupby(self.columns, lambda c: c.group)]
        return runs if any(group for group, _ in runs) else []


SIDE, WEIGHT = Column("image_size", "", "input px", "count"), Column("parameters", "", "params, M", lower=True)


def heading(task: str) -> str:
    """A task's heading."""
    return WORDS["tasks"].get(task, task.replace("_", " ").capitalize())


def column(task: str, key: str) -> Column:
    """How a key of eval.json is shown: known ones as people quote them, others under their own name."""
    what, _, measure = key.rpartition("/")
    group = WORDS["parts"].get(what, what.replace("_", " "))
    if what.startswith("click") and what[5:].isdigit():
        group = f"{what[5:]} click" + ("s" if what != "click1" else "")
    if key in COUNTS:
        return Column(key, "", key, "count")
    if measure in ("ms", "s"):
        group = f"decode {group}" if what in ("box", "point", "points64") else group
        return Column(key, group, measure, lower=True)
    for ending, unit in (("_mib", " MiB"), ("_mb", " MB"), ("_g", " GMAC")):
        if measure.endswith(ending):
            name = measure.removesuffix(ending).replace("_", " ")
            return Column(key, group, name if what else name + unit, lower=True)
    name = WORDS["measures"].get(measure, measure.replace("_", " "))
    if task == "edges" or what == "agreement":
        return Column(key, group, name, "fraction")
    if measure.split("_")[0].rstrip("0123456789") in ("miou", "ap", "ar", "iou", "biou", "recall", "precision", "box"):
        return Column(key, group, name, "percent")
    return Column(key, group, name, lower=measure.startswith("parameters"))


def columns(board: Board) -> list[Column]:
    """Columns of a board: every key that is a number for somebody, in the order met; counts last."""
    keys = dict.fromkeys(key for e in board.entries for key, value in e.numbers.items() if scalar(value) is not None)
    timed = {key.removesuffix("/ms") for key in keys if key.endswith("/ms")}
    quiet = {f"{part}/{rest}" for part in timed for rest in ("ms_p5", "ms_p95", "n")} | {*WORDS["quiet"]}
    return [column(board.task, key) for key in sorted(keys, key=_rank) if key not in quiet]


def _rank(key: str) -> int:
    """Where a key's column stands: times, then what has no place of its own, throughput, memory, MACs, counts."""
    order = {"throughput": 2, "memory": 3, "macs": 4, "agreement": 5}
    return 6 if key in COUNTS else 0 if key.endswith("/ms") else order.get(key.split("/")[0], 1)


def _best(col: Column, values: Sequence[float | None]) -> float | None:
    """The best of a column's values, where there is a choice."""
    known = {value for value in values if value is not None}
    return None if len(known) < 2 or col.kind == "count" else (min if col.lower else max)(known)


def board_tables(board: Board) -> list[Table]:
    """The board's models as rows, ours and published ones that may stand beside them; costs in two tables."""
    cols, cost = columns(board), board.task == "latency"
    caption = f"{heading(board.task)}: {board.preset or board.first.note or heading(board.task)}, {board.first.data}"
    made = [_table(board, [col for col in cols if not (cost and _rank(col.key) >= 3)], caption)]
    apart = [col for col in cols if cost and _rank(col.key) >= 3]
    return [*made, _table(board, apart, f"{caption}: memory, MACs")] if apart else made


def _table(board: Board, cols: Sequence[Column], caption: str) -> Table:
    tops = {col.key: _best(col, [scalar(entry.numbers.get(col.key)) for entry in board.entries]) for col in cols}
    several = len({entry.evaluation.path for entry in board.entries}) > 1
    rows = []
    for entry in board.entries:
        size, report = entry.evaluation.parameters(entry.label), entry.evaluation.report
        side = None if size is None and "parameters" in report else scalar(report.get("image_size"))
        cells = [_measured(entry, col, tops[col.key]) for col in cols]
        cells += [WEIGHT.cell(size and size / 1e6), SIDE.cell(side)]
        wrong = "masks differ from fp32: no times" if entry.numbers.get("agreement/ok") == 0 else ""
        rows.append(Row(entry.label, cells, f"run {entry.evaluation.name}" if several else "", wrong))
    for table in board.published:
        for name, values in table.rows.items():
            cells = [*(col.cell(values.get(col.key)) for col in cols), Cell("–"), Cell("–")]
            rows.append(Row(name, cells, table.source, "published", published=True))
    return Table(caption, [*cols, WEIGHT, SIDE], rows)


def _measured(entry: Entry, col: Column, top: float | None) -> Cell:
    """A number with what stands under it, the spread of a time or the batch of a throughput, or why there is none."""
    what, held = col.key.rpartition("/")[0], entry.numbers
    value, low, high, count, batch = (
        scalar(held.get(key))
        for key in (col.key, f"{col.key}_p5", f"{col.key}_p95", f"{what}/n", "throughput/best_batch")
    )
    small = f"batch {batch:.0f}" if batch and col.key == "throughput/best_images_per_second" else ""
    if low is not None and high is not None:
        small = f"{low:.3g}–{high:.3g}" + (f", n {count:.0f}" if count else "")
    return col.cell(
        value, small=small, best=value is not None and value == top, title=str(held.get(f"{what}/error", ""))
    )


def overview(boards: Sequence[Board]) -> Table:
    """Models as rows, the headline of every board as columns; one column, one protocol and data set."""
    picks = [(board, column(board.task, key)) for board in boards for key in _headline(board)]
    cols = [
        Column(str(at), _short(b), f"{c.group} {c.name}".strip(), c.kind, c.lower) for at, (b, c) in enumerate(picks)
    ]
    models: dict[tuple[str, str], list[float | None]] = {}
    for at, (board, col) in enumerate(picks):
        for entry in board.entries:
            values = models.setdefault((entry.label, entry.evaluation.digest(entry.label)), [None] * (1 + len(cols)))
            values[0] = values[0] or entry.evaluation.parameters(entry.label)
            values[at + 1] = scalar(entry.numbers.get(col.key))
    tops = [_best(col, values) for col, values in zip(cols, list(zip(*models.values()))[1:])]
    labels, rows = [label for label, _ in models], []
    for (label, digest), (size, *values) in models.items():
        cells = [c.cell(v, best=v is not None and v == top) for c, v, top in zip(cols, values, tops)]
        who = f"weights {digest[:8]}" if labels.count(label) > 1 and digest else ""
        rows.append(Row(label, [*cells, WEIGHT.cell(size and size / 1e6)], who))
    return Table("Overview: models and headline numbers", [*cols, WEIGHT], rows)


def _headline(board: Board) -> list[str]:
    """The keys of a board that stand in the overview."""
    known = [col.key for col in columns(board)]
    keys = [key for key in WORDS["headlines"].get(board.task, ()) if key in known] or known
    return keys[: 2 if keys is not known and board.task != "latency" else 1]


def _short(board: Board) -> str:
    """A board's name in a column's head: protocol and data, or the hardware."""
    path = Path(board.first.data.split(", ")[0])
    where = "/".join(path.parts[-2:] if path.name in ("val", "train", "test", "images") else path.parts[-1:])
    if board.task == "latency":
        where = re.sub(r"\(.*?\)|@.*|,.*", "", board.first.note).strip()
    return " · ".join(word for word in (board.preset or board.task, where) if word)


def published_table(table: Published) -> Table:
    """A printed table as it was printed."""
    rows = [
        Row(name, [Cell(cells.get(key, "–"), table.rows[name].get(key)) for key in table.columns])
        for name, cells in table.words.items()
    ]
    caption = f"Published, {heading(table.task)}: {table.data}, {table.source}"
    return Table(caption, [column(table.task, key) for key in table.columns], rows)


def all_numbers(board: Board) -> Table:
    """Every scalar and word under its own key."""
    held = [entry.numbers for entry in board.entries]
    keys = dict.fromkeys(k for numbers in held for k, v in numbers.items() if isinstance(v, str | int | float))

    def cell(raw: Any) -> Cell:
        value = scalar(raw)
        return Cell(raw if isinstance(raw, str) else "–" if value is None else f"{value:.6g}", value)

    rows = [Row(key, [cell(numbers.get(key)) for numbers in held]) for key in keys]
    cols = [Column(entry.label, "", entry.label) for entry in board.entries]
    return Table(f"All numbers of {board.preset or board.task}", cols, rows, "Key in eval.json")
