"""TinyViT: the published layout and counts, and values and gradients of every stage against a second writing.

The second writing reads a state dict alone, in numpy-like steps: windows are cut one by one, the bias of each pair of
cells is looked up by its distance, heads are separate products.
"""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from frisket import checkpoint
from frisket.checkpoint import fingerprint
from frisket.errors import UserError
from frisket.eval.cost import count, points
from frisket.models import zoo
from frisket.models.tiny_vit import TinyViT, TinyViTConfig

MOBILE_SAM = "6d79894bd7b2a6c0d52b247f339764ea6aadd80fbfa71707f9f952fbb195df7f"
SMALL = TinyViTConfig(image_size=96, widths=(8, 16, 20, 40), depths=(1, 2, 2, 1), heads=(2, 5, 4), windows=(5, 4, 3))
STAGES = {  # parameters and GMAC at 1024 px, of the specification's table
    "patch_embed": (19_488, 1.434),
    "layers.0": (98_944, 5.421),
    "layers.1": (448_232, 7.541),
    "layers.2": (2_030_520, 10.564),
    "layers.3": (2_473_940, 11.056),
    "neck": (672_768, 2.751),
}


def conv_bn(x: Tensor, p: dict[str, Tensor], name: str, stride: int = 1, depthwise: bool = False) -> Tensor:
    weight = p[f"{name}.c.weight"]
    y = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=len(weight) if depthwise else 1)
    mean, var = (p[f"{name}.bn.running_{kind}"][:, None, None] for kind in ("mean", "var"))
    gamma, beta = (p[f"{name}.bn.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return (y - mean) / (var + 1e-5).sqrt() * gamma + beta


def norm(x: Tensor, p: dict[str, Tensor], name: str, eps: float = 1e-5) -> Tensor:
    mean, var = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    return (x - mean) / (var + eps).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def attended(cells: Tensor, p: dict[str, Tensor], name: str, heads: int, window: int) -> Tensor:
    """One window (window * window, C)."""
    c = cells.shape[-1]
    d = c // heads
    projected = norm(cells, p, f"{name}.norm") @ p[f"{name}.qkv.weight"].T + p[f"{name}.qkv.bias"]
    places = [(i // window, i % window) for i in range(window * window)]
    entry = torch.tensor([[abs(a - e) * window + abs(b - f) for e, f in places] for a, b in places])
    out = []
    for head in range(heads):
        q, k, v = (projected[:, 3 * d * head + d * which : 3 * d * head + d * (which + 1)] for which in range(3))
        scores = q @ k.T / math.sqrt(d) + p[f"{name}.attention_biases"][head][entry]
        out.append(scores.softmax(-1) @ v)
    return torch.cat(out, 1) @ p[f"{name}.proj.weight"].T + p[f"{name}.proj.bias"]


def block(x: Tensor, p: dict[str, Tensor], name: str, heads: int, window: int) -> Tensor:
    """(C, h, w), one image."""
    c, h, w = x.shape
    rows, columns = math.ceil(h / window), math.ceil(w / window)
    filled = torch.zeros(rows * window, columns * window, c, dtype=x.dtype)
    filled[:h, :w] = x.permute(1, 2, 0)
    result = torch.zeros_like(filled)
    for row in range(0, rows * window, window):
        for column in range(0, columns * window, window):
            cells = filled[row : row + window, column : column + window].reshape(-1, c)
            cells = attended(cells, p, f"{name}.attn", heads, window).reshape(window, window, c)
            result[row : row + window, column : column + window] = cells
    x = (x.permute(1, 2, 0) + result[:h, :w]).permute(2, 0, 1)
    x = conv_bn(x[None], p, f"{name}.local_conv", depthwise=True)[0].permute(1, 2, 0)
    hidden = gelu(norm(x, p, f"{name}.mlp.norm") @ p[f"{name}.mlp.fc1.weight"].T + p[f"{name}.mlp.fc1.bias"])
    return (x + hidden @ p[f"{name}.mlp.fc2.weight"].T + p[f"{name}.mlp.fc2.bias"]).permute(2, 0, 1)


def written_again(x: Tensor, p: dict[str, Tensor], config: TinyViTConfig) -> list[Tensor]:
    """The stages' ends and the embedding of one image (1, 3, H, W)."""
    x = conv_bn(gelu(conv_bn(x, p, "patch_embed.seq.0", 2)), p, "patch_embed.seq.2", 2)
    ends = []
    for stage in range(4):
        for number in range(config.depths[stage]):
            name = f"layers.{stage}.blocks.{number}"
            if stage == 0:
                y = gelu(conv_bn(gelu(conv_bn(x, p, f"{name}.conv1")), p, f"{name}.conv2", depthwise=True))
                x = gelu(x + conv_bn(y, p, f"{name}.conv3"))
            else:
                x = block(x[0], p, name, config.heads[stage - 1], config.windows[stage - 1])[None]
        if stage < 3:
            name, stride = f"layers.{stage}.downsample", (2, 2, 1)[stage]
            y = gelu(conv_bn(gelu(conv_bn(x, p, f"{name}.conv1")), p, f"{name}.conv2", stride, depthwise=True))
            x = conv_bn(y, p, f"{name}.conv3")
        ends.append(x)
    for conv, after in ((0, 1), (2, 3)):
        x = F.conv2d(x, p[f"neck.{conv}.weight"], padding=p[f"neck.{conv}.weight"].shape[-1] // 2)
        x = norm(x.permute(0, 2, 3, 1), p, f"neck.{after}", 1e-6).permute(0, 3, 1, 2)
    return [*ends, x]


def lively(encoder: TinyViT) -> TinyViT:
    """In double, with every parameter and statistic away from its start: no gamma is 0, no bias table flat."""
    encoder = encoder.double()
    for name, value in encoder.state_dict().items():
        if value.is_floating_point():
            value.copy_(
                torch.rand_like(value) + 0.5 if "running_var" in name else value + 0.3 * torch.randn_like(value)
            )
    return encoder


@pytest.mark.parametrize("size", [(96, 96), (48, 80)])
def test_every_stage_equals_a_second_writing_in_values_and_gradients(size: tuple[int, int]) -> None:
    encoder = lively(TinyViT(SMALL)).eval()
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    parameters = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    for name in trained:
        parameters[name].requires_grad_()
    embedding, features = encoder.forward_features(x, range(4))
    ours = [*(feature.permute(0, 3, 1, 2) for feature in features), embedding]
    theirs = written_again(x, parameters, SMALL)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-9, rtol=1e-9)
    weights = [torch.randn_like(value) for value in ours]
    sum((value * weight).sum() for value, weight in zip(ours, weights, strict=True)).backward()
    sum((value * weight).sum() for value, weight in zip(theirs, weights, strict=True)).backward()
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, parameters[name].grad, atol=1e-7, rtol=1e-7, msg=name)


@pytest.mark.parametrize("name", ["tiny_sam", "mobile_sam"])
def test_layout_and_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        sam = zoo.build(name)
    encoder = sam.image_encoder
    assert len(sam.state_dict()) == 439 and fingerprint(sam.state_dict()) == MOBILE_SAM
    assert sum(p.numel() for p in sam.parameters()) == 10_130_092
    assert sum(p.numel() for p in encoder.parameters()) == 6_065_532
    assert {part: sum(p.numel() for p in encoder.get_submodule(part).parameters()) for part in STAGES} == {
        part: parameters for part, (parameters, _) in STAGES.items()
    }
    assert encoder.macs(1024) / 1e9 == pytest.approx(sum(gmac for _, gmac in STAGES.values()), abs=2e-3)
    assert encoder.macs(1024) / 1e9 == pytest.approx(38.768, abs=5e-4)
    assert sum(p.numel() for p in sam.mask_decoder.parameters()) == 4_058_340

    def decode(multimask: bool | None) -> float:  # None: all four masks, as the published count; else only those asked
        embedding, owner = torch.empty(1, 256, 64, 64, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
        return count(lambda: sam.decode(embedding, owner, points(1, "meta"), multimask))

    assert decode(True) < decode(None) == pytest.approx(1.812, rel=1e-3)


def test_at_1024_px_it_answers_in_the_published_shapes() -> None:
    sam = zoo.build("tiny_sam").eval().to("meta")
    with torch.inference_mode():
        embedding = sam.image_encoder(torch.empty(1, 3, 1024, 1024, device="meta"))
        answer = sam.decode(embedding, torch.zeros(1, dtype=torch.long, device="meta"), points(1, "meta"), True)
    assert embedding.shape == (1, 256, 64, 64)
    assert answer.logits.shape == (1, 3, 256, 256) and answer.iou.shape == (1, 3)


def test_a_public_file_loads_by_its_path_and_no_bias_is_stale(tmp_path: Path) -> None:
    """A bare state dict, as published. The public code's copy of the bias stayed zero after `.eval()` and a load."""
    torch.manual_seed(1)
    sam = zoo.build("tiny_sam").eval()
    state = {key: value + 0.1 if "attention_biases" in key else value for key, value in sam.state_dict().items()}
    state["image_encoder.layers.1.blocks.0.attn.attention_biases"] = torch.randn(4, 49)
    torch.save(state, tmp_path / "mobile_sam.pt")
    loaded = checkpoint.load(tmp_path / "mobile_sam.pt").eval()
    assert loaded.name in ("tiny_sam", "mobile_sam")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = sam.image_encoder(x)
        sam.load_state_dict(state)  # in eval mode already
        after = sam.image_encoder(x)
        assert torch.equal(loaded.image_encoder(x), after) and not torch.equal(before, after)


def test_the_settings_are_told_from_the_shapes() -> None:
    shapes = {key: tuple(value.shape) for key, value in TinyViT(SMALL).state_dict().items()}
    assert TinyViT.settings_of(shapes) == {key: value for key, value in vars(SMALL).items() if key != "image_size"}


def test_the_dead_classifier_takes_no_gradient() -> None:
    """DDP would wait for it for ever."""
    encoder = TinyViT(SMALL).train()
    encoder(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for part in (encoder.head, encoder.norm_head) for p in part.parameters())


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="width 160 is not a multiple of heads 7"):
        zoo.build("tiny_sam", heads=(4, 7, 10))
    with pytest.raises(UserError, match=r"depths .* must be 4 numbers"):
        zoo.build("tiny_sam", depths=(2, 2))
    with pytest.raises(ValueError, match="not a multiple of 16"):
        TinyViT(SMALL)(torch.zeros(1, 3, 40, 64))
