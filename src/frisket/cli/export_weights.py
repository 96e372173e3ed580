"""`frisket export-weights RUN out=FILE`: the weights of a run as one file that other programs open, too.

    frisket export-weights runs/distill_lightening out=mine.safetensors
    frisket export-weights runs/train_sam out=mine.pth          # as torch.load and Meta's segment_anything read it

RUN is what checkpoint= takes elsewhere: a run folder (finished or not, of DDP or DeepSpeed), a file, or a model's
name. See frisket.engine.portable.
"""

from collections.abc import Sequence

from frisket import config as settings
from frisket.engine.portable import WeightsRun, export_weights
from frisket.errors import UserError


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[WeightsRun]:
    """The one schema of this verb."""
    return WeightsRun


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Export what the words say. Returns 0; raises UserError."""
    yamls, words = settings.split(files)
    if len(words) > 1:
        raise UserError(f"one run at a time, and these are {len(words)}: {', '.join(words)}")
    config = settings.load(WeightsRun, yamls, overrides)
    config.checkpoint = words[0] if words else config.checkpoint
    return export_weights(config)
