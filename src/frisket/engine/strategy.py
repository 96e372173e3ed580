"""The one door to DDP and DeepSpeed: where the run stands (nodes, devices) and how its ranks work together.

    trainer = L.Trainer(**place(config.place), …)

Under Slurm (inside `srun`) nodes and devices come from Slurm, one task per device; anywhere else from the arguments.
DeepSpeed ZeRO: Rajbhandari et al. 2020 (arXiv 1910.02054), through Lightning; stages 1 and 2 (the models here are
small: stage 3 would only add traffic). The CPU subclass lets the tests run the real engine over gloo.
"""

import argparse
import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.utilities import rank_zero_only

from frisket.checkpoint import Resume
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
    chosen = _strategy(where.strategy, on_cpu=accelerator == "cpu", world=num_nodes * devices)
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
    except torch.distributed.DistError as error:
        rank, said = os.environ.get("RANK", rank_zero_only.rank), str(error).splitlines()[0]
        raise UserError(
            f"rank {rank} never met the others, or lost them ({said}): the log of the rank that ended first says why; "
            "start the same command again"
        ) from error


def fits(resume: Resume, strategy: str, world: int) -> None:
    """Raise UserError when `world` ranks under `strategy` cannot go on from this checkpoint."""
    saved = "DeepSpeed" if resume.ranks is not None else "DDP or a single device"
    mend = "or take its weights into another run (name=…, init_from=…)"
    if strategy.startswith("deepspeed") != (resume.ranks is not None):
        raise UserError(
            f"{resume.path} was saved by {saved} and place.strategy={strategy} cannot go on from it: set the strategy "
            f"it was trained with, {mend}"
        )
    if resume.ranks and resume.ranks != world:
        raise UserError(
            f"{resume.path} is split over {resume.ranks} ranks and this start has {world}: take as many, {mend}"
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


def _strategy(name: str, *, on_cpu: bool, world: int) -> Any:
    backend = "gloo" if on_cpu else None
    if name.startswith("deepspeed"):
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(f"place.strategy={name} needs DeepSpeed: pip install 'frisket[deepspeed]'")
        if on_cpu:
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # read when deepspeed is imported
        kind = CPUDeepSpeed if on_cpu else DeepSpeedStrategy
        return kind(
            stage=int(name[-1]),
            logging_batch_size_per_gpu=1,  # for its own log; "auto" asks the loader for a batch_size it does not have
            process_group_backend=backend,
            timeout=PATIENCE,
        )
    if name == "auto" and world == 1:
        return "auto"
    return DDPStrategy(
        find_unused_parameters=False, gradient_as_bucket_view=True, process_group_backend=backend, timeout=PATIENCE
    )


class WholeBatch(DeepSpeedPrecision):
    """DeepSpeed's precision without Lightning's cast of the batch, which cannot rebuild a Batch with its frozen Frames.

    Images are uint8 anyway; autocast brings what the model makes of them to the weights' type.
    """

    def convert_input(self, data: Any) -> Any:
        """Leave the batch as it is."""
        return data

    @contextlib.contextmanager
    def forward_context(self) -> Iterator[None]:
        """Autocast where the weights are half precision."""
        if self._desired_dtype == torch.float32:
            yield
            return
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with torch.autocast(device, dtype=self._desired_dtype):
            yield


class CPUDeepSpeed(DeepSpeedStrategy):
    """DeepSpeed over gloo without a GPU, for tests: steps over three CUDA-only assumptions of Lightning's strategy."""

    strategy_name = "deepspeed_cpu"

    def setup_environment(self) -> None:
        """Skip the parent's refusal of any accelerator but CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Skip the parent's check of device indices: CPU devices have none."""
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, model: Any, optimizer: Any, lr_scheduler: Any = None) -> tuple[Any, Any]:
        """Give DeepSpeed the local rank; the parent passes `root_device.index`, which is None on CPU."""
        import deepspeed  # an extra, and slow to import

        engine, wrapped, _, _ = deepspeed.initialize(
            args=argparse.Namespace(device_rank=self.local_rank),
            config=self.config,
            model=model,
            model_parameters=[p for p in model.parameters() if p.requires_grad],
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            dist_init_required=False,
        )
        return engine, wrapped


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
