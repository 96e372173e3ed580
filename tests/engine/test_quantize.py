"""`frisket quant`: a file that evaluates and predicts; going on after a stop; the gate; mistakes in one sentence."""

import csv
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from frisket import checkpoint
from frisket import config as settings
from frisket.cli.main import main
from frisket.engine import quantize, signals
from frisket.engine.quantize import QuantRun, photographs
from frisket.quant.layers import QuantConfig, QuantLinear
from frisket.quant.search import SearchConfig

FAST = ["search.candidates=6", "search.rounds=1", "search.rows=64", "calibration=2", "check=3", "place.accelerator=cpu"]


@pytest.fixture
def words(tiny_teacher: Path, tiny_shards: Path, tmp_path: Path) -> list[str]:
    return ["quant", f"checkpoint={tiny_teacher}", f"data={tiny_shards / 'val'}", f"out={tmp_path / 'q'}", *FAST]


def test_a_quantized_model_is_written_and_taken_like_any_other(
    words: list[str], tiny_teacher: Path, tiny_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "gate=0.5"]) == 0
    said = capsys.readouterr().out
    assert "W8A8" in said and "min left" in said and "costs most" in said
    made = tmp_path / "q"
    about = json.loads((made / "quant.json").read_text())
    assert about["bytes"] < 0.5 * about["float_bytes"] and 0.5 < about["agreement"] <= 1
    table = list(csv.DictReader((made / "sensitivity.csv").open()))
    assert [float(row["agreement"]) for row in table] == sorted(float(row["agreement"]) for row in table)
    assert all(float(row["after"]) <= float(row["before"]) for row in table)
    assert sorted(path.name for path in made.iterdir()) == ["model.safetensors", "quant.json", "sensitivity.csv"]
    assert main(["report", str(made), f"out={tmp_path / 'page.html'}"]) == 0
    page = (tmp_path / "page.html").read_text()
    shown = re.findall(r"<li><code>(.*?)</code> ([\d.]+)</li>", page)
    assert [name.replace("<wbr>", "") for name, _ in shown] == [row["layer"] for row in table]
    assert f"{len(table)} layers: mask IoU" in page and page.count("<polyline") == 1
    capsys.readouterr()
    code = main(
        ["eval", "eval_fidelity", f"data={tiny_shards / 'val'}", f"teacher={tiny_teacher}", f"checkpoint=[{made}]",
         f"out={tmp_path / 'eval'}", "place.workers=0", "place.accelerator=cpu"]
    )  # fmt: skip
    assert code == 0
    numbers = next(iter(json.loads((tmp_path / "eval" / "eval.json").read_text())["models"].values()))
    assert numbers["agreement/box"] > 0.5
    capsys.readouterr()
    assert main(["quant", f"checkpoint={made}", f"data={tiny_shards / 'val'}"]) == 2
    assert "is quantized already" in capsys.readouterr().err
    train = ["train", "recipe=finetune_decoder", f"init_from={made}", f"out={tmp_path}", "data.image_size=64",
             f"data.train={tiny_shards / 'train'}", "place.accelerator=cpu", "log.wandb=off"]  # fmt: skip
    assert main(train) == 2
    assert "is quantized: start from the float model" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on_and_ends_alike(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "gate=0", f"out={tmp_path / 'straight'}"]) == 0
    searched, whole = [], quantize.search

    def dies(layer: QuantLinear, *rest: object) -> dict[str, float]:
        searched.append(layer)
        if len(searched) == 11:
            raise KeyboardInterrupt
        return whole(layer, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantize, "search", dies)
    assert main([*words, "gate=0"]) == 130
    assert not (tmp_path / "q" / "model.safetensors").exists()
    assert main([*words, "gate=0"]) == 0
    total = len(json.loads((tmp_path / "q" / "quant.json").read_text())["layers"])
    assert len(searched) == total + 1  # the ten before the stop were not searched again
    first, second = (checkpoint.load(tmp_path / name).state_dict() for name in ("straight", "q"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(("place", "number", "code"), [("search", signal.SIGTERM, 75), ("agree", signal.SIGINT, 130)])
def test_asked_to_stop_it_leaves_after_that_layer_and_goes_on(
    place: str, number: int, code: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    done, whole = [], getattr(quantize, place)

    def asked_in_the_fifth(*given: Any) -> Any:
        done.append(given)
        if len(done) == 5:
            os.kill(os.getpid(), number)
            while number == signal.SIGINT and not signals.asked():  # a thread looks for Ctrl-C
                time.sleep(0.01)
        return whole(*given)

    monkeypatch.setattr(quantize, place, asked_in_the_fifth)
    assert main([*words, "gate=0"]) == code
    assert len(done) == 5 and not (tmp_path / "q" / "quant.json").exists()
    assert "stopped on request; the same command goes on from there" in capsys.readouterr().out
    assert main([*words, "gate=0"]) == 0
    total = len(json.loads((tmp_path / "q" / "quant.json").read_text())["layers"])
    assert len(done) == total + (place == "agree")  # nothing twice; at the end all layers together


def test_below_the_gate_nothing_is_written(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "quant.weight_bits=2", "quant.activation_bits=2", "quant.conv_bits=2"]
    assert main(words) == 2
    told = capsys.readouterr()
    assert "each layer alone: 8 of" in told.out
    said = told.err
    assert "nothing is written: keep what costs most in float" in said
    skip = said.split('"')[1]  # as it stands it can be typed, and keeps what was float before
    assert skip.startswith("quant.skip=['*.patch_embed.*','*.iou_prediction_head.*'")
    kept = settings.load(QuantRun, [], [skip]).quant.skip
    assert len(kept) == len(QuantConfig().skip) + 5
    assert not (tmp_path / "q" / "model.safetensors").exists()
    searched, whole = [], quantize.search
    monkeypatch.setattr(quantize, "search", lambda *given: searched.append(given) or whole(*given))
    assert main([*words, skip, "gate=0"]) == 0 and searched == []  # what stays is known: the advice costs no search


def test_another_models_result_is_not_lost(words: list[str], tmp_path: Path, tiny_quantized: Path, capsys) -> None:
    """Of other bits, or one that cannot say what it is; and what stands there stands until a new one is whole."""
    told = {"weights": "0", "checkpoint": "runs/a", "settings": {"quant": {"weight_bits": 8, "activation_bits": 8}}}
    (shutil.copytree(tiny_quantized, tmp_path / "q") / "quant.json").write_text(json.dumps(told))
    before = {path: path.read_bytes() for path in sorted((tmp_path / "q").iterdir())}
    assert main([*words, "gate=0", "quant.weight_bits=4"]) == 2
    assert f"out={tmp_path / 'q'} holds W8A8 of runs/a, which would be lost" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in sorted((tmp_path / "q").iterdir())} == before
    (tmp_path / "q" / "quant.json").write_text("{")
    assert main([*words, "gate=0"]) == 2
    assert "holds another result, which would be lost: give another folder" in capsys.readouterr().err


def test_mistakes_are_one_sentence(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "model.pt").write_bytes(b"")
    for more, says in (
        (["calibration=0"], "calibration=0 must be 1 or more"),
        (["quant.weight_bits=1"], "quant.weight_bits=1 must be 2 or more"),
        ([f"out={run}"], "holds a training run"),
        (["quant.parts=[decoder]"], "a Sam has no 'decoder'"),
        (["checkpoint="], "checkpoint is empty"),
        (["data=nowhere"], "nowhere"),
        (["search.candidate=3"], "did you mean 'candidates'"),
        (["out=/proc/x"], "out=/proc/x cannot be written"),
        ([f"out={run / 'model.pt'}"], "cannot be written (Not a directory): give another folder"),
        (["search.low=1.2"], "search.low=1.2 must be less than search.high=1.2"),
    ):
        assert main([*words, *more]) == 2, more
        assert says in capsys.readouterr().err


def test_calibration_and_check_share_no_photograph(tiny_shards: Path, tiny_teacher: Path) -> None:
    config = QuantRun(data=str(tiny_shards / "val"), calibration=2, check=3, search=SearchConfig(prompts=3))
    first, second = photographs(config, checkpoint.load(tiny_teacher))
    keys = [batch.keys[0] for batch in (*first, *second)]
    assert (len(first), len(second)) == (2, 3) and len(set(keys)) == 5
    assert all(0 < len(batch.masks) <= 3 for batch in (*first, *second))
    assert QuantConfig() == config.quant
