"""The one door for weights on disk: load any of our forms or Meta's, save ours, find the newest checkpoint of a run.

Use     `sam = load("sam_vit_h")`, `load("runs/distill_lightening")`, `save(sam, "model.pt", provenance={...})`,
        `resume = newest("runs/distill_lightening")`: what its training goes on from; `like(resume)`: the Sam for it
Source  Meta's files as published (arXiv 2304.02643); the rest, and the order of `newest`, are our choice.

What `load` reads; each form has a file in `frisket.weights`, every checksum is compared, and no code of a file runs:
  a zoo name       its public file in $FRISKET_WEIGHTS, or <name>.pt of ours there when nothing was published
  a file's name    there is no such file here, but in $FRISKET_WEIGHTS
  Meta's .pth      and other bare state dicts, .safetensors too: named by their keys and shapes, or by the record that
                   `frisket export-weights` adds
  model.pt         ours
  .safetensors     ours, float or quantized (frisket.quant.packed)
  Lightning .ckpt  of our recipes: the trained Sam of it
  DeepSpeed folder of an earlier frisket's; parts that hold more than weights only with `trust`
  run folder       model.safetensors, or else model.pt, when it is newer than the newest training checkpoint, else that
                   checkpoint
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from frisket.errors import UserError, nearest, warn
from frisket.files import check_zip
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.quant import packed
from frisket.runfiles import RunFiles
from frisket.weights import bare, deepspeed, encoder, lightning, ours, safe
from frisket.weights.layout import differences, fingerprint, layout, weights_digest
from frisket.weights.ours import save
from frisket.weights.stored import Stored, model, quantization, tensors, unpickle

__all__ = [
    "Resume",
    "differences",
    "fingerprint",
    "like",
    "load",
    "newest",
    "recorded",
    "save",
    "start_encoder",
    "trained",
    "weights_digest",
]


@dataclass(frozen=True)
class Resume:
    """A training checkpoint (or the DeepSpeed folder of an earlier frisket) and its facts. No weights are held."""

    path: Path
    step: int
    """Optimizer steps done."""
    name: str
    """The zoo name of the model trained."""
    changes: dict[str, Any]
    """What its encoder's config changes of the zoo's."""
    shapes: dict[str, tuple[int, ...]]
    """{key: shape} of the whole training module."""
    groups: tuple[int, ...] = ()
    """How many parameters each group of its optimizer has; of a DeepSpeed folder unknown."""
    quantization: dict[str, Any] | None = None
    """How its Sam is quantized; None: floating point."""


def load(name_or_path: str | Path, device: str | torch.device = "cpu", *, trust: bool = False) -> Sam:
    """A Sam with stored weights, in eval mode, on `device`. See the top of this file for what is accepted.

    trust: let deepspeed run what the parts of a DeepSpeed folder hold besides weights.
    Raises UserError when nothing is there, the file is damaged, its keys and shapes are not the model's, or a weight is
    not a finite number.
    """
    text, path = str(name_or_path), _where(str(name_or_path))
    if path.is_dir() and not (path / "latest").is_file():
        path = _of_run(path)
    stored = _read(path, trust)
    if text in zoo.names() and stored.name != text:
        raise UserError(f"{path} holds '{stored.name}', not '{text}': put the right file there or load it by its path")
    if stored.quantization is not None:
        sam = packed.restored(path, stored.name, stored.changes, stored.quantization, stored.state)
        return sam.to(device).eval()
    if wrong := differences(layout(stored.name, **stored.changes), stored.state):  # before memory is asked for
        raise UserError(f"{path} is not a '{stored.name}' ({wrong}): give the file that belongs to the model")
    for key, value in stored.state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path} holds NaN or infinity in {key}: its training diverged, load an earlier checkpoint")
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random numbers
        sam = zoo.build(stored.name, **stored.changes)
    sam.load_state_dict(stored.state, strict=True)
    return sam.to(device).eval()


def like(resume: Resume) -> Sam:
    """A Sam of the shape that a training checkpoint holds; its weights are not read."""
    if resume.quantization is not None:
        return packed.build(resume.path, resume.name, resume.changes, resume.quantization)
    with torch.random.fork_rng(devices=[]):
        return zoo.build(resume.name, **resume.changes)


def start_encoder(sam: Sam, name: str, *, trust: bool = False) -> str:
    """Give the image encoder of `sam` what fits it of another checkpoint: one that `load` reads, or the state dict of a
    ViT or TinyViT (MAE's, ImageNet's). Returns the sentence that says what was taken, resampled and left.

    Raises UserError when nothing is there, it is damaged, or nothing of it fits.
    """
    path = _where(name)
    content = {} if path.is_dir() or path.suffix == safe.SUFFIX else unpickle(path)
    if not content or "frisket" in content:
        content = load(name, trust=trust).state_dict()
    return encoder.start(sam.image_encoder, encoder.unwrapped(content), name)


def recorded(training: Path) -> Resume:
    """The facts of a training checkpoint; every checksum in it is compared.

    Raises UserError when the checkpoint is damaged or not this project's.
    """
    folder = deepspeed.tag(training) if training.is_dir() else None
    if training.is_dir() and folder is None:
        raise UserError(f"{training} is an unfinished DeepSpeed checkpoint")
    for part in sorted(folder.glob("*.pt")) if folder else [training]:
        check_zip(part)
    content = unpickle(folder / deepspeed.MODEL_STATES if folder else training, mmap=True, checked=True)
    record, step = content.get("frisket"), content.get("global_step")
    if not isinstance(record, Mapping):
        raise UserError(f"{training} has no 'frisket' record: only this project's checkpoints can be continued")
    needed = {"loops"} if folder else {"loops", "optimizer_states", "lr_schedulers"}
    if not isinstance(step, int):
        raise UserError(f"{training} names no step: it cannot be continued")
    if absent := sorted(needed - content.keys()):
        raise UserError(f"{training} holds weights but no {', '.join(absent)}: it cannot be continued")
    state = deepspeed.bare(tensors(content.get("module" if folder else "state_dict"), training))
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    parts = len(list(folder.glob("*_optim_states.pt"))) if folder else 1
    if folder and parts != content.get("dp_world_size", parts):
        raise UserError(f"{training} has {parts} of the {content['dp_world_size']} parts that its ranks wrote")
    states = [] if folder else content["optimizer_states"]
    try:
        groups = tuple(len(group["params"]) for state in states for group in state["param_groups"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{training} holds no state of an optimizer ({error}): it cannot be continued") from error
    return Resume(training, step, *model(record, training), shapes, groups, quantization(record))


def newest(run_dir: Path | str) -> Resume | None:
    """What training goes on from: the newest checkpoint of the run that can be read; None when there is none.

    One that is damaged is passed over with a warning. Raises UserError when all are.
    """
    reasons: list[str] = []
    for path in trained(run_dir):
        try:
            resume = recorded(path)
        except UserError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warn(f"{'; '.join(reasons)}: going on from {path}, step {resume.step}")
        return resume
    if reasons:
        raise UserError(f"no checkpoint of {run_dir} can be read ({'; '.join(reasons)}): restore one, or set name=…")
    return None


def trained(run_dir: Path | str) -> list[Path]:
    """The training checkpoints of a run, newest first by modification time; unread, and so perhaps damaged.

    Of one time (a copied folder), the one that a run writes later comes first.
    """
    run = RunFiles(run_dir)
    there = [path for path in (run.preempt, run.last, run.previous) if os.path.lexists(path)]
    return sorted(there, key=_modified, reverse=True)


def _where(text: str) -> Path:
    """The path that a name means. Raises UserError when nothing is there, saying where it was looked for."""
    files = {row.checkpoint or f"{name}.pt": name for name, row in zoo.entries().items()}
    if text in zoo.names():
        return _public(text)
    path, folder = Path(text), os.environ.get("FRISKET_WEIGHTS")
    if path.exists():
        if not (path.is_file() or path.is_dir()):
            raise UserError(
                f"{path} is a pipe or a device, and no checkpoint: give a file, a run folder or a model's name"
            )
        return path
    if os.sep in text:
        raise UserError(f"there is no checkpoint at {path}: give a file, a run folder or a model's name")
    if folder and (Path(folder) / text).is_file():
        return Path(folder) / text
    if text in files:
        return _public(files[text])
    raise UserError(f"there is no checkpoint at {path}: {nearest(text, zoo.names())}")


def _public(name: str) -> Path:
    """Where the weights of a zoo name lie. Raises UserError saying where they were looked for and how to get them."""
    row = zoo.entry(name)
    file, get = row.checkpoint or f"{name}.pt", row.source
    folder = os.environ.get("FRISKET_WEIGHTS")
    if not folder:
        raise UserError(f"weights of '{name}': $FRISKET_WEIGHTS is not set; set it to the folder of {file} ({get})")
    path = Path(folder) / file
    if not path.is_file():
        raise UserError(f"weights of '{name}': looked for {path} ($FRISKET_WEIGHTS) and it is not there; {get}")
    return path


def _read(path: Path, trust: bool) -> Stored:
    """What any form on disk holds."""
    if path.is_dir():
        return deepspeed.read(path, trust=trust)
    if path.suffix == safe.SUFFIX:
        about, state = safe.read(path)
        return bare.read(state, path) if about is None else Stored(*model(about, path), state, quantization(about))
    content = unpickle(path)
    record = content.get("frisket")
    form = lightning if isinstance(record, Mapping) else bare if record is None else ours
    return form.read(content, path)


def _of_run(folder: Path) -> Path:
    """The file that speaks for a run folder."""
    model, training = RunFiles(folder).result, trained(folder)
    if model.is_file() and (not training or _modified(model) >= _modified(training[0])):
        return model
    resume = newest(folder)
    if resume is None:
        raise UserError(f"{folder} holds no {model.name} and no training checkpoint: train it first")
    return resume.path


def _modified(path: Path) -> int:
    """Modification time in ns; of a folder that of `latest`, DeepSpeed's last word; of a dangling link its own."""
    latest = path / "latest"
    if latest.is_file():
        path = latest
    return (path.stat() if path.exists() else path.lstat()).st_mtime_ns
