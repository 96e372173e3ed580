"""Source synthetic: seeds, what the masks mean, shapes, parts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from frisket.data.sa1b import parse
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.place import Place
from frisket.prep.run import prep
from frisket.prep.synthetic import Config, scene

ALONE = Place(workers=1)


def test_an_image_depends_on_its_seed_alone() -> None:
    first, again, other = (scene(np.random.default_rng([0, 1, n]), 96) for n in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert all(np.array_equal(a, b) for a, b in zip(first[1], again[1], strict=True))
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_todays_drawings_are_those_of_yesterday() -> None:
    """The scenes that published numbers were measured on, to the bit; a digest of two of them."""
    digest = hashlib.sha256()
    for number in (0, 1):
        pixels, masks = scene(np.random.default_rng([0, 7, number]), 96)
        digest.update(pixels.tobytes() + b"".join(np.packbits(mask).tobytes() for mask in masks))
    assert digest.hexdigest() == "bfe9060db3d93282f14d7ceb05261c47159c660aa9c72d6aa613f9387cdd8b8c"


def test_few_large_objects_and_distractors() -> None:
    for number in range(8):
        _, masks = scene(np.random.default_rng(number), 128, radius=(0.18, 0.4), objects=(2, 2))
        crowded, same = scene(np.random.default_rng(number), 128, radius=(0.18, 0.4), objects=(2, 2), distractors=3)
        wholes = [
            mask for mask in masks if not any(mask is not other and (mask & ~other).sum() == 0 for other in masks)
        ]
        assert 1 <= len(wholes) <= 2  # one may hide the other, or lie within it
        assert max(mask.sum() for mask in masks) > 0.02 * 128 * 128
        assert crowded.shape[2] == 3 and len(same) >= 2
    with_none, with_some = (
        scene(np.random.default_rng(3), 128, objects=(1, 1), radius=(0.1, 0.1), distractors=count)[1]
        for count in (0, 9)
    )
    # nine more shapes, and no mask more than one object with its parts can have
    assert max(len(with_none), len(with_some)) <= 1 + 3 + 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"radius": (0.3, 0.2)}, "radius"),
        ({"radius": (0.0, 0.2)}, "radius"),
        ({"objects": (0, 2)}, "objects"),
        ({"objects": (3, 2)}, "objects"),
    ],
)
def test_impossible_scenes_are_one_sentence(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        prep(Config(out=str(tmp_path / "x"), count=1, image_size=64, place=ALONE, **changes))


def test_images_do_not_depend_on_how_they_are_shared_out(tmp_path: Path) -> None:
    found = []
    for step in (2, 5):
        out = tmp_path / str(step)
        prep(Config(out=str(out), count=5, image_size=96, samples_per_shard=step, place=ALONE))
        shards = IndexedShards(expand(out))
        raws = [shards[i] for i in range(len(shards))]
        found.append([(raw["__key__"], raw["jpg"], raw["json"]) for raw in raws])
    assert found[0] == found[1]
    assert [key for key, _, _ in found[0]] == [f"syn_train_{n:06d}" for n in range(5)]


def test_splits_and_seeds_differ(tmp_path: Path) -> None:
    jpgs = set()
    for split, seed in (("train", 0), ("val", 0), ("train", 1)):
        out = tmp_path / f"{split}{seed}"
        prep(Config(out=str(out), split=split, seed=seed, count=2, image_size=96, place=ALONE))
        jpgs |= {IndexedShards(expand(out))[i]["jpg"] for i in range(2)}
    assert len(jpgs) == 6


def test_masks_overlap_only_where_one_is_part_of_the_other_and_some_nest_twice() -> None:
    depth_seen = 0
    for n in range(12):
        pixels, masks = scene(np.random.default_rng(n), 128)
        assert max(pixels.shape) == 128 and pixels.dtype == np.uint8
        masks = [mask for mask in masks if mask.any()]
        chain = np.zeros(len(masks), int)
        for i, a in enumerate(masks):
            assert a.shape == pixels.shape[:2]
            for j, b in enumerate(masks[:i]):
                shared = a & b
                # Later ones are in front: they share pixels with an earlier one only as its part, wholly inside it.
                assert not shared.any() or np.array_equal(shared, a)
                if shared.any():
                    chain[i] = max(chain[i], chain[j] + 1)
        depth_seen = max(depth_seen, int(chain.max()))
    assert depth_seen >= 2  # whole, part, part of a part


def test_shapes_stand_out_from_what_surrounds_them() -> None:
    """A mask's mean colour differs from the ring around it: the picture can be segmented at all."""
    differences = []
    for n in range(10):
        pixels, masks = scene(np.random.default_rng(n), 128)
        for mask in masks:
            if np.count_nonzero(mask) > 300 and not mask.all():
                differences.append(np.abs(pixels[mask].mean(0) - pixels[~mask].mean(0)).max())
    assert len(differences) > 20
    assert np.median(differences) > 20  # of 255


def test_stored_masks_obey_the_filters(tmp_path: Path) -> None:
    prep(Config(out=str(tmp_path), count=4, image_size=128, min_area=150, place=ALONE))
    shards = IndexedShards(expand(tmp_path))
    for i in range(4):
        notes = parse(shards[i]["json"], where="test")
        assert len(notes) and notes.areas.min() >= 150 and notes.areas.max() <= 0.9 * notes.width * notes.height
        for annotation in json.loads(shards[i]["json"])["annotations"]:
            x, y = annotation["point_coords"][0]
            x0, y0, w, h = annotation["bbox"]
            assert x0 <= x < x0 + w and y0 <= y < y0 + h


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="draw at least 1 image"):
        prep(Config(out=str(tmp_path), count=0))
