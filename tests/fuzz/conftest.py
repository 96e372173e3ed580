"""One good record, small: what the fuzz tests damage."""

import json

import numpy as np
import pytest

from frisket.data.sa1b import encode_jpeg
from frisket.kernels import rle


@pytest.fixture(scope="session")
def good() -> dict[str, bytes]:
    """jpg and json of a 12 x 20 photograph with two masks, one of them as a list of runs."""
    masks = np.zeros((2, 12, 20), bool)
    masks[0, 2:9, 3:12], masks[1, 5:12, 10:20] = True, True
    notes = [
        {
            "id": number,
            "segmentation": rle.encode(mask),
            "bbox": [3, 2, 9, 7] if number == 0 else [10, 5, 10, 7],
            "area": int(mask.sum()),
            "predicted_iou": 0.9,
            "stability_score": 0.95,
        }
        for number, mask in enumerate(masks)
    ]
    notes[1]["segmentation"]["counts"] = rle.counts(notes[1]["segmentation"]["counts"]).tolist()
    image = {"image_id": 7, "width": 20, "height": 12, "file_name": "sa_7.jpg"}
    pixels = np.random.default_rng(0).integers(0, 255, (12, 20, 3), dtype=np.uint8)
    return {"jpg": encode_jpeg(pixels), "json": json.dumps({"image": image, "annotations": notes}).encode()}
