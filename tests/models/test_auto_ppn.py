"""AutoPPN: the counts it was fitted to, any embedding of 256 channels, and the picker against plain loops."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from frisket.models import zoo
from frisket.models.auto_ppn import PEAKS, AutoPPN, AutoPPNConfig, Picked, Proposals, pick
from frisket.models.sam import Sam
from frisket.sample import Prompts


def test_it_has_the_counts_it_was_fitted_to() -> None:
    with torch.device("meta"):
        net = AutoPPN(AutoPPNConfig())
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 256, 40, 40))
        lite = zoo.build("lite_sam_640")
    parameters = sum(p.numel() for p in net.parameters())
    assert parameters == 67_983 and counter.get_total_flops() // 2 == 870_912_000
    whole = parameters + sum(p.numel() for p in lite.parameters())
    assert whole == 4_234_463  # 4.2 M are published


def asked(side: int) -> tuple[Sam, int, dict[str, tuple[int, ...]]]:
    """Lite-SAM, its multiply-accumulates for one point by torch's counter, and the shapes of what it gives."""
    with torch.device("meta"):
        sam = zoo.build("lite_sam_640", image_size=side, auto_ppn={}).eval()
        point = Prompts(torch.zeros(1, 1, 2), torch.ones(1, 1, dtype=torch.long))
        with FlopCounterMode(display=False) as counter:
            embedding = sam.image_encoder(torch.empty(1, 3, side, side))
            heat, boxes = sam.auto_ppn(embedding)
            masks = sam.decode(embedding, torch.zeros(1, dtype=torch.long), point, None).logits
    shapes = {"embedding": embedding.shape, "heat": heat.shape, "boxes": boxes.shape, "masks": masks.shape}
    return sam, counter.get_total_flops() // 2, {name: tuple(shape) for name, shape in shapes.items()}


def test_lite_sam_as_a_whole_costs_what_is_published() -> None:
    (sam, small, _), (_, large, _) = asked(640), asked(1024)
    assert sum(p.numel() for p in sam.parameters()) == 4_234_463
    assert small / 1e9 == pytest.approx(12.7, rel=0.01) and large / 1e9 == pytest.approx(32.5, rel=0.01)
    assert large / small == pytest.approx(2.56, abs=0.01)  # nothing attends globally


@pytest.mark.parametrize("side", [640, 1024, 16, 48, 400])
def test_lite_sams_shapes_at_any_side_of_sixteens(side: int) -> None:
    cells, grid = side // 16, side // 4
    assert asked(side)[2] == {
        "embedding": (1, 256, cells, cells), "heat": (1, 3, grid, grid),
        "boxes": (1, 3, 4, grid, grid), "masks": (1, 4, grid, grid),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sam_vit_b", "tiny_sam", "lightening"])
def test_it_attaches_to_the_public_encoders_as_they_are(name: str) -> None:
    with torch.device("meta"):
        embedding = zoo.build(name).image_encoder(torch.empty(1, 3, 1024, 1024))
        heat, boxes = AutoPPN(AutoPPNConfig())(embedding)
    assert heat.shape == (1, 3, 256, 256) and boxes.shape == (1, 3, 4, 256, 256)


@pytest.mark.parametrize("stem", ["mspm", "conv"])
@pytest.mark.parametrize("groups", [1, 3])
def test_it_attaches_to_any_embedding_and_every_weight_learns(stem: str, groups: int) -> None:
    torch.manual_seed(0)
    net = AutoPPN(AutoPPNConfig(width=8, stem=stem, groups=groups))  # type: ignore[arg-type]
    sam = zoo.build("sam_vit_t", image_size=64, width=32, depth=1, heads=2, global_blocks=(0,))
    embedding = sam.encode(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.full((2, 2), 64))
    heat, boxes = net(embedding)
    assert heat.shape == (2, groups, 16, 16) and boxes.shape == (2, groups, 4, 16, 16)
    assert float(heat.sigmoid().mean()) == pytest.approx(0.1, abs=0.05)
    (heat.square().mean() + boxes.square().mean()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def picked(proposals: Proposals, sizes: torch.Tensor, count: int) -> list[list[tuple]]:
    """pick, cell by cell: [(score, group, point, box)] of each image, best first; peaks alone."""
    heat, boxes = proposals
    side, out = heat.shape[-1], []
    for b in range(len(heat)):
        height, width = sizes[b].tolist()
        found = []
        for g in range(heat.shape[1]):
            reach = (PEAKS if heat.shape[1] == 3 else PEAKS[:1])[g] // 2
            for i in range(side):
                for j in range(side):
                    if 4 * i + 2 >= height or 4 * j + 2 >= width:
                        continue
                    around = heat[b, g, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
                    inner = around[: max(0, -(-(height - 2) // 4) - max(0, i - reach)),
                                   : max(0, -(-(width - 2) // 4) - max(0, j - reach))]  # fmt: skip
                    if heat[b, g, i, j] >= inner.max():
                        left, up, right, down = (4 * side * boxes[b, g, :, i, j].clamp(min=0)).tolist()
                        x, y = 4 * j + 2, 4 * i + 2
                        box = (max(0, x - left), max(0, y - up), min(width, x + right), min(height, y + down))
                        found.append((float(heat[b, g, i, j].sigmoid()), g, (x - 0.5, y - 0.5), box))
        out.append(sorted(found, key=lambda row: -row[0])[:count])
    return out


@pytest.mark.parametrize("groups", [1, 3])
def test_the_picker_takes_the_highest_peaks_of_the_photograph(groups: int) -> None:
    generator = torch.Generator().manual_seed(1)
    heat = torch.randn(2, groups, 24, 24, generator=generator)
    boxes = torch.rand(2, groups, 4, 24, 24, generator=generator) * 0.5 - 0.1  # a side may be told behind the centre
    sizes = torch.tensor([[96, 70], [61, 96]])
    heat[:, :, 20:, 20:] = 9.0  # loud padding of both
    answer = pick(Proposals(heat, boxes), sizes, 20)
    for b, rows in enumerate(picked(Proposals(heat, boxes), sizes, 20)):
        assert len(rows) == 20 or (answer.scores[b, len(rows) :] == 0).all()
        for n, (score, group, point, box) in enumerate(rows):
            assert float(answer.scores[b, n]) == pytest.approx(score, abs=1e-6)
            assert int(answer.groups[b, n]) == group and answer.points[b, n].tolist() == list(point)
            assert answer.boxes[b, n].tolist() == pytest.approx(box, abs=1e-3)


def test_the_likeliest_other_cells_fill_up() -> None:
    """After all peaks, which come first; each cell once, in its likeliest group, and nothing of the padding."""
    generator = torch.Generator().manual_seed(2)
    heat, boxes = torch.randn(1, 3, 12, 12, generator=generator), torch.zeros(1, 3, 4, 12, 12)
    heat[:, :, :, 9:] = 9.0  # padding
    size = torch.tensor([[48, 36]])
    peaks, filled = (pick(Proposals(heat, boxes), size, 200, fill=fill) for fill in (False, True))
    many = int((peaks.scores > 0).sum())
    assert 0 < many < 60
    for alone, both in zip(peaks, filled, strict=True):
        assert torch.equal(alone[:, :many], both[:, :many])
    rest = int((filled.scores > 0).sum())
    x, y = ((filled.points[0, many:rest] - 1.5) / 4).long().unbind(1)
    assert (x < 9).all() and len({*zip(x.tolist(), y.tolist(), strict=True)}) == rest - many
    likeliest = heat.sigmoid()[0, :, :, :9].amax(0)
    assert torch.equal(filled.scores[0, many:rest], likeliest[y, x]) and filled.scores[0, many:rest].diff().max() <= 0
    # a cell is left out only where it is a peak of its likeliest group already
    assert rest - many == 12 * 9 - len({(g, *p) for g, p in zip(*likely_peaks(peaks, many, heat), strict=True)})


def likely_peaks(peaks: Picked, many: int, heat: torch.Tensor) -> tuple[list[int], list[list[float]]]:
    """Groups and points of those peaks that are in their cell's likeliest group."""
    cells = ((peaks.points[0, :many] - 1.5) / 4).long()
    inner = heat[0].argmax(0)[cells[:, 1], cells[:, 0]] == peaks.groups[0, :many]
    return peaks.groups[0, :many][inner].tolist(), peaks.points[0, :many][inner].tolist()


def test_more_points_than_cells_is_all_cells() -> None:
    answer = pick(Proposals(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, 4)), torch.tensor([[16, 16]]), 256)
    assert answer.points.shape == (1, 16, 2)
