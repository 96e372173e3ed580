"""Dilated attention against its dense oracle, and the faults of the released code as tests.

Run     `pytest tests/kernels/test_dilated.py`; the tests marked gpu need CUDA.
"""

import random

import pytest
import torch

from frisket.kernels import dilated
from frisket.kernels.attention import _flash
from frisket.kernels.dilated import Layout, attend


def dilated_attention(q, k, v, *, grid, segment, dilation, order="row", window="1d", **how):
    return dilated.dilated_attention(q, k, v, Layout(grid, segment, dilation, order, window), **how)


def dense_reference(q, k, v, *, grid, segment, dilation, order="row", window="1d", backend=None, **how):
    return dilated.dense_reference(q, k, v, Layout(grid, segment, dilation, order, window), **how)


def cases(count, seed):
    """Random settings: every word, odd sizes, segments that do not divide, dilations that do not divide either."""
    rng = random.Random(seed)
    for number in range(count):
        grid = (rng.randint(1, 9), rng.randint(1, 9))
        window = rng.choice(["1d", "2d"])
        segment = rng.choice([1, 4, 9, 16]) if window == "2d" else rng.choice([1, 3, 4, 7, 12, 16, 30, 100])
        yield pytest.param(
            dict(
                grid=grid,
                segment=rng.choice([None, segment, segment, segment]),
                dilation=rng.choice([1, 2, 2, 3, 4, 5]),
                offsets=rng.choice(["all", "all", "longnet"]),
                order=rng.choice(["row", "column"]),
                window=window,
                scale=rng.choice([None, 0.9]),
                backend=rng.choice(["plain", "sdpa"]),
            ),
            rng.choice([1, 2, 3]),
            rng.choice([1, 2, 3, 4, 6]),
            id=str(number),
        )


def qkv(b, grid, heads, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(b, grid[0] * grid[1], heads, width, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("setting, b, heads", cases(120, seed=7))
def test_equals_the_dense_oracle_forward_and_gradient(setting, b, heads):
    results = []
    for function in (dilated_attention, dense_reference):
        leaves = [t.requires_grad_() for t in qkv(b, setting["grid"], heads)]
        out = function(*leaves, **setting)
        out.backward(torch.linspace(-1, 1, out.numel()).reshape(out.shape))
        results.append([out.detach(), *(t.grad for t in leaves)])
    for ours, oracle in zip(*results):
        assert torch.isfinite(ours).all()
        torch.testing.assert_close(ours, oracle, atol=1e-5, rtol=0)


@pytest.mark.parametrize("r", [2, 4])
def test_equals_the_oracle_at_full_size(r):
    setting = dict(grid=(64, 64), segment=1024, dilation=r)
    tensors = qkv(1, (64, 64), 2, width=8)
    torch.testing.assert_close(
        dilated_attention(*tensors, **setting), dense_reference(*tensors, **setting), atol=1e-5, rtol=0
    )


def test_gradcheck_with_padding():
    leaves = [t.double().requires_grad_() for t in qkv(1, (3, 3), 2, width=2)]

    def function(*tensors):
        return dilated_attention(*tensors, grid=(3, 3), segment=4, dilation=2, backend="plain")

    assert torch.autograd.gradcheck(function, leaves)


def test_dilation_one_is_plain_attention_inside_segments():
    q, k, v = qkv(2, (4, 6), 2)
    out = dilated_attention(q, k, v, grid=(4, 6), segment=8, dilation=1)
    for start in (0, 8, 16):
        part = slice(start, start + 8)
        weights = torch.einsum("bnhd,bmhd->bhnm", q[:, part], k[:, part]).div(2.0).softmax(-1)
        expected = torch.einsum("bhnm,bmhd->bnhd", weights, v[:, part])
        torch.testing.assert_close(out[:, part], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("grid, segment, r", [((4, 8), 16, 2), ((4, 8), 16, 4), ((3, 5), 6, 2), ((5, 5), None, 3)])
def test_one_token_reaches_exactly_its_group_and_no_other_image(order, grid, segment, r):
    """The released code mixed the images of a batch at one position and never mixed tokens."""
    rows, columns = grid
    setting = dict(grid=grid, segment=segment, dilation=r, order=order)
    q, k, v = qkv(3, grid, 2)
    before = dilated_attention(q, k, v, **setting)
    for token in range(rows * columns):
        changed = v.clone()
        changed[1, token] += 1.0
        moved = (dilated_attention(q, k, changed, **setting) - before).abs().amax(dim=(2, 3)) > 1e-6
        expected = set()
        run = segment or rows * columns
        number = [(n % columns) * rows + n // columns if order == "column" else n for n in range(rows * columns)]
        for other in range(rows * columns):
            same_segment = number[other] // run == number[token] // run
            if same_segment and (number[other] % run) % r == (number[token] % run) % r:
                expected.add(other)
        assert not moved[0].any() and not moved[2].any()
        assert {n for n in range(rows * columns) if moved[1, n]} == expected


def test_every_offset_is_attended_in_every_head():
    """The released code attended offset 0 only: half the tokens got nothing."""
    q, k, v = qkv(1, (4, 4), 3)
    out = dilated_attention(q, k, v.abs() + 0.1, grid=(4, 4), segment=8, dilation=4)
    assert (out > 0.05).all()


def test_longnet_heads_serve_their_offset_only():
    q, k, v = qkv(1, (4, 4), 5)
    out = dilated_attention(q, k, v.abs() + 0.1, grid=(4, 4), segment=8, dilation=3, offsets="longnet")
    for token in range(16):
        for head in range(5):
            assert bool((out[0, token, head] != 0).all()) == ((token % 8) % 3 == head % 3)


def test_scale_is_that_of_the_true_head_width():
    """The released code halved the heads and kept the scale of the old width."""
    q, k, v = qkv(1, (2, 4), 2, width=16)
    setting = dict(grid=(2, 4), segment=8, dilation=2)
    out = dilated_attention(q, k, v, **setting)
    torch.testing.assert_close(out, dilated_attention(q, k, v, scale=0.25, **setting), atol=1e-6, rtol=0)
    even = [t[:, ::2] for t in (q, k, v)]
    weights = (torch.einsum("bnhd,bmhd->bhnm", even[0], even[1]) / 4).softmax(-1)
    torch.testing.assert_close(out[:, ::2], torch.einsum("bhnm,bmhd->bnhd", weights, even[2]), atol=1e-5, rtol=0)


def record_tensors(monkeypatch):
    """What the attention door is handed: a spy in front of the real one."""
    seen, real = [], dilated.attention

    def spy(q, k, v, **kwargs):
        out = real(q, k, v, **kwargs)
        seen.append((q, k, v, out))
        return out

    monkeypatch.setattr(dilated, "attention", spy)
    return seen


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("offsets", ["all", "longnet"])
@pytest.mark.parametrize("r", [1, 2, 4])
def test_contiguous_buffers_are_attended_in_place(monkeypatch, r, offsets):
    b, n, heads, width, segment = 2, 64, 4, 8, 16
    seen = record_tensors(monkeypatch)
    buffers = [torch.randn(b, n, heads * width) for _ in range(3)]
    tensors = [t.view(b, n, heads, width) for t in buffers]
    result = dilated_attention(*tensors, grid=(8, 8), segment=segment, dilation=r, offsets=offsets)
    for given in seen:
        for buffer, tensor in zip(buffers, given[:3]):
            assert storage(tensor) == storage(buffer)
    if offsets == "all":
        given, out = seen[0][0], seen[0][3]
        assert given.shape == (b * n // segment, segment // r, r * heads, width)
        assert given.stride() == (segment * heads * width, r * heads * width, width, 1)
        assert given.data_ptr() == buffers[0].data_ptr()
        assert storage(result) == storage(out)  # recomposed as a view of the kernel's output
        assert result.is_contiguous()


def test_layout_packed_per_head_is_attended_in_place_but_packed_per_kind_is_not(monkeypatch):
    """Why the encoder has three projections: slices of (.., 3, H, d) cannot merge offset and head into one axis."""
    setting = dict(grid=(8, 8), segment=16, dilation=4)
    for shape, axis, viewable in (((2, 64, 4, 3, 8), 3, True), ((2, 64, 3, 4, 8), 2, False)):
        seen = record_tensors(monkeypatch)
        packed = torch.randn(shape)
        tensors = packed.unbind(axis)
        out = dilated_attention(*tensors, **setting)
        assert all((storage(t) == storage(packed)) is viewable for t in seen[0][:3])
        torch.testing.assert_close(out, dense_reference(*tensors, **setting), atol=1e-5, rtol=0)
        monkeypatch.undo()


def test_backward_copies_nothing_either():
    """The gradient that reaches q is the kernel's own buffer, seen through the same view."""
    q, k, v = (t.requires_grad_() for t in qkv(1, (4, 8), 2))
    out = dilated_attention(q, k, v, grid=(4, 8), segment=16, dilation=2)
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [following for following, _ in node.next_functions if following is not None]
    assert not names & {"CloneBackward0", "CopyBackwards", "CopySlices", "ConstantPadNdBackward0", "IndexBackward0"}


@pytest.mark.parametrize("window", ["1d", "2d"])
@pytest.mark.parametrize("order", ["row", "column"])
@pytest.mark.parametrize("grid", [(8, 8), (5, 7), (3, 8), (1, 1)])
@pytest.mark.parametrize("segment, r", [(16, 2), (9, 2), (4, 3), (None, 4)])
def test_arrange_and_restore_are_inverse(grid, segment, r, order, window):
    layout = Layout(grid, segment, r, order, window)
    x = torch.randn(2, *grid, 3)
    arranged = layout.arrange(x)
    assert arranged.shape == (2, *layout.shape, 3)
    assert torch.equal(layout.restore(arranged), x)
    assert layout.filled == (layout.shape[0] * layout.shape[1] != grid[0] * grid[1])


def test_column_order_costs_one_copy_there_and_none_back():
    layout = Layout((8, 6), 12, 2, "column")
    x = torch.randn(2, 8, 6, 3)
    arranged = layout.arrange(x)
    assert arranged.is_contiguous() and storage(arranged) != storage(x)
    assert storage(layout.restore(arranged)) == storage(arranged)
    assert torch.equal(arranged.reshape(2, 6, 8, 3), x.transpose(1, 2))
    row = Layout((8, 6), 12, 2)
    assert storage(row.arrange(x)) == storage(x) == storage(row.restore(row.arrange(x)))


def test_filled_places_never_count_even_when_they_hold_values():
    """In the encoder the projections give padded places a bias: it must reach no token, nor NaN any gradient."""
    layout = Layout((3, 3), 4, 2)
    tensors = [layout.arrange(t.reshape(1, 3, 3, 2, 4)).requires_grad_() for t in qkv(1, (3, 3), 2)]
    empty = layout.arrange(torch.ones(1, 3, 3, 1))[..., 0] == 0
    poisoned = [t.detach().clone() for t in tensors]
    for t in poisoned:
        t[empty] = 50.0
        t.requires_grad_()
    for backend in ("plain", "sdpa"):
        clean = layout.restore(attend(*tensors, layout, backend=backend))
        dirty = layout.restore(attend(*poisoned, layout, backend=backend))
        torch.testing.assert_close(clean, dirty, atol=1e-6, rtol=0)
        for grad in torch.autograd.grad(dirty.square().sum(), poisoned):
            assert torch.isfinite(grad).all() and (grad[empty] == 0).all()


@pytest.mark.parametrize(
    "change, word",
    [
        (dict(segment=0), "at least 1"),
        (dict(dilation=0), "at least 1"),
        (dict(window="2d", segment=8), "square"),
        (dict(order="diagonal"), "order"),
        (dict(offsets="some"), "offsets"),
        (dict(grid=(2, 3)), "must be"),
    ],
)
def test_wrong_settings_are_refused(change, word):
    setting = dict(grid=(4, 4), segment=8, dilation=2) | change
    with pytest.raises(ValueError, match=word):
        dilated_attention(*qkv(1, (4, 4), 2), **setting)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [(32, 32), (30, 33)])
@pytest.mark.parametrize("order", ["row", "column"])
def test_gpu_equals_the_oracle(dtype, grid, order):
    setting = dict(grid=grid, segment=256, dilation=4, order=order)
    tensors = [t.cuda() for t in qkv(2, grid, 6, width=64)]
    rounded = [t.to(dtype) for t in tensors]
    expected = dense_reference(*(t.double() for t in rounded), **setting)
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2  # bf16 keeps 8 bits
    torch.testing.assert_close(
        dilated_attention(*rounded, **setting).double(), expected, atol=tolerance, rtol=tolerance
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_flash_reads_the_view_and_agrees_with_sdpa():
    if _flash()[0] is None:
        pytest.skip(_flash()[1])
    tensors = [t.cuda().bfloat16() for t in qkv(2, (64, 64), 6, width=64)]
    setting = dict(grid=(64, 64), segment=1024, dilation=4)
    flash, sdpa = (dilated_attention(*tensors, backend=name, **setting) for name in ("flash", "sdpa"))
    torch.testing.assert_close(flash, sdpa, atol=2e-2, rtol=2e-2)  # two bf16 kernels, each within 2^-8
    assert flash.is_contiguous()
