"""train_autoppn: only the proposals learn, the host keeps every weight, and what comes out segments everything."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tinyfit import changed, compare_golden, falls, settle, snapshot

from frisket import checkpoint
from frisket.cli.main import main
from frisket.data.module import ShardData
from frisket.errors import UserError
from frisket.everything import autoppn
from frisket.everything.generator import everything
from frisket.geometry import CELL, inside
from frisket.models.auto_ppn import Proposals, pick
from frisket.models.zoo import build
from frisket.predict.predictor import Predictor
from frisket.proposals import hard_heat_loss
from frisket.recipes.finetune_decoder import Config as AlignConfig
from frisket.recipes.finetune_decoder import Module as Align
from frisket.recipes.proposing import PpnConfig
from frisket.recipes.train_autoppn import Config, Module
from frisket.sample import Batch

Fit = Callable[..., tuple[list[float], L.Trainer]]
PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


@pytest.fixture
def recipe(tiny_shards: Path, tiny_teacher: Path) -> Callable[..., Module]:
    """A function (**fields of Config) -> Module on tiny shards."""

    def make(**fields: object) -> Module:
        config = Config(**({"init_from": str(tiny_teacher)} | fields))  # type: ignore[arg-type]
        settle(config, tiny_shards, lr=1e-2)
        config.data.masks_per_image = 0
        return Module(config)

    return make


def first_batch(module: Module) -> Batch:
    """Of its data, with targets, as `frisket train` loads them."""
    data = ShardData(module.config.data)
    data.targets = module.targets()
    return next(iter(data.train_dataloader()))


def test_one_step_changes_the_proposals_only(recipe, fit: Fit) -> None:
    module = recipe()
    before = snapshot(module.sam)
    _, trainer = fit(module, 1)
    names = changed(before, module.sam)
    assert names and all(name.startswith("auto_ppn.") for name in names)
    assert names >= {name for name, _ in module.sam.named_parameters() if name.startswith("auto_ppn.")}
    grouped = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert grouped == {id(p) for p in module.ppn.parameters()}


def test_it_learns_to_click_on_objects(recipe, fit: Fit) -> None:
    module = recipe(ppn=PpnConfig(points=4))
    losses, _ = fit(module, 60)
    assert falls(losses)
    batch = first_batch(module)
    with torch.no_grad():
        heat = module.eval().ppn(module.sam.encode(batch.images, batch.sizes)).heat.sigmoid()
    inside, outside = heat[batch.heat > 0.5].mean(), heat[batch.heat == 0].mean()
    assert inside > 2 * outside


def test_targets_are_in_the_frames_of_the_batch(recipe) -> None:
    """Picked from the targets of a real batch, every object has a point inside, of its own photograph."""
    batch = first_batch(recipe())
    answer = pick(Proposals(batch.heat.logit(eps=1e-6), batch.ways), batch.sizes, 256)
    for mask, owner, box in zip(batch.masks, batch.image_index, batch.boxes, strict=True):
        sure = answer.scores[owner] > 1e-5
        cells = (answer.points[owner][sure] / CELL).long()
        assert mask[cells[:, 1], cells[:, 0]].any()
        assert (answer.boxes[owner][answer.scores[owner] > 1 - 1e-5] - box).abs().amax(-1).min() < 8


def test_recall_is_whole_for_proposals_that_are_the_targets(recipe) -> None:
    module = recipe()
    batch = first_batch(module)
    module.ppn.register_forward_hook(lambda *_: Proposals(batch.heat.logit(), batch.ways))  # nothing but peaks is > 0
    module.validation_step(batch, 0)
    assert module.recall.compute() == 1


def test_the_losses_weights_and_grouping_are_the_settings(recipe) -> None:
    module = recipe(ppn=PpnConfig(grouped=False, heat=2, box=3))
    batch, embedding = first_batch(module), torch.randn(4, 256, 4, 4)
    loss, terms = module.ppn_loss(embedding, batch)
    assert float(loss) == pytest.approx(2 * float(terms["heat"]) + 3 * float(terms["box"]))
    valid, heat = inside(batch.sizes, 16, CELL), module.ppn(embedding).heat
    assert torch.equal(terms["heat"], hard_heat_loss(heat, batch.heat, valid=valid, grouped=False))


@pytest.mark.parametrize(
    "ppn",
    [PpnConfig(targets="gaussian", loss="focal", groups=1), PpnConfig(stem="conv", grouped=False)],
    ids=["focal", "conv"],
)
def test_table_2s_rows_are_settings(recipe, fit: Fit, ppn: PpnConfig) -> None:
    losses, _ = fit(recipe(ppn=ppn), 20)
    assert falls(losses)


def test_golden(recipe, fit: Fit) -> None:
    losses, _ = fit(recipe(), 20)
    compare_golden("train_autoppn", losses, tolerance=0.01)


@pytest.mark.slow
def test_a_run_is_resumed_loads_and_segments_everything(
    tiny_shards: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "recipe=train_autoppn", f"init_from={tiny_teacher}", f"out={tmp_path}", "data.image_size=64",
             f"data.train={tiny_shards / 'train'}", f"data.val={tiny_shards / 'val'}", "data.global_batch=2",
             "data.masks_per_image=0", "place.accelerator=cpu", "place.workers=0", "place.images_per_device=null",
             "log.wandb=off", "trainer.checkpoint_every=2"]  # fmt: skip
    assert main([*words, "trainer.max_steps=4"]) == 0
    assert main([*words, "trainer.max_steps=6"]) == 0
    assert "continuing from" in capsys.readouterr().out
    assert main([*words, "trainer.max_steps=8", "ppn.groups=1"]) == 2
    assert "auto_ppn" in capsys.readouterr().err
    run = tmp_path / "train_autoppn"
    assert "val/recall" in (run / "metrics.csv").read_text()
    sam, host = checkpoint.load(run), checkpoint.load(tiny_teacher)
    assert sam.auto_ppn is not None and host.auto_ppn is None
    theirs = host.state_dict()
    for name, value in sam.state_dict().items():
        assert not name.startswith(PARTS) or torch.equal(value, theirs[name])

    predictor = Predictor(sam)
    predictor.set_image((torch.rand(48, 64, 3) * 255).byte().numpy())
    for ask, each in (("point", 3), ("box", 1), ("point+box", 1)):
        config = autoppn.Config(points=9, ask=ask, pred_iou_thresh=-9, stability_score_thresh=0)  # type: ignore[arg-type]
        masks = everything(predictor, config)
        assert 0 < masks.asked <= 9 * each and masks.asked % each == 0
        assert (masks.points >= 0).all() and (masks.points[:, 0] < 64).all() and (masks.points[:, 1] < 48).all()

    other = Align(settled(AlignConfig(init_from=str(run)), tiny_shards))
    assert not any(p.requires_grad for p in other.sam.auto_ppn.parameters())


def settled(config: AlignConfig, shards: Path) -> AlignConfig:
    settle(config, shards, lr=1e-3)
    return config


def test_without_proposals_everything_says_so(tiny_sam) -> None:
    predictor = Predictor(tiny_sam)
    predictor.set_image((torch.rand(64, 64, 3) * 255).byte().numpy())
    with pytest.raises(UserError, match="has no AutoPPN to propose points"):
        everything(predictor, autoppn.Config())


def test_mistakes_are_one_sentence(recipe) -> None:
    with pytest.raises(UserError, match="needs init_from"):
        recipe(init_from=None)
    with pytest.raises(UserError, match="leave nothing to learn"):
        recipe(ppn=PpnConfig(heat=0, box=0))
    with pytest.raises(UserError, match="must be settings of AutoPPN"):
        build("sam_vit_t", image_size=64, auto_ppn={"widt": 3})
