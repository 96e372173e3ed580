"""`frisket export YAML key=value…`: a model as ONNX files that run without PyTorch, compared with it beforehand.

    frisket export configs/export_onnx.yaml checkpoint=runs/quant_tiny data=data/sa1b/val

What `frisket quant` made computes its linear layers in integers. See frisket.engine.export.
"""

from collections.abc import Sequence

from frisket import config as settings
from frisket.engine.export import ExportRun, export_run


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[ExportRun]:
    """The one schema of this verb."""
    return ExportRun


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Export what the words say. Returns 0; raises UserError."""
    return export_run(settings.load(ExportRun, files, overrides))
