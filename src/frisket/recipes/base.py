"""What every recipe shares: the trained Sam, optimizer, names in the log, validation by box and by click.

A recipe is a file beside this one with `class Config(RecipeConfig)` and `class Module(Recipe)`; it defines
`build_sam` and `training_step`. `frisket train configs/<recipe>.yaml` runs it. Randomness is a function of (seed,
step, keys), so a resumed run repeats an uninterrupted one without storing generator states.
"""

import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric

from frisket import checkpoint
from frisket.checkpoint import Resume
from frisket.data.embeddings import Stamp
from frisket.errors import UserError
from frisket.eval.metrics import MaskIoU, Mean
from frisket.fidelity import CURVES, PROMPTS, asked, compare, curves
from frisket.models import zoo
from frisket.models.encoder import Tap, layer_rates, undecayed
from frisket.models.recompute import recompute
from frisket.models.sam import Sam
from frisket.optim import adamw, settle
from frisket.plugins import Room
from frisket.recipes.recipe_config import RecipeConfig, knobs, specs
from frisket.recipes.regularize import regularize, trains
from frisket.sample import Batch, Prompts

RECIPES = Room("frisket.recipes", "recipe", "Module")
"""Every recipe: a file beside this one, or a plug-in of the same form."""


class Recipe(L.LightningModule):
    """A stage of training. `self.sam` is the model trained; whatever else (teachers) stays out of the checkpoint."""

    frozen: tuple[nn.Module, ...] = ()
    proposes = False
    """Whether it trains the Sam's AutoPPN, which else stays as it is, where there is one."""

    def __init__(self, config: RecipeConfig, resume: Resume | None = None) -> None:
        """`resume`: the training checkpoint whose weights Lightning will load into this module before it trains."""
        super().__init__()
        self.config = config
        self.resume = resume
        self.sam = self.build_sam()
        if self.sam.auto_ppn is not None and not self.proposes:
            self.freeze(self.sam.auto_ppn)
        self.start_encoder()
        regularize(self.sam, config.regularize)
        self.layer_rates()  # refuses
        if config.place.recompute:
            recompute(self.sam.image_encoder)
        # torch's types know a ModuleDict's entries as modules only
        self.val_iou = cast(Mapping[str, MaskIoU], nn.ModuleDict({name: MaskIoU() for name in PROMPTS}))
        self.val_mean = cast(Mapping[str, Mean], nn.ModuleDict({name: Mean() for name in CURVES}))
        self._parts: tuple[int, list[dict[str, Tensor]]] = (-1, [])  # what the batches of this step reported
        self.train()  # a loaded Sam comes in eval mode, and Lightning's fit keeps the modes it finds

    # --- what a recipe defines

    @abstractmethod
    def build_sam(self) -> Sam:
        """Build and initialise the model that this recipe trains."""

    def gallery_columns(self, batch: Batch) -> dict[str, Any]:
        """{title: bool masks (N, G, G), or a list of a picture.Panel for each photograph} to show beside the image:
        here the model by box. The truth is added."""
        return {"student": self.predict_boxes(self.sam, batch)}

    def stamp(self) -> Stamp | None:
        """Which stored teacher embeddings this recipe accepts; None when it uses none."""
        return None

    def taps(self) -> dict[int, Tap]:
        """{block: Tap} of the teacher's features that must be stored where its embeddings are, so that it rests."""
        return {}

    def targets(self) -> Callable[..., Any] | None:
        """What makes the loader's targets for an AutoPPN (frisket.proposals.targets); None: no such thing."""
        return None

    # --- shared machinery

    def floating(self, key: str, name: str) -> Sam:
        """The Sam that the setting `key` names. Raises UserError for a quantized one."""
        sam = checkpoint.load(name, trust=self.config.trust)
        if sam.form != "float":
            raise UserError(f"{key}={name} is quantized: give the float model it was made of")
        return sam

    def initial(self, form: Literal["float", "quantized"] = "float") -> Sam | None:
        """The Sam that `init_from` names; None when it names none. A run that is resumed needs only its shape, which
        the checkpoint knows: `init_from` may be gone by then. Raises UserError where its side is not the data's, and
        where it is not of that form."""
        if not self.config.init_from:
            return None
        if self.resume:
            sam = checkpoint.like(self.resume)
        else:
            sam = checkpoint.load(self.config.init_from, trust=self.config.trust)
        if sam.form != form:
            mend = "start from the float model it was made of" if form == "float" else "give what `frisket quant` wrote"
            raise UserError(f"init_from={self.config.init_from} is {sam.form}: {mend}")
        if sam.image_size != self.config.data.image_size:  # it would be judged at a side it was not trained at
            raise UserError(
                f"init_from={self.config.init_from} holds a model of {sam.image_size} px and "
                f"data.image_size={self.config.data.image_size}: set data.image_size={sam.image_size}"
            )
        for key, spec in specs(self.config).items():
            if spec.name != sam.name and not self.resume and rank_zero_only.rank == 0:
                print(
                    f"init_from={self.config.init_from} brings {sam.name}; {key}.name={spec.name} is not used",
                    flush=True,
                )
        return sam

    def start_encoder(self) -> None:
        """Let the encoder begin with `encoder_from`, where a model of the config has one. Raises UserError beside
        init_from, which brings an encoder itself."""
        for key, spec in specs(self.config).items():
            if spec.encoder_from and self.config.init_from:
                raise UserError(f"init_from and {key}.encoder_from both say where the encoder starts: set one to null")
            if spec.encoder_from and not self.resume:
                said = checkpoint.start_encoder(self.sam, spec.encoder_from, trust=self.config.trust)
                if rank_zero_only.rank == 0:
                    print(f"{key}.{said}", flush=True)

    def freeze(self, *modules: nn.Module) -> None:
        """Take modules out of training for good: no gradients, and BatchNorm and dropout stay in eval mode."""
        for module in modules:
            module.requires_grad_(False).eval()
        self.frozen = (*self.frozen, *modules)

    def train(self, mode: bool = True) -> "Recipe":
        """Lightning calls this around validation; frozen parts stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def generator(self, batch: Batch) -> torch.Generator:
        """A CPU generator for this step and batch, whichever rank has it: batches of one step draw differently."""
        text = f"{self.config.seed} {self.global_step} 0 {' '.join(batch.keys)}"  # the 0: rank 0's draws of ever
        return torch.Generator().manual_seed(zlib.crc32(text.encode()))  # torch reads 32 bits of a CPU seed

    def report(self, split: str, values: dict[str, Any], *, batch_size: int = 1) -> None:
        """Log {what/measure: value} as split/what/measure, the only door to the loggers.

        Of a training step the loggers see the mean over the batches accumulated into it that report the measure.
        """
        if split == "train":
            step, parts = self._parts if self._parts[0] == self.global_step else (self.global_step, [])
            parts.append({name: torch.as_tensor(value).detach() for name, value in values.items()})
            self._parts = step, parts
            names = dict.fromkeys(name for part in parts for name in part)
            values = {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}
        self.log_dict(
            {f"{split}/{name}": value for name, value in values.items()},
            batch_size=batch_size,
            on_step=split == "train",
            on_epoch=split != "train",
        )

    def check_resume(self, run: Path) -> None:
        """Refuse a checkpoint that other settings made: another model, another teacher, rates of other groups. Raises
        UserError."""
        if self.resume is None:
            return
        name = self.resume.name
        free = dict.fromkeys(self.sam.image_encoder.may_differ)  # e.g. the attention backend: a matter of the machine
        old, new = knobs(name, self.resume.changes) | free, knobs(*zoo.spec(self.sam)) | free
        mend = "set name=… for another run"
        if (name, old) != (self.sam.name, new):
            said = [f"{a} at {b['image_size']} px" for a, b in ((name, old), (self.sam.name, new))]
            if name == self.sam.name:
                keys = [key for key in old if key != "image_size" and old[key] != new[key]]
                said = [", ".join([a, *(f"{k}={b[k]}" for k in keys)]) for a, b in zip(said, (old, new))]
            raise UserError(f"{run} holds {said[0]}; the settings ask for {said[1]}: {mend}")
        if wrong := checkpoint.differences(self.state_dict(), self.resume.shapes):
            raise UserError(f"{run} was trained by another recipe, or with another teacher or blocks ({wrong}): {mend}")
        groups = tuple(len(group["params"]) for group in self.configure_optimizers()["optimizer"].param_groups)
        if self.resume.groups and self.resume.groups != groups:
            raise UserError(
                f"{run} keeps its optimizer's state in other groups of weights than the settings make (layer_decay="
                f"{self.config.optim.layer_decay:g} of optim, a rate of the recipe's own, or what it freezes): {mend}, "
                f"with init_from={run}"
            )

    def configure_optimizers(self) -> Any:
        steps, spared = self.config.trainer.max_steps, undecayed(self)
        rates = self.rates() | self.layer_rates()
        optimizer, schedule = adamw(self.trained(), self.config.optim, steps=steps, plain=spared, rates=rates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters for the optimizer."""
        return self.named_parameters()

    def rates(self) -> dict[str, float]:
        """{beginning of a parameter's name: its share of the learning rate}, where that is not 1."""
        return {}

    def layer_rates(self) -> dict[str, float]:
        """The same of the image encoder's layers, by optim.layer_decay. Raises UserError where that does nothing."""
        decay, encoder = self.config.optim.layer_decay, self.sam.image_encoder
        if decay == 1:
            return {}
        if not trains(encoder):
            raise UserError(f"optim.layer_decay={decay}: this recipe freezes the encoder, set it to 1")
        try:
            return {f"sam.image_encoder.{start}": rate for start, rate in layer_rates(encoder, decay).items()}
        except LookupError as error:
            raise UserError(
                f"optim.layer_decay={decay}: the encoder of '{self.sam.name}' names no layers, set it to 1"
            ) from error

    def on_train_start(self) -> None:
        """The optimizer's settings are those of this start, whatever the checkpoint brought."""
        if self.resume:
            settle(cast(LambdaLR, self.lr_schedulers()), self.configure_optimizers()["lr_scheduler"]["scheduler"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What layers draw (dropout, drop path) is a function of seed, step and keys, too, but another one. And a row
        of the loggers holds what its own step reported: Lightning would repeat what another step of the epoch did.
        """
        results = self._trainer._results if self._trainer else None  # a bare loop has no Trainer
        if self._parts[0] != self.global_step and results is not None:
            results.reset()
        torch.manual_seed(self.generator(batch).initial_seed() ^ 0x5EED)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["frisket"] = zoo.record(self.sam) | {"recipe": self.config.recipe}

    @torch.no_grad()
    def predict_boxes(self, sam: Sam, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        """Masks (N, G, G) of `sam` for the batch's boxes: the candidate it believes in most."""
        embeddings = sam.encode(batch.images, batch.sizes) if embeddings is None else embeddings
        return sam.decode(embeddings, batch.image_index, Prompts(boxes=batch.boxes), multimask=True).best()[0] > 0

    def reference(self) -> Sam | None:
        """The teacher that validation compares the trained model with; None where there is none."""
        return None

    def on_validation_start(self) -> None:
        """All ranks judge with the statistics (BatchNorm's) of rank 0, which are those that are saved. DDP does it in a
        fit alone, DeepSpeed never."""
        if self.trainer.world_size > 1:
            for buffer in self.sam.buffers():
                torch.distributed.broadcast(buffer, 0)

    @torch.no_grad()
    def validation_step(self, batch: Batch, index: int) -> None:
        if not len(batch.masks):
            return
        teacher = self.reference()
        measures = compare(self.sam, asked(teacher, batch) if teacher else None, batch)
        for name in PROMPTS:
            self.val_iou[name].update(measures[name], batch.areas)
        measured = curves(measures)
        for name, metric in self.val_mean.items():
            metric.update(measured.get(name, batch.areas[:0]))  # also with nothing: ranks sum up together

    def on_validation_epoch_end(self) -> None:
        values = {
            f"{name}/{k}": v for name, metric in self.val_iou.items() for k, v in metric.compute().items() if k != "n"
        }
        values |= {name: metric.compute() for name, metric in self.val_mean.items()}
        self.report("val", {name: value for name, value in values.items() if value == value})  # a size may have no mask
        for metric in (*self.val_iou.values(), *self.val_mean.values()):
            metric.reset()

    def measures(self) -> list[str]:
        """What a validation may report, without its "val/"; not every one does of every data."""
        sizes = [f"{name}/miou{size}" for name in PROMPTS for size in ("", "_s", "_m", "_l")]
        return [*sizes, *CURVES, *(name for name, part in self.named_children() if isinstance(part, Metric))]

    def model_flops_per_image(self) -> float:
        """Training FLOPs per image of the trained encoder (forward x 3; x 1 where frozen), as its paper counts them."""
        encoder = self.sam.image_encoder
        trained = any(p.requires_grad for p in encoder.parameters())
        return 2.0 * encoder.macs(self.config.data.image_size) * (3 if trained else 1)
