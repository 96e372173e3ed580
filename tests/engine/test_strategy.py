"""Where a run stands: arguments, Slurm's variables, DeepSpeed present or not."""

import importlib.util

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from toyrun import frisket, toy_run, toy_shards

from frisket import checkpoint
from frisket.engine.strategy import CPUDeepSpeed, exits_for_all, place
from frisket.errors import UserError
from frisket.models.zoo import build
from frisket.place import Place

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
ARGS = {"accelerator": "cpu"}


@pytest.fixture
def no_slurm(monkeypatch):
    """Forget a Slurm this test itself may run in."""
    for name in ("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NNODES"):
        monkeypatch.delenv(name, raising=False)


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


def test_more_gpus_than_there_are(no_slurm):
    with pytest.raises(UserError, match=r"place\.devices=99 but this machine shows"):
        place(Place(**ARGS | {"accelerator": "cuda", "devices": "99"}))


@pytest.mark.skipif(HAS_DEEPSPEED, reason="DeepSpeed is installed")
def test_deepspeed_missing_names_the_extra(no_slurm):
    with pytest.raises(UserError, match=r"frisket\[deepspeed\]"):
        place(Place(**ARGS | {"strategy": "deepspeed_stage_1"}))


needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED,
    reason="needs DeepSpeed (pip install -c constraints.txt -e '.[deepspeed]') and a C++ compiler",
)


@pytest.fixture(scope="session")
def deepspeed_env(tmp_path_factory):
    """The environment of a run: DeepSpeed compiles a small extension at its first start, here once for all tests."""
    return {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(tmp_path_factory.mktemp("extensions"))}


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_keeps_what_is_frozen(no_slurm, tmp_path, deepspeed_env, stage):
    """finetune_decoder's encoder is in the checkpoint and in model.pt, though nothing trains it."""
    start = tmp_path / "start.pt"
    sam = build("lightening", image_size=64, width=32, depth=2, heads=2)
    checkpoint.save(sam, start)
    words = [
        "recipe=finetune_decoder" if word == "recipe=train_sam" else word
        for word in toy_run(toy_shards(tmp_path / "data", 6), tmp_path, strategy=f"deepspeed_stage_{stage}")
        if not word.startswith("model.")
    ]
    for steps in (2, 3):
        done = frisket("train", *words, f"init_from={start}", f"trainer.max_steps={steps}", **deepspeed_env)
        assert done.returncode == 0, done.stdout + done.stderr
        start.unlink(missing_ok=True)
    made = checkpoint.load(tmp_path / "finetune_decoder" / "model.pt")
    frozen, trained = (
        [torch.equal(a, b) for a, b in zip(getattr(sam, part).parameters(), getattr(made, part).parameters())]
        for part in ("image_encoder", "mask_decoder")
    )
    assert all(frozen) and not all(trained)


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_trains_saves_a_folder_and_resumes(no_slurm, tmp_path, deepspeed_env, stage):
    assert isinstance(place(**ARGS | {"strategy": f"deepspeed_stage_{stage}"})["strategy"], CPUDeepSpeed)
    data = toy_shards(tmp_path / "data", 6)
    strategy = f"deepspeed_stage_{stage}"
    first = frisket(
        "train", *toy_run(data, tmp_path, strategy=strategy, max_steps=4, checkpoint_every=2), **deepspeed_env
    )
    assert first.returncode == 0, first.stdout + first.stderr
    assert (tmp_path / "train_sam" / "checkpoints" / "last.ckpt").is_dir()
    again = frisket(
        "train", *toy_run(data, tmp_path, strategy=strategy, max_steps=6, checkpoint_every=2), **deepspeed_env
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "continuing from" in again.stdout and "finished at step 6" in again.stdout
