"""Hard prompts: clicks fall where the student misses, as often as the draw says, and repeat with the seed."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Generator, Tensor

from frisket.recipes.hard_prompts import HardConfig, sample
from frisket.sample import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, IGNORED, TOP_LEFT, Batch, Prompts

CLICKS = {"box_probability": 0.0}


@pytest.fixture
def batch(batch_of: Callable[..., Batch]) -> Batch:
    """Two photographs, three and two objects of 16 x 16 cells; the last is empty."""
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    masks[0, 2:10, 2:10] = masks[1, 6:14, 1:15] = masks[2, 0:16, 0:8] = masks[3, 8:15, 3:12] = True
    return batch_of([masks[:3], masks[3:]])


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def cells(prompts: Prompts) -> Tensor:
    """Cell (x, y) of each first point."""
    assert prompts.points is not None
    return ((prompts.points[:, 0] + 0.5) / 4 - 0.5).round().long()


def half(batch: Batch, seen: list[tuple[Prompts, Tensor]]) -> Callable[[Prompts, Tensor], tuple[Tensor, Tensor]]:
    """A student that draws the half of each object that is left of its click, click included."""

    def respond(prompts: Prompts, which: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((prompts, which))
        columns = torch.arange(16)[None, None]
        return batch.masks[which] & (columns <= cells(prompts)[:, :1, None]), batch.masks[which]

    return respond


def test_every_click_lies_in_what_the_student_missed(batch: Batch) -> None:
    for seed in range(20):
        seen: list[tuple[Prompts, Tensor]] = []
        config = HardConfig(rounds=3, least_cells=1, **CLICKS)
        prompts, hard = sample(batch, half(batch, seen), config, seeded(seed))
        assert prompts.labels is not None and (prompts.labels[:, 0] == FOREGROUND).all()
        assert (prompts.labels[:, 1:] == IGNORED).all()
        asked = [*seen, (prompts, torch.arange(5))]
        for (before, which), (after, later) in pairwise(asked):
            for row, number in enumerate(later.tolist()):
                if number not in which.tolist():
                    continue
                old, new = cells(before)[which.tolist().index(number)], cells(after)[row]
                if not torch.equal(old, new):
                    assert batch.masks[number, new[1], new[0]] and new[0] > old[0]  # missed: right of the last click
        assert not hard[4] and (cells(prompts)[4] == 8).all()  # nothing to click: the middle


def test_no_round_gives_uniform_clicks_and_asks_nobody(batch: Batch) -> None:
    def nobody(prompts: Prompts, which: Tensor) -> tuple[Tensor, Tensor]:
        raise AssertionError("asked")

    config = HardConfig(rounds=0, **CLICKS)
    counts = torch.zeros(16, 16)
    for seed in range(2000):
        prompts, hard = sample(batch, nobody, config, seeded(seed))
        x, y = cells(prompts)[0].tolist()
        counts[y, x] += 1
        assert not hard.any()
    inside = counts[2:10, 2:10]
    assert inside.sum() == 2000 and inside.min() > 10 and inside.max() < 60  # 31 each, deviation 5.5


@pytest.mark.parametrize(("missing", "moved"), [(0, False), (9, False), (10, True)])
def test_a_perfect_student_and_a_small_miss_leave_the_click(batch: Batch, missing: int, moved: bool) -> None:
    asked = []

    def respond(prompts: Prompts, which: Tensor) -> tuple[Tensor, Tensor]:
        masks = batch.masks[which].clone()
        for mask in masks:
            mask.view(-1)[mask.view(-1).nonzero()[:missing, 0]] = False
        asked.append(which)
        return masks, batch.masks[which]

    _, hard = sample(batch, respond, HardConfig(rounds=9, **CLICKS), seeded(3))
    assert hard[:4].any() == moved and not hard[4]
    assert (len(asked) > 1) == moved  # a click that stays would be answered alike for ever: it is not asked again


def test_how_many_rounds_are_drawn(batch: Batch) -> None:
    """0 to `rounds`, each alike often; one draw for all masks of an image, or each its own."""
    for per, alike in (("image", True), ("mask", False)):
        counts, together = [], []
        for seed in range(400):
            rounds = torch.zeros(5, dtype=torch.long)

            def respond(prompts: Prompts, which: Tensor, rounds: Tensor = rounds) -> tuple[Tensor, Tensor]:
                rounds[which] += 1
                return torch.zeros_like(batch.masks[which]), batch.masks[which]

            config = HardConfig(rounds=3, rounds_of=per, **CLICKS)  # type: ignore[arg-type]
            sample(batch, respond, config, seeded(seed))
            counts.append(int(rounds[0]))
            together.append(bool((rounds[:3] == rounds[0]).all()))
        share = torch.bincount(torch.tensor(counts), minlength=4) / 400
        assert len(share) == 4 and (share - 0.25).abs().max() < 0.08
        assert all(together) == alike


def test_wrong_regions_also_give_background_clicks(batch: Batch) -> None:
    def respond(prompts: Prompts, which: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(batch.masks[which]), batch.masks[which]  # nothing is missed, much is too much

    missed, hard = sample(batch, respond, HardConfig(rounds=5, **CLICKS), seeded(1))
    assert not hard.any() and missed.labels is not None and (missed.labels[:, 0] == FOREGROUND).all()
    wrong, hard = sample(batch, respond, HardConfig(rounds=5, region="wrong", **CLICKS), seeded(1))
    assert hard.any() and wrong.labels is not None and (wrong.labels[hard, 0] == BACKGROUND).all()
    for number in hard.nonzero()[:, 0].tolist():
        x, y = cells(wrong)[number].tolist()
        assert not batch.masks[number, y, x]


def test_clicks_may_be_added(batch: Batch) -> None:
    config = HardConfig(rounds=3, add_clicks=True, least_cells=1, **CLICKS)
    seen: list[tuple[Prompts, Tensor]] = []
    prompts, hard = sample(batch, half(batch, seen), config, seeded(2))
    assert prompts.points is not None and prompts.points.shape == (5, 4, 2)
    assert prompts.labels is not None and (prompts.labels[:, 0] == FOREGROUND).all()
    added = (prompts.labels[:, 1:] == FOREGROUND).any(dim=1)
    assert torch.equal(added, hard) and hard.any()


def test_boxes_are_drawn_for_whole_images_and_never_change(batch: Batch) -> None:
    kinds = set()
    for seed in range(30):
        prompts, hard = sample(
            batch, lambda p, w: (torch.zeros_like(batch.masks[w]), batch.masks[w]), HardConfig(rounds=2), seeded(seed)
        )
        assert prompts.labels is not None and prompts.points is not None
        boxed = prompts.labels[:, 0] == TOP_LEFT
        assert torch.equal(boxed, prompts.labels[:, 1] == BOTTOM_RIGHT) and not (hard & boxed).any()
        assert (boxed[:3] == boxed[0]).all() and (boxed[3:] == boxed[3]).all()
        near = (prompts.points[boxed].reshape(-1, 4) - batch.boxes[boxed]).abs()
        assert not len(near) or near.max() <= 20 * 64 / 1024 + 1e-4
        kinds.add((bool(boxed[0]), bool(boxed[3])))
    assert len(kinds) == 4
    always, _ = sample(batch, lambda p, w: (batch.masks[w], batch.masks[w]), HardConfig(box_probability=1), seeded())
    assert always.labels is not None and (always.labels[:, 0] == TOP_LEFT).all()


def test_the_same_seed_gives_the_same_prompts_and_no_objects_none(batch: Batch, batch_of: Callable[..., Batch]) -> None:
    config = HardConfig(rounds=4)
    first, again = (sample(batch, half(batch, []), config, seeded(5))[0] for _ in range(2))
    assert first.points is not None and again.points is not None and torch.equal(first.points, again.points)
    nothing = batch_of([torch.zeros(0, 16, 16, dtype=torch.bool)])
    prompts, hard = sample(nothing, half(nothing, []), config, seeded())
    assert len(prompts) == 0 and len(hard) == 0
