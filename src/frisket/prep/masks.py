"""Source masks: a folder of photographs, and for each a label PNG or several mask PNGs.

    frisket prep configs/prep_masks.yaml inputs=photos masks=labels out=data/mine/train

inputs  the photographs (JPEG; PNG too when the masks lie elsewhere, stored as JPEG of quality 95).
masks   `a.png` beside or for `a.jpg`: a label picture, each value (or colour) is a mask, but those of `ignore`.
        `a_1.png`, `a-left.png`, … or `a/*.png`: several masks, each of what is not 0. Unset: where the photographs are.
Unit    `samples_per_shard` photographs in the order of their names; its stamp knows all files' names and sizes.
Source  our choice.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from frisket.data.sa1b import PIXELS, RecordError
from frisket.errors import UserError
from frisket.prep.records import (
    MaskConfig,
    PhotoConfig,
    Record,
    Reject,
    Unit,
    chunks,
    percent,
    photograph,
    record_json,
    selected,
    unit_name,
)


@dataclass(kw_only=True)
class Config(PhotoConfig, MaskConfig):
    """Photographs and PNGs."""

    source: str = "masks"
    masks: str = ""
    """The folder of the PNGs; empty: that of the photographs."""
    ignore: list[int] = field(default_factory=lambda: [0])
    """Labels that are no mask: the background, say; 255 where it means unknown. Of colours, black is 0."""
    parts: bool = False
    """Every connected part of a label is a mask of its own: for classes instead of objects."""


def units(config: Config) -> list[Unit]:
    """Raises UserError when there is no photograph, or two whose names are alike but for signs."""
    folder, masks = Path(config.inputs), Path(config.masks or config.inputs)
    for key, path in (("inputs", folder), ("masks", masks)):
        if not path.is_dir():
            raise UserError(
                f"{key}={path} is not a folder: give the one of the {'PNGs' if key == 'masks' else 'photographs'}"
            )
    kinds = {".jpg", ".jpeg"} | ({".png"} if masks.resolve() != folder.resolve() else set())
    photos = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in kinds and path.is_file()}
    double = [name for name, times in Counter(map(unit_name, photos)).items() if times > 1]
    if double:
        raise UserError(f"{folder} holds several photographs that are all called {double[0]}: rename them")
    pngs: dict[str, list[Path]] = defaultdict(list)
    for path in sorted([*masks.glob("*.png"), *masks.glob("*/*.png")]):
        owner = path.parent.name if path.parent != masks else _owner(path.stem, photos)
        if path.is_file() and owner in photos:
            pngs[owner].append(path)
    share = percent(config.subset)
    rows = [
        (stem, str(path), [str(png) for png in pngs[stem]])
        for stem, path in photos.items()
        if selected(_id(stem), share)
    ]
    if not rows:
        raise UserError(
            f"{folder} holds no photograph of subset {config.subset}: JPEGs{' or PNGs' * ('.png' in kinds)}"
        )
    return [
        Unit(f"{number:05d}", f"{folder}/{part[0][0]}..{part[-1][0]}", _stamp(part), part)
        for number, part in enumerate(chunks(rows, config.samples_per_shard))
    ]


def _owner(stem: str, photos: dict[str, Path]) -> str:
    """The photograph that a PNG's name belongs to: its own name, or the longest one before a sign."""
    starts = [stem, *(stem[: sign.start()] for sign in reversed(list(re.finditer(r"[-_. ]", stem))))]
    return next((start for start in starts if start in photos), "")


def _id(stem: str) -> int:
    return int.from_bytes(hashlib.sha256(stem.encode(errors="surrogateescape")).digest()[:4], "big")


def _stamp(rows: Sequence[tuple[str, str, list[str]]]) -> str:
    files = [(Path(name).name, Path(name).stat().st_size) for _, photo, pngs in rows for name in (photo, *pngs)]
    return hashlib.sha256(repr(files).encode()).hexdigest()


def records(config: Config, unit: Unit, reject: Reject) -> Iterator[Record]:
    """One Record per photograph; one without a PNG, or with one of another size, is rejected."""
    for stem, photo, pngs in unit.payload:
        key = unit_name(stem)
        try:
            jpg, size = photograph(Path(photo), where=key)
            if not pngs:
                raise RecordError(key, f"there is no {stem}.png, {stem}_….png or {stem}/….png")
            whole = len(pngs) == 1 and Path(pngs[0]).stem == stem
            masks = [mask for png in pngs for mask in _masks(config, labels(Path(png), size, key), whole)]
        except RecordError as error:
            reject(key, error.reason)
            continue
        yield Record(key, jpg, record_json(_id(stem), Path(photo).name, size, config.chosen(masks)))


def labels(png: Path, size: tuple[int, int], key: str) -> np.ndarray:
    """int64 (H, W) of a PNG's values: palette indices, grey values, or colours as one number. Raises RecordError."""
    try:
        with Image.open(png) as opened:
            if (opened.height, opened.width) != size or opened.height * opened.width > PIXELS:
                raise RecordError(
                    key, f"{png.name} is {opened.width}x{opened.height}, the photograph {size[1]}x{size[0]}"
                )
            values = np.array(opened.convert("RGB") if opened.mode in ("RGBA", "LA", "PA") else opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RecordError(key, f"{png.name} is damaged or no picture ({error})") from error
    if values.ndim == 3:
        return values[..., :3].astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])
    return values.astype(np.int64)


def _masks(config: Config, values: np.ndarray, whole: bool) -> Iterator[np.ndarray]:
    """bool (H, W) of each label of a label picture (`whole`), or of what is not 0."""
    regions = [values == label for label in np.unique(values) if label not in config.ignore] if whole else [values != 0]
    for region in regions:
        if config.parts:
            numbered, count = ndimage.label(region)  # type: ignore[misc]  # of one array it gives both
            yield from (numbered == number for number in range(1, count + 1))
        else:
            yield region
