"""Source synthetic: drawn scenes of textured, overlapping shapes with parts, and the exact masks of what is visible.

    frisket prep configs/prep_synthetic.yaml count=2000 out=data/synthetic/train

Scene   a textured ground; 4 to 9 objects painted back to front (ellipses, polygons, stars, rings, blobs), each with a
        plain, striped, checked, noisy or shaded surface. About half carry parts inside them, and at least one object
        has a part of a part, as SA-1B's masks nest whole, part and subpart. A mask is what stays visible; a whole
        keeps its parts' pixels. Needs no download: `make demo` learns from it.
Seeds   image i of a split depends on (seed, split, i) alone: the same bytes for any number of workers or tasks.
Source  our choice.
"""

import colorsys
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from frisket.data.sa1b import encode_jpeg
from frisket.errors import UserError
from frisket.prep.records import MaskConfig, Record, Reject, Unit, chunks, percent, record_json, selected

ASPECTS = ((3, 2), (2, 3), (4, 3), (1, 1), (16, 9), (3, 4))  # width, height
REACH = 1.4  # the widest outline, a blob's, in radii
Field = np.ndarray  # (h, w) float or bool over a window of the image's pixels


@dataclass(kw_only=True)
class Config(MaskConfig):
    """Drawn scenes; split and seed choose which."""

    renamed: ClassVar[dict[str, str]] = {"side": "image_size"}

    source: str = "synthetic"
    count: int = field(default=1000, metadata={"least": 1, "most": 10**8})
    """Images."""
    image_size: int = field(default=384, metadata={"least": 64, "most": 8192})
    """Longest side in pixels."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Another seed, other images."""
    radius: tuple[float, float] = (0.07, 0.26)
    """Of an object, least and most, as shares of image_size. Few large ones (.18 to .40) need the picture more."""
    objects: tuple[int, int] = (4, 9)
    """How many wholes a scene has, least and most."""
    distractors: int = field(default=0, metadata={"least": 0})
    """Shapes behind the objects that no mask names: what is seen is then not all annotated."""


def units(config: Config) -> list[Unit]:
    """Runs of `samples_per_shard` image numbers. Raises UserError when nothing would be drawn."""
    share = percent(config.subset)
    numbers = [n for n in range(config.count) if selected(n, share)]
    if not numbers:
        raise UserError(f"count={config.count} subset={config.subset}: draw at least 1 image")
    if not 0 < config.radius[0] <= config.radius[1] <= 1:
        raise UserError(f"radius={list(config.radius)}: give least and most, shares of the image's side up to 1")
    if not 1 <= config.objects[0] <= config.objects[1]:
        raise UserError(f"objects={list(config.objects)}: give least and most, 1 or more")
    parts = chunks(numbers, config.samples_per_shard)
    return [Unit(f"{i:05d}", f"images {c[0]}..{c[-1]}", [c[0], c[-1]], c) for i, c in enumerate(parts)]


def records(config: Config, unit: Unit, reject: Reject) -> Iterator[Record]:
    """One Record per image number; nothing is ever rejected."""
    for number in unit.payload:
        rng = np.random.default_rng([config.seed, zlib.crc32(config.split.encode()), number])
        pixels, masks = scene(
            rng, config.image_size, radius=config.radius, objects=config.objects, distractors=config.distractors
        )
        key = f"syn_{config.split}_{number:06d}"
        size = (pixels.shape[0], pixels.shape[1])
        jpg = encode_jpeg(pixels, quality=92, chroma="420")  # an original, so as a camera writes it
        yield Record(key, jpg, record_json(number, f"{key}.jpg", size, config.chosen(masks)))


# ---------------------------------------------------------------- the scene


def scene(
    rng: np.random.Generator,
    side: int,
    *,
    radius: tuple[float, float] = (0.07, 0.26),
    objects: tuple[int, int] = (4, 9),
    distractors: int = 0,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw one image: uint8 (H, W, 3) RGB, max(H, W) = side, and the bool (H, W) masks of its shapes, back to front.

    radius (shares of `side`), objects and distractors: see Config. A mask is empty where the shape is wholly hidden.
    """
    wide, high = ASPECTS[rng.integers(len(ASPECTS))]
    width, height = (round(side * edge / max(wide, high)) for edge in (wide, high))
    canvas = _texture(rng, *_pixels((slice(0, height), slice(0, width))))
    layers: list[np.ndarray] = []
    for _ in range(distractors):
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        _paint(rng, canvas, [], centre, side * rng.uniform(*radius), (), 0)
    amount = int(rng.integers(objects[0], objects[1] + 1))
    nested = int(rng.integers(amount))
    for number in range(amount):
        size = side * rng.uniform(*radius)
        centre = (rng.uniform(0, width), rng.uniform(0, height))
        _paint(rng, canvas, layers, centre, size, (), 2 if number == nested else int(rng.random() < 0.4))
    noisy = canvas * 255 + 3 * rng.standard_normal((height, width, 1), np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8), layers


def _paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    layers: list[np.ndarray],
    centre: tuple[float, float],
    radius: float,
    wholes: tuple[int, ...],
    depth: int,
) -> None:
    """Paint a shape over everything but the wholes it belongs to (and stays inside), then `depth` levels of parts.

    layers: what of each painted shape is still visible, bool (H, W); wholes: the numbers of those this one is part of.
    """
    window = _window(centre, REACH * radius, canvas.shape[:2])
    inside = _shape(rng)(*_pixels(window), centre, radius)
    if wholes:
        inside &= layers[wholes[-1]][window]
    if not inside.any():
        return
    canvas[window][inside] = _texture(rng, *_pixels(window))[inside]
    for number, layer in enumerate(layers):
        if number not in wholes:
            layer[window] &= ~inside
    mask = np.zeros(canvas.shape[:2], bool)
    mask[window] = inside
    me = len(layers)
    layers.append(mask)
    if not depth:
        return
    rows, cols = np.nonzero(mask)
    for _ in range(int(rng.integers(1, 4))):
        pick = int(rng.integers(len(rows)))
        smaller = float(np.sqrt(len(rows) / np.pi)) * rng.uniform(0.3, 0.65)
        _paint(rng, canvas, layers, (float(cols[pick]), float(rows[pick])), smaller, (*wholes, me), depth - 1)


def _window(centre: tuple[float, float], reach: float, size: tuple[int, int]) -> tuple[slice, slice]:
    """(rows, columns) within `reach` of the centre (x, y), clipped to the image (H, W); never empty."""
    edges = []
    for middle, length in zip(reversed(centre), size):
        low = min(max(0, int(middle - reach)), length - 1)
        edges.append(slice(low, max(low + 1, min(length, int(middle + reach) + 2))))
    return edges[0], edges[1]


def _pixels(window: tuple[slice, slice]) -> tuple[Field, Field]:
    """Image coordinates (xs, ys) of the window's pixels, float32 (h, w) each."""
    ys, xs = np.mgrid[window].astype(np.float32)
    return xs, ys


# ---------------------------------------------------------------- shapes

Shape = Callable[[Field, Field, tuple[float, float], float], np.ndarray]


def _shape(rng: np.random.Generator) -> Shape:
    """A random shape: a function (xs, ys, centre (x, y), radius in pixels) -> bool (h, w)."""
    turn, squash = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 1.0)
    cos, sin = math.cos(turn), math.sin(turn)  # Python floats leave float32 arrays float32
    kind = rng.choice(["ellipse", "polygon", "star", "ring", "blob"])
    edge = _edge(rng, kind)
    hole = rng.uniform(0.4, 0.7) if kind == "ring" else 0.0

    def inside(xs: Field, ys: Field, centre: tuple[float, float], radius: float) -> np.ndarray:
        dx, dy = xs - centre[0], ys - centre[1]
        u, v = dx * cos + dy * sin, (dy * cos - dx * sin) / squash
        far, limit = np.hypot(u, v), radius * edge(np.arctan2(v, u))
        return (far <= limit) & (far >= hole * limit)

    return inside


def _edge(rng: np.random.Generator, kind: str) -> Callable[[Field], Any]:
    """The outline as a function angle -> share of the radius."""
    if kind in ("ellipse", "ring"):
        return np.ones_like
    if kind == "blob":
        waves = list(zip(rng.uniform(0, 0.16, 4).tolist(), rng.uniform(0, 2 * np.pi, 4).tolist()))
        return lambda angle: 0.75 + sum(s * np.cos((k + 2) * angle + p) for k, (s, p) in enumerate(waves))
    corners = 2 * int(rng.integers(4, 8)) if kind == "star" else int(rng.integers(3, 9))
    angles = (np.arange(corners) + rng.uniform(-0.2, 0.2, corners)) * 2 * np.pi / corners
    radii = (
        np.where(np.arange(corners) % 2, rng.uniform(0.4, 0.6), 1.0) if kind == "star" else rng.uniform(0.7, 1, corners)
    )
    return lambda angle: _straight(angle, angles.astype(np.float32), radii.astype(np.float32))


def _straight(angle: Field, angles: np.ndarray, radii: np.ndarray) -> Field:
    """Polar radius at `angle` of the polygon whose corners lie at ascending `angles` (one turn) and `radii`."""
    shifted = np.mod(angle - angles[0], np.float32(2 * np.pi)) + angles[0]
    left = np.clip(np.searchsorted(angles, shifted, side="right") - 1, 0, len(angles) - 1)
    ends = np.append(angles, angles[0] + np.float32(2 * np.pi))
    a, b = ends[left], ends[left + 1]
    ra, rb = radii[left], np.append(radii, radii[0])[left + 1]
    return ra * rb * np.sin(b - a) / (ra * np.sin(shifted - a) + rb * np.sin(b - shifted))


# ---------------------------------------------------------------- surfaces


def _texture(rng: np.random.Generator, xs: Field, ys: Field) -> np.ndarray:
    """A surface over a window: float32 (h, w, 3) in 0..1, two colours mixed by a random pattern."""
    hue, value = rng.random(), rng.uniform(0.3, 0.95)
    first = _colour(hue, rng.uniform(0.1, 0.9), value)
    second = _colour(hue + rng.uniform(-0.12, 0.12), rng.uniform(0.1, 0.9), value * rng.uniform(0.55, 0.85))
    mix = _pattern(rng, xs, ys)[..., None].astype(np.float32)
    return first + (second - first) * mix


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), np.float32)


def _pattern(rng: np.random.Generator, xs: Field, ys: Field) -> Field:
    """(h, w) in 0..1: stripes, checks, noise, a gradient, or nearly plain."""
    kind = rng.choice(["plain", "stripes", "checks", "noise", "gradient"])
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 22)
    cos, sin = math.cos(angle), math.sin(angle)
    along, across = xs * cos + ys * sin, ys * cos - xs * sin
    if kind == "stripes":
        return np.mod(along, period) < period / 2
    if kind == "checks":
        return (np.mod(along, period) < period / 2) ^ (np.mod(across, period) < period / 2)
    if kind == "gradient":
        return (along - along.min()) / max(1.0, float(np.ptp(along)))
    # Coarse random values enlarged: soft clouds for noise, so faint for plain that only the eye of a network sees them.
    cell = int(rng.integers(2, 9))
    coarse = rng.random((ys.shape[0] // cell + 2, ys.shape[1] // cell + 2)).astype(np.float32)
    cloud = np.asarray(ndimage.zoom(coarse, cell, order=1))[: ys.shape[0], : ys.shape[1]]
    return cloud if kind == "noise" else 0.15 * cloud
