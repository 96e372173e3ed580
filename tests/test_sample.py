"""The words: prompts grow and are cut row by row, predictions pick by predicted or real IoU."""

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device

from frisket.geometry import Frame
from frisket.sample import BACKGROUND, FOREGROUND, Batch, Prediction, Prompts


def test_click_appends_and_leaves_the_original_alone() -> None:
    first = Prompts(points=torch.zeros(2, 1, 2), labels=torch.ones(2, 1, dtype=torch.long))
    second = first.click(torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([BACKGROUND, FOREGROUND]))
    assert second.points is not None and second.labels is not None and first.points is not None
    assert second.points[:, 1].tolist() == [[3, 4], [5, 6]]
    assert second.labels.tolist() == [[1, 0], [1, 1]]
    assert first.points.shape == (2, 1, 2)


def test_click_on_a_box_starts_the_points() -> None:
    clicked = Prompts(boxes=torch.zeros(2, 4)).click(torch.ones(2, 2), torch.ones(2, dtype=torch.long))
    assert clicked.points is not None and clicked.points.shape == (2, 1, 2)
    assert clicked.boxes is not None and len(clicked) == 2


def test_refine_replaces_only_the_mask() -> None:
    prompts = Prompts(boxes=torch.zeros(2, 4), masks=torch.zeros(2, 1, 8, 8)).refine(torch.ones(2, 8, 8))
    assert prompts.masks is not None and prompts.masks.shape == (2, 1, 8, 8) and prompts.masks.eq(1).all()
    assert prompts.boxes is not None


def test_rows_of_prompts() -> None:
    prompts = Prompts(
        points=torch.arange(12.0).view(3, 2, 2), labels=torch.arange(6).view(3, 2), boxes=torch.eye(4)[:3]
    )
    part = prompts[torch.tensor([2, 0])]
    assert part.labels is not None and part.labels.tolist() == [[4, 5], [0, 1]]
    assert part.masks is None and len(part) == 2 and len(prompts[slice(0, 1)]) == 1 and len(Prompts()) == 0


def test_best_follows_the_predicted_iou() -> None:
    right = torch.ones(4, 4)
    right[2:] = -1
    logits = torch.stack([torch.stack([-right, right, right.abs()]), torch.stack([right.abs(), -right, right])])
    prediction = Prediction(logits, torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.4, 0.3]]))
    best, iou = prediction.best()
    assert torch.equal(best, torch.stack([logits[0, 2], logits[1, 0]])) and torch.equal(iou, torch.tensor([0.9, 0.5]))


def test_batch_counts_images_not_objects() -> None:
    empty = torch.zeros(0)
    batch = Batch(["a", "b"], empty, empty, empty, empty, empty, [], empty)
    assert batch.num_images == 2


def test_a_batch_moves_its_tensors_and_keeps_the_rest() -> None:
    frames = [Frame.fit((48, 64), 64)]
    batch = Batch(["a"], *(torch.ones(1) for _ in range(5)), frames, torch.ones(1, 2))
    moved = move_data_to_device(batch, torch.device("meta"))  # Lightning's way; Frames are frozen, which it refuses
    assert type(moved) is Batch and moved.keys == ["a"] and moved.frames is frames and moved.embedding is None
    tensors = (moved.images, moved.masks, moved.boxes, moved.areas, moved.image_index, moved.sizes)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert batch.images.device.type == "cpu"
