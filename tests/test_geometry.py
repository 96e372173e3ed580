"""Frames, resizing, boxes and overlap against closed forms, PIL and plain loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from frisket.geometry import (
    Frame,
    boxes_of_masks,
    inside,
    mask_iou,
    resize_image,
    upscale_logits,
)

# SAM's own sizes (specs/sam_and_evaluation.md 2.4); 1 x 3000 gives 0 rows there and must be clamped
SIZES = [
    ((1500, 2250), (683, 1024), (43, 64)),
    ((1500, 2000), (768, 1024), (48, 64)),
    ((480, 640), (768, 1024), (48, 64)),
    ((427, 640), (683, 1024), (43, 64)),
    ((321, 481), (683, 1024), (43, 64)),
    ((1, 3000), (1, 1024), (1, 64)),
    ((3000, 1), (1024, 1), (64, 1)),
]


@pytest.mark.parametrize(("original", "size", "tokens"), SIZES)
def test_sam_sizes(original: tuple[int, int], size: tuple[int, int], tokens: tuple[int, int]) -> None:
    frame = Frame.fit(original, 1024)
    assert frame == Frame(original, size, 1024)
    assert frame.grid == 256
    assert frame.valid_tokens() == tokens


def test_longest_side_is_exact_at_every_size() -> None:
    for side in (64, 256, 1024):
        for longest in range(1, 400):
            frame = Frame.fit((longest, max(1, longest // 3)), side)
            assert frame.size[0] == side and 1 <= frame.size[1] <= side


def test_points_use_the_rounded_sizes() -> None:
    frame = Frame.fit((1500, 2250), 1024)
    point = torch.tensor([2250.0, 1500.0])
    assert torch.allclose(frame.to_input(point), torch.tensor([1024.0, 683.0]))  # not 682.67
    assert torch.allclose(frame.to_original(frame.to_input(point)), point)


def test_boxes_move_as_their_corners() -> None:
    frame = Frame.fit((321, 481), 512)
    boxes = torch.tensor([[3.0, 5.0, 100.0, 300.0], [0.0, 0.0, 481.0, 321.0]])
    moved = frame.boxes_to_input(boxes)
    assert torch.allclose(moved.view(-1, 2, 2), frame.to_input(boxes.view(-1, 2, 2)))
    assert torch.allclose(moved[1], torch.tensor([0.0, 0.0, 512.0, 342.0]))
    assert torch.allclose(frame.boxes_to_original(moved), boxes)


@pytest.mark.parametrize("size", [(20, 31), (90, 140), (45, 70), (1, 70), (97, 3)])
def test_resize_is_pils_bilinear(size: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 45, 70), dtype=np.uint8))
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    ours = resize_image(image, size)
    assert ours.dtype == torch.uint8 and ours.shape == (3, *size)
    difference = ours.permute(1, 2, 0).int().numpy() - np.asarray(pil).astype(int)
    assert abs(difference).max() <= 1  # both work in fixed point, rounded in different places


def test_resize_to_the_same_size_is_the_same_tensor() -> None:
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    assert resize_image(image, (4, 5)) is image


def test_upscale_is_two_bilinear_steps_with_a_crop() -> None:
    """Oracle: the textbook formula at one pixel at a time, in float64."""
    frame = Frame.fit((30, 50), 64)
    low = torch.randn(2, 16, 16)

    def sample(image: np.ndarray, y: int, x: int, out: tuple[int, int]) -> float:
        total = 0.0
        place = []
        for at, length, target in ((y, image.shape[0], out[0]), (x, image.shape[1], out[1])):
            centre = max(0.0, (at + 0.5) * length / target - 0.5)
            first = min(int(centre), length - 1)
            place.append(((first, 1 - (centre - first)), (min(first + 1, length - 1), centre - first)))
        for row, wy in place[0]:
            for col, wx in place[1]:
                total += wy * wx * image[row, col]
        return total

    source = low[1].double().numpy()
    full = np.array([[sample(source, y, x, (64, 64)) for x in range(64)] for y in range(64)])
    valid = full[: frame.size[0], : frame.size[1]]
    expected = np.array([[sample(valid, y, x, (30, 50)) for x in range(50)] for y in range(30)])
    ours = upscale_logits(low, frame)
    assert ours.shape == (2, 30, 50)
    assert np.abs(ours[1].numpy() - expected).max() < 1e-4  # float32 against float64


def test_boxes_of_masks_against_loops() -> None:
    masks = torch.rand(40, 7, 9) < torch.linspace(0, 0.4, 40)[:, None, None]
    for mask, box in zip(masks.numpy(), boxes_of_masks(masks).tolist()):
        ys, xs = np.nonzero(mask)
        assert box == ([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if len(ys) else [0, 0, 0, 0])
    assert boxes_of_masks(masks[:0]).shape == (0, 4)
    assert boxes_of_masks(torch.ones(1, 3, 4, dtype=torch.bool)).tolist() == [[0, 0, 4, 3]]


def test_mask_iou() -> None:
    a = torch.zeros(4, 3, 3, dtype=torch.bool)
    b = a.clone()
    a[0, :2], b[0, 1:] = True, True  # 3 shared of 9
    a[1] = True  # against nothing
    a[2, 0, 0] = b[2, 0, 0] = True
    assert mask_iou(a, b).tolist() == pytest.approx([3 / 9, 0.0, 1.0, 1.0])  # the last two are both empty


def test_a_cell_is_inside_where_its_centre_is() -> None:
    """Cells of 4 px have their centres at 2, 6, 10, 14: 7 px hold two of them, 6 px (a centre on the border) one."""
    rows = inside(torch.tensor([[7, 9], [6, 16]]), 4, 4)
    assert rows.flatten(1).sum(1).tolist() == [2 * 2, 1 * 4] and rows[0, :2, :2].all() and rows[1, 0].all()
