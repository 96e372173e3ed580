"""Task `latency`: known MAC counts, turns of the models, the check that forbids times, memory of a fresh process."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from frisket import config as settings
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.eval import subject as subject_module
from frisket.eval.clock import timer
from frisket.eval.cost import macs, memory, on_meta, reduced, weights_bytes
from frisket.eval.latency import PARTS, Config, Task
from frisket.eval.subject import Subject, photo, photographs, spread
from frisket.models.sam import Sam
from frisket.models.zoo import build

POINTS = {"points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
QUICK = {
    "everything_repeats": 5,
    "everything": POINTS,
    "inputs": 2,
    "warmup": 1,
    "repeats": 5,
    "rounds": 2,
    "calls": 1,
    "batches": [1, 2],
    "memory": False,
}


@pytest.fixture(autouse=True)
def small_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_module, "NOISE", (48, 80))


def quick(**changes: object) -> Task:
    return Task(Config(task="latency", **(QUICK | changes)), 64)  # type: ignore[arg-type]


def answers(task: Task, sam: Sam) -> dict:
    with torch.inference_mode():
        return task.summarise([task.answer(sam, task.load(i)) for i in range(len(task))])


# ---------------------------------------------------------------- MACs


def test_macs_of_sam_vit_b_are_the_known_ones() -> None:
    """486.0 G encoder; 1.811 G for a click with its padding token in Meta's decoder, where ours skips unused heads."""
    with torch.device("meta"):
        sam = build("sam_vit_b")
    found = macs(sam, 1024)
    assert found["encoder"] == pytest.approx(486.0, abs=0.05)
    assert found["point"] == pytest.approx(1.811, rel=2e-3)
    assert found["points64"] == pytest.approx(115.9, rel=2e-3)
    assert found["total"] == found["encoder"] + found["box"]


def test_counting_neither_computes_nor_copies(tiny_sam: Sam) -> None:
    copy = on_meta(tiny_sam)
    assert all(t.is_meta for t in [*copy.parameters(), *copy.buffers()])
    assert not any(t.is_meta for t in [*tiny_sam.parameters(), *tiny_sam.buffers()])
    assert macs(tiny_sam, 64) == macs(tiny_sam, 64)


# ---------------------------------------------------------------- time


def test_every_number_has_its_samples(tiny_sam: Sam) -> None:
    task = quick()
    found = answers(task, tiny_sam)
    for part in PARTS:
        samples = found[f"samples/{part}"]
        assert found[f"{part}/n"] == len(samples) == 5
        assert found[f"{part}/ms"] == pytest.approx(np.median(samples))
        assert 0 < found[f"{part}/ms_p5"] <= found[f"{part}/ms"] <= found[f"{part}/ms_p95"]
    assert found["end_to_end/ms"] > found["post/ms"]
    assert 0 < found["everything/masks"] <= 12  # 2 x 2 points, three masks each
    assert found["throughput/batch"] == [1.0, 2.0]
    assert found["throughput/best_images_per_second"] == max(found["throughput/images_per_second"])
    assert found["setup"]["threads"] == 1
    assert found["setup"]["clock"] == "wall time, 1 CPU thread(s)"
    assert "noise" in task.sentence
    assert "FAIL" not in task.table({"a": found})
    json.dumps(found)


def test_models_take_turns_and_inputs_rotate(tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    task, seen = quick(parts=["encoder"], warmup=0), []
    other = build("sam_vit_t", image_size=64, width=48, depth=1, heads=3, global_blocks=(0,))
    names = {id(tiny_sam): "a", id(other): "b"}
    encode = Sam.encode

    def spy(self: Sam, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        seen.append((names[id(self)], int(images.sum())))
        return encode(self, images, sizes)

    plans = [plan for plan in task.plans if plan.what == "encoder"]
    with torch.inference_mode():
        for sam in (tiny_sam, other):
            task.answer(sam, task.load(0))
        monkeypatch.setattr(Sam, "encode", spy)
        for plan in plans:
            for sam in (tiny_sam, other):
                task.answer(sam, plan)
    assert "".join(name for name, _ in seen) == "aaabbb" + "aabb"  # 5 calls: 3 in the first round, 2 in the second
    assert len({pixels for _, pixels in seen[:2]}) == 2


def test_a_limit_counts_photographs_and_nothing_is_measured_twice() -> None:
    task = quick(limit=1, inputs=3, pictures=6)
    assert len(task.pixels) == 1
    assert task.config.limit is None  # else it would cut the measurements
    assert task.config.pictures == 0  # else the first ones would be measured again to be drawn
    assert [plan.what for plan in task.plans][-1] == "conditions"


def test_the_clock_counts_seconds_and_a_part_is_told_in_milliseconds(tiny_sam: Sam) -> None:
    """Bounds that hold on the busiest machine: never less than the sleep inside, never more than the clock around."""
    for number in (1, 2):
        start = time.perf_counter()
        told = timer(torch.device("cpu"))(lambda: time.sleep(0.02), number)
        assert 0.02 * number <= told <= time.perf_counter() - start
    assert timer(torch.device("cpu"), one_thread=True)(lambda: time.sleep(0.2)) < 0.2  # it did not compute
    one = photo(np.zeros((64, 64, 3), np.uint8), 64, torch.device("cpu"), 0)
    with torch.inference_mode():
        subject = Subject(tiny_sam, [one])
        subject.sam.image_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.005))
        start = time.perf_counter()
        told = subject.time("encoder", warmup=0, repeats=20)
    assert min(told["samples"]) >= 5
    assert sum(told["samples"]) <= 1e3 * (time.perf_counter() - start)


@pytest.mark.gpu
def test_a_gpus_clock_counts_seconds() -> None:
    work = torch.rand(2048, 2048, device="cuda")

    def call() -> None:
        for _ in range(200):
            work @ work

    clock = timer(torch.device("cuda"))
    clock(call)
    start = time.perf_counter()
    told = clock(call)
    passed = time.perf_counter() - start
    assert 0.5 * passed < told <= passed


@pytest.mark.parametrize(("spoil", "ok"), [(0.0, 1.0), (float("nan"), 0.0), (3.0, 0.0)])
def test_a_form_that_answers_otherwise_gets_no_times(
    tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch, spoil: float, ok: float
) -> None:
    def other(sam: Sam, precision: str) -> Sam:
        made = build("sam_vit_t", image_size=64, width=48, depth=2, heads=3, global_blocks=(1,))
        made.load_state_dict(sam.state_dict())
        with torch.no_grad():
            made.image_encoder.neck[0].weight.add_(spoil * torch.randn_like(made.image_encoder.neck[0].weight))
        return made

    monkeypatch.setattr(subject_module, "reduced", other)
    task = quick(precision="bf16-true", parts=["encoder"])
    found = answers(task, tiny_sam)
    assert found["agreement/ok"] == ok
    assert ("encoder/ms" in found) == ("throughput/images_per_second" in found) == bool(ok)
    assert ("FAIL: the masks of a are not" in task.table({"a": found})) != bool(ok)
    if not ok:
        assert "differ" in found["encoder/error"]


def test_reduced_precision_casts_encoder_and_decoder_alone(tiny_sam: Sam) -> None:
    half = reduced(tiny_sam, "bf16-true")
    kinds = {name: {p.dtype for p in part.parameters()} for name, part in half.named_children()}
    assert kinds["image_encoder"] == kinds["mask_decoder"] == {torch.bfloat16}
    assert kinds["prompt_encoder"] == {torch.float32}
    assert {p.dtype for p in tiny_sam.parameters()} == {torch.float32}
    assert reduced(tiny_sam, "32-true") is tiny_sam
    one = photo(np.full((40, 64, 3), 90, np.uint8), 64, torch.device("cpu"), 0)
    with torch.inference_mode():
        exact, fast = (sam.encode(one.image, one.sizes).float() for sam in (tiny_sam, half))
        assert torch.nn.functional.cosine_similarity(exact, fast).min() > 0.99  # bf16 keeps eight bits
        assert not exact.equal(fast)
        assert Subject(tiny_sam, [one], precision="bf16-true").check(0.5)["finite"] == 1


def test_compiling_leaves_the_given_model_alone(tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(module: torch.nn.Module, mode: str) -> torch.nn.Module:
        asked.append(mode)
        return torch.nn.Sequential(module)

    monkeypatch.setattr(torch, "compile", fake)
    before = tiny_sam.image_encoder
    one = photo(np.full((40, 64, 3), 90, np.uint8), 64, torch.device("cpu"), 0)
    with torch.inference_mode():
        made = Subject(tiny_sam, [one], compiled="max-autotune")
        assert made.check(1.0)["miou"] == 1
    assert asked == ["max-autotune"]
    assert tiny_sam.image_encoder is before
    assert made.sam.image_encoder is not before
    assert made.sam.mask_decoder is tiny_sam.mask_decoder


@pytest.mark.parametrize(
    ("speed", "ran", "word"),
    [
        ({1: 1.0, 2: 1.9, 4: 1.91, 8: 1.92, 16: 9.0}, 4, "plateau at batch 8"),
        ({1: 1.0, 2: 2.0, 4: None}, 2, "out of memory at batch 4"),
        ({1: 1.0, 2: 2.0}, 2, "all batches ran"),
        ({1: None}, 0, "out of memory at batch 1"),
    ],
)
def test_the_sweep_ends_at_memory_or_a_plateau(
    tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch, speed: dict, ran: int, word: str
) -> None:
    one = photo(np.zeros((64, 64, 3), np.uint8), 64, torch.device("cpu"), 0)
    with torch.inference_mode():
        subject = Subject(tiny_sam, [one])
    batches = []

    def encode(images: torch.Tensor, sizes: torch.Tensor) -> None:
        batches.append(len(images))
        if speed[len(images)] is None:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(tiny_sam, "encode", encode)
    monkeypatch.setattr(
        subject_module, "timer", lambda device: lambda call, number: (call(), batches[-1] / speed[batches[-1]])[1]
    )
    found = subject.sweep(list(speed), calls=1)
    assert found["stopped"] == word
    assert found.get("images_per_second", []) == pytest.approx(list(speed.values())[:ran])
    if ran:
        assert found["best_images_per_second"] == pytest.approx(max(list(speed.values())[:ran]))


# ---------------------------------------------------------------- memory, inputs, mistakes


def test_memory_is_a_fresh_processs(tiny_sam: Sam) -> None:
    ballast = torch.zeros(300 * 2**20, dtype=torch.uint8) + 1  # resident here, and nothing of the child's
    found = memory(tiny_sam, side=64, precision="32-true", device=torch.device("cpu"))
    assert found["weights"] == weights_bytes(tiny_sam) / 2**20
    assert found["rss_before"] < found["rss"] <= found["peak"]
    assert found["peak"] == max(found["encoder_peak"], found["box_peak"], found["points64_peak"])
    assert found["activations"] == found["peak"] - found["rss"]
    assert found["activations"] < len(ballast) / 2**20


def test_inputs_are_pictures_shards_or_noise(tmp_path: Path, tiny_shards: Path) -> None:
    for number in range(5):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert [int(p[0, 0, 0]) for p in photographs(str(tmp_path), 3, 0)] == [0, 2, 4]
    assert photographs(str(tmp_path / "3.png"), 3, 0)[0].shape == (20, 30, 3)
    assert {max(p.shape[:2]) for p in photographs(str(tiny_shards / "val"), 2, 0)} == {96}
    a, b = photographs("", 2, 7)
    assert not np.array_equal(a, b)
    assert np.array_equal(a, photographs("", 1, 7)[0])
    assert spread(3, 10) == [0, 1, 2]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*.tar"):
        photographs(str(tmp_path / "empty"), 1, 0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"precision": "16-mixed"}, "must be one of 32-true, bf16-true, 16-true: did you mean '16-true'"),
        ({"compile": "max"}, "compile=max must be one of"),
        ({"parts": ["encodr"]}, "did you mean 'encoder'"),
        ({"repeats": 0}, "repeats=0 must be 1 or more"),
        ({"batches": [0]}, r"batches=\[0\] must be 1 or more"),
        ({"place": {"devices": "2"}}, "measured on one device"),
        ({"threads": 2}, "threads is now place.threads"),
        ({"everything": {"points_per_side": 0}}, "points_per_side=0 must be 1 or more"),
    ],
)
def test_a_mistake_is_one_sentence(changes: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Task(settings.from_dict(Config, QUICK | changes, "a.yaml"), 64)


def test_the_command_writes_every_part(tiny_teacher: Path, tiny_shards: Path, tmp_path: Path, capsys) -> None:
    words = [
        "eval", "task=latency", f"checkpoint=[one:{tiny_teacher},two:{tiny_teacher}]", f"data={tiny_shards / 'val'}",
        f"out={tmp_path}", "place.accelerator=cpu", "inputs=2", "warmup=0", "repeats=2", "rounds=1", "batches=[1]",
        "calls=1", "memory=false",
        "everything_repeats=0",
    ]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "encoder ms" in said
    assert "2 photograph(s) in rotation" in said
    found = json.loads((tmp_path / "eval.json").read_text())
    assert set(found["models"]) == {"one", "two"}
    assert found["environment"]["torch"] == torch.__version__
    assert len(found["models"]["two"]["samples/encoder"]) == 2
    assert (tmp_path / "per_image.csv").read_text().startswith("model,key,what,round")
