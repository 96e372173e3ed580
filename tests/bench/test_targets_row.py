"""The targets' row: its guard holds, and notices a map that is not the deepest mask's."""

import pytest
import torch

from frisket.bench import targets
from frisket.bench.harness import Setting, ask
from frisket.proposals import Targets

CPU = Setting(quick=True, device=torch.device("cpu"))


def test_the_guard_holds_and_notices_a_moved_map(monkeypatch: pytest.MonkeyPatch) -> None:
    (guard,) = targets.targets_row(CPU).guards
    assert ask(guard).ok

    def moved(*given: torch.Tensor, right=targets.targets) -> Targets:
        heat, ways = right(*given)
        return Targets(heat, ways.roll(1, -1))

    monkeypatch.setattr(targets, "targets", moved)
    assert not ask(guard).ok
