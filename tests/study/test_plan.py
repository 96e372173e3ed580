"""A study as written: placeholders, shared settings, families, and every mistake as one sentence."""

from pathlib import Path
from typing import Any

import pytest

from frisket.errors import UserError
from frisket.study.plan import StudyConfig, merged, plan


def study(**changes: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "seeds": [0, 1],
        "prepare": {
            "train": {"prep": "prep_synthetic", "count": 3},
            "teacher": {"train": "train_sam", "data": {"train": "@train"}},
        },
        "recipes": {"distill_lightening": {"teacher": "@teacher", "distill": {"neck_floor": 0.1}}},
        "arms": {
            "cascade": {"train": "distill_lightening"},
            "neck": {"train": "distill_lightening", "distill": {"schedule": "neck"}},
            "cascade+decoder": {"train": "finetune_decoder", "after": "cascade"},
        },
        "judge": {"data": "@train"},
    }  # fmt: skip
    return StudyConfig(**(values | changes))


def test_a_study_becomes_cells() -> None:
    laid = plan(study(), "s")
    out = Path("runs/studies/s")
    assert [step.folder for step in laid.prepare] == [out / "train", out / "teacher"]
    assert laid.prepare[1].settings == {"data": {"train": str(out / "train")}}
    assert [(cell.name, cell.seed) for cell in laid.cells()] == [
        ("cascade", 0), ("cascade", 1), ("neck", 0), ("neck", 1), ("cascade+decoder", 0), ("cascade+decoder", 1),
    ]  # fmt: skip
    neck = laid.arms["neck"][0]
    assert neck.settings == {"teacher": str(out / "teacher"), "distill": {"neck_floor": 0.1, "schedule": "neck"}}
    assert laid.against == "cascade" and laid.judges == {"eval": (["eval_fidelity"], {"data": str(out / "train")})}


def test_what_stands_on_another_runs_after_it_in_one_place() -> None:
    families = [[f"{cell.name}/{cell.seed}" for cell in family] for family in plan(study(), "s").families()]
    assert families == [["cascade/0", "cascade+decoder/0"], ["cascade/1", "cascade+decoder/1"], ["neck/0"], ["neck/1"]]


def test_null_leaves_an_arm_or_a_preparation_out_and_data_come_first() -> None:
    """As a second YAML does it, whose own data stand behind the teacher of the first."""
    photographs = {"prep": "prep_bsds500", "split": "train"}
    prepare = {"train": None, "teacher": {"train": "train_sam", "data": {"train": "@photos"}}, "photos": photographs}
    cascade = {"train": "distill_lightening"}
    laid = plan(study(prepare=prepare, arms={"neck": None, "cascade": cascade}, judge={"data": "@photos"}), "s")
    assert [step.name for step in laid.prepare] == ["photos", "teacher"] and list(laid.arms) == ["cascade"]
    with pytest.raises(UserError, match="against=neck is no arm"):
        plan(study(arms={"neck": None, "cascade": cascade}, against="neck"), "s")


def test_merged_leaves_its_arguments_alone() -> None:
    first = {"a": {"b": 1, "c": 2}, "d": 3}
    assert merged(first, {"a": {"b": 9}, "e": 4}) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert first == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"arms": {}}, "no arms"),
        ({"seeds": [0, 0]}, "different numbers"),
        ({"seeds": [-1]}, "0 or more"),
        ({"against": "cascad"}, "did you mean 'cascade'"),
        ({"arms": {"a/b": {"train": "x"}}}, "no name of a folder"),
        ({"arms": {"train": {"train": "x"}}}, "prepared and an arm"),
        ({"arms": {"a": {"train": "x", "after": "b"}, "b": {"train": "x"}}}, "written above it"),
        ({"arms": {"a": {"prep": "x"}}}, "must say one of train: YAML"),
        ({"arms": {"a": {"quantize": "x"}}}, "arms.a: quantize what"),
        ({"arms": {"a": "x"}}, "must be a mapping"),
        ({"prepare": {"a": 3}}, "prepare.a must be a mapping"),
        ({"prepare": {"a": {"train": "x", "prep": "y"}}}, "must say one of"),
        ({"judge": {"data": "@val"}}, "nothing prepared before it"),
        ({"prepare": {"a": {"prep": "x", "y": "@b"}, "b": {"prep": "x"}}, "arms": {"z": {"train": "x"}}}, "@b is no"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan(study(**({"judge": {}} | changes)), "s")
