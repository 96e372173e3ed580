"""Views: masks, boxes and pixels land where the coordinates say; draws repeat; stored embeddings are not mistaken."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from frisket.data.augment import View, drawn
from frisket.data.module import DataConfig, ShardData
from frisket.data.sa1b import decode, parse
from frisket.errors import UserError
from frisket.geometry import Frame

VIEWS = [
    {"flip": 1.0, "jitter": (1.0, 1.0)},
    {"flip": 0.0, "jitter": (0.3, 0.3)},
    {"flip": 0.0, "jitter": (2.0, 2.0)},
    {"flip": 1.0, "jitter": (1.7, 1.7)},
]


@pytest.mark.parametrize("how", VIEWS)
@pytest.mark.parametrize("size", [(60, 90), (91, 67)])
def test_masks_are_the_photographs_pixels_where_the_view_says(record, how, size):
    raw = record(3, size=size, masks=12)
    sample = decode(raw, image_size=64, masks_per_image=0, rng=np.random.default_rng(1), max_area_fraction=1.0, **how)
    view, notes = sample.frame, parse(raw["json"], where="x")
    assert isinstance(view, View) and tuple(sample.image.shape[1:]) == view.size
    expected = []
    for rle in notes.rles:
        whole, seen = coco.decode(rle), np.zeros((16, 16), bool)
        for row, col in np.ndindex(16, 16):
            centre = torch.tensor([4.0 * col + 2, 4.0 * row + 2])
            if centre[0] < view.size[1] and centre[1] < view.size[0]:
                x, y = view.to_original(centre).tolist()
                seen[row, col] = whole[min(int(y), size[0] - 1), min(int(x), size[1] - 1)]
        expected.append(seen)
    kept = [mask for mask in expected if mask.any()]
    assert len(kept) == len(sample.masks) > 3
    differing = sum(int((mine.numpy() != theirs).sum()) for mine, theirs in zip(sample.masks, kept))
    assert differing <= 0.01 * sum(mask.sum() for mask in kept)  # centres that fall between two pixels


@pytest.mark.parametrize("how", VIEWS)
def test_boxes_and_areas_are_those_of_what_is_seen(record, how):
    raw = record(5, size=(90, 120), masks=10)
    sample = decode(raw, image_size=128, masks_per_image=0, rng=np.random.default_rng(2), **how)
    stored = set(parse(raw["json"], where="x").areas.tolist())
    height, width = sample.frame.size
    scale = sample.frame.scaled[0] / 90
    assert len(sample.masks) > 2
    for mask, (x0, y0, x1, y1), area in zip(sample.masks, sample.boxes.tolist(), sample.areas.tolist(), strict=True):
        y, x = torch.nonzero(mask, as_tuple=True)
        low_x, high_x, low_y, high_y = 4 * x.min() + 2, 4 * x.max() + 2, 4 * y.min() + 2, 4 * y.max() + 2
        slack = 4 + 2 * scale
        assert low_x - slack <= x0 <= low_x and high_x <= x1 + scale and x1 <= high_x + slack
        assert low_y - slack <= y0 <= low_y and high_y <= y1 + scale and y1 <= high_y + slack
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
        assert area in stored or area == pytest.approx(int(mask.sum()) * 16 / scale**2, rel=0.05)


def test_pixels_move_with_their_coordinates(record):
    raw = record(4, size=(64, 96))
    plain, turned = (
        decode(raw, image_size=96, masks_per_image=0, rng=np.random.default_rng(0), flip=flip) for flip in (0.0, 1.0)
    )
    assert torch.equal(turned.image, plain.image.flip(-1))
    shown = decode(raw, image_size=96, masks_per_image=0, rng=np.random.default_rng(7), jitter=(2.0, 2.0))
    top, left = shown.frame.corner
    assert (top, left) != (0, 0) and shown.image.shape[1:] == (96, 96)
    whole = decode(raw, image_size=192, masks_per_image=0, rng=np.random.default_rng(0)).image
    assert torch.equal(shown.image, whole[:, top : top + 96, left : left + 96])


@pytest.mark.parametrize("mirrored", [False, True])
def test_there_and_back(mirrored):
    view = View((90, 120), (64, 64), 64, (150, 200), (11, 37), mirrored)
    points = torch.tensor([[0.0, 0.0], [120.0, 90.0], [33.5, 71.25]])
    assert torch.allclose(view.to_original(view.to_input(points)), points, atol=1e-4)
    edge = view.to_input(torch.tensor([120.0 if mirrored else 0.0, 0.0]))
    assert edge.tolist() == [-37, -11]
    boxes = torch.tensor([[3.0, 4.0, 50.0, 60.0]])
    moved = view.boxes_to_input(boxes)
    assert (moved[:, :2] < moved[:, 2:]).all()
    assert torch.allclose(view.boxes_to_original(moved), boxes, atol=1e-4)


def test_scales_and_corners_cover_their_range():
    rng = np.random.default_rng(0)
    views = [drawn((480, 640), 256, flip=0.5, jitter=(0.1, 2.0), rng=rng) for _ in range(400)]
    factors = [view.scaled[1] / 256 for view in views]
    assert 0.09 < min(factors) < 0.2 and 1.9 < max(factors) < 2.01
    assert 0.4 < np.mean([view.mirrored for view in views]) < 0.6
    assert all(view.size == tuple(min(256, edge) for edge in view.scaled) for view in views)
    assert all(corner + 256 <= whole for v in views for corner, whole in zip(v.corner, v.scaled) if whole > 256)
    assert len({view.corner for view in views}) > 100
    assert drawn((60, 90), 64, flip=0.0, jitter=(1.0, 1.0), rng=rng).size == Frame.fit((60, 90), 64).size


def test_workers_and_passes_draw_the_same_views_and_validation_none(shards):
    folder = str(shards(8))

    def batches(workers: int):
        config = DataConfig(train=folder, val=folder, global_batch=2, image_size=64, flip=0.5, jitter=(0.5, 1.5))
        data = ShardData(config, workers=workers, seed=3)
        return list(data.train_dataloader()), list(data.val_dataloader())

    (mine, val), (theirs, _) = batches(0), batches(2)
    assert all(torch.equal(a.images, b.images) and torch.equal(a.boxes, b.boxes) for a, b in zip(mine, theirs))
    assert any(frame.mirrored for batch in mine for frame in batch.frames)
    assert all(type(frame) is Frame for batch in val for frame in batch.frames)


def test_stored_embeddings_belong_to_photographs_as_they_are(shards, capsys, monkeypatch):
    folder = str(shards(4))
    monkeypatch.setattr("frisket.data.module.available", lambda tars: True)
    for switch in ({"flip": 0.5}, {"jitter": (0.5, 1.0)}):
        with pytest.raises(UserError, match="belong to photographs as they are"):
            ShardData(DataConfig(train=folder, embeddings=folder, **switch)).train_dataloader()
        data = ShardData(DataConfig(train=folder, embeddings="auto", image_size=64, **switch))
        assert next(iter(data.train_dataloader())).embedding is None
        assert "stored embeddings are not used" in capsys.readouterr().err
    with pytest.raises(UserError, match="the least and then the greatest"):
        ShardData(DataConfig(train=folder, jitter=(2.0, 0.5))).train_dataloader()
