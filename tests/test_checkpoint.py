"""Every form of weights on disk comes back bit for bit; every wrong or broken file gives one sentence that says why."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frisket import checkpoint, plugins
from frisket.errors import UserError
from frisket.models.sam import Sam
from frisket.models.zoo import build, entries
from frisket.runfiles import RunFiles
from frisket.weights.deepspeed import MODEL_STATES, guarded

SMALL = {"image_size": 64, "width": 16, "depth": 1, "heads": 2, "global_blocks": (0,)}


@pytest.fixture
def sam() -> Sam:
    torch.manual_seed(0)
    return build("sam_vit_t", **SMALL)


def record(sam: Sam) -> dict[str, object]:
    return {"name": sam.name, "changes": sam.changes}


def training_checkpoint(sam: Sam, step: int = 5) -> dict[str, object]:
    """What Lightning writes for one of our recipes: the student under "sam.", other modules beside it."""
    state = {f"sam.{key}": value for key, value in sam.state_dict().items()}
    state["projections.0.weight"] = torch.randn(4, 4)
    training = {"global_step": step, "loops": {}, "epoch": 0, "optimizer_states": [], "lr_schedulers": []}
    return {"frisket": record(sam), "state_dict": state, **training}


def deepspeed_folder(path: Path, sam: Sam, step: int = 5) -> Path:
    """DeepSpeed's layout without ZeRO, as deepspeed 0.19 writes it."""
    (path / "checkpoint").mkdir(parents=True)
    states = training_checkpoint(sam, step)
    states["module"] = states.pop("state_dict")
    torch.save(states, path / "checkpoint" / "mp_rank_00_model_states.pt")
    (path / "latest").write_text("checkpoint")
    return path


def same(a: Sam, b: Sam) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return list(mine) == list(other) and all(torch.equal(mine[key], other[key]) for key in mine)


def test_ours_comes_back(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model.pt"
    checkpoint.save(sam, path, provenance={"commit": "abc", "steps": 3})
    loaded = checkpoint.load(path)
    assert same(sam, loaded)
    assert (loaded.name, loaded.changes) == (sam.name, sam.changes)
    assert not loaded.training
    content = torch.load(path, weights_only=True)
    assert content["frisket"] == 1
    assert content["provenance"] == {"commit": "abc", "steps": 3}
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("folder", [False, True])
def test_the_shape_of_a_training_checkpoint(sam: Sam, tmp_path: Path, folder: bool) -> None:
    path = tmp_path / "last.ckpt"
    if folder:
        deepspeed_folder(path, sam)
    else:
        torch.save(training_checkpoint(sam), path)
    state = torch.get_rng_state()
    made = checkpoint.like(checkpoint.recorded(path))
    assert torch.equal(state, torch.get_rng_state())
    assert (made.name, made.changes) == (sam.name, sam.changes)
    assert checkpoint.fingerprint(made.state_dict()) == checkpoint.fingerprint(sam.state_dict())
    assert not same(made, sam)


def test_the_shape_of_something_else_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {}, "global_step": 1}, path)
    with pytest.raises(UserError, match=r"last\.ckpt has no 'frisket' record"):
        checkpoint.recorded(path)


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("absent", "said"),
    [
        ("frisket", "has no 'frisket' record: only this project's checkpoints can be continued"),
        ("global_step", "names no step: it cannot be continued"),
        ("loops", "holds weights but no loops: it cannot be continued"),
        ("optimizer_states", "holds weights but no optimizer_states: it cannot be continued"),
        ("lr_schedulers", "holds weights but no lr_schedulers: it cannot be continued"),
        ("state_dict", "holds no state dict: is it the right file?"),
    ],
)
def test_a_checkpoint_with_a_part_missing_is_one_sentence(
    sam: Sam, tmp_path: Path, absent: str, said: str, folder: bool
) -> None:
    run = RunFiles(tmp_path)
    path = deepspeed_folder(run.last, sam) / "checkpoint" / MODEL_STATES if folder else run.last
    run.checkpoints.mkdir(exist_ok=True)
    content = training_checkpoint(sam)
    del content[absent]
    if folder:
        content["module"] = content.pop("state_dict", None)
    torch.save(content, path)
    if folder and absent in ("optimizer_states", "lr_schedulers"):  # DeepSpeed has places of its own for them
        assert checkpoint.recorded(run.last).step == 5
        return
    with pytest.raises(UserError) as refusal:
        checkpoint.newest(tmp_path)
    assert f"no checkpoint of {tmp_path} can be read ({run.last} {said})" in str(refusal.value)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(sam, path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        checkpoint.save(sam, path, provenance={"cannot be pickled": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_lightning_file_gives_the_student_only(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(training_checkpoint(sam), path)
    assert same(sam, checkpoint.load(path))


def test_deepspeed_folder_without_zero(sam: Sam, tmp_path: Path) -> None:
    assert same(sam, checkpoint.load(deepspeed_folder(tmp_path / "last.ckpt", sam)))


WRITE_ZERO = """
import os, sys
os.environ.update(DS_ACCELERATOR="cpu", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
import torch, deepspeed
from frisket import checkpoint
from frisket.weights.deepspeed import MODEL_STATES
folder, weights = sys.argv[1:]
deepspeed.ops.__compatible_ops__ = {}  # nothing is compiled
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}.rendezvous", rank=0, world_size=1)
module = torch.nn.Module()
module.sam = checkpoint.load(weights)
module.projection = torch.nn.Linear(3, 3)
module.sam.prompt_encoder.requires_grad_(False)
trained = [p for p in module.parameters() if p.requires_grad]
engine, *_ = deepspeed.initialize(model=module, model_parameters=trained, optimizer=torch.optim.AdamW(trained), config={
    "train_batch_size": 1, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True})
frisket = {"name": module.sam.name, "changes": module.sam.changes}
engine.save_checkpoint(folder, tag="checkpoint", client_state={"frisket": frisket, "global_step": 7})
"""


@pytest.mark.slow
def test_zero_folder_of_deepspeed_itself(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("deepspeed", reason="needs DeepSpeed: pip install -c constraints.txt -e '.[dev]'")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    folder, weights = tmp_path / "last.ckpt", tmp_path / "model.pt"
    checkpoint.save(sam, weights)
    command = [sys.executable, "-c", WRITE_ZERO, str(folder), str(weights)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((folder / "checkpoint").glob("*_optim_states.pt"))
    assert same(sam, checkpoint.load(folder))  # by weights-only reading, though DeepSpeed's parts hold its own classes

    (part,) = (folder / "checkpoint").glob("*_optim_states.pt")
    content = torch.load(part, weights_only=False)
    torch.save(content | {"harm": Harmful()}, part)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"_optim_states\.pt: posix\.mkdir.*set trust=true"):
        checkpoint.load(folder)
    assert not (tmp_path / "harm").exists()
    assert same(sam, checkpoint.load(folder, trust=True))
    assert (tmp_path / "harm").exists()  # that is what trusting means


def test_zero_folder_without_deepspeed_says_what_to_install(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = deepspeed_folder(tmp_path / "last.ckpt", sam)
    torch.save({}, folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    for name in {"deepspeed", *(name for name in sys.modules if name.startswith("deepspeed."))}:
        monkeypatch.setitem(sys.modules, name, None)  # Python's way to say "not installed"
    with pytest.raises(UserError, match=r"pip install 'frisket\[deepspeed\]'"):
        checkpoint.load(folder)


def meta_file(path: Path, name: str, **other: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """A .pth with the keys and shapes of `name`, each tensor one repeated value, so that the file stays small."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build(name).state_dict().items()}
    state = {key: torch.tensor([float(i)]).expand(shape) for i, (key, shape) in enumerate(shapes.items())}
    state = {key: value for key, value in {**state, **other}.items() if value is not None}
    torch.save(state, path)
    return state


def test_public_file_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .pth with Meta's keys is found by name and recognised by its layout."""
    path = tmp_path / "sam_vit_b_01ec64.pth"
    state = meta_file(path, "sam_vit_b")
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    by_name = checkpoint.load("sam_vit_b")
    assert all(torch.equal(value, state[key]) for key, value in by_name.state_dict().items())
    assert by_name.pixel_mean.flatten().tolist() == pytest.approx([123.675, 116.28, 103.53])
    assert checkpoint.load(path).name == "sam_vit_b"

    # The same file under ViT-L's name is refused.
    path.rename(tmp_path / "sam_vit_l_0b3195.pth")
    with pytest.raises(UserError, match="holds 'sam_vit_b', not 'sam_vit_l'"):
        checkpoint.load("sam_vit_l")


def test_wrong_public_file_is_refused_with_the_first_differences(tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    wrong = {
        "image_encoder.pos_embed": None,
        "image_encoder.extra": torch.zeros(1),
        "mask_decoder.iou_token.weight": torch.zeros(2, 256),
    }
    meta_file(path, "sam_vit_b", **wrong)
    with pytest.raises(UserError) as refusal:
        checkpoint.load(path)
    text = str(refusal.value)
    assert "the likest is 'sam_vit_b'" in text
    assert "missing: image_encoder.pos_embed" in text
    assert "unexpected: image_encoder.extra" in text
    assert "shape: mask_decoder.iou_token.weight 2x256 instead of 1x256" in text


def test_our_file_with_other_keys_is_refused(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(sam, path)
    content = torch.load(path, weights_only=True)
    content["changes"]["depth"] = 2
    torch.save(content, path)
    with pytest.raises(UserError, match=r"missing: image_encoder\.blocks\.1\.norm1\.weight.*and 11 more"):
        checkpoint.load(path)


def test_missing_weights_say_where_and_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FRISKET_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"\$FRISKET_WEIGHTS is not set.*sam_vit_h_4b8939\.pth"):
        checkpoint.load("sam_vit_h")
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    for name, entry in entries().items():
        with pytest.raises(UserError) as missing:
            checkpoint.load(name)
        assert str(tmp_path / (entry.checkpoint or f"{name}.pt")) in str(missing.value)
    with pytest.raises(UserError, match="did you mean 'sam_vit_b'"):
        checkpoint.load("sam_vit_bb")
    with pytest.raises(UserError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path / "nothing" / "model.pt")


def test_our_own_weights_by_name(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(sam, tmp_path / "sam_vit_t.pt")
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    assert same(sam, checkpoint.load("sam_vit_t"))


@pytest.mark.parametrize("keep", [0, 10, 5000, -100])
def test_truncated_files_are_one_sentence(sam: Sam, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.pt"
    checkpoint.save(sam, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.pt"):
        checkpoint.load(path)


def test_other_content_is_one_sentence(sam: Sam, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    for content, said in (
        ([1, 2], "holds a list"),
        ({}, "holds no state dict"),
        ({"model": {}}, "holds no state dict"),
        (
            {"state_dict": {"head.weight": torch.zeros(2)}, "pytorch-lightning_version": "2.5"},
            "is a Lightning checkpoint of another model (1 tensors: head.weight), none of them under 'image_encoder.'",
        ),
        (
            {f"{who}.image_encoder.pos_embed": torch.zeros(1) for who in ("student", "teacher")},
            "holds several models (student., teacher.)",
        ),
        ({"frisket": 1, **record(sam), "form": "int8"}, "form 'int8' and this frisket reads float"),
        (
            {"frisket": 1, **record(sam), "name": "tiny_vit", "plugin": "my_package.tiny"},
            "'tiny_vit', a model of the plug-in my_package.tiny: load that too, plugins=[my_package.tiny]",
        ),
        ({"weight": 3}, "weight is not a tensor"),
        ({"frisket": 2}, "format 2"),
        ({"frisket": {"name": "sam_vit_x", "changes": {}}, "state_dict": {"sam.a": torch.zeros(1)}}, "sam_vit_x"),
        ({"frisket": record(sam), "state_dict": {"teacher.a": torch.zeros(1)}}, "no 'sam.*' weights"),
    ):
        torch.save(content, path)
        with pytest.raises(UserError) as refusal:
            checkpoint.load(path)
        assert said in str(refusal.value)
    path.write_text("no checkpoint at all")
    with pytest.raises(UserError, match=r"x\.pt"):
        checkpoint.load(path)


class Harmful:
    """Unpickling this would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm",)


def test_code_in_a_file_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"holds posix\.mkdir, which is more than weights"):
        checkpoint.load(tmp_path / "evil.pth")
    assert not (tmp_path / "harm").exists()


def test_deepspeeds_parts_are_read_weights_only_unless_they_are_trusted(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed itself asks torch.load for everything, as the call here does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    folder = deepspeed_folder(tmp_path / "last.ckpt", sam)
    part = folder / "checkpoint" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save({"state": torch.zeros(3), "harm": Harmful()}, part)
    with pytest.raises(UserError, match=r"_optim_states\.pt: posix\.mkdir.*set trust=true"), guarded(folder):
        torch.load(part, weights_only=False)
    assert not (tmp_path / "harm").exists()
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"  # and it is given back
    with guarded(folder, trust=True):
        torch.load(part, weights_only=False)
    assert (tmp_path / "harm").exists()

    # the part that names the model is never read otherwise, trusted or not
    (tmp_path / "harm").rmdir()
    states = torch.load(folder / "checkpoint" / MODEL_STATES, weights_only=True)
    torch.save(states | {"harm": Harmful()}, folder / "checkpoint" / MODEL_STATES)
    with pytest.raises(UserError, match=r"mp_rank_00_model_states\.pt holds posix\.mkdir, which is more than weights"):
        checkpoint.recorded(folder)
    assert not (tmp_path / "harm").exists()


def touch(path: Path, seconds: int) -> None:
    os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


def test_newest_goes_by_time(sam: Sam, tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "nowhere") is None
    run = RunFiles(tmp_path)
    run.checkpoints.mkdir()
    for path, step, seconds in ((run.last, 10, 100), (run.preempt, 30, 100), (run.previous, 20, 50)):
        torch.save(training_checkpoint(sam, step), path)
        touch(path, seconds)
    assert checkpoint.newest(tmp_path) == checkpoint.recorded(run.preempt)  # of one time: what a run writes later
    touch(run.last, 300)
    found = checkpoint.newest(tmp_path)
    assert found and (found.path, found.step, found.name, found.changes) == (run.last, 10, sam.name, sam.changes)
    assert found.shapes["projections.0.weight"] == (4, 4)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def dangle(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.ckpt")


def flip(path: Path) -> None:
    """One bit in the middle, where the tensors are."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, empty, dangle, flip])
def test_a_damaged_newest_falls_back_with_a_warning_and_nothing_readable_is_refused(
    sam: Sam, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    run = RunFiles(tmp_path)
    run.checkpoints.mkdir()
    for path, step in ((run.previous, 3), (run.last, 6)):
        torch.save(training_checkpoint(sam, step), path)
        touch(path, 100 + step)
    damage(run.last)
    found = checkpoint.newest(tmp_path)
    assert found and (found.path, found.step) == (run.previous, 3)
    said = capsys.readouterr().err
    assert said.startswith(f"frisket: {run.last} ") and f"going on from {run.previous}, step 3" in said
    damage(run.previous)
    with pytest.raises(UserError, match=r"no checkpoint of .* can be read .*\.ckpt .*; .*\.ckpt .*: restore one"):
        checkpoint.newest(tmp_path)


def test_a_damaged_part_of_a_deepspeed_folder_is_seen(sam: Sam, tmp_path: Path) -> None:
    folder = deepspeed_folder(tmp_path / "last.ckpt", sam)
    states = torch.load(folder / "checkpoint" / MODEL_STATES, weights_only=True)
    torch.save(states | {"dp_world_size": 2}, folder / "checkpoint" / MODEL_STATES)
    parts = [folder / "checkpoint" / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in range(2)]
    for part in parts:
        torch.save({"state": torch.randn(2000)}, part)
    assert checkpoint.recorded(folder).step == 5
    whole = parts[1].read_bytes()
    for damage in (cut, empty, flip, Path.unlink):
        damage(parts[1])
        with pytest.raises(UserError, match=r"zero_pp_rank_1.*damaged|1 of the 2 parts"):
            checkpoint.recorded(folder)
        parts[1].write_bytes(whole)
    for text in ("", "gone", "\0"):
        (folder / "latest").write_text(text)
        with pytest.raises(UserError, match="unfinished DeepSpeed checkpoint"):
            checkpoint.recorded(folder)


def test_run_folder_is_its_model_or_its_newest_checkpoint(sam: Sam, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train it first"):
        checkpoint.load(tmp_path)
    older, newer = build("sam_vit_t", **SMALL), sam
    (tmp_path / "checkpoints").mkdir()
    last, model = tmp_path / "checkpoints/last.ckpt", tmp_path / "model.pt"
    torch.save(training_checkpoint(newer), last)
    checkpoint.save(older, model)
    touch(last, 200)
    touch(model, 100)
    assert same(newer, checkpoint.load(tmp_path))
    touch(model, 300)
    assert same(older, checkpoint.load(tmp_path))
    model.unlink()
    last.unlink()
    deepspeed_folder(last, newer)
    assert same(newer, checkpoint.load(str(tmp_path)))


def test_loading_leaves_the_random_numbers_alone(sam: Sam, tmp_path: Path) -> None:
    checkpoint.save(sam, tmp_path / "model.pt")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    checkpoint.load(tmp_path / "model.pt")
    assert torch.equal(torch.rand(3), expected)


def test_fingerprint_reads_tensors_and_shapes_and_ignores_order() -> None:
    state = nn.Linear(2, 3).state_dict()
    shapes = {"bias": (3,), "weight": (3, 2)}
    assert checkpoint.fingerprint(state) == checkpoint.fingerprint(shapes)
    assert checkpoint.fingerprint({"weight": (2, 3), "bias": (3,)}) != checkpoint.fingerprint(shapes)
    # sha256 of "a \nb 1x2\n": a scalar has an empty dimension string.
    expected = "51da3a0dabc333a1c181c7a8f76472e3d876d39500deda408e9c2da4c00457a1"
    assert checkpoint.fingerprint({"b": (1, 2), "a": ()}) == expected


@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [("module.", ()), ("", ("model",)), ("model.", ("state_dict",)), ("_orig_mod.module.", ("state_dict", "model"))],
)
def test_wrappers_of_other_trainers_are_taken_off(tmp_path: Path, prefix: str, wrap: tuple[str, ...]) -> None:
    content: Any = {prefix + key: value for key, value in build("sam_vit_t", **SMALL).state_dict().items()}
    for key in wrap:
        content = {key: content, "epoch": 3}
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="fits 'sam_vit_b' with image_size=64, width=16, depth=1, heads=2, global_bl"):
        checkpoint.load(tmp_path / "x.pt")


def test_a_wrapped_public_file_loads(tmp_path: Path) -> None:
    state = meta_file(tmp_path / "plain.pth", "sam_vit_b")
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 1}, tmp_path / "x.pth")
    loaded = checkpoint.load(tmp_path / "x.pth")
    assert loaded.name == "sam_vit_b"
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_students_state_dict_says_which_settings_would_fit(tmp_path: Path) -> None:
    path = tmp_path / "student.pth"
    with torch.random.fork_rng():
        sam = build("lightening", image_size=128, width=48, depth=2, heads=3, mlp_ratio=2.0)
    torch.save(sam.state_dict(), path)
    with pytest.raises(UserError) as refusal:
        checkpoint.load(path)
    said = str(refusal.value)
    assert (
        "fits 'lightening' with image_size=128, width=48, depth=2, mlp_ratio=2.0, and perhaps others of heads" in said
    )
    # and so it is: what the sentence says can be loaded
    again = build("lightening", image_size=128, width=48, depth=2, mlp_ratio=2.0)
    again.load_state_dict(torch.load(path, weights_only=True))


def test_a_public_file_goes_by_its_own_name(sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"looked for .*sam_vit_b_01ec64\.pth.*download Meta's"):
        checkpoint.load("sam_vit_b_01ec64.pth")
    for name in ("sam_vit_t.pt", "mine.pt"):
        checkpoint.save(sam, tmp_path / name)
        assert same(sam, checkpoint.load(name))
    with pytest.raises(UserError, match="there is no checkpoint at vit_b: did you mean 'sam_vit_b'"):
        checkpoint.load("vit_b")


def test_a_flipped_bit_is_refused_in_every_form(sam: Sam, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("model.pt", "last.ckpt", "x.pth")]
    checkpoint.save(sam, paths[0])
    torch.save(training_checkpoint(sam), paths[1])
    torch.save(sam.state_dict(), paths[2])
    folder = deepspeed_folder(tmp_path / "deep.ckpt", sam)
    for path, loaded in zip([*paths, folder / "checkpoint" / MODEL_STATES], [*paths, folder]):
        flip(path)
        with pytest.raises(UserError, match=r"is damaged: .* has not the checksum"):
            checkpoint.load(loaded)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(sam: Sam, tmp_path: Path, wrong: float) -> None:
    with torch.no_grad():
        sam.mask_decoder.iou_token.weight[0, 3] = wrong
    checkpoint.save(sam, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"NaN or infinity in mask_decoder\.iou_token\.weight: its training diverged"):
        checkpoint.load(tmp_path / "model.pt")


def test_a_plug_ins_model_remembers_its_module(tmp_path: Path) -> None:
    plugins.load(["plugged"])
    sam = build("pyramid", image_size=64, width=4)
    checkpoint.save(sam, tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["plugin"] == "plugged"
    assert same(sam, checkpoint.load(tmp_path / "model.pt"))
    code = f"from frisket import checkpoint; checkpoint.load({str(tmp_path / 'model.pt')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "'pyramid', a model of the plug-in plugged: load that too, plugins=[plugged]" in done.stderr
