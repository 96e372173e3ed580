"""`frisket export`: quantize, export, the same masks without torch; the gate; mistakes in one sentence."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from smallsam import small

from frisket import checkpoint
from frisket.cli.main import main
from frisket.predict.predictor import Predictor

DOCS = Path(__file__).parents[2] / "docs" / "tinysam.md"
BLOCKED = "import sys; sys.modules.update(dict.fromkeys(('torch', 'frisket', 'onnx', 'lightning')));"
CHECK = ["masks=8", "prompts=4"]


@pytest.fixture(scope="module")
def made(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with float model and quantized one, and the words that export the latter."""
    folder = tmp_path_factory.mktemp("export")
    torch.set_num_threads(1)
    checkpoint.save(small(), folder / "float.pt")
    data = f"data={tiny_shards / 'val'}"
    fast = ["search.candidates=6", "search.rounds=1", "search.rows=64", "calibration=2", "check=3", "gate=0"]
    words = ["quant", f"checkpoint={folder / 'float.pt'}", data, f"out={folder / 'q'}", *fast]
    assert main([*words, "place.accelerator=cpu"]) == 0
    return folder, ["export", f"checkpoint={folder / 'q'}", data, f"out={folder / 'onnx'}", *CHECK]


@pytest.mark.slow
def test_a_photograph_becomes_a_mask_without_torch(
    made: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = made
    assert main([*words, "gate=0.5"]) == 0
    said = capsys.readouterr().out
    assert "cosine" in said and "with the float model over" in said
    out = folder / "onnx"
    assert sorted(path.name for path in out.iterdir()) == ["decoder.onnx", "encoder.onnx", "export.json"]
    about = json.loads((out / "export.json").read_text())
    assert about["cosine"] > 0.999 and about["cosine_quantized"] > 0.99 and about["cosine_float"] > 0.99
    assert 0.5 < about["agreement"] <= 1 and about["masks"] >= 8 and about["side"] == 64
    assert about["encoder"]["bytes"] < 0.5 * about["encoder"]["float_bytes"]  # of a small one; float parts weigh more
    assert about["encoder"]["bytes"] == (out / "encoder.onnx").stat().st_size
    script = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[0]
    assert len(script.strip().splitlines()) <= 30
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[10:40, 20:70] = 200, 80, 40
    photo, box, mask = tmp_path / "photo.png", [20, 10, 70, 40], tmp_path / "mask.png"
    Image.fromarray(pixels).save(photo)
    given = [sys.executable, "-c", f"{BLOCKED}\n{script}", str(out), str(photo), json.dumps(box), str(mask)]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    without = np.asarray(Image.open(mask)) > 0
    predictor = Predictor(checkpoint.load(folder / "q"))
    predictor.set_image(photo)
    expected = predictor.predict(boxes=[box]).masks[0].numpy()
    assert without.shape == expected.shape and expected.sum() > 0
    assert (without & expected).sum() / (without | expected).sum() > 0.95


@pytest.mark.slow
def test_below_the_gate_nothing_is_written(
    made: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*made[1], f"out={tmp_path / 'no'}", "gate=1"]) == 2
    said = capsys.readouterr().err
    assert "agree with the float model's" in said and "nothing is written" in said
    names = re.search(r"quant\.skip=\[(.*?)\]", said)
    assert names and names[1].startswith("'*.patch_embed.*'") and names[1].count(",") == 2 + 5
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_sentence(
    made: tuple[Path, list[str]], tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for more, says in (
        (["checkpoint="], "checkpoint is empty"),
        (["data="], "data is empty"),
        (["data=nowhere"], "nowhere"),
        (["masks=1000"], "the check asks for 1000"),
        ([f"masters={tiny_teacher}"], "is not the model that"),
        (["masters=gone.pt"], "masters=… names it"),
        ([f"out={tiny_teacher.parent}"], "holds other things"),
        ([f"out={tmp_path / 'file' / 'x'}"], "cannot be written"),
        (["side=40"], "is not a multiple of 16"),
        ([f"checkpoint={tmp_path / 'file'}"], "file"),
    ):
        assert main([*made[1], *more]) == 2, more
        said = capsys.readouterr().err
        assert says in said and said.count("\n") == 1
