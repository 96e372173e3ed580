"""Checkpoints: odd values in what they say of themselves, and damaged bytes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import changed, damaged, fuzz
from hypothesis import strategies as st

from frisket import checkpoint
from frisket.models import zoo
from frisket.models.sam import Sam


@pytest.fixture(scope="module")
def sam() -> Sam:
    """The smallest there can be."""
    return zoo.build("sam_vit_t", image_size=64, width=8, depth=1, heads=1, global_blocks=(0,))


def write(content: Any, path: Path) -> None:
    """As torch saves it; views keep the file small."""
    torch.save(content, path)


def test_models_of_ours(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    small = {key: torch.zeros(1).expand(value.shape) for key, value in sam.state_dict().items()}
    content = {"frisket": 1, **zoo.record(sam), "form": "float", "plugin": None, "provenance": {"step": 3}}

    def attack(record: Any) -> None:
        write({**record, "state_dict": small} if isinstance(record, dict) else record, path)
        checkpoint.load(path)

    tally = fuzz(changed(content), 100, attack)
    assert min(tally["answered"], tally["refused"]) > 8


def test_tables_of_weights(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    names = sorted(sam.state_dict())[:40:10]
    some = {key: [1, 2] for key in names} | {"module.image_encoder.x": 0}

    def attack(tree: Any) -> None:
        write(tree, path)
        checkpoint.load(path)

    fuzz(changed({"state_dict": some, "model": {"state_dict": some}, "frisket": {"name": "sam_vit_t"}}), 100, attack)


def test_training_checkpoints(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    content = {
        "frisket": zoo.record(sam) | {"recipe": "train_sam"}, "global_step": 7, "loops": {}, "optimizer_states": [],
        "lr_schedulers": [], "state_dict": {"sam.a": 0}, "dp_world_size": 1,
    }  # fmt: skip

    def attack(tree: Any) -> None:
        if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
            tree["state_dict"] = {
                key: torch.zeros(1) if value == 0 else value for key, value in tree["state_dict"].items()
            }
        write(tree, path)
        checkpoint.like(checkpoint.recorded(path))

    tally = fuzz(changed(content), 100, attack)
    assert min(tally["answered"], tally["refused"]) > 8


def test_damaged_files(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write({"frisket": 1, **zoo.record(sam), "state_dict": {"a": torch.zeros(2)}}, path)

    def attack(data: bytes) -> None:
        path.write_bytes(data)
        checkpoint.load(path)

    whole = path.read_bytes()
    assert fuzz(st.one_of(damaged(whole), st.binary(max_size=64)), 200, attack)["refused"] >= 180
