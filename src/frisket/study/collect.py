"""What the cells of a study say: study.json, a table with its differences, and a page of curves.

    finish(plan, cells)          # OUT/study.json, OUT/study.md, OUT/report.html; prints the table

study.json  {"arms": {arm: {measure: {"mean", "std", "values"}}},
             "pairs": {"a-b": {measure: {"difference", "low", "high"}}}}; a pair's b is the arm compared with,
             or of one arm arm/a-arm/b: another of `everything` and the first
Measures    box, click1: the student's mean IoU; neck_error; agreement_box, agreement_click1: with the teacher;
            dependence: what 1-box IoU loses with another photograph's embedding (frisket.fidelity); <name>/ar1000 and
            <name>/miou of each of the study's `everything`: items are objects, each with its photograph's value
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from frisket.errors import UserError
from frisket.files import write_json, write_text
from frisket.report.report import write as write_page
from frisket.study.plan import EVERYTHING, FIDELITY, Plan, Step
from frisket.study.statistics import difference, spread

MEASURES = {
    "box": "1-box", "click1": "1-point", "neck_error": "neck error",
    "agreement_box": "agreement, box", "agreement_click1": "agreement, point", "dependence": "dependence",
}  # fmt: skip
EVERYTHING_MEASURES = {"ar1000": "AR@1000", "miou": "everything mIoU"}
PLAIN = ("neck_error",)  # shown as it is; the others in percent


@dataclass(frozen=True)
class Judged:
    """One cell's items: {measure: (items,)} with whose photograph each item is: masks, or of neck_error photographs."""

    values: dict[str, np.ndarray]
    owners: dict[str, np.ndarray]


def finish(laid: Plan, cells: Sequence[Step]) -> dict[str, Any]:
    """Write and print what is known; arms whose cells are not all judged are left out and named."""
    judged: dict[str, list[Judged]] = {}
    for cell in cells:
        judged.setdefault(cell.name, []).append(read(cell.folder, laid.evaluations(cell)))
    wanted = {name: len(steps) for name, steps in laid.arms.items()}
    whole = {name: parts for name, parts in judged.items() if len(parts) == wanted.get(name, 1)}
    result = summary(whole, laid.against)
    first = next((parts[0] for parts in whole.values()), None)
    text = table(result, laid.against)
    if first is not None:
        text += f"\n{len(first.values['box'])} masks of {len(first.values['neck_error'])} photographs\n"
    missing = [name for name in wanted if name not in whole]
    if missing:
        text += f"\nnot finished, and left out: {', '.join(missing)}\n"
    write_json(laid.out / "study.json", result)
    write_text(laid.out / "study.md", text)
    if cells:
        write_page([cell.folder for cell in cells], laid.out / "report.html", title=laid.out.name)
    print(text)
    curves = f"   curves: {laid.out / 'report.html'}" if cells else ""
    print(f"study: {laid.out / 'study.json'}   table: {laid.out / 'study.md'}{curves}")
    return result


def read(folder: Path, told: Sequence[str] = (FIDELITY,)) -> Judged:
    """A cell's masks_<arm>.csv and per_image.csv, as the evaluation task `fidelity` writes them, and per_image.csv of
    the task `everything`. Raises UserError."""
    masks = _rows(next(iter((folder / FIDELITY).glob("masks_*.csv")), folder / FIDELITY / "masks_*.csv"))
    values = {name: _column(masks, name) for name in ("box", "click1", "agreement_box", "agreement_click1")}
    values["dependence"] = values["box"] - _column(masks, "other_box")
    owners = dict.fromkeys(values, _owners(masks))
    for part in told:
        rows = _rows(folder / part / "per_image.csv")
        times = 1 if part == FIDELITY else _column(rows, "objects").astype(int)
        for name in ("neck_error",) if part == FIDELITY else EVERYTHING_MEASURES:
            key = name if part == FIDELITY else f"{part.removeprefix(EVERYTHING)}/{name}"
            values[key] = np.repeat(_column(rows, name), times)
            owners[key] = np.repeat(_owners(rows), times)
    return Judged(values, owners)


def title(name: str) -> str:
    """A measure's, in the table."""
    part, _, measure = name.partition("/")
    return MEASURES.get(name) or f"{EVERYTHING_MEASURES[measure]}, {part}"


def summary(judged: dict[str, list[Judged]], against: str) -> dict[str, Any]:
    """study.json of {arm: its cells, a seed each}. Raises UserError when two cells were judged on other items."""
    owners: dict[str, np.ndarray] = {}
    arms: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for arm, parts in judged.items():
        arms[arm] = {}
        for name in parts[0].values:
            for part in parts:
                if not np.array_equal(part.owners[name], owners.setdefault(name, part.owners[name])):
                    raise UserError(f"arm {arm} was judged on other photographs than the first: delete its eval folder")
            means = [float(np.nanmean(part.values[name])) for part in parts if not np.isnan(part.values[name]).all()]
            if means:
                mean, std = spread(means)
                arms[arm][name] = {"mean": mean, "std": std, "values": means}
    for arm in judged:
        if arm != against and against in judged:
            pairs[f"{arm}-{against}"] = {
                name: compared(judged[arm], judged[against], name, name) for name in arms[arm] if name in arms[against]
            }
    for arm, parts in judged.items():
        ways = [name.removesuffix("/ar1000") for name in arms[arm] if name.endswith("/ar1000")]
        for way in ways[1:]:
            mine, first = (parts[0].owners[f"{name}/ar1000"] for name in (way, ways[0]))
            if np.array_equal(mine, first):  # the same photographs
                pairs[f"{arm}/{way}-{arm}/{ways[0]}"] = {
                    name: compared(parts, parts, f"{way}/{name}", f"{ways[0]}/{name}") for name in EVERYTHING_MEASURES
                }
    return {"arms": arms, "pairs": pairs}


def compared(a: list[Judged], b: list[Judged], name: str, other: str) -> dict[str, float]:
    """The paired difference of measure `name` of one arm and `other` of another, with the ends of its interval."""
    rows = [np.stack([part.values[key] for part in parts]) for parts, key in ((a, name), (b, other))]
    told = difference(rows[0], rows[1], a[0].owners[name])
    return {"difference": told.mean, "low": told.low, "high": told.high}


def table(result: dict[str, Any], against: str) -> str:
    """Markdown: mean ± standard deviation over seeds, then each arm's difference from the one compared with."""
    measured = dict.fromkeys(name for values in result["arms"].values() for name in values)
    names = [name for name in MEASURES if name in measured] + [name for name in measured if name not in MEASURES]
    head = ["arm", *map(title, names)]
    lines = [_line(head), _line(["---"] * len(head))]
    for arm, values in result["arms"].items():
        lines.append(_line([arm, *(_mean(name, values.get(name)) for name in names)]))
    arms, ways = ({k: v for k, v in result["pairs"].items() if ("/" in k) == way} for way in (False, True))
    if arms:
        lines += ["", f"Difference from `{against}`, with its 95 % interval:", "", *lines[:2]]
        for pair, values in arms.items():
            arm = pair.removesuffix(f"-{against}")
            lines.append(_line([arm, *(_told(name, values.get(name)) for name in names)]))
    if ways:
        lines += ["", "Ways to segment everything, of one model:", "", _line(["pair", *EVERYTHING_MEASURES.values()])]
        lines.append(_line(["---"] * (len(EVERYTHING_MEASURES) + 1)))
        lines += [
            _line([k.replace("-", " - "), *(_told(name, v[name]) for name in EVERYTHING_MEASURES)])
            for k, v in ways.items()
        ]
    return "\n".join(lines) + "\n"


def _mean(name: str, value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    several = len(value["values"]) > 1
    if name in PLAIN:
        return f"{value['mean']:.3f}" + (f" ± {value['std']:.3f}" if several else "")
    return f"{100 * value['mean']:.1f}" + (f" ± {100 * value['std']:.1f}" if several else "")


def _told(name: str, value: dict[str, float] | None) -> str:
    if value is None:
        return "–"
    if value["low"] <= 0 <= value["high"]:
        return "no difference"
    scale, places = (1, 3) if name in PLAIN else (100, 1)
    low, middle, high = (f"{scale * value[key]:+.{places}f}" for key in ("low", "difference", "high"))
    return f"{middle} ({low} … {high})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): delete its folder and run the study again"
        ) from error


def _column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    return np.array([float(row.get(name) or "nan") for row in rows])


def _owners(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([row["key"] for row in rows])
