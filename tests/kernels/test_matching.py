"""The matcher against a plain assignment on the whole matrix, closed forms, and what it promises."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from frisket.bench.edges import assignment
from frisket.kernels.matching import cost, lonely_cost, match, neighbourhood

SIZE = (321, 481)
REACH = 0.0075 * float(np.hypot(*SIZE))  # 4.337 px


def picture(*pixels: tuple[int | slice, int | slice]) -> np.ndarray:
    """A picture of Berkeley's size with these (rows, columns) set."""
    made = np.zeros(SIZE, bool)
    for rows, columns in pixels:
        made[rows, columns] = True
    return made


def plain(found: np.ndarray, truth: np.ndarray, reach: float) -> tuple[int, int]:
    """(total cost, pairs) by the definition: every pixel has a partner, or a stand-in of its own that costs."""
    one, two = np.argwhere(found), np.argwhere(truth)
    squared = ((one[:, None] - two[None]) ** 2).sum(2)
    price = np.full((len(one) + len(two),) * 2, 10**9)
    price[: len(one), : len(two)] = np.where(squared <= reach**2, np.rint(100 * np.sqrt(squared)), 10**9)
    np.fill_diagonal(price[: len(one), len(two) :], lonely_cost(reach))
    np.fill_diagonal(price[len(one) :, : len(two)], lonely_cost(reach))
    price[len(one) :, len(two) :] = 0
    rows, columns = linear_sum_assignment(price)
    return int(price[rows, columns].sum()), int(((rows < len(one)) & (columns < len(two))).sum())


def test_as_cheap_and_as_many_as_the_plain_assignment() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, reach = rng.integers(1, 21, 2), rng.uniform(0.5, 5)
        found, truth = (rng.random(size) < density for density in rng.uniform(0, 0.6, 2))
        wanted = plain(found, truth, reach)
        for pairs in (match(found, truth, reach), assignment(found, truth, reach)):
            assert (cost(pairs, found, truth, reach), len(pairs)) == wanted


def test_every_pair_is_permitted_and_nobody_has_two_partners() -> None:
    rng = np.random.default_rng(1)
    found, truth = rng.random((60, 70)) < 0.2, rng.random((60, 70)) < 0.1
    pairs = match(found, truth, 3.3)
    assert found.ravel()[pairs[:, 0]].all() and truth.ravel()[pairs[:, 1]].all()
    assert (np.diff(pairs[:, 0]) > 0).all() and len(np.unique(pairs[:, 1])) == len(pairs)
    (y, v), (x, u) = (pairs // 70).T, (pairs % 70).T
    assert np.hypot(y - v, x - u).max() <= 3.3


@pytest.mark.parametrize(("shift", "matched"), [(0, 321), (4, 321), (5, 0)])
def test_a_shifted_line_matches_up_to_the_reach(shift: int, matched: int) -> None:
    pairs = match(picture((slice(None), 100 + shift)), picture((slice(None), 100)), REACH)
    assert len(pairs) == matched


def test_one_drawn_pixel_takes_the_nearest_of_a_line() -> None:
    pairs = match(picture((50, slice(95, 106))), picture((50, 100)), REACH)
    assert pairs.tolist() == [[50 * 481 + 100] * 2]


def test_a_diagonal_shift_within_the_reach() -> None:
    pairs = match(picture((slice(53, 63), 103)), picture((slice(50, 60), 100)), REACH)  # sqrt(18) <= 4.337
    assert len(pairs) == 10


def test_taking_pixels_at_the_same_spot_is_not_always_right() -> None:
    found, truth = picture((9, 0), (9, 4)), picture((9, 4), (9, 8))
    assert (match(found, truth, REACH) % 481).tolist() == [[0, 4], [4, 8]]


@pytest.mark.parametrize(("links", "pairs"), [(199, 199), (201, 200)])
def test_a_pixel_alone_costs_a_hundred_reaches(links: int, pairs: int) -> None:
    """Found 0..n-1, true 1..n, reach 1: n pairs 1 px apart, or n - 1 at 0 px and two pixels alone, dear as 200 px."""
    found, truth = np.ones((1, links + 1), bool), np.ones((1, links + 1), bool)
    found[0, -1] = truth[0, 0] = False
    assert len(match(found, truth, 1.0)) == pairs


def test_equal_costs_are_settled_the_same_way_every_time() -> None:
    rng = np.random.default_rng(2)
    found, truth = rng.random((40, 40)) < 0.3, rng.random((40, 40)) < 0.3
    first = match(found, truth, 2.5)
    assert all((match(found, truth, 2.5) == first).all() for _ in range(3))
    # four true pixels 1 px from the found one: the upper one is taken
    cross = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
    dot = np.array([[0, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    assert match(dot, cross, 1.0).tolist() == [[4, 1]]


def test_the_neighbourhood_is_a_disc_in_order() -> None:
    steps = neighbourhood(REACH)
    assert len(steps) == sum(1 for y in range(-5, 6) for x in range(-5, 6) if y * y + x * x <= REACH**2)
    assert steps[:3].tolist() == [[0, 0, 0], [-1, 0, 100], [0, -1, 100]] and steps[-1, 2] == 424
    assert (np.diff(steps[:, 2]) >= 0).all()


def test_nothing_to_match_and_wrong_input() -> None:
    some, none = np.ones((4, 5), bool), np.zeros((4, 5), bool)
    for one, two in ((some, none), (none, some), (none, none)):
        assert match(one, two, 2.0).shape == (0, 2)
    with pytest.raises(ValueError, match="one size"):
        match(some, some.T, 2.0)
    with pytest.raises(ValueError, match="reach"):
        match(some, some, float("nan"))
