"""Source bsds500: the Berkeley segmentation photographs; every annotator's regions become masks.

    frisket prep configs/prep_bsds500.yaml inputs=/data/BSDS500 split=val out=data/bsds500/val

inputs  a folder with images/{train,val} and groundTruth/{train,val}, or the official BSDS500/data/... above it.
Masks   each label of each annotator's `Segmentation`, as it is (regions may be disconnected); under min_area pixels or
        over max_fraction of the image dropped; then, over all annotators, near doubles (IoU >= dedupe_iou) dropped.
Known   val, 100 photographs: 8,077 masks before near doubles go. Photographs are copied byte for byte.
Source  Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, TPAMI 2011; the filters are our choice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frisket.data.bsds import folders, regions
from frisket.data.sa1b import RecordError, jpeg_size
from frisket.errors import UserError
from frisket.prep.records import MaskConfig, PhotoConfig, Record, Reject, Unit, chunks, percent, record_json, selected


@dataclass(kw_only=True)
class Config(PhotoConfig, MaskConfig):
    """Berkeley's photographs; split names a folder of theirs."""

    source: str = "bsds500"


def units(config: Config) -> list[Unit]:
    """Runs of `samples_per_shard` photographs in the order of their names. Raises UserError when there are none."""
    images, truths = folders(Path(config.inputs), config.split)
    share = percent(config.subset)
    names = sorted(path.stem for path in images.glob("*.jpg"))
    names = [name for name in names if not name.isdigit() or selected(int(name), share)]
    if not names:
        raise UserError(f"{images} holds no photograph of subset {config.subset}: point inputs at the BSDS500 folder")
    return [
        Unit(f"{number:05d}", f"{images}/{chunk[0]}..{chunk[-1]}", chunk, (str(images), str(truths), chunk))
        for number, chunk in enumerate(chunks(names, config.samples_per_shard))
    ]


def records(config: Config, unit: Unit, reject: Reject) -> Iterator[Record]:
    """One Record per photograph; a photograph without readable ground truth is rejected."""
    images, truths, names = unit.payload
    for name in names:
        key = f"bsds_{name}"
        jpg = (Path(images) / f"{name}.jpg").read_bytes()
        try:
            size = jpeg_size(jpg)
            masks = regions(Path(truths) / f"{name}.mat", size)
            image_id = int(name)
        except RecordError as error:
            reject(key, error.reason)
            continue
        except ValueError as error:
            reject(key, str(error))
            continue
        yield Record(key, jpg, record_json(image_id, f"{key}.jpg", size, config.chosen(masks)))
