"""Bounds of numbers stand beside their field, `field(default=1, metadata={"least": 1, "most": 9})`, and count here.

Use     bounded(config); an encoder's config, made without frisket.config, calls bounded(self, "lightening: ") itself
Source  our choice.
"""

import dataclasses
import math
from typing import Any

from frisket.errors import UserError

LARGEST = 1 << 62
"""Of any number: what tensors and files can still count."""


def bounded(config: Any, where: str = "", prefix: str = "") -> None:
    """Raise UserError for a number of the dataclass outside its field's bounds, or not finite."""
    for part in dataclasses.fields(config):
        value, key = getattr(config, part.name), f"{prefix}{part.name}"
        if dataclasses.is_dataclass(value):
            bounded(value, where, f"{key}.")
        least, most = part.metadata.get("least", -LARGEST), part.metadata.get("most", LARGEST)
        for number in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(number, int | float):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{where}{key}={value} must be a finite number")
            if not least <= number <= most:
                bound = f"{least} or more" if number < least else f"{most} or less"
                raise UserError(f"{where}{key}={value} must be {bound}")
