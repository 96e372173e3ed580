"""The graphs answer as torch does; a quantized one is made of integer products once onnxruntime has seen it."""

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from smallsam import LABELS, POINTS, image, quantized, small

from frisket.errors import UserError
from frisket.export import graph, packages
from frisket.export.graph import runnable, write_decoder, write_encoder
from frisket.export.session import Session, opened
from frisket.models.sam import Sam
from frisket.quant.layers import QuantAttend, QuantConv2d, QuantLinear
from frisket.quant.quantizers import GELU_LEAST
from frisket.sample import Prediction, Prompts


def answer(sam: Sam, embedding: torch.Tensor) -> Prediction:
    return sam.decode(embedding, torch.zeros(5, dtype=torch.long), Prompts(POINTS, LABELS), None)


def ran(path: Path) -> Counter[str]:
    """The operations that onnxruntime runs for a file."""
    optimized = path.with_suffix(".optimized.onnx")
    opened(path, optimized=optimized)
    return Counter(node.op_type for node in onnx.load(optimized).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_sam", "sam_vit_t", "lite_sam_640"])
def test_float_graphs_are_the_model(name: str, tmp_path: Path) -> None:
    sam = small(name)
    write_encoder(sam, tmp_path / "encoder.onnx", 64)
    embedding = sam.image_encoder(image())
    answered = opened(tmp_path / "encoder.onnx").run(None, {"image": image().numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answered), embedding, atol=1e-4, rtol=1e-4)
    if name != "tiny_sam":
        return  # one decoder for all
    write_decoder(sam, tmp_path / "decoder.onnx", 64)
    session = Session(tmp_path)
    logits, iou = session.decode(embedding, POINTS, LABELS)  # traced with 3 prompts of 2 points
    expected = answer(sam, embedding)
    assert logits.shape == (5, 4, 16, 16)
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected.iou, atol=1e-4, rtol=1e-4)
    written = onnx.load(tmp_path / "encoder.onnx")
    assert not any(node.metadata_props or node.doc_string for node in written.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 6])
def test_a_quantized_model_runs_in_integers_and_is_its_twin(bits: int, tmp_path: Path) -> None:
    sam = runnable(quantized(bits))
    embedding, linear = sam.image_encoder(image()), [n for n, m in sam.named_modules() if isinstance(m, QuantLinear)]
    keys = list(sam.state_dict())
    for part, write in (("encoder", write_encoder), ("decoder", write_decoder)):
        write(sam, tmp_path / f"{part}.onnx", 64)
        products = ran(tmp_path / f"{part}.onnx")
        assert products["QGemm"] + products["MatMulIntegerToFloat"] == sum(
            name.startswith({"encoder": "image_", "decoder": "mask_"}[part]) for name in linear
        )
        assert products["DequantizeLinear"] == 0  # every one became a part of a product
    assert list(sam.state_dict()) == keys and torch.equal(sam.image_encoder(image()), embedding)  # unchanged
    session = Session(tmp_path)
    cosine = torch.nn.functional.cosine_similarity(session.encode(image()), embedding, dim=1)
    assert cosine.min() > 0.999  # a value on the edge of two levels may fall to either side
    logits, iou = session.decode(embedding, POINTS, LABELS)
    expected = answer(sam, embedding)
    step = 2 ** (8 - bits)  # how wide a level is, and with it the mistake at an edge
    assert (logits - expected.logits).abs().mean() < 0.01 * step * expected.logits.abs().mean()
    assert (iou - expected.iou).abs().max() < 0.01 * step
    weights = {i.name: i for i in onnx.load(tmp_path / "encoder.onnx").graph.initializer}
    whole = sum(len(i.raw_data) for i in weights.values() if i.data_type == onnx.TensorProto.INT8)
    assert whole >= sum(m.weight.numel() for m in sam.image_encoder.modules() if isinstance(m, QuantLinear))


def test_what_is_runnable_says_what_onnxruntime_computes() -> None:
    sam, fresh = runnable(quantized()), quantized()
    for layer, before in zip(sam.modules(), fresh.modules()):
        if isinstance(layer, QuantLinear) and isinstance(before, QuantLinear):
            assert layer.active and layer.input.kind == "affine"
            if before.input.kind == "symmetric":
                x = torch.randn(50) * 40 * before.input.scale
                torch.testing.assert_close(layer.input(x), before.input(x))
            else:
                ends = layer.input(torch.tensor([-9.0, 1e9]))
                step = float(layer.input.scale)
                assert float(ends[0]) == pytest.approx(-GELU_LEAST, abs=step)
                assert float(ends[1]) == pytest.approx(127 * float(before.input.scale), abs=step)
        elif isinstance(layer, QuantConv2d | QuantAttend):
            assert not layer.active


def test_a_channel_of_next_to_no_weight_keeps_its_bias() -> None:
    layer = next(m for m in runnable(quantized()).modules() if isinstance(m, QuantLinear))
    layer.weight.data[2] = 1e-12
    layer.weight_scale = layer.widest()
    layer.bias.data[2] = 0.7
    layer.__class__ = graph._Linear
    layer.begin_graph()
    assert float(layer.whole_bias[2] * layer.bias_scale[2]) == pytest.approx(0.7, rel=1e-4)


def test_without_the_packages_and_with_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder.onnx").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"encoder\.onnx cannot be opened by onnxruntime"):
        opened(tmp_path / "encoder.onnx")
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, which is not installed: pip install 'frisket\[onnx\]'"):
        write_encoder(small(), tmp_path / "encoder.onnx", 64)
    with pytest.raises(UserError, match="needs onnxruntime"):
        opened(tmp_path / "encoder.onnx")
