"""The one door to DDP and DeepSpeed: where the run stands (nodes, devices) and how its ranks work together.

    trainer = L.Trainer(**place(config.place), …)

Under Slurm (inside `srun`) nodes and devices come from Slurm, one task per device; anywhere else from the arguments.
DeepSpeed's stages: frisket.engine.zero.
"""

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from frisket.checkpoint import Resume
from frisket.engine.zero import WholeBatch, Zero
from frisket.errors import UserError
from frisket.place import Place

PATIENCE = timedelta(minutes=10)
"""How long ranks wait for each other, at the start and at any step, before they take the missing one for dead."""


def place(where: Place) -> dict[str, Any]:
    """Return the Trainer's keyword arguments accelerator, devices, num_nodes, strategy, precision, plugins.

    Raises UserError for a DeepSpeed that is not installed, and for more devices than exist.
    """
    accelerator, devices, num_nodes = where.accelerator, where.devices, where.num_nodes
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    environment = _environment(num_nodes)
    if isinstance(environment, SLURMEnvironment):
        num_nodes, devices = _slurm_size()
    elif isinstance(environment, TorchElasticEnvironment):
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif devices == "auto":
        devices = max(1, torch.cuda.device_count()) if accelerator in ("cuda", "gpu") else 1
    if not str(devices).isdigit() or int(devices) < 1:
        raise UserError(f"place.devices={devices} must be auto or a number, 1 or more")
    devices = int(devices)
    if accelerator in ("cuda", "gpu") and devices > torch.cuda.device_count():
        raise UserError(
            f"place.devices={devices} but this machine shows {torch.cuda.device_count()} GPUs: ask for fewer"
        )
    chosen = _strategy(where, on_cpu=accelerator == "cpu", world=num_nodes * devices)
    deepspeed = where.strategy.startswith("deepspeed")
    return {
        "accelerator": accelerator,
        "devices": devices,
        "num_nodes": num_nodes,
        "strategy": chosen,
        "precision": None if deepspeed else where.precision,
        "plugins": [environment] + ([WholeBatch(where.precision)] if deepspeed else []),
    }


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around whatever ranks do together. Raises UserError where they never met, or lost each other."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):  # who died amid a sum, say
            raise
        rank, said = os.environ.get("RANK", rank_zero_only.rank), str(error).splitlines()[0].partition(" This is ")[0]
        raise UserError(
            f"rank {rank} never met the others, or lost them ({said}): the log of the rank that ended first says why; "
            "start the same command again"
        ) from error


def fits(resume: Resume) -> None:
    """Raise UserError where no start can go on from this checkpoint."""
    if resume.path.is_dir():
        raise UserError(
            f"{resume.path} is DeepSpeed's own folder, as an earlier frisket kept it, and cannot be continued: take "
            "its weights into another run (name=…, init_from=…)"
        )


def launch() -> str:
    """What all ranks of one start, and no other start, have in common; "" where rank 0 starts the others itself."""
    names: tuple[str, ...] = ()
    if under_slurm():
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    elif TorchElasticEnvironment.detect():
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(os.environ.get(name, "-") for name in names)


def under_slurm() -> bool:
    """Whether this process is a task that `srun` started (a plain process inside a batch script is not)."""
    return "SLURM_STEP_ID" in os.environ and "SLURM_PROCID" in os.environ and SLURMEnvironment.detect()


def exits_for_all(environment: ClusterEnvironment | None, rank: int) -> bool:
    """Whether this rank's exit code reaches whoever started the run.

    Ranks that Lightning itself spawned do not: their parent (rank 0) would take a code other than 0 for a crash and be
    killed before it can return its own.
    """
    return rank == 0 or not isinstance(environment, LightningEnvironment)


def _environment(num_nodes: int) -> ClusterEnvironment:
    if under_slurm():
        if "SLURM_NTASKS_PER_NODE" not in os.environ and int(os.environ["SLURM_NTASKS"]) > 1:
            raise UserError("this Slurm job sets no --ntasks-per-node: give it, one task per GPU")
        return SLURMEnvironment(auto_requeue=False)  # frisket.engine.preempt does that, between steps
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if num_nodes > 1 and "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"place.num_nodes={num_nodes}, but nothing starts the other nodes: use srun (slurm/*.sh) or torchrun"
        )
    return LightningEnvironment()  # named, so that SLURM_* left over in an interactive shell is not believed


def _slurm_size() -> tuple[int, int]:
    return int(os.environ.get("SLURM_NNODES", "1")), int(os.environ.get("SLURM_NTASKS_PER_NODE", "1"))


def _strategy(where: Place, *, on_cpu: bool, world: int) -> Any:
    name, common = where.strategy, {"process_group_backend": "gloo" if on_cpu else None, "timeout": PATIENCE}
    if name.startswith("deepspeed"):
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(f"place.strategy={name} needs DeepSpeed: pip install 'frisket[deepspeed]'")
        stage = int(name.removeprefix("deepspeed_stage_")[0])
        return Zero.at(stage, where.precision, offload=name.endswith("offload"), on_cpu=on_cpu, **common)
    if name == "auto" and world == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=False, gradient_as_bucket_view=True, **common)


def quiet() -> None:
    """Silence Lightning's tips and the warnings that do not apply to us; its errors stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*in eval mode at the start.*",
        ".*isinstance.treespec.*",
        ".*Checkpoint directory.*",
        ".*`srun` command is available.*",
        ".*is smaller than the logging interval.*",
        ".*sync_dist=True.*",  # the metrics add over ranks themselves
    ):
        warnings.filterwarnings("ignore", message=text)
