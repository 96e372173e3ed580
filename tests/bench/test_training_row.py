"""The train_step row: both loops do the same maths bit for bit, and another one's would be noticed."""

import pytest
import torch

from frisket.bench.harness import Setting
from frisket.bench.training import Bare, a_run

QUICK = Setting(quick=True, device=torch.device("cpu"))


def test_the_bare_loop_and_ours_make_the_same_weights() -> None:
    seconds, difference = a_run(QUICK, 3)
    assert difference == 0 and [len(seconds[side]) for side in ("baseline", "ours")] == [3, 2]


def test_other_maths_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Bare.__init__

    def unclipped(self: Bare, config: object) -> None:
        begin(self, config)
        self.clip = 1e9

    monkeypatch.setattr(Bare, "__init__", unclipped)
    assert a_run(QUICK, 3)[1] > 0
