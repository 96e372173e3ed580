"""A line chart: where points and ticks lie in a drawing that templates/parts.html makes an SVG of.

Use     chart([Line("mine", [(1, 0.4), (2, 0.5), (3, 0.55)])], x="clicks", y="mIoU")
Source  our choice: a drawing of the page's own elements follows light and dark and stays inside one file; a plotting
        library would bring megabytes of script for the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WIDE, HIGH, TOP, BOTTOM = 380, 250, 12, 206  # px: of the drawing; its frame's top and bottom
LETTER = 7.4  # px, the widest digit of the chart's text


class Line(NamedTuple):
    """One curve: label and points (x, y)."""

    label: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """A drawing. at: where the only points of all curves lie, "" where there are more; x_ticks, y_ticks: values."""

    lines: list[Line]
    x: str
    y: str
    title: str
    at: str
    x_ticks: list[float]
    y_ticks: list[float]
    wide: int = WIDE
    high: int = HIGH
    bottom: int = BOTTOM

    @property
    def left(self) -> float:
        """The frame's left side; before it there is room for the widest tick."""
        return round(12 + LETTER * max(len(number(value)) for value in self.y_ticks), 1)

    @property
    def right(self) -> float:
        """The frame's right side; behind it there is room for half of the last tick."""
        return round(WIDE - max(10, LETTER * len(number(self.x_ticks[-1])) / 2), 1)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point in the drawing's pixels."""
        across = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        up = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return round(self.left + across * (self.right - self.left), 1), round(BOTTOM - up * (BOTTOM - TOP), 1)


def chart(lines: Sequence[Line], *, x: str, y: str, title: str, unit: bool = False) -> Chart | None:
    """The chart of some curves; None when none has a point. Points that are not finite are left out.

    `unit` fixes both axes to 0 … 1. Where every curve is one point, at the same x, there are no axes to speak of: `at`
    says where, and each point is told with its value.
    """
    held = [Line(label, [point for point in points if all(map(math.isfinite, point))]) for label, points in lines]
    held = [line for line in held if line.points]
    if not held:
        return None
    xs, ys = zip(*(point for line in held for point in line.points))
    x_ticks, y_ticks = (
        ticks(min(xs), max(xs), whole=all(map(float.is_integer, map(float, xs)))),
        ticks(min(ys), max(ys)),
    )
    if unit:
        x_ticks = y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    alone = len(xs) == len(held) and len(set(xs)) == 1
    return Chart(held, x, y, title, f"{x} {number(xs[0])}" if alone else "", x_ticks, y_ticks)


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
