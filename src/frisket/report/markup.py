"""HTML and SVG from plain functions: every string is escaped unless it is already `Html`.

Use     tag("p", "a < b", class_="note")  ->  <p class="note">a &lt; b</p>
        chart([Line("mine", [1, 2, 3], [0.4, 0.5, 0.55])], x="clicks", y="mIoU")
Source  our choice: labels and paths are written by people, so safety is the default and not a habit to remember.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VOID = {"img", "meta", "link", "br", "line", "polyline", "circle", "path", "rect", "wbr"}
COLOURS = 8  # --c0 … --c7 of the page's style


class Html(str):
    """Text that is markup already."""


Child = str | Html | None | Iterable["Child"]


def escape(text: str) -> Html:
    """`text` as markup that shows it."""
    return text if isinstance(text, Html) else Html(html.escape(text, quote=True))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """One element. `class_` is class, `data_v` is data-v; True stands bare, None and False are left out."""
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            words.append(f'{key}="{html.escape(str(value), quote=True)}"')
    opened = f"<{' '.join(words)}>"
    return Html(opened[:-1] + "/>") if name in VOID else Html(f"{opened}{join(*children)}</{name}>")


def join(*children: Child) -> Html:
    """Children side by side; lists are opened, None is nothing."""
    return Html("".join(_parts(children)))


def _parts(children: Iterable[Child]) -> Iterable[str]:
    for child in children:
        if isinstance(child, str):
            yield escape(child)
        elif child is not None:
            yield from _parts(child)


def breakable(text: str) -> Html:
    """`text` that a narrow place may break after + / _ - . : and at spaces, rather than inside words."""
    return join([part if at % 2 == 0 else [part, tag("wbr")] for at, part in enumerate(re.split(r"([+/_.:-]+)", text))])


# ---------------------------------------------------------------- charts


@dataclass(frozen=True)
class Line:
    """One curve: label and points, x and y of the same length."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


WIDE, HIGH = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 42
DASHES = ("", "7 4", "2 3", "9 3 2 3")


def chart(lines: Sequence[Line], *, x: str, y: str, title: str = "", unit: bool = False) -> Html:
    """A line chart as inline SVG with its legend and, for those who cannot see it, its numbers as a table.

    Points that are not finite are left out; `unit` fixes both axes to 0 … 1. Empty when no line has a point.
    """
    lines = [Line(line.label, *_finite(line)) for line in lines]
    lines = [line for line in lines if line.x]
    if not lines:
        return Html("")
    xs, ys = [v for line in lines for v in line.x], [v for line in lines for v in line.y]
    whole = all(value == int(value) for value in xs)
    x_ticks, y_ticks = ticks(min(xs), max(xs), whole=whole), ticks(min(ys), max(ys))
    if unit:
        x_ticks = y_ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    x_span, y_span = (min(x_ticks[0], *xs), max(x_ticks[-1], *xs)), (min(y_ticks[0], *ys), max(y_ticks[-1], *ys))

    def place(px: float, py: float) -> tuple[float, float]:
        across = (px - x_span[0]) / ((x_span[1] - x_span[0]) or 1)
        up = (py - y_span[0]) / ((y_span[1] - y_span[0]) or 1)
        return LEFT + across * (WIDE - LEFT - RIGHT), HIGH - BOTTOM - up * (HIGH - TOP - BOTTOM)

    parts = []
    for value in y_ticks:
        _, at = place(x_span[0], value)
        parts.append(tag("line", x1=LEFT, x2=WIDE - RIGHT, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="rule"))
        parts.append(tag("text", number(value), x=LEFT - 7, y=f"{at + 4:.1f}", text_anchor="end"))
    for value in x_ticks:
        at, _ = place(value, y_span[0])
        parts.append(tag("text", number(value), x=f"{at:.1f}", y=HIGH - BOTTOM + 17, text_anchor="middle"))
    middle = (LEFT + WIDE - RIGHT) / 2
    parts.append(tag("text", x, x=middle, y=HIGH - 6, text_anchor="middle", class_="axis"))
    for index, line in enumerate(lines):
        spots = [place(px, py) for px, py in zip(line.x, line.y)]
        colour, dash = f"c{index % COLOURS}", DASHES[index // COLOURS % len(DASHES)]
        points = " ".join(f"{px:.1f},{py:.1f}" for px, py in spots)
        parts.append(tag("polyline", points=points, class_=f"curve {colour}", stroke_dasharray=dash or None))
        if len(spots) <= 20:
            parts += [tag("circle", cx=f"{px:.1f}", cy=f"{py:.1f}", r=3, class_=f"dot {colour}") for px, py in spots]
    what = f"{title or y}: {', '.join(line.label for line in lines)}"
    drawing = tag("svg", *parts, viewBox=f"0 0 {WIDE} {HIGH}", role="img", aria_label=what)
    keys = [tag("li", tag("span", class_=f"key c{i % COLOURS}"), line.label) for i, line in enumerate(lines)]
    heading = tag(
        "div", tag("strong", title or y), tag("span", y if title else "", class_="muted"), class_="chart-title"
    )
    return tag("figure", heading, drawing, tag("ul", *keys, class_="legend"), _numbers(lines, x), class_="chart")


def _numbers(lines: Sequence[Line], x: str) -> Html:
    """The chart's numbers, read by screen readers only; long curves are thinned to 12 points."""
    rows = []
    for line in lines:
        step = max(1, math.ceil(len(line.x) / 12))
        told = "; ".join(f"{number(px)}: {number(py)}" for px, py in list(zip(line.x, line.y))[::step])
        rows.append(tag("li", f"{line.label} ({x}: value) {told}"))
    return tag("ul", *rows, class_="unseen")


def _finite(line: Line) -> tuple[list[float], list[float]]:
    kept = [(float(a), float(b)) for a, b in zip(line.x, line.y) if math.isfinite(a) and math.isfinite(b)]
    return [a for a, _ in kept], [b for _, b in kept]


def ticks(low: float, high: float, about: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `about` of them: steps of 1, 2 or 5 times 10^k.

    `whole` keeps the steps at 1 or more.
    """
    if high <= low:
        high = low + (abs(low) or 1)
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
