"""The journal of an evaluation: rows come back to the last bit, and only to the evaluation that wrote them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from frisket.engine.journal import Journal

KNOWN = {"settings": {"limit": None, "clicks": [1, 3]}, "weights": {"one": "ab"}}


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = {
        "one": {
            "key": "a", "score": 0.1 + 0.2, "none": float("nan"), "iou": {"sam": {"box": torch.rand(3)}},
            "bits": np.arange(6, dtype=np.uint8).reshape(2, 3), "empty": np.zeros((0, 4)), "mean": np.float64(1 / 3),
            "tally": {"all": (np.array([1, 2]), 3)}, "kept": np.array([True, False]),
        }
    }  # fmt: skip
    journal = Journal(tmp_path / "new", KNOWN)
    journal.start({})
    journal.add(4, rows)
    journal.add(2, None)
    back = Journal(tmp_path / "new", KNOWN).read()
    assert list(back) == [4, 2] and back[2] is None
    ours, theirs = rows["one"], back[4]["one"]
    assert list(ours) == list(theirs) and theirs["score"] == 0.1 + 0.2 and np.isnan(theirs["none"])
    assert torch.equal(ours["iou"]["sam"]["box"], theirs["iou"]["sam"]["box"])
    for name in ("bits", "empty", "kept"):
        assert ours[name].dtype == theirs[name].dtype and (ours[name] == theirs[name]).all()
    assert theirs["empty"].shape == (0, 4) and theirs["mean"] == 1 / 3 and theirs["tally"]["all"][1] == 3
    journal.remove()
    assert not list((tmp_path / "new").iterdir())


def test_another_evaluation_or_a_cut_line_is_judged_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path, KNOWN)
    journal.start({})
    for number in range(3):
        journal.add(number, None)
    assert Journal(tmp_path, KNOWN | {"weights": {"one": "cd"}}).read() == {}
    whole = journal.path.read_bytes()
    journal.path.write_bytes(whole[:-2])  # killed while it wrote
    assert list(Journal(tmp_path, KNOWN).read()) == [0, 1]
    lines = whole.split(b"\n")
    journal.path.write_bytes(b"\n".join([lines[0], b'{"x"', *lines[2:]]))
    assert Journal(tmp_path, KNOWN).read() == {}
    journal.path.write_bytes(b"\xff\n[]\n")
    assert Journal(tmp_path, KNOWN).read() == {}


def test_all_ranks_rows_are_read(tmp_path: Path) -> None:
    for rank in range(3):
        journal = Journal(tmp_path, KNOWN, rank)
        journal.start({})
        journal.add(rank, {"one": {"key": str(rank)}})
    assert {n: rows["one"]["key"] for n, rows in Journal(tmp_path, KNOWN, 1).read().items()} == {0: "0", 1: "1", 2: "2"}


def test_a_row_that_would_not_come_back_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"a": 1})
    journal.start({})
    with pytest.raises(TypeError, match="a row holds a object"):
        journal.add(0, {"model": {"key": "x", "thing": object()}})
