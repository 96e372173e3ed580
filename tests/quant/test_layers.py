"""Layers in place: folding changes nothing, float layers are the float model, active ones are on their grids."""

import pytest
import torch
from torch import Generator, nn

from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.models.zoo import build, names
from frisket.quant.layers import (
    QuantAttend,
    QuantConfig,
    QuantConv2d,
    QuantConvTranspose2d,
    QuantLinear,
    fold,
    learn,
    quantize,
)
from frisket.quant.search import asked, kinds_of
from frisket.sample import Batch


def test_folding_changes_no_answer(tiny: Sam, batches: list[Batch]) -> None:
    before = asked(tiny, batches[0], Generator().manual_seed(0))
    fold(tiny)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in tiny.modules())
    assert not any(p.requires_grad for p in tiny.parameters())  # a frozen model stays frozen
    after = asked(tiny, batches[0], Generator().manual_seed(0))
    torch.testing.assert_close(after.logits, before.logits, atol=1e-4, rtol=1e-4)


def test_a_gamma_of_0_cannot_be_folded(tiny: Sam) -> None:
    tiny.image_encoder.layers[0].blocks[0].conv3.bn.weight.data[3] = 0
    with pytest.raises(UserError, match=r"layers\.0\.blocks\.0\.conv3\.bn has 1 channels with gamma 0"):
        fold(tiny)


def test_what_becomes_what(tiny: Sam, batches: list[Batch]) -> None:
    fold(tiny)
    kinds = kinds_of(tiny, batches[0])
    gelus = {name for name, kind in kinds.items() if kind == "gelu"}
    assert gelus == {f"image_encoder.layers.{n}.blocks.0.mlp.fc2" for n in (1, 2, 3)}  # the decoder's MLP has ReLU
    before = asked(tiny, batches[0], Generator().manual_seed(0))
    keys = set(tiny.state_dict())
    layers = quantize(tiny, QuantConfig(), kinds)
    found = {kind: sum(isinstance(layer, kind) for layer in layers.values()) for kind in
             (QuantLinear, QuantConv2d, QuantConvTranspose2d, QuantAttend)}  # fmt: skip
    assert found[QuantConvTranspose2d] == 2 and found[QuantAttend] == 3 + 7
    assert not any(name.startswith(("prompt_encoder", "image_encoder.patch_embed")) for name in layers)
    assert "image_encoder.head" not in layers  # in the file, and nothing asks it
    assert not any("hypernetworks" in name or "iou_prediction" in name for name in layers)
    assert layers["image_encoder.layers.1.blocks.0.mlp.fc2"].input.kind == "gelu"
    assert layers["image_encoder.layers.1.blocks.0.mlp.fc1"].input.kind == "symmetric"
    assert layers["image_encoder.neck.2"].input.kind == "affine"
    assert keys <= set(tiny.state_dict())  # every float weight keeps its name
    after = asked(tiny, batches[0], Generator().manual_seed(0))
    assert torch.equal(before.logits, after.logits)  # none is active yet


def test_switches(tiny: Sam) -> None:
    fold(tiny)
    config = QuantConfig(parts=["mask_decoder"], skip=["*.attend", "*_proj"], attention=True, two_ranges=False)
    layers = quantize(tiny, config, {name: "gelu" for name, _ in tiny.named_modules()})
    assert layers and all(name.startswith("mask_decoder.") for name in layers)
    assert not any(isinstance(layer, QuantAttend) or name.endswith("_proj") for name, layer in layers.items())
    assert all(layer.input.kind == "symmetric" for layer in layers.values() if isinstance(layer, QuantLinear))
    assert quantize(tiny, QuantConfig(), {}) == {}
    with pytest.raises(UserError, match="a Sam has no 'decoder'"):
        quantize(tiny, QuantConfig(parts=["decoder"]), {})


def test_active_layers_compute_with_numbers_of_their_grid() -> None:
    for layer, x, kind in (
        (nn.Linear(6, 5), torch.randn(7, 6), QuantLinear),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.randn(2, 4, 5, 5), QuantConv2d),
        (nn.ConvTranspose2d(4, 3, 2, stride=2), torch.randn(2, 4, 5, 5), QuantConvTranspose2d),
    ):
        plain = layer(x)
        layer.__class__ = kind
        layer.begin(4, "symmetric", 4)
        layer.start(x)
        torch.testing.assert_close(layer(x), plain)
        layer.active = True
        weight = layer.quantized_weight()
        whole = weight / layer.weight_scale
        assert (whole - whole.round()).abs().max() < 1e-4 and whole.min() > -8.1 and whole.max() < 7.1
        assert layer.weight_scale.numel() == plain.shape[1] and not torch.equal(layer(x), plain)
        stored, layer.weight = layer.weight, nn.Parameter(weight)
        layer.active = False
        expected = layer(layer.input(x))
        layer.weight, layer.active = stored, True
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("bias", ["none", "table", "mask"])
def test_attentions_products(bias: str) -> None:
    q, k, v = torch.randn(3, 2, 5, 2, 8).unbind(0)
    added = {"none": None, "table": torch.randn(1, 2, 5, 5), "mask": torch.rand(2, 1, 1, 5) < 0.7}[bias]
    if bias == "mask":
        added[..., 0] = True
    layer = QuantAttend()
    layer.begin(8, True)
    layer.start(q, k, v)
    plain = layer(q, k, v, added)
    layer.active = True
    quantized = layer(q, k, v, added)
    assert 0 < (quantized - plain).abs().max() < 0.1
    scores = torch.einsum("bnhd,bmhd->bhnm", layer.q(q), layer.k(k)) / 8**0.5
    if added is not None:
        scores = scores.masked_fill(~added, float("-inf")) if bias == "mask" else scores + added
    expected = torch.einsum("bhnm,bmhd->bnhd", layer.p(scores.softmax(-1)), layer.v(v))
    torch.testing.assert_close(quantized, expected)


@pytest.mark.parametrize("name", names())
def test_every_encoder_of_the_zoo_takes_part(name: str) -> None:
    with torch.device("meta"):
        sam = build(name, image_size=64)
    fold(sam, values=False)
    layers = quantize(sam, QuantConfig(), {name: "symmetric" for name, _ in sam.named_modules()})
    plain = (nn.Linear, nn.Conv2d)
    left = [n for n, part in sam.image_encoder.named_modules() if type(part) in plain and "patch_embed" not in n]
    assert left == [] and any(name.startswith("image_encoder.") for name in layers)


def learned(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    layer.zero_grad()
    layer(x).sum().backward()
    assert layer.input.stretch.grad is not None
    return layer.input.stretch.grad.clone()


def test_learned_scales_begin_where_they_were_and_do_not_see_how_a_batch_is_divided() -> None:
    layer, x = nn.Conv2d(4, 6, 3), torch.randn(6, 4, 5, 5)
    layer.__class__ = QuantConv2d
    layer.begin(4, "affine", 4)
    layer.start(x)
    layer.active = True
    before = layer(x)
    learn([layer])
    assert torch.equal(layer(x), before)
    assert layer.weight_stretch.shape == (6,) and layer.input.stretch.shape == (1,)  # one axis: not decayed
    torch.testing.assert_close(learned(layer, x), learned(layer, x[:2]) + learned(layer, x[2:]))
    assert learned(layer, x[:0]) == 0  # a batch without a mask
    attend = QuantAttend()
    attend.begin(8, True)
    learn([attend])
    assert attend.q.stretch is not None and attend.p.stretch is None  # the split is not learned
    learn([layer], weights=False, inputs=False)
    assert set(dict(layer.named_parameters())) == {"weight", "bias", "weight_stretch", "input.stretch"}


def test_scales_stay_float32_when_the_module_does_not() -> None:
    layer = nn.Linear(3, 2)
    layer.__class__ = QuantLinear
    layer.begin(8, "symmetric", 8)
    scale = layer.weight_scale.clone()
    layer.half()
    assert layer.weight.dtype == torch.float16 and layer.input.scale.dtype == torch.float32
    assert torch.equal(layer.weight_scale, scale)
    assert layer.to("meta").weight_scale.device.type == "meta"


def test_in_training_attentions_scores_are_made_again() -> None:
    """With equal gradients, and without keeping what is as large as queries times keys."""
    layer, results = QuantAttend(), []
    layer.begin(6, True)
    start = torch.randn(3, 2, 40, 2, 8)
    layer.start(*start.unbind(0))
    learn([layer])
    layer.active = True
    for training in (True, False):
        leaf, kept = start.clone().requires_grad_(), []
        layer.train(training).zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            y = layer(*leaf.unbind(0))
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad, layer.q.stretch.grad.clone(), layer.v.stretch.grad.clone()))
        assert (max(kept) < 2 * 2 * 40 * 40 * 4) == training
    torch.testing.assert_close(*results)
