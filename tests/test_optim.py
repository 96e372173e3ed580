"""Which parameters are decayed, and the learning rate step by step."""

import math
from collections.abc import Iterable

import pytest
import torch
from torch import nn

from frisket.models.encoder import undecayed
from frisket.models.sam import Sam
from frisket.models.zoo import build as build_sam
from frisket.optim import OptimConfig, adamw, ratio


def decayed(parameters: Iterable[tuple[str, nn.Parameter]], plain: set[str]) -> dict[str, bool]:
    """{name: whether the optimizer shrinks it}."""
    named = dict(parameters)
    optimizer, _ = adamw(named.items(), OptimConfig(weight_decay=0.1), steps=10, plain=plain)
    shrunk = {id(p): group["weight_decay"] == 0.1 for group in optimizer.param_groups for p in group["params"]}
    return {name: shrunk[id(p)] for name, p in named.items() if id(p) in shrunk}


@pytest.mark.parametrize("kind", ["vit", "lightening"])
def test_matrices_decay_and_nothing_else(tiny_sam: Sam, kind: str) -> None:
    sam = tiny_sam if kind == "vit" else build_sam("lightening", image_size=64, width=48, depth=2, heads=2)
    decay = decayed(sam.named_parameters(), undecayed(sam))
    assert len(decay) == len(list(sam.parameters()))
    # by kind of module, not by name: weights of linear and convolution layers, and only those
    expected = {
        f"{where}.weight"
        for where, module in sam.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    }
    assert {name for name, on in decay.items() if on} == expected
    assert decay["image_encoder.patch_embed.proj.weight"] and not decay["image_encoder.pos_embed"]
    assert not decay["mask_decoder.mask_tokens.weight"] and not decay["prompt_encoder.point_embeddings.0.weight"]


def test_frozen_parameters_are_left_out(tiny_sam: Sam) -> None:
    tiny_sam.image_encoder.requires_grad_(False)
    names = decayed(tiny_sam.named_parameters(), set())
    assert names and not any(name.startswith("image_encoder") for name in names)


def test_rates_go_to_whole_names() -> None:
    layers = nn.ModuleDict({"a": nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(11)), "b": nn.Linear(1, 1)})
    optimizer, _ = adamw(layers.named_parameters(), OptimConfig(lr=1.0), steps=10, rates={"a.1": 0.5, "b.bias": 0.25})
    names = {id(parameter): name for name, parameter in layers.named_parameters()}
    slower = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"] if g["lr"] != 1}
    assert slower == {"a.1.weight": 0.5, "b.bias": 0.25}


def test_adamw_gets_the_settings() -> None:
    config = OptimConfig(lr=3e-4, betas=(0.8, 0.9), weight_decay=0.2)
    layer = nn.Linear(3, 2)
    optimizer, _ = adamw(layer.named_parameters(), config, steps=10)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["weight_decay"], g["betas"], g["initial_lr"]) for g in optimizer.param_groups] == [
        (0.2, (0.8, 0.9), 3e-4),
        (0.0, (0.8, 0.9), 3e-4),
    ]


def test_warm_up_then_cosine() -> None:
    config = OptimConfig(warmup_steps=4, min_ratio=0.1)
    values = [ratio(step, config, steps=12) for step in range(13)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0]  # the first step already learns, the last of the warm-up is at the peak
    for step in range(4, 13):
        assert values[step] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * (step - 4) / 8)) / 2)
    assert values[8] == pytest.approx(0.55) and values[12] == pytest.approx(0.1)
    assert ratio(50, config, steps=12) == pytest.approx(0.1)  # past the end it stays low


def test_constant_and_degenerate_lengths() -> None:
    assert [ratio(s, OptimConfig(schedule="constant", warmup_steps=2), steps=9) for s in (0, 1, 2, 8)] == [0.5, 1, 1, 1]
    assert ratio(0, OptimConfig(), steps=0) == 1.0
    assert ratio(3, OptimConfig(warmup_steps=4), steps=2) == 1.0


def test_the_scheduler_follows_the_ratio() -> None:
    config = OptimConfig(lr=2.0, warmup_steps=2, min_ratio=0.5)
    layer = nn.Linear(1, 1)
    optimizer, schedule = adamw(layer.named_parameters(), config, steps=6)
    seen = []
    for _ in range(6):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([2.0 * ratio(step, config, steps=6) for step in range(6)])


def test_steps_down_at_shares_of_the_run_and_at_steps() -> None:
    config = OptimConfig(schedule="step", warmup_steps=2)
    shares = [ratio(step, config, steps=90_000) for step in (0, 1, 2, 59_999, 60_000, 86_665, 86_666, 89_999)]
    assert shares == pytest.approx([0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])  # SAM, appendix A
    config = OptimConfig(schedule="step", step_at=[0.5, 7], step_factor=2)
    assert [ratio(step, config, steps=10) for step in (4, 5, 6, 7)] == [1, 0.5, 0.5, 0.25]


def test_wsd_is_constant_and_then_falls_in_a_line() -> None:
    config = OptimConfig(schedule="wsd", warmup_steps=10, decay_share=0.25, min_ratio=0.02)
    shares = [ratio(step, config, steps=100) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10:76] == [1.0] * 66
    assert shares[76:] == pytest.approx([max(0.02, (100 - step) / 25) for step in range(76, 100)])
