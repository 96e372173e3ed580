"""Meta's layout to the last key, sizes as published, and errors that name the right word."""

import subprocess
import sys
from pathlib import Path

import plugged
import pytest
import torch

from frisket import plugins
from frisket.checkpoint import fingerprint
from frisket.errors import UserError
from frisket.models import zoo

# SHA-256 over the sorted lines "key dims" of SAM's published modules: whole model and its three parts.
WHOLE = {
    "sam_vit_b": "78d6db84016f15d3a8e09d71d986febbd9744c05e358e2856b726cc3caef2ba7",
    "sam_vit_l": "eb848dd0537461b8b5f214c290a7dba8f1f33ef9dcaeec9fcfcb783dc1a9e5c8",
    "sam_vit_h": "b99b63f26852f420e842e3354382082b1752c9375642969cbbb1a797ce174f86",
}
ENCODER = {
    "sam_vit_b": "515485bab93484a0288d5bad3a00bdb99f863429d0f4eb8496702ded95c30c58",
    "sam_vit_l": "41107d4a4ebedf85a934e70aa07137c4b392777289bfa98c2697897cba03f79a",
    "sam_vit_h": "7171676142dddb21f6be2e8fd38970cb05c890dff749ef301b4677472ecf3383",
}
PROMPT_ENCODER = "3d5be0ee900325efb597a0eb9d1be919571eb586f20a9f86c478c15718ebc6ce"
MASK_DECODER = "a69fda3620a1063b54087226e15417cdf98ce02a8f35a253a4aff8b884e26bba"
# Keys, trainable parameters, encoder parameters, neck parameters (specification 2.1).
SIZES = {
    "sam_vit_b": (314, 93_735_472, 89_670_912, 787_456),
    "sam_vit_l": (482, 312_342_832, 308_278_272, 852_992),
    "sam_vit_h": (594, 641_090_608, 637_026_048, 918_528),
}


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", WHOLE)
def test_layout_is_metas(name: str) -> None:
    with torch.device("meta"):
        sam = zoo.build(name)
    state = sam.state_dict()
    parts = {
        part: {key: value for key, value in state.items() if key.startswith(f"{part}.")}
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
    }
    assert fingerprint(parts["image_encoder"]) == ENCODER[name]
    assert fingerprint(parts["prompt_encoder"]) == PROMPT_ENCODER
    assert fingerprint(parts["mask_decoder"]) == MASK_DECODER
    assert fingerprint(state) == WHOLE[name]
    assert (len(state), count(sam), count(sam.image_encoder), count(sam.image_encoder.neck)) == SIZES[name]
    assert sum(value.numel() for value in state.values()) == SIZES[name][1] + 256  # the Fourier matrix is a buffer
    assert (len(parts["prompt_encoder"]), len(parts["mask_decoder"])) == (17, 120)
    assert count(sam.mask_decoder) == 4_058_340
    assert count(sam.prompt_encoder) == 6_220


@pytest.mark.parametrize("name", zoo.names())
def test_every_name_builds_with_the_same_prompt_side(name: str) -> None:
    with torch.device("meta"):
        sam = zoo.build(name)
        if lite := name.startswith("lite_sam"):  # half as wide in its decoder, and the same keys
            sam.mask_decoder = zoo.build(name, decoder_hidden=2048).mask_decoder
    state = sam.state_dict()
    assert fingerprint({k: v for k, v in state.items() if k.startswith("mask_decoder.")}) == MASK_DECODER
    assert fingerprint({k: v for k, v in state.items() if k.startswith("prompt_encoder.")}) == PROMPT_ENCODER
    assert zoo.spec(sam) == (name, {})
    assert sam.image_size == (int(name.rpartition("_")[2]) if lite else 1024)


def test_changes_reach_the_encoder_and_are_remembered_as_plain_data() -> None:
    sam = zoo.build("sam_vit_t", depth=2, global_blocks=[1], image_size=64)
    assert sam.image_encoder.config.global_blocks == (1,)
    assert len(sam.image_encoder.taps) == 2
    assert zoo.spec(sam) == ("sam_vit_t", {"depth": 2, "global_blocks": (1,), "image_size": 64})
    again = zoo.build(sam.name, **sam.changes)
    assert fingerprint(again.state_dict()) == fingerprint(sam.state_dict())


def test_wrong_words_are_corrected() -> None:
    with pytest.raises(UserError, match="did you mean 'sam_vit_h'"):
        zoo.build("sam_vith")
    with pytest.raises(UserError, match=r"no setting 'widht'.*did you mean 'width'"):
        zoo.build("sam_vit_t", widht=64)


def test_models_need_no_trainer() -> None:
    """`import frisket.models` (all of it) with lightning, wandb, deepspeed and flash-attn made unimportable."""
    script = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"lightning", "pytorch_lightning", "wandb", "deepspeed", "flash_attn", "omegaconf"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
import frisket.models, frisket.models.zoo, frisket.checkpoint, torch
sam = frisket.models.zoo.build("sam_vit_t", image_size=64, depth=1, global_blocks=(0,)).eval()
with torch.no_grad():
    print(tuple(sam.image_encoder(torch.zeros(1, 3, 64, 64)).shape))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 256, 4, 4)"


def test_a_plug_ins_encoder_is_a_row_and_lacks_nothing() -> None:
    plugins.load(["plugged"])
    assert zoo.names()[0] != "pyramid" and "pyramid" in zoo.names()
    sam = zoo.build("pyramid", width=4)
    assert zoo.record(sam) == {"name": "pyramid", "changes": {"width": 4}, "plugin": "plugged"}
    assert zoo.record(zoo.build("sam_vit_t", image_size=64, depth=1, global_blocks=[0])).keys() == {"name", "changes"}


def test_an_encoder_that_breaks_the_contract_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plugged.Pyramid, "macs")
    plugins.load(["plugged"])
    with pytest.raises(UserError, match="model 'pyramid' lacks macs: see"):
        zoo.build("pyramid")


def test_a_patch_side_is_no_setting() -> None:
    """Everything after the encoder counts in cells of 16 px."""
    with pytest.raises(UserError, match="no setting 'patch'"):
        zoo.build("sam_vit_t", patch=8)
