"""The predictor against encode and decode done by hand, and the sentences its user gets."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from frisket.errors import UserError
from frisket.geometry import Frame, resize_image, upscale_logits
from frisket.models.sam import Sam
from frisket.predict.predictor import Predictor, read_image
from frisket.sample import Prompts


def photo(height: int = 60, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def ready(tiny_sam: Sam) -> Predictor:
    predictor = Predictor(tiny_sam)
    predictor.set_image(photo())
    return predictor


def by_hand(sam: Sam, image: np.ndarray, prompts: Prompts, multimask: bool) -> tuple[torch.Tensor, torch.Tensor]:
    frame = Frame.fit(image.shape[:2], sam.image_size)
    padded = torch.zeros(1, 3, sam.image_size, sam.image_size, dtype=torch.uint8)
    small = resize_image(torch.from_numpy(image).permute(2, 0, 1), frame.size)
    padded[0, :, : frame.size[0], : frame.size[1]] = small
    with torch.no_grad():
        embedding = sam.encode(padded, torch.tensor([frame.size]))
        logits, iou = sam.decode(embedding, torch.zeros(len(prompts), dtype=torch.long), prompts, multimask).best()
    return upscale_logits(logits, frame) > 0, iou


@pytest.mark.parametrize("multimask", [False, True])
def test_boxes_equal_encode_and_decode_by_hand(ready: Predictor, multimask: bool) -> None:
    boxes = [[3.0, 6.0, 45.0, 30.0], [30.0, 15.0, 90.0, 60.0]]
    answer = ready.predict(boxes=boxes, multimask=multimask)
    # 90 px -> 64: the factor is 64/90 across and 43/60 down (rounded as SAM does)
    scaled = torch.tensor(boxes) * torch.tensor([64 / 90, 43 / 60]).repeat(2)
    masks, iou = by_hand(ready.sam, photo(), Prompts(boxes=scaled), multimask)
    assert answer.masks.shape == (2, 60, 90) and answer.masks.dtype == torch.bool
    assert answer.logits.shape == (2, 16, 16)
    assert torch.equal(answer.masks, masks)
    assert torch.allclose(answer.iou, iou, atol=1e-6)


def test_points_equal_decode_by_hand_and_labels_count(ready: Predictor) -> None:
    points, labels = [[[20.0, 30.0], [70.0, 10.0]]], [[1, 0]]
    answer = ready.predict(points=points, labels=labels)
    scaled = torch.tensor(points) * torch.tensor([64 / 90, 43 / 60])
    masks, iou = by_hand(ready.sam, photo(), Prompts(points=scaled, labels=torch.tensor(labels)), False)
    assert torch.equal(answer.masks, masks) and torch.allclose(answer.iou, iou, atol=1e-6)
    flipped = ready.predict(points=points, labels=[[0, 1]])
    assert not torch.equal(answer.logits, flipped.logits)


def test_one_object_may_be_written_without_its_outer_axis(ready: Predictor) -> None:
    flat = ready.predict(points=[[20, 30], [25, 31]], labels=[1, 1], boxes=[10, 10, 60, 50])
    nested = ready.predict(points=[[[20, 30], [25, 31]]], boxes=[[10, 10, 60, 50]])
    assert torch.equal(flat.logits, nested.logits)


def test_a_bare_click_with_one_label_and_numpy_masks(ready: Predictor) -> None:
    nested = ready.predict(points=[[[20, 30]]], labels=[[1]])
    for points, labels in (([20, 30], [1]), ([20, 30], 1), (np.array([20, 30]), np.array([1])), ((20, 30), None)):
        assert torch.equal(ready.predict(points=points, labels=labels).logits, nested.logits)
    again = ready.predict(points=[20, 30], labels=1, masks=nested.logits)
    for masks in (nested.logits.numpy(), nested.logits[0].numpy(), nested.logits.numpy().tolist()):
        assert torch.equal(ready.predict(points=[20, 30], labels=1, masks=masks).logits, again.logits)


def test_a_pil_image_is_taken_as_its_file_is(tiny_sam: Sam, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # held with its right side up
    Image.fromarray(photo(20, 30)).convert("RGBA").save(tmp_path / "turned.png", exif=exif)
    predictor = Predictor(tiny_sam)
    predictor.set_image(tmp_path / "turned.png")
    embedding = predictor.embedding
    with Image.open(tmp_path / "turned.png") as opened:
        predictor.set_image(opened)
    assert torch.equal(predictor.embedding, embedding) and predictor.frame.original == (30, 20)


def test_a_lone_click_asks_for_three_masks(ready: Predictor) -> None:
    alone = ready.predict(points=[[20, 30]])
    assert torch.equal(alone.logits, ready.predict(points=[[20, 30]], multimask=True).logits)
    boxed = ready.predict(points=[[20, 30]], boxes=[10, 10, 60, 50])
    told = ready.predict(points=[[20, 30]], boxes=[10, 10, 60, 50], multimask=False)
    assert_close(boxed.logits, told.logits, rtol=1e-5, atol=1e-5)  # one of four outputs, and one alone


def test_a_single_output_that_distrusts_itself_is_not_taken(tiny_sam: Sam) -> None:
    """As of a decoder that learned three outputs only; each object by itself, and nothing where it was asked for."""
    bias = tiny_sam.mask_decoder.iou_prediction_head.layers[-1].bias
    predictor = Predictor(tiny_sam)
    predictor.set_image(photo())
    boxes = [[10, 10, 60, 50], [0, 0, 30, 30]]
    for trust, multimask in ((9.0, False), (-9.0, True)):
        bias.data = torch.tensor([trust, 1.0, 1.0, 1.0])
        free, told = predictor.predict(boxes=boxes), predictor.predict(boxes=boxes, multimask=multimask)
        assert_close((free.logits, free.iou), (told.logits, told.iou), rtol=1e-5, atol=1e-5)
        single = predictor.predict(boxes=boxes, multimask=False)
        assert torch.equal(single.iou > 5, torch.tensor([trust > 0] * 2))


def test_batches_of_prompts_give_what_one_batch_gives(tiny_sam: Sam) -> None:
    few, many = Predictor(tiny_sam, batch=3), Predictor(tiny_sam)
    boxes = torch.rand(10, 2).repeat(1, 2) * 40 + torch.tensor([0.0, 0.0, 15.0, 15.0])
    for predictor in (few, many):
        predictor.set_image(photo())
    a, b = few.predict(boxes=boxes), many.predict(boxes=boxes)
    assert torch.allclose(a.logits, b.logits, atol=1e-5)  # other batch sizes, other summation orders
    assert a.masks.shape == (10, 60, 90)


def test_a_mask_prompt_refines(ready: Predictor) -> None:
    first = ready.predict(boxes=[10, 10, 60, 50])
    again = ready.predict(boxes=[10, 10, 60, 50], masks=first.logits)
    assert again.logits.shape == first.logits.shape and not torch.equal(again.logits, first.logits)


def test_embedding_is_made_once_per_photograph(ready: Predictor) -> None:
    before = ready.embedding
    ready.predict(boxes=[10, 10, 60, 50])
    assert ready.embedding is before
    ready.set_image(photo(40, 40))
    assert ready.embedding is not before and ready.frame.original == (40, 40)


def test_another_input_side(tiny_sam: Sam) -> None:
    predictor = Predictor(tiny_sam, image_size=96)
    predictor.set_image(photo())
    answer = predictor.predict(boxes=[10, 10, 60, 50])
    assert answer.logits.shape == (1, 24, 24) and answer.masks.shape == (1, 60, 90)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        (
            {"boxes": [10, 10, 300, 50]},
            r"box \[10,10,300,50\] lies outside the photograph, which is 90 wide and 60 high",
        ),
        ({"points": [[20, -30]]}, r"point \[20,-30\] lies outside"),
        ({"boxes": [float("nan"), 10, 30, 50]}, "lies outside"),
        ({"boxes": [60, 10, 10, 50]}, "no area"),
        ({}, "no prompt"),
    ],
)
def test_prompts_that_make_no_sense(ready: Predictor, prompt: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ready.predict(**prompt)


def test_shapes_that_do_not_fit(ready: Predictor) -> None:
    with pytest.raises(ValueError, match="one label per point"):
        ready.predict(points=[[20, 30], [25, 31]], labels=[1])
    with pytest.raises(ValueError, match="same number"):
        ready.predict(points=[[20, 30]], boxes=[[1, 1, 9, 9], [2, 2, 9, 9]])
    for masks in (np.zeros((60, 90), bool), np.full((16, 16), np.nan)):
        with pytest.raises(ValueError, match=r"masks are finite logits \(N, 16, 16\)"):
            ready.predict(points=[[20, 30]], masks=masks)
    with pytest.raises(ValueError, match="groups of 4"):
        ready.predict(boxes=[[1, 2, 3]])


def test_asking_before_a_photograph_is_set(tiny_sam: Sam) -> None:
    with pytest.raises(UserError, match="set_image first"):
        Predictor(tiny_sam).predict(boxes=[1, 1, 9, 9])
    with pytest.raises(ValueError, match="uint8"):
        Predictor(tiny_sam).set_image(np.zeros((4, 4), np.uint8))


def test_pictures_are_read_upright_and_as_rgb(tmp_path: Path) -> None:
    Image.fromarray(photo(20, 30)).save(tmp_path / "plain.png")
    assert np.array_equal(read_image(tmp_path / "plain.png"), photo(20, 30))
    exif = Image.Exif()
    exif[0x0112] = 6  # held with its right side up: turn clockwise to see it
    Image.fromarray(photo(20, 30)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "turned.png"), np.rot90(photo(20, 30), -1))
    Image.fromarray(photo(20, 30)[..., 0]).save(tmp_path / "grey.png")
    assert read_image(str(tmp_path / "grey.png")).shape == (20, 30, 3)


def test_pictures_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no picture at"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(UserError, match="no picture format"):
        read_image(tmp_path / "text.jpg")
    Image.fromarray(photo(200, 300)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:4000])
    with pytest.raises(UserError, match="cannot be read"):
        read_image(tmp_path / "cut.jpg")
