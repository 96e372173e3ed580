"""Tables of numbers: how a key of eval.json becomes a column, and columns and rows a sortable table.

Use     cols = columns("miou", [numbers, …]); table("caption", cols, [tag("tr", tag("th", "mine"), *cells)])
Source  our choice. Known measures are shown as people quote them (mIoU and AP in percent, edges as fractions), any
        other number under its own key, so that a new task shows without a line here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from frisket.report.markup import Child, Html, breakable, number, tag
from frisket.report.results import COUNTS, Entry, scalar

QUIET = (
    *(f"macs/{name}_g" for name in ("encoder_run", "point", "points64")),
    *(f"memory/{name}" for name in ("encoder_peak_mib", "box_peak_mib", "points64_peak_mib", "whole_life")),
    *(f"memory/{name}" for name in ("rss_before_mib", "rss_mib")),
    *("throughput/best_batch", "agreement/finite", "agreement/ok"),
)
"""Numbers that are told under "All numbers" and take no column."""


@dataclass(frozen=True)
class Column:
    """One number of a table. group and name: the two lines of its head; kind: percent, fraction, count or plain."""

    key: str
    group: str
    name: str
    kind: str
    lower: bool = False

    def text(self, value: float | None) -> str:
        """The number as it stands in a cell."""
        if value is None:
            return "–"
        if self.kind == "percent":
            return f"{100 * value:.1f}"
        if self.kind == "fraction":
            return f"{value:.3f}"
        return number(value) if self.kind == "count" or abs(value) >= 1000 else f"{value:.3g}"


MEASURES = {
    **{"miou": "mIoU", "miou_s": "S", "miou_m": "M", "miou_l": "L", "iou": "IoU", "biou": "boundary IoU"},
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_s": "AP S", "ap_m": "AP M", "ap_l": "AP L"},
    **{"ap_r": "AP rare", "ap_c": "AP common", "ap_f": "AP frequent", "ods": "ODS", "ois": "OIS", "r50": "R50"},
    **{"ar1000": "AR@1000", "ar1000_s": "S", "ar1000_m": "M", "ar1000_l": "L", "box_ar1000": "box AR@1000"},
    **{"ar1000_r": "rare", "ar1000_c": "common", "ar1000_f": "frequent"},
    **{"best_images_per_second": "images/s", "images_per_second": "images/s", "parameters_m": "params, M"},
}
PARTS = {
    **{"ods": "at ODS", "ois": "at OIS"},
    **{"box": "1 box", "point": "1 click", "points64": "64 clicks", "post": "upscaling", "end_to_end": "end to end"},
    **{"macs": "GMAC", "memory": "MiB", "agreement": "agrees with fp32", "gpu": "RTX 2080 Ti", "phone": "iPhone 14"},
    **{
        "orin": "Jetson Orin",
        "a100": "A100",
        "everything32": "everything, 32 × 32",
        "everything64": "everything, 64 × 64",
    },
}


def column(task: str, key: str) -> Column:
    """How a key of eval.json is shown: known ones as people quote them, others under their own name."""
    what, _, measure = key.rpartition("/")
    group = PARTS.get(what, what.replace("_", " "))
    if what.startswith("click") and what[5:].isdigit():
        group = f"{what[5:]} click" + ("s" if what != "click1" else "")
    if key in COUNTS:
        return Column(key, "", key, "count")
    if measure in ("ms", "s"):
        group = f"decode {group}" if what in ("box", "point", "points64") else group
        return Column(key, group, "ms" if measure == "ms" else "s", "plain", lower=True)
    for ending, unit in (("_mib", " MiB"), ("_mb", " MB"), ("_g", " GMAC")):
        if measure.endswith(ending):
            name = measure.removesuffix(ending).replace("_", " ")
            return Column(key, group, name if what else name + unit, "plain", lower=True)
    name = MEASURES.get(measure, measure.replace("_", " "))
    if task == "edges" or what == "agreement":
        return Column(key, group, name, "fraction")
    if measure.split("_")[0].rstrip("0123456789") in ("miou", "ap", "ar", "iou", "biou", "recall", "precision", "box"):
        return Column(key, group, name, "percent")
    return Column(key, group, name, "plain", lower=measure.startswith("parameters"))


def columns(task: str, numbers: Sequence[dict[str, Any]]) -> list[Column]:
    """Columns of a board: every key that is a number for somebody, in the order met; counts last."""
    keys = list(dict.fromkeys(key for one in numbers for key, value in one.items() if scalar(value) is not None))
    timed = {key.removesuffix("/ms") for key in keys if key.endswith("/ms")}
    told = {f"{part}/{rest}" for part in timed for rest in ("ms_p5", "ms_p95", "n")}
    keys = [key for key in keys if key not in told and key not in QUIET]
    return [column(task, key) for key in sorted(keys, key=rank)]


def rank(key: str) -> int:
    """Where a key's column stands: times, then what has no place of its own, throughput, memory, MACs, counts."""
    order = {"throughput": 2, "memory": 3, "macs": 4, "agreement": 5}
    return 6 if key in COUNTS else 0 if key.endswith("/ms") else order.get(key.split("/")[0], 1)


def below(numbers: dict[str, Any], key: str) -> str:
    """The small line under a number: the spread of a time, the batch of a throughput."""
    low, high, count = (scalar(numbers.get(f"{key}{end}")) for end in ("_p5", "_p95", ""))
    count = scalar(numbers.get(key.rpartition("/")[0] + "/n"))
    if low is not None and high is not None:
        return f"{low:.3g}–{high:.3g}" + (f", n {count:.0f}" if count else "")
    batch = scalar(numbers.get("throughput/best_batch"))
    return f"batch {batch:.0f}" if key == "throughput/best_images_per_second" and batch else ""


def table(caption: str, cols: Sequence[Column], rows: Sequence[Html], *, first: str = "Model") -> Html:
    """A sortable table in a frame of its own. Column 0 is the row's name."""
    grouped = any(col.group for col in cols)
    top: list[Html] = []
    if grouped:
        top.append(tag("th", Html("&nbsp;")))
        at = 0
        while at < len(cols):
            span = 1
            while at + span < len(cols) and cols[at + span].group == cols[at].group:
                span += 1
            group = cols[at].group
            top.append(tag("th", tag("span", group) if group else "", colspan=span, scope="colgroup", class_="group"))
            at += span
    names = [tag("th", tag("button", first, type="button", data_column=0, data_first="ascending"), scope="col")]
    for index, col in enumerate(cols, 1):
        way = "ascending" if col.lower else "descending"
        unit = " %" if col.kind == "percent" else ""
        button = tag(
            "button", f"{col.name}{unit}", type="button", data_column=index, data_first=way, title=col.key,
            aria_label=f"{col.group} {col.name}{unit}".strip() + ": sort",
        )  # fmt: skip
        names.append(tag("th", button, scope="col"))
    head = tag("thead", tag("tr", *top) if grouped else None, tag("tr", *names))
    inner = tag("table", tag("caption", caption, class_="unseen"), head, tag("tbody", *rows), class_="sortable")
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def row_name(label: str, *more: Child, code: bool = False) -> Html:
    """A row's name; it breaks at punctuation. `more` stands beside or under it."""
    name = tag("code" if code else "span", breakable(label), class_="name")
    return tag("th", name, *more, scope="row", data_value=label)


def cell(
    col: Column, value: float | None, *, small: str = "", best: bool = False, title: str = "", text: str | None = None
) -> Html:
    """One number; `best` marks it, `small` stands under it, `text` is how it was printed, where others printed it."""
    shown = col.text(value) if text is None else text
    return tag(
        "td",
        tag("span", shown) if best else shown,
        tag("small", small) if small and value is not None else None,
        data_value=None if value is None else repr(value),
        class_="best" if best else None,
        title=title or None,
    )


def best_of(col: Column, entries: Sequence[Entry]) -> float | None:
    """The best value of a column among ours, when there are several to choose from."""
    values = [value for entry in entries if (value := scalar(entry.numbers.get(col.key))) is not None]
    if len(values) < 2 or col.kind == "count" or len(set(values)) < 2:
        return None
    return min(values) if col.lower else max(values)
