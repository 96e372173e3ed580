"""What every recipe's YAML may say: the run, its data, length, machine and log; and which model it builds.

    class Config(RecipeConfig): model: ModelSpec = …       # a recipe's own settings beside these
    sam = build_model(config.model, config.data.image_size)

Defaults that a paper names are in the recipes' YAMLs, with their source; these here are our choice.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

import torch

from frisket.data.module import DataConfig
from frisket.errors import UserError
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.optim import OptimConfig
from frisket.place import Log, Place
from frisket.plugins import Extensible
from frisket.recipes.regularize import RegularizeConfig


@dataclass
class ModelSpec:
    """Which Sam to build."""

    name: str = "lightening"
    """Of frisket.models.zoo."""
    encoder: dict[str, Any] = field(default_factory=dict)
    """Changes to the encoder's own config, which checks them."""
    encoder_from: str | None = None
    """What the encoder starts from: MAE's or ImageNet's weights (a file, or its name in $FRISKET_WEIGHTS), a zoo name
    or run folder; null: random weights. What does not fit is said; a run that is continued does not read it."""


@dataclass
class TrainerConfig:
    """How long a run is, and what is done on the way."""

    max_steps: int = field(default=1000, metadata={"least": 1})
    """Optimizer steps in all."""
    clip: float = field(default=1.0, metadata={"least": 0})
    """Largest norm of the gradient; 0: any."""
    nan_skips: int = field(default=0, metadata={"least": 0})
    """Steps in all that are left out because their loss or gradient is no number; one more stops the run."""
    val_every: int = field(default=500, metadata={"least": 0})
    """Steps between validations; 0: at the end only."""
    checkpoint_every: int = field(default=500, metadata={"least": 1})
    """Steps between checkpoints."""
    log_every: int = field(default=10, metadata={"least": 1})
    """Steps between logged and printed lines."""
    sync_batchnorm: bool = False
    """BatchNorm's means are of all GPUs' images, not of each GPU's few (SyncBatchNorm); for whoever trains one."""
    keep_last: int = field(default=0, metadata={"least": 0})
    """So many of the newest checkpoints stay as checkpoints/step-N.ckpt; 0: only last.ckpt and the one before it."""
    keep_best: str = ""
    """A measure of the validation, box/miou say, whose best model is kept as best.pt; empty: none."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, even where they are slow."""


@dataclass
class TrainLog(Log):
    """Weights & Biases, the gallery, and a record of sample ids."""

    gallery_every: int = field(default=500, metadata={"least": 0})
    """Steps between pictures of validation masks; 0: none."""
    gallery_images: int = field(default=8, metadata={"least": 0})
    """Photographs in each."""
    samples: bool = False
    """Write samples.jsonl: step and keys of each batch, per rank."""


@dataclass
class RecipeConfig(Extensible):
    """Shared by all recipes."""

    recipe: str = ""
    """The recipe's name: its file in frisket/recipes, or a plug-in."""
    name: str | None = None
    """Of the run; null: the recipe's."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Of weights, data order, masks drawn and prompts."""
    out: str = "runs"
    """The run's folder is out/name."""
    init_from: str | None = None
    """Weights to start from: a run folder, model.pt or zoo name; a run that is continued takes its own."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is trained on, and how much of it per step."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and learning rate."""
    regularize: RegularizeConfig = field(default_factory=RegularizeConfig)
    """Drop path and its kin."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length and rhythm."""
    place: Place = field(default_factory=Place)
    """The machine; may differ from start to start of one run."""
    log: TrainLog = field(default_factory=TrainLog)
    """Where the numbers go."""

    renamed: ClassVar[dict[str, str]] = {
        **{
            f"trainer.{key}": f"place.{key}"
            for key in ("accelerator", "devices", "num_nodes", "strategy", "precision", "threads")
        },
        "trainer.accumulate": "derived from data.global_batch",
        "data.workers": "place.workers",
        "data.images_per_gpu": "place.images_per_device",
        "data.seed": "seed",
    }


def build_model(spec: ModelSpec, image_size: int) -> Sam:
    """Build `spec` at `image_size` (unless the spec sets its own)."""
    return zoo.build(spec.name, **({"image_size": image_size} | dict(spec.encoder)))


def specs(config: RecipeConfig) -> dict[str, ModelSpec]:
    """{key: spec} of the models that a recipe's config describes."""
    values = {part.name: getattr(config, part.name) for part in fields(config)}
    return {key: value for key, value in values.items() if isinstance(value, ModelSpec)}


def check_model(key: str, spec: ModelSpec, image_size: int) -> None:
    """Build `spec` without memory, so that a wrong name or setting is found now. Raises UserError naming `key`."""
    try:
        with torch.device("meta"):
            build_model(spec, image_size)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def knobs(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """An encoder's whole config, defaults included, as plain data; and what else `changes` adds to a Sam."""
    return {key: zoo.plain(value) for key, value in (changes | asdict(zoo.config_of(name, changes))).items()}
