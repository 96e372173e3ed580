"""The contract of image encoders, put to every row of the zoo: shapes and counts without memory, values for small ones.

Run     `pytest tests/models/test_encoder.py`; a new encoder is tested as soon as it has a row.
"""

import copy
import re
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from plainvit import relative_attention_reference
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from frisket import plugins
from frisket.models import vit, zoo
from frisket.models.blocks import drop_paths, residual_blocks
from frisket.models.encoder import MEMBERS, STRIDE, layer_rates, undecayed
from frisket.models.recompute import recompute

ROWS = [*zoo.names(), "pyramid"]  # ours, and one from outside: the plug-in tests/plugged.py
LARGE = 50e6  # parameters: above, only shapes are tested (each has a smaller sister of the same class)


@pytest.fixture(autouse=True)
def plugged() -> None:
    plugins.load(["plugged"])


@pytest.fixture(params=ROWS)
def encoder(request: pytest.FixtureRequest) -> Any:
    """The encoder of a row as published, but for a native side of 128 px, without memory."""
    row = zoo.entry(request.param)
    with torch.device("meta"):
        return row.encoder(replace(row.config, image_size=128))


@pytest.fixture(params=ROWS)
def small(request: pytest.FixtureRequest) -> Any:
    """The same with weights."""
    row = zoo.entry(request.param)
    with torch.device("meta"):
        size = sum(p.numel() for p in row.encoder(row.config).parameters())
    if size > LARGE:
        pytest.skip(f"{size / 1e6:.0f} M parameters: the shapes are tested, and the values of a smaller one")
    torch.manual_seed(0)
    return row.encoder(replace(row.config, image_size=128)).eval()


def test_it_has_every_member(encoder: Any) -> None:
    assert isinstance(encoder, nn.Module)
    assert [member for member in MEMBERS if not hasattr(encoder, member)] == []
    assert is_dataclass(encoder.config) and encoder.config.image_size == 128 and encoder.channels == 256
    assert isinstance(encoder.taps, tuple) and all(tap.width > 0 and tap.stride > 0 for tap in encoder.taps)


def test_its_config_is_plain_and_frozen(encoder: Any, tmp_path: Path) -> None:
    content = {key: zoo.plain(value) for key, value in asdict(encoder.config).items()}
    torch.save(content, tmp_path / "config.pt")
    assert torch.load(tmp_path / "config.pt", weights_only=True) == content
    assert type(encoder.config)(**content) == encoder.config
    with pytest.raises(AttributeError):
        encoder.config.image_size = 64


@pytest.mark.parametrize("size", [(128, 128), (80, 112)])
def test_any_multiple_of_16_gives_the_embedding_and_the_taps_it_declares(encoder: Any, size: tuple[int, int]) -> None:
    x = torch.empty(2, 3, *size, device="meta")
    grid = (size[0] // STRIDE, size[1] // STRIDE)
    assert encoder(x).shape == (2, encoder.channels, *grid)
    order = list(range(len(encoder.taps)))[::-1]
    embedding, features = encoder.forward_features(x, order)
    assert embedding.shape == (2, encoder.channels, *grid)
    for number, feature in zip(order, features, strict=True):
        tap = encoder.taps[number]
        assert feature.shape == (2, size[0] // tap.stride, size[1] // tap.stride, tap.width)
    assert encoder.forward_features(x, ())[1] == []
    for wrong in (len(encoder.taps), -1):
        with pytest.raises(ValueError, match="taps"):
            encoder.forward_features(x, [wrong])


def test_only_matrices_decay(encoder: Any) -> None:
    """By kind of module, not by name: the weights of linear layers and convolutions, and nothing else."""
    plain = undecayed(encoder)
    decayed = {name for name, p in encoder.named_parameters() if p.ndim > 1 and name not in plain}
    layers = {name for name, m in encoder.named_modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)}
    assert decayed == {f"{name}.weight" for name in layers}
    for where, part in encoder.named_modules():
        for name in getattr(part, "no_decay", ()):
            assert hasattr(part, name), f"{where} has no {name}"


def test_what_may_differ_changes_no_layout(encoder: Any) -> None:
    assert set(encoder.may_differ) <= {field.name for field in fields(encoder.config)} - {"image_size"}


def test_rates_fall_layer_by_layer_from_the_end_to_the_input(encoder: Any) -> None:
    if not hasattr(encoder, "layer_names"):
        with pytest.raises(LookupError):
            layer_rates(encoder, 0.5)
        return
    names = {name for name, _ in encoder.named_parameters()}
    rates = layer_rates(encoder, 0.5)
    blocks, layers = residual_blocks(encoder), encoder.layer_names
    assert len(blocks) == len(layers) - 1 > 1  # the first layer embeds
    where = {part: name for name, part in encoder.named_modules()}
    assert [layer[0] for layer in layers[1:]] == [where[block] for block in blocks]
    assert list(rates.values()) == sorted(rates.values())
    assert rates[layers[0][0]] == 0.5 ** len(layers) and rates[layers[-1][0]] == 0.5
    owners = {name: [start for start in rates if f"{name}.".startswith(f"{start}.")] for name in names}
    assert all(len(starts) < 2 for starts in owners.values())
    left = {name.split(".")[0] for name, starts in owners.items() if not starts}
    assert left <= {"neck", "norm_head", "head"}
    parts, asked = dict(encoder.named_modules()), []
    for start, rate in rates.items():
        if start in parts:
            parts[start].register_forward_hook(lambda *_, rate=rate: asked.append(rate))
    encoder(torch.empty(1, 3, 32, 32, device="meta"))
    assert asked == sorted(asked)  # what stands between two stages, too, has a rate of its place


def test_images_lose_branches_while_training_and_never_else(small: Any) -> None:
    x = torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    if not residual_blocks(small):
        assert drop_paths(small, 0.5) == 0
        return
    for norm in small.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # where a branch begins as nothing, its loss shows nothing
    with torch.no_grad():
        whole = small(x)
        count = drop_paths(small, 0.9)
        rates = [block.drop_path.rate for block in residual_blocks(small)]
        assert rates == pytest.approx([0.9 * i / (count - 1) for i in range(count)])
        assert torch.equal(small(x), whole)
        for block in residual_blocks(small):  # the blocks alone: BatchNorm would tell the images of each other
            block.drop_path.train()
        torch.manual_seed(1)
        first = small(x)
        torch.manual_seed(1)
        assert torch.equal(small(x), first)
        drop_paths(small, 0.0)
        assert torch.equal(small(x), whole)
    assert len({tuple(image.flatten().tolist()) for image in first}) > 8


def test_recomputed_blocks_give_the_same_gradients_and_count_a_batch_once(small: Any) -> None:
    x = torch.randn(2, 3, 32, 32)
    drop_paths(small, 0.5)
    other = copy.deepcopy(small)
    recompute(other)
    results = []
    for encoder in (small, other):
        torch.manual_seed(2)
        encoder.train()(x).square().mean().backward()
        results.append((dict(encoder.named_parameters()), encoder.state_dict()))
    (mine, kept), (theirs, again) = results
    for name, parameter in mine.items():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, theirs[name].grad), name
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize("side", [64, 192])
def test_declared_macs_are_those_counted(encoder: Any, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # our kernel folds SAM's relative positions into longer products, which no paper counts
    monkeypatch.setattr(vit, "relative_attention", relative_attention_reference)
    with FlopCounterMode(display=False) as counter:
        encoder(torch.empty(1, 3, side, side, device="meta"))
    assert encoder.macs(side) == counter.get_total_flops() // 2


@pytest.mark.parametrize("name", zoo.names())
def test_published_numbers_are_the_declared_ones(name: str) -> None:
    row = zoo.entry(name)
    with torch.device("meta"):
        encoder: Any = row.encoder(row.config)
    for gmac, side in re.findall(r"(\d+) GMAC at (\d+) px", row.paper):
        assert round(encoder.macs(int(side)) / 1e9) == int(gmac)
    for millions in re.findall(r"([\d.]+) M parameters", row.paper):
        assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == float(millions)


def test_images_of_a_batch_do_not_hear_each_other_and_all_is_finite(small: Any) -> None:
    x = torch.randn(3, 3, 128, 128)
    changed = x.clone()
    changed[1] += 1
    with torch.no_grad():
        before, after = small(x), small(changed)
    assert before.isfinite().all() and torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.equal(before[1], after[1])


def test_taps_do_not_change_the_embedding(small: Any) -> None:
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        embedding, features = small.forward_features(x, range(len(small.taps)))
        assert torch.equal(embedding, small(x))
    assert all(feature.isfinite().all() for feature in features)


def test_what_may_differ_changes_no_result(small: Any) -> None:
    x = torch.randn(1, 3, 64, 64)
    for name in small.may_differ:
        for choice in ("sdpa", "plain") if name == "backend" else ():
            other = type(small)(replace(small.config, **{name: choice})).eval()
            other.load_state_dict(small.state_dict())
            with torch.no_grad():
                torch.testing.assert_close(other(x), small(x), atol=1e-5, rtol=0)
