"""qat_tiny: begins as what was quantized, learns through the grid, ends as a packed file, goes on bit for bit."""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from tinyfit import compare_golden, falls, settle
from tinyquant import quantized
from torch import Generator, nn
from toyrun import frisket

from frisket import checkpoint
from frisket.cli.main import main
from frisket.data.module import DataConfig, ShardData
from frisket.engine.rundir import read_csv
from frisket.errors import UserError
from frisket.models.zoo import build
from frisket.quant.layers import fold
from frisket.quant.search import asked
from frisket.recipes.distill_tiny import DistillConfig
from frisket.recipes.qat_tiny import Config, Module, ScalesConfig
from frisket.runfiles import RunFiles
from frisket.sample import Batch
from frisket.weights.layout import differences

SMALL = {"widths": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 2), "windows": (4, 4, 2), "classes": 4}
Fit = Callable[..., tuple[list[float], L.Trainer]]


@pytest.fixture(scope="module")
def floating(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt of a narrow TinyViT Sam without a gamma of 0."""
    torch.manual_seed(3)
    sam = build("tiny_sam", image_size=64, **SMALL)
    for part in sam.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.running_var, 0.5, 2)
    path = tmp_path_factory.mktemp("float") / "model.pt"
    checkpoint.save(sam, path)
    return path


@pytest.fixture(scope="module")
def start(floating: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its W4A4."""
    return quantized(floating, tmp_path_factory.mktemp("w4a4"), tiny_shards, weight_bits=4, activation_bits=4)


@pytest.fixture
def recipe(start: Path, tiny_shards: Path) -> Callable[..., Module]:
    """A function (scales, **fields of Config) -> Module."""

    def make(**fields: object) -> Module:
        config = Config(**{"init_from": str(start), **fields})  # type: ignore[arg-type]
        settle(config, tiny_shards, lr=1e-3)
        return Module(config)

    return make


@pytest.fixture
def batch(recipe: Callable[..., Module]) -> Batch:
    return next(iter(ShardData(recipe().config.data).train_dataloader()))


@pytest.fixture
def words(start: Path, tiny_shards: Path, tmp_path: Path) -> list[str]:
    return [
        "train", "configs/qat_tiny.yaml", f"init_from={start}", f"data.train={tiny_shards / 'train'}", "data.val=null",
        f"out={tmp_path}", "data.image_size=64", "data.global_batch=2", "data.masks_per_image=4", "place.workers=0",
        "place.accelerator=cpu", "place.precision=32-true", "log.wandb=off", "trainer.log_every=1", "optim.lr=1e-3",
        "optim.warmup_steps=0", "optim.schedule=constant", "trainer.max_steps=4",
    ]  # fmt: skip


def scales(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if name.endswith("stretch")}


# ---------------------------------------------------------------- where it begins


def test_it_begins_as_the_quantized_model_over_float_weights(recipe, start: Path, floating: Path, batch: Batch) -> None:
    sam, given = recipe().sam.eval(), checkpoint.load(start)
    mine, theirs = (asked(model, batch, Generator().manual_seed(0)) for model in (sam, given))
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-5, rtol=1e-5)
    whole = checkpoint.load(floating)
    fold(whole)
    state = sam.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())
    assert not any(isinstance(part, nn.BatchNorm2d) for part in sam.modules())


def test_every_trained_parameter_gets_a_gradient_and_others_none(recipe, batch: Batch) -> None:
    module = recipe()
    module.training_step(batch, 0).backward()
    assert [n for n, p in module.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in module.named_parameters() if not p.requires_grad and p.grad is not None] == []
    learned = [n for n, p in scales(module).items() if p.grad is not None and bool((p.grad != 0).any())]
    assert len(learned) > 0.9 * len(scales(module))
    assert any("image_encoder" in n for n in learned) and any("mask_decoder" in n for n in learned)
    assert not any(".p.stretch" in n for n in scales(module))  # the split of softmax stays


@pytest.mark.parametrize("weights", ["learned", "frozen"])
@pytest.mark.parametrize("inputs", ["learned", "frozen"])
def test_which_scales_learn_is_a_switch(recipe, weights: str, inputs: str) -> None:
    names = scales(recipe(scales=ScalesConfig(weights=weights, inputs=inputs)))  # type: ignore[arg-type]
    assert any(n.endswith("weight_stretch") for n in names) == (weights == "learned")
    assert any(n.endswith("input.stretch") for n in names) == (inputs == "learned")


def test_scales_have_a_rate_of_their_own_and_no_decay(recipe, fit: Fit) -> None:
    module = recipe()
    module.config.optim.weight_decay = 0.1
    _, trainer = fit(module, 1)
    groups = {id(p): group for group in trainer.optimizers[0].param_groups for p in group["params"]}
    trained = [p for p in scales(module).values() if p.requires_grad]
    assert trained and {groups[id(p)]["weight_decay"] for p in trained} == {0.0}
    assert {round(groups[id(p)]["initial_lr"] / module.config.optim.lr, 9) for p in trained} == {0.1}
    decoder = module.sam.mask_decoder.output_upscaling[0].weight
    assert groups[id(decoder)]["initial_lr"] == module.config.optim.lr and groups[id(decoder)]["weight_decay"] == 0.1


def test_scales_stay_positive_and_float32(recipe, batch: Batch) -> None:
    """Whatever is learned, and whatever becomes of the weights (DeepSpeed casts modules)."""
    module = recipe()
    for stretch in scales(module).values():
        stretch.data.fill_(-5.0)
    module.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(module.training_step(batch, 0).isfinite())
    layer = module.sam.mask_decoder.output_upscaling[0]
    assert layer.weight_scale.dtype == layer.input.scale.dtype == torch.float32
    assert layer.weight.dtype == torch.bfloat16 and layer.quantized_weight().isfinite().all()


# ---------------------------------------------------------------- what comes of it


def test_loss_falls_and_repeats_the_golden_curve(recipe, fit: Fit) -> None:
    losses, _ = fit(recipe(), 20)
    assert falls(losses)
    compare_golden("qat_tiny", losses, tolerance=0.05)


def test_the_end_is_a_packed_file_with_learned_scales(words: list[str], start: Path, floating: Path, batch: Batch,
                                                      tmp_path: Path) -> None:  # fmt: skip
    assert main(words) == 0
    run = RunFiles(tmp_path / "qat_tiny")
    assert run.packed.is_file() and not run.model.exists()
    made, live = checkpoint.load(run.path), checkpoint.load(run.last)  # packed, and of the training checkpoint
    assert made.form == live.form == "quantized"
    assert not any(key.endswith("stretch") for key in made.state_dict())
    mine, theirs = (asked(model, batch, Generator().manual_seed(0)) for model in (made, live))
    torch.testing.assert_close(mine.logits, theirs.logits, atol=1e-4, rtol=1e-4)
    before = checkpoint.load(start).state_dict()
    moved = [key for key, value in made.state_dict().items() if "scale" in key and not torch.equal(value, before[key])]
    assert len(moved) > 20 and all(bool((made.state_dict()[key] > 0).all()) for key in moved)
    # the training checkpoint's float weights go by the names of the folded float model, and are on no grid
    whole = checkpoint.load(floating)
    fold(whole)
    state = {key: value for key, value in live.state_dict().items() if key in whole.state_dict()}
    assert differences(whole.state_dict(), state) == ""
    whole.load_state_dict(state)
    levels = (
        live.state_dict()["mask_decoder.output_upscaling.0.weight"] / live.mask_decoder.output_upscaling[0].weight_scale
    )
    assert (levels - levels.round()).abs().max() > 0.1
    assert made.quantization is not None and made.quantization["provenance"]["recipe"] == "qat_tiny"


def test_a_run_goes_on_bit_for_bit_without_what_it_began_from(words: list[str], start: Path, tmp_path: Path) -> None:
    assert main([*words, "name=straight"]) == 0
    copied = tmp_path / "copy"
    shutil.copytree(start, copied)
    for steps in (2, 4):
        assert main([*words, "name=twice", f"init_from={copied}", f"trainer.max_steps={steps}"]) == 0
        shutil.rmtree(copied, ignore_errors=True)
    rows = [[row["train/loss"] for row in read_csv(RunFiles(tmp_path / n).metrics)] for n in ("straight", "twice")]
    assert len(rows[0]) == 4 and rows[0] == rows[1]
    states = [torch.load(RunFiles(tmp_path / n).last, weights_only=True)["state_dict"] for n in ("straight", "twice")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_longer_run_supersedes_its_packed_file(words: list[str], tmp_path: Path) -> None:
    """While it goes on, the folder stands for the newest weights: an older packed file is not even read."""
    assert main([*words, "trainer.max_steps=1"]) == 0
    run = RunFiles(tmp_path / "qat_tiny")
    first = checkpoint.load(run.path).state_dict()
    run.packed.write_bytes(b"")
    os.utime(run.packed, (0, 0))
    assert checkpoint.load(run.path).form == "quantized"
    assert main([*words, "trainer.max_steps=2"]) == 0
    assert any(not torch.equal(value, first[key]) for key, value in checkpoint.load(run.path).state_dict().items())


def test_two_ranks_train_as_one(words: list[str], start: Path, tmp_path: Path) -> None:
    """The same global batch, two photographs: on one device after each other, on two at once."""
    plain = ["hard.box_probability=1", "hard.box_noise=0", "trainer.max_steps=2", "optim.lr=1e-4"]  # drawn per rank
    for devices in (1, 2):
        done = frisket(*words, *plain, f"name=on{devices}", f"place.devices={devices}", "place.images_per_device=1")
        assert done.returncode == 0, done.stderr[-2000:]
    before = Module(Config(init_from=str(start), data=DataConfig(image_size=64))).state_dict()
    one, two = (torch.load(RunFiles(tmp_path / n).last, weights_only=True)["state_dict"] for n in ("on1", "on2"))
    moved, apart = (
        {kind: sum(float((a[key].double() - b[key].double()).square().sum()) for key in a if ("stretch" in key) == kind)
         for kind in (False, True)}
        for a, b in ((one, before), (one, two))
    )  # fmt: skip
    assert all(moved[kind] > 0 and apart[kind] < 1e-3 * moved[kind] for kind in moved), (moved, apart)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="needs DeepSpeed: pip install -c constraints.txt -e '.[dev]'",
)
def test_deepspeed_packs_float32_weights(words: list[str], tmp_path: Path) -> None:
    more = ["place.strategy=deepspeed_stage_1", "place.precision=bf16-mixed", "trainer.max_steps=2"]
    done = frisket(*words, *more)
    assert done.returncode == 0, done.stdout + done.stderr
    run = RunFiles(tmp_path / "qat_tiny")
    assert run.packed.is_file() and len([row for row in read_csv(run.metrics) if row["train/loss"]]) == 2
    live = checkpoint.load(run.last).state_dict()
    assert all(value.dtype == torch.float32 for value in live.values())
    whole, coarse = live["mask_decoder.output_upscaling.0.weight_scale"], torch.bfloat16
    assert not torch.equal(whole, whole.to(coarse).float())  # scales never went through half precision


# ---------------------------------------------------------------- mistakes


def test_mistakes_are_one_sentence(
    words: list[str], floating: Path, start: Path, tiny_teacher: Path, tiny_shards: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*words, "trainer.max_steps=1", "name=done"]) == 0
    capsys.readouterr()
    other = tmp_path / "other.pt"
    checkpoint.save(build("tiny_sam", image_size=64, **SMALL), other)
    other_recipe = [word for word in words if "qat_tiny" not in word and "init_from" not in word]
    tiny = [*other_recipe, "recipe=distill_tiny", "student.name=lightening", f"teacher={start}"]
    tuned = [*other_recipe, "recipe=finetune_decoder", f"init_from={floating}", f"teacher={start}"]
    for given, says in (
        ([*words, f"init_from={floating}"], "is float: give what `frisket quant` wrote"),
        ([*words, f"masters={other}"], f"was made of, which was at {floating}: name where it is now"),
        ([*words, f"masters={tiny_teacher}"], "is not the float model that init_from"),
        ([*words, f"masters={start}"], "is quantized: give the float model"),
        ([*words, f"teacher={start}"], "is quantized: give the float model"),
        ([*words, f"init_from={tmp_path / 'done'}"], "was trained already: raise trainer.max_steps"),
        ([*words, "init_from=null"], "qat_tiny needs init_from"),
        (tiny, "is quantized: give the float model"),
        (tuned, "is quantized: give the float model"),
        ([*tuned[:-1], f"init_from={start}"], "is quantized: start from the float model"),
    ):
        assert main([*given, "name=bad"]) == 2, says
        assert says in (said := capsys.readouterr().err), said


def test_a_gamma_of_0_is_one_sentence(floating: Path, start: Path, recipe, tmp_path: Path, monkeypatch) -> None:
    sam = checkpoint.load(floating)
    sam.image_encoder.layers[0].blocks[0].conv3.bn.weight.data[3] = 0
    checkpoint.save(sam, tmp_path / "silent.pt")
    monkeypatch.setattr(
        checkpoint, "weights_digest", lambda _: checkpoint.load(start).quantization["provenance"]["weights"]
    )
    with pytest.raises(UserError, match="1 channels with gamma 0 and cannot be folded"):
        recipe(masters=str(tmp_path / "silent.pt"))


def test_a_loss_of_nothing_is_refused(recipe) -> None:
    off = DistillConfig(focal=0.0, dice=0.0, iou=0.0)
    off.embedding.weight = off.token.weight = off.output.weight = 0.0
    with pytest.raises(UserError, match="all weights of distill are 0"):
        recipe(distill=off)
