"""The attention door: parity of the backends, the order of choice, and the sentences of refusal.

Run     `pytest tests/kernels/test_attention.py`; the tests marked gpu need CUDA (flash parity also needs flash-attn).
"""

import pytest
import torch

from frisket.errors import UserError
from frisket.kernels.attention import VARIABLE, Backend, _flash, attention, choose, describe, parse


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)


def qkv(*shape, m=None, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    key_shape = (shape[0], m or shape[1], *shape[2:])
    return [torch.randn(s, generator=generator).to(**kwargs) for s in (shape, key_shape, key_shape)]


@pytest.mark.parametrize("bias_kind", ["none", "float", "bool"])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_sdpa_equals_plain_forward_and_backward(bias_kind, scale):
    tensors = qkv(2, 9, 3, 8, m=5)
    bias = {"none": None, "float": torch.randn(2, 1, 9, 5), "bool": torch.rand(1, 3, 9, 5) > 0.3}[bias_kind]
    if bias_kind == "bool":
        bias[..., 0] = True  # a row that may see nothing has no value in any backend
    results = []
    for backend in ("sdpa", "plain"):
        leaves = [t.clone().requires_grad_() for t in tensors]
        out = attention(*leaves, scale=scale, bias=bias, backend=backend)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        results.append([out, *(t.grad for t in leaves)])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)  # fp32 sums of <= 9 terms in another order


def test_plain_is_the_definition_and_scale_counts():
    q, k, v = qkv(1, 4, 1, 8)
    expected = torch.softmax(q[0, :, 0] @ k[0, :, 0].T / 8**0.5, dim=-1) @ v[0, :, 0]
    torch.testing.assert_close(attention(q, k, v, backend="plain")[0, :, 0], expected, atol=1e-6, rtol=0)
    for backend in ("plain", "sdpa"):
        sharper = attention(q, k, v, scale=2.0, backend=backend)
        assert not torch.allclose(sharper[0, :, 0], expected, atol=1e-2)


def test_order_of_choice(monkeypatch):
    q, _, _ = qkv(1, 4, 1, 8)
    assert choose(q) is Backend.sdpa
    monkeypatch.setenv(VARIABLE, "plain")
    assert choose(q) is Backend.plain and VARIABLE in describe()
    monkeypatch.setenv(VARIABLE, "auto")
    assert choose(q) is Backend.sdpa


def kernels_of(out):
    """Names of the autograd nodes behind a tensor: they tell which backend made it."""
    names, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        names.add(node.name())
        todo += [following for following, _ in node.next_functions if following is not None]
    return " ".join(names)


def test_the_choice_is_what_runs_and_the_argument_beats_the_environment(monkeypatch):
    tensors = [t.requires_grad_() for t in qkv(1, 64, 2, 8)]
    assert "ScaledDotProduct" in kernels_of(attention(*tensors))
    monkeypatch.setenv(VARIABLE, "plain")
    assert "Softmax" in kernels_of(attention(*tensors))
    assert "ScaledDotProduct" in kernels_of(attention(*tensors, backend="sdpa"))
    monkeypatch.delenv(VARIABLE)
    assert "Softmax" in kernels_of(attention(*tensors, backend=Backend.plain))


def test_unknown_name_is_refused_with_a_hint(monkeypatch):
    with pytest.raises(UserError, match="did you mean 'flash'"):
        parse("flahs", "x")
    monkeypatch.setenv(VARIABLE, "spda")
    with pytest.raises(UserError, match=f"{VARIABLE}.*sdpa"):
        describe()
    assert parse("auto", "x") is None and parse("", "x") is None and parse(None, "x") is None


def test_flash_is_refused_where_it_cannot_serve(monkeypatch):
    q, k, v = qkv(1, 4, 1, 8)
    with pytest.raises(ValueError, match="not on CUDA"):
        attention(q, k, v, backend="flash")
    if _flash()[0] is None:
        monkeypatch.setenv(VARIABLE, "flash")
        with pytest.raises(UserError, match="flash-attn"):
            attention(q, k, v)


def test_describe_names_backend_and_reason():
    assert describe().startswith("attention: ")
    if not torch.cuda.is_available():
        assert "sdpa" in describe() and "no CUDA" in describe()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_gpu_half_precision_is_near_fp32(backend, dtype):
    if backend == "flash" and _flash()[0] is None:
        pytest.skip(_flash()[1])
    tensors = qkv(2, 256, 12, 64, device="cuda", dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in tensors]
    exact = [t.float().requires_grad_() for t in tensors]
    out, expected = attention(*leaves, backend=backend), attention(*exact, backend="plain")
    out.sum().backward()
    expected.sum().backward()
    # bf16 keeps 8 bits (step 2^-8 of values up to ~1 here), fp16 11.
    tolerance = 2e-2 if dtype is torch.bfloat16 else 4e-3
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=tolerance)
    for half, full in zip(leaves, exact):
        torch.testing.assert_close(half.grad.float(), full.grad, atol=2 * tolerance, rtol=2 * tolerance)
    if _flash()[0] is not None:
        assert choose(tensors[0]) is Backend.flash and choose(tensors[0].float()) is Backend.sdpa


def test_plain_softmax_is_in_float32() -> None:
    """Beside a bias of 100 the step of bf16 is 0.5: scores 0 and 0.25 would count alike."""
    q, v = torch.ones(1, 1, 1, 16, dtype=torch.bfloat16), torch.zeros(1, 2, 1, 16, dtype=torch.bfloat16)
    k = torch.tensor([0.0, 0.0625]).repeat_interleave(16).reshape(1, 2, 1, 16).bfloat16()
    v[0, 1] = 1
    bias = torch.full((1, 1, 1, 2), 100.0, dtype=torch.bfloat16)
    out = attention(q, k, v, scale=0.25, bias=bias, backend="plain")
    assert out[0, 0, 0, 0].item() == pytest.approx(torch.tensor(0.25).sigmoid().item(), abs=2e-3)
