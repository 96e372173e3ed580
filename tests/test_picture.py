"""Pictures show what they are given: colours under masks, outlines, prompts, titles, sheets of the right size."""

import numpy as np
import pytest
import torch
from PIL import Image

from frisket.picture import (
    ACCENT,
    MOUNT,
    NEGATIVE,
    PALETTE,
    PAPER,
    POSITIVE,
    STRIP,
    Panel,
    colour,
    comparison,
    grid,
    heated,
    mounting,
    noted,
    overlay,
)

GREY = np.full((60, 90, 3), 100, np.uint8)


def disc(x: int, y: int, radius: int) -> np.ndarray:
    yy, xx = np.mgrid[:60, :90]
    return (xx - x) ** 2 + (yy - y) ** 2 <= radius**2


def has(image: Image.Image, rgb: tuple[int, int, int]) -> bool:
    return bool((np.asarray(image) == rgb).all(axis=2).any())


def test_heat_tints_the_photograph_where_it_is() -> None:
    photo, heat = torch.full((3, 8, 12), 100, dtype=torch.uint8), torch.zeros(3, 2, 3)
    heat[0, 0, 0], heat[2, 1, 2] = 1, 1
    made = heated(photo, heat)
    assert made[:, 0, 0].tolist() == list(PALETTE[1]) and made[:, 7, 11].tolist() == list(PALETTE[0])
    assert made[:, 7, 0].tolist() == [50, 50, 50] and made.shape == photo.shape
    assert torch.equal(heated(photo, torch.zeros(1, 2, 3)), photo // 2)


def test_a_mask_is_half_its_colour_inside_a_white_line() -> None:
    mask = disc(30, 30, 12)
    drawn = np.asarray(overlay(GREY, mask[None]))
    wanted = np.rint((100 + np.array(colour(0))) / 2)
    assert np.abs(drawn[30, 30] - wanted).max() <= 1
    assert (drawn[30, 18] == PAPER).all() and (drawn[30, 20] != PAPER).any()
    assert (drawn[~mask] == 100).all()


def test_every_mask_pixel_is_painted_and_nothing_else() -> None:
    masks = np.stack([disc(20, 30, 10), disc(60, 20, 8)])
    changed = (np.asarray(overlay(GREY, masks)) != 100).any(axis=2)
    assert (changed == masks.any(axis=0)).all()


def test_a_small_mask_stays_visible_on_a_large_one_in_either_order() -> None:
    large, small = disc(40, 30, 25), disc(40, 30, 8)
    for masks, mine in ((np.stack([large, small]), 1), (np.stack([small, large]), 0)):
        centre = np.asarray(overlay(GREY, masks))[30, 40]
        assert np.abs(centre - np.rint((100 + np.array(colour(mine))) / 2)).max() <= 1


def test_masks_of_another_resolution_cover_the_photograph() -> None:
    low = np.zeros((1, 15, 23), bool)
    low[0, :, 12:] = True  # the right half
    changed = (np.asarray(overlay(GREY, low)) != 100).any(axis=2)
    assert changed[:, 55:].all() and not changed[:, :40].any()


def test_tensors_arrays_and_pil_images_are_the_same() -> None:
    masks = disc(30, 30, 12)[None]
    first = np.asarray(overlay(GREY, masks))
    as_tensor = overlay(torch.from_numpy(GREY).permute(2, 0, 1), torch.from_numpy(masks))
    assert np.array_equal(first, np.asarray(as_tensor))
    assert np.array_equal(first, np.asarray(overlay(Image.fromarray(GREY), masks)))


def test_the_photograph_itself_is_left_alone() -> None:
    photo, before = GREY.copy(), GREY.copy()
    overlay(photo, disc(30, 30, 12)[None], boxes=np.array([[1, 1, 50, 50]]))
    assert np.array_equal(photo, before)


def test_boxes_points_and_captions_are_drawn() -> None:
    boxes, points = np.array([[10, 10, 80, 50]]), np.array([[30, 30], [60, 30]])
    drawn = overlay(GREY, boxes=boxes, points=points, labels=np.array([1, 0]))
    pixels = np.asarray(drawn)
    assert (pixels[30, 30] == POSITIVE).all() and (pixels[30, 60] == NEGATIVE).all()
    assert (pixels[10, 40] == PAPER).all() and has(drawn, colour(0))
    assert (pixels[:9] == 100).all() and (pixels[:, 81:] == 100).all()  # a box ends before x1, y1
    assert not has(drawn, STRIP)
    assert has(overlay(GREY, disc(30, 40, 12)[None], captions=["IoU 0.93"]), STRIP)


def test_numbers_stand_at_boxes_and_points() -> None:
    boxes = np.array([[5, 20, 40, 50], [45, 20, 85, 50]])
    for numbers in (False, True):
        drawn = np.asarray(overlay(GREY, boxes=boxes, numbers=numbers)).copy()
        dark = (drawn == STRIP).all(axis=2)
        assert dark[:, :44].any() == dark[:, 45:].any() == numbers
    assert has(overlay(GREY, points=np.array([[45, 40]]), numbers=True), STRIP)


def test_a_note_stands_below_the_photograph_broken_to_its_width() -> None:
    short, long = noted(Image.fromarray(GREY), "few words"), noted(Image.fromarray(GREY), "many words " * 6)
    for image in (short, long):
        pixels = np.asarray(image)
        assert image.width == 90 and (pixels[:60] == 100).all() and (pixels[-1] == STRIP).all()
        assert (pixels[60:, -2:] == STRIP).all()  # no word runs out of it
    assert long.height > short.height + 30


def test_empty_masks_and_no_masks_draw_nothing() -> None:
    assert (np.asarray(overlay(GREY, np.zeros((2, 60, 90), bool), captions=["a", "b"])) == 100).all()
    assert (np.asarray(overlay(GREY, torch.zeros(0, 60, 90, dtype=torch.bool))) == 100).all()


def test_a_sheet_has_a_strip_above_every_picture() -> None:
    wide, tall = Image.fromarray(GREY), Image.fromarray(GREY.transpose(1, 0, 2))
    sheet = grid([[("wide", wide), ("tall", tall)], [("alone  IoU 0.5", wide)]], width=100, gap=5)
    assert sheet.width == 5 + 2 * 105
    pixels = np.asarray(sheet)
    strip = 5 + 2  # inside the first strip
    assert (pixels[strip, 6] == STRIP).all() and (pixels[strip, 111] == STRIP).all()
    assert has(sheet, MOUNT)  # beside the tall one
    assert has(sheet, ACCENT) or (np.abs(pixels.astype(int) - ACCENT).sum(axis=2) < 60).any()
    assert (pixels[-7, -7] == PAPER).all()  # the empty cell


def test_a_long_title_stays_inside_its_cell() -> None:
    sheet = grid(
        [[("a title that is far too long for this", Image.fromarray(GREY)), ("b", Image.fromarray(GREY))]], width=80
    )
    gap = np.asarray(sheet)[:, 88:96]
    assert (gap == PAPER).all()


def test_comparison_places_prompts_in_the_photographs_pixels() -> None:
    boxes = np.array([[45, 0, 90, 60]])  # the right half
    sheet = comparison([[Panel(GREY, title="a"), Panel(GREY, title="b", boxes=boxes)]], width=180)
    pixels = np.asarray(sheet).astype(int)
    second = pixels[-100:-20, 8 + 188 : 8 + 188 + 180]
    assert (np.abs(second[:, :80] - 100) <= 3).all() and (np.abs(second[:, 85:96] - 100) > 50).any()


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        grid([[], []])


def test_mounting_is_the_paper_and_mount_of_a_sheet_and_nothing_of_a_photograph() -> None:
    wide, tall = Image.new("RGB", (64, 40), "white"), Image.new("RGB", (32, 64), "white")
    sheet = grid([[("a", wide), ("b", tall)], [("c", wide)]], width=64, gap=4)
    clear = mounting(sheet)
    strip = round(11 * 1.8)
    first, second = (4, 4), (72, 4)  # the cells' corners
    assert clear[:4].all() and clear[-4:].all() and clear[:, :4].all() and clear[:, 68:72].all() and clear[:, -4:].all()
    assert not clear[first[1] : first[1] + strip + 40, first[0] : first[0] + 64].any()  # a white photograph is kept
    body = clear[second[1] + strip : second[1] + strip + 64, second[0] : second[0] + 64]
    assert body[:, :16].all() and not body[:, 16:48].any() and body[:, 48:].all()  # mount beside a tall one
    assert clear[4 + strip + 64 + 4 :, 72:].all()  # no picture there
    assert not mounting(Image.effect_mandelbrot((64, 40), (-2, -1, 1, 1), 40).convert("RGB")).any()
    assert not mounting(wide).any()
