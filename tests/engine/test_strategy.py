"""Where a run stands: arguments, Slurm's variables, DeepSpeed present or not."""

import sys

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from frisket.engine.strategy import exits_for_all, place
from frisket.errors import UserError
from frisket.place import Place

ARGS = {"accelerator": "cpu"}


@pytest.fixture
def no_slurm(monkeypatch):
    """Forget a Slurm this test itself may run in."""
    for name in ("STEP_ID", "PROCID", "NTASKS", "NTASKS_PER_NODE", "NNODES"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)


def test_one_cpu_needs_no_strategy(no_slurm):
    where = place(Place(**ARGS))
    assert (where["devices"], where["num_nodes"], where["strategy"]) == (1, 1, "auto")
    assert isinstance(where["plugins"][0], LightningEnvironment)


def test_two_devices_are_ddp_over_gloo(no_slurm):
    where = place(Place(**ARGS | {"devices": "2"}))
    assert where["devices"] == 2
    assert isinstance(where["strategy"], DDPStrategy)
    assert where["strategy"].process_group_backend == "gloo"


@pytest.mark.parametrize("devices", ["two", "0", -1])
def test_devices_that_are_no_number(no_slurm, devices):
    with pytest.raises(UserError, match=f"place.devices={devices} must be auto or a number"):
        place(Place(**ARGS | {"devices": devices}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_asked_for_where_there_is_none(no_slurm):
    with pytest.raises(UserError, match="this machine shows 0 GPUs"):
        place(Place(**ARGS | {"accelerator": "cuda"}))


def test_slurm_decides_inside_a_step_only(no_slurm, monkeypatch):
    for name, value in {
        "SLURM_PROCID": "1",
        "SLURM_NTASKS": "6",
        "SLURM_NTASKS_PER_NODE": "3",
        "SLURM_NNODES": "2",
    }.items():
        monkeypatch.setenv(name, value)
    assert place(Place(**ARGS))["num_nodes"] == 1  # a process in a batch script, not started by srun
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    where = place(Place(**ARGS | {"devices": "1", "num_nodes": 1}))
    assert (where["num_nodes"], where["devices"]) == (2, 3)
    environment = where["plugins"][0]
    assert isinstance(environment, SLURMEnvironment) and environment.auto_requeue is False
    assert exits_for_all(environment, 1) and not exits_for_all(LightningEnvironment(), 1)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match="--ntasks-per-node"):
        place(Place(**ARGS))


def test_several_nodes_that_nothing_starts(no_slurm, monkeypatch):
    with pytest.raises(
        UserError, match=r"place\.num_nodes=5, but nothing starts the other nodes: use srun .* or torch"
    ):
        place(Place(**ARGS | {"num_nodes": 5}))
    monkeypatch.setenv("MASTER_ADDR", "node1")  # somebody starts them by hand
    assert place(Place(**ARGS | {"num_nodes": 5}))["num_nodes"] == 5


def test_more_gpus_than_there_are(no_slurm):
    with pytest.raises(UserError, match=r"place\.devices=99 but this machine shows"):
        place(Place(**ARGS | {"accelerator": "cuda", "devices": "99"}))


def test_deepspeed_missing_names_the_extra(no_slurm, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # Python's way to say "not installed"
    with pytest.raises(UserError, match=r"frisket\[deepspeed\]"):
        place(Place(**ARGS | {"strategy": "deepspeed_stage_1"}))
