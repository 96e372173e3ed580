"""The table of a study of two ways to segment everything, from CSV files as the judges write them."""

from pathlib import Path

import pytest

from frisket.study.collect import finish, read, summary, table
from frisket.study.plan import Plan, StudyConfig, plan

MASKS = "key,object,box,click1,other_box\n{key}0,0,{value},0.5,0.25\n{key}1,0,{value},0.5,0.25\n"


def judged(tmp_path: Path, limit: int = 2, seeds: tuple[int, ...] = (0,)) -> Plan:
    """Two arms, all judged; of arm a, the second way is worse in the first photograph, which has three objects."""
    config = StudyConfig(
        out=str(tmp_path),
        seeds=list(seeds),
        arms={"a": {"train": "train_lite"}, "b": {"train": "train_lite"}},
        everything={"grid": {"limit": 2}, "few": {"limit": limit}},
    )
    laid = plan(config, "s")
    for step in laid.cells():
        for folder in laid.evaluations(step):
            (step.folder / folder).mkdir(parents=True)
        (step.folder / "eval" / "masks_x.csv").write_text(
            MASKS.format(key="p", value=0.75 if step.name == "a" else 0.5)
        )
        (step.folder / "eval" / "per_image.csv").write_text("key,score\np0,1\np1,1\n")
        for way, first, then in (("grid", 0.8, 0.6), ("few", 0.4, 0.5)):
            rows = [f"p0,3,{first},0.5", f"p1,1,{then},0.5"][: limit if way == "few" else 2]
            (step.folder / f"everything_{way}" / "per_image.csv").write_text(
                "\n".join(["key,objects,ar1000,miou", *rows])
            )
        (step.folder / "metrics.csv").write_text("step,train/loss\n1,0.5\n")
    return laid


def study(tmp_path: Path, limit: int = 2) -> dict:
    """The summary of one seed."""
    laid = judged(tmp_path, limit)
    return summary({s.name: [read(s.folder, laid.evaluations(s))] for s in laid.cells()}, laid.against)


def test_every_object_counts_and_ways_are_compared(tmp_path: Path) -> None:
    result = study(tmp_path)
    values = result["arms"]["a"]
    assert values["grid/ar1000"]["mean"] == pytest.approx((3 * 0.8 + 0.6) / 4)
    assert values["few/ar1000"]["mean"] == pytest.approx((3 * 0.4 + 0.5) / 4)
    assert values["dependence"]["mean"] == 0.5 and "neck_error" not in values  # no teacher was named
    assert set(result["pairs"]) == {"b-a", "a/few-a/grid", "b/few-b/grid"}
    assert result["pairs"]["a/few-a/grid"]["ar1000"]["difference"] == pytest.approx(-0.325)
    assert result["pairs"]["a/few-a/grid"]["ar1000"]["low"] == pytest.approx(-0.4)  # the first photograph, twice
    assert result["pairs"]["b-a"]["box"]["difference"] == -0.25
    text = table(result, "a")
    assert "| a/few - a/grid | -32.5 (-40.0 … -10.0) | no difference |" in text
    assert "neck error" not in text


def test_ways_of_other_photographs_are_not_compared(tmp_path: Path) -> None:
    assert set(study(tmp_path, limit=1)["pairs"]) == {"b-a"}


def test_an_arm_of_which_a_seed_is_missing_is_left_out(tmp_path: Path) -> None:
    """Else its mean of fewer seeds would stand beside the others'."""
    laid = judged(tmp_path, seeds=(0, 1))
    result = finish(laid, laid.cells()[:3])
    assert list(result["arms"]) == ["a"] and len(result["arms"]["a"]["box"]["values"]) == 2
    assert "not finished, and left out: b" in (tmp_path / "study.md").read_text()
