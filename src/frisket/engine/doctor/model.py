"""Checks of what is trained: can it be built, from the teacher and weights that are named; does it fit into a GPU.

Memory is counted with fake tensors: real operators and autocast, shapes alone, no arithmetic. Counted: weights, their
optimizer, what autograd keeps of encoder, AutoPPN and decoder; not what lives only while an operator runs (the
teacher's activations too), fragments, workspaces, and a recipe's own terms: room is left for those. Source: our choice;
tests/test_places.py counts each shipped recipe to the last term.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from frisket import checkpoint
from frisket.engine.doctor.plan import Plan
from frisket.engine.strategy import fits
from frisket.errors import UserError
from frisket.eval.cost import on_meta
from frisket.models.sam import Sam
from frisket.sample import Prompts

MIB = 2**20
CUDA = 1024  # MiB: a context, its libraries, and all that is not a tensor of ours
USED = 0.85  # of a GPU's memory may be accounted for
TRAINED, FROZEN = 18, 4  # bytes of a weight: with gradient, two moments of AdamW and the copy in bf16; alone


def model(plan: Plan) -> str:
    """Build it as training does, the teacher and `init_from` loaded, or its checkpoint's shape."""
    config, resume = plan.config, checkpoint.newest(plan.run.path)
    if resume:
        fits(resume)
    recipe = plan.module(config, resume)
    recipe.check_resume(plan.run.path)
    plan.recipe, plan.data.stamp = recipe, recipe.stamp()
    plan.data.taps, plan.data.targets = recipe.taps(), recipe.targets()
    taught = [f"taught by {getattr(config, 'teacher', 'its float model')} ({sam.name})" for sam in teachers(recipe)]
    trained = sum(weight.numel() for weight in recipe.parameters() if weight.requires_grad)
    start = f"going on from {resume.path}, step {resume.step}" if resume else "from the start"
    return ", ".join([f"{recipe.sam.name}, {trained / 1e6:.3g} M weights trained", *taught, start])


def memory(plan: Plan) -> str:
    """What autograd and the optimizer hold, against the GPU that is here."""
    if plan.recipe is None:
        return "not checked: there is no model to count"
    if plan.where["accelerator"] == "cpu" and not plan.elsewhere:
        return "not checked: the place is a CPU"
    gib = needed(plan) / 1024
    if plan.elsewhere:
        return f"{gib:.1f} GiB of each GPU are accounted for, and {gib / USED:.1f} GiB wanted; none is here to compare"
    total = torch.cuda.get_device_properties(0).total_memory / MIB / 1024
    if gib > USED * total:
        raise UserError(
            f"{gib:.1f} GiB are accounted for and this GPU has {total:.1f}, of which {1 - USED:.0%} must stay free: "
            "lower place.images_per_device or place.prompts_at_once"
        )
    return f"{gib:.1f} of {total:.1f} GiB are accounted for"


def needed(plan: Plan) -> float:
    """MiB of one GPU."""
    assert plan.recipe is not None
    config, images, side = plan.config, plan.division.per_device, plan.config.data.image_size
    session, sam = getattr(config, "prompts", None) or getattr(config, "hard", None), counted(plan.recipe.sam)
    with fake(config.place.precision, sam):
        total = CUDA + weights(plan.recipe) + images * an_image(sam, side)
        if session is None:  # the decoder is asked nothing
            return total
        masks = images * (config.data.masks_per_image or 1)
        total += min(masks, config.place.prompts_at_once or masks) * a_prompt(sam, side)
    held = session.rounds if hasattr(config, "prompts") else 3  # grids of a mask: of its rounds, or the teacher's three
    return total + masks * held * 4 * (side // 4) ** 2 / MIB


def weights(recipe: Any) -> float:
    """MiB of a module's and of its teachers'."""
    parts = [*recipe.parameters(), *(weight for teacher in teachers(recipe) for weight in teacher.parameters())]
    return sum(part.numel() * (TRAINED if part.requires_grad else FROZEN) for part in parts) / MIB


def teachers(recipe: Any) -> list[Sam]:
    """Held outside the module tree."""
    return list(getattr(recipe, "teachers", ()))


def counted(sam: Sam) -> Sam:
    """A copy without storage that trains what `sam` trains."""
    copy = on_meta(sam)
    for mine, theirs in zip(copy.parameters(), sam.parameters()):
        mine.requires_grad_(theirs.requires_grad)
    return copy.train(sam.training)


def an_image(sam: Sam, side: int) -> float:
    """MiB that one image more costs outside the decoder."""

    def step(images: int) -> int:
        pixels, sizes = torch.empty(images, 3, side, side), torch.empty(images, 2, dtype=torch.long)
        total, embedding = 0, torch.empty(images, sam.image_encoder.channels, side // 16, side // 16)
        if any(weight.requires_grad for weight in sam.image_encoder.parameters()):
            total += kept(lambda: sam.encode(pixels, sizes), sam)
        if sam.auto_ppn is not None and any(weight.requires_grad for weight in sam.auto_ppn.parameters()):
            proposals = sam.auto_ppn
            total += kept(lambda: proposals(embedding), sam)
        return total

    return (step(2) - step(1)) / MIB


def a_prompt(sam: Sam, side: int) -> float:
    """MiB that one prompt more costs in the decoder."""

    def ask(prompts: int) -> int:
        embeddings = torch.empty(2, sam.image_encoder.channels, side // 16, side // 16)
        index = torch.zeros(prompts, dtype=torch.long)
        asking = Prompts(torch.zeros(prompts, 2, 2), torch.zeros(prompts, 2, dtype=torch.long))
        embeddings.requires_grad_(any(weight.requires_grad for weight in sam.image_encoder.parameters()))
        return kept(lambda: sam.decode(embeddings, index, asking, multimask=True), sam)

    return (ask(8) - ask(4)) / 4 / MIB


@contextmanager
def fake(precision: str, *modules: nn.Module) -> Iterator[None]:
    """Shapes alone. The weights of `modules` are lost."""
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", half, enabled=half is not None):
        for module in modules:
            module.to_empty(device="cpu")
        yield


def kept(call: Callable[[], Any], module: nn.Module) -> int:
    """Bytes of the storages that autograd keeps for the backward pass of `call`, those of weights left out."""
    own = {tensor.untyped_storage()._cdata for tensor in module.state_dict(keep_vars=True).values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no other gets its number
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in storages.values())
