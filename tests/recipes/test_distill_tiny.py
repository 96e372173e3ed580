"""distill_tiny: the paper's equations by a second writing, what trains, chunks, stored embeddings, golden curve."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from tinyfit import changed, compare_golden, falls, settle, snapshot

from frisket.data.module import ShardData
from frisket.errors import UserError
from frisket.losses import distance, hardness
from frisket.recipes.distill_tiny import Config, DistillConfig, Module, TermConfig, histogram
from frisket.recipes.hard_prompts import HardConfig, sample
from frisket.recipes.recipe_config import ModelSpec
from frisket.sample import Batch

SMALL = {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2), "windows": (4, 4, 2), "classes": 4}
STUDENT = ModelSpec("tiny_sam", SMALL)
OFF = TermConfig(weight=0.0)
NO_TRUTH = {"focal": 0.0, "dice": 0.0, "iou": 0.0}
Fit = Callable[..., tuple[list[float], L.Trainer]]


@pytest.fixture
def recipe(tiny_shards: Path, tiny_teacher: Path) -> Callable[..., Module]:
    """A function (hard=HardConfig, **fields of DistillConfig) -> Module: a narrow TinyViT taught by tiny_teacher."""

    def make(hard: HardConfig | None = None, **fields: object) -> Module:
        config = Config(
            teacher=str(tiny_teacher), student=STUDENT, hard=hard or HardConfig(rounds=2),
            distill=DistillConfig(**fields),  # type: ignore[arg-type]
        )  # fmt: skip
        settle(config, tiny_shards)
        torch.manual_seed(0)
        return Module(config)

    return make


@pytest.fixture
def batch(recipe: Callable[..., Module]) -> Batch:
    return next(iter(ShardData(recipe().config.data).train_dataloader()))


def terms_of(module: Module, batch: Batch) -> dict[str, float]:
    """What a training step reports."""
    seen: dict[str, float] = {}
    module.report = lambda split, values, batch_size=1: seen.update({k: float(v) for k, v in values.items()})
    module.training_step(batch, 0)
    return seen


# ---------------------------------------------------------------- equations


def test_hardness_is_equation_6() -> None:
    assert float(hardness(torch.tensor([0.7]), torch.tensor([0.7]))) == pytest.approx(0.5, abs=1e-5)
    assert float(hardness(torch.tensor([0.0]), torch.tensor([0.4]))) == pytest.approx(0.2689, abs=1e-4)
    student = torch.tensor([0.8, 0.6, 0.45, 0.3, 0.1], requires_grad=True)
    weights = hardness(torch.full((5,), 0.9), student)
    assert weights.tolist() == pytest.approx([0.5312, 0.6225, 0.7311, 0.8808, 0.9997], abs=5e-5)
    assert (weights.diff() > 0).all() and not weights.requires_grad
    assert float(hardness(torch.tensor([0.9]), torch.tensor([0.0]))) == 1.0
    assert bool(hardness(torch.tensor([0.0]), torch.tensor([0.0])).isfinite())


def test_distances() -> None:
    a, b = torch.tensor([0.0, 3.0]), torch.tensor([0.5, 1.0])
    assert distance(a, b, "l1").tolist() == [0.5, 2.0]
    assert distance(a, b, "mse").tolist() == [0.25, 4.0]
    assert distance(a, b, "smooth_l1").tolist() == [0.125, 1.5]


def test_every_term_by_a_second_writing(recipe, batch: Batch) -> None:
    """Mask by mask, in plain Python where it can be."""
    module = recipe()
    sam, teacher = module.sam, module.teacher
    told = terms_of(module, batch)
    sam.train()
    with torch.no_grad():
        sam_embedding = sam.encode(batch.images, batch.sizes)
        theirs = teacher.encode(batch.images, batch.sizes)
        respond = partial(module.respond, sam_embedding, theirs, batch)
        prompts, _ = sample(batch, respond, module.config.hard, module.generator(batch))
        mine = sam.decode(sam_embedding, batch.image_index, prompts, multimask=True)
        wanted = teacher.decode(theirs, batch.image_index, prompts, multimask=True)
    assert mine.tokens is not None and wanted.tokens is not None and mine.tokens.shape[1:] == (5, 256)
    total = cells = 0.0
    for image, (h, w) in enumerate(batch.sizes.tolist()):
        for row in range(4):
            for column in range(4):
                if (row + 0.5) * 16 < h and (column + 0.5) * 16 < w:
                    total += float((sam_embedding - theirs)[image, :, row, column].abs().mean())
                    cells += 1
    output, focal, dice, iou, weights = [], [], [], [], []
    for n in range(len(batch.masks)):
        h, w = batch.sizes[batch.image_index[n]].tolist()
        seen = torch.tensor([[(y + 0.5) * 4 < h and (x + 0.5) * 4 < w for x in range(16)] for y in range(16)])
        truth = batch.masks[n][seen]
        ious = []
        for answer in (wanted, mine):
            masks = [answer.logits[n, c][seen] > 0 for c in range(3)]
            ious.append([float((m & truth).sum() / max(1, int((m | truth).sum()))) for m in masks])
        best = ious[0].index(max(ious[0]))
        weights.append(1 / (1 + math.exp(-(ious[0][best] / (ious[1][best] + 1e-6) - 1))) if ious[1][best] else
                       (1.0 if ious[0][best] else 1 / (1 + math.exp(1))))  # fmt: skip
        away = (mine.logits[n] - wanted.logits[n]).abs()[:, seen]
        output.append(weights[-1] * float(away.mean()))
        candidates = []
        for c in range(3):
            logits, t = mine.logits[n, c][seen].double(), truth.double()
            p = logits.sigmoid()
            right = torch.where(truth, p, 1 - p)
            f = float((torch.where(truth, 0.25, 0.75).double() * (1 - right) ** 2 * -right.log()).mean())
            d = float(1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
            candidates.append((20 * f + d, f, d))
            iou.append(abs(float(mine.iou[n, c]) - ious[1][c]))
        focal.append(min(candidates)[1])
        dice.append(min(candidates)[2])

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    expected = {
        "embedding": total / cells, "token": float((mine.tokens - wanted.tokens).abs().mean()), "output": mean(output),
        "focal": mean(focal), "dice": mean(dice), "iou": mean(iou),
    }  # fmt: skip
    assert {name: told[f"loss/{name}"] for name in expected} == pytest.approx(expected, rel=2e-4)
    assert told["hardness/mean"] == pytest.approx(mean(weights), rel=1e-4)
    assert told["loss"] == pytest.approx(
        sum(module.weights()[name] * value for name, value in expected.items()), rel=2e-4
    )


def test_weighting_off_is_all_ones_and_normalized_divides_by_the_mean(recipe, batch: Batch) -> None:
    plain, hard, normal = (terms_of(recipe(weighting=kind), batch) for kind in ("none", "hard", "hard_normalized"))
    assert plain["hardness/mean"] == 1.0
    assert normal["loss/output"] == pytest.approx(hard["loss/output"] / hard["hardness/mean"], rel=1e-5)
    assert plain["loss/output"] != pytest.approx(hard["loss/output"], rel=1e-2)
    for name in ("embedding", "token", "focal", "dice", "iou"):
        assert plain[f"loss/{name}"] == pytest.approx(hard[f"loss/{name}"], rel=1e-5)  # only the output is weighted


def test_the_log_shows_the_weights_histogram() -> None:
    shown = {name: float(value) for name, value in histogram(torch.tensor([0.3, 0.45, 0.5, 0.55, 0.9])).items()}
    assert shown == pytest.approx(
        {"hardness/mean": 0.54, "hardness/0-0.4": 0.2, "hardness/0.4-0.5": 0.4, "hardness/0.5-0.6": 0.2,
         "hardness/0.6-0.8": 0.0, "hardness/0.8-1": 0.2}
    )  # fmt: skip


# ---------------------------------------------------------------- what is asked and what trains


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"token": OFF, "output": OFF, **NO_TRUTH},  # embedding alone: the decoder is not asked
        {"embedding": OFF, "output": OFF, **NO_TRUTH},
        {"embedding": OFF, "token": OFF, **NO_TRUTH},
        {"embedding": OFF, "token": OFF, "output": OFF},  # the paper's baseline: ground truth alone
        {"embedding": OFF, "token": OFF, "output": OFF, "focal": 0.0, "dice": 0.0},
        {"target": "teacher"},
        {"decoder_rate": 0.0},
    ],
    ids=["full", "embedding", "token", "output", "truth", "iou", "teacher", "frozen decoder"],
)
def test_every_trained_parameter_gets_a_gradient_and_others_none(recipe, batch: Batch, fields: dict) -> None:
    module = recipe(**fields)
    teacher = snapshot(module.teacher)
    module.training_step(batch, 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in module.named_parameters() if not p.requires_grad and p.grad is not None] == []
    trained = {n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad}
    decoder = fields.get("decoder_rate", 1) and set(fields) != {"token", "output", *NO_TRUTH}
    assert trained == ({"image_encoder", "mask_decoder"} if decoder else {"image_encoder"})
    assert changed(teacher, module.teacher) == set()


def test_a_loss_of_nothing_is_refused(recipe) -> None:
    with pytest.raises(UserError, match="all weights of distill are 0"):
        recipe(embedding=OFF, token=OFF, output=OFF, **NO_TRUTH)


def test_the_decoder_learns_at_a_tenth_of_the_rate(recipe, fit: Fit) -> None:
    module = recipe()
    _, trainer = fit(module, 1)
    rates = {id(p): group["initial_lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    by_part = {
        part: {rates[id(p)] for p in getattr(module.sam, part).parameters() if id(p) in rates}
        for part in ("image_encoder", "mask_decoder", "prompt_encoder")
    }
    lr = module.config.optim.lr
    assert by_part["image_encoder"] == {lr} and by_part["prompt_encoder"] == set()
    assert [*by_part["mask_decoder"]] == pytest.approx([0.1 * lr])


def test_chunks_change_neither_loss_nor_gradients(recipe, batch: Batch) -> None:
    results = []
    for at_once in (None, 1, 3):
        module = recipe()
        module.config.place.prompts_at_once = at_once
        loss = module.training_step(batch, 0)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}))
    for loss, gradients in results[1:]:
        torch.testing.assert_close(loss, results[0][0])
        assert gradients.keys() == results[0][1].keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-5, rtol=1e-3, msg=name)


def test_no_activation_of_one_chunk_lives_while_the_next_runs(recipe, batch: Batch) -> None:
    """Bytes that the forward pass keeps for the backward pass: with chunks hardly more than without masks."""

    def kept(at_once: int | None) -> int:
        module, saved = recipe(hard=HardConfig(rounds=0)), {}
        module.config.place.prompts_at_once = at_once

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module.training_step(batch, 0)
        return sum(saved.values())

    assert kept(2) < 0.6 * kept(None)


def test_padding_and_the_teachers_answers_are_used_as_said(recipe, batch: Batch) -> None:
    module = recipe(target="teacher")
    other = replace(batch, masks=~batch.masks)  # where the truth lies changes only where clicks begin
    first = terms_of(module, batch)
    assert first["loss/embedding"] == pytest.approx(terms_of(module, other)["loss/embedding"])
    boxes = HardConfig(box_probability=1.0, box_noise=0.0)
    with_truth, without = (terms_of(recipe(hard=boxes, target="teacher"), each) for each in (batch, other))
    assert with_truth == pytest.approx(without)  # boxes alone: no mask of the data is looked at


def test_stored_embeddings_spare_the_teachers_encoder(recipe, batch: Batch) -> None:
    module = recipe()
    with torch.no_grad():
        live = module.teacher.encode(batch.images, batch.sizes)
    expected = terms_of(module, batch)

    def never(*_: object) -> None:
        raise AssertionError("the teacher's encoder ran")

    module.teacher.image_encoder.register_forward_pre_hook(never)
    assert terms_of(module, replace(batch, embedding=live)) == pytest.approx(expected, rel=1e-5)


def test_batchnorm_may_stay_frozen(recipe, fit: Fit) -> None:
    for kind, moves in (("train", True), ("frozen", False)):
        module = recipe(batchnorm=kind)
        before = snapshot(module.sam.image_encoder)
        fit(module, 1)
        moved = changed(before, module.sam.image_encoder)
        assert any("running_mean" in name for name in moved) == moves
        assert any("bn.weight" in name for name in moved)


@pytest.mark.parametrize("weighting", ["hard", "hard_normalized", "none"])
def test_a_photograph_without_masks_teaches_the_embedding_alone(
    recipe, batch_of: Callable[..., Batch], weighting: str
) -> None:
    module = recipe(weighting=weighting)
    module.training_step(batch_of([torch.zeros(0, 16, 16, dtype=torch.bool)] * 2), 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    losses, _ = fit(recipe(), 20)
    assert falls(losses)
    compare_golden("distill_tiny", losses, tolerance=0.05)


def test_flops_count_the_teacher_where_its_encoder_runs(recipe) -> None:
    module = recipe()
    mine, theirs = (part.image_encoder.macs(64) for part in (module.sam, module.teacher))
    assert module.model_flops_per_image() == 2 * (3 * mine + theirs)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(has_embeddings=True))
    assert module.model_flops_per_image() == 2 * 3 * mine
