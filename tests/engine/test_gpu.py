"""What only a GPU can show, on a machine with one: NCCL, bf16, flash-attn both ways, the memory of each preset.

Run     `make test-gpu`; its figures go to $FRISKET_GPU_RESULTS, a JSON with the machine they were measured on.
"""

import importlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_places import GIB
from toyrun import frisket, toy_run, toy_shards
from weightless import CONFIGS, weights_of_no_value  # noqa: F401

from frisket import config
from frisket.engine.doctor.model import CUDA
from frisket.engine.rundir import read_csv
from frisket.environment import environment
from frisket.files import write_json
from frisket.geometry import Frame
from frisket.kernels.attention import _flash
from frisket.kernels.dilated import dilated_attention
from frisket.recipes.base import RECIPES, Recipe
from frisket.runfiles import RunFiles
from frisket.sample import Batch

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def figures() -> Iterator[dict[str, Any]]:
    """What the tests add is written at their end."""
    rows: dict[str, Any] = {}
    yield rows
    if path := os.environ.get("FRISKET_GPU_RESULTS"):
        write_json(Path(path), {"environment": environment(cuda=torch.cuda.is_available()), "rows": rows})
        print(f"{path}: {', '.join(rows)}")


def made(images: int, masks: int, side: int) -> Batch:
    """Photographs of noise, `masks` squares on each, and what an AutoPPN is to learn."""
    cells, index = side // 4, torch.arange(images).repeat_interleave(masks)
    grid = torch.zeros(images * masks, cells, cells, dtype=torch.bool)
    grid[:, cells // 4 : cells // 2, cells // 4 : cells // 2] = True
    boxes = torch.tensor([[side / 4, side / 4, side / 2, side / 2]]).repeat(images * masks, 1)
    frame, areas = Frame.fit((side, side), side), torch.full((images * masks,), side**2 / 16)
    return Batch(
        [f"sa_{number}" for number in range(images)], torch.randint(256, (images, 3, side, side), dtype=torch.uint8),
        grid, boxes, areas, index, [frame] * images, torch.full((images, 2), side),
        heat=torch.zeros(images, 3, cells, cells), ways=torch.zeros(images, 3, 4, cells, cells),
    )  # fmt: skip


def steps(recipe: Recipe, batch: Batch, count: int = 2) -> list[float]:
    """The losses of so many whole steps of training in bf16: from the second on AdamW's moments are there."""
    optimizer, losses = recipe.configure_optimizers()["optimizer"], []
    for number in range(count):
        with torch.autocast(batch.images.device.type, torch.bfloat16):
            loss: Any = recipe.training_step(batch, number)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("preset", sorted(GIB))
@pytest.mark.parametrize("name", RECIPES.files())
@pytest.mark.usefixtures("weights_of_no_value")
def test_a_preset_holds_a_recipe(name: str, preset: str, figures: dict[str, Any]) -> None:
    """Not only in the sums of tests/test_places.py. Skips a preset of a larger GPU than this one."""
    has = torch.cuda.get_device_properties(0).total_memory / 2**30
    if GIB[preset] > has + 1:
        pytest.skip(f"{preset} has {GIB[preset]} GiB and this GPU {has:.1f}")
    module = importlib.import_module(f"frisket.recipes.{name}")
    settings = config.load(module.Config, [CONFIGS / f"{name}.yaml", CONFIGS / "on" / f"{preset}.yaml"])
    with torch.device("cuda"):
        recipe = module.Module(settings)
    data = settings.data
    batch = made(settings.place.images_per_device, data.masks_per_image or 1, data.image_size)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    losses = steps(recipe, batch.to(torch.device("cuda")))
    peak = torch.cuda.max_memory_allocated() / 2**30 + CUDA / 1024
    figures[f"memory/{preset}/{name}"] = {"GiB": round(peak, 2), "of": GIB[preset]}
    assert all(loss == loss for loss in losses)
    assert peak <= GIB[preset], f"{peak:.1f} of {GIB[preset]} GiB"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn shards."""
    return toy_shards(tmp_path_factory.mktemp("gpu"), 12)


def trained(data: Path, out: Path, *words: str, steps: int = 20) -> list[float]:
    """The losses of a toy run on the GPU, by the command line; it goes on where there is one in `out`."""
    toy = [word for word in toy_run(data, out, max_steps=steps) if not word.startswith("place.accelerator")]
    more = ["place.accelerator=cuda", "optim.schedule=constant", "trainer.deterministic=true"]
    env = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"), "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = frisket("train", *toy, *more, *words, **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return [float(row["train/loss"]) for row in read_csv(RunFiles(out / "train_sam").metrics) if row["train/loss"]]


def test_ddp_over_nccl_trains_and_resumes(data: Path, tmp_path: Path, figures: dict[str, Any]) -> None:
    """A world of one: its collectives are NCCL's all the same."""
    ddp = ["place.strategy=ddp", "place.devices=1", "place.precision=bf16-mixed"]
    straight = trained(data, tmp_path / "straight", *ddp, steps=6)
    trained(data, tmp_path / "twice", *ddp, steps=3)
    twice = trained(data, tmp_path / "twice", *ddp, steps=6)
    figures["nccl/resume/largest_difference"] = max(abs(a - b) for a, b in zip(straight, twice, strict=True))
    assert twice == pytest.approx(straight, rel=1e-3)


def test_nccl_sums_up(tmp_path: Path, figures: dict[str, Any]) -> None:
    """All GPUs that this process may have: one."""
    torch.cuda.set_device(0)
    torch.distributed.init_process_group("nccl", f"file://{tmp_path / 'meet'}", world_size=1, rank=0)
    try:
        number = torch.ones(1 << 24, device="cuda")
        torch.distributed.all_reduce(number)
        torch.distributed.broadcast(number, 0)
        torch.cuda.synchronize()
        assert float(number.sum()) == 1 << 24
        figures["nccl/version"] = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[arg-type]
    finally:
        torch.distributed.destroy_process_group()


def test_bf16_learns_what_fp32_does(data: Path, tmp_path: Path, figures: dict[str, Any]) -> None:
    exact = trained(data, tmp_path / "fp32", "place.precision=32-true")
    mixed = trained(data, tmp_path / "bf16", "place.precision=bf16-mixed")
    figures["bf16/losses"] = {"fp32": exact, "bf16": mixed}
    assert mixed == pytest.approx(exact, rel=0.05) and mixed[-1] < mixed[0]


@pytest.mark.parametrize("backend", ["flash", "sdpa"])
def test_dilated_attention_forward_and_backward_are_the_plain_ones(backend: str, figures: dict[str, Any]) -> None:
    """At the encoder's own size, 64 x 64 tokens, in bf16 against fp32."""
    if backend == "flash" and _flash()[0] is None:
        pytest.skip(_flash()[1])
    setting: Any = {"grid": (64, 64), "segment": 1024, "dilation": 4}
    exact = [torch.randn(2, 4096, 6, 64, device="cuda").requires_grad_() for _ in range(3)]
    half = [value.detach().bfloat16().requires_grad_() for value in exact]
    begun = time.perf_counter()
    ours = dilated_attention(*half, backend=backend, **setting)
    theirs = dilated_attention(*exact, backend="plain", **setting)
    slope = torch.randn_like(theirs)
    ours.backward(slope.bfloat16())
    theirs.backward(slope)
    torch.cuda.synchronize()
    pairs = [(ours, theirs), *((mine.grad, other.grad) for mine, other in zip(half, exact, strict=True))]
    errors = [float((mine.float() - other).norm() / other.norm()) for mine, other in pairs]
    figures[f"attention/{backend}/relative_error"] = dict(zip(("out", "dq", "dk", "dv"), errors, strict=True))
    figures[f"attention/{backend}/first_call_s"] = round(time.perf_counter() - begun, 3)
    assert max(errors) < 2e-2  # bf16 keeps 8 bits
