"""Every compiled kernel under hostile input, with each access checked: a clean refusal or an answer, never a bad read.

The kernels run here as plain Python (NUMBA_DISABLE_JIT=1, in a process of its own): numpy checks each index, and whole
numbers that wrap are errors. Compiled with NUMBA_BOUNDSCHECK=1 they do the same and need a minute to compile.
Run     `pytest tests/kernels/test_hostile.py`; or `python tests/kernels/test_hostile.py 0 99`, the seeds of one's own
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

import frisket.kernels
from frisket.geometry import Frame
from frisket.kernels import distance, matching, nms, rle, thinning, upscaled

FUZZED = {distance, matching, nms, rle, thinning, upscaled}
SIZES = [6, 5, 0, 1, -1, 1 << 20, 1 << 62, 10**30, 2.5, float("inf"), float("nan"), None, "6", [6]]
NUMBERS = [0, 1, 2, 5, 29, 30, 31, -1, 1 << 31, (1 << 34) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, 1.5, None, "1"]


def counts_of(rng):
    """A string near a good one, characters at random, long runs, bytes, or a list of numbers."""
    kind = rng.integers(0, 5)
    if kind == 0:
        text = list(rle.encode(rng.random((6, 5)) < 0.5)["counts"])
        text[rng.integers(0, len(text))] = chr(rng.integers(40, 120))
        return "".join(text)
    if kind == 1:
        return "".join(chr(c) for c in rng.integers(0, 300, rng.integers(0, 40)))
    if kind == 2:
        return "oooooo?" * rng.integers(1, 40)
    if kind == 3:
        return rng.bytes(int(rng.integers(0, 40)))
    return [NUMBERS[n] for n in rng.integers(0, len(NUMBERS), rng.integers(0, 5))]


def mask_of(rng):
    """A mask of 6 x 5 pixels: whole, with other counts, or of another size too."""
    mask = rle.encode(rng.random((6, 5)) < 0.5)
    if rng.random() < 0.6:
        mask["counts"] = counts_of(rng)
    if rng.random() < 0.2:
        mask["size"] = [SIZES[n] for n in rng.integers(0, len(SIZES), 2)]
    return mask


def values(rng, *shape):
    """float32 with infinities, NaN, and numbers far away."""
    out = rng.standard_normal(shape).astype(np.float32) * 10.0 ** rng.integers(-3, 4)
    odd = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e18, -1e18, 1e-45], np.float32)
    return torch.from_numpy(np.where(rng.random(shape) < 0.1, rng.choice(odd, shape), out).astype(np.float32))


def axis_of(rng, length):
    if rng.random() < 0.7:
        return np.append(np.sort(rng.integers(0, length, rng.integers(0, 9))), [-1] * int(rng.integers(0, 3)))
    return rng.integers(-2, length + 1, rng.integers(0, 9))


def attack_rle(rng):
    masks = [mask_of(rng) for _ in range(2)]
    kind = rng.integers(0, 4)
    if kind == 0:
        rle.fill_many(masks, axis_of(rng, 6), axis_of(rng, 5))
    elif kind == 1:
        rle.check(masks[0], (6, 5))
    elif kind == 2:
        rle.placed(masks[0], (9, 9), (int(rng.integers(-2, 6)), int(rng.integers(-2, 6))))
    else:
        rle.thumbnails(masks, (int(rng.integers(0, 9)), int(rng.integers(0, 9))))


def attack_nms(rng):
    count = int(rng.integers(0, 9))
    boxes = values(rng, count, int(rng.choice([4, 4, 4, 4, 4, 3, 5])))
    kept = nms.nms(
        boxes, values(rng, int(rng.choice([count, count, count, count + 1]))), float(rng.choice([0.5, 0, -1, np.nan]))
    )
    assert kept.unique().numel() == kept.numel() <= count


def attack_pictures(rng):
    shape = tuple(int(n) for n in rng.integers(0, 9, rng.choice([2, 2, 2, 1, 3])))
    picture, other = rng.random(shape) < 0.6, rng.random(shape) < 0.4
    if rng.random() < 0.2:
        other = other[..., ::-1][..., :3]
    depths = distance.squared_depths(picture)
    assert ((depths > 0) == picture).all()
    assert (thinning.thin(picture) <= picture).all()
    pairs = matching.match(picture, other, float(rng.choice([1.5, 3, 20, 0.1, 0, -1, np.nan])))
    assert len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1])) == len(pairs)


def attack_upscaled(rng):
    frame = Frame.fit(
        (int(rng.integers(1, 40)), int(rng.integers(1, 40))), int(rng.choice([16, 32, 4], p=[0.5, 0.4, 0.1]))
    )
    grid = frame.grid if rng.random() < 0.8 else int(rng.integers(1, 10))
    low = values(rng, 1, frame.grid, grid)
    upscaled.measure(low, frame, offset=1.0, at_least=0.9)
    upscaled.encode(low, frame)


def fuzz(seeds):
    """Raises whatever is no ValueError; returns how many inputs were refused and how many were answered."""
    refused = answered = 0
    for seed in seeds:
        for attack, times in ((attack_rle, 12), (attack_nms, 2), (attack_pictures, 2), (attack_upscaled, 2)):
            for time in range(times):
                try:
                    attack(np.random.default_rng([seed, time]))
                    answered += 1
                except ValueError:
                    refused += 1
    return refused, answered


def test_every_access_lies_inside():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(
        [sys.executable, __file__, "0", "60"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    refused, answered = (int(word) for word in run.stdout.split())
    assert refused > 200 and answered > 200


def test_all_compiled_kernels_are_fuzzed():
    folder = Path(frisket.kernels.__file__).parent
    compiled = {path.stem for path in folder.glob("*.py") if "@numba.njit" in path.read_text()}
    assert compiled == {module.__name__.rpartition(".")[2] for module in FUZZED}


if __name__ == "__main__":
    warnings.simplefilter("error", RuntimeWarning)
    np.seterr(over="raise", invalid="ignore", divide="ignore")
    print(*fuzz(range(int(sys.argv[1]), int(sys.argv[2]))))
