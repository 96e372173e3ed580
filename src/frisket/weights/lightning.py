"""Lightning's .ckpt of one of our recipes: {"frisket": record, "state_dict": {"sam.*": …, projections, …}, …}."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frisket.weights.stored import Stored, model, own, quantization, tensors


def read(content: Mapping[str, Any], path: Path) -> Stored:
    """The trained Sam; other modules are left out."""
    record = content["frisket"]
    return Stored(*model(record, path), own(tensors(content.get("state_dict"), path), path), quantization(record))
