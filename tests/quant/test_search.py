"""The search: a true Fisher weight, an error that never rises, per-channel choices, and accuracy kept."""

import dataclasses

import pytest
import torch
from torch import Generator

from frisket.losses import logits_iou
from frisket.models.sam import Sam
from frisket.quant.layers import Layer, QuantAttend, QuantConfig, QuantLinear, fold, quantize
from frisket.quant.search import Captured, SearchConfig, asked, capture, kinds_of, questions, search, surprise
from frisket.sample import BOTTOM_RIGHT, FOREGROUND, IGNORED, TOP_LEFT, Batch, Prediction

QUICK = SearchConfig(candidates=12, rounds=1, rows=64)


def prepared(sam: Sam, batch: Batch, **changes: int) -> dict[str, Layer]:
    fold(sam)
    return quantize(sam, QuantConfig(**changes), kinds_of(sam, batch))  # type: ignore[arg-type]


def test_half_the_objects_are_asked_by_box(batches: list[Batch]) -> None:
    prompts = questions(batches[0], Generator().manual_seed(0))
    assert prompts.labels is not None
    rows = prompts.labels.tolist()
    assert rows[::2] == [[TOP_LEFT, BOTTOM_RIGHT]] * len(rows[::2])
    assert rows[1::2] == [[FOREGROUND, IGNORED]] * len(rows[1::2])


def test_the_gradient_is_fishers_and_not_zero() -> None:
    """For a coin of chance p the Fisher information of its logit is p (1 - p): the mean square over many draws. The
    gradient of KL(model || itself), as the public calibrator takes it, would be 0."""
    logits = torch.tensor([-2.0, 0.0, 1.5])
    total = torch.zeros(3)
    generator = Generator().manual_seed(0)
    for _ in range(4000):
        leaf = logits.clone().requires_grad_()
        surprise(Prediction(leaf[None, None, None], torch.full((1, 1), 0.5)), generator).backward()
        assert leaf.grad is not None
        total += leaf.grad.square()
    chance = logits.sigmoid()
    torch.testing.assert_close(total / 4000, chance * (1 - chance), atol=0.02, rtol=0)


def test_the_search_is_the_papers_by_default() -> None:
    config = SearchConfig()
    assert (config.candidates, config.rounds, config.metric) == (100, 3, "fisher")
    assert (config.low, config.high) == (0.01, 1.2)


def test_padding_weighs_nothing() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    valid = torch.zeros(2, 4, 4, dtype=torch.bool)
    valid[:, :3] = True
    surprise(Prediction(logits, torch.full((2, 3), 0.5)), Generator().manual_seed(0), valid).backward()
    assert logits.grad is not None and (logits.grad[:, :, 3] == 0).all() and (logits.grad[:, :, :3] != 0).all()


def test_every_layer_is_shown_a_share_of_rows_with_true_gradients(tiny: Sam, batches: list[Batch]) -> None:
    layers = prepared(tiny, batches[0])
    captured = capture(tiny, layers, batches, QUICK)
    assert captured.keys() == layers.keys()
    unheard = [name for name, parts in captured.items() if not any(float(part.weight.sum()) > 1e-12 for part in parts)]
    assert unheard == []
    for name, parts in captured.items():
        assert len(parts) == len(batches)
        for part in parts:
            if isinstance(layers[name], QuantLinear):
                assert part.output.ndim == 2 and len(part.output) <= 64
            torch.testing.assert_close(layers[name](*part.inputs), part.output, atol=1e-4, rtol=1e-4)
    alone = capture(tiny, {name: layers[name] for name in list(layers)[5:6]}, batches, QUICK)
    for name, parts in alone.items():  # which others are asked changes nothing
        assert all(torch.equal(a.output, b.output) for a, b in zip(parts, captured[name]))
        torch.testing.assert_close(parts[0].weight, captured[name][0].weight)


def test_plain_error_is_the_ablation(tiny: Sam, batches: list[Batch]) -> None:
    layers = prepared(tiny, batches[0])
    name = "mask_decoder.output_upscaling.0"
    part = capture(tiny, {name: layers[name]}, batches[:1], SearchConfig(metric="mse"))[name][0]
    assert (part.weight == 1).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_no_layers_error_rises(tiny: Sam, batches: list[Batch], bits: int) -> None:
    layers = prepared(tiny, batches[0], weight_bits=bits, activation_bits=bits)
    captured = capture(tiny, layers, batches[:1], QUICK)
    falls = 0
    for name, layer in layers.items():
        report = search(layer, captured[name], QUICK)
        assert report["after"] <= report["before"], name
        falls += report["after"] < 0.95 * report["before"]
        assert isinstance(layer, QuantAttend) or (layer.weight_scale > 0).all()
    assert falls > len(layers) / 3


def test_the_found_scale_is_the_best_of_all_candidates() -> None:
    """By trying each, for one channel of a linear layer whose input has an outlier."""
    torch.manual_seed(0)
    layer: QuantLinear = torch.nn.Linear(16, 3)  # type: ignore[assignment]
    layer.__class__ = QuantLinear
    layer.begin(4, "symmetric", 8)
    layer.weight.data[0, 0] = 4.0
    x = torch.randn(200, 16)
    part = Captured((x,), torch.nn.functional.linear(x, layer.weight, layer.bias).detach(), torch.rand(200, 3))
    config = SearchConfig(rounds=1, candidates=100)
    widest = layer.widest()
    layer.start(x)

    def error(factor: float) -> float:
        layer.weight_scale = widest.clone()
        layer.weight_scale[0] = widest[0] * factor
        layer.active = True
        return float(((layer(x) - part.output)[:, 0].square() * part.weight[:, 0]).sum())

    factors = [1.0, *(0.01 + 1.19 * j / 100 for j in range(100))]
    best = min(error(factor) for factor in factors)
    layer.active = False
    search(layer, [part], config)
    chosen = float(layer.weight_scale[0] / widest[0])
    layer.input.start(x)
    assert min(abs(chosen - factor) for factor in factors) < 1e-5
    assert error(chosen) == pytest.approx(best, rel=1e-6)


def test_rounds_end_when_one_finds_nothing_better(tiny: Sam, batches: list[Batch], monkeypatch) -> None:
    """And more of them would find the same scales."""
    layers = prepared(tiny, batches[0])
    name = "mask_decoder.transformer.layers.0.mlp.lin1"
    part = capture(tiny, {name: layers[name]}, batches[:1], QUICK)[name]
    asked: list[int] = []
    plain = type(layers[name]).forward
    monkeypatch.setattr(type(layers[name]), "forward", lambda self, x: asked.append(1) or plain(self, x))
    calls, scales = [], []
    for rounds in (1, 10, 1000):
        asked.clear()
        search(layers[name], part, dataclasses.replace(QUICK, rounds=rounds))
        calls.append(len(asked))
        scales.append(layers[name].weight_scale.clone())
    assert calls[0] < calls[1] == calls[2]
    assert torch.equal(scales[1], scales[2])


def test_eight_bits_keep_the_masks(tiny: Sam, batches: list[Batch]) -> None:
    layers = prepared(tiny, batches[0])
    captured = capture(tiny, layers, batches[:2], QUICK)
    before = asked(tiny, batches[2], Generator().manual_seed(1))
    for name, layer in layers.items():
        search(layer, captured[name], QUICK)
    after = asked(tiny, batches[2], Generator().manual_seed(1))
    assert all(layer.active for layer in layers.values())
    assert not torch.equal(before.logits, after.logits)
    assert logits_iou(after.logits, before.logits > 0).mean() > 0.9
