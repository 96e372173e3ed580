"""Lightning's .ckpt of one of our recipes: {"frisket": record, "state_dict": {"sam.*": …, projections, …}, …}.

Where the run keeps an average of its weights (frisket.engine.average), that lies under AVERAGE, by Sam's own keys.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frisket.weights.stored import Stored, model, own, quantization, tensors

AVERAGE = "average"


def read(content: Mapping[str, Any], path: Path) -> Stored:
    """The trained Sam, its average where there is one; other modules are left out."""
    record, state = content["frisket"], own(tensors(content.get("state_dict"), path), path)
    if AVERAGE in content:
        state |= tensors(content[AVERAGE], path)
    return Stored(*model(record, path), state, quantization(record))
