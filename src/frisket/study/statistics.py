"""What a study may say: means over seeds, and paired differences with bootstrap intervals. Pure functions on arrays.

    difference(a, b, photographs, seed=0) -> Difference(mean, low, high)        # a, b: (seeds, masks)

Two arms judge the same masks, so their difference is taken mask by mask: its error is several times smaller than that
of either mean. Masks of one photograph rise and fall together, and so do masks under one seed: the bootstrap draws
photographs (not masks) and seeds, both with replacement, 2,000 times; the interval is the middle 95 %. An arm whose
interval contains 0 shows "no difference". Source: the cluster bootstrap of Field and Welsh (2007); sizes our choice.
"""

from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """mean of a - b, and the ends of its interval."""

    mean: float
    low: float
    high: float

    @property
    def told(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0 <= self.high


def difference(a: np.ndarray, b: np.ndarray, photographs: np.ndarray, *, seed: int = 0) -> Difference:
    """a, b: float (seeds, items) of two arms over the same items; the numbers of seeds may differ. photographs: long
    (items,), whose each item is. Items that are NaN in either arm are left out. Raises ValueError when none is left.
    """
    good = ~(np.isnan(a).any(axis=0) | np.isnan(b).any(axis=0))
    if not good.any():
        raise ValueError("no item was judged in both arms")
    owners, owner = np.unique(photographs[good], return_inverse=True)
    sums = [_per_photograph(values[:, good], owner, len(owners)) for values in (a, b)]
    sizes = np.bincount(owner, minlength=len(owners)).astype(float)
    rng = np.random.default_rng(seed)
    times = _drawn(rng, len(owners)) * len(owners)  # how often each draw takes each photograph
    shares = [_drawn(rng, len(part)) for part in sums]
    if len(a) == len(b):
        shares[1] = shares[0]  # the same seed drew the same batches in both arms
    first, second = ((share * (times @ part.T)).sum(axis=1) for share, part in zip(shares, sums, strict=True))
    means = (first - second) / (times @ sizes)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    centre = float(a[:, good].mean() - b[:, good].mean())
    # with one seed and one photograph nothing can be drawn, and the interval is the point itself
    return Difference(centre, min(float(low), centre), max(float(high), centre))


def _drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """(DRAWS, count): the share that each of `count` things has of a draw with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), size=DRAWS) / count


def _per_photograph(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """(seeds, photographs): sums of each photograph's items."""
    return np.stack([np.bincount(owner, weights=row, minlength=count) for row in values])


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds (n - 1; 0 for a single one)."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0
