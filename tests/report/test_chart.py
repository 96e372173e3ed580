"""Curves: ticks that hold the data and stay inside the drawing; single points without axes; what is not finite."""

import pytest

from frisket.report.chart import LETTER, WIDE, Line, chart, number, ticks


@pytest.mark.parametrize(
    ("low", "high", "whole", "wanted"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.36, False, [0.31, 0.32, 0.33, 0.34, 0.35, 0.36]),
        (1, 3, True, [1, 2, 3]),
        (5, 5, False, [4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6]),
        (0, 0, True, [-1, 0, 1]),
        (0, 1500, True, [0, 500, 1000, 1500]),
    ],
)
def test_ticks_are_round_and_hold_the_data(low: float, high: float, whole: bool, wanted: list[float]) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(wanted)


def test_a_chart_leaves_out_what_is_not_finite_and_is_nothing_without_points() -> None:
    nan = float("nan")
    assert chart([Line("a", [(1, nan), (nan, 2)])], x="x", y="y", title="t") is None
    drawn = chart([Line("a", [(1, 0), (2, nan), (3, 1)]), Line("b", [])], x="x", y="y", title="t")
    assert drawn is not None and drawn.lines == [Line("a", [(1, 0), (3, 1)])]


@pytest.mark.parametrize("most", [5, 160_000, 12_345_678])
def test_no_ticks_text_leaves_the_drawing(most: int) -> None:
    drawn = chart([Line("loss", [(0, 0.000012), (most, 0.000034)])], x="step", y="loss", title="Loss")
    assert drawn is not None
    ends = [drawn.place(x, drawn.y_ticks[0])[0] + LETTER * len(number(x)) / 2 for x in drawn.x_ticks]
    assert max(ends) <= WIDE
    assert all(LETTER * len(number(y)) <= drawn.left - 7 for y in drawn.y_ticks)
    for x, y in (drawn.place(*point) for point in drawn.lines[0].points):
        assert drawn.left <= x <= drawn.right and 0 <= y <= drawn.bottom


def test_a_single_point_has_a_value_and_no_axes() -> None:
    words = {"x": "step", "y": "fraction", "title": "Validation"}
    lone = chart([Line("val/box/miou", [(500, 0.375)]), Line("val/click1/miou", [(500, 0.25)])], **words)
    assert lone is not None and lone.at == "step 500"
    longer = chart([Line("a", [(500, 0.375)]), Line("b", [(500, 0.1), (600, 0.2)])], **words)
    assert longer is not None and longer.at == ""


def test_numbers_are_short() -> None:
    assert [number(v) for v in (1500, 25.0, 0.35, 1.2e-5, 1234.5, float("inf"))] == [
        "1,500", "25", "0.35", "1.2e-05", "1,234", "–",
    ]  # fmt: skip
