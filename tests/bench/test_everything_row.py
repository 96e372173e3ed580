"""The everything row: its baseline and ours keep the same masks, and its guards notice when they do not."""

import pytest
import torch

from frisket.bench import everything
from frisket.bench.harness import Setting, ask

CPU = Setting(quick=True, device=torch.device("cpu"))


def test_guards_hold() -> None:
    assert all(ask(guard).ok for guard in everything.filters_row(CPU).guards)


def test_guards_notice_a_mask_too_many_and_a_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    case = everything.filters_row(CPU)
    monkeypatch.setattr(everything, "nms", lambda boxes, scores, iou: scores.argsort(descending=True))
    monkeypatch.setattr(everything, "encode", lambda logits, frame, right=everything.encode: right(logits - 3, frame))
    kept, worst, _ = (ask(guard) for guard in case.guards)
    assert not kept.ok and not worst.ok
