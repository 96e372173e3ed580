"""One file: whole numbers in, the same answers out; damage, other formats and training on it are one sentence."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Generator

from frisket import checkpoint
from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.quant import packed
from frisket.quant.layers import QuantConfig, fold, quantize
from frisket.quant.search import asked, kinds_of
from frisket.sample import Batch
from frisket.weights import safe


@pytest.fixture
def saved(tiny: Sam, batches: list[Batch], tmp_path: Path) -> tuple[Path, Sam]:
    """(file, the model it was made of): scales as they start."""
    fold(tiny)
    config = QuantConfig(weight_bits=6, activation_bits=7)
    kinds = kinds_of(tiny, batches[0])
    for layer in quantize(tiny, config, kinds).values():
        layer.active = True
    packed.write(tiny, tmp_path / "model.safetensors", provenance={"from": "a test"})
    return tmp_path / "model.safetensors", tiny


def test_whoever_may_read_a_new_file_here_may_read_it(saved: tuple[Path, Sam], tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert saved[0].stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_same_answers_come_back(saved: tuple[Path, Sam], batches: list[Batch]) -> None:
    path, sam = saved
    loaded = checkpoint.load(path)
    assert loaded.form == "quantized" and (loaded.name, loaded.changes) == (sam.name, sam.changes)
    mine, theirs = (asked(model, batches[1], Generator().manual_seed(0)) for model in (sam, loaded))
    torch.testing.assert_close(theirs.logits, mine.logits, atol=1e-4, rtol=1e-4)
    state = load_file(path)
    weight = state["mask_decoder.output_upscaling.0.weight"]
    assert weight.dtype == torch.int8 and weight.min() >= -32 and weight.max() <= 31
    assert checkpoint.load(path.parent).form == "quantized"  # the folder, too
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["frisket"])
    assert about["provenance"] == {"from": "a test"} and about["quant"]["weight_bits"] == 6


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "text"])
def test_damage_is_one_sentence(saved: tuple[Path, Sam], how: str) -> None:
    path, _ = saved
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[-1000] ^= 8
    path.write_bytes({"cut": data[:-100], "empty": b"", "flipped": data, "text": b"hello there, this is text"}[how])
    with pytest.raises(UserError, match=r"model\.safetensors (cannot be read|is damaged).*make it again"):
        checkpoint.load(path)


def test_other_files_are_refused(saved: tuple[Path, Sam], tmp_path: Path) -> None:
    path, _ = saved
    state = load_file(path)
    save_file(state, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="is no model of the zoo"):
        checkpoint.load(tmp_path / "bare.safetensors")
    with safetensors.safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["frisket"])
    later = json.dumps(about | {"format": 9})
    save_file(state, tmp_path / "later.safetensors", metadata={"frisket": later})
    with pytest.raises(UserError, match="format 9, not 1"):
        checkpoint.load(tmp_path / "later.safetensors")
    for changed in ({"changes": {"image_size": 64}}, {"quant": {**about["quant"], "weight_bits": 5}}, {"kinds": {}}):
        other = json.dumps(about | changed)
        save_file(state, tmp_path / "other.safetensors", metadata={"frisket": other})
        with pytest.raises(UserError, match="is damaged"):
            checkpoint.load(tmp_path / "other.safetensors")


def signed(about: dict, state: dict, path: Path) -> None:
    """A file whose digest is right, as another program might write one."""
    about = {key: value for key, value in about.items() if key != "digest"}
    about["digest"] = safe.signature(about, state)
    save_file(state, path, metadata={"frisket": json.dumps(about)})


@pytest.mark.parametrize(
    "changed",
    [
        {"quant": {"bits": 3}},
        {"quant": None},
        {"kinds": 7},
        {"kinds": {}},
        {"name": "nobody"},
        {"changes": {"image_size": 64}},
    ],
)
def test_a_record_that_does_not_fit_is_one_sentence(saved: tuple[Path, Sam], changed: dict, tmp_path: Path) -> None:
    with safetensors.safe_open(saved[0], "pt") as file:
        about = json.loads(file.metadata()["frisket"])
    signed(about | changed, load_file(saved[0]), tmp_path / "odd.safetensors")
    with pytest.raises(UserError, match=r"odd\.safetensors"):
        checkpoint.load(tmp_path / "odd.safetensors")


def test_numbers_that_are_none_are_refused(saved: tuple[Path, Sam], tmp_path: Path) -> None:
    with safetensors.safe_open(saved[0], "pt") as file:
        about = json.loads(file.metadata()["frisket"])
    state = load_file(saved[0])
    state["mask_decoder.output_upscaling.0.weight_scale"][0, 0] = float("nan")
    signed(about, state, tmp_path / "nan.safetensors")
    with pytest.raises(UserError, match=r"holds NaN or infinity in mask_decoder\.output_upscaling\.0\.weight_scale"):
        checkpoint.load(tmp_path / "nan.safetensors")
