"""The weights of a run, whatever trained it, as one file under Sam's own keys, which are Meta's.

    code = export_weights(WeightsRun(checkpoint="runs/distill_lightening", out="mine.safetensors"))

.pth is the bare state dict, as Meta publishes it; .safetensors the same with our record in its header. Either opens
with `frisket.checkpoint.load`, whatever the model's settings. Source: our choice.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from frisket import checkpoint
from frisket.errors import UserError
from frisket.files import atomic, writable
from frisket.models import zoo
from frisket.models.sam import PROPOSALS
from frisket.plugins import Extensible
from frisket.quant import packed
from frisket.weights import bare, safe

PTH = ".pth"


@dataclass
class WeightsRun(Extensible):
    """One model and its file."""

    checkpoint: str = ""
    """The same as the command's bare word: a run folder, a checkpoint file or a model's name."""
    trust: bool = False
    """Run what a DeepSpeed folder holds besides weights; else such a folder is refused."""
    out: str = ""
    """The file: .safetensors or .pth."""


def export_weights(config: WeightsRun) -> int:
    """Do all of it. Returns 0; raises UserError."""
    out = Path(config.out)
    if not config.checkpoint:
        raise UserError("no run is named: frisket export-weights RUN out=FILE.safetensors")
    if out.suffix not in (safe.SUFFIX, PTH):
        raise UserError(f"out={config.out or '…'} must end in {safe.SUFFIX} or {PTH}: which of them is the form")
    if out.is_dir():
        raise UserError(f"out={config.out} is a folder where the file is to be: give another name, or move it away")
    writable(out.parent, f"out={config.out}")
    sam = checkpoint.load(config.checkpoint, trust=config.trust)
    if sam.quantization is not None and out.suffix == PTH:
        raise UserError(
            f"{config.checkpoint} is quantized, and {PTH} holds float weights alone: give out=….safetensors, or export "
            "the float model that it was made of"
        )
    if sam.quantization is not None:
        packed.write(sam, out, provenance=sam.quantization["provenance"])
    elif out.suffix == safe.SUFFIX:
        safe.write(out, zoo.record(sam), bare.noted(sam))
    else:
        with atomic(out) as tmp:
            torch.save(bare.noted(sam), tmp)
    print(f"{out}: {sam.name}, {sam.form}, {len(sam.state_dict())} tensors, {out.stat().st_size / 2**20:.1f} MiB")
    if sam.auto_ppn is not None:
        print(f"its {PROPOSALS}.* are no part of Segment Anything: other programs must leave them out")
    return 0
