"""The teacher encoder: folded attention equals the plain form, memory stays small, any side works, taps are blocks."""

from collections.abc import Callable

import pytest
import torch
from plainvit import relative_attention_reference
from torch import Tensor

from frisket.errors import UserError
from frisket.models import vit
from frisket.models.sam import Sam


def qkv_and_tables(grid: tuple[int, int], d: int = 16) -> list[Tensor]:
    h, w = grid
    torch.manual_seed(0)
    shapes = [(2, h * w, 3, d)] * 3 + [(2 * h - 1, d), (2 * w - 1, d)]
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (14, 14), (1, 3)])
def test_folded_attention_equals_the_plain_form(grid: tuple[int, int]) -> None:
    inputs = qkv_and_tables(grid)
    ours, plain = vit.relative_attention(*inputs, grid=grid), relative_attention_reference(*inputs, grid=grid)
    # Logits here reach ~15, so float32 sums in another order differ by a few 1e-6.
    assert (ours - plain).abs().max() <= 2e-5
    direction = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction)):
        assert (a - b).abs().max() <= 1e-4 * max(1.0, b.abs().max().item())


def test_relative_terms_use_the_signed_distance() -> None:
    """Written as loops: the row term of query i and key row j reads the table at row_i - j + h - 1."""
    h, w, d = 3, 2, 4
    q, table_h, table_w = torch.randn(1, h * w, 1, d), torch.randn(2 * h - 1, d), torch.randn(2 * w - 1, d)
    rows, columns = vit.relative_terms(q, table_h, table_w, (h, w))
    for i in range(h * w):
        for j in range(h):
            assert torch.isclose(rows[0, i, 0, j], q[0, i, 0] @ table_h[i // w - j + h - 1], atol=1e-6)
        for j in range(w):
            assert torch.isclose(columns[0, i, 0, j], q[0, i, 0] @ table_w[i % w - j + w - 1], atol=1e-6)


def test_attention_never_holds_the_square() -> None:
    """No tensor made during global attention, forward or backward, comes near N x N (here 4096^2 = 16.8 M values)."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else (out,):
                if isinstance(value, Tensor):
                    self.size = max(self.size, value.numel())
            return out

    attention = vit.Attention(width=32, heads=2, side=64)
    with Largest() as largest:
        attention(torch.randn(1, 64, 64, 32)).sum().backward()
    # q', k' and padded v: 4096 tokens x 2 heads x (16 + 64 + 64) channels; stacked gradients may hold a few of these.
    assert largest.size <= 4 * 4096 * 2 * 144


@pytest.mark.parametrize("side", [64, 128, 176, 256])
def test_any_side_that_is_a_multiple_of_16(tiny: Callable[..., Sam], side: int) -> None:
    encoder = tiny(128).image_encoder
    with torch.no_grad():
        out = encoder(torch.randn(2, 3, side, side))
    assert out.shape == (2, 256, side // 16, side // 16)
    assert out.isfinite().all()


def test_another_side_sees_nearly_the_same_picture(tiny: Callable[..., Sam]) -> None:
    """A constant picture at 1.5 times the side: with the tables resampled, the mean embedding stays close."""
    encoder = tiny(256).image_encoder
    with torch.no_grad():
        native = encoder(torch.ones(1, 3, 256, 256)).mean((2, 3))
        larger = encoder(torch.ones(1, 3, 384, 384)).mean((2, 3))
    assert torch.cosine_similarity(native, larger).item() > 0.9


def test_taps_are_the_block_outputs(tiny: Callable[..., Sam]) -> None:
    encoder = tiny(128).image_encoder
    seen: dict[int, Tensor] = {}
    for i, block in enumerate(encoder.blocks):
        block.register_forward_hook(lambda _, __, out, i=i: seen.update({i: out}))
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        embedding, features = encoder.forward_features(x, taps=(2, 0))
        assert torch.equal(embedding, encoder(x))
    assert torch.equal(features[0], seen[2])
    assert torch.equal(features[1], seen[0])
    assert features[0].shape == (1, 8, 8, encoder.taps[2].width)
    assert len(encoder.taps) == 3
    with pytest.raises(ValueError, match=r"taps \[3\]"):
        encoder.forward_features(x, taps=(3,))


def test_images_do_not_see_each_other(tiny: Callable[..., Sam]) -> None:
    encoder, x = tiny(256).image_encoder, torch.randn(3, 3, 256, 256)
    changed = x.clone()
    changed[1] += 1
    with torch.no_grad():
        difference = (encoder(x) - encoder(changed)).abs().amax((1, 2, 3))
    assert difference[0] == 0
    assert difference[2] == 0
    assert difference[1] > 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"heads": 5}, "multiple of heads 5"),
        ({"image_size": 100}, "multiple of 16"),
        ({"depth": 4}, r"global_blocks"),
    ],
)
def test_config_refuses_what_cannot_be_built(wrong: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        vit.ViTConfig(**wrong)
