"""Pictures of masks: overlays, and sheets of titled panels that compare models side by side. PIL and numpy only.

Use     overlay(photo, masks, boxes=boxes, captions=["0.93"]).save("out.png")
        comparison([[Panel(photo, title="image"), Panel(photo, masks, title="teacher  IoU 0.91")], …]).save("sheet.png")
Look    (our choice) a mask is its colour at half strength inside a thin white line; mask i has the same colour in every
        panel; the largest is painted first so that none hides a smaller one; a dark strip above carries the title, and
        what follows two spaces in it is set at the right in the accent colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from frisket.geometry import mask_iou

Photo = Image.Image | np.ndarray | Tensor
"""A PIL image, uint8 (H, W, 3) array, or uint8 (3, H, W) tensor."""
Array = np.ndarray | Tensor

PALETTE = (
    (230, 57, 70),
    (29, 145, 242),
    (46, 196, 106),
    (255, 183, 3),
    (155, 93, 229),
    (0, 187, 189),
    (255, 112, 166),
    (138, 201, 38),
    (251, 133, 0),
    (94, 116, 255),
    (192, 110, 60),
    (214, 64, 214),
)
STRIP, INK, ACCENT = (24, 27, 33), (244, 245, 247), (255, 205, 92)
PAPER, MOUNT = (255, 255, 255), (236, 238, 241)
POSITIVE, NEGATIVE = (46, 204, 64), (255, 65, 54)
FINE = 2  # panels are drawn this many times larger and reduced, so that lines come out smooth


@dataclass
class Panel:
    """One cell of a sheet. masks: bool (M, h, w) covering the photograph at any resolution; boxes (N, 4) and points
    (N, 2) in the photograph's pixels, with labels (N,) 1 or 0."""

    image: Photo
    masks: Array | None = None
    title: str = ""
    boxes: Array | None = None
    points: Array | None = None
    labels: Array | None = None


def colour(number: int) -> tuple[int, int, int]:
    """The colour of mask `number`."""
    return PALETTE[number % len(PALETTE)]


def as_image(photo: Photo) -> Image.Image:
    """Any of the `Photo` forms as a PIL RGB image."""
    if isinstance(photo, Image.Image):
        return photo.convert("RGB")
    if isinstance(photo, Tensor):
        photo = photo.detach().cpu().permute(1, 2, 0).numpy()
    return Image.fromarray(np.ascontiguousarray(photo, dtype=np.uint8))


def overlay(
    photo: Photo,
    masks: Array | None = None,
    *,
    boxes: Array | None = None,
    points: Array | None = None,
    labels: Array | None = None,
    captions: Sequence[str] = (),
    numbers: bool = False,
    alpha: float = 0.5,
) -> Image.Image:
    """The photograph with masks, boxes, points and captions drawn on it, at its own size.

    masks: bool (M, h, w) covering the photograph at any resolution; boxes (N, 4) xyxy and points (K, 2) in its pixels
    with labels (K,) (1 green, 0 red); captions: one word for mask (or, without masks, box) i, set at its top; numbers:
    i stands at the corner of box i, and 0 beside every point: the prompts of mask i and, for points, of mask 0.
    """
    image = as_image(photo)
    width, height = image.size
    line = max(1, round(max(width, height) / 600))
    base, canvas = np.array(image), np.array(image)
    painted = np.zeros((0, height, width), bool) if masks is None else _masks(masks, (width, height))
    areas = painted.reshape(len(painted), height * width).sum(axis=1)
    for number in np.argsort(-areas, kind="stable"):
        _paint(canvas, base, painted[number], colour(int(number)), alpha, line)
    image = Image.fromarray(canvas)
    draw = ImageDraw.Draw(image)
    corners = _rows(boxes, 4)
    for number, (x0, y0, x1, y1) in enumerate(corners):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=PAPER, width=2 * line + 1)
        inner = (x0 + line, y0 + line, max(x0 + line, x1 - 1 - line), max(y0 + line, y1 - 1 - line))
        draw.rectangle(inner, outline=colour(number), width=line)
        if numbers:
            _tag(draw, str(number), (x0, y0), colour(number), image.size)
    spots = _rows(points, 2)
    kinds = np.ones(len(spots), int) if labels is None else _numpy(labels).reshape(-1)
    radius = max(3, round(max(width, height) / 130))
    for (x, y), kind in zip(spots, kinds, strict=True):
        around = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(around, fill=POSITIVE if kind == 1 else NEGATIVE, outline=PAPER, width=max(1, radius // 3))
        if numbers:
            _tag(draw, "0", (x, y - radius), colour(0), image.size)
    for number, caption in enumerate(captions):
        place = _top(painted[number]) if len(painted) else (corners[number][0], corners[number][1])
        if place is not None:
            _tag(draw, caption, place, colour(number), image.size)
    return image


def noted(image: Image.Image, text: str) -> Image.Image:
    """The image above a dark strip with `text`, broken between words to its width."""
    font = _font(max(11, round(max(image.size) / 55)))
    margin, lines, pen = round(font.size * 0.6), [""], ImageDraw.Draw(image)
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and pen.textlength(longer, font=font) > image.width - 2 * margin:
            lines.append(word)
        else:
            lines[-1] = longer
    step = round(font.size * 1.3)
    sheet = Image.new("RGB", (image.width, image.height + len(lines) * step + margin), STRIP)
    sheet.paste(image)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        pen.text((margin, image.height + margin / 2 + number * step), line, font=font, fill=INK)
    return sheet


def grid(rows: Sequence[Sequence[tuple[str, Image.Image]]], *, width: int = 320, gap: int = 8) -> Image.Image:
    """Rows of (title, image) as one sheet: every image inside a square of `width` px, centred under its title strip.

    Raises ValueError when there is nothing to show.
    """
    if not any(len(row) for row in rows):
        raise ValueError("a sheet needs at least one picture")
    strips = [[_titled(title, _fit(image, width), width) for title, image in row] for row in rows]
    heights = [max((cell.height for cell in row), default=0) for row in strips]
    columns = max(len(row) for row in strips)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + sum(h + gap for h in heights)), PAPER)
    y = gap
    for row, height in zip(strips, heights, strict=True):
        for number, cell in enumerate(row):
            sheet.paste(cell, (gap + number * (width + gap), y))
        y += height + gap
    return sheet


def mounting(sheet: Image.Image) -> np.ndarray:
    """bool (H, W): where a sheet by `grid` shows paper between its cells or mount beside an image; of any other
    picture nothing. A page may then let its own ground through."""
    pixels = np.asarray(sheet.convert("RGB"))
    bare = (pixels == PAPER).all(axis=2)
    clear = np.zeros(bare.shape, bool)
    gap = int(np.argmin(np.append(bare.all(axis=1), False)))  # the first row that is not paper begins a strip
    if not gap or gap >= min(bare.shape):
        return clear
    dark = np.append(False, (pixels[:, gap] == STRIP).all(axis=1))
    tops = [y for y in np.flatnonzero(dark[1:] & ~dark[:-1]) if bare[y - gap : y].all()]
    lefts = [x for x in np.flatnonzero(bare.all(axis=0)) if x + 1 < bare.shape[1] and not bare[:, x + 1].all()]
    if not tops or not lefts:
        return clear
    clear[:, bare.all(axis=0)] = True
    clear[-gap:] = bare[-gap:].all()
    for top, end in zip(tops, [*(top - gap for top in tops[1:]), len(bare) - gap]):
        clear[top - gap : top] = True
        for left, right in zip(lefts, [*lefts[1:], bare.shape[1]]):
            cell = np.s_[top:end, left + 1 : right]
            photo = (pixels[cell] != STRIP).any(axis=2).all(axis=1)  # rows below the strip
            sides = (pixels[cell][photo] == MOUNT).all(axis=(0, 2))
            clear[cell] |= bare[cell].all() | (sides[None] & photo[:, None])
    return clear


def comparison(rows: Sequence[Sequence[Panel]], *, width: int = 320) -> Image.Image:
    """A sheet of panels, one row per photograph: image | teacher | student | truth, say."""
    return grid([[(panel.title, _draw(panel, width)) for panel in row] for row in rows], width=width)


def heated(photo: Tensor, heat: Tensor) -> Tensor:
    """The photograph uint8 (3, H, W), darker, under heat maps (g, h, w) of 0..1 that cover it: three of small, medium
    and large objects in blue, green and red, as Lite-SAM's figure 4 has them, or one in red."""
    tints = torch.tensor([PALETTE[1], PALETTE[2], PALETTE[0]] if len(heat) == 3 else [PALETTE[0]]).float()
    size = photo.shape[-2:]
    large = torch.nn.functional.interpolate(heat[None].float().cpu(), size=size, mode="bilinear")[0].clamp(0, 1)
    light = torch.einsum("ghw,gc->chw", large, tints) / large.sum(0).clamp(min=1e-6)
    share = large.amax(0)
    return (photo.cpu() * 0.5 * (1 - share) + light * share).round().clamp(0, 255).byte()


def row(photo: Photo, title: str, columns: Mapping[str, Tensor], truth: Tensor) -> list[Panel]:
    """One row of a comparison: the photograph under `title`, each model's masks with their mean IoU, the truth.

    columns: {label: bool (M, h, w)}; truth: bool (M, h, w), at the same resolution; mask i answers truth i.
    """
    panels = [Panel(photo, title=title)]
    for label, masks in columns.items():
        mean = f"  IoU {float(mask_iou(masks, truth).mean()):.2f}" if len(truth) else ""
        panels.append(Panel(photo, masks=masks, title=label + mean))
    return [*panels, Panel(photo, masks=truth, title="truth")]


def _draw(panel: Panel, width: int) -> Image.Image:
    """One panel inside a square of `width` px: drawn larger, then reduced."""
    photo = as_image(panel.image)
    large = _fit(photo, width * FINE)
    scale = np.array([large.width / photo.width, large.height / photo.height])
    boxes, points = _rows(panel.boxes, 4) * np.tile(scale, 2), _rows(panel.points, 2) * scale
    return _fit(overlay(large, panel.masks, boxes=boxes, points=points, labels=panel.labels), width)


def _numpy(values: Array) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _rows(values: Array | None, size: int) -> np.ndarray:
    return np.zeros((0, size)) if values is None else _numpy(values).astype(float).reshape(-1, size)


def _masks(masks: Array, size: tuple[int, int]) -> np.ndarray:
    """bool (M, H, W) at `size` (width, height): enlarged smoothly, reduced by majority."""
    given = _numpy(masks).astype(bool)
    if given.shape[1:] == (size[1], size[0]) or not len(given):
        return given.reshape(-1, size[1], size[0])
    scaled = (Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR) for mask in given)
    return np.stack([np.asarray(mask) >= 128 for mask in scaled])


def _paint(
    canvas: np.ndarray, base: np.ndarray, mask: np.ndarray, tint: tuple[int, int, int], alpha: float, line: int
) -> None:
    """Put the photograph `base` mixed with `tint` into canvas (H, W, 3) under the mask, and a white line in its edge.

    Mixed with the photograph rather than with what is there: a part then keeps its own colour on top of its whole.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    inside = mask[window]
    core = inside
    for _ in range(line):  # one 4-neighbour erosion per pixel of width; outside the window is background
        wide = np.pad(core, 1)
        core = core & wide[:-2, 1:-1] & wide[2:, 1:-1] & wide[1:-1, :-2] & wide[1:-1, 2:]
    part = canvas[window]
    part[inside] = np.rint(base[window][inside] * (1 - alpha) + np.array(tint) * alpha).astype(np.uint8)
    part[inside & ~core] = PAPER


def _top(mask: np.ndarray) -> tuple[float, float] | None:
    """(x, y) of the middle of the mask's first row; None when it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    return float(np.flatnonzero(mask[rows[0]]).mean()), float(rows[0])


def _tag(
    draw: ImageDraw.ImageDraw, text: str, place: tuple[float, float], tint: tuple[int, int, int], size: tuple[int, int]
) -> None:
    """A small dark label with a coloured edge above `place`, kept inside the picture."""
    font = _font(max(11, round(max(size) / 55)))
    margin = max(2, round(font.size / 4))
    wide, high = draw.textlength(text, font=font) + 3 * margin, font.size + 2 * margin
    x = min(max(0.0, place[0] - wide / 2), max(0.0, size[0] - wide))
    y = min(max(0.0, place[1] - high - margin), max(0.0, size[1] - high))
    draw.rectangle((x, y, x + wide, y + high), fill=STRIP)
    draw.rectangle((x, y, x + margin / 2, y + high), fill=tint)
    draw.text((x + 2 * margin, y + high / 2), text, font=font, fill=INK, anchor="lm")


def _fit(image: Image.Image, width: int) -> Image.Image:
    """The image with its longest side at `width` px, its shape kept."""
    scale = width / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def _titled(title: str, image: Image.Image, width: int) -> Image.Image:
    """The image under a dark strip `width` px wide; the part of `title` after two spaces stands at the right."""
    font = _font(max(11, round(width / 21)))
    margin, strip = round(font.size * 0.5), round(font.size * 1.8)
    made = Image.new("RGB", (width, image.height + strip), MOUNT)
    made.paste(STRIP, (0, 0, width, strip))
    made.paste(image, ((width - image.width) // 2, strip))
    draw = ImageDraw.Draw(made)
    name, _, note = title.partition("  ")
    note = note.strip()
    room = width - 2 * margin - (draw.textlength(note, font=font) + margin if note else 0)
    if draw.textlength(name, font=font) > room:
        while name and draw.textlength(name + "…", font=font) > room:
            name = name[:-1]
        name += "…"
    draw.text((margin, strip / 2), name, font=font, fill=INK, anchor="lm")
    draw.text((width - margin, strip / 2), note, font=font, fill=ACCENT, anchor="rm")
    return made


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that a picture looks the same on every machine."""
    return ImageFont.load_default(size)  # type: ignore[return-value]  # a bitmap only where FreeType is missing
