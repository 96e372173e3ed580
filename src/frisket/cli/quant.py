"""`frisket quant YAML key=value…`: quantize a trained model without training it; scales are searched, masks compared.

    frisket quant configs/quant_tiny.yaml checkpoint=runs/distill_tiny

The same command goes on after a kill. `frisket eval` and `frisket predict` take the result, checkpoint=runs/quant_tiny,
like any other model. See frisket.engine.quantize.
"""

from collections.abc import Sequence

from frisket import config as settings
from frisket.engine.quantize import QuantRun, quantize_run


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[QuantRun]:
    """The one schema of this verb."""
    return QuantRun


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Quantize what the words say. Returns 0; raises UserError."""
    return quantize_run(settings.load(QuantRun, files, overrides))
