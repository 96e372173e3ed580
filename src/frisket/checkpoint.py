"""The one door for weights on disk: load any of our forms or Meta's, save ours, find the newest checkpoint of a run.

Use     `sam = load("sam_vit_h")`, `load("runs/distill_lightening")`, `save(sam, "model.pt", provenance={...})`,
        `resume = newest("runs/distill_lightening")`: what its training goes on from; `like(resume)`: the Sam for it
Source  Meta's files as published (arXiv 2304.02643); the model.pt layout and the order of `newest` are our choice.

Forms `load` reads, all but one with PyTorch's weights-only unpickler (no code of the file ever runs):
  a zoo name       its public file in $FRISKET_WEIGHTS, or <name>.pt of ours there when nothing was published
  Meta's .pth      named by the fingerprint of its keys and shapes, loaded strictly
  model.pt         ours: {"frisket": 1, "name", "changes", "state_dict", "provenance"}
  Lightning .ckpt  {"frisket": {"name", "changes"}, "state_dict": {"sam.*": ...}}; other keys (projections) are left out
  DeepSpeed folder the same record in mp_rank_00_model_states.pt; ZeRO shards are merged by deepspeed itself, whose
                   own reader unpickles fully: open only folders of runs you trust
  run folder       model.pt when it is newer than the newest training checkpoint, else that checkpoint
"""

import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frisket.errors import UserError, nearest, warn
from frisket.files import atomic, check_zip
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.models.zoo import build, entries
from frisket.runfiles import RunFiles

FORMAT = 1
PREFIX = "sam."
MODEL_STATES = "mp_rank_00_model_states.pt"
SHOWN = 3

Shapes = Mapping[str, Any]


@dataclass(frozen=True)
class Resume:
    """A training checkpoint (file or DeepSpeed folder) and its facts, read once per start. No weights are held."""

    path: Path
    step: int
    """Optimizer steps done."""
    name: str
    """The zoo name of the model trained."""
    changes: dict[str, Any]
    """What its encoder's config changes of the zoo's."""
    shapes: dict[str, tuple[int, ...]]
    """{key: shape} of the whole training module."""
    ranks: int | None = None
    """How many ranks a DeepSpeed checkpoint is split over; None for a file, which any number can read."""


def fingerprint(state: Shapes) -> str:
    """SHA-256 of a state dict's layout: the sorted lines "key 1x2x3\\n". Values may be tensors or plain shapes."""
    lines = (f"{key} {'x'.join(str(n) for n in _shape(value))}\n" for key, value in state.items())
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's weights, names and shapes: equal exactly when what it computes is."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(array.shape)} {array.dtype}\n".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load(name_or_path: str | Path, device: str | torch.device = "cpu") -> Sam:
    """A Sam with stored weights, in eval mode, on `device`. See the top of this file for what is accepted.

    Raises UserError when nothing is there, the file is damaged, or its keys and shapes are not the model's.
    """
    text = str(name_or_path)
    path = _public(text) if text in entries() else Path(name_or_path)
    if not path.exists():
        hint = nearest(text, entries()) if os.sep not in text else "give a file, a run folder or a model's name"
        raise UserError(f"there is no checkpoint at {path}: {hint}")
    name, changes, state = _read(path)
    if text in entries() and name != text:
        raise UserError(f"{path} holds '{name}', not '{text}': put the right file there or load it by its path")
    with torch.random.fork_rng(devices=[]):  # loading must not move the caller's random numbers
        sam = build(name, **changes)
    _check(sam.state_dict(), state, f"{path} is not a '{name}'")
    sam.load_state_dict(state, strict=True)
    return sam.to(device).eval()


def like(resume: Resume) -> Sam:
    """A Sam of the shape that a training checkpoint holds; its weights are not read."""
    with torch.random.fork_rng(devices=[]):
        return build(resume.name, **resume.changes)


def recorded(training: Path) -> Resume:
    """The facts of a training checkpoint; every checksum in it is compared.

    Raises UserError when the checkpoint is damaged or not this project's.
    """
    tag = _tag(training) if training.is_dir() else training
    if tag is None or (training.is_dir() and not (tag / MODEL_STATES).is_file()):
        raise UserError(f"{training} is an unfinished DeepSpeed checkpoint")
    for part in sorted(tag.glob("*.pt")) if tag != training else [training]:
        check_zip(part)
    content = _unpickle(training if tag == training else tag / MODEL_STATES, mmap=True)
    record, step = content.get("frisket"), content.get("global_step")
    if not isinstance(record, Mapping) or not isinstance(step, int):
        raise UserError(f"{training} has no 'frisket' record: only this project's checkpoints can be continued")
    state = _tensors(content.get("state_dict" if tag == training else "module"), training)
    shapes = {key: tuple(value.shape) for key, value in _bare(state).items()}
    ranks = None if tag == training else len(list(tag.glob("*_optim_states.pt")))
    if ranks is not None and ranks != content.get("dp_world_size", ranks):
        raise UserError(f"{training} has {ranks} of the {content['dp_world_size']} parts that its ranks wrote")
    return Resume(training, step, _name(record, training), dict(record["changes"]), shapes, ranks)


def differences(expected: Shapes, found: Shapes) -> str:
    """The first keys that are missing, unexpected or of another shape, in words; '' when there are none."""
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    other = [
        f"{key} {_times(found[key])} instead of {_times(expected[key])}"
        for key in expected
        if key in found and _shape(expected[key]) != _shape(found[key])
    ]
    labelled = (("missing", missing), ("unexpected", extra), ("shape", other))
    return "; ".join(f"{label}: {_some(keys)}" for label, keys in labelled if keys)


def save(sam: Sam, path: Path | str, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write `sam` as our model.pt, atomically. `provenance`: plain data on how it came to be (numbers, strings, lists).

    Raises UserError when the disk is full.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in sam.state_dict().items()}
    record = {
        "frisket": FORMAT,
        **zoo.record(sam),
        "state_dict": state,
        "provenance": dict(provenance or {}),
    }
    with atomic(path) as tmp:
        torch.save(record, tmp)


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


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, Tensor) else tuple(value)


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


def _read(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(name, changes, state dict) of any form on disk."""
    if path.is_dir():
        if _is_deepspeed(path):
            return _read_deepspeed(path)
        return _read(_of_run(path))
    content = _unpickle(path)
    record = content.get("frisket")
    if record == FORMAT:
        return _name(content, path), dict(content["changes"]), _tensors(content.get("state_dict"), path)
    if isinstance(record, Mapping):
        state = _own(_tensors(content.get("state_dict"), path), path)
        return _name(record, path), dict(record["changes"]), state
    if record is not None:
        raise UserError(f"{path} has format {record!r} and this frisket reads {FORMAT}: use the frisket that wrote it")
    if "state_dict" in content or "model" in content:
        raise UserError(
            f"{path} is a training checkpoint without a 'frisket' record: only this project's can be loaded"
        )
    state = _tensors(content, path)
    return _identify(state, path), {}, state


def _of_run(folder: Path) -> Path:
    """The file that speaks for a run folder."""
    model, training = RunFiles(folder).model, trained(folder)
    if model.is_file() and (not training or _modified(model) >= _modified(training[0])):
        return model
    resume = newest(folder)
    if resume is None:
        raise UserError(f"{folder} holds no {model.name} and no training checkpoint: train it first")
    return resume.path


def _unpickle(path: Path, mmap: bool = False) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {code[1]}, which is more than weights," if code else "is damaged"
        raise UserError(f"{path} {what} and is refused: get or save it again") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({_first_line(error)}): it is cut short or damaged, get it again"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a table of weights: is it the right file?")
    return content


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def _tensors(state: Any, path: Path) -> dict[str, Tensor]:
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"{path} holds no state dict: is it the right file?")
    other = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    if other:
        raise UserError(f"{path} is no state dict: {_some(other)} is not a tensor; is it the right file?")
    return {str(key): value for key, value in state.items()}


def _name(record: Mapping[str, Any], path: Path) -> str:
    if record.get("name") not in entries() or not isinstance(record.get("changes"), Mapping):
        raise UserError(f"{path} names the model {record.get('name')!r}: {nearest(str(record.get('name')), entries())}")
    return str(record["name"])


def _own(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The student's weights out of a training module's; the teacher and projections are not ours to load."""
    own = {key.removeprefix(PREFIX): value for key, value in state.items() if key.startswith(PREFIX)}
    if not own:
        raise UserError(f"{path} has no '{PREFIX}*' weights (it has {_some(list(state))}): is it a frisket checkpoint?")
    return own


@cache
def _layout(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a zoo model, from the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build(name).state_dict().items()}


def _identify(state: Mapping[str, Tensor], path: Path) -> str:
    """The zoo name whose layout this is. Raises UserError with the first differences from the likest."""
    print_ = fingerprint(state)
    for name in entries():
        if fingerprint(_layout(name)) == print_:
            return name
    shapes = {(key, tuple(value.shape)) for key, value in state.items()}
    likest = max(entries(), key=lambda name: len(shapes & set(_layout(name).items())))
    _check(_layout(likest), state, f"{path} is no model of the zoo; the likest is '{likest}'")
    raise AssertionError("unreachable: a layout without differences has the same fingerprint")


def _check(expected: Shapes, found: Shapes, what: str) -> None:
    """Raise UserError with the first keys that are missing, unexpected or of another shape."""
    if wrong := differences(expected, found):
        raise UserError(f"{what} ({wrong}): give the file that belongs to the model")


def _times(value: Any) -> str:
    return "x".join(str(n) for n in _shape(value)) or "scalar"


def _some(keys: list[str]) -> str:
    rest = len(keys) - SHOWN
    return ", ".join(keys[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _tag(folder: Path) -> Path | None:
    """The tag folder a DeepSpeed checkpoint's `latest` names (Lightning: checkpoint/)."""
    latest = folder / "latest"
    tag = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    return folder / tag if tag else None


def _is_deepspeed(folder: Path) -> bool:
    tag = _tag(folder)
    return tag is not None and (tag / MODEL_STATES).is_file()


def _read_deepspeed(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    tag = _tag(folder)
    if tag is None or not _complete(folder):
        raise UserError(f"{folder} is an unfinished DeepSpeed checkpoint: load another of the run")
    states = _unpickle(tag / MODEL_STATES)
    record = states.get("frisket")
    if not isinstance(record, Mapping):
        raise UserError(f"{folder} has no 'frisket' record: only this project's DeepSpeed checkpoints can be loaded")
    name = _name(record, folder)
    state = _bare(_tensors(states.get("module"), folder))
    if any(tag.glob("*_optim_states.pt")):  # ZeRO: there the trained weights are in fp32, whatever the module is in
        state |= _bare(_merge_zero(folder, tag.name))
    return name, dict(record["changes"]), _own(state, folder)


def _bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("_forward_module.").removeprefix("module."): value for key, value in state.items()}


def _merge_zero(folder: Path, tag: str) -> dict[str, Tensor]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise UserError(
            f"{folder} is a ZeRO checkpoint and deepspeed is not installed: pip install 'frisket[deepspeed]', "
            "or load the run's model.pt"
        ) from error
    return {key: value.float() for key, value in get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag).items()}


def _complete(path: Path) -> bool:
    """Whether a checkpoint was written to its end: torch's zips end in a directory, DeepSpeed's folders in `latest`."""
    if path.is_file():
        return zipfile.is_zipfile(path)
    tag = _tag(path)
    if tag is None or not (tag / MODEL_STATES).is_file():
        return False
    return all(zipfile.is_zipfile(part) for part in tag.glob("*.pt"))


def _modified(path: Path) -> int:
    """Modification time in ns; of a folder that of `latest`, DeepSpeed's last word; of a dangling link its own."""
    latest = path / "latest"
    if latest.is_file():
        path = latest
    return (path.stat() if path.exists() else path.lstat()).st_mtime_ns
