"""The leaderboard page: what may share a table, what is shown, safety of labels, mistakes in one sentence."""

import base64
import html
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade import EVIL, evaluation
from PIL import Image

from frisket.cli.main import main
from frisket.errors import UserError
from frisket.report import report
from frisket.report.markup import Html, Line, breakable, chart, tag, ticks
from frisket.report.published import TABLES
from frisket.report.results import Evaluation, boards, read

Put = Callable[..., Path]


class Tables(HTMLParser):
    """Every table of a page: {caption: rows of cell texts}; and every tag opened, to see that the page is whole."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.caption = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, name: str, attributes: list) -> None:
        if name not in ("meta", "link", "img", "line", "polyline", "circle"):
            self.open.append(name)
        if name == "caption":
            self.caption = ""
        if name == "tr" and self.caption:
            self.tables.setdefault(self.caption, []).append([])
        if name in ("td", "th") and self.caption:
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, name: str) -> None:
        if name in ("meta", "link", "img", "line", "polyline", "circle"):
            return
        assert self.open.pop() == name
        if name == "table":
            self.caption = ""

    def handle_data(self, text: str) -> None:
        if "caption" in self.open:
            self.caption += text
        elif self.open and self.open[-1] in ("td", "th", "span", "button", "small", "code") and self.caption:
            self.tables[self.caption][-1][-1] += text


def made(*folders: Path) -> tuple[str, dict[str, list[list[str]]]]:
    page = report.page([part for f in folders for part in read(f) if isinstance(part, Evaluation)], [])
    parsed = Tables(page)
    assert not parsed.open  # every tag was closed, in order
    return page, parsed.tables


def row(rows: list[list[str]], label: str) -> list[str]:
    (found,) = [r for r in rows if r[0].startswith(label)]
    return found


# ---------------------------------------------------------------- what stands in one table


def test_same_protocol_and_data_share_a_table_and_nothing_else_does(put: Put) -> None:
    first = put("one", evaluation("miou", {"a": {"box/miou": 0.5}, "b": {"box/miou": 0.75}}))
    same = put("two", evaluation("miou", {"c": {"box/miou": 0.625}}))
    others = [
        put("data", evaluation("miou", {"d": {"box/miou": 0.1}}, data="other/val")),
        put("protocol", evaluation("miou", {"d": {"box/miou": 0.2}}, protocol="otherwise")),
        put("limit", evaluation("miou", {"d": {"box/miou": 0.3}}, settings={"limit": 5})),
        put("task", evaluation("instance", {"d": {"box/miou": 0.4}})),
    ]
    found = boards([part for f in (first, same, *others) for part in read(f) if isinstance(part, Evaluation)])
    assert [[entry.label for entry in board.entries] for board in found] == [
        ["a", "b", "c"],
        ["d"],
        ["d"],
        ["d"],
        ["d"],
    ]


def test_times_of_other_hardware_stand_apart(put: Put) -> None:
    runs = [
        put(name, evaluation("latency", {name: {"encoder/ms": 3.0}}, environment={"gpu": gpu, "cpu": "C"}))
        for name, gpu in (("a", "H200"), ("b", "A40"), ("c", None), ("d", "H200"))
    ]
    found = boards([part for f in runs for part in read(f) if isinstance(part, Evaluation)])
    assert [[entry.label for entry in board.entries] for board in found] == [["a", "d"], ["b"], ["c"]]


def test_presets_of_one_result_are_boards_of_their_own(put: Put) -> None:
    numbers = {"sam/box/miou": 0.5, "sam/masks": 9.0, "edgesam/box/miou": 0.25, "edgesam/masks": 8.0, "images": 3.0}
    several = put("several", evaluation("miou", {"a": numbers}, protocol="sam: x; y; edgesam: z; the set",
                                        settings={"protocol": ["sam", "edgesam"]}))  # fmt: skip
    single = put("single", evaluation("miou", {"b": {"box/miou": 0.75, "images": 3.0}}, protocol="sam: x; y; the set",
                                      settings={"protocol": ["sam"]}))  # fmt: skip
    sam, edgesam = boards([part for f in (several, single) for part in read(f) if isinstance(part, Evaluation)])
    assert (sam.preset, sam.protocol) == ("sam", "sam: x; y; the set")
    assert (edgesam.preset, edgesam.protocol) == ("edgesam", "edgesam: z; the set")
    assert [(e.label, e.numbers["box/miou"]) for e in sam.entries] == [("a", 0.5), ("b", 0.75)]
    assert sam.entries[0].numbers == {"box/miou": 0.5, "masks": 9.0, "images": 3.0}


COCO_RUN = {
    "data": "coco/instances_val2017.json",
    "protocol": "edgesam: x; COCO",
    "settings": {"protocol": ["edgesam"]},
}


@pytest.mark.parametrize(
    ("changes", "joins"),
    [
        ({}, True),
        ({"settings": {"protocol": ["sam"]}, "protocol": "sam: x; COCO"}, False),
        ({"settings": {"protocol": ["edgesam"], "limit": 4952}}, False),
        ({"data": "coco/instances_train2017.json"}, False),
        ({"images": 100.0}, False),
    ],
)
def test_published_numbers_join_only_the_same_protocol_and_whole_set(put: Put, changes: dict, joins: bool) -> None:
    images = changes.pop("images", 4952.0)
    run = put("run", evaluation("miou", {"mine": {"box/miou": 0.7, "images": images}}, **(COCO_RUN | changes)))
    _, tables = made(run)
    (mine,) = [
        rows for caption, rows in tables.items() if any(r[0] == "mine" for r in rows) and caption.startswith("Boxes")
    ]
    names = [r[0] for r in mine[2:]]
    assert any("published" in name for name in names) == joins
    if joins:
        assert row(mine, "MobileSAM")[0] == "MobileSAMpublishedEdgeSAM, arXiv 2312.06660"
        assert row(mine, "MobileSAM")[3:] == ["74.4", "–"]  # ours has no click column to put 50.9 in
    else:
        assert row(tables["Published, Boxes and clicks: COCO val2017, EdgeSAM, arXiv 2312.06660"], "MobileSAM")[1:] == [
            "74.4",
            "50.9",
        ]


def test_every_published_table_is_whole_and_none_is_lost(put: Put) -> None:
    page, tables = made(put("run", evaluation("miou", {"a": {"box/miou": 0.5}})))
    shown = {caption: rows for caption, rows in tables.items() if caption.startswith("Published")}
    assert sum(len(printed.rows) for printed in TABLES) == page.count('<tr><th scope="row"') - 3  # 3: ours, thrice
    evit = [printed for printed in TABLES if printed.preset == "evit" and printed.data == "COCO val2017"]
    assert evit[0].rows["EfficientViT-SAM-XL1"]["click1/miou_l"] == pytest.approx(0.62132)
    (sam,) = [rows for caption, rows in shown.items() if "BSDS500 test" in caption]
    assert [r[1:] for r in sam if r[0] == "SAM ViT-H"] == [[".768", ".786", ".794", ".928"]]
    assert all(printed.source and printed.protocol for printed in TABLES)


# ---------------------------------------------------------------- what is shown


def test_numbers_are_shown_as_people_quote_them(put: Put) -> None:
    miou = put("miou", evaluation("miou", {"a": {"box/miou": 0.512345, "box/miou_s": float("nan"), "masks": 1234.0,
                                                 "some_new/thing": 0.25}}))  # fmt: skip
    edges = put("edges", evaluation("edges", {"a": {"ods": 0.7684, "ap": 0.5}}))
    _, tables = made(miou, edges)
    rows = tables["Boxes and clicks: Boxes and clicks, sets/val"]
    assert rows[1] == ["Model", "input px", "params, M", "mIoU %", "thing", "masks"]
    assert row(rows, "a") == ["a", "128", "6.65", "51.2", "0.25", "1,234"]
    assert row(tables["Edges: Edges, sets/val"], "a")[3:] == ["0.768", "0.500"]
    assert row(tables["All numbers of miou"], "some_new/thing") == ["some_new/thing", "0.25"]


def test_a_time_shows_its_spread_and_a_failed_check_shows_no_time(put: Put) -> None:
    good = {"encoder/ms": 10.0, "encoder/ms_p5": 9.0, "encoder/ms_p95": 12.5, "encoder/n": 200.0, "agreement/ok": 1.0,
            "macs/encoder_g": 486.04, "samples/encoder": [9.0, 10.0, 12.5]}  # fmt: skip
    bad = {"encoder/error": "outputs differ from eager fp32", "agreement/ok": 0.0, "agreement/miou": 0.5}
    page, tables = made(put("run", evaluation("latency", {"good": good, "bad": bad})))
    times = tables["Cost: time, memory, MACs: Some CPU, None thread(s), sets/val"]
    assert row(times, "good")[3] == "10" + "9–12.5, n 200"
    assert row(times, "bad")[3] == "–"
    assert "masks differ from fp32" in row(times, "bad")[0]
    assert 'title="outputs differ from eager fp32"' in page
    assert "samples/encoder" not in page


def test_best_is_marked_in_the_right_direction(put: Put) -> None:
    page, _ = made(put("a", evaluation("miou", {"x": {"box/miou": 0.5}, "y": {"box/miou": 0.75}})),
                   put("b", evaluation("latency", {"x": {"encoder/ms": 5.0}, "y": {"encoder/ms": 7.0}})))  # fmt: skip
    marked = re.findall(r'class="best"><span>([^<]+)</span>', page)
    assert sorted(set(marked)) == ["5", "75.0"]


def test_curves_are_drawn_over_what_they_belong_to(put: Put) -> None:
    clicks = {"click1/miou": 0.5, "curve/miou": [0.5, 0.6, None, 0.7], "curve/miou_s": [0.1, 0.2, 0.3, 0.4]}
    edges = {"ods": 0.5, "curve/threshold": [0.1, 0.5, 0.9], "curve/recall": [0.9, 0.6, 0.2],
             "curve/precision": [0.3, 0.6, 0.9], "curve/f": [0.4, 0.6, 0.3]}  # fmt: skip
    page, _ = made(put("a", evaluation("miou", {"m": clicks})), put("b", evaluation("edges", {"m": edges})))
    assert "m (clicks: value) 1: 50; 2: 60; 4: 70" in page
    assert "m (recall: value) 0.9: 0.3; 0.6: 0.6; 0.2: 0.9" in page
    assert "m (threshold: value) 0.1: 0.4; 0.5: 0.6; 0.9: 0.3" in page
    assert "Curves by size" in page
    assert page.count("<svg") == 4


def test_pictures_and_training_runs_are_inside_the_page(put: Put, trained: Path, tmp_path: Path) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}), ("masks", "best", "worst"))
    (run / "worst.png").write_bytes(b"no picture")
    out = report.write([run, trained], tmp_path / "page.html")
    page = out.read_text()
    Tables(page)
    kinds = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for _, data in kinds]
    assert sizes == [(640, 200), (640, 200), (60, 40)]
    assert "worst.png cannot be read as a picture" in page
    assert "recipe train_sam, step 40, finished, val/box/miou 0.3750" in page
    assert "val/box/miou (step: value) 20: 0.25; 40: 0.375" in page
    assert "optim.lr" in page
    assert "frisket eval configs/eval_miou.yaml &#x27;out=a b&#x27;" in page  # the command, quoted for a shell


def test_the_page_needs_nothing_from_outside(put: Put, trained: Path, tmp_path: Path) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}), ("masks",))
    page = report.write([run, trained], tmp_path / "page.html").read_text()
    loads = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(value.startswith(("data:", "#")) for value in loads)
    assert "url(" not in page and "@import" not in page and "http" not in re.sub(r"http-equiv", "", page)
    assert "default-src &#x27;none&#x27;" in page


def test_a_label_is_text_wherever_it_stands(put: Put, tmp_path: Path) -> None:
    numbers = {"box/miou": 0.5, "curve/miou": [0.1, 0.2], EVIL: 1.0, "words": EVIL}
    told = evaluation("miou", {EVIL: numbers}, protocol=EVIL, data=EVIL, settings={EVIL: EVIL})
    told |= {"task": EVIL, "environment": {"cpu": EVIL, "command": [EVIL]}}
    run = put("evil", told)
    page = report.write([run], tmp_path / "page.html", title=EVIL).read_text()
    Tables(page)
    assert page.count("<script") == page.count("</script>") == 1  # the page's own
    assert "alert(1)" in page
    assert EVIL not in page
    assert html.escape(EVIL) in page


def test_the_overview_joins_a_model_by_its_weights_not_its_name(put: Put) -> None:
    miou = put("miou", evaluation("miou", {"m": {"box/miou": 0.5}, "n": {"box/miou": 0.25}}))
    cost = put("cost", evaluation("latency", {"m": {"end_to_end/ms": 7.0}}))
    other = put("other", evaluation("edges", {"m": {"ods": 0.75}}, weights={"m": "f" * 64}))
    _, tables = made(miou, cost, other)
    rows = tables["Overview: models and headline numbers"][2:]
    assert [r[2:] for r in rows] == [["50.0", "–", "7"], ["25.0", "–", "–"], ["–", "0.750", "–"]]
    assert rows[0][0] != rows[2][0]  # two models called m are told apart


# ---------------------------------------------------------------- markup


def test_markup_escapes_all_that_is_not_markup() -> None:
    assert tag("p", "a < b", [Html("<b>x</b>"), None, "&"], class_='"') == '<p class="&quot;">a &lt; b<b>x</b>&amp;</p>'
    assert tag("td", hidden=True, title=None, data_value=3) == '<td hidden data-value="3"></td>'
    assert tag("img", src="data:,", name="x") == '<img src="data:," name="x"/>'


@pytest.mark.parametrize(
    ("low", "high", "whole", "wanted"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.31, 0.36, False, [0.31, 0.32, 0.33, 0.34, 0.35, 0.36]),
        (1, 3, True, [1, 2, 3]),
        (5, 5, False, [5, 6, 7, 8, 9, 10]),
        (0, 1500, True, [0, 500, 1000, 1500]),
    ],
)
def test_ticks_are_round_and_hold_the_data(low: float, high: float, whole: bool, wanted: list[float]) -> None:
    assert ticks(low, high, whole=whole) == pytest.approx(wanted)


def test_a_chart_leaves_out_what_is_not_finite_and_is_nothing_without_points() -> None:
    nan = float("nan")
    assert chart([Line("a", [1, 2], [nan, nan])], x="x", y="y") == ""
    drawn = chart([Line("a", [1, 2, 3], [0, nan, 1])], x="x", y="y")
    (points,) = re.findall(r'polyline points="([^"]+)"', drawn)
    assert len(points.split()) == 2
    assert "nan" not in drawn


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


def test_a_missing_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "there is no run at" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither eval.json nor metrics.csv" in capsys.readouterr().err
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
    with pytest.raises(UserError, match="holds neither"):
        read(tmp_path / "all" / "empty")


def test_a_label_breaks_at_punctuation_only(put: Put) -> None:
    assert breakable("student+de_co <b") == "student+<wbr/>de_<wbr/>co &lt;b"
    page, tables = made(put("run", evaluation("miou", {"student+decoder": {"box/miou": 0.5}})))
    assert 'data-value="student+decoder"><span class="name">student+<wbr/>decoder</span>' in page
    assert all(row(rows, "student+decoder") for caption, rows in tables.items() if caption.startswith("Overview"))


def test_the_command_writes_the_page(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}))
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(run), f"out={out}", "title=Ours & theirs"]) == 0
    assert f"report: {out}" in capsys.readouterr().out
    assert "<h1>Ours &amp; theirs</h1>" in out.read_text()
    assert main(["report", str(run), "out=page.pdf"]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_results_of_an_older_form_are_shown(put: Put) -> None:
    old = {"protocol": "p", "image_size": 128, "data": "d", "models": {"a": {"box/miou": 0.5, "images": 3.0}}}
    page, _ = made(put("old", old))
    assert "50" in page
    assert json.dumps(old)  # it held no task, settings or environment
