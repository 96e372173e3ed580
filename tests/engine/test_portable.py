"""`frisket export-weights`: bit for bit what was trained, by whatever strategy; Meta's names; mistakes, a sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file
from smallsam import small
from torch import nn

from frisket import checkpoint
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.models.auto_ppn import AutoPPNConfig
from frisket.models.sam import Sam
from frisket.models.zoo import build
from frisket.runfiles import RunFiles

FORMS = ("mine.safetensors", "mine.pth")
TRAINING = {"global_step": 5, "loops": {}, "epoch": 0, "optimizer_states": [], "lr_schedulers": []}


def trained(sam: Sam) -> dict[str, object]:
    state = {f"sam.{key}": value for key, value in sam.state_dict().items()} | {"projections.0.weight": torch.randn(4)}
    return {"frisket": {"name": sam.name, "changes": sam.changes}, "state_dict": state, **TRAINING}


def ddp(sam: Sam, run: RunFiles) -> None:
    run.checkpoints.mkdir()
    torch.save(trained(sam), run.last)


def deepspeed(sam: Sam, run: RunFiles) -> None:
    """Its folder, whose module came under a wrapper's prefix."""
    (run.last / "checkpoint").mkdir(parents=True)
    states = trained(sam)
    states["module"] = {f"module.{key}": value for key, value in states.pop("state_dict").items()}  # type: ignore
    torch.save(states, run.last / "checkpoint" / "mp_rank_00_model_states.pt")
    (run.last / "latest").write_text("checkpoint")


def finished(sam: Sam, run: RunFiles) -> None:
    checkpoint.save(sam, run.model)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("strategy", [ddp, deepspeed, finished])
def test_what_was_trained_comes_back(strategy: Callable, form: str, tiny_sam: Sam, tmp_path: Path) -> None:
    run, out = RunFiles(tmp_path / "run"), tmp_path / "new" / form
    run.path.mkdir()
    strategy(tiny_sam, run)
    assert main(["export-weights", str(run.path), f"out={out}"]) == 0
    loaded = checkpoint.load(out)
    assert same(loaded.state_dict(), tiny_sam.state_dict())
    assert (loaded.name, loaded.changes) == (tiny_sam.name, tiny_sam.changes)
    assert [path.name for path in out.parent.iterdir()] == [form]
    (tmp_path / "plain").touch()
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["sam_vit_t", "tiny_sam"])
def test_pth_is_a_bare_state_dict_under_sams_names(name: str, tmp_path: Path) -> None:
    """Those names are Meta's: tests/models/test_zoo.py. Any module of these keys takes them, ours or not."""
    sam = small(name)
    checkpoint.save(sam, tmp_path / "model.pt")
    assert main(["export-weights", str(tmp_path / "model.pt"), f"out={tmp_path / 'mine.pth'}"]) == 0
    state = torch.load(tmp_path / "mine.pth", weights_only=True)
    other = build(sam.name, **sam.changes)
    assert not same(dict(other.state_dict()), dict(sam.state_dict()))
    other.load_state_dict(state, strict=True)
    assert same(dict(other.state_dict()), dict(state)) and same(dict(state), dict(sam.state_dict()))
    foreign = nn.Module()
    foreign.register_parameter("weight", nn.Parameter(torch.zeros(1)))
    assert foreign.load_state_dict(state, strict=False).missing_keys == ["weight"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_public_model_keeps_metas_layout_to_the_last_key(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRISKET_WEIGHTS", str(tmp_path))
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in build("sam_vit_b").state_dict().items()}
    whole = {key: torch.tensor([float(i)]).expand(shape) for i, (key, shape) in enumerate(shapes.items())}
    torch.save(whole, tmp_path / "sam_vit_b_01ec64.pth")
    assert main(["export-weights", "sam_vit_b", f"out={tmp_path / form}"]) == 0
    if form.endswith(".pth"):
        state = torch.load(tmp_path / form, weights_only=True)
    else:
        with safetensors.safe_open(tmp_path / form, "pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    assert checkpoint.fingerprint(state) == "78d6db84016f15d3a8e09d71d986febbd9744c05e358e2856b726cc3caef2ba7"
    assert all(torch.equal(state[key], whole[key]) for key in whole)


def test_a_quantized_run_goes_into_safetensors_alone(
    tiny_quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    assert main(["export-weights", str(tiny_quantized), f"out={out}"]) == 0
    assert out.read_bytes() == (tiny_quantized / "model.safetensors").read_bytes()
    assert same(checkpoint.load(out).state_dict(), checkpoint.load(tiny_quantized).state_dict())
    capsys.readouterr()
    assert main(["export-weights", str(tiny_quantized), f"out={tmp_path / 'mine.pth'}"]) == 2
    said = capsys.readouterr().err
    assert "is quantized, and .pth holds float weights alone" in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


@pytest.mark.parametrize("form", FORMS)
def test_proposals_come_back_and_are_told(
    form: str, tiny_sam: Sam, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_sam.propose(AutoPPNConfig(width=8))
    checkpoint.save(tiny_sam, tmp_path / "model.pt")
    assert main(["export-weights", str(tmp_path / "model.pt"), f"out={tmp_path / form}"]) == 0
    assert "auto_ppn.* are no part of Segment Anything" in capsys.readouterr().out
    loaded = checkpoint.load(tmp_path / form)
    assert loaded.changes == tiny_sam.changes and same(loaded.state_dict(), tiny_sam.state_dict())


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_one_sentence(form: str, tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / form
    assert main(["export-weights", str(tiny_teacher), f"out={out}"]) == 0
    data = out.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    for broken in (data[:-100], data[:middle], b"", flipped):
        out.write_bytes(broken)
        with pytest.raises(UserError, match=form):
            checkpoint.load(out)


def test_a_bare_safetensors_is_known_by_its_shapes(tiny_sam: Sam, tmp_path: Path) -> None:
    save_file(dict(tiny_sam.state_dict()), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="is no model of the zoo as published, but fits 'sam_vit_t' with"):
        checkpoint.load(tmp_path / "x.safetensors")


def test_mistakes_are_one_sentence_and_write_nothing(
    tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.rglob("*"))
    teacher, good = str(tiny_teacher), f"out={tmp_path / 'mine.pth'}"
    for words, says in (
        ([good], "no run is named"),
        ([teacher], "out=… must end in .safetensors or .pth"),
        ([teacher, f"out={tmp_path / 'mine.onnx'}"], "mine.onnx must end in .safetensors or .pth"),
        ([teacher, f"out={tmp_path / 'mine.PTH'}"], "must end in"),
        ([teacher, f"out={tmp_path / 'folder.pth'}"], "is a folder where the file is to be"),
        ([teacher, f"out={tmp_path / 'file' / 'mine.pth'}"], "cannot be written"),
        ([teacher, teacher, good], "one run at a time"),
        ([str(tmp_path / "gone"), good], "there is no checkpoint at"),
        ([str(tmp_path), good], "holds no model.pt and no training checkpoint"),
        ([teacher, good, "form=pth"], "unknown key 'form'"),
    ):
        assert main(["export-weights", *words]) == 2, words
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1, said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_the_old_file(
    form: str, tiny_teacher: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_disk(1024) / form
    out.write_bytes(b"old")
    assert main(["export-weights", str(tiny_teacher), f"out={out}"]) == 2
    assert f"the disk is full while writing {out}" in capsys.readouterr().err
    assert out.read_bytes() == b"old" and [path.name for path in out.parent.iterdir()] == [form]
