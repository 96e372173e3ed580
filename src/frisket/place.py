"""Where a command runs and where its numbers go: two sets of settings that every verb shares.

`place:` may differ between two machines without changing the experiment; configs/on/ holds places. Our choice.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch

from frisket.errors import UserError


@dataclass
class Place:
    """The machine. Under Slurm devices and num_nodes come from the allocation."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda"] = "auto"
    """auto: CUDA where torch sees a GPU."""
    devices: str = "auto"
    """How many per node; auto: all GPUs, or one CPU process."""
    num_nodes: int = field(default=1, metadata={"least": 1, "most": 10_000})
    """Nodes, outside Slurm."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Of the computation; weights stay fp32."""
    strategy: Literal["auto", "ddp", "deepspeed_stage_1", "deepspeed_stage_2", "deepspeed_stage_2_offload"] = "auto"
    """How ranks work together; auto: DDP where there are several. It may differ from start to start of one run."""
    threads: int | None = field(default=None, metadata={"least": 1, "most": 1024})
    """CPU threads of torch; null leaves its default."""
    workers: int = field(default=4, metadata={"least": 0, "most": 1024})
    """Processes that read data, per device."""
    images_per_device: int | None = field(default=None, metadata={"least": 1})
    """Images a device takes at once, at most; what data.global_batch asks beyond is accumulated. Null: all."""
    prompts_at_once: int | None = field(default=None, metadata={"least": 1})
    """Prompts decoded (and back-propagated) at once, to bound memory; null: all."""
    recompute: bool = False
    """Compute the trained encoder's blocks again in the backward pass instead of keeping what they made: same
    gradients, less memory, a third more work."""
    compile: bool = False
    """torch.compile of the encoders' blocks, in training; the first step of each shape then takes minutes."""


def device(place: Place, where: str = "") -> torch.device:
    """A GPU where there is one and the place does not say cpu. Raises UserError for a GPU that is not there."""
    gpu = torch.cuda.is_available()
    if place.accelerator in ("gpu", "cuda") and not gpu:
        raise UserError(f"place.accelerator={place.accelerator}{where} but torch sees no GPU here: give auto or cpu")
    return torch.device("cuda" if gpu and place.accelerator != "cpu" else "cpu")


def autocast(place: Place, on: torch.device) -> torch.autocast:
    """Within it, computation is in the place's precision."""
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(place.precision)
    return torch.autocast(on.type, half, enabled=half is not None)


@dataclass
class Log:
    """Weights & Biases."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online with a key and a server that answers, else offline."""
    project: str = "frisket"
    """W&B's project."""
