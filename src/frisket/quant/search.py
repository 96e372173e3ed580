"""Post-training quantization: scales are searched layer by layer, so that the masks change least.

Use     captured = capture(sam, {name: layer}, batches, config); report = search(layer, captured[name], config)
Source  TinySAM (arXiv 2312.13789, section 3.2): alternating search of weight and input scales over a range around the
        widest one, the error weighted by the Hessian of the task; its range, candidates, rounds and splits.
Ours    The Hessian is a true Fisher estimate. Its diagonal is the mean square of gradients of -log p(target), with
        targets drawn from the model's own answers: each pixel and each predicted IoU a coin. The public quantizer of
        this lineage takes the gradient of KL(model || itself), which is 0 but for rounding. Weight scales are one for
        each output channel, chosen apart from each other. Attention's four operands are judged by what it puts out.
        The layers before a searched one are float.

A captured layer holds a random share of rows (tokens, windows) of every photograph: `rows` at most; convolutions hold
their whole maps.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from frisket.errors import UserError
from frisket.models.blocks import Attend
from frisket.models.sam import Sam
from frisket.prompts import box_corners, random_points
from frisket.quant.layers import SWAPS, Kind, Layer, QuantAttend, QuantLinear
from frisket.sample import FOREGROUND, IGNORED, Batch, Prediction, Prompts, valid_cells

SPLITS = 20  # of softmax: 2^-0 to 2^-19
EDGE = 1e-3  # a predicted IoU, as a chance, stays so far from 0 and 1


@dataclass
class SearchConfig:
    """How scales are searched; the paper's numbers unless marked ours."""

    low: float = field(default=0.01, metadata={"least": 1e-6})
    """The least candidate, as a share of the widest scale."""
    high: float = field(default=1.2, metadata={"least": 1e-6})
    """The largest."""
    candidates: int = field(default=100, metadata={"least": 1, "most": 10_000})
    """Between them."""
    rounds: int = field(default=3, metadata={"least": 1, "most": 100})
    """Of weights, then inputs."""
    metric: Literal["fisher", "mse"] = "fisher"
    """Squared error weighted by the Fisher diagonal, or plain (ours, the ablation)."""
    prompts: int = field(default=16, metadata={"least": 1})
    """Objects asked about in a photograph, half by box, half by click; ours."""
    rows: int = field(default=2048, metadata={"least": 1})
    """Most rows of a photograph that a layer is judged by; ours."""
    together: int = field(default=8, metadata={"least": 1})
    """Layers whose inputs are held at a time; memory against passes; ours."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise UserError(f"search.low={self.low:g} must be less than search.high={self.high:g}")


def questions(batch: Batch, generator: Generator) -> Prompts:
    """A box and a click in turn for the batch's objects, in one list of labelled points."""
    corners, corner_labels = box_corners(batch.boxes)
    points, _ = random_points(batch.masks, generator)
    points = torch.stack([points, torch.zeros_like(points)], dim=1)
    labels = torch.tensor([FOREGROUND, IGNORED], device=points.device).expand(len(points), 2)
    boxed = torch.arange(len(points), device=points.device) % 2 == 0
    return Prompts(
        torch.where(boxed[:, None, None], corners, points), torch.where(boxed[:, None], corner_labels, labels)
    )


def asked(sam: Sam, batch: Batch, generator: Generator) -> Prediction:
    """The model's answers to `questions`: three masks each."""
    embeddings = sam.encode(batch.images, batch.sizes)
    return sam.decode(embeddings, batch.image_index, questions(batch, generator), multimask=True)


def surprise(prediction: Prediction, generator: Generator, valid: Tensor | None = None) -> Tensor:
    """-log p(target), summed, with targets drawn from the prediction: a coin for each pixel and each IoU. The mean
    square of its gradients is the Fisher information's diagonal. valid: bool (N, G, G), the pixels that count."""

    def drawn(chance: Tensor) -> Tensor:
        return (torch.rand(chance.shape, generator=generator).to(chance.device) < chance).to(chance.dtype)

    logits, iou = prediction.logits, prediction.iou.clamp(EDGE, 1 - EDGE)
    masks = F.binary_cross_entropy_with_logits(logits, drawn(logits.detach().sigmoid()), reduction="none")
    masks = (masks if valid is None else masks * valid[:, None]).sum()
    return masks + F.binary_cross_entropy(iou, drawn(iou.detach()), reduction="sum")


@torch.no_grad()
def kinds_of(sam: Sam, batch: Batch) -> dict[str, Kind]:
    """{name: kind of its input} of the layers that work in one pass: "gelu" of a Linear that is given what comes
    straight out of a GELU. A layer that nothing asks (a checkpoint may hold some) has no kind, and stays float."""
    made: list[Tensor] = []  # kept alive, so that no other tensor takes its place
    kinds: dict[str, Kind] = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        made.append(output)

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        straight = isinstance(module, nn.Linear) and any(inputs[0] is output for output in made)
        kinds[name] = "gelu" if straight else "symmetric" if isinstance(module, nn.Linear | Attend) else "affine"

    handles = [part.register_forward_hook(note) for part in sam.modules() if isinstance(part, nn.GELU)]
    handles += [
        part.register_forward_pre_hook(partial(look, name)) for name, part in sam.named_modules() if type(part) in SWAPS
    ]
    try:
        asked(sam, batch, Generator().manual_seed(0))
    finally:
        for handle in handles:
            handle.remove()
    return kinds


@dataclass
class Captured:
    """What one photograph showed a layer: its inputs, its float output and, squared, the gradient there."""

    inputs: tuple[Tensor | None, ...]
    output: Tensor
    weight: Tensor


def capture(
    sam: Sam, layers: dict[str, Layer], batches: Sequence[Batch], config: SearchConfig, seed: int = 0
) -> dict[str, list[Captured]]:
    """{layer: what each photograph showed it}, all layers of the model float. Targets and rows do not depend on which
    layers are asked."""
    seen: dict[str, list[Captured]] = {name: [] for name in layers}
    for number, batch in enumerate(batches):
        held: dict[str, tuple[tuple[Tensor | None, ...], Tensor]] = {}
        handles = [layer.register_forward_hook(partial(_hold, held, name)) for name, layer in layers.items()]
        try:
            prompts, targets = (Generator().manual_seed(seed + number) for _ in range(2))
            surprise(asked(sam, batch, prompts), targets, valid_cells(batch)).backward()
        finally:
            for handle in handles:
                handle.remove()
        for name, (inputs, output) in held.items():
            gradient = output.grad if output.grad is not None else torch.zeros_like(output)
            weight = gradient.square() if config.metric == "fisher" else torch.ones_like(gradient)
            seen[name].append(share(layers[name], inputs, output.detach(), weight, config.rows, seed + number))
    return seen


def _hold(
    held: dict[str, Any], name: str, module: nn.Module, inputs: tuple[Tensor | None, ...], output: Tensor
) -> Tensor:
    """A forward hook: remember what goes in and comes out, and ask for the gradient there."""
    if not output.requires_grad:  # nothing before a captured layer needs a graph
        output = output.detach().requires_grad_()
    output.retain_grad()
    held[name] = tuple(None if x is None else x.detach() for x in inputs), output
    return output


def share(
    layer: Layer, inputs: tuple[Tensor | None, ...], output: Tensor, weight: Tensor, rows: int, seed: int
) -> Captured:
    """At most `rows` rows, drawn at random: tokens of a linear layer, windows or prompts of attention."""
    generator = Generator().manual_seed(seed)
    if isinstance(layer, QuantLinear):
        x = inputs[0]
        assert x is not None
        chosen = torch.randperm(x[..., 0].numel(), generator=generator)[:rows].to(x.device)
        return Captured((x.flatten(0, -2)[chosen],), *(t.flatten(0, -2)[chosen] for t in (output, weight)))
    if isinstance(layer, QuantAttend):
        count = len(output)
        chosen = torch.randperm(count, generator=generator)[: max(1, rows // output.shape[1])].to(output.device)
        shared = tuple(x if x is None or len(x) != count else x[chosen] for x in inputs)
        return Captured(shared, output[chosen], weight[chosen])
    return Captured(inputs, output, weight)


@torch.no_grad()
def search(layer: Layer, captured: Sequence[Captured], config: SearchConfig) -> dict[str, float]:
    """Give `layer` its scales, and leave it active. Returns its weighted mean square error {"before", "after"}: with
    the widest scales and with those it has now; after is never above before."""
    layer.active = True
    given = ([part.inputs[i] for part in captured] for i in range(layer.operand_count))
    layer.start(*(torch.cat([x.flatten() for x in inputs if x is not None]) for inputs in given))

    def cost(channels: int | None = None) -> Tensor:
        """Of the whole output, or of each of its channels; on the CPU."""
        total = torch.zeros(channels or 1, dtype=torch.float64)
        for part in captured:
            error = (layer(*part.inputs) - part.output).square() * part.weight
            if channels:
                error = error.movedim(-1 if isinstance(layer, QuantLinear) else 1, 0).reshape(channels, -1)
            total += error.reshape(channels or 1, -1).sum(1).double().cpu()
        return total

    elements, before = sum(part.output.numel() for part in captured), float(cost())
    factors = config.low + (config.high - config.low) * torch.arange(config.candidates) / config.candidates
    starts = [operand.scale.clone() for operand in layer.operands()]
    for _ in range(config.rounds):
        better = False
        if not isinstance(layer, QuantAttend):
            widest, count = layer.widest(), layer.weight_scale.numel()
            better |= _best(layer, "weight_scale", (widest * factor for factor in factors), partial(cost, count))
        for operand, start in zip(layer.operands(), starts, strict=True):
            shares = 2.0 ** -torch.arange(SPLITS) / start.cpu() if operand.kind == "softmax" else factors
            better |= _best(operand, "scale", (start * share for share in shares), cost)
        if not better:
            break  # another round would try the same
    return {"before": before / elements, "after": float(cost()) / elements}


def _best(holder: nn.Module, name: str, choices: Iterable[Tensor], cost: Callable[[], Tensor]) -> bool:
    """Set a scale, or each of a layer's scales by itself, to the choice that costs least; what it is now is one.
    Returns whether any is another now."""
    best = before = getattr(holder, name)
    least = cost().reshape(best.shape)
    for choice in choices:
        setattr(holder, name, choice.to(best))
        now = cost().reshape(best.shape)
        best = torch.where((now < least).to(best.device), choice.to(best), best)
        least = torch.minimum(now, least)
    setattr(holder, name, best)
    return not torch.equal(best, before)
