"""`frisket predict` end to end on a tiny model: files, prompts, and one sentence for each mistake."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from frisket import checkpoint
from frisket.cli.main import main
from frisket.everything import grid
from frisket.everything.generator import everything
from frisket.picture import overlay
from frisket.predict.predictor import Predictor


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_box_gives_a_picture_and_coco_rle(photo: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "masks.png"
    boxes = [[10.0, 10.0, 60.0, 50.0], [0.0, 0.0, 90.0, 30.0]]
    code = main(["predict", str(photo), f"checkpoint={tiny_teacher}", f"box={boxes}".replace(" ", ""), f"out={out}"])
    assert code == 0
    assert Image.open(out).size == (90, 60)
    record = json.loads(out.with_suffix(".json").read_text())
    assert record["size"] == [60, 90] and record["model"] == "sam_vit_t"
    assert [mask["prompt"]["box"] for mask in record["masks"]] == boxes
    predictor = Predictor(checkpoint.load(tiny_teacher))
    predictor.set_image(photo)
    wanted = predictor.predict(boxes=boxes)
    for number, mask in enumerate(record["masks"]):
        decoded = coco_mask.decode(mask["segmentation"]).astype(bool)
        assert np.array_equal(decoded, wanted.masks[number].numpy())
        assert mask["area"] == decoded.sum() == coco_mask.area(mask["segmentation"])
        assert mask["bbox"] == coco_mask.toBbox(mask["segmentation"]).tolist() or not decoded.any()
        assert mask["predicted_iou"] == pytest.approx(float(wanted.iou[number]), abs=1e-5)
    assert sorted(p.name for p in out.parent.iterdir()) == ["masks.json", "masks.png"]


def test_points_with_labels_and_a_yaml(photo: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    yaml, out = tmp_path / "p.yaml", tmp_path / "m.png"
    yaml.write_text(f"checkpoint: {tiny_teacher}\nout: {out}\n")
    assert main(["predict", str(yaml), str(photo), "point=[[20,30],[70,10,0]]"]) == 0
    (mask,) = json.loads((tmp_path / "m.json").read_text())["masks"]
    assert mask["prompt"] == {"points": [[20.0, 30.0], [70.0, 10.0]], "labels": [1, 0]}
    assert main(["predict", str(yaml), f"image={photo}", "point=[20,30]", "box=[10,10,60,50]"]) == 0
    (mask,) = json.loads((tmp_path / "m.json").read_text())["masks"]
    assert mask["prompt"] == {"box": [10, 10, 60, 50], "points": [[20, 30]], "labels": [1]}


def test_everything_gives_a_picture_and_sa1bs_records(
    photo: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "all.png"
    limits = ["everything.pred_iou_thresh=0", "everything.stability_score_thresh=0", "everything.points_per_side=4"]
    assert main(["predict", str(photo), "mode=everything", f"checkpoint={tiny_teacher}", f"out={out}", *limits]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    predictor = Predictor(checkpoint.load(tiny_teacher))
    predictor.set_image(photo)
    config = grid.Config(points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0)
    wanted = everything(predictor, config)
    assert len(wanted) > 0 and record["masks"] == wanted.records() and record["asked"] == 48
    assert record["everything"]["arguments"]["points_per_side"] == 4 and record["size"] == [60, 90]
    assert coco_mask.decode(record["masks"][0]["segmentation"]).sum() == record["masks"][0]["area"]
    assert Image.open(out).size == (90, 60)
    said = capsys.readouterr().out
    assert f"{len(wanted)} masks kept of 48" in said
    assert f"picture: {out}   masks (COCO RLE): {out.with_suffix('.json')}" in said
    assert sorted(p.name for p in out.parent.iterdir()) == ["all.json", "all.png"]


def test_everything_found_nothing_is_a_sentence(
    photo: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.png"
    words = ["mode=everything", f"checkpoint={tiny_teacher}", f"out={out}", "everything.pred_iou_thresh=9"]
    assert main(["predict", str(photo), *words, "everything.points_per_side=2"]) == 0
    assert json.loads(out.with_suffix(".json").read_text())["masks"] == []
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(Image.open(photo)))
    said = capsys.readouterr().out
    assert "none of 12 masks passed the filters (predicted IoU > 9, of which the best had" in said
    assert "and stability >= 0.95): lower everything.pred_iou_thresh" in said


def test_where_nothing_passes_the_checkpoints_own_limits_keep_some_and_the_picture_says_so(
    photo: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "all.png"
    words = ["predict", str(photo), "mode=everything", f"checkpoint={tiny_teacher}", f"out={out}"]
    assert main([*words, "everything.points_per_side=6", "everything.stability_score_offset=0.05"]) == 0
    record = json.loads(out.with_suffix(".json").read_text())
    made = record["everything"]["arguments"]
    assert 0 <= made["pred_iou_thresh"] < 0.88 and 0 < len(record["masks"]) <= record["asked"] / 10
    predictor = Predictor(checkpoint.load(tiny_teacher))
    predictor.set_image(photo)
    plain = {"points_per_side": 6, "stability_score_offset": 0.05}
    assert len(everything(predictor, grid.Config(**plain))) == 0
    low = grid.Config(
        **plain, pred_iou_thresh=made["pred_iou_thresh"], stability_score_thresh=made["stability_score_thresh"]
    )
    assert record["masks"] == everything(predictor, low).records()
    assert "this checkpoint's own limits" in record["note"] and record["note"] in capsys.readouterr().out
    assert Image.open(out).width == 90 and Image.open(out).height > 60  # the note stands below the photograph


def test_several_pictures_in_one_start(
    photo: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "photos", tmp_path / "masks"
    (folder / "more").mkdir(parents=True)
    for path in (folder / "b.png", folder / "a.png", folder / "more" / "a.png"):
        path.write_bytes(photo.read_bytes())
    (folder / "broken.jpg").write_text("not a picture")
    (folder / "notes.txt").write_text("not asked for")
    words = [str(folder), str(folder / "more" / "*.png"), str(photo), "box=[10,10,60,50]"]
    assert main(["predict", *words, f"checkpoint={tiny_teacher}", f"out={out}"]) == 2
    names = ("a", "a-2", "b", "photo")
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{n}.{end}" for n in names for end in ("json", "png"))
    records = {name: json.loads((out / f"{name}.json").read_text()) for name in names}
    assert records["a-2"]["image"] == str(folder / "more" / "a.png")
    assert all(record["masks"] == records["photo"]["masks"] for record in records.values())
    told = capsys.readouterr()
    assert "[1/5] " in told.out and "[5/5, " in told.out and " s left] " in told.out
    first, last = told.err.splitlines()
    assert (
        "broken.jpg cannot be read as a picture" in first
        and last == "frisket: 1 of 5 pictures got no answer, see above"
    )


def test_prompts_carry_the_number_of_their_mask(photo: Path, tiny_teacher: Path, tmp_path: Path) -> None:
    """The same pixels as drawn by `overlay` with numbers, which are not those without."""
    out = tmp_path / "m.png"
    boxes = [[10.0, 20.0, 60.0, 50.0], [30.0, 30.0, 90.0, 60.0]]
    words = [f"checkpoint={tiny_teacher}", f"box={boxes}".replace(" ", ""), f"out={out}"]
    assert main(["predict", str(photo), *words]) == 0
    predictor = Predictor(checkpoint.load(tiny_teacher))
    predictor.set_image(photo)
    answer = predictor.predict(boxes=boxes)
    captions = [f"{n}  IoU {float(iou):.2f}" for n, iou in enumerate(answer.iou)]
    drawn = {
        numbers: overlay(predictor.image, answer.masks, boxes=np.array(boxes), captions=captions, numbers=numbers)
        for numbers in (True, False)
    }
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(drawn[True]))
    assert not np.array_equal(np.asarray(drawn[True]), np.asarray(drawn[False]))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{photo}", "mode=everythin"], "did you mean 'everything'?"),
        (["{photo}", "mode=everything", "box=[1,1,9,9]"], "leave box and point out"),
        (["{photo}", "mode=everything", "everything.strategy=gird"], "did you mean 'grid'?"),
        (
            ["{photo}", "mode=everything", "everything.points_side=3"],
            "everything: unknown key 'points_side', did you mean 'points_per_side'?",
        ),
        (["{photo}"], "needs a prompt: box="),
        (["{photo}", "box=[10,10,300,50]"], "lies outside the photograph, which is 90 wide and 60 high"),
        (["{photo}", "point=[20,61.5]"], "lies outside"),
        (["{photo}", "box=[10,10,50]"], r"box [10, 10, 50] is not understood: write box=[x0,y0,x1,y1]"),
        (["{photo}", "box=[a,b,c,d]"], "is not understood"),
        (["{photo}", "box=[50,10,10,50]"], "has no area"),
        (["{photo}", "point=[1,2,7]"], "label 7"),
        (["{photo}", "point=[1,2]", "box=[[1,1,9,9],[2,2,9,9]]"], "the points belong to one object"),
        (["{photo}", "box=[1,1,9,9]", "out=m.jpg"], "must end in .png"),
        (["{photo}", "{photo}", "box=[1,1,9,9]"], "is one file for 2 pictures: give a folder"),
        (["box=[1,1,9,9]"], "needs a picture"),
        (["nowhere.jpg", "box=[1,1,9,9]"], "there is no picture at nowhere.jpg"),
        (["{text}", "box=[1,1,9,9]"], "cannot be read as a picture"),
        (["{photo}", "box=[1,1,9,9]", "checkpoint=nowhere"], "there is no checkpoint at nowhere"),
        (["{photo}", "box=[1,1,9,9]", "checkpoint={text}"], "text.jpg"),
        (["{photo}", "box=[1,1,9,9]", 'checkpoint=""'], "needs checkpoint="),
        (["{photo}", "bbox=[1,1,9,9]"], "did you mean 'box'?"),
        (["{photo}", "box=[1,1,9,9]", "device=cpu"], "device is now place.accelerator"),
        (["{photo}", "box=[1,1,9,9]", "place.devices=2"], "predict works on one device"),
        (["{photo}", "box=[1,1,9,9]", "place.accelerator=tpu"], "must be one of auto, cpu, gpu, cuda"),
        (["nowhere/*.jpg", "box=[1,1,9,9]"], "there are no pictures in nowhere/*.jpg"),
        (["{photo}", "box=[1,1,9,9]", "image_size=100"], "image_size=100 must be a multiple of 16, e.g. 64"),
        (["{photo}", "box=[1,1,9,9]", "out={text}/m.png"], "text.jpg/m.png cannot be written (Not a directory)"),
        (["{photo}", "box=[1,1,9,9]", "out={folder}.png"], "is a folder where the picture is to be"),
        (["{photo}", "box=[1,1,9,9]", "checkpoint={pipe}"], "is a pipe or a device, and no checkpoint"),
    ],
)
def test_mistakes_get_one_sentence_and_leave_nothing(
    words: list[str], says: str, photo: Path, tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.jpg", tmp_path / "out" / "m.png"
    text.write_text("not a picture")
    folder, pipe = tmp_path / "taken", tmp_path / "pipe"
    folder.with_suffix(".png").mkdir()
    os.mkfifo(pipe)
    words = [word.format(photo=photo, text=text, folder=folder, pipe=pipe) for word in words]
    code = main(["predict", f"checkpoint={tiny_teacher}", f"out={out}", *words])
    told = capsys.readouterr()
    assert code == 2 and says in told.err, told.err
    assert told.err.count("\n") == 1 and "Traceback" not in told.err
    assert not out.parent.exists()


def test_show_prints_the_strategys_settings_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "predict", "everything.points_per_side=8"]) == 0
    told = capsys.readouterr().out
    assert "\n  points_per_side: 8  # Of the grid over the whole photograph. (default 32)" in told
    assert "\n  pred_iou_thresh: 0.88  # " in told
