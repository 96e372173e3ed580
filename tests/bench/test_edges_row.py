"""The edges row: its baseline is the same matching, and its guards notice another one."""

import numpy as np
import pytest
import torch

from frisket.bench import edges
from frisket.bench.harness import Setting, ask
from frisket.kernels.matching import match

CPU = Setting(quick=True, device=torch.device("cpu"))


def test_the_row_holds_and_does_some_work() -> None:
    case = edges.matching_row(CPU)
    assert all(ask(guard).ok for guard in case.guards)
    assert sum(len(pairs) for pairs in case.ours()) == sum(len(pairs) for pairs in case.baseline()) > 50


def test_a_pair_less_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edges, "match", lambda *given: match(*given)[1:])
    case = edges.matching_row(CPU)
    assert not ask(case.guards[0]).ok


def test_a_dearer_matching_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def worse(found: np.ndarray, truth: np.ndarray, reach: float) -> np.ndarray:
        pairs = match(found, truth, reach)
        pairs[:, 1] = np.roll(pairs[:, 1], 1)
        return pairs

    monkeypatch.setattr(edges, "match", worse)
    case = edges.matching_row(CPU)
    assert not ask(case.guards[0]).ok
