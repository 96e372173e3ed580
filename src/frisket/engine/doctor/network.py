"""Checks of the network: do the ranks of this job meet, and is Weights & Biases there."""

import os
from datetime import timedelta

import torch
from torch import distributed

from frisket.engine.doctor.plan import Plan
from frisket.engine.rundir import wandb_mode, wandb_refused
from frisket.engine.strategy import launch, together
from frisket.errors import UserError

WAIT = timedelta(minutes=2)
"""That a rank waits for the others: all of them have just started."""


def place(plan: Plan) -> str:
    """Which machine this is about."""
    where = plan.where
    size = f"{where['num_nodes']} nodes x {where['devices']} devices, {plan.config.place.strategy}"
    if plan.elsewhere:
        return f"torch sees no GPU here, and {size} is what the settings say: DRY_RUN=1 sbatch slurm/… looks there"
    gpu = f" ({torch.cuda.get_device_name()})" if where["accelerator"] != "cpu" else ""
    return f"{where['accelerator']}{gpu}, {size}"


def ranks(plan: Plan) -> str:
    """All of them add up a number, over the backend of training."""
    if not launch() or plan.world == 1:
        return "not checked: this process is alone; DRY_RUN=1 sbatch slurm/… makes all of a job's ranks meet"
    environment, gpu = plan.where["plugins"][0], plan.where["accelerator"] != "cpu"
    backend, address = "nccl" if gpu else "gloo", f"{environment.main_address}:{environment.main_port}"
    device = torch.device("cuda", environment.local_rank()) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    with together():
        distributed.init_process_group(backend, f"tcp://{address}", WAIT, plan.world, plan.rank)
        try:
            number = torch.ones(1, device=device)
            distributed.all_reduce(number)
        finally:
            distributed.destroy_process_group()
    if number.item() != plan.world:
        raise UserError(f"{plan.world} ranks met over {backend} at {address}, but counted {number.item():g}")
    interfaces = " ".join(f"{key}={value}" for key, value in os.environ.items() if key.endswith("_SOCKET_IFNAME"))
    return f"{plan.world} met over {backend} at {address} {interfaces}".rstrip()


def wandb(plan: Plan) -> str:
    """Whether the curve goes there at once, later or not at all."""
    mode, why = wandb_mode(plan.config.log.wandb)
    if mode == "online" and (refused := wandb_refused()):
        raise UserError(f"W&B is to be online ({why}) and {refused}: log in, or set log.wandb=offline")
    return f"{mode} ({why})"
