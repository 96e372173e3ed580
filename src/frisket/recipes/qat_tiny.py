"""Quantization-aware training: what `frisket quant` wrote, trained until it answers like its float model again.

Run `sbatch slurm/qat_tiny.sh` or `make qat-tiny LOCAL=1`. Ours: TinySAM (arXiv 2312.13789) stops at quantization
without training. It starts as the quantized model, bit for bit: the searched scales over the float model's own weights,
BatchNorm folded. Both then learn, rounding passes gradients straight through, scales by LSQ's rule (arXiv 1902.08153)
as factors e^stretch of what was searched. The loss is distill_tiny's, from the float model and without the masks:

    embedding |E_t - E_s|  +  token |T_t - T_s|  +  output |D_t - D_s|         (l1, each a switch; `distill` has more)

Training checkpoints hold float weights under their own names (folded) and the scales; the end is model.safetensors.
"""

import copy
from dataclasses import dataclass, field
from typing import Literal

from frisket import checkpoint
from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.quant.layers import QuantAttend, Quantized, fold, learn
from frisket.recipes.distill_tiny import DistillConfig, Terms, TermsConfig
from frisket.recipes.hard_prompts import HardConfig

LEARNED = "stretch"
"""How the names of scales' parameters end."""


@dataclass
class ScalesConfig:
    """Which scales learn; all ours."""

    weights: Literal["learned", "frozen"] = "learned"
    """One for each output channel; frozen: as searched. They do not follow the largest weight: the search clips it."""
    inputs: Literal["learned", "frozen"] = "learned"
    """One for each operand; zero points and the split of softmax's two ranges stay as searched."""
    rate: float = field(default=0.1, metadata={"least": 0})
    """Their share of the learning rate."""


@dataclass
class Config(TermsConfig):
    """init_from is needed: the folder of `frisket quant`. distill.batchnorm says nothing here: it is folded."""

    masters: str = ""
    """The float model that init_from was made of; "": where init_from says it was."""
    teacher: str = ""
    """Who teaches: a zoo name, run folder or checkpoint file; "": that float model."""
    scales: ScalesConfig = field(default_factory=ScalesConfig)
    """What learns besides weights."""
    hard: HardConfig = field(default_factory=lambda: HardConfig(rounds=0))
    """Which prompts."""
    distill: DistillConfig = field(
        default_factory=lambda: DistillConfig(focal=0.0, dice=0.0, iou=0.0, weighting="none", decoder_rate=1.0)
    )
    """Which loss."""


class Module(Terms):
    """Image encoder and mask decoder are trained, through the grids of their quantized layers."""

    config: Config

    def build_sam(self) -> Sam:
        sam = self.initial("quantized")
        if sam is None or sam.quantization is None:
            raise UserError("qat_tiny needs init_from: the folder that `frisket quant` wrote, e.g. runs/quant_tiny")
        made = sam.quantization["provenance"]
        if "recipe" in made:
            raise UserError(
                f"init_from={self.config.init_from} was trained already: raise trainer.max_steps to go on in its folder"
            )
        kept = {key: made.get(key, "") for key in ("checkpoint", "weights")}
        sam.quantization["provenance"] = kept
        if self.config.teacher:
            teacher = self.floating("teacher", self.config.teacher)
        else:
            teacher = self.masters(kept)
        if not self.resume:
            whole = self.masters(kept) if self.config.teacher else copy.deepcopy(teacher)
            fold(whole)
            sam.load_state_dict(whole.state_dict(), strict=False)  # all but the scales
        self.hear(teacher, sam)
        layers = [part for part in sam.modules() if isinstance(part, Quantized | QuantAttend)]
        learn(layers, weights=self.config.scales.weights == "learned", inputs=self.config.scales.inputs == "learned")
        self.spare(sam)
        return sam

    def masters(self, made: dict[str, str]) -> Sam:
        """The float model of which init_from was made, by its digest. Raises UserError for any other."""
        key = "masters" if self.config.masters else "init_from was made of checkpoint"
        name = self.config.masters or made["checkpoint"]
        sam = self.floating(key, name)
        if checkpoint.weights_digest(sam) != made["weights"]:
            raise UserError(
                f"{key}={name} is not the float model that init_from={self.config.init_from} was made of, which "
                f"was at {made['checkpoint']}: name where it is now with masters=…, or quantize this one"
            )
        return sam

    def rates(self) -> dict[str, float]:
        scales = [name for name, _ in self.named_parameters() if name.endswith(LEARNED)]
        return dict.fromkeys(scales, self.config.scales.rate) | super().rates()
