"""Hard prompt sampling: prompts that the student itself gets wrong (TinySAM, arXiv 2312.13789, section 3.1). No recipe.

    prompts, hard = sample(batch, respond, HardConfig(), generator)

A click begins anywhere in the object; then, some rounds over, it is drawn again from what the student's mask misses of
the object, given the last click alone. The number of rounds is drawn from 0 to `rounds`, so that easy clicks remain. As
rounds pass, clicks move towards the object's border. What the paper leaves open is marked "ours".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from frisket.prompts import box_corners, error_points, noised_boxes, random_points
from frisket.sample import FOREGROUND, IGNORED, Batch, Prompts, valid_cells


@dataclass
class HardConfig:
    """The simulated annotator."""

    rounds: int = field(default=9, metadata={"least": 0})
    """A click is drawn again up to so many times; 0: random clicks (the ablation without hard prompts)."""
    rounds_of: Literal["image", "mask"] = "image"
    """Who draws how many rounds; ours: all masks of an image together."""
    region: Literal["missed", "wrong"] = "missed"
    """Where the next click lies: in what the mask misses (the paper), or also in what it has too much, as a background
    click (ours)."""
    add_clicks: bool = False
    """Clicks are added (as SAM trains) rather than replaced (as the paper's equation 9 reads)."""
    least_cells: int = field(default=10, metadata={"least": 1})
    """A region of fewer cells of the mask grid leaves the click where it is; ours, EdgeSAM's limit."""
    box_probability: float = field(default=0.5, metadata={"least": 0, "most": 1})
    """Of an image being asked by noised boxes, which no round changes; ours: the paper speaks of points only."""
    box_noise: float = field(default=0.1, metadata={"least": 0})
    """Of each coordinate, as a share of the box's side (SAM)."""
    box_noise_cap: float = field(default=20.0, metadata={"least": 0})
    """Most that a coordinate moves, in pixels of a 1024 px input (SAM)."""


Respond = Callable[[Prompts, Tensor], tuple[Tensor, Tensor]]
"""(prompts, long (K,) which objects) -> the student's masks and those it should have drawn, both bool (K, G, G)."""


@torch.no_grad()
def sample(batch: Batch, respond: Respond, config: HardConfig, generator: Generator) -> tuple[Prompts, Tensor]:
    """Prompts for the batch's N objects, and bool (N,): whose click was drawn from an error of the student.

    Every row is a list of labelled points, clicks and boxes alike: one decoder call serves all. Only objects whose
    click may still move are asked.
    """
    count, device = len(batch.masks), batch.masks.device
    length = 1 + config.rounds if config.add_clicks else 2  # a box needs two
    points = torch.zeros(count, max(2, length), 2, device=device)
    labels = torch.full(points.shape[:2], IGNORED, dtype=torch.long, device=device)
    points[:, 0], labels[:, 0] = random_points(batch.masks, generator)[0], FOREGROUND
    by_box = torch.rand(batch.num_images, generator=generator) < config.box_probability
    drawn = torch.randint(0, config.rounds + 1, (batch.num_images,), generator=generator)[batch.image_index.cpu()]
    if config.rounds_of == "mask":
        drawn = torch.randint(0, config.rounds + 1, (count,), generator=generator)
    boxed = by_box.to(device)[batch.image_index]
    rounds = drawn.to(device) * ~boxed
    corners, corner_labels = box_corners(
        noised_boxes(
            batch.boxes, generator, side=batch.images.shape[-1], scale=config.box_noise, cap=config.box_noise_cap
        )
    )
    points[boxed, :2], labels[boxed, :2] = corners[boxed], corner_labels[boxed]
    valid, hard = valid_cells(batch), torch.zeros(count, dtype=torch.bool, device=device)
    for turn in range(int(drawn.max()) if count else 0):
        asked = (rounds > turn).nonzero()[:, 0]
        if not len(asked):
            break
        masks, wanted = respond(Prompts(points[asked], labels[asked]), asked)
        wrong = (wanted & ~masks if config.region == "missed" else wanted ^ masks) & valid[asked]
        large = wrong.flatten(1).sum(1) >= config.least_cells
        rounds[asked[~large]] = 0  # the same click would be answered alike
        click, label = error_points(wanted ^ wrong, wanted, generator, valid=valid[asked])
        place = torch.full_like(asked, turn + 1 if config.add_clicks else 0)
        chosen, at = asked[large], place[large]
        points[chosen, at], labels[chosen, at] = click[large], label[large]
        hard[chosen] = True
    return Prompts(points, labels), hard
