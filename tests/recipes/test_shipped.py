"""The YAML files as shipped (bf16, clipping, schedules) train: only the model is small and the data ours."""

from pathlib import Path

import pytest
import torch

from frisket import checkpoint
from frisket import config as settings
from frisket.cli.main import main
from frisket.engine.rundir import read_csv
from frisket.models.zoo import build
from frisket.recipes.base import RECIPES
from frisket.recipes.recipe_config import specs

SMALL = "{depth: 2, width: 48, heads: 3}"


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("recipe", RECIPES.names())
def test_a_recipe_trains_and_resumes_as_shipped(
    recipe: str, precision: str, tmp_path: Path, tiny_teacher: Path, tiny_shards: Path, tiny_quantized: Path
) -> None:
    student = tmp_path / "student.pt"
    checkpoint.save(build("lightening", image_size=64, width=48, depth=2, heads=3), student)
    yaml = f"configs/{recipe}.yaml"
    kind = RECIPES.find(recipe).Config
    small = [word for key in specs(kind()) for word in (f"{key}.name=lightening", f"{key}.encoder={SMALL}")]
    weights = {"teacher": tiny_teacher, "init_from": tiny_quantized if recipe == "qat_tiny" else student}
    started = [
        f"{key}={path}" for key, path in weights.items() if getattr(kind(), key, None) or settings.peek([yaml], [], key)
    ]
    words = [
        yaml, *small, *started, f"out={tmp_path}", f"data.train={tiny_shards / 'train'}",
        f"data.val={tiny_shards / 'val'}", "data.image_size=64", "place.workers=0", "data.global_batch=2",
        "place.accelerator=cpu", "trainer.log_every=1", "log.wandb=off", f"place.precision={precision}",
    ]  # fmt: skip
    if precision == "bf16-mixed":
        words.pop()  # as the file says
    for steps in (2, 3):
        assert main(["train", *words, f"trainer.max_steps={steps}"]) == 0
    rows = [row for row in read_csv(tmp_path / recipe / "metrics.csv") if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [1, 2, 3]
    sam = checkpoint.load(tmp_path / recipe)
    assert all(bool(p.isfinite().all()) and p.dtype == torch.float32 for p in sam.parameters())
