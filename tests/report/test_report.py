"""The leaderboard page: what is shown and how, what is folded, safety of labels, nothing from outside."""

import base64
import hashlib
import html
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade import COCO, EVIL, evaluation, old
from PIL import Image

from frisket.cli.main import main
from frisket.errors import UserError
from frisket.picture import Panel, comparison
from frisket.report import report
from frisket.report.published import tables as published

Put = Callable[..., Path]
VOID = ("meta", "link", "img", "wbr")


class Tables(HTMLParser):
    """Every table of a page: {caption: rows of cell texts}; those inside <details>; every tag opened and not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.folded: set[str] = set()
        self.open: list[str] = []
        self.caption = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, name: str, attributes: list) -> None:
        if name not in VOID:
            self.open.append(name)
        if name == "caption":
            self.caption = ""
        if name == "tr" and self.caption:
            self.tables.setdefault(self.caption, []).append([])
            if "details" in self.open:
                self.folded.add(self.caption)
        if name in ("td", "th") and self.caption:
            self.tables[self.caption][-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert name in VOID or self.open.pop() == name
        if name == "table":
            self.caption = ""

    def handle_data(self, text: str) -> None:
        if "caption" in self.open:
            self.caption += text
        elif self.open and self.open[-1] in ("td", "th", "span", "button", "small", "code") and self.caption:
            self.tables[self.caption][-1][-1] += text


def made(*folders: Path) -> tuple[str, dict[str, list[list[str]]]]:
    page = report.page(folders)
    parsed = Tables(page)
    assert not parsed.open  # every tag was closed, in order
    return page, parsed.tables


def row(rows: list[list[str]], label: str) -> list[str]:
    (matching,) = [r for r in rows if r[0].startswith(label)]
    return matching


# ---------------------------------------------------------------- what is shown


def test_published_numbers_stand_beside_ours_where_they_may_and_are_folded_where_not(put: Put) -> None:
    numbers = {"edgesam/box/miou": 0.7, "images": 5000.0}
    run = put("run", evaluation("miou", {"mine": numbers}, arguments={"protocols": ["edgesam"]}, dataset=COCO))
    page, tables = made(run)
    mine = tables["Boxes and clicks: edgesam, COCO val2017, 5,000 images"]
    assert mine[1] == ["Model", "mIoU %", "images", "params, M", "input px"]
    assert row(mine, "mine")[1:] == ["70.0", "5,000", "6.65", "128"]
    assert row(mine, "MobileSAM") == ["MobileSAMpublishedEdgeSAM, arXiv 2312.06660", "74.4", "–", "–", "–"]
    printed = {caption for caption in tables if caption.startswith("Published")}
    assert (
        page.count('<caption class="unseen">Published') == len(published()) - 1
    )  # all but the one that stands beside ours
    assert printed <= Tables(page).folded
    assert "<details open" not in page
    (bsds,) = [rows for caption, rows in tables.items() if "BSDS500 test" in caption]
    assert row(bsds, "HED")[1:] == [".788", ".808", ".840", ".923"]  # as printed


def test_numbers_are_shown_as_people_quote_them(put: Put) -> None:
    miou = put("miou", evaluation("miou", {"a": {"box/miou": 0.512345, "box/miou_s": float("nan"), "masks": 1234.0,
                                                 "some_new/thing": 0.25}}))  # fmt: skip
    edges = put("edges", evaluation("edges", {"a": {"ods": 0.7684, "ap": 0.5}}))
    _, tables = made(miou, edges)
    rows = tables["Boxes and clicks: Boxes and clicks, sets/val, 3 images"]
    assert rows[1] == ["Model", "mIoU %", "thing", "masks", "params, M", "input px"]
    assert row(rows, "a") == ["a", "51.2", "0.25", "1,234", "6.65", "128"]
    assert row(tables["Edges: Edges, sets/val, 3 images"], "a")[1:3] == ["0.768", "0.500"]
    assert row(tables["All numbers of miou"], "some_new/thing") == ["some_new/thing", "0.25"]


def test_a_time_shows_its_spread_and_a_failed_check_shows_no_time(put: Put) -> None:
    good = {"encoder/ms": 10.0, "encoder/ms_p5": 9.0, "encoder/ms_p95": 12.5, "encoder/n": 200.0, "agreement/ok": 1.0,
            "macs/encoder_g": 486.04, "samples/encoder": [9.0, 10.0, 12.5]}  # fmt: skip
    bad = {"encoder/error": "outputs differ from eager fp32", "agreement/ok": 0.0, "agreement/miou": 0.5}
    page, tables = made(put("run", evaluation("latency", {"good": good, "bad": bad}, settings={"threads": 1})))
    (times,) = [
        rows for caption, rows in tables.items() if "Some CPU, 1 thread, " in caption and "MACs" not in caption[-9:]
    ]
    assert row(times, "good")[1] == "10" + "9–12.5, n 200"
    assert row(times, "bad")[1] == "–"
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
    assert page.count('<svg viewBox="0 0 380') == 4


def test_pictures_and_training_runs_are_inside_the_page(put: Put, trained: Path, tmp_path: Path) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}), ("masks", "best", "worst"))
    (run / "worst.png").write_bytes(b"no picture")
    page = report.write([run, trained], tmp_path / "page.html").read_text()
    Tables(page)
    kinds = re.findall(r'src="data:image/(\w+);base64,([^"]+)"', page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for _, data in kinds]
    assert sizes == [(640, 200), (640, 200), (60, 40)]
    assert "worst.png cannot be read as a picture" in page
    words = re.sub(r"\s+", " ", page)
    assert "recipe train_sam, step 40, finished, val/box/miou 0.375<" in words
    assert "val/box/miou (step: value) 20: 0.25; 40: 0.375" in page
    assert "optim.lr" in page
    assert "frisket eval configs/eval_miou.yaml &#39;out=a b&#39;" in page  # the command, quoted for a shell


def test_one_validation_point_is_a_dot_with_its_value(trained: Path, tmp_path: Path) -> None:
    (trained / "metrics.csv").write_text("step,train/loss,val/box/miou\n10,2.5,\n20,2,\n20,,0.375\n")
    page = report.write([trained], tmp_path / "page.html").read_text()
    dot = re.search(r'<ul class="points">(.+?)</ul>\s*<p class="muted">(.+?)</p>', page, re.DOTALL)
    assert dot and "<b>0.375</b>" in dot[1] and dot[2] == "one point, at step 20"
    assert page.count('<svg viewBox="0 0 380') == 1  # the loss alone has axes


def test_the_frame_of_a_sheet_lets_the_pages_ground_through(put: Put) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}))
    panels = [Panel(Image.new("RGB", (64, 40), "white"), title="photograph") for _ in range(2)]
    comparison([panels], width=64).save(run / "masks.png")
    page, _ = made(run)
    (data,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    alpha = Image.open(io.BytesIO(base64.b64decode(data))).getchannel("A")
    assert [alpha.getpixel(at) for at in ((2, 2), (76, 30))] == [0, 0]  # the border, the gap between the panels
    assert alpha.getpixel((30, 50)) == 255  # a white photograph stays


def test_the_page_needs_nothing_from_outside(put: Put, trained: Path, tmp_path: Path) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}), ("masks",))
    page = report.write([run, trained], tmp_path / "page.html").read_text()
    loads = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(value.startswith(("data:", "#")) for value in loads)
    assert "url(" not in page and "@import" not in page and "http" not in re.sub(r"http-equiv", "", page)
    assert "default-src 'none'" in page


def test_a_label_is_text_wherever_it_stands(put: Put, tmp_path: Path) -> None:
    numbers = {"box/miou": 0.5, "curve/miou": [0.1, 0.2], EVIL: 1.0, "words": EVIL}
    evil = {"name": EVIL, "arguments": {EVIL: EVIL}, "sentence": EVIL}
    told = evaluation("miou", {EVIL: numbers}, data=EVIL, settings={EVIL: EVIL}, protocol=evil)
    told |= {"task": EVIL, "environment": {"cpu": EVIL, "command": [EVIL]}, "dataset": {"name": EVIL}}
    told |= {"strategy": {"name": EVIL}}
    page = report.write([put("evil", told)], tmp_path / "page.html", title=EVIL).read_text()
    Tables(page)
    assert page.count("<script") == page.count("</script>") == 1  # the page's own
    assert "alert(1)" in page
    assert EVIL not in page
    assert html.escape(EVIL).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_the_overview_joins_a_model_by_its_weights_not_its_name(put: Put) -> None:
    miou = put("miou", evaluation("miou", {"m": {"box/miou": 0.5}, "n": {"box/miou": 0.25}}))
    cost = put("cost", evaluation("latency", {"m": {"end_to_end/ms": 7.0}}))
    other = put("other", evaluation("edges", {"m": {"ods": 0.75}}, weights={"m": "f" * 64}))
    _, tables = made(miou, cost, other)
    rows = tables["Overview: models and headline numbers"][2:]
    assert [r[1:4] for r in rows] == [["50.0", "–", "7"], ["25.0", "–", "–"], ["–", "0.750", "–"]]
    assert rows[0][0] != rows[2][0]  # two models called m are told apart


def test_results_of_an_older_form_are_shown(put: Put) -> None:
    first = {"protocol": "p", "image_size": 128, "data": "d", "models": {"a": {"box/miou": 0.5, "images": 3.0}}}
    second = old("edges", {"b": {"ods": 0.5}}, settings={"split": "val"})
    page, tables = made(put("first", first), put("second", second))
    assert row(tables["Evaluation: Evaluation, d"], "a")[1:3] == ["50.0", "3"]
    assert row(tables["Edges: split val, sets/val"], "b")[1] == "0.500"
    assert "how edges is measured" in page


# ---------------------------------------------------------------- the command


def test_a_label_breaks_at_punctuation_only(put: Put) -> None:
    assert report.breakable("student+de_co <b") == "student+<wbr>de_<wbr>co &lt;b"
    page, tables = made(put("run", evaluation("miou", {"student+decoder": {"box/miou": 0.5}})))
    assert 'data-value="student+decoder"><span class="name">student+<wbr>decoder</span>' in page
    assert all(row(rows, "student+decoder") for caption, rows in tables.items() if caption.startswith("Overview"))


def test_the_command_writes_the_page(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = put("run", evaluation("miou", {"a": {"box/miou": 0.5}}))
    out = tmp_path / "deep" / "page.html"
    assert main(["report", str(run), f"out={out}", "title=Ours & theirs"]) == 0
    assert f"report: {out}" in capsys.readouterr().out
    assert "<h1>Ours &amp; theirs</h1>" in out.read_text()
    assert main(["report", str(run), "out=page.pdf"]) == 2
    assert "must end in .html" in capsys.readouterr().err


def test_a_detectors_file_is_known_by_its_content(put: Put, tmp_path: Path) -> None:
    boxes = tmp_path / "results.json"
    boxes.write_text("[]")
    digest = hashlib.sha256(b"[]").hexdigest()
    arguments = {"rules": "coco", "boxes": "detections", "detections": {"name": "x", "digest": digest}}
    arguments |= {"output": "box_iou", "refine": False}
    run = put("run", evaluation("instance", {"mine": {"ap": 0.5}}, arguments=arguments, dataset=COCO))
    for words, joined in (([], False), ([f"vitdet={boxes}"], True)):
        assert main(["report", str(run), f"out={tmp_path / 'page.html'}", *words]) == 0
        mine = Tables((tmp_path / "page.html").read_text()).tables
        rows = mine["Instance segmentation from boxes: Instance segmentation from boxes, COCO val2017, 5,000 images"]
        assert any(r[0].startswith("EfficientSAM-Ti") for r in rows) == joined
    with pytest.raises(UserError, match="there is no file"):
        report.write([run], tmp_path / "page.html", vitdet=[tmp_path / "none.json"])
