"""TinySAM: full-stage distillation with hard prompts and hard-mask weighting, end to end (arXiv 2312.13789, section 3).

Run `sbatch slurm/distill_tiny.sh` or `make distill-tiny LOCAL=1`. The loss per step, all terms at once, is

    embedding |E_t - E_s|  +  token |T_t - T_s|  +  output mean_i H_i |D_t - D_s|_i        (equations 4 and 7, l1)
    + focal F + dice D  +  iou |predicted - real IoU|                                      (equation 5)

over the image embedding, the transformer's own tokens and the three mask logits, H_i from equation 6, for prompts drawn
where the student errs (recipes/hard_prompts.py). The paper gives no weights; ours are 1 with means in place of sums,
each a switch. Ours, too: padding does not count, the decoder learns at a tenth of the rate, boxes besides clicks.
Ablations: every weight 0 or not (Tables 3 and 4), `hard.rounds=0`, `distill.weighting=none`, `distill.target=teacher`
(EdgeSAM's way, arXiv 2312.06660: the data only tell where the first click or the box is, masks are the teacher's).

Teacher embeddings are live or stored (`data.embeddings`: the teacher's encoder then runs in validation only).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from frisket.errors import UserError
from frisket.losses import distance, hardness, logits_iou, mask_losses
from frisket.models.sam import Sam
from frisket.recipes.hard_prompts import HardConfig, sample
from frisket.recipes.interactive import in_chunks
from frisket.recipes.recipe_config import ModelSpec
from frisket.recipes.taught import Taught, TaughtConfig
from frisket.sample import Batch, Prediction, Prompts, picked, valid_cells, valid_tokens

BINS = (0.0, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass
class TermConfig:
    """One distilled term."""

    weight: float = field(default=1.0, metadata={"least": 0})
    """In the loss; 0 leaves the term out."""
    distance: Literal["l1", "mse", "smooth_l1"] = "l1"
    """Between teacher and student; the paper found squares too small to learn from."""


@dataclass
class DistillConfig:
    """The loss. The paper's equations, its weights ours."""

    embedding: TermConfig = field(default_factory=TermConfig)
    """The image embedding, over channels and tokens of the photograph."""
    token: TermConfig = field(default_factory=TermConfig)
    """The transformer's own five tokens: of the IoU and of the four masks."""
    output: TermConfig = field(default_factory=TermConfig)
    """The logits of the three masks, over the photograph."""
    focal: float = field(default=20.0, metadata={"least": 0})
    """Weight of the focal loss of the best of three masks (SAM)."""
    dice: float = field(default=1.0, metadata={"least": 0})
    """Weight of its dice loss (SAM)."""
    iou: float = field(default=1.0, metadata={"least": 0})
    """Weight of the predicted IoU's absolute error."""
    weighting: Literal["hard", "hard_normalized", "none"] = "hard"
    """Of the output term: equation 6; the same over its mean; all 1."""
    epsilon: float = field(default=1e-6, metadata={"least": 1e-12})
    """Of equation 6."""
    target: Literal["truth", "teacher"] = "truth"
    """The masks that clicks, hardness, focal, dice and IoU go by: the data's, or the teacher's best answer."""
    decoder_rate: float = field(default=0.1, metadata={"least": 0})
    """The mask decoder's share of the learning rate; 0 freezes it."""
    batchnorm: Literal["train", "frozen"] = "train"
    """train: statistics of each device's own images, so that few of them train another network; frozen: the stored
    ones, for a start from trained weights with fewer than four images a device."""


@dataclass
class TermsConfig(TaughtConfig):
    """What a step asks and compares."""

    hard: HardConfig = field(default_factory=HardConfig)
    """Which prompts."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Which loss."""


@dataclass
class Config(TermsConfig):
    """TinySAM's training."""

    student: ModelSpec = field(default_factory=lambda: ModelSpec("tiny_sam"))
    """What to teach, where `init_from` does not; its prompt encoder and decoder begin as the teacher's."""


class Terms(Taught):
    """The loss, for this recipe and for qat_tiny."""

    config: TermsConfig

    def spare(self, sam: Sam) -> None:
        """Freeze what is not taught: the prompt encoder, and what no term asks. Raises UserError for no term at all."""
        if not any(self.weights().values()):
            raise UserError("all weights of distill are 0: give one of embedding, token, output, focal, dice, iou")
        self.freeze(sam.prompt_encoder, *self.untaught(sam))

    def weights(self) -> dict[str, float]:
        """{term: its weight in the loss}."""
        config = self.config.distill
        distilled = {name: getattr(config, name).weight for name in ("embedding", "token", "output")}
        return {**distilled, "focal": config.focal, "dice": config.dice, "iou": config.iou}

    def untaught(self, sam: Sam) -> Iterator[nn.Module]:
        """Parts of the decoder that this loss gives no gradient, or that shall not learn: DDP waits for the gradient of
        every trained parameter."""
        weights, decoder = self.weights(), sam.mask_decoder
        drawn = any(weights[name] for name in ("output", "focal", "dice"))
        if not (self.config.distill.decoder_rate and (drawn or weights["token"] or weights["iou"])):
            yield decoder
            return
        yield decoder.output_hypernetworks_mlps if not drawn else decoder.output_hypernetworks_mlps[0]  # 0: never asked
        if not drawn:
            yield decoder.output_upscaling
        if not weights["iou"]:
            yield decoder.iou_prediction_head

    def rates(self) -> dict[str, float]:
        return {"sam.mask_decoder": self.config.distill.decoder_rate}

    def training_step(self, batch: Batch, index: int) -> Tensor:
        config, weights = self.config.distill, self.weights()
        mine, theirs = self.sam.encode(batch.images, batch.sizes), self.teach(batch)
        terms, shown = {}, {}
        if weights["embedding"]:
            away = distance(mine, theirs, config.embedding.distance).mean(dim=1)
            seen = valid_tokens(batch, mine.shape[-1])
            terms["embedding"] = (away * seen).sum() / seen.sum().clamp(min=1)
        if any(weight for name, weight in weights.items() if name != "embedding"):
            prompts, hard = sample(
                batch, partial(self.respond, mine.detach(), theirs, batch), self.config.hard, self.generator(batch)
            )
            taught = self.answer(self.teacher, theirs, batch, prompts)
            asked, heaviness = in_chunks(
                partial(self.ask, mine, taught, batch, prompts), len(batch.masks), self.config.place.prompts_at_once
            )
            if config.weighting == "hard_normalized":
                mean = heaviness.sum() / max(1, len(heaviness))
                asked["output"] = asked["output"] / mean.clamp(min=config.epsilon)
            terms |= {name: term for name, term in asked.items() if weights[name]}
            shown = {"hard_prompts": hard.float().mean(), **histogram(heaviness)} if len(hard) else {}
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        values = {"loss": loss, **{f"loss/{name}": term for name, term in terms.items()}, **shown}
        self.report("train", values, batch_size=batch.num_images)
        return loss

    @torch.no_grad()
    def teach(self, batch: Batch) -> Tensor:
        """The teacher's image embeddings (B, 256, h, w), stored if the batch brings them."""
        return batch.embedding if batch.embedding is not None else self.teacher.encode(batch.images, batch.sizes)

    @torch.no_grad()
    def answer(
        self, sam: Sam, embeddings: Tensor, batch: Batch, prompts: Prompts, which: Tensor | None = None
    ) -> Prediction:
        """What `sam` answers about the objects `which` (all), `place.prompts_at_once` at a time: no graph."""
        owner = batch.image_index if which is None else batch.image_index[which]
        size = self.config.place.prompts_at_once or max(1, len(owner))
        rows = [slice(first, first + size) for first in range(0, max(1, len(owner)), size)]
        return Prediction.join([sam.decode(embeddings, owner[part], prompts[part], multimask=True) for part in rows])

    def respond(
        self, mine: Tensor, theirs: Tensor, batch: Batch, prompts: Prompts, which: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The student's masks for objects `which`, and those it should have drawn: both bool (K, G, G)."""
        masks = self.answer(self.sam, mine, batch, prompts, which).best()[0] > 0
        if self.config.distill.target == "truth":
            return masks, batch.masks[which]
        return masks, self.answer(self.teacher, theirs, batch, prompts, which).best()[0] > 0

    def ask(
        self, mine: Tensor, taught: Prediction, batch: Batch, prompts: Prompts, rows: slice
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the objects `rows`, means over them, and the weights H (n,) of their output term."""
        config, wanted = self.config.distill, taught[rows]
        answer = self.sam.decode(mine, batch.image_index[rows], prompts[rows], multimask=True)
        valid = valid_cells(batch)[rows]
        truth = batch.masks[rows] if config.target == "truth" else (wanted.best()[0] > 0) & valid
        terms = mask_losses(
            answer.logits, answer.iou, truth, focal=config.focal, dice=config.dice, valid=valid, iou_power=1
        )
        away = distance(answer.logits, wanted.logits, config.output.distance).mean(dim=1) * valid
        away = away.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
        heavy = self.heaviness(answer, wanted, truth, valid)
        count = max(1, len(away))  # a batch without masks gives 0 with a graph: other ranks wait for its gradients
        terms["output"] = (heavy * away).sum() / count
        assert answer.tokens is not None and wanted.tokens is not None  # `decode` gives them
        terms["token"] = distance(answer.tokens, wanted.tokens, config.token.distance).mean(dim=(1, 2)).sum() / count
        return terms, heavy

    def heaviness(self, answer: Prediction, wanted: Prediction, truth: Tensor, valid: Tensor) -> Tensor:
        """H (n,) of equation 6, of the output in which the teacher does best; ones without weighting."""
        if self.config.distill.weighting == "none":
            return answer.iou.new_ones(len(truth))
        theirs, mine = (
            logits_iou(prediction.logits, truth[:, None], valid=valid[:, None]) for prediction in (wanted, answer)
        )
        best = theirs.argmax(dim=1)
        return hardness(picked(theirs, best), picked(mine, best), epsilon=self.config.distill.epsilon)


class Module(Terms):
    """The student's image encoder and, slowly, its mask decoder are trained; its prompt encoder stays as it is."""

    config: Config

    def build_sam(self) -> Sam:
        sam = self.build_pair(self.config.student)
        self.spare(sam)
        if self.config.distill.batchnorm == "frozen":
            self.frozen = (*self.frozen, *(part for part in sam.modules() if isinstance(part, nn.BatchNorm2d)))
        return sam


def histogram(weights: Tensor) -> dict[str, Tensor]:
    """The mean of H and the share of masks in each of five bins, for the log."""
    bins = torch.bucketize(weights, weights.new_tensor(BINS[1:-1]))
    shares = {f"hardness/{low:g}-{high:g}": (bins == n).float().mean() for n, (low, high) in enumerate(pairwise(BINS))}
    return {"hardness/mean": weights.mean(), **shares}
