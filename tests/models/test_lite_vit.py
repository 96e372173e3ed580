"""LiteViT: the published counts of every size and block; values and gradients against a second writing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from frisket.errors import UserError
from frisket.models import zoo
from frisket.models.lite_vit import PROFILES, LiteNeck, PoolBlock, PoolMixer
from frisket.quant.layers import fold

SMALL = {"widths": (8, 12, 16, 20), "depths": (1, 2, 1, 1), "neck_width": 12}
COUNTS = {  # parameters in millions and GMAC at 640 px: the paper's Table 1, and how near ours must come
    "tiny": (0.54, 4.2, 0.02),
    "1x, block 4": (1.15, 10.8, 0.02),
    "1x": (1.16, 10.9, 0.02),
    "2x": (2.19, 22.3, 0.02),
    "3x": (3.63, 38.0, 0.02),
}
CHANGES: dict[str, dict[str, Any]] = {"1x": {}, "1x, block 4": {"block": 4}, **PROFILES}


def counted(changes: dict[str, Any], side: int = 640) -> tuple[int, int]:
    """(parameters, multiply-accumulates by torch's counter) of the encoder."""
    with torch.device("meta"):
        encoder = zoo.build("lite_sam_640", **changes).image_encoder
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(1, 3, side, side))
    return sum(p.numel() for p in encoder.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("size", COUNTS)
def test_every_size_of_the_papers_table_is_met(size: str) -> None:
    millions, gmac, near = COUNTS[size]
    parameters, macs = counted(CHANGES[size])
    assert parameters / 1e6 == pytest.approx(millions, rel=near)
    assert macs / 1e9 == pytest.approx(gmac, rel=near)


def test_the_default_has_profile_rs_exact_counts() -> None:
    assert counted({}) == (1_152_544, 11_099_340_800)
    assert counted({}, 1024)[1] == pytest.approx(28.414e9, rel=1e-4)
    whole = zoo.build("lite_sam_640")
    assert sum(p.numel() for p in whole.parameters()) == 1_152_544 + 3_013_936
    assert whole.image_size == 640 and zoo.build("lite_sam_1024").image_size == 1024


def test_profile_q_is_the_nearest_in_parameters() -> None:
    for size, millions in (("1x", 1.16), ("2x", 2.19), ("3x", 3.63)):
        assert counted(PROFILES["q"] | CHANGES[size])[0] / 1e6 == pytest.approx(millions, rel=0.006)


@pytest.mark.parametrize("block", [1, 2, 3, 4, 5])
def test_a_block_has_the_parts_that_the_table_adds(block: int) -> None:
    encoder = zoo.build("lite_sam_640", block=block, **SMALL).image_encoder
    blocks = [part for part in encoder.modules() if isinstance(part, PoolBlock)]
    assert len(blocks) == 5
    assert {type(part.norm1) for part in blocks} == {nn.GroupNorm if block < 3 else nn.BatchNorm2d}
    squares = [part.mixer.squares for part in blocks]
    assert squares == ([(3,)] * 5 if block < 4 else [(3, 5, 7)] * 3 + [(3, 7, 11)] * 2)
    assert {hasattr(part.mixer, "weights") for part in blocks} == {block == 5}
    assert [hasattr(part.mixer, "local") for part in blocks] == [block == 5 and n > 0 for n in range(5)]


def randomised(module: nn.Module) -> nn.Module:
    """Every weight and every statistic of `module` drawn, so that none is 0 or 1 by chance of its start."""
    generator = torch.Generator().manual_seed(3)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 0.8 + 0.2
    return module.double().eval()


def mixed(x: Tensor, weights: Tensor, squares: tuple[int, ...]) -> Tensor:
    """MSPM cell by cell: the mean of what lies inside the picture, for each square, weighted; less the cell."""
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            total = -x[:, :, i, j]
            for weight, side in zip(weights, squares, strict=True):
                reach = side // 2
                around = x[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
                total = total + weight * around.mean(dim=(2, 3))
            out[:, :, i, j] = total
    return out


def test_the_mixer_is_its_formula_with_gradients() -> None:
    mixer: Any = randomised(PoolMixer(4, (3, 5, 7), learned=True, depthwise=False))
    x = torch.randn(2, 4, 6, 9, dtype=torch.float64, requires_grad=True)
    answer, expected = mixer(x), mixed(x, mixer.weights, (3, 5, 7))
    torch.testing.assert_close(answer, expected, atol=1e-12, rtol=0)
    ours, theirs = (torch.autograd.grad(y.square().sum(), [x, mixer.weights]) for y in (answer, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_a_block_is_its_formula() -> None:
    block: Any = randomised(PoolBlock(4, (3, 5, 7), local=True))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def norm(y: Tensor, bn: nn.BatchNorm2d) -> Tensor:
        assert bn.running_mean is not None and bn.running_var is not None
        scaled = (y - bn.running_mean[:, None, None]) / (bn.running_var[:, None, None] + bn.eps).sqrt()
        return scaled * bn.weight[:, None, None] + bn.bias[:, None, None]

    local = block.mixer.local
    y = mixed(norm(x, block.norm1), block.mixer.weights, (3, 5, 7))
    y = x + block.gain1[:, None, None] * norm(nn.functional.conv2d(y, local.c.weight, padding=1, groups=4), local.bn)
    wide, _, narrow = block.mlp
    hidden = torch.einsum("bchw,dc->bdhw", norm(y, block.norm2), wide.weight[:, :, 0, 0]) + wide.bias[:, None, None]
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    out = torch.einsum("bchw,dc->bdhw", hidden, narrow.weight[:, :, 0, 0]) + narrow.bias[:, None, None]
    torch.testing.assert_close(block(x), y + block.gain2[:, None, None] * out, atol=1e-10, rtol=0)


def test_the_neck_hears_both_stages_and_keeps_their_places() -> None:
    """A change in one cell of either stage moves the embedding around that cell and nowhere else."""
    neck: Any = randomised(LiteNeck((3, 5), 4, 6))
    fine = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    coarse = torch.randn(1, 5, 8, 8, dtype=torch.float64)
    before = neck(fine, coarse)
    assert before.shape == (1, 6, 8, 8)
    fine2, coarse2 = fine.clone(), coarse.clone()
    fine2[:, :, 4, 10] += 1  # cell (2, 5) of the embedding
    coarse2[:, :, 2, 5] += 1
    changes = [(before, neck(fine2, coarse)), (before, neck(fine, coarse2))]
    neck.join.weight.data[:, 4:] = 0  # the way of the fine stage alone: it hears the coarse one, too
    changes.append((neck(fine, coarse), neck(fine, coarse2)))
    for before, changed in changes:
        moved = (changed - before).abs().sum(dim=1)[0] > 1e-12
        rows, columns = moved.nonzero(as_tuple=True)
        assert moved[2, 5] and int((rows - 2).abs().max()) <= 1 and int((columns - 5).abs().max()) <= 1


def test_folded_batchnorm_changes_nothing() -> None:
    sam = zoo.build("lite_sam_640", image_size=64, **SMALL)
    for module in sam.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    sam.double().eval()
    x = torch.randn(2, 3, 64, 80, dtype=torch.float64)
    with torch.no_grad():
        plain = sam.image_encoder(x)
        fold(sam)
        torch.testing.assert_close(sam.image_encoder(x), plain, atol=1e-9, rtol=0)
    left = [name for name, part in sam.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(".norm" in name for name in left)  # those before a block's branches, which follow no convolution


def test_it_learns_in_small_steps_from_its_start() -> None:
    """The start lets a gradient reach the first convolution and every gain."""
    torch.manual_seed(0)
    encoder = zoo.build("lite_sam_640", image_size=64, **SMALL).image_encoder
    encoder(torch.randn(2, 3, 64, 64)).square().mean().backward()
    silent = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"block": 6}, "1 to 5"), ({"widths": (8, 8, 8)}, "four numbers"), ({"image_size": 100}, "multiple of 16")],
)
def test_sizes_that_do_not_fit_are_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        zoo.build("lite_sam_640", **changes)


def test_sams_decoder_fits_where_asked() -> None:
    theirs = zoo.build("sam_vit_t").mask_decoder.state_dict()
    zoo.build("lite_sam_640", decoder_hidden=2048, **SMALL).mask_decoder.load_state_dict(theirs)
    with pytest.raises(RuntimeError, match="size mismatch"):
        zoo.build("lite_sam_640", **SMALL).mask_decoder.load_state_dict(theirs)
