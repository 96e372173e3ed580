"""place.compile: the same losses and names; blocks are really compiled, also behind forward_features."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from toyrun import toy_run

from frisket.cli.main import main
from frisket.engine.compile import compiled
from frisket.engine.rundir import read_csv
from frisket.errors import UserError
from frisket.runfiles import RunFiles


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
def test_a_compiled_run_is_the_same_run(tiny_shards, tmp_path):
    words = ["train", *toy_run(tiny_shards / "train", tmp_path, max_steps=2), "regularize.drop_path=0.2"]
    words += ["place.recompute=true"]
    torch._dynamo.utils.counters.clear()
    assert main([*words, "name=plain"]) == 0
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert main([*words, "name=compiled", "place.compile=true"]) == 0
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    curves = [[float(row["train/loss"]) for row in read_csv(tmp_path / name / "metrics.csv")] for name in
              ("plain", "compiled")]  # fmt: skip
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    states = [torch.load(RunFiles(tmp_path / name).last, weights_only=True)["state_dict"] for name in
              ("plain", "compiled")]  # fmt: skip
    assert states[0].keys() == states[1].keys()


def test_without_a_compiler_it_is_refused(tiny_sam, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler"):
        compiled(SimpleNamespace(sam=tiny_sam), on_cpu=True)
    assert compiled(SimpleNamespace(sam=tiny_sam, teachers=[tiny_sam]), on_cpu=False) == 4
