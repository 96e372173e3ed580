"""train_lite: encoder, AutoPPN and decoder learn in one step from nothing; resumed bit for bit."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from PIL import Image
from test_train_autoppn import first_batch
from tinyfit import changed, compare_golden, falls, settle, snapshot
from wandb_offline import read_runs

from frisket import checkpoint, config
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.geometry import Frame
from frisket.proposals import targets
from frisket.recipes.interactive import InteractiveConfig, first_prompts, own_heat
from frisket.recipes.proposing import PpnConfig
from frisket.recipes.recipe_config import ModelSpec
from frisket.recipes.train_lite import Config, Module
from frisket.sample import FOREGROUND, Batch

Fit = Callable[..., tuple[list[float], L.Trainer]]
TINY = {"widths": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "neck_width": 12, "decoder_hidden": 64}
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def recipe(tiny_shards: Path) -> Callable[..., Module]:
    """A function (**fields of Config) -> Module on tiny shards, 64 px, three rounds."""

    def make(**fields: object) -> Module:
        prompts = InteractiveConfig(clicks=1, refines=1, from_heat=0.5)
        settings = Config(**{"model": ModelSpec("lite_sam_640", TINY), "prompts": prompts, **fields})
        settle(settings, tiny_shards)
        torch.manual_seed(0)
        return Module(settings)

    return make


def test_every_parameter_learns_from_one_joint_step(recipe) -> None:
    """Of decoder candidates that win no mask, the heads alone get a gradient of 0: only a winner's mask is trained."""
    module = recipe()
    module.training_step(first_batch(module), 0).backward()
    silent = {name for name, p in module.sam.named_parameters() if p.grad is None or not p.grad.any()}
    assert not {name for name in silent if "output_hypernetworks_mlps" not in name}
    assert not {name for name in silent if name.startswith(("image_encoder.", "auto_ppn."))}
    assert all(p.grad is not None for p in module.parameters())


def test_photographs_without_objects_still_give_every_parameter_a_gradient(recipe, batch_of) -> None:
    """Other ranks wait for it."""
    module = recipe()
    batch = batch_of([torch.zeros(0, 16, 16, dtype=torch.bool)] * 2)
    batch.heat, batch.ways = torch.zeros(2, 3, 16, 16), torch.zeros(2, 3, 4, 16, 16)
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert all(p.grad.any() for p in module.ppn.heat.parameters())  # it learns that there is nothing


def encoder_gradient(module: Module) -> torch.Tensor:
    module.training_step(first_batch(module), 0).backward()
    return torch.cat([p.grad.flatten() for p in module.sam.image_encoder.parameters()])


def test_another_model_that_init_from_brings_is_named(
    recipe, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert recipe(init_from=str(tiny_teacher)).sam.auto_ppn is not None
    said = capsys.readouterr().out
    assert f"init_from={tiny_teacher} brings sam_vit_t; model.name=lite_sam_640 is not used" in said


def test_detached_proposals_leave_the_encoder_to_the_masks(recipe) -> None:
    weak, strong = PpnConfig(heat=1e-3, box=1e-3), PpnConfig(heat=10, box=10)
    apart = [encoder_gradient(recipe(detach_ppn=True, ppn=ppn)) for ppn in (weak, strong)]
    together = [encoder_gradient(recipe(ppn=ppn)) for ppn in (weak, strong)]
    assert torch.equal(*apart) and (together[0] - together[1]).abs().max() > 1e-3


def test_a_share_of_points_comes_from_the_heat_maps(batch_of: Callable[..., Batch]) -> None:
    """A disc, and a square inside it that has a map of its own."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    masks = torch.stack([(x - 8) ** 2 + (y - 8) ** 2 < 50, (x - 7).abs().maximum((y - 9).abs()) < 4])
    batch = batch_of([masks])
    batch.heat = targets(masks, batch.boxes, batch.areas / 64**2).heat[None]
    heat = own_heat(batch)
    assert torch.equal(heat > 0, masks) and ((heat == 1) & masks).flatten(1).any(1).all()
    rows, deep = torch.arange(2), []
    for share in (0.0, 0.5, 1.0):
        wanted, values = InteractiveConfig(box_probability=0, from_heat=share), []
        for seed in range(800):
            prompts = first_prompts(batch, wanted, torch.Generator().manual_seed(seed))
            cells = (prompts.points[:, 0] / 4).long()
            values.append(heat[rows, cells[:, 1], cells[:, 0]])
            assert values[-1].all() and (prompts.labels[:, 0] == FOREGROUND).all()
        deep.append(torch.stack(values).mean(0))
    area, total = masks.flatten(1).sum(1), heat.flatten(1).sum(1)
    uniform, weighed = total / area, heat.square().flatten(1).sum(1) / total
    for given, expected in zip(deep, (uniform, (uniform + weighed) / 2, weighed), strict=True):
        assert given.tolist() == pytest.approx(expected.tolist(), abs=0.03)
    assert (weighed > uniform + 0.09).all()


def test_an_objects_map_is_its_photographs_and_of_its_share_there(batch_of: Callable[..., Batch]) -> None:
    """The same cells are a medium object of one photograph, and a small one of another that was fitted to its half."""
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 4:9, 4:9] = True
    batch = batch_of([mask, mask])
    batch.frames[1] = Frame((128, 128), (64, 64), 64)  # with areas in pixels of the original: 400 of each
    batch.heat = torch.rand(2, 3, 16, 16)
    assert torch.equal(own_heat(batch), torch.stack([batch.heat[0, 1], batch.heat[1, 0]]))


def test_an_object_that_no_map_shows_keeps_its_uniform_point(batch_of: Callable[..., Batch]) -> None:
    """As one that covers nearly all of the photograph: the maps leave it out."""
    mask = torch.ones(1, 16, 16, dtype=torch.bool)
    mask[0, 15, 15] = False
    batch = batch_of([mask])
    batch.heat = torch.zeros(1, 3, 16, 16)
    config = InteractiveConfig(box_probability=0, from_heat=1)
    x, y = (first_prompts(batch, config, torch.Generator().manual_seed(0)).points[0, 0] / 4).long().tolist()
    assert mask[0, y, x]


def test_without_heat_maps_that_share_is_refused(recipe) -> None:
    module = recipe()
    batch = first_batch(module)
    batch.heat = None
    with pytest.raises(UserError, match=r"set prompts\.from_heat=0"):
        first_prompts(batch, module.config.prompts, torch.Generator())


def test_one_step_changes_every_parameter(recipe, fit: Fit) -> None:
    module = recipe()
    before = snapshot(module.sam)
    fit(module, 1)
    parameters = {name for name, _ in module.sam.named_parameters()}
    losers = {name for name in parameters if "output_hypernetworks_mlps" in name and name.endswith("bias")}
    assert parameters - losers <= changed(before, module.sam)


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    losses, trainer = fit(recipe(), 20, validate=True)
    assert falls(losses)
    assert 0 <= float(trainer.callback_metrics["val/recall"]) <= 1
    compare_golden("train_lite", losses, tolerance=0.05)


def words(shards: Path, out: Path, *more: str) -> list[str]:
    encoder = "{" + ", ".join(f"{key}: {list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()) + "}"
    return ["train", "recipe=train_lite", f"out={out}", "data.image_size=64", f"data.train={shards / 'train'}",
            "data.global_batch=4", "data.masks_per_image=3", f"model.encoder={encoder}", "prompts.clicks=0",
            "prompts.refines=1", "place.accelerator=cpu", "place.workers=0", "place.images_per_device=2",
            "log.wandb=off", "trainer.checkpoint_every=2", "trainer.sync_batchnorm=true", *more]  # fmt: skip


def test_the_gallery_shows_heat_maps_with_the_picked_points(recipe, tiny_shards: Path, tmp_path: Path) -> None:
    module = recipe().eval()
    batch = first_batch(module)
    (shown,) = [made for made in module.gallery_columns(batch).values() if isinstance(made, list)]
    _, picked = module.proposed(batch)
    for panel, points, scores, (height, width) in zip(
        shown, picked.points, picked.scores, batch.sizes.tolist(), strict=True
    ):
        peaks = points[scores > 0]  # few here; what fills up is no peak, and in the order of cells
        assert panel.image.shape == (3, height, width) and torch.equal(panel.points, peaks[:64])
        assert 0 < len(panel.points) == len(panel.labels)
    more = [f"data.val={tiny_shards / 'val'}", "log.gallery_every=1", "log.gallery_images=2", "trainer.max_steps=1"]
    more += ["log.wandb=offline"]
    assert main(words(tiny_shards, tmp_path, *more)) == 0
    (sheet,) = (tmp_path / "train_lite" / "gallery").iterdir()
    assert Image.open(sheet).width == 4 * 224 + 5 * 8  # image, heat, student, truth
    (logged,) = read_runs(tmp_path / "train_lite" / "wandb")
    assert any("gallery" in entry for line in logged.history for entry in line)


@pytest.mark.slow
def test_a_run_is_resumed_bit_for_bit(tiny_shards: Path, tmp_path: Path) -> None:
    for stop in (2, 4):
        # the schedule is over max_steps: flat here, so that a longer run begins like the short one
        assert main(words(tiny_shards, tmp_path / "twice", f"trainer.max_steps={stop}", "optim.min_ratio=1")) == 0
    assert main(words(tiny_shards, tmp_path / "flat", "trainer.max_steps=4", "optim.min_ratio=1")) == 0
    flat, twice = (checkpoint.load(tmp_path / name / "train_lite") for name in ("flat", "twice"))
    assert flat.auto_ppn is not None and not changed(snapshot(flat), twice)


def test_synchronised_batchnorm_needs_gpus(tiny_shards: Path, tmp_path: Path, capsys) -> None:
    assert main(words(tiny_shards, tmp_path, "place.devices=2", "trainer.max_steps=2")) == 2
    assert "trainer.sync_batchnorm=true needs GPUs" in capsys.readouterr().err


def test_r1024_is_another_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRISKET_DATA", "/data")
    files = [CONFIGS / "train_lite.yaml", CONFIGS / "lite" / "r1024.yaml"]
    small, large = (config.load(Config, files[:count]) for count in (1, 2))
    with torch.device("meta"):
        sams = [Module(loaded).sam for loaded in (small, large)]
    assert [sam.image_size for sam in sams] == [640, 1024] and large.name != small.name
    assert {k for k, v in config.flatten(large).items() if config.flatten(small)[k] != v} == {
        "name", "model.name", "data.image_size"
    }  # fmt: skip
