"""The clicks row: its guard holds, and notices a click beside the innermost pixel."""

import pytest
import torch

from frisket.bench import clicks
from frisket.bench.harness import Setting, ask

CPU = Setting(quick=True, device=torch.device("cpu"))


def test_the_guard_holds_and_notices_a_moved_click(monkeypatch: pytest.MonkeyPatch) -> None:
    (guard,) = clicks.clicks_row(CPU).guards
    assert ask(guard).ok
    monkeypatch.setattr(clicks, "central_pixels", lambda masks, right=clicks.central_pixels: right(masks) + 1)
    assert not ask(guard).ok
