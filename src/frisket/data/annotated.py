"""Annotated photographs, one type for all sets: prepared shards, COCO or LVIS JSON, a BSDS500 folder.

Use     photographs = open_annotated("instances_val2017.json", images="/data/coco/val2017")
        photographs = open_annotated("data/sa1b/val")                       # prepared shards: folder, glob or braces
        photographs = open_annotated("/data/BSDS500", split="val")
        one = photographs[0]; one.image; one.masks(); one.fitted(1024)      # pixels are read when they are asked for
Source  the sets' own formats (frisket.data.sa1b, .coco, .bsds). BSDS500's masks are every annotator's regions under
        `frisket prep`'s filters, so that the folder and its shards hold the same masks. Our choice.
"""

import io
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask
from torch import Tensor

from frisket.data.bsds import folders, regions
from frisket.data.coco import Category, CocoFile, Objects
from frisket.data.identity import Identity, of_bsds, of_json, of_shards
from frisket.data.regions import DEDUPE_IOU, MAX_FRACTION, MIN_AREA, distinct, suitable
from frisket.data.sa1b import RecordError, check_sizes, decode_jpeg, grid_samples, jpeg_size, parse
from frisket.data.shards import IndexedShards, expand
from frisket.errors import UserError
from frisket.geometry import Frame, resize_image
from frisket.kernels import rle
from frisket.sample import Sample


@dataclass(eq=False)
class Photograph(Objects):
    """One photograph with its M objects (see Objects: rles, boxes, areas, crowd, categories, ids; original pixels).

    key: unique name; image_id: the set's own; size: (h, w) of the original, in which all coordinates are; negative and
    not_exhaustive: LVIS' category ids that are known to be absent, and that are not all annotated; encoded: the picture
    file's bytes or path, None when the set was opened without pixels.
    """

    key: str
    image_id: int
    size: tuple[int, int]
    encoded: bytes | Path | None = None
    negative: tuple[int, ...] = ()
    not_exhaustive: tuple[int, ...] = ()

    def __len__(self) -> int:
        """M."""
        return len(self.rles)

    @cached_property
    def image(self) -> np.ndarray:
        """uint8 RGB (H, W, 3), read now. Its size is `size`, but for shards that were prepared with a smaller picture.

        Raises UserError for a picture that is missing, damaged or of another size than the annotations say.
        """
        return self._pixels((0, 0)).permute(1, 2, 0).contiguous().numpy()

    def fitted(self, side: int) -> tuple[Tensor, Frame]:
        """The picture as a model of input side `side` wants it: uint8 (3, h, w), longest side `side`, and its Frame."""
        frame = Frame.fit(self.size, side)
        # as in training: the decoder's own scaling does only the part beyond twice the target size
        return resize_image(self._pixels((2 * frame.size[0], 2 * frame.size[1])), frame.size), frame

    def masks(self, chosen: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """bool (M, h, w) at original size, or only the `chosen` ones."""
        numbers = range(len(self)) if chosen is None else chosen
        if not len(numbers):
            return np.zeros((0, *self.size), bool)
        decoded = coco_mask.decode([self.rles[n] for n in numbers])  # type: ignore[arg-type]
        return np.ascontiguousarray(np.moveaxis(decoded, -1, 0)).astype(bool)

    def select(self, chosen: Sequence[int] | np.ndarray) -> "Photograph":
        """The same photograph with only some of its objects."""
        numbers = np.asarray(chosen, np.int64)
        return Photograph(
            [self.rles[n] for n in numbers], self.boxes[numbers], self.areas[numbers], self.crowd[numbers],
            self.categories[numbers], self.ids[numbers], self.key, self.image_id, self.size, self.encoded,
            self.negative, self.not_exhaustive,
        )  # fmt: skip

    def _pixels(self, at_least: tuple[int, int]) -> Tensor:
        """uint8 (3, h, w), full size or a quick smaller one that still covers `at_least` (h, w)."""
        if self.encoded is None:
            raise UserError(
                f"the photograph {self.key} was opened without its picture: give images=… the folder of them"
            )
        if isinstance(self.encoded, bytes):
            check_sizes(jpeg_size(self.encoded, where=self.key), self.size, self.key)
            return decode_jpeg(self.encoded, where=self.key, at_least=at_least)
        try:
            data = self.encoded.read_bytes()
        except OSError as error:
            raise UserError(f"the photograph {self.encoded} cannot be read: {error.strerror}") from error
        where = str(self.encoded)
        try:
            check_sizes(jpeg_size(data, where=where), self.size, where)
            return decode_jpeg(data, where=where, at_least=at_least)
        except RecordError:  # no JPEG, four colours, or a harmless warning of libjpeg: PIL decides
            return self._by_pillow(data, where)

    def _by_pillow(self, data: bytes, where: str) -> Tensor:
        try:
            with Image.open(io.BytesIO(data)) as opened:  # no EXIF turning: annotations mean the stored pixels
                pixels = np.array(opened.convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise UserError(f"the photograph {where} is damaged or no picture ({error}): fetch it again") from error
        check_sizes(pixels.shape[:2], self.size, where)
        return torch.from_numpy(pixels).permute(2, 0, 1)


class Annotated(Sequence[Photograph]):
    """Photographs by position, always in the same order. `name`: what results call the set; categories: {id: Category},
    empty where objects have no class; lvis: whether LVIS' federated rules apply."""

    name: str = ""
    lvis: bool = False

    def __init__(self) -> None:
        self.categories: dict[int, Category] = {}

    @abstractmethod
    def _one(self, index: int) -> Photograph: ...

    @abstractmethod
    def identity(self, images: int) -> Identity:
        """What the first `images` photographs are part of."""

    @overload
    def __getitem__(self, index: int) -> Photograph: ...
    @overload
    def __getitem__(self, index: slice) -> list[Photograph]: ...
    def __getitem__(self, index: int | slice) -> Photograph | list[Photograph]:
        if isinstance(index, slice):
            return [self._one(n) for n in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"photograph {index} of {len(self)}")
        return self._one(index % len(self))


def open_annotated(
    data: str | Path, images: str | Path | None = None, split: str | None = None, *, pixels: bool = True
) -> Annotated:
    """Open a set by what `data` is: a .json file (COCO or LVIS), a BSDS500 folder, or prepared shards.

    images: the folder of a JSON's photographs; split: BSDS500's; pixels=False opens a JSON for its annotations alone.
    Raises UserError when something named is missing or of no known kind.
    """
    if not str(data):
        raise UserError(
            "there is no data=…: give a COCO or LVIS .json, a BSDS500 folder or a folder of prepared shards"
        )
    path = Path(data)
    if path.suffix == ".json":
        return JsonPhotographs(path, images, pixels=pixels)
    if any((path / inside / "groundTruth").is_dir() for inside in ("", "BSDS500/data", "data")):
        return BsdsPhotographs(path, split or "val")
    return ShardPhotographs(data)


class ShardPhotographs(Annotated):
    """Prepared shards: SA-1B records, in tar order. Objects have no class."""

    def __init__(self, pattern: str | Path) -> None:
        super().__init__()
        self.shards = IndexedShards(expand(pattern))
        self.name = "SA-1B-style shards"

    def __len__(self) -> int:
        return len(self.shards)

    def identity(self, images: int) -> Identity:
        """Names, keys and sizes."""
        return of_shards(self.shards, images)

    def _one(self, index: int) -> Photograph:
        raw = self.shards[index]
        notes = parse(raw["json"], where=f"{raw['__shard__']}:{raw['__key__']}")
        xyxy = np.concatenate([notes.boxes[:, :2], notes.boxes[:, :2] + notes.boxes[:, 2:]], axis=1)
        return Photograph(
            notes.rles, xyxy, notes.areas, *_classless(len(notes)),
            key=raw["__key__"], image_id=notes.image_id, size=notes.size, encoded=raw["jpg"],
        )  # fmt: skip


class JsonPhotographs(Annotated):
    """A COCO or LVIS annotation file, ascending by image id, and the folder of its photographs."""

    def __init__(self, path: Path, images: str | Path | None, *, pixels: bool = True) -> None:
        super().__init__()
        self.file = CocoFile(path)
        if pixels and not images:
            raise UserError(f"{path} says nothing about where its photographs are: give images=… the folder of them")
        self.paths = self.file.photographs(images) if pixels and images else None
        self.categories, self.lvis = self.file.categories, self.file.lvis
        self.name = f"{'LVIS' if self.lvis else 'COCO'} {path.name}"

    def __len__(self) -> int:
        return len(self.file)

    def identity(self, images: int) -> Identity:
        """The annotation file's bytes."""
        return of_json(self.file, images)

    def _one(self, index: int) -> Photograph:
        image, objects = self.file.images[index], self.file.objects(index)
        return Photograph(
            **vars(objects), key=str(image["id"]), image_id=int(image["id"]), size=self.file.size(index),
            encoded=self.paths[index] if self.paths else None,
            negative=tuple(image.get("neg_category_ids", ())),
            not_exhaustive=tuple(image.get("not_exhaustive_category_ids", ())),
        )  # fmt: skip


class BsdsPhotographs(Annotated):
    """One split of BSDS500: every annotator's regions, dropped where `frisket prep` drops them."""

    def __init__(self, root: Path, split: str) -> None:
        super().__init__()
        self.images, self.truths = folders(root, split)
        self.paths = sorted(self.images.glob("*.jpg"), key=lambda path: path.stem)
        if not self.paths:
            raise UserError(f"{self.images} holds no photograph: give the BSDS500 folder and its split")
        self.name, self.split = f"BSDS500 {split}", split

    def __len__(self) -> int:
        return len(self.paths)

    def identity(self, images: int) -> Identity:
        """The drawings' bytes."""
        return of_bsds([self.truths / f"{path.stem}.mat" for path in self.paths], self.paths, self.split, images)

    def _one(self, index: int) -> Photograph:
        path = self.paths[index]
        size = jpeg_size(path.read_bytes(), where=str(path))
        try:
            masks = regions(self.truths / f"{path.stem}.mat", size)
        except ValueError as error:
            raise UserError(f"{path} {error}: fetch BSDS500 again") from error
        masks = distinct(suitable(masks, min_area=MIN_AREA, max_fraction=MAX_FRACTION), iou=DEDUPE_IOU)
        rles = [rle.encode(mask) for mask in masks]
        xywh = np.asarray(coco_mask.toBbox(rles) if rles else [], np.float64).reshape(len(rles), 4)  # type: ignore[arg-type]
        return Photograph(
            rles, np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            np.array([np.count_nonzero(mask) for mask in masks], np.float64), *_classless(len(rles)),
            key=f"bsds_{path.stem}", image_id=int(path.stem) if path.stem.isdigit() else index, size=size, encoded=path,
        )  # fmt: skip


def _classless(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """crowd, categories and ids of objects that are only numbered."""
    return np.zeros(count, bool), np.zeros(count, np.int64), np.arange(count)


def sample(photo: Photograph, image_size: int, *, objects: bool = True) -> Sample:
    """A photograph as the training loader would give it, with every object that is no crowd and has a grid cell."""
    image, frame = photo.fitted(image_size)
    rows, cols = grid_samples(frame)
    chosen = np.flatnonzero(~photo.crowd) if objects else np.zeros(0, np.int64)
    grids = np.zeros((0, len(rows), len(cols)), np.uint8)
    if len(chosen):
        grids = rle.fill_many([photo.rles[n] for n in chosen], rows, cols)
    kept = grids.any(axis=(1, 2))
    boxes = torch.from_numpy(photo.boxes[chosen[kept]].astype(np.float32)).reshape(-1, 4)
    return Sample(
        key=photo.key, image=image, masks=torch.from_numpy(grids[kept]).bool(), boxes=frame.boxes_to_input(boxes),
        areas=torch.from_numpy(photo.areas[chosen[kept]].astype(np.float32)), frame=frame,
    )  # fmt: skip
