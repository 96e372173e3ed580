"""DeepSpeed's folder: `latest` names a tag folder with the record and module, and with ZeRO a part of each rank's.

The parts are merged by deepspeed itself, whose reader would run any code that they hold. It is told to read weights and
the few classes of its own that a part needs; anything else is refused unless the caller trusts the folder.
"""

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frisket.errors import UserError
from frisket.files import check_zip
from frisket.weights.stored import Stored, model, own, quantization, tensors, unpickle

MODEL_STATES = "mp_rank_00_model_states.pt"
FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # torch's own switch: it overrules a caller's weights_only=False


def tag(folder: Path) -> Path | None:
    """The finished tag folder that `latest` names (Lightning: checkpoint/); None when there is none."""
    latest = folder / "latest"
    name = latest.read_text(errors="replace").strip() if latest.is_file() else ""
    return folder / name if name and (folder / name / MODEL_STATES).is_file() else None


def read(folder: Path, *, trust: bool) -> Stored:
    """The trained Sam, in fp32. Raises UserError for an unfinished folder, a damaged part, and code without trust."""
    inside = tag(folder)
    if inside is None:
        raise UserError(f"{folder} is an unfinished DeepSpeed checkpoint: load another of the run")
    parts = sorted(inside.glob("*.pt"))
    for part in parts:
        check_zip(part)
    states = unpickle(inside / MODEL_STATES, checked=True)
    record = states.get("frisket")
    if not isinstance(record, dict):
        raise UserError(f"{folder} has no 'frisket' record: only this project's DeepSpeed checkpoints can be loaded")
    name, changes = model(record, folder)
    state = bare(tensors(states.get("module"), folder))
    if any(part.name.endswith("_optim_states.pt") for part in parts):
        # ZeRO: there the trained weights are in fp32, whatever the module is in
        state |= bare(_merge(folder, inside.name, trust))
    return Stored(name, changes, own(state, folder), quantization(record))


def bare(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the wrappers' prefixes."""
    return {key.removeprefix("_forward_module.").removeprefix("module."): value for key, value in state.items()}


@contextlib.contextmanager
def guarded(folder: Path, trust: bool = False) -> Iterator[None]:
    """Within the context torch.load reads the parts of `folder` weights-only, whatever its caller asks for.

    With `trust` it runs what they hold. Raises UserError for what is refused.
    """
    if trust:
        yield
        return
    before = os.environ.get(FORCE)
    os.environ[FORCE] = "1"
    try:
        with torch.serialization.safe_globals(_classes()):
            yield
    except pickle.UnpicklingError as error:
        code = "; ".join(
            f"{part.name}: {name}"
            for part in sorted(folder.rglob("*.pt"))
            for name in torch.serialization.get_unsafe_globals_in_checkpoint(part)
            if not name.startswith("deepspeed.")
        )
        raise UserError(
            f"{folder} holds more than weights ({code or 'a class of deepspeed that is not known here'}), and reading "
            "it would run that: set trust=true if you trust who wrote it, or load the run's model.pt"
        ) from error
    finally:
        del os.environ[FORCE]
        if before is not None:
            os.environ[FORCE] = before


def _classes() -> list[Any]:
    """What a part holds of deepspeed's own; nothing where it is not installed."""
    try:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address
    except ImportError:
        return []
    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


def _merge(folder: Path, name: str, trust: bool) -> dict[str, Tensor]:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise UserError(
            f"{folder} is a ZeRO checkpoint and deepspeed is not installed: pip install 'frisket[deepspeed]', "
            "or load the run's model.pt"
        ) from error
    with guarded(folder, trust):
        merged: Any = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=name)
    return {key: value.float() for key, value in merged.items()}
