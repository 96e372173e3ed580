"""Paired differences: known answers, coverage on made data, and what the interval must widen for."""

import numpy as np
import pytest

from frisket.study.statistics import difference, spread


def test_a_constant_difference_is_told_exactly() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((3, 60))
    told = difference(base + 0.01, base, np.repeat(np.arange(20), 3))
    assert told.mean == pytest.approx(0.01)
    assert told.low == pytest.approx(0.01) and told.high == pytest.approx(0.01)  # though each mean's error is 0.03
    assert told.told


def test_an_arm_does_not_differ_from_itself() -> None:
    values = np.random.default_rng(1).random((3, 60))
    told = difference(values, values, np.arange(60))
    assert (told.mean, told.low, told.high) == (0, 0, 0) and not told.told


@pytest.mark.parametrize("effect", [0.0, 0.1])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(effect: float) -> None:
    """40 studies of 3 seeds, 40 photographs of 4 masks that share most of their noise; masks drawn singly would cover
    less than 70 %."""
    rng, covered = np.random.default_rng(2), 0
    owners = np.repeat(np.arange(40), 4)
    for study in range(40):
        shared = rng.normal(0, 0.2, 40)[owners]
        noise = shared + rng.normal(0, 0.05, 160)
        base = rng.random((3, 160))
        told = difference(base + effect + noise, base, owners, seed=study)
        covered += told.low <= effect <= told.high
    assert covered >= 34


def test_masks_of_one_photograph_count_as_one_draw() -> None:
    rng = np.random.default_rng(3)
    few, base = rng.normal(0, 0.1, 10), rng.random((1, 100))
    clustered = difference(base + np.repeat(few, 10), base, np.repeat(np.arange(10), 10))
    single = difference(base + np.repeat(few, 10), base, np.arange(100))
    assert clustered.high - clustered.low > 2 * (single.high - single.low)


def test_seeds_that_disagree_widen_the_interval() -> None:
    base = np.zeros((3, 50))
    agree = difference(base + 0.1, base, np.arange(50))
    disagree = difference(base + np.array([[0.0], [0.1], [0.2]]), base, np.arange(50))
    assert disagree.high - disagree.low > 0.1 > agree.high - agree.low
    assert disagree.mean == pytest.approx(0.1)


def test_nan_items_are_left_out_in_both_and_none_left_is_an_error() -> None:
    a, b = np.array([[1.0, np.nan, 0.5]]), np.array([[0.5, 0.2, np.nan]])
    assert difference(a, b, np.arange(3)).mean == 0.5
    with pytest.raises(ValueError, match="no item"):
        difference(a[:, 1:], b[:, 1:], np.arange(2))


def test_spread_over_seeds() -> None:
    assert spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert spread([1.0]) == (1.0, 0.0)
