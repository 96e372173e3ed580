"""SAM's interactive loop, driven by decoders that know the answer: clicks, labels, carried masks, rounds."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from frisket.losses import dice_loss, focal_loss
from frisket.models.sam import Sam
from frisket.recipes.interactive import InteractiveConfig, click_rounds, first_prompts, interactive_loss
from frisket.sample import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    IGNORED,
    TOP_LEFT,
    Batch,
    Prediction,
    Prompts,
    valid_cells,
    valid_tokens,
)


class Oracle(nn.Module):
    """A decoder that answers with given logits (N, G, G) whatever it is asked, and remembers every question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = nn.Parameter(answer.clone())
        self.asked: list[tuple[Prompts, bool]] = []

    def decode(self, embeddings: Tensor, image_index: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
        self.asked.append((prompts, multimask))
        count = 3 if multimask else 1
        iou = torch.linspace(0.5, 1.0, count).expand(len(self.answer), count) if multimask else None
        ones = torch.ones(len(self.answer), 1) if iou is None else iou
        return Prediction(self.answer[:, None].expand(-1, count, -1, -1), ones)


def session(answer: Tensor, batch: Batch, **settings: float) -> tuple[Oracle, Tensor, dict[str, Tensor]]:
    oracle = Oracle(answer)
    config = InteractiveConfig(**settings)  # type: ignore[arg-type]
    loss, terms = interactive_loss(oracle, torch.zeros(1), batch, config, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    return oracle, loss, terms


def clicks_of(oracle: Oracle) -> tuple[Tensor, Tensor]:
    """All clicks after the first prompt: cells (N, K, 2) and labels (N, K)."""
    last = oracle.asked[-1][0]
    assert last.points is not None and last.labels is not None
    return ((last.points[:, 2:] + 0.5) / 4 - 0.5).round().long(), last.labels[:, 2:]


@pytest.fixture
def batch(batch_of: Callable[..., Batch]) -> Batch:
    """Two photographs (64 x 64 and 64 x 40 with padding on the right), three and two objects."""
    masks = torch.zeros(5, 16, 16, dtype=torch.bool)
    for number, mask in enumerate(masks):
        mask[number : number + 6, 1 : 4 + number] = True
    return batch_of([masks[:3], masks[3:]], [(64, 64), (64, 40)])


def test_eleven_rounds_as_in_the_paper(batch: Batch) -> None:
    assert InteractiveConfig().rounds == 11
    oracle, _, _ = session(torch.randn(5, 16, 16), batch)
    assert len(oracle.asked) == 11
    assert [multimask for _, multimask in oracle.asked] == [True] + [False] * 10
    grown = [0]
    for (before, _), (after, _) in zip(oracle.asked, oracle.asked[1:]):
        assert before.points is not None and after.points is not None
        grown.append(after.points.shape[1] - before.points.shape[1])
    assert sum(grown) == 8 and set(grown) == {0, 1} and grown[-1] == 0  # eight clicks, and the last round only refines
    assert oracle.asked[0][0].masks is None
    assert all(torch.equal(p.masks, oracle.answer[:, None]) for p, _ in oracle.asked[1:])  # raw logits, never cut


def test_the_carried_mask_is_cut_from_the_graph(batch: Batch) -> None:
    oracle, _, _ = session(torch.randn(5, 16, 16), batch)
    assert not any(p.masks.requires_grad for p, _ in oracle.asked[1:] if p.masks is not None)


def test_rounds_vary_but_the_last_is_a_refine() -> None:
    places = set()
    for seed in range(60):
        rounds = click_rounds(InteractiveConfig(), torch.Generator().manual_seed(seed))
        assert len(rounds) == 10 and sum(rounds) == 8 and rounds[-1] is False
        places.add(rounds.index(False))
    assert places == set(range(9))


@pytest.mark.parametrize(
    ("clicks", "refines", "expected"),
    [(0, 0, []), (2, 0, [True, True]), (0, 1, [False]), (0, 2, [False, False]), (1, 1, [True, False])],
)
def test_short_sessions(clicks: int, refines: int, expected: list[bool]) -> None:
    config = InteractiveConfig(clicks=clicks, refines=refines)
    assert click_rounds(config, torch.Generator()) == expected
    assert config.rounds == 1 + len(expected)


def test_a_perfect_decoder_gets_background_clicks_and_no_loss(batch: Batch) -> None:
    truth = batch.masks
    oracle, loss, terms = session(torch.where(truth, 20.0, -20.0), batch, box_probability=0.0)
    cells, labels = clicks_of(oracle)
    assert labels.eq(BACKGROUND).all()
    rows = torch.arange(5)[:, None]
    assert not truth[rows, cells[..., 1], cells[..., 0]].any()
    assert valid_cells(batch)[rows, cells[..., 1], cells[..., 0]].all()
    assert terms["focal"] < 1e-8 and terms["dice"] < 1e-5
    # only round 1's two lower candidates said less than their real IoU of 1
    assert terms["iou"].item() == pytest.approx((0.5**2 + 0.25**2) / 3 / 11)
    assert loss.item() == pytest.approx(terms["iou"].item(), abs=1e-4)


def test_a_perfect_decoder_of_a_full_image_gets_ignored_clicks(batch_of: Callable[..., Batch]) -> None:
    truth = torch.ones(2, 16, 16, dtype=torch.bool)
    oracle, loss, _ = session(torch.full((2, 16, 16), 20.0), batch_of([truth]))
    assert clicks_of(oracle)[1].eq(IGNORED).all()
    assert torch.isfinite(loss)


@pytest.mark.parametrize(("says", "label"), [(-20.0, FOREGROUND), (20.0, BACKGROUND), (0.1, BACKGROUND)])
def test_clicks_fall_in_the_error(batch: Batch, says: float, label: int) -> None:
    oracle, _, _ = session(torch.full((5, 16, 16), says), batch)
    cells, labels = clicks_of(oracle)
    assert labels.eq(label).all()
    rows = torch.arange(5)[:, None]
    assert batch.masks[rows, cells[..., 1], cells[..., 0]].eq(label == FOREGROUND).all()
    assert valid_cells(batch)[rows, cells[..., 1], cells[..., 0]].all()


def test_the_error_is_that_of_the_mask_it_believes_in(batch: Batch) -> None:
    """Three candidates, the believed one misses everything, another is perfect: the first click is a miss."""
    truth = batch.masks

    class Three(Oracle):
        def decode(self, embeddings: Tensor, image_index: Tensor, prompts: Prompts, multimask: bool) -> Prediction:
            self.asked.append((prompts, multimask))
            right = torch.where(truth, 20.0, -20.0)
            logits = torch.stack([right, right, self.answer], dim=1) if multimask else right[:, None]
            return Prediction(logits, torch.tensor([[0.1, 0.2, 0.3]]).expand(5, 3) if multimask else torch.ones(5, 1))

    model = Three(torch.full((5, 16, 16), -20.0))
    generator = torch.Generator().manual_seed(0)
    config = InteractiveConfig(clicks=2, refines=0)
    interactive_loss(model, torch.zeros(1), batch, config, generator)  # type: ignore[arg-type]
    assert torch.equal(model.asked[1][0].masks[:, 0], model.answer)
    labels = clicks_of(model)[1]
    assert labels[:, 0].eq(FOREGROUND).all() and labels[:, 1].eq(BACKGROUND).all()


def test_one_round_is_the_plain_loss(batch: Batch) -> None:
    answer = torch.randn(5, 16, 16)
    _, loss, terms = session(answer, batch, clicks=0, refines=0, focal=3.0, dice=5.0, iou=0.0)
    valid = valid_cells(batch)
    focal = focal_loss(answer, batch.masks, valid=valid).mean()
    dice = dice_loss(answer, batch.masks, valid=valid).mean()
    assert terms["focal"].item() == pytest.approx(focal.item(), rel=1e-5)
    assert loss.item() == pytest.approx(3 * focal.item() + 5 * dice.item(), rel=1e-5)


def test_padding_neither_counts_nor_trains(batch: Batch) -> None:
    oracle, loss, _ = session(torch.randn(5, 16, 16), batch)
    loss.backward()
    valid = valid_cells(batch)
    assert oracle.answer.grad[~valid].abs().max() == 0 and oracle.answer.grad[valid].abs().min() > 0


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_first_prompts_are_points_or_boxes(batch_of: Callable[..., Batch], probability: float) -> None:
    masks = torch.zeros(400, 16, 16, dtype=torch.bool)
    masks[:, 4:9, 6:12] = True
    config = InteractiveConfig(box_probability=probability)
    batch = batch_of([masks])
    prompts = first_prompts(batch, config, torch.Generator().manual_seed(0))
    boxed = prompts.labels[:, 0] == TOP_LEFT
    assert prompts.labels[boxed].eq(torch.tensor([TOP_LEFT, BOTTOM_RIGHT])).all()
    assert prompts.labels[~boxed].eq(torch.tensor([FOREGROUND, IGNORED])).all()
    assert abs(boxed.float().mean().item() - probability) < 0.1
    # boxes of this size move by at most the cap at 64 px; points stay on the object
    assert (
        (prompts.points[boxed].flatten(1) - batch.boxes[boxed]).abs().max() <= 20 * 64 / 1024 if boxed.any() else True
    )
    x, y = ((prompts.points[~boxed, 0] + 0.5) / 4 - 0.5).long().unbind(1)
    assert masks[0][y, x].all()


def test_a_batch_without_masks_is_zero_and_trains_nothing(tiny_sam: Sam, batch_of: Callable[..., Batch]) -> None:
    """Repeated samples and empty photographs come without masks; every rank must still reach its backward pass."""
    for images in (1, 2):
        batch = batch_of([torch.zeros(0, 16, 16, dtype=torch.bool)] * images)
        embeddings = tiny_sam.encode(batch.images, batch.sizes)
        config = InteractiveConfig(clicks=1, refines=1)
        loss, _ = interactive_loss(tiny_sam, embeddings, batch, config, torch.Generator().manual_seed(0))
        assert loss.item() == 0
        loss.backward()
        assert all(p.grad is None or p.grad.abs().max() == 0 for p in tiny_sam.parameters())


def test_an_object_does_not_see_its_neighbours(tiny_sam: Sam, batch: Batch) -> None:
    """The flat batch over two photographs equals asking about each object alone."""
    embeddings = tiny_sam.encode(batch.images, batch.sizes)
    prompts = first_prompts(batch, InteractiveConfig(), torch.Generator().manual_seed(1))
    together = tiny_sam.decode(embeddings, batch.image_index, prompts, multimask=True)
    for row in range(5):
        one = slice(row, row + 1)
        image = batch.image_index[row]
        alone = tiny_sam.decode(embeddings[image][None], torch.zeros(1, dtype=torch.long), prompts[one], multimask=True)
        assert torch.allclose(together.logits[one], alone.logits, atol=1e-4)


def test_valid_cells_and_tokens(batch_of: Callable[..., Batch]) -> None:
    none = torch.zeros(1, 16, 16, dtype=torch.bool)
    batch = batch_of([none, none[:0], none], [(64, 40), (10, 64), (43, 64)])
    cells = valid_cells(batch)
    assert cells.shape == (2, 16, 16)
    assert cells[0].any(0).sum() == 10 and cells[0].any(1).sum() == 16 and cells[0].sum() == 160
    assert cells[1].any(1).sum() == 11  # centre of cell 10 is 42 < 43
    tokens = valid_tokens(batch, 4)
    assert tokens.flatten(1).sum(1).tolist() == [4 * 2, 1 * 4, 3 * 4]  # 40 px: the third token is half padding


# ---------------------------------------------------------------- memory


class Peak(TorchDispatchMode):
    """Counts the bytes of all storages made inside and still alive: `most` at any one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for storage in {leaf.untyped_storage() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)}:
            if storage not in self._known:
                self._known[storage] = True
                self.held += storage.nbytes()
                self.most = max(self.most, self.held)
                weakref.finalize(storage, self._free, storage.nbytes())
        return out

    def _free(self, count: int) -> None:
        self.held -= count


def drawn(sam: Sam, batch: Batch, at_once: int | None) -> tuple[float, dict[str, Tensor], int]:
    """A whole session's loss, all gradients (the encoder's too), and the most bytes held at any time."""
    sam.zero_grad()
    with Peak() as peak:
        loss, _ = interactive_loss(
            sam, sam.encode(batch.images, batch.sizes), batch, InteractiveConfig(clicks=2, refines=1),
            torch.Generator().manual_seed(0), at_once=at_once,
        )  # fmt: skip
        loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in sam.named_parameters() if p.grad is not None}, peak.most


def test_prompts_decoded_in_chunks_give_the_gradients_of_the_plain_form(tiny_sam: Sam, batch: Batch) -> None:
    loss, gradients, _ = drawn(tiny_sam, batch, None)
    for at_once in (1, 2, 5, 9):
        other, others, _ = drawn(tiny_sam, batch, at_once)
        assert other == pytest.approx(loss, rel=1e-5) and others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.allclose(others[name], gradient, rtol=1e-4, atol=1e-6), name


def test_chunks_hold_the_activations_of_one_chunk(tiny_sam: Sam, batch_of: Callable[..., Batch]) -> None:
    masks = torch.zeros(24, 16, 16, dtype=torch.bool)
    masks[:, 3:9, 4:12] = True
    held = {at_once: drawn(tiny_sam, batch_of([masks]), at_once)[2] for at_once in (None, 24, 6)}
    assert held[24] < 0.6 * held[None]  # one round of four, and gradients of 36 MiB in each
    assert held[6] < 0.85 * held[24]
