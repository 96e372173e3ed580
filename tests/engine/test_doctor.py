"""`frisket doctor`: each fault is made for real and named; what is whole passes; `frisket train` says the same."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toyfit import ranks
from toyrun import toy_run, toy_shards

from frisket import checkpoint, plugins
from frisket import config as settings
from frisket.cli.main import main
from frisket.cli.train import chosen
from frisket.data import embeddings
from frisket.engine.doctor import model, network, reading, room
from frisket.engine.doctor.plan import Plan, plan
from frisket.engine.doctor.run import examine
from frisket.errors import UserError
from frisket.prep import embed
from frisket.prep.run import prep
from frisket.runfiles import RunFiles

SMALL = "student.encoder={depth: 2, width: 32, heads: 2}"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B key, no job."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "WANDB_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "nowhere"))
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_shards(tmp_path_factory.mktemp("data"), 12)


def starting(data: Path | str, out: Path, *words: str) -> Plan:
    """The plan of a toy run."""
    overrides = [*toy_run(Path(data), out), *words]
    recipe = chosen([], overrides)
    return plan(recipe, settings.load(recipe.Config, [], overrides), anywhere=True)


def toy_distillation(data: Path, out: Path, teacher: Path | str, *words: str) -> list[str]:
    """Its words, those of toy_run that it shares among them."""
    shared = [word for word in toy_run(data, out) if not word.startswith(("recipe", "model", "prompts"))]
    return ["recipe=distill_lightening", *shared, f"teacher={teacher}", SMALL, *words]


def distilled(data: Path, out: Path, teacher: Path | str, *words: str) -> Plan:
    """The plan of a toy distillation."""
    overrides = toy_distillation(data, out, teacher, *words)
    recipe = chosen([], overrides)
    return plan(recipe, settings.load(recipe.Config, [], overrides), anywhere=True)


def copied(data: Path, to: Path) -> list[Path]:
    shutil.copytree(data, to)
    return sorted(to.glob("*.tar"))


def hollow(tar: Path) -> Path:
    """An empty tar."""
    tar.write_bytes(bytes(10240))
    return tar


def test_what_is_whole_passes_and_leaves_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*toy_run(data, tmp_path / "runs", val=data), "place.workers=1"]
    assert main(["doctor", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 13 and all(line.startswith("ok ") for line in lines[:-1])
    assert lines[-1].startswith("all is well; start: frisket train recipe=train_sam")
    said = "\n".join(lines)
    assert "12 images in 3 shards; 12 batches an epoch on each of 1 ranks" in said
    assert "12 samples of shards" in said and "off (log.wandb=off)" in said and "images/s read" in said
    assert list(tmp_path.iterdir()) == []


def test_what_fails_is_a_line_with_its_mend_and_exit_code_1(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the other checks go on."""
    shared = [word for word in toy_run(data, tmp_path) if not word.startswith(("recipe", "model", "prompts"))]
    assert main(["doctor", "recipe=distill_lightening", *shared, "teacher=nobody.pt", SMALL]) == 1
    lines = capsys.readouterr().out.splitlines()
    failing = [line for line in lines if line.startswith("FAIL")]
    assert len(failing) == 1 and failing[0].startswith("FAIL model ") and "no checkpoint at nobody.pt" in failing[0]
    assert lines[-1].startswith("1 of 12 checks failed") and len(lines) == 13
    assert "not checked: there is no model to count" in "\n".join(lines)


def same_sentence(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of doctor (exit code 1) and of train (2)."""
    assert main(["doctor", *words]) == 1
    failing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL shards")]
    assert len(failing) == 1 and says in failing[0]
    assert main(["train", *words]) == 2
    assert f"frisket: {failing[0].removeprefix('FAIL shards').strip()}\n" == capsys.readouterr().err


def test_train_and_doctor_refuse_in_the_same_words(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tars = copied(data, tmp_path / "data")
    run = [*toy_run(tmp_path / "data", tmp_path / "runs"), "trainer.max_steps=1"]
    same_sentence([*run, "data.global_batch=16"], "is more than the 12 training samples", capsys)
    same_sentence([*run, f"data.val={tmp_path / 'none'}"], "there is no shard or folder", capsys)
    tars[1].write_bytes(tars[1].read_bytes()[:30_000])
    same_sentence(run, "download or write it again", capsys)
    for tar in tars:
        hollow(tar)
    same_sentence(run, "data.global_batch=1 is more than the 0 training samples", capsys)
    assert not (tmp_path / "runs").exists()


def by_two_ranks(tmp_path: Path, *words: str) -> list[tuple[int, str]]:
    """(exit code, what it said) of each of two gloo ranks, as torchrun starts them."""

    def work(rank: int) -> int:
        with open(tmp_path / f"said{rank}", "w") as file, redirect_stdout(file), redirect_stderr(file):
            return main([*words])

    codes = ranks(work)
    return [(code, (tmp_path / f"said{rank}").read_text()) for rank, code in enumerate(codes)]


STREAMED = ["data.streaming=true", "data.epoch_images=8", "data.stream_buffer=1"]


@pytest.mark.slow
@pytest.mark.parametrize("read", ["by index", "streamed"])
@pytest.mark.parametrize("shards", ["one", "odd", "with empty ones"])
def test_any_shards_train_to_the_end_on_two_ranks(shards: str, read: str, data: Path, tmp_path: Path) -> None:
    """Ranks share images, not shards: a rank has none of its own. Of one photograph to validate on, one has none."""
    tars = copied(data, tmp_path / "data")
    if shards == "one":
        for tar in tars[1:]:
            tar.unlink()
    if shards == "with empty ones":
        hollow(tars[0])
        hollow(tars[2])
    val = toy_shards(tmp_path / "val", 1, "val")
    words = toy_run(tmp_path / "data", tmp_path / "runs", val, max_steps=3, devices=2)
    words += ["data.global_batch=2", "trainer.val_every=2", *(STREAMED if read == "streamed" else [])]
    for verb in ("doctor", "train"):
        (code, said), (other, more) = by_two_ranks(tmp_path, verb, *words)
        assert (code, other) == (0, 0), said + more
        if (verb, shards, read) == ("doctor", "with empty ones", "by index"):
            assert f"5 images in 3 shards, 2 of them empty ({tars[0]})" in said
    run = RunFiles(tmp_path / "runs" / "train_sam")
    assert json.loads(run.summary.read_text())["step"] == 3
    assert [len(run.samples(rank).read_text().splitlines()) for rank in range(2)] == [3, 3]


@pytest.mark.parametrize("read", ["by index", "streamed"])
def test_two_ranks_refuse_what_holds_nothing_in_doctors_words(read: str, data: Path, tmp_path: Path) -> None:
    for tar in copied(data, tmp_path / "data"):
        hollow(tar)
    words = toy_run(tmp_path / "data", tmp_path / "runs", devices=2)
    words += ["data.global_batch=2", *(STREAMED if read == "streamed" else [])]
    looked, trained = by_two_ranks(tmp_path, "doctor", *words), by_two_ranks(tmp_path, "train", *words)
    for (looked_at, line), (code, said) in zip(looked, trained, strict=True):
        sentence = next(part for part in line.splitlines() if part.startswith("FAIL"))
        sentence = re.sub(r"^FAIL \w+ +(rank 1 on \S+: )?", "", sentence)
        assert (looked_at, code) == (1, 2) and f"frisket: {sentence}\n" in said
        assert ("holds no sample" if read == "streamed" else "the 0 training samples") in said


def test_an_unreadable_sample_is_named(data: Path, tmp_path: Path) -> None:
    tars = copied(data, tmp_path / "data")
    content = bytearray(tars[2].read_bytes())
    first = content.index(b"\xff\xd8\xff")
    content[first + 20 : first + 400] = bytes(380)
    tars[2].write_bytes(content)
    with pytest.raises(UserError, match=rf"{tars[2].name}, sample "):
        reading.samples(starting(tmp_path / "data", tmp_path))
    start = starting(data, tmp_path, f"data.val={tmp_path / 'data'}")
    with pytest.raises(UserError, match=rf"{tars[2].name}, sample "):
        reading.samples(start)


def test_a_folder_that_cannot_be_written(data: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(64)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(UserError, match=rf"out={disk}/runs cannot be written \(Read-only file system\)"):
        room.folder(starting(data, disk / "runs"))


def test_a_run_that_another_process_trains(data: Path, tmp_path: Path) -> None:
    """And the lock is left alone."""
    start = starting(data, tmp_path)
    assert "can be written and locked" in room.folder(start)
    assert not start.run.path.exists()
    start.run.path.mkdir()
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print(1, flush=True);"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, start.run.lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin and other.stdout and other.stdout.readline() == "1\n"
    with pytest.raises(UserError, match="another process is training in"):
        room.folder(start)
    other.communicate("")
    assert "can be written and locked" in room.folder(start)


def test_a_disk_without_room_for_checkpoints(data: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(4096)
    start = starting(data, disk / "runs")
    assert room.checkpoints(start).startswith("not checked")
    model.model(start)
    with pytest.raises(UserError, match=r"needs 0\.\d+ GB for 4 checkpoints and the disk has 0\.004\d* GB: make room"):
        room.checkpoints(start)
    subprocess.run(["mount", "-o", "remount,size=1g", str(disk)], check=True)
    said = room.checkpoints(start)
    size = float(re.findall(r"of ([\d.]+) GB", said)[0])
    state = {key: value for key, value in start.recipe.state_dict().items()} if start.recipe else {}
    moments = {key: torch.zeros(2, *value.shape) for key, value in state.items()}
    torch.save((state, moments), disk / "like.pt")
    assert size == pytest.approx((disk / "like.pt").stat().st_size / 1e9, rel=0.02)


def test_checkpoints_that_are_there_need_no_more_room(data: Path, small_disk: Callable[[int], Path]) -> None:
    disk = small_disk(260_000)
    start = starting(data, disk / "runs")
    model.model(start)
    start.run.checkpoints.mkdir(parents=True)
    with open(start.run.last, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 240 << 20)
    assert "4 checkpoints" in room.checkpoints(start)


def test_shared_memory_that_is_too_small(
    data: Path, tmp_path: Path, small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "SHM", small_disk(64))
    assert room.shared_memory(starting(data, tmp_path)) == "not needed: no loader workers"
    start = starting(data, tmp_path, "place.workers=4", "data.global_batch=2")
    with pytest.raises(UserError, match=r"has 6\.55e-05 GB and .*workers hold up to 0\.000213 GB.*--shm-size"):
        room.shared_memory(start)  # 2 images of 3 x 64 x 64 and 4 masks of 16 x 16; twice, by four workers
    assert room.shared_memory(starting(data, tmp_path, "place.workers=1")).startswith("2.66e-05 GB of training batches")


def test_stored_embeddings_are_the_teachers_own(
    data: Path, tmp_path: Path, tiny_teacher: Path, tiny_sam: torch.nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tiny_sam, tmp_path / "other.pt")  # type: ignore[arg-type]
    copied(data, tmp_path / "data")
    start = distilled(tmp_path / "data", tmp_path, tiny_teacher, "place.workers=1")
    said = model.model(start)
    assert said.startswith("lightening, ") and f"taught by {tiny_teacher} (sam_vit_t)" in said
    assert re.match(
        r"none are used; all, with blocks \[4\], in fp16, would be 0\.000123 GB at most, and .* GB free",
        room.embeddings(start),
    )
    without = room.shared_memory(start)
    other = {"inputs": str(tmp_path / "data"), "teacher": str(tmp_path / "other.pt"), "image_size": 64}
    prep(embed.Config(**other, blocks=[2]))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="stored embeddings come from teacher"):
        start = distilled(tmp_path / "data", tmp_path, tiny_teacher, "data.embeddings=auto")
        model.model(start)
        room.embeddings(start)
    auto = "data.embeddings=auto"
    start = distilled(tmp_path / "data", tmp_path, tmp_path / "other.pt", auto, "place.workers=1")
    model.model(start)
    assert re.match(r"auto: of teacher \w{12} at 64 px .*, for every shard", room.embeddings(start))
    held = start.where["devices"] * start.config.place.workers * 2 * start.division.per_device
    more = held * 16 * (4 * 256 + 2 * 48) / 1e9  # bytes of the embedding and of a block's features
    assert float(room.shared_memory(start).split()[0]) == pytest.approx(float(without.split()[0]) + more, rel=0.02)
    shard = sorted((tmp_path / "data").glob("*.tar"))[1]
    embeddings.path_for(shard, block=2).unlink()
    with pytest.raises(UserError, match=r"block 2 of the teacher, .* is not stored: .* \(1 of 3 shards\)"):
        room.embeddings(start)
    assert main(["train", *toy_distillation(tmp_path / "data", tmp_path, tmp_path / "other.pt", auto)]) == 2
    assert "block 2 of the teacher, which this run compares, is not stored" in capsys.readouterr().err
    lost = embeddings.path_for(shard)
    lost.unlink()
    with pytest.raises(UserError, match=rf"embeddings {lost} \(1 of 3 shards\) are missing"):
        reading.shards(distilled(tmp_path / "data", tmp_path, tiny_teacher, "data.embeddings=auto"))


def test_a_run_of_another_model_is_refused(data: Path, tmp_path: Path) -> None:
    start = starting(data, tmp_path, "trainer.max_steps=1")
    assert main(["train", *toy_run(data, tmp_path, max_steps=1)]) == 0
    assert "going on from" in model.model(start)
    with pytest.raises(UserError, match=r"set name=… for another run"):
        model.model(starting(data, tmp_path, "model.encoder.width=48", "model.encoder.heads=3"))


def test_a_gpu_that_is_too_small_and_a_gpu_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = starting(data, tmp_path, "data.global_batch=8")
    model.model(start)
    assert model.memory(start) == "not checked: the place is a CPU"
    start.where["accelerator"] = "cuda"
    gpu = {"total_memory": 2**30}
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(**gpu))
    with pytest.raises(UserError, match=r"1\.\d GiB are accounted for and this GPU has 1\.0, .*15% must stay free"):
        model.memory(start)
    gpu["total_memory"] = 2**33
    assert re.match(r"1\.\d of 8\.0 GiB", model.memory(start))


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks about a machine without a GPU")
def test_a_gpu_place_on_a_login_node(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = ["place.accelerator=cuda", "place.devices=2", "data.global_batch=4"]
    assert main(["doctor", *toy_run(data, tmp_path), *gpus]) == 0
    said = capsys.readouterr().out
    assert "torch sees no GPU here, and 1 nodes x 2 devices" in said and "none is here to compare" in said
    assert "start: srun --nodes=1 --ntasks-per-node=2 --gres=gpu:2 --cpus-per-task=2 --wait=60 frisket train" in said
    assert main(["train", *toy_run(data, tmp_path), *gpus]) == 2
    assert "shows 0 GPUs" in capsys.readouterr().err


def test_wandb_that_is_to_be_online_and_is_not(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"online \(log\.wandb=online\) and no API key: log in"):
        network.wandb(starting(data, tmp_path, "log.wandb=online"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "https://127.0.0.1")
    with pytest.raises(UserError, match=r"127\.0\.0\.1 does not answer"):
        network.wandb(starting(data, tmp_path, "log.wandb=online"))
    assert network.wandb(starting(data, tmp_path, "log.wandb=auto")) == "offline (127.0.0.1 does not answer)"


def test_ranks_meet_or_say_who_is_missing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")

    def meet(rank: int) -> int:
        said = network.ranks(starting(data, tmp_path, "data.global_batch=2"))
        return 0 if re.match(r"2 met over gloo at 127\.0\.0\.1:\d+", said) else 1

    assert ranks(meet) == [0, 0]

    def miss(rank: int) -> int:
        monkeypatch.setattr(network, "WAIT", network.timedelta(seconds=1))
        if rank == 1:
            return 0
        with pytest.raises(UserError, match=r"rank 0 never met the others"):
            network.ranks(starting(data, tmp_path, "data.global_batch=2"))
        return 0

    assert ranks(miss) == [0, 0]


def test_a_plug_in_adds_a_check(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def licence(start: Plan) -> str:
        raise UserError(f"{start.config.recipe} has no licence: get one")

    plugins._outside["mine"] = SimpleNamespace(CHECKS=(licence,))  # type: ignore[assignment]
    overrides = toy_run(data, tmp_path)
    recipe = chosen([], overrides)
    assert examine(recipe, settings.load(recipe.Config, [], overrides), "frisket train") == 1
    assert "FAIL licence       train_sam has no licence: get one" in capsys.readouterr().out
