"""Which results share a table, which join a published one, and what a damaged file says."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade import BSDS, COCO, LVIS, evaluation, old

from frisket import config as settings
from frisket.cli.main import main
from frisket.errors import UserError
from frisket.everything import edges, grid
from frisket.everything.strategy import describe
from frisket.report import published
from frisket.report.results import Board, Evaluation, boards, read

Put = Callable[..., Path]


def boards_of(*folders: Path, detectors: dict[str, str] | None = None) -> list[Board]:
    parts = [part for folder in folders for part in read(folder)]
    return boards([part for part in parts if isinstance(part, Evaluation)], detectors or {})


def sources(board: Board) -> list[str]:
    return [table.source for table in board.published]


# ---------------------------------------------------------------- what stands in one table


def test_the_teachers_own_scores_stand_beside_its_students(put: Put) -> None:
    numbers = {"box/miou": 0.5, "teacher/box/miou": 0.75, "agreement/box": 0.9}
    (board,) = boards_of(put("one", evaluation("fidelity", {"a": numbers})))
    assert [entry.label for entry in board.entries] == ["a"] and board.entries[0].numbers == numbers


def test_same_protocol_and_data_share_a_table_and_nothing_else_does(put: Put) -> None:
    first = put("one", evaluation("miou", {"a": {"box/miou": 0.5}, "b": {"box/miou": 0.75}}))
    same = put("two", evaluation("miou", {"c": {"box/miou": 0.625}}, data="elsewhere/but/the/same"))
    others = [
        put("data", evaluation("miou", {"d": {"box/miou": 0.1}}, dataset=COCO)),
        put("limit", evaluation("miou", {"d": {"box/miou": 0.1}}, dataset=COCO | {"images": 5})),
        put("digest", evaluation("miou", {"d": {"box/miou": 0.1}}, dataset=COCO | {"digest": "0" * 64})),
        put("protocol", evaluation("miou", {"d": {"box/miou": 0.2}}, arguments={"seed": 1})),
        put("strategy", evaluation("miou", {"d": {"box/miou": 0.2}}, strategy={"name": "grid", "arguments": {}})),
        put("task", evaluation("instance", {"d": {"box/miou": 0.4}})),
    ]
    labels = [[entry.label for entry in board.entries] for board in boards_of(first, same, *others)]
    assert labels == [["a", "b", "c"], *[["d"]] * 6]


def test_times_of_other_hardware_stand_apart(put: Put) -> None:
    runs = [
        put(name, evaluation("latency", {name: {"encoder/ms": 3.0}}, environment={"gpu": gpu, "cpu": "C"}))
        for name, gpu in (("a", "H200"), ("b", "A40"), ("c", None), ("d", "H200"))
    ]
    assert [[entry.label for entry in board.entries] for board in boards_of(*runs)] == [["a", "d"], ["b"], ["c"]]


def test_protocols_of_one_result_are_boards_of_their_own(put: Put) -> None:
    numbers = {"sam/box/miou": 0.5, "sam/masks": 9.0, "edgesam/box/miou": 0.25, "edgesam/masks": 8.0, "images": 3.0}
    report = evaluation("miou", {"a": numbers}, arguments={"protocols": ["sam", "edgesam"], "clicks": [1, 3]})
    report["protocol"]["sentence"] = "sam: x; y; edgesam: z; the set"
    alone = evaluation(
        "miou", {"b": {"box/miou": 0.75, "images": 3.0}}, arguments={"protocols": ["sam"], "clicks": [1]}
    )
    sam, edgesam = boards_of(put("several", report), put("alone", alone))
    assert (sam.preset, sam.sentence) == ("sam", "x; y")
    assert (edgesam.preset, edgesam.sentence) == ("edgesam", "z; the set")
    assert [(e.label, e.numbers["box/miou"]) for e in sam.entries] == [("a", 0.5), ("b", 0.75)]
    assert sam.entries[0].numbers == {"box/miou": 0.5, "masks": 9.0, "images": 3.0}


# ---------------------------------------------------------------- what joins a published table

EVERYTHING = settings.peek(["configs/eval_everything.yaml"], [], "everything")  # the shipped one is SAM's
SAM = describe(grid.Config(**EVERYTHING))
GRID = SAM["arguments"]
TRUTH = {"rules": "coco", "boxes": "truth", "detections": None, "output": "multimask", "refine": False}


@pytest.mark.parametrize(
    ("arguments", "dataset", "joins"),
    [
        ({"protocols": ["edgesam"]}, COCO, True),
        ({"protocols": ["edgesam"], "clicks": [1, 5], "seed": 3}, COCO | {"digest": "0" * 64, "objects": None}, True),
        ({"protocols": ["sam"]}, COCO, False),
        ({"protocols": ["edgesam"]}, COCO | {"images": 4952}, False),
        ({"protocols": ["edgesam"]}, COCO | {"name": "coco_json", "split": None}, False),
        ({"protocols": ["edgesam"]}, COCO | {"split": "train2017"}, False),
    ],
)
def test_clicks_join_the_same_protocol_on_the_whole_set(put: Put, arguments: dict, dataset: dict, joins: bool) -> None:
    told = {"data": "coco/instances_val2017.json"}
    report = evaluation("miou", {"mine": {"edgesam/box/miou": 0.7}}, arguments=arguments, dataset=dataset, **told)
    if arguments["protocols"] == ["sam"]:
        report["models"] = {"mine": {"sam/box/miou": 0.7}}
    (board,) = boards_of(put("run", report))
    assert sources(board) == (["EdgeSAM, arXiv 2312.06660"] if joins else [])


def test_a_relabelled_file_joins_no_table_whatever_its_name(put: Put) -> None:
    dataset = {"name": "coco_json", "split": None, "images": 5000, "objects": 36335, "digest": "0" * 64}
    told: dict[str, Any] = {"data": "coco/annotations/val2017_relabelled.json", "dataset": dataset}
    miou = evaluation("miou", {"m": {"edgesam/box/miou": 0.7}}, arguments={"protocols": ["edgesam"]}, **told)
    miou["protocol"]["sentence"] = "edgesam: as EdgeSAM measures it on COCO val2017"
    instance = evaluation("instance", {"m": {"ap": 0.5}}, arguments=TRUTH, **told)
    for board in boards_of(put("miou", miou), put("instance", instance)):
        assert sources(board) == []


@pytest.mark.parametrize(
    ("strategy", "joins"),
    [
        (SAM, True),
        ({"name": "hierarchical", "arguments": GRID}, False),
        ({"name": "grid", "arguments": GRID | {"points_per_side": 32}}, False),
        ({"name": "grid", "arguments": GRID | {"pred_iou_thresh": 0.88}}, False),
        ({"name": "grid", "arguments": GRID | {"crop_n_layers": 1}}, False),
        ({"name": "grid", "arguments": {}}, False),
        (None, False),
    ],
)
def test_everything_joins_sams_table_only_with_sams_grid(put: Put, strategy: dict | None, joins: bool) -> None:
    report = evaluation(
        "everything", {"m": {"ar1000": 0.5}}, arguments={"max_masks": 1000}, dataset=LVIS, strategy=strategy
    )
    (board,) = boards_of(put("run", report))
    assert sources(board) == (["Segment Anything, arXiv 2304.02643, appendix D.3"] if joins else [])


@pytest.mark.parametrize(
    ("changes", "joins"),
    [
        ({}, True),
        ({"boxes": "none", "output": None, "refine": None}, False),  # results=FILE scored without a model
        ({"boxes": "none"}, False),
        ({"output": "single"}, False),
        ({"refine": True}, False),
        ({"rules": "lvis"}, False),
        ({"boxes": "detections", "detections": {"name": "vitdet.json", "digest": "d" * 64}}, False),
    ],
)
def test_ap_from_true_boxes_joins_only_when_true_boxes_prompted(put: Put, changes: dict, joins: bool) -> None:
    report = evaluation("instance", {"m": {"ap": 0.5}}, arguments=TRUTH | changes, dataset=COCO)
    (board,) = boards_of(put("run", report))
    assert sources(board) == (["Lite-SAM, arXiv 2407.08965, ECCV 2024 poster"] if joins else [])


def test_ap_from_vitdets_boxes_joins_by_the_digest_of_its_file_not_by_name(put: Put) -> None:
    detections = {"name": "coco_instances_results_vitdet.json", "digest": "d" * 64}
    arguments = TRUTH | {"boxes": "detections", "detections": detections, "output": "single"}
    run = put("run", evaluation("instance", {"m": {"ap": 0.5}}, arguments=arguments, dataset=COCO))
    assert sources(boards_of(run)[0]) == []
    told = sources(boards_of(run, detectors={"d" * 64: "vitdet"})[0])
    assert told == ["TinySAM, README of its repository", "EdgeSAM, README of its repository"]


def test_edges_join_sams_table_only_as_sam_made_them(put: Put) -> None:
    arguments = {"maps": {"sobel": "sobel"}, "thresholds": 99, "max_dist": 0.0075, "blur": True, "nms": True}
    sams = describe(edges.GRID)
    cases = ((arguments, sams, 1), (arguments | {"nms": False}, sams, 0), (arguments, SAM, 0), (arguments, None, 0))
    for number, (told, strategy, tables) in enumerate(cases):
        report = evaluation("edges", {"m": {"ods": 0.7}}, arguments=told, dataset=BSDS, strategy=strategy)
        assert len(boards_of(put(f"run{number}", report))[0].published) == tables


def test_a_result_of_schema_1_has_its_own_table_and_joins_nothing(put: Put) -> None:
    words = {
        "protocol": "edgesam: x; COCO",
        "data": "coco/instances_val2017.json",
        "settings": {"protocol": ["edgesam"]},
    }
    before = put("before", old("miou", {"a": {"box/miou": 0.7, "images": 5000.0}}, **words))
    arguments = {"protocols": ["edgesam"]}
    after = put("after", evaluation("miou", {"b": {"box/miou": 0.7}}, arguments=arguments, dataset=COCO))
    first, second = boards_of(before, after)
    assert [[entry.label for entry in board.entries] for board in (first, second)] == [["a"], ["b"]]
    assert (first.preset, sources(first)) == ("edgesam", [])
    assert sources(second) == ["EdgeSAM, arXiv 2312.06660"]


def test_published_tables_are_whole_and_say_where_they_are_from() -> None:
    tables = published.tables()
    assert (len(tables), sum(len(table.rows) for table in tables)) == (40, 210)
    assert all(table.source and table.protocol and table.data for table in tables)
    (evit,) = [t for t in tables if t.equal and t.data == "COCO val2017" and "EfficientViT" in t.source]
    assert evit.rows["EfficientViT-SAM-XL1"]["click1/miou_l"] == pytest.approx(0.62132)
    assert not any(table.equal for table in tables if table.task == "latency")
    assert all({"protocol", "dataset"} <= table.equal.keys() for table in tables if table.equal)
    with pytest.raises(ValueError, match="does not fit the columns"):
        published.printed(["a", "b"], "model | 1")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "eval.json is no valid JSON .line 1"),
        ("[]", "holds no 'models' with numbers"),
        ('{"models": {}}', "holds no 'models' with numbers"),
        ('{"models": {"a": 1}}', "holds no 'models' with numbers"),
    ],
)
def test_a_damaged_result_is_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    (tmp_path / "eval.json").write_text(content)
    with pytest.raises(UserError, match=sentence):
        read(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"layers": []}', '{"layers": [{"agreement": 1}], "agreement": 1}'])
def test_a_damaged_quantization_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "quant.json").write_text(content)
    with pytest.raises(UserError, match="lacks what `frisket quant` writes"):
        read(tmp_path)


def test_a_missing_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds none of eval.json, metrics.csv, quant.json" in capsys.readouterr().err
    os.mkfifo(tmp_path / "pipe")
    assert main(["report", str(tmp_path / "pipe")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "report needs runs" in capsys.readouterr().err
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    assert main(["report", str(tmp_path)]) == 2
    assert "has no step" in capsys.readouterr().err


def test_a_suites_folder_stands_for_its_sub_folders(put: Put, trained: Path, tmp_path: Path) -> None:
    put("all/miou", evaluation("miou", {"a": {"box/miou": 0.5}}))
    put("all/edges", evaluation("edges", {"a": {"ods": 0.5}}))
    (tmp_path / "all" / "empty").mkdir()
    (tmp_path / "all" / "report.html").write_text("")
    assert [part.name for part in read(tmp_path / "all")] == ["edges", "miou"]
    assert main(["report", str(tmp_path / "all"), f"out={tmp_path / 'page.html'}"]) == 0
    with pytest.raises(UserError, match="holds none of"):
        read(tmp_path / "all" / "empty")


def test_a_bare_file_is_a_result(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({"protocol": "p", "data": "d", "models": {"a": {"box/miou": 0.5, "images": 3.0}}}))
    (board,) = boards_of(path)
    assert (board.task, board.sentence, board.first.data) == ("evaluation", "p", "d")
