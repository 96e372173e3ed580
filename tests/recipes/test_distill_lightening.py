"""distill_lightening: the schedule's values, the layer map, what trains, and where the teacher is not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import plugged
import pytest
import torch
from tinyfit import changed, compare_golden, falls, settle, snapshot, trainer_of

from frisket import checkpoint, plugins
from frisket.data.module import ShardData
from frisket.errors import UserError
from frisket.losses import feature_loss
from frisket.prep import embed
from frisket.prep.run import prep
from frisket.recipes.distill_lightening import Config, DistillConfig, Module, focus_pairs, layer_weights
from frisket.recipes.recipe_config import ModelSpec
from frisket.sample import valid_tokens

STUDENT = ModelSpec("lightening", {"width": 48, "depth": 4, "heads": 3})
Fit = Callable[..., tuple[list[float], L.Trainer]]


@pytest.fixture
def recipe(tiny_shards: Path, tiny_teacher: Path) -> Callable[..., Module]:
    """A function (**fields of DistillConfig) -> Module: 48 wide, 4 blocks, taught by tiny_teacher's 4 blocks of 64."""

    def make(student: ModelSpec = STUDENT, **fields: object) -> Module:
        config = Config(
            teacher=str(tiny_teacher),
            student=student,
            distill=DistillConfig(**fields),  # type: ignore[arg-type]
        )
        settle(config, tiny_shards)
        torch.manual_seed(0)
        return Module(config)

    return make


# ---------------------------------------------------------------- layer map


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (6, 12, [(2, 4), (4, 8), (6, 12)]),  # i -> 2 i
        (6, 32, [(2, 11), (4, 21), (6, 32)]),  # ViT-H
        (4, 4, [(2, 2), (4, 4)]),
        (1, 12, [(1, 12)]),
        (6, 1, [(2, 1), (4, 1), (6, 1)]),
        (9, 12, [(2, 3), (4, 5), (6, 8), (8, 11)]),
    ],
)
def test_focus_pairs(student: int, teacher: int, pairs: list[tuple[int, int]]) -> None:
    assert focus_pairs(student, teacher, DistillConfig()) == pairs
    assert focus_pairs(student, teacher, DistillConfig(schedule="neck")) == []


def test_given_focus_pairs() -> None:
    config = DistillConfig(student_blocks=[1, 5], teacher_blocks=[3, 32])
    assert focus_pairs(6, 32, config) == [(1, 3), (5, 32)]


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ([2, 7], [1, 2], "distill.student_blocks=[2, 7] must rise within 1..6"),
        ([0, 2], [1, 2], "distill.student_blocks=[0, 2]"),
        ([4, 2], [1, 2], "distill.student_blocks=[4, 2]"),
        ([2, 2], [1, 2], "distill.student_blocks=[2, 2]"),
        ([2, 4], [1, 33], "distill.teacher_blocks=[1, 33] must rise within 1..32"),
        ([2, 4], [1], "has 2 entries and distill.teacher_blocks 1"),
        ([], [1, 2], "has 3 entries and distill.teacher_blocks 2"),
    ],
)
def test_bad_focus_pairs(student: list[int], teacher: list[int], words: str) -> None:
    with pytest.raises(UserError) as caught:
        focus_pairs(6, 32, DistillConfig(student_blocks=student, teacher_blocks=teacher))
    assert words in str(caught.value)


# ---------------------------------------------------------------- schedule

STEPS, STAGE = 1000, 100


def weights_at(u: float, **settings: object) -> tuple[list[float], float]:
    config = DistillConfig(stage_steps=STAGE, **settings)  # type: ignore[arg-type]
    return layer_weights(round(u * STAGE), 3, steps=STEPS, config=config)


@pytest.mark.parametrize(
    ("u", "layers", "neck"),
    [
        (0, [0, 0, 0], 0.2),
        (0.5, [0.5, 0, 0], 0.2),
        (1, [1, 0, 0], 0.2),
        (1.5, [0.75, 0.5, 0], 0.2),
        (2, [0.5, 1, 0], 0.2),
        (2.5, [0.25, 0.75, 0.5], 0.2),
        (3, [0.1, 0.5, 1], 0.2),  # u = K: the neck's turn begins
        (3.5, [0.1, 0.25, 0.75], 0.5),
        (4, [0.1, 0.1, 0.5], 1),
        (10, [0.1, 0.1, 0.1], 1),
    ],
)
def test_cascade_values(u: float, layers: list[float], neck: float) -> None:
    got, got_neck = weights_at(u, deeper_is_heavier=False)
    assert got == pytest.approx(layers) and got_neck == pytest.approx(neck)
    deeper, deeper_neck = weights_at(u)
    assert deeper == pytest.approx([w * d for w, d in zip(layers, (1 / 3, 2 / 3, 1))]) and deeper_neck == got_neck


def test_the_hand_over_is_monotone() -> None:
    """The centre of weight only moves deeper, no weight jumps, and none leaves [0, 1]."""
    config = DistillConfig(stage_steps=STAGE, deeper_is_heavier=False, neck_full=1.0)
    curve = [layer_weights(step, 3, steps=STEPS, config=config) for step in range(1, 5 * STAGE)]
    rows = torch.tensor([[*layers, neck] for layers, neck in curve])
    assert rows.min() >= 0 and rows.max() <= 1
    assert (rows[1:] - rows[:-1]).abs().max() <= 1 / STAGE + 1e-6
    layers = rows[:, :3]
    centre = (layers * torch.arange(3)).sum(1) / layers.sum(1)
    assert (centre[1:] >= centre[:-1] - 1e-6)[: 3 * STAGE - 2].all()
    assert (rows[1:, 3] >= rows[:-1, 3]).all()


def test_the_neck_is_whole_for_the_last_third() -> None:
    slow = DistillConfig(stage_steps=STEPS)  # the cascade alone would never reach the neck
    assert layer_weights(666, 3, steps=STEPS, config=slow)[1] == pytest.approx(0.2)
    assert layer_weights(667, 3, steps=STEPS, config=slow)[1] == 1.0


def test_stage_default_is_15_percent() -> None:
    assert layer_weights(75, 3, steps=1000, config=DistillConfig(deeper_is_heavier=False))[0][0] == pytest.approx(0.5)
    assert layer_weights(1, 3, steps=2, config=DistillConfig())[0][0] == pytest.approx(1 / 3)  # never below one step


def test_constant_and_neck_schedules() -> None:
    for u in (0, 3, 9):
        assert weights_at(u, schedule="constant") == (pytest.approx([1 / 3, 2 / 3, 1]), 1.0)
        assert weights_at(u, schedule="constant", deeper_is_heavier=False) == ([1, 1, 1], 1.0)
    assert layer_weights(0, 0, steps=9, config=DistillConfig(schedule="neck")) == ([], 1.0)


# ---------------------------------------------------------------- training


def test_one_step_changes_the_encoder_and_the_projections_only(recipe, fit: Fit) -> None:
    module = recipe(schedule="constant")
    before, teacher = snapshot(module), snapshot(module.teacher)
    fit(module, 1)
    expected = {
        name for name, _ in module.named_parameters() if name.startswith(("sam.image_encoder.", "projections."))
    }
    assert changed(before, module) == expected
    assert changed(teacher, module.teacher) == set()


def test_every_trained_parameter_gets_a_gradient(recipe) -> None:
    for schedule in ("cascade", "constant", "neck"):
        module = recipe(schedule=schedule)
        batch = next(iter(ShardData(module.config.data).train_dataloader()))
        module.training_step(batch, 0).backward()
        assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_teacher_is_nowhere(recipe, fit: Fit, tmp_path: Path) -> None:
    module = recipe()
    teacher = {id(p) for p in module.teacher.parameters()}
    assert not teacher & {id(p) for p in module.parameters()}
    assert not any(m is module.teacher for m in module.modules())
    assert not any(p.requires_grad for p in module.teacher.parameters())
    _, trainer = fit(module, 1)
    optimizer = trainer.optimizers[0]
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for name, p in module.named_parameters() if name.startswith(("sam.image_encoder", "projections"))}
    assert grouped == trained
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    state = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith(("sam.", "projections.")) for name in state)
    count = sum(p.numel() for p in module.parameters()) + 256  # the prompt encoder's Fourier matrix is a buffer
    assert sum(value.numel() for value in state.values()) == count


def test_frozen_parts_stay_in_eval_mode(recipe, fit: Fit) -> None:
    module = recipe()
    fit(module, 2, validate=True)
    module.train()
    assert module.sam.image_encoder.training
    assert not any(m.training for m in [*module.sam.prompt_encoder.modules(), *module.sam.mask_decoder.modules()])
    assert not any(m.training for m in module.teacher.modules())


def test_the_student_starts_with_the_teachers_decoder(recipe) -> None:
    module = recipe()
    assert changed(snapshot(module.teacher.mask_decoder), module.sam.mask_decoder) == set()
    assert changed(snapshot(module.teacher.prompt_encoder), module.sam.prompt_encoder) == set()


def test_the_loss_is_the_formula(recipe) -> None:
    """The docstring's sum, from hooks on the blocks rather than from forward_features."""
    module = recipe(schedule="constant", stage_steps=1)
    module.eval()
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    seen: dict[str, torch.Tensor] = {}
    for who, encoder, blocks in (
        ("s", module.sam.image_encoder, [2, 4]),
        ("t", module.teacher.image_encoder, [2, 4]),
    ):
        for block in blocks:
            encoder.blocks[block - 1].register_forward_hook(
                lambda m, i, out, key=f"{who}{block}": seen.__setitem__(key, out.detach())
            )
    with torch.no_grad():
        embeddings = [sam.encode(batch.images, batch.sizes).movedim(1, -1) for sam in (module.sam, module.teacher)]
        loss = module.training_step(batch, 0)
    valid = valid_tokens(batch, 4)
    assert not valid.all()  # the shards hold photographs that are not square
    expected = (embeddings[0] - embeddings[1])[valid].square().mean()
    for depth, block, project in ((1 / 2, 2, module.projections[0]), (1.0, 4, module.projections[1])):
        theirs = seen[f"t{block}"].view(4, 4, 4, -1)
        normal = (theirs - theirs.mean(-1, keepdim=True)) / (theirs.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        mine = project(seen[f"s{block}"].view(4, 4, 4, -1))
        expected = expected + depth * (mine - normal)[valid].square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_stored_embeddings_replace_the_teacher(recipe) -> None:
    module = recipe(schedule="neck")
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    with torch.no_grad():
        live = module.training_step(batch, 0)
        batch.embedding = module.teacher.encode(batch.images, batch.sizes)
        module.teachers[0].image_encoder = torch.nn.Identity()  # would fail if it were asked
        stored = module.training_step(batch, 0)
        other = feature_loss(
            module.sam.encode(batch.images, batch.sizes).movedim(1, -1),
            batch.embedding.movedim(1, -1),
            valid=valid_tokens(batch, 4),
        )
    assert stored.item() == pytest.approx(live.item(), rel=1e-5) == pytest.approx(other.item(), rel=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 1e-3), ("int8", 1e-2)])
def test_a_cascade_runs_without_the_teacher_where_all_it_compares_is_stored(
    recipe, fit: Fit, tiny_shards: Path, tmp_path: Path, dtype: str, tolerance: float
) -> None:
    """The same losses as under the live teacher, within the storage's rounding, and no call of its encoder."""
    live, _ = fit(recipe(stage_steps=2), 6)
    module = recipe(stage_steps=2)
    stored = {"inputs": str(tiny_shards / "train"), "teacher": module.config.teacher, "image_size": 64}
    prep(embed.Config(**stored, out=str(tmp_path / "both"), blocks=[2, 4], dtype=dtype))  # type: ignore[arg-type]
    module.config.data.embeddings = str(tmp_path / "both")
    calls: list[object] = []
    encoder = module.teacher.image_encoder
    encoder.patch_embed.register_forward_hook(lambda *_: calls.append(1))
    losses, _ = fit(module, 6)
    assert losses == pytest.approx(live, rel=tolerance) and losses != live
    assert calls == [] and not module.asks_encoder()
    assert module.model_flops_per_image() == 6 * module.sam.image_encoder.macs(64)

    prep(embed.Config(**stored, out=str(tmp_path / "some"), blocks=[4]))
    module.config.data.embeddings = str(tmp_path / "some")
    with pytest.raises(
        UserError, match=r"block 2 of the teacher, .* is not stored: .*\(2 of 2 shards\); .*blocks=\[2, 4\]"
    ):
        fit(module, 6)
    shallow = recipe(stage_steps=2, student_blocks=[1, 2], teacher_blocks=[4, 4])  # one block teaches two
    shallow.config.data.embeddings = str(tmp_path / "some")
    fit(shallow, 1)


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    # constant weights: under the cascade the loss itself changes meaning from step to step
    losses, _ = fit(recipe(schedule="constant"), 20)
    assert falls(losses)
    curve, _ = fit(recipe(), 20)
    compare_golden("distill_lightening", curve, tolerance=0.02)


def test_what_has_no_weight_yet_takes_no_step(recipe, fit: Fit) -> None:
    """Else Adam, grown used to nothing, would move a layer that joins by several times the rate."""
    module = recipe(stage_steps=3)
    before = snapshot(module)
    _, trainer = fit(module, 4)  # the second pair's weight is 0 at steps 0 to 3
    second = {name for name, _ in module.named_parameters() if name.startswith("projections.1.")}
    assert second and not second & changed(before, module)
    stepped = trainer.optimizers[0].state
    assert not any(parameter in stepped for parameter in module.projections[1].parameters())
    assert all(parameter in stepped for parameter in module.projections[0].parameters())
    module = recipe(stage_steps=3)
    _, trainer = fit(module, 6)
    assert second <= changed(before, module)
    assert [int(trainer.optimizers[0].state[p]["step"]) for p in module.projections[1].parameters()] == [2, 2]


def test_a_longer_run_keeps_the_stages_first_planned(
    recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe()
    data = ShardData(first.config.data)
    trainer = trainer_of(tmp_path, 10)
    trainer.fit(first, datamodule=data)
    assert "in the 20 steps first planned: a layer joins every 3 steps" in capsys.readouterr().out
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    first.config.trainer.max_steps = 200
    again = Module(first.config, checkpoint.recorded(tmp_path / "last.ckpt"))
    asked: list[tuple[list[float], float]] = []
    again.weights = lambda: asked.append(Module.weights(again)) or asked[-1]  # type: ignore[method-assign]
    trainer_of(tmp_path, 11).fit(again, datamodule=data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert "20 steps first planned, kept though trainer.max_steps=200" in capsys.readouterr().out
    assert asked[0] == layer_weights(10, 2, steps=20, config=first.config.distill)


def test_the_projections_are_not_in_the_model(recipe, fit: Fit, tmp_path: Path) -> None:
    module = recipe()
    _, trainer = fit(module, 1)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    assert changed(snapshot(module.sam), checkpoint.load(tmp_path / "x.ckpt")) == set()


def test_a_run_with_other_focus_blocks_is_not_continued(recipe, fit: Fit, tmp_path: Path) -> None:
    first = recipe()
    _, trainer = fit(first, 1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resume = checkpoint.recorded(tmp_path / "last.ckpt")
    Module(first.config, resume).check_resume(tmp_path)
    first.config.distill.schedule = "neck"  # no projections
    with pytest.raises(UserError, match=r"another teacher or blocks \(unexpected: projections.*set name="):
        Module(first.config, resume).check_resume(tmp_path)


def test_the_gallery_shows_teacher_student_and_truth(recipe) -> None:
    module = recipe()
    batch = next(iter(ShardData(module.config.data).val_dataloader()))
    columns = module.gallery_columns(batch)
    assert list(columns) == ["teacher", "student"]
    assert all(c.shape == batch.masks.shape and c.dtype == torch.bool for c in columns.values())


def test_stages_of_other_width_and_grid_are_taught(recipe, fit: Fit) -> None:
    """A pyramid's first stage has half the teacher's cell: it is averaged over the teacher's grid, then projected."""
    plugins.load(["plugged"])
    student = {"student": ModelSpec("pyramid"), "schedule": "constant", "student_blocks": [1, 2]}
    module = recipe(**student, teacher_blocks=[2, 4])
    assert [(p.in_features, p.out_features) for p in module.projections] == [(8, 64), (16, 64)]
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    with torch.no_grad():
        loss = module.training_step(batch, 0)
        images = module.sam.preprocess(batch.images, batch.sizes)
        neck, mine = module.sam.image_encoder.forward_features(images, [0, 1])
        target, theirs = module.teacher.image_encoder.forward_features(images, [1, 3])
    seen = valid_tokens(batch, 4)
    expected = (neck - target).movedim(1, -1)[seen].square().mean()
    averaged = mine[0].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4))
    for depth, x, y, project in zip((1 / 2, 1.0), (averaged, mine[1]), theirs, module.projections):
        normal = torch.nn.functional.layer_norm(y, y.shape[-1:])
        expected = expected + depth * (project(x) - normal)[seen].square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    fit(module, 1)


def test_the_neck_schedule_asks_for_no_taps(recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins.load(["plugged"])
    tapless = type("Tapless", (plugged.Pyramid,), {"taps": property(lambda self: (), lambda self, value: None)})
    row = replace(plugged.ENCODERS["pyramid"], encoder=tapless)
    monkeypatch.setitem(plugged.ENCODERS, "pyramid", row)
    module = recipe(student=ModelSpec("pyramid"), schedule="neck")
    module.training_step(next(iter(ShardData(module.config.data).train_dataloader())), 0).backward()
    with pytest.raises(UserError, match=r"the student has 0 taps.*set distill\.schedule=neck"):
        recipe(student=ModelSpec("pyramid"), schedule="cascade")


def test_other_channels_are_refused_and_another_side_is_said(recipe, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe().config
    config.student = ModelSpec("lightening", dict(config.student.encoder) | {"out_channels": 128})
    with pytest.raises(UserError, match="student's embedding has 128 channels and the teacher's 256"):
        Module(config)
    assert "is asked at" not in capsys.readouterr().err
    config.student = ModelSpec("lightening", {"width": 48, "depth": 4, "heads": 3})
    config.data.image_size = 128
    Module(config)
    assert "is of 64 px and is asked at 128 px" in capsys.readouterr().err
