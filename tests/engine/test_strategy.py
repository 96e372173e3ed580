"""Where a run stands: arguments, Slurm's variables, DeepSpeed present or not."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy
from toyrun import frisket, toy_run, toy_shards

from frisket import checkpoint
from frisket.engine.rundir import read_csv
from frisket.engine.strategy import CPUDeepSpeed, exits_for_all, fits, place
from frisket.errors import UserError
from frisket.models.zoo import build
from frisket.place import Place
from frisket.runfiles import RunFiles
from frisket.weights.deepspeed import MODEL_STATES

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
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


@pytest.mark.skipif(HAS_DEEPSPEED, reason="DeepSpeed is installed")
def test_deepspeed_missing_names_the_extra(no_slurm):
    with pytest.raises(UserError, match=r"frisket\[deepspeed\]"):
        place(Place(**ARGS | {"strategy": "deepspeed_stage_1"}))


def resume(path: Path, ranks: int | None) -> checkpoint.Resume:
    """What is read of a made-up training checkpoint: a file, or DeepSpeed's folder of so many parts."""
    state = {"sam.weight": torch.zeros(2)}
    content = {"frisket": {"name": "sam_vit_t", "changes": {}}, "global_step": 5, "loops": {}}
    if ranks is None:
        torch.save(content | {"state_dict": state, "optimizer_states": [], "lr_schedulers": []}, path)
        return checkpoint.recorded(path)
    (path / "checkpoint").mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    torch.save(content | {"module": state, "dp_world_size": ranks}, path / "checkpoint" / MODEL_STATES)
    for rank in range(ranks):
        torch.save({}, path / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return checkpoint.recorded(path)


@pytest.mark.parametrize(
    ("ranks", "strategy", "world", "said"),
    [
        (None, "deepspeed_stage_1", 1, "was saved by DDP or a single device and place.strategy=deepspeed_stage_1"),
        (None, "deepspeed_stage_2", 2, "was saved by DDP or a single device and place.strategy=deepspeed_stage_2"),
        (2, "ddp", 2, "was saved by DeepSpeed and place.strategy=ddp cannot go on from it: set the strategy"),
        (1, "auto", 1, "was saved by DeepSpeed and place.strategy=auto cannot go on from it: set the strategy"),
        (2, "deepspeed_stage_1", 1, "is split over 2 ranks and this start has 1: take as many"),
        (1, "deepspeed_stage_2", 4, "is split over 1 ranks and this start has 4: take as many"),
        (None, "auto", 8, None),
        (None, "ddp", 1, None),
        (2, "deepspeed_stage_1", 2, None),  # either stage goes on from the other's, exactly: see below
        (2, "deepspeed_stage_2", 2, None),
    ],
)  # fmt: skip
def test_who_can_go_on_from_whose_checkpoint(tmp_path, ranks, strategy, world, said):
    training = resume(tmp_path / "last.ckpt", ranks)
    if said is None:
        fits(training, strategy, world)
        return
    with pytest.raises(UserError) as refusal:
        fits(training, strategy, world)
    assert f"{training.path} {said}" in str(refusal.value)
    assert "or take its weights into another run (name=…, init_from=…)" in str(refusal.value)


needs_deepspeed = pytest.mark.skipif(
    not HAS_DEEPSPEED,
    reason="needs DeepSpeed (pip install -c constraints.txt -e '.[deepspeed]') and a C++ compiler",
)


@pytest.fixture(scope="session")
def deepspeed_env(tmp_path_factory):
    """The environment of a run: DeepSpeed compiles a small extension at its first start, here once for all tests."""
    made = os.environ.get("TORCH_EXTENSIONS_DIR") or str(tmp_path_factory.mktemp("extensions"))
    return {"DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": made}


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the compiler's time
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
@pytest.mark.timeout(1800)  # the compiler's time
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_resumes_under_either_stage_and_runs_no_code(no_slurm, tmp_path, deepspeed_env, stage):
    assert isinstance(place(Place(**ARGS | {"strategy": f"deepspeed_stage_{stage}"}))["strategy"], CPUDeepSpeed)
    data = toy_shards(tmp_path / "data", 6)

    def train(name: str, stage: int, steps: int) -> subprocess.CompletedProcess[str]:
        settings = {"strategy": f"deepspeed_stage_{stage}", "max_steps": steps, "checkpoint_every": 2}
        return frisket("train", *toy_run(data, tmp_path, **settings), f"name={name}", **deepspeed_env)

    def losses(name: str) -> list[tuple[str, str]]:
        return [(row["step"], row["train/loss"]) for row in read_csv(RunFiles(tmp_path / name).metrics)]

    first = train("same", stage, 4)
    assert first.returncode == 0, first.stdout + first.stderr
    for name in ("other", "evil"):
        shutil.copytree(tmp_path / "same", tmp_path / name)
    for name, chosen in (("same", stage), ("other", 3 - stage)):
        again = train(name, chosen, 6)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "continuing from" in again.stdout and "finished at step 6" in again.stdout
    assert len(losses("same")) == 6
    assert losses("other") == losses("same")

    for part in RunFiles(tmp_path / "evil").checkpoints.rglob("*_optim_states.pt"):
        torch.save(torch.load(part, weights_only=False) | {"harm": Harmful(tmp_path / "harm")}, part)
    refused = train("evil", stage, 6)
    assert refused.returncode == 2
    assert "set trust=true if you trust who wrote it" in refused.stderr
    assert not (tmp_path / "harm").exists()


class Harmful:
    """Unpickling this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.folder,)
