"""safetensors: a state dict and, in the header's "frisket", a record as JSON with a digest of itself and all tensors.

Without a record it is a bare state dict. The form is ours; safetensors runs no code.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

from frisket.errors import UserError
from frisket.files import atomic
from frisket.weights.layout import digest

SUFFIX = ".safetensors"
FORMAT = 1


def write(path: Path | str, record: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """Write both, atomically. record: plain data. Raises UserError when the disk is full."""
    about = json.loads(json.dumps({"format": FORMAT, **record}))
    about["digest"] = signature(about, state)
    with atomic(path) as tmp:
        tmp.touch()
        rights = tmp.stat().st_mode  # of a new file here; safetensors makes one for its owner alone
        save_file(dict(state), tmp, metadata={"frisket": json.dumps(about)})
        tmp.chmod(rights)


def read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """(record or None, state dict). Raises UserError for a file that is none, is damaged or is of a later format."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get("frisket", "null"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is cut short or damaged, make it again") from error
    if about is None:
        return None, state
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        given = about.get("format") if isinstance(about, dict) else None
        raise UserError(f"{path} is no model of this frisket (format {given}, not {FORMAT}): make it again")
    if signature({key: value for key, value in about.items() if key != "digest"}, state) != about.get("digest"):
        raise UserError(f"{path} is damaged: its numbers are not those that were written, make it again")
    return about, state


def signature(about: Mapping[str, Any], state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of the record, which decides what the numbers mean, and of all tensors."""
    record = json.dumps(about, sort_keys=True).encode()
    return hashlib.sha256(record + digest(state).encode()).hexdigest()
