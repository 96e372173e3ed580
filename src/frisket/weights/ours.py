"""model.pt, our own form: {"frisket": 1, "state_dict", "provenance"} and a record's keys ("name", "changes", …)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from frisket.errors import UserError
from frisket.files import atomic
from frisket.models import zoo
from frisket.models.sam import Sam
from frisket.weights.stored import Stored, model, quantization, tensors

FORMAT = 1


def read(content: Mapping[str, Any], path: Path) -> Stored:
    """What model.pt holds. Raises UserError for a later format."""
    if content["frisket"] != FORMAT:
        given = content["frisket"]
        raise UserError(f"{path} has format {given!r} and this frisket reads {FORMAT}: use the frisket that wrote it")
    return Stored(*model(content, path), tensors(content.get("state_dict"), path), quantization(content))


def save(sam: Sam, path: Path | str, *, provenance: Mapping[str, Any] | None = None) -> None:
    """Write `sam` as our model.pt, atomically. `provenance`: plain data on how it came to be (numbers, strings, lists).

    Raises UserError when the disk is full.
    """
    state = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in sam.state_dict().items()
    }
    content = {"frisket": FORMAT, **zoo.record(sam), "state_dict": state, "provenance": dict(provenance or {})}
    with atomic(path) as tmp:
        torch.save(content, tmp)
