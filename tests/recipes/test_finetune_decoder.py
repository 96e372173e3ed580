"""finetune_decoder: one step moves the decoder alone, frozen parts keep their statistics, the loss falls."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tinyfit import changed, compare_golden, falls, settle, snapshot
from torch import nn

from frisket import checkpoint
from frisket.cli.main import main
from frisket.data.module import ShardData
from frisket.errors import UserError
from frisket.fidelity import prompts_of
from frisket.models.zoo import build
from frisket.recipes.finetune_decoder import Config, Module
from frisket.recipes.interactive import InteractiveConfig

Fit = Callable[..., tuple[list[float], L.Trainer]]


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt of a tiny Lightening Sam."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("student") / "model.pt"
    checkpoint.save(build("lightening", image_size=64, width=48, depth=2, heads=3), path)
    return path


@pytest.fixture
def recipe(tiny_shards: Path, student: Path) -> Callable[..., Module]:
    """A function (**fields of Config) -> Module on tiny shards."""

    def make(**fields: object) -> Module:
        config = Config(init_from=str(student), **fields)  # type: ignore[arg-type]
        settle(config, tiny_shards, lr=1e-3)
        return Module(config)

    return make


def trained_names(module: Module, *parts: str) -> set[str]:
    return {name for name, _ in module.sam.named_parameters() if name.startswith(parts)}


def test_one_step_changes_the_decoder_only(recipe, fit: Fit) -> None:
    module = recipe()
    before = snapshot(module.sam)
    _, trainer = fit(module, 1)
    assert changed(before, module.sam) == trained_names(module, "mask_decoder.")
    grouped = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert grouped == {id(p) for p in module.sam.mask_decoder.parameters()}


ONE_ROUND = InteractiveConfig(clicks=0, refines=0)


def test_a_teachers_answers_are_learned_from_its_own_embeddings(recipe, fit: Fit, tiny_teacher: Path) -> None:
    """The student's logits come nearer to the teacher's, which is nowhere in what is saved."""
    module = recipe(teacher=str(tiny_teacher), prompts=ONE_ROUND)
    batch = next(iter(ShardData(module.config.data).train_dataloader()))

    def apart() -> float:
        with torch.no_grad():
            asked, owners = prompts_of(batch), batch.image_index.repeat(2)
            mine, theirs = (
                sam.decode(sam.encode(batch.images, batch.sizes), owners, asked, multimask=True).logits
                for sam in (module.sam, module.reference())
            )
        return float((mine - theirs).square().mean())

    before, frozen = apart(), snapshot(module.reference())
    fit(module, 20)
    assert apart() < 0.5 * before
    assert changed(frozen, module.reference()) == set()
    assert not any("teacher" in name for name in module.state_dict())


def test_imitating_oneself_leaves_only_the_answers_own_entropy(recipe, student: Path) -> None:
    module = recipe(teacher=str(student), prompts=ONE_ROUND)
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    loss, terms = module.imitation(module.reference(), module.sam.encode(batch.images, batch.sizes), batch)
    assert terms["iou"] == 0
    loss.backward()
    heads = [p.grad for p in module.sam.mask_decoder.output_hypernetworks_mlps[1].parameters()]
    assert heads and all(grad.abs().max() < 1e-6 for grad in heads)  # the minimum of the cross entropy
    batch.masks, batch.boxes, batch.image_index = batch.masks[:0], batch.boxes[:0], batch.image_index[:0]
    nothing, _ = module.imitation(module.reference(), module.sam.encode(batch.images, batch.sizes), batch)
    assert nothing == 0


def test_a_teacher_of_several_rounds_is_refused(recipe, tiny_teacher: Path) -> None:
    with pytest.raises(UserError, match=r"set prompts\.clicks=0 prompts\.refines=0"):
        recipe(teacher=str(tiny_teacher))


def test_the_prompt_encoder_can_be_trained_too(recipe, fit: Fit) -> None:
    module = recipe(train_prompt_encoder=True)
    before = snapshot(module.sam)
    fit(module, 1)
    assert changed(before, module.sam) == trained_names(module, "mask_decoder.", "prompt_encoder.")


@pytest.mark.parametrize("train_prompt_encoder", [False, True])
@pytest.mark.parametrize(("clicks", "refines"), [(0, 0), (1, 1)])
def test_every_trained_parameter_gets_a_gradient(recipe, clicks: int, refines: int, train_prompt_encoder: bool) -> None:
    prompts = InteractiveConfig(clicks=clicks, refines=refines)
    module = recipe(prompts=prompts, train_prompt_encoder=train_prompt_encoder)
    batch = next(iter(ShardData(module.config.data).train_dataloader()))
    module.training_step(batch, 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(p.grad is None for p in module.sam.image_encoder.parameters())


def test_batchnorm_and_dropout_of_frozen_parts_stay_still(recipe, fit: Fit) -> None:
    """Our encoders have neither yet; a neck with both stands for the ones that will."""
    module = recipe()
    encoder = module.sam.image_encoder
    encoder.neck = nn.Sequential(encoder.neck, nn.BatchNorm2d(256), nn.Dropout(0.5))
    module.freeze(encoder)
    before = snapshot(encoder)
    fit(module, 2, validate=True)
    assert changed(before, encoder) == set()  # running mean, variance and count are buffers
    module.train()
    assert not any(m.training for m in encoder.modules())
    assert all(m.training for m in module.sam.mask_decoder.modules())


def test_trained_parts_are_in_train_mode_during_fit(recipe, fit: Fit) -> None:
    """checkpoint.load gives eval mode, and Lightning's fit keeps what it finds."""
    module = recipe()
    modes = []
    module.sam.mask_decoder.register_forward_hook(
        lambda part, *_: modes.append((part.training, module.sam.image_encoder.training))
    )
    fit(module, 1)
    assert modes and set(modes) == {(True, False)}


def test_init_from_is_needed(tiny_shards: Path) -> None:
    config = Config()
    settle(config, tiny_shards)
    with pytest.raises(UserError, match="finetune_decoder needs init_from"):
        Module(config)


def test_another_input_side_is_refused(recipe) -> None:
    """The model would be judged at its own side, where it was not trained."""
    config = recipe().config
    config.data.image_size = 128
    with pytest.raises(UserError, match=r"holds a model of 64 px and data\.image_size=128: set data\.image_size=64"):
        Module(config)


def test_a_resumed_run_needs_init_from_no_more(tiny_shards: Path, student: Path, tmp_path: Path) -> None:
    """The frozen encoder's weights, too, come from the checkpoint."""
    start = tmp_path / "start.pt"
    start.write_bytes(student.read_bytes())
    words = [
        "recipe=finetune_decoder", f"init_from={start}", f"out={tmp_path}", f"data.train={tiny_shards / 'train'}",
        "data.image_size=64", "place.workers=0", "data.masks_per_image=4", "log.wandb=off", "place.accelerator=cpu",
        "prompts.clicks=0", "prompts.refines=0",
    ]  # fmt: skip
    assert main(["train", *words, "trainer.max_steps=2"]) == 0
    start.unlink()
    assert main(["train", *words, "trainer.max_steps=3"]) == 0
    ours, made = checkpoint.load(student), checkpoint.load(tmp_path / "finetune_decoder" / "model.pt")
    assert changed(snapshot(ours.image_encoder), made.image_encoder) == set()
    assert changed(snapshot(ours.mask_decoder), made.mask_decoder) != set()
    assert main(["train", *words, "trainer.max_steps=2", "name=other"]) == 2  # a new run does need it


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    losses, _ = fit(recipe(), 20)
    assert falls(losses)
    compare_golden("finetune_decoder", losses, tolerance=0.05)
