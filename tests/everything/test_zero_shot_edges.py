"""Edge maps: each step against its definition, rings from discs, and what the whole gives for a model."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from frisket.everything.edges import (
    everything_edges,
    mask_edges,
    normals,
    outer_boundary,
    photograph_edges,
    sample,
    scaled,
    smoothed,
    sobel,
    strongest,
    thinned,
)
from frisket.everything.grid import ask_points, grid_points
from frisket.geometry import Frame
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor
from frisket.sample import Prediction, Prompts


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> torch.Tensor:
    """Logits (H, W): signed distance to a circle, positive inside."""
    y, x = torch.meshgrid(torch.arange(size[0]).float(), torch.arange(size[1]).float(), indexing="ij")
    return radius - torch.hypot(y - centre[0], x - centre[1])


def test_sobel_is_scipys() -> None:
    values = torch.rand(3, 17, 23)
    for ours, plain in zip(sobel(values), values.numpy(), strict=True):
        wanted = np.hypot(ndimage.sobel(plain, 0, mode="nearest"), ndimage.sobel(plain, 1, mode="nearest"))
        assert np.abs(ours.numpy() - wanted).max() < 1e-5  # fp32 sums of eight terms


def test_outer_boundary_is_beside_the_mask() -> None:
    masks = torch.rand(4, 15, 19) > 0.8
    for ours, mask in zip(outer_boundary(masks), masks.numpy(), strict=True):
        assert (ours.numpy() == (ndimage.binary_dilation(mask, np.ones((3, 3))) & ~mask)).all()
    whole = torch.ones(1, 5, 5, dtype=torch.bool)
    assert not outer_boundary(whole).any()


def test_a_mask_gives_a_ring_just_outside_it() -> None:
    logits = disc((40, 50), (20, 25), 10.5)[None]
    edges = mask_edges(logits)[0]
    assert (edges > 0).equal(outer_boundary(logits > 0)[0])
    assert edges[20, 36] > 0 and not edges[20, 35] and not edges[20, 20:34].any() and not edges[20, 40:].any()


def test_the_strongest_mask_wins_at_each_pixel_however_they_are_split() -> None:
    frame = Frame.fit((60, 80), 64)
    logits = torch.randn(7, 16, 16) * 4
    whole = strongest(logits, frame)
    assert whole.shape == (60, 80) and whole.amax() > 0
    assert whole.equal(strongest(logits, frame, chunk=2))
    each = torch.stack([strongest(one[None], frame) for one in logits])
    assert torch.allclose(whole, each.amax(0), atol=1e-6)  # one kernel for seven masks may round otherwise
    assert not strongest(logits[:0], frame).any()


def test_scaled_fills_0_to_1() -> None:
    found = scaled(torch.tensor([[2.0, 3.0], [4.0, 6.0]]))
    assert found.tolist() == [[0, 0.25], [0.5, 1]]
    assert not scaled(torch.full((3, 3), 7.0)).any()


def test_sample_reads_between_pixels() -> None:
    values = torch.arange(12.0).reshape(3, 4)
    step = torch.zeros(2, 3, 4)
    assert torch.allclose(sample(values, step), values, atol=1e-5)
    step[0], step[1] = 0.5, 0.25
    assert sample(values, step)[1, 1].item() == pytest.approx(5 + 0.5 + 0.25 * 4, abs=1e-5)
    assert sample(values, -step)[0, 0].item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("degrees", [0, 20, 45, 70, 90, 115, 160])
def test_normals_are_square_to_a_line_and_nms_keeps_its_crest(degrees: float) -> None:
    angle = np.deg2rad(degrees)
    y, x = np.mgrid[:61, :61] - 30.0
    off = x * np.sin(angle) - y * np.cos(angle)  # distance from a line through the middle
    edges = torch.from_numpy(np.exp(-0.5 * (off / 2) ** 2)).float()
    normal = normals(edges)[:, 10:-10, 10:-10]
    on = torch.from_numpy(np.abs(off) < 1)[10:-10, 10:-10]
    aligned = (normal[0] * np.sin(angle) - normal[1] * np.cos(angle)).abs()[on]
    assert aligned.min() > 0.99
    kept = thinned(edges).numpy()[10:-10, 10:-10] > 0
    inner = off[10:-10, 10:-10]
    assert not kept[np.abs(inner) > 1].any()  # nothing beside the crest
    assert kept[np.abs(inner) < 0.4].all()  # and no gap in it


def test_nms_by_hand_equals_the_arrays() -> None:
    edges = torch.rand(12, 14)
    normal = normals(edges).numpy()
    values, kept = edges.numpy(), np.zeros((12, 14))
    for y in range(12):
        for x in range(14):
            beside = [
                ndimage.map_coordinates(values, [[y + s * normal[1, y, x]], [x + s * normal[0, y, x]]], order=1,
                                        mode="nearest")[0]
                for s in (1, -1)
            ]  # fmt: skip
            kept[y, x] = values[y, x] if values[y, x] >= max(beside) else 0
    assert np.abs(thinned(edges).numpy() - kept / kept.max()).max() < 1e-4  # the smallest kept value is 0


def test_blur_is_the_small_gaussian() -> None:
    dot = torch.zeros(5, 5)
    dot[2, 2] = 16
    assert smoothed(dot, torch.tensor([0.25, 0.5, 0.25]))[1:4, 1:4].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]
    flat = torch.full((4, 6), 3.0)
    assert torch.allclose(smoothed(flat, torch.tensor([0.25, 0.5, 0.25])), flat)


def test_a_step_in_the_photograph_is_its_edge() -> None:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[:, :, 15:] = 200
    edges = photograph_edges(image)
    assert (edges[:, 14:16] == 1).all() and not edges[:, :13].any() and not edges[:, 17:].any()


class Clicks(Predictor):
    """Answers a click with three discs around it, of 2, 3.5 and 5 grid cells, rated as a fixed rule says."""

    def ask(self, prompts: Prompts, multimask: bool) -> Prediction:
        assert multimask and prompts.points is not None and prompts.points.shape[1] == 1
        centres = prompts.points[:, 0] / 4  # on the grid
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        away = torch.hypot(y - centres[:, 1, None, None], x - centres[:, 0, None, None])
        logits = torch.stack([size - away for size in (2.0, 3.5, 5.0)], dim=1)
        return Prediction(logits, torch.sin(logits.sum((2, 3)) * 9))


def test_everything_edges_is_the_recipe_step_by_step(tiny_sam: Sam) -> None:
    """Against the paper's sentence written out: all masks at full size, greedy box NMS, Sobel, largest, 0..1."""
    predictor = Clicks(tiny_sam)
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    with torch.inference_mode():
        answers = ask_points(predictor, grid_points(16, (40, 60)))
        iou, logits = answers.iou.flatten(), answers.logits.flatten(0, 1)
        kept: list[tuple[int, int, int, int]] = []
        wanted = torch.zeros(40, 60)
        for n in iou.argsort(descending=True, stable=True).tolist():
            full = upscaled(logits[n], predictor.frame)
            rows, columns = (full > 0).any(1).nonzero(), (full > 0).any(0).nonzero()
            if not len(rows):
                continue
            box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
            if all(overlap(box, other) <= 0.7 for other in kept):
                kept.append(box)
                wanted = torch.maximum(wanted, mask_edges(full[None])[0])
    assert 20 < len(kept) < len(iou) / 2
    found = everything_edges(predictor, nms=False)
    assert torch.allclose(found, scaled(wanted), atol=1e-5)
    sharp = everything_edges(predictor)
    assert sharp.shape == (40, 60) and sharp.min() >= 0 and sharp.max() == 1
    assert (sharp > 0).sum() < (found > 0).sum()


def upscaled(low: torch.Tensor, frame: Frame) -> torch.Tensor:
    """One mask's logits at full size, in SAM's two steps."""
    resize = torch.nn.functional.interpolate
    padded = resize(low[None, None], (frame.side, frame.side), mode="bilinear", align_corners=False)
    valid = padded[..., : frame.size[0], : frame.size[1]]
    return resize(valid, frame.original, mode="bilinear", align_corners=False)[0, 0]


def overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """IoU of two boxes that reach from first to last pixel, as SAM's generator compares them."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    area = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return inter / (sum(area) - inter) if sum(area) > inter else 0.0
