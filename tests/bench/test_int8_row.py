"""The int8 rows: both sides are one model, the guards hold, and notice another one."""

import dataclasses
from pathlib import Path

import pytest
import torch

from frisket import checkpoint
from frisket.bench import harness, int8
from frisket.bench.harness import BenchConfig, Case, Row, Setting, ask
from frisket.quant.layers import QuantLinear

CPU = Setting(quick=True, device=torch.device("cpu"))


@pytest.mark.slow
@torch.no_grad()
def test_guards_hold_and_notice_another_weight() -> None:
    case = int8.int8_row(CPU, torch_too=False)
    assert all(ask(guard).ok for guard in case.guards)
    exact, _, sam, *_ = int8.made(True, 0, torch.get_num_threads(), "")
    assert not any(isinstance(part, QuantLinear) for part in exact.modules())
    weight = sam.image_encoder.neck[0].weight
    kept = weight.clone()
    weight.copy_(kept.roll(1, 0))
    assert not ask(case.guards[0]).ok and ask(case.guards[1]).ok
    weight.copy_(kept)
    assert case.baseline()[0].shape == case.ours()[0].shape == (1, 256, 4, 4)
    assert int8.int8_row(CPU, torch_too=True).baseline().shape == (1, 256, 4, 4)


@torch.no_grad()
def test_a_quantized_checkpoint_and_its_float_model_are_measured(tiny_quantized: Path, tiny_teacher: Path) -> None:
    case = int8.int8_row(dataclasses.replace(CPU, checkpoint=str(tiny_quantized)), torch_too=True)
    assert all(ask(guard).ok for guard in case.guards[:2])  # so small a file is mostly graph
    exact, *_, image, _ = int8.made(True, 0, torch.get_num_threads(), str(tiny_quantized))
    assert torch.equal(case.baseline(), checkpoint.load(tiny_teacher).image_encoder(image))
    assert exact.name in case.note


def test_rows_whose_package_is_missing_are_left_out_unless_named(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(setting: Setting) -> Case:
        return Case(lambda: 1, lambda: 1, [])

    rows = [Row("plain", "w", make), Row("other", "w", make, needs="no_such_package")]
    config = BenchConfig(quick=True, out=f"{tmp_path}/b.json")
    assert harness.run(config, rows) == 0
    said = capsys.readouterr().out
    assert "left out, since no_such_package is not installed: other" in said and "\nother " not in said
    config.rows = ["other"]
    assert harness.run(config, rows) == 0 and "\nother " in capsys.readouterr().out
