"""The Lightening encoder: its counts, its names, who hears whom, and that no token is left out.

Run     `pytest tests/models/test_lightening.py`; the test marked gpu needs CUDA.
"""

import pytest
import torch
import torch.nn.functional as F

from frisket.errors import UserError
from frisket.kernels import dilated
from frisket.models.encoder import Tap
from frisket.models.lightening import LighteningConfig, LighteningEncoder

TINY = dict(image_size=128, width=32, depth=2, heads=2, segment=32, dilation=2, out_channels=16)


def build(**changes):
    torch.manual_seed(0)
    return LighteningEncoder(LighteningConfig(**{**TINY, **changes})).eval()


def test_default_counts_are_those_of_the_docstring():
    config = LighteningConfig()
    with torch.device("meta"):
        encoder = LighteningEncoder(config)
    assert sum(p.numel() for p in encoder.parameters()) == 13_204_096
    assert encoder.macs(1024) == 52_344_913_920
    with torch.device("meta"):
        dense = LighteningEncoder(LighteningConfig(segment=0, dilation=1))
    # design/performance.md: dense attention costs 77.3 G in its six global blocks, ours 4.83 G.
    assert dense.macs(1024) - encoder.macs(1024) == 6 * 2 * 4096 * 384 * (4096 - 256)
    assert (encoder.taps, encoder.config) == ((Tap(384, 16),) * 6, config)


@pytest.mark.parametrize(
    "changes",
    [{}, {"offsets": "longnet"}, {"segment": 25, "window": "2d"}, {"segment": 10, "dilation": 3}, {"segment": 0}],
)
def test_macs_are_those_of_the_operations_run(changes, monkeypatch):
    """Counted from the calls themselves: every linear layer, convolution and attention of a forward pass."""
    encoder, total = build(**changes), 0
    real = dilated.attention

    def counting(q, k, v, **kwargs):
        nonlocal total
        total += 2 * q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1] * q.shape[3]
        return real(q, k, v, **kwargs)

    def hook(module, inputs, output):
        nonlocal total
        if isinstance(module, torch.nn.Linear):
            total += inputs[0].numel() * module.out_features
        elif isinstance(module, torch.nn.Conv2d):
            total += output.numel() * module.weight[0].numel()

    monkeypatch.setattr(dilated, "attention", counting)
    for module in encoder.modules():
        module.register_forward_hook(hook)
    encoder(torch.randn(1, 3, 128, 128))
    assert total == encoder.macs(128)


def test_names_are_sams_where_the_part_is_sams():
    names = set(build().state_dict())
    for name in (
        "pos_embed",
        "patch_embed.proj.weight",
        "blocks.1.norm1.weight",
        "blocks.1.attn.proj.bias",
        "blocks.0.norm2.bias",
        "blocks.0.mlp.lin1.weight",
        "blocks.0.mlp.lin2.bias",
        "neck.0.weight",
        "neck.1.weight",
        "neck.2.weight",
        "neck.3.bias",
    ):
        assert name in names
    assert {n.split("attn.")[1] for n in names if "attn." in n} == {
        f"{part}.{kind}" for part in ("q", "k", "v", "proj") for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("size", [(128, 128), (64, 64), (80, 112), (160, 48)])
def test_any_multiple_of_the_patch_is_taken(size):
    encoder = build()
    out, blocks = encoder.forward_features(torch.randn(2, 3, *size), [1, 0])
    grid = (size[0] // 16, size[1] // 16)
    assert out.shape == (2, 16, *grid)
    assert [tuple(b.shape) for b in blocks] == [(2, *grid, 32)] * 2
    assert all(b.is_contiguous() for b in blocks)
    assert torch.isfinite(out).all()


def test_sizes_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        build()(torch.randn(1, 3, 100, 128))


def test_taps_come_in_the_order_asked_and_unknown_ones_are_refused():
    encoder, x = build(), torch.randn(1, 3, 128, 128)
    out, (last, first) = encoder.forward_features(x, (1, 0))
    assert torch.equal(out, encoder(x))
    assert torch.equal(encoder.blocks[1](first, encoder.config.layout(1, (8, 8))), last)
    with pytest.raises(ValueError, match="taps"):
        encoder.forward_features(x, (2,))


def attention_outputs(encoder, x):
    """What each block's attention adds, (B, h, w, C)."""
    outputs = []
    hooks = [b.attn.register_forward_hook(lambda m, i, o: outputs.append(o)) for b in encoder.blocks]
    encoder(x)
    for hook in hooks:
        hook.remove()
    return outputs


@pytest.mark.parametrize("size", [(128, 128), (80, 112)])
def test_no_token_gets_the_projection_bias_only(size):
    """Half of the tokens did in the released code."""
    encoder = build(depth=4)
    for block in encoder.blocks:
        torch.nn.init.normal_(block.attn.proj.bias)
    for block, out in zip(encoder.blocks, attention_outputs(encoder, torch.randn(2, 3, *size))):
        assert ((out - block.attn.proj.bias).abs().amax(-1) > 1e-5).all()


def test_images_of_a_batch_do_not_hear_each_other():
    encoder, x = build(), torch.randn(3, 3, 128, 128)
    changed = x.clone()
    changed[1] += torch.randn(3, 128, 128)
    before, after = encoder(x), encoder(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert not torch.allclose(before[1], after[1])
    torch.testing.assert_close(encoder(x[2:]), before[2:], atol=1e-5, rtol=0)  # other GEMM shapes, other sums


@pytest.mark.parametrize("alternate", [True, False])
def test_alternating_order_lets_every_token_hear_every_other(alternate):
    """8 x 8 tokens, segments of 32, interval 2. By rows only, odd and even columns stay apart before the neck."""
    encoder = build(depth=4, alternate=alternate).double()
    for block in encoder.blocks:  # large weights, so that what is heard thrice removed is still far above rounding
        for layer in (block.attn.v, block.attn.proj):
            torch.nn.init.normal_(layer.weight, std=0.5)
    x = torch.randn(1, 3, 128, 128, dtype=torch.float64)
    changed = x.clone()
    changed[:, :, :16, :16] += 1.0
    heard = [
        (a - b).abs().amax(dim=(0, 3)) > 1e-12
        for a, b in zip(encoder.forward_features(x, range(4))[1], encoder.forward_features(changed, range(4))[1])
    ]
    assert heard[0][:4, ::2].all() and not heard[0][4:].any() and not heard[0][:, 1::2].any()
    if alternate:
        assert heard[3].all()
    else:
        assert not heard[3][:, 1::2].any() and not heard[3][4:].any()


@pytest.mark.parametrize(("segment", "heard"), [((4, 4, 4, 4), 4), ((4, 0, 4, 0), 64)])
def test_squares_alone_never_mix_however_many_blocks(segment, heard):
    """The study's arms: of 8 x 8 tokens a square of 2 x 2, one sixteenth, hears only itself; global blocks mend it."""
    encoder = build(depth=4, segment=segment, dilation=1, window="2d")
    x = torch.rand(1, 8, 8, 32, requires_grad=True)
    y = x
    for number, block in enumerate(encoder.blocks):
        y = block(y, encoder.config.layout(number, (8, 8)))
    (gradient,) = torch.autograd.grad(y[0, 3, 3].sum(), x)
    assert int((gradient[0].abs().amax(-1) > 0).sum()) == heard


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("changes", [{}, {"segment": 20}, {"window": "2d", "segment": 9}, {"offsets": "longnet"}])
def test_attention_module_equals_the_oracle(block, changes):
    encoder = build(**changes)
    attn, x = encoder.blocks[block].attn, torch.randn(2, 8, 8, 32)
    layout = encoder.config.layout(block, (8, 8))
    q, k, v = (F.linear(x, m.weight, m.bias).reshape(2, 64, 2, 16) for m in (attn.q, attn.k, attn.v))
    assert layout.order == ("column" if block else "row")
    expected = dilated.dense_reference(q, k, v, layout, offsets=encoder.config.offsets)
    torch.testing.assert_close(attn(x, layout), attn.proj(expected.reshape(2, 8, 8, 32)), atol=1e-5, rtol=0)


def test_attention_reads_the_projections_in_place(monkeypatch):
    """In row order nothing is copied between the projections and the kernel, nor between the kernel and the output."""
    encoder, ours, given = build(), [], []
    real = dilated.attention

    def spy(*tensors, **kwargs):
        given.extend(t.untyped_storage().data_ptr() for t in tensors)
        return real(*tensors, **kwargs)

    monkeypatch.setattr(dilated, "attention", spy)
    attn = encoder.blocks[0].attn
    for layer in (attn.q, attn.k, attn.v):
        layer.register_forward_hook(lambda m, i, o: ours.append(o))  # kept alive, so that addresses stay theirs
    x = torch.randn(2, 8, 8, 32)
    inputs = []
    attn.q.register_forward_hook(lambda m, i, o: inputs.append(i[0]))
    attn(x, encoder.config.layout(0, (8, 8)))
    assert given == [o.untyped_storage().data_ptr() for o in ours]
    assert inputs[0].data_ptr() == x.data_ptr()


def test_every_parameter_gets_a_finite_gradient_with_padding():
    encoder = build(segment=20, dilation=3, depth=2)
    encoder(torch.randn(2, 3, 80, 112)).square().mean().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        if not name.endswith("attn.k.bias"):  # a shift of all keys changes no softmax: its true gradient is 0
            assert parameter.grad.abs().max() > 0, name


def test_per_block_settings_and_json_types():
    config = LighteningConfig(depth=3, segment=[1024, 256, 0], dilation=[4, 2, 1], alternate=True)
    assert config.segment == (1024, 256, 0) and config.dilation == (4, 2, 1)
    layouts = [config.layout(block, (64, 64)) for block in range(3)]
    assert [(a.segment, a.dilation, a.order) for a in layouts] == [
        (1024, 4, "row"),
        (256, 2, "column"),
        (None, 1, "row"),
    ]
    assert LighteningConfig(segment=64, dilation=2).segment == (64,)


@pytest.mark.parametrize(
    "changes, word",
    [
        (dict(heads=5), "multiple"),
        (dict(image_size=1000), "multiple"),
        (dict(segment=(1, 2)), "entries"),
        (dict(dilation=0), "at least 1"),
        (dict(offsets="none"), "offsets"),
        (dict(window="3d"), "window"),
        (dict(window="2d", segment=1000), "square"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(changes, word):
    with pytest.raises(UserError, match=word):
        LighteningConfig(**changes)


def test_compiles_to_one_graph():
    encoder = build()
    x = torch.randn(1, 3, 128, 128)
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), encoder(x))


def test_bf16_autocast_stays_near_fp32():
    encoder, x = build(depth=4), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        full = encoder(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = encoder(x)
    assert F.cosine_similarity(full.flatten(), half.float().flatten(), dim=0) > 0.999


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_bf16_is_near_cpu_fp32():
    torch.manual_seed(0)
    encoder, x = LighteningEncoder().eval(), torch.randn(1, 3, 1024, 1024)
    with torch.inference_mode():
        expected = encoder(x)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            ours = encoder.cuda()(x.cuda())
    assert F.cosine_similarity(expected.flatten(), ours.float().cpu().flatten(), dim=0) > 0.999
