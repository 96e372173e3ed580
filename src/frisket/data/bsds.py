"""BSDS500's files: where a split's photographs and ground truths are, and what a ground truth holds.

Use     images, truths = folders(Path("/data/BSDS500"), "val"); masks = regions(truths / "101085.mat", (321, 481))
Format  groundTruth/<split>/<name>.mat: a cell `groundTruth` of structs, one per annotator, with `Segmentation` (labels)
        and `Boundaries`. Source: Arbelaez et al., Contour Detection and Hierarchical Image Segmentation, TPAMI 2011.
"""

import zlib
from pathlib import Path

import numpy as np
import scipy.io
from scipy.io.matlab import MatReadError

from frisket.errors import UserError

# What scipy raises for a damaged or foreign .mat; MATLAB 7.3's files are NotImplementedError.
UNREADABLE = (OSError, LookupError, TypeError, ValueError, NotImplementedError, zlib.error, MatReadError)


def folders(root: Path, split: str) -> tuple[Path, Path]:
    """(images, ground truths) of one split under the folder a person names. Raises UserError when it has none."""
    for base in (root, root / "BSDS500" / "data", root / "data"):
        images, truths = base / "images" / split, base / "groundTruth" / split
        if images.is_dir() and truths.is_dir():
            return images, truths
    raise UserError(f"'{root}' has no images/{split} and groundTruth/{split} (nor BSDS500/data/…): give such a folder")


def regions(mat: Path, size: tuple[int, int]) -> list[np.ndarray]:
    """Every region of every annotator as bool masks (H, W), annotator by annotator, labels ascending.

    Raises ValueError (the reason) when the file is missing, unreadable, or of another size (h, w) than the photograph.
    """
    if not mat.is_file():
        raise ValueError(f"has no ground truth {mat.name}")
    try:
        cells = scipy.io.loadmat(mat)["groundTruth"].ravel()
        labels = [cell["Segmentation"][0, 0] for cell in cells]
    except UNREADABLE as error:
        raise ValueError(f"the ground truth {mat.name} is not readable ({error})") from error
    for label in labels:
        if label.shape != size:
            raise ValueError(f"the ground truth is {label.shape[::-1]} pixels, the .jpg {size[::-1]}")
    return [label == value for label in labels for value in np.flatnonzero(np.bincount(label.ravel()))]
