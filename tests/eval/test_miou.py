"""The protocols of box and click mIoU: a perfect model, what each asks, chunks, curves, one encoder pass for all."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from perfectsam import PerfectSam, coco_folder

from frisket import config as settings
from frisket.cli.main import main
from frisket.data.annotated import open_annotated
from frisket.errors import UserError
from frisket.eval import miou
from frisket.eval.clicks import round_trip
from frisket.eval.miou import Config, Task
from frisket.eval.protocols import PROTOCOLS, chosen
from frisket.geometry import mask_iou, upscale_logits
from frisket.models.sam import Sam
from frisket.place import Place
from frisket.prep import synthetic
from frisket.prep.run import prep
from frisket.prompts import central_pixels
from frisket.sample import FOREGROUND, Prompts

SIDE = 96


def make(data: Path | str, side: int = SIDE, **settings: Any) -> Task:
    return Task(Config(task="miou", data=str(data), **settings), side)


def judged(task: Task, sam: Any) -> dict[str, Any]:
    """The numbers of all items."""
    rows = []
    for index in range(len(task)):
        item = task.load(index)
        if item is None:
            continue
        if isinstance(sam, PerfectSam):
            sam.truth = item.photo.masks()
        with torch.inference_mode():
            rows.append(task.answer(sam, item))
    return task.summarise(rows)


@pytest.fixture(scope="module")
def coco(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return coco_folder(tiny_shards / "val", tmp_path_factory.mktemp("coco"))


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "edgesam"])
def test_a_perfect_model_scores_one_under_every_other_protocol(name: str, coco: tuple[Path, Path]) -> None:
    task = make(coco[0], images=str(coco[1]), protocol=[name], clicks=[1, 3])
    found = judged(task, PerfectSam(SIDE))
    kinds = ["box"] * PROTOCOLS[name].box + ["click1"] + ["click3"] * bool(PROTOCOLS[name].later)
    for kind in kinds:
        assert found[f"{kind}/miou"] == pytest.approx(1.0, abs=1e-7)  # evit adds 1e-7 to the union


def test_a_perfect_model_scores_edgesams_ceiling(tmp_path: Path) -> None:
    """At 640 pixels; tests/eval/test_clicks.py has the ceiling's known values on COCO and LVIS."""
    prep(synthetic.Config(out=str(tmp_path), split="val", count=1, image_size=640))
    found = judged(make(tmp_path, 640, protocol=["edgesam"], clicks=[1, 2]), PerfectSam(640))
    (photo,) = open_annotated(tmp_path)
    masks = torch.from_numpy(photo.masks())
    ceiling = float(mask_iou(masks, round_trip(masks)).mean())
    assert 0.8 < ceiling < 0.99
    for kind in ("box", "click1", "click2"):
        assert found[f"{kind}/miou"] == pytest.approx(ceiling, abs=1e-6)


def test_what_each_protocol_keeps(coco: tuple[Path, Path]) -> None:
    found = judged(make(coco[0], images=str(coco[1]), protocol=["all"]), PerfectSam(SIDE))
    whole = found["evit/masks"]
    assert found["fast/masks"] == whole
    assert found["sam/masks"] == found["edgesam/masks"] == found["efficientsam/masks"] == whole - 1  # the crowd
    assert "fast/box/miou" not in found and "sam/box/miou" in found and found["images"] == 6


def test_only_the_oracle_finds_what_the_model_rates_low(coco: tuple[Path, Path]) -> None:
    found = judged(make(coco[0], images=str(coco[1]), protocol=["sam", "sam_oracle"]), PerfectSam(SIDE, liar=True))
    assert found["sam/box/miou"] == 0.0 and found["sam_oracle/box/miou"] == 1.0
    assert found["sam_oracle/click1/miou"] == 1.0


def test_what_is_asked_and_how_often(tiny_shards: Path) -> None:
    task = make(tiny_shards / "val", protocol=["all"], clicks=[1, 2])
    item = task.load(0)
    assert item is not None
    sam = PerfectSam(SIDE)
    sam.truth = np.zeros_like(item.photo.masks())  # always wrong, so that every later click has an error to find
    task.answer(sam, item)
    assert sam.encoded == 1
    # boxes: multimask (shared by sam, efficientsam, evit), oracle, single; first clicks: innermost (shared by sam and
    # evit), its oracle, edgesam's, uniform, mass; second clicks: five protocols
    assert len(sam.asked) == 3 + 5 + 5
    later = [(p, multi) for p, multi in sam.asked if p.points is not None and p.points.shape[1] == 2]
    fed = [p.masks is not None for p, _ in later]
    assert fed == [True, True, False, False, False] and [m for _, m in later] == [False, True, False, True, True]
    sam_points = later[0][0].points
    first = torch.from_numpy(central_pixels(item.photo.masks())).float()
    assert sam_points is not None
    # nothing was found, so the deepest error is the innermost pixel again; the clicker never clicks it twice
    torch.testing.assert_close(sam_points, item.frame.to_input(first)[:, None].expand(-1, 2, -1))
    clicker = later[4][0]
    assert clicker.points is not None and clicker.labels is not None
    assert not (clicker.points[:, 0] == clicker.points[:, 1]).all(dim=1).any()
    assert (clicker.labels == FOREGROUND).all()


def test_sam_protocol_is_what_the_words_say(tiny_shards: Path, tiny_sam: Sam) -> None:
    """Against a plain loop: one object at a time, full masks, no chunks."""
    task = make(tiny_shards / "val", 64, clicks=[1, 2], place=Place(prompts_at_once=3))
    item = task.load(1)
    assert item is not None
    sam = tiny_sam.eval()
    with torch.inference_mode():
        row = task.answer(sam, item)
        embedding = sam.encode(item.image, torch.tensor([item.frame.size]))
        for number in range(len(item.photo)):
            truth = torch.from_numpy(item.photo.masks([number]))
            box = Prompts(boxes=item.frame.boxes_to_input(torch.from_numpy(item.photo.boxes[[number]]).float()))
            click = item.frame.to_input(torch.from_numpy(central_pixels(truth.numpy())).float())[:, None]
            point = Prompts(points=click, labels=torch.ones(1, 1, dtype=torch.long))
            for kind, prompt in (("box", box), ("click1", point)):
                low = sam.decode(embedding, torch.zeros(1, dtype=torch.long), prompt, True).best()[0]
                iou = mask_iou(upscale_logits(low, item.frame) > 0, truth)
                torch.testing.assert_close(row["iou"]["sam"][kind][number], iou[0], atol=2e-3, rtol=0)
    assert row["areas"]["sam"].tolist() == item.photo.masks().sum((1, 2)).tolist()


def test_chunks_ranks_and_neighbours_change_no_number(
    tiny_shards: Path, tiny_sam: Sam, monkeypatch: pytest.MonkeyPatch
) -> None:
    sam = tiny_sam.eval()
    whole = judged(make(tiny_shards / "val", 64, protocol=["all"], clicks=[1, 2]), sam)
    monkeypatch.setattr(miou, "PIXELS", 96 * 96 * 2)
    alone = judged(make(tiny_shards / "val", 64, protocol=["efficientsam"], clicks=[2]), sam)
    for name in ("click2/miou", "box/miou", "click2/miou_m"):
        assert alone[name] == pytest.approx(whole[f"efficientsam/{name}"], abs=2e-3, nan_ok=True)
    assert alone["masks"] == whole["efficientsam/masks"]


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers(tiny_shards: Path, tiny_sam: Sam) -> None:
    task = make(tiny_shards / "val", 64, protocol=["all"], clicks=[1])
    here = judged(task, tiny_sam.eval())
    there = judged(make(tiny_shards / "val", 64, protocol=["all"], clicks=[1, 2, 3]), tiny_sam.cuda())
    for name, value in here.items():
        assert there[name] == pytest.approx(value, abs=5e-3, nan_ok=True)


def test_curves_list_every_click(tiny_shards: Path, tiny_sam: Sam) -> None:
    task = make(tiny_shards / "val", 64, clicks=[3, 1])
    found = judged(task, tiny_sam.eval())
    assert len(found["curve/miou"]) == 3 and found["curve/miou"][2] == found["click3/miou"]
    assert "click2/miou" not in found
    text = task.table({"one": found})
    assert "3 points" in text and text.splitlines()[-1].startswith("sam: ")
    assert "highest predicted IoU" in task.sentence and "SA-1B" in task.sentence


def test_sizes_of_evit_are_annotated_and_share_their_borders() -> None:
    metric = miou.MaskIoU(shared_borders=PROTOCOLS["evit"].shared_borders)
    metric.update(torch.tensor([0.2, 0.4, 1.0]), torch.tensor([1024.0, 9216.0, 5000.0]))
    found = metric.compute()
    assert (found["miou_s"], found["miou_l"]) == pytest.approx((0.2, 0.4)) and found["miou_m"] == pytest.approx(1.6 / 3)
    assert PROTOCOLS["evit"].by_annotation and not PROTOCOLS["sam"].by_annotation


def test_a_mask_that_vanishes_on_both_sides_is_dropped_by_edgesam(tiny_shards: Path) -> None:
    task = make(tiny_shards / "val", protocol=["edgesam"])
    item = task.load(0)
    assert item is not None
    sam = PerfectSam(SIDE)
    sam.truth = np.zeros((len(item.photo), *item.frame.original), bool)
    row = task.answer(sam, item)
    half = dataclasses.replace(item)  # the same photograph twice: once judged, once with every IoU undefined
    gone = task.answer(sam, half) | {"iou": {"edgesam": {k: v * torch.nan for k, v in row["iou"]["edgesam"].items()}}}
    assert task.summarise([row, gone])["box/miou"] == task.summarise([row])["box/miou"] == 0.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"protocol": ["sma"]}, "protocol.0.=sma must be one of .*: did you mean 'sam'"),
        ({"protocol": []}, "protocol is empty"),
        ({"clicks": [0]}, "clicks=.0. must be 1 or more"),
        ({"clicks": []}, "cannot be judged"),
    ],
)
def test_mistakes_are_one_sentence(tiny_shards: Path, words: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Task(settings.from_dict(Config, {"data": str(tiny_shards / "val"), **words}, "a.yaml"), SIDE)
    with pytest.raises(UserError, match="there is no data="):
        make("")
    assert set(get_args(get_args(get_type_hints(Config)["protocol"])[0])) == {*PROTOCOLS, "all"}
    assert [p.name for p in chosen(["evit", "sam", "evit"])] == ["evit", "sam"]


def test_the_command_on_coco_and_a_photograph_missing_on_disk(
    coco: tuple[Path, Path], tiny_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", "configs/eval_miou.yaml", f"data={coco[0]}", f"images={coco[1]}", f"checkpoint={tiny_teacher}"]
    words += ["protocol=evit", "limit=2", "pictures=1", "place.accelerator=cpu"]
    assert main([*words, f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "eval.json").read_text())
    assert 0 <= found["models"]["model.pt"]["box/miou"] <= 1 and found["protocol"]["sentence"].startswith("evit: ")
    assert found["protocol"]["arguments"] == {"protocols": ["evit"], "clicks": [1], "seed": 0}
    columns = (tmp_path / "per_image.csv").read_text().splitlines()[0].split(",")
    assert {"box/miou", "click1/miou"} <= set(columns) & set(found["models"]["model.pt"])
    assert (tmp_path / "masks.png").is_file()
    capsys.readouterr()
    gone = next(coco[1].glob("*.jpg"))
    kept = gone.read_bytes()
    gone.unlink()
    try:
        assert main([*words, f"out={tmp_path}"]) == 2
    finally:
        gone.write_bytes(kept)
    said = capsys.readouterr().err
    assert gone.name in said and "one of 1 of the 6 photographs" in said and said.count("\n") == 1
