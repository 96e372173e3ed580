"""The packages that this field trusts, run on the same masks: pycocotools' COCOeval, and lvis' LVISEval.

Use     numbers = reference("instances_val2017.json", results, image_ids, federated=False)   # keys as in eval.ap
Source  both packages as released. lvis 0.5.3 uses `np.float`, which NumPy has removed: lent to it for its run.
Memory  They hold every mask at once, ours do not.
"""

import contextlib
import importlib
import io
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

COCO_KEYS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ar1", "ar10", "ar100", "ar_s", "ar_m", "ar_l")
LVIS_KEYS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "ap_r", "ap_c", "ap_f", "ar300", "ar_s", "ar_m", "ar_l")


def reference(
    truth: Path, results: list[dict[str, Any]], images: Sequence[int], *, federated: bool
) -> dict[str, float]:
    """What the reference says of `results` (COCO's format, with segmentations), over the `images` alone; nan for its
    -1. federated: by LVIS' rules, of an LVIS file."""
    with contextlib.redirect_stdout(io.StringIO()):
        values = _lvis(truth, results, images) if federated else _coco(truth, results, images)
    numbers = dict(zip(LVIS_KEYS if federated else COCO_KEYS, values, strict=True))
    return {name: math.nan if value == -1 else float(value) for name, value in numbers.items()}


def difference(ours: dict[str, float], theirs: dict[str, float]) -> tuple[float, str]:
    """The largest difference of two sets of numbers, and its key; infinite where one alone is no number."""
    apart = {}
    for name, value in theirs.items():
        both = math.isnan(value) and math.isnan(ours[name])
        apart[name] = 0.0 if both else math.inf if math.isnan(value - ours[name]) else abs(value - ours[name])
    worst = max(apart, key=lambda name: apart[name])
    return apart[worst], worst


def _coco(truth: Path, results: list[dict[str, Any]], images: Sequence[int]) -> list[float]:
    coco = COCO()
    coco.dataset = json.loads(truth.read_bytes())
    for note in coco.dataset["annotations"]:
        note.setdefault("iscrowd", 0)  # LVIS' files have none
    coco.createIndex()
    run = COCOeval(coco, coco.loadRes(cast(Any, [dict(row) for row in results])), "segm")
    run.params.imgIds = sorted(images)
    run.evaluate()
    run.accumulate()
    run.summarize()
    return list(run.stats)


def _lvis(truth: Path, results: list[dict[str, Any]], images: Sequence[int]) -> list[float]:
    lvis = importlib.import_module("lvis")  # brings OpenCV and matplotlib: only where it is asked for
    logging.getLogger("lvis").setLevel(logging.ERROR)
    with _numpys_old_float():
        data = lvis.LVIS(str(truth))
        run = lvis.LVISEval(data, lvis.LVISResults(data, [dict(row) for row in results]), "segm")
        run.params.img_ids = sorted(images)
        run.run()
    return list(run.get_results().values())


@contextlib.contextmanager
def _numpys_old_float() -> Iterator[None]:
    had = hasattr(np, "float")
    if not had:
        np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        if not had:
            del np.float  # type: ignore[attr-defined]
