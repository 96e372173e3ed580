"""A line chart as numbers that templates/parts.html draws as SVG: curves, ticks, legend, and the points in words.

Use     chart([Line("mine", [1, 2, 3], [0.4, 0.5, 0.55])], x="clicks", y="mIoU")
Source  our choice: a drawing of the page's own elements follows light and dark and stays inside one file; a plotting
        library would bring megabytes of script for the same.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

WIDE, HIGH, TOP, BOTTOM = 380, 250, 12, 44
LETTER = 7.4  # px, the widest digit of the chart's text
COLOURS = 8  # --c0 … --c7 in style.css
DASHES = ("", "7 4", "2 3", "9 3 2 3")


class Line(NamedTuple):
    """One curve: label and points, x and y of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


class Drawn(NamedTuple):
    """A curve in the drawing's pixels. told: its points in words; last: its last value, as text."""

    label: str
    colour: str
    dash: str
    spots: list[tuple[float, float]]
    dots: bool
    told: str
    last: str


class Chart(NamedTuple):
    """A drawing. ticks: (pixel, text); at: where the only points of all curves lie, "" when there are more."""

    title: str
    x: str
    y: str
    lines: list[Drawn]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    left: float
    right: float
    at: str
    wide: int = WIDE
    high: int = HIGH
    top: int = TOP
    bottom: int = HIGH - BOTTOM


def chart(lines: Sequence[Line], *, x: str, y: str, title: str = "", unit: bool = False) -> Chart | None:
    """The chart of some curves; None when none has a point. Points that are not finite are left out.

    `unit` fixes both axes to 0 … 1. Where every curve is one point, at the same x, there are no axes to speak of: `at`
    says where, and each point is told with its value.
    """
    points = [
        (line.label, [(a, b) for a, b in zip(line.x, line.y) if math.isfinite(a) and math.isfinite(b)])
        for line in lines
    ]
    points = [(label, spots) for label, spots in points if spots]
    if not points:
        return None
    xs, ys = ([spot[axis] for _, spots in points for spot in spots] for axis in (0, 1))
    x_ticks = ticks(min(xs), max(xs), whole=all(value == int(value) for value in xs))
    y_ticks = ticks(min(ys), max(ys))
    if unit:
        x_ticks = y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    left = round(12 + LETTER * max(len(number(value)) for value in y_ticks), 1)
    right = round(WIDE - max(10, LETTER * len(number(x_ticks[-1])) / 2), 1)  # room for the last tick's text

    def across(value: float) -> float:
        return round(left + (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (right - left), 1)

    def up(value: float) -> float:
        part = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HIGH - BOTTOM - part * (HIGH - TOP - BOTTOM), 1)

    drawn = [
        Drawn(
            label=label,
            colour=f"c{index % COLOURS}",
            dash=DASHES[index // COLOURS % len(DASHES)],
            spots=[(across(a), up(b)) for a, b in spots],
            dots=len(spots) <= 20,
            told="; ".join(f"{number(a)}: {number(b)}" for a, b in spots[:: max(1, math.ceil(len(spots) / 12))]),
            last=number(spots[-1][1]),
        )
        for index, (label, spots) in enumerate(points)
    ]
    alone = len(xs) == len(points) and len(set(xs)) == 1
    return Chart(
        title=title or y,
        x=x,
        y=y if title else "",
        lines=drawn,
        x_ticks=[(across(value), number(value)) for value in x_ticks],
        y_ticks=[(up(value), number(value)) for value in y_ticks],
        left=left,
        right=right,
        at=f"{x} {number(xs[0])}" if alone else "",
    )


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `about` of them: steps of 1, 2 or 5 times 10^k.

    `whole` keeps the steps at 1 or more. A single value stands in the middle.
    """
    if high <= low:
        low, high = low - (abs(low) / 10 or 1), high + (abs(high) / 10 or 1)
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def number(value: float) -> str:
    """A short number: 1,500, 25, 0.35, 1.2e-05."""
    if not math.isfinite(value):
        return "–"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
