"""BSDS500's files: where a split's photographs and ground truths are, and what a ground truth holds.

Use     images, truths = folders(Path("/data/BSDS500"), "val"); masks = regions(truths / "101085.mat", (321, 481))
        drawings = boundaries(truths / "101085.mat")
Format  groundTruth/<split>/<name>.mat: a cell `groundTruth` of structs, one per annotator, with `Segmentation` (labels)
        and `Boundaries`; tools differ in the case of these names, so it is ignored. Source: Arbelaez et al., Contour
        Detection and Hierarchical Image Segmentation, TPAMI 2011.
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
    labels = _drawn(mat, "Segmentation")
    for label in labels:
        if label.shape != size:
            raise ValueError(f"the ground truth is {label.shape[::-1]} pixels, the .jpg {size[::-1]}")
    return [label == value for label in labels for value in np.flatnonzero(np.bincount(label.ravel()))]


def boundaries(mat: Path) -> np.ndarray:
    """Every annotator's boundary pixels, bool (A, H, W).

    Raises ValueError (the reason) when the file is missing, unreadable, or holds drawings of several sizes.
    """
    drawn = _drawn(mat, "Boundaries")
    sizes = sorted({drawing.shape[::-1] for drawing in drawn})
    if len(sizes) != 1:
        raise ValueError(f"the ground truth {mat.name} must hold boundaries of one size, not {sizes or 'none at all'}")
    return np.stack([drawing != 0 for drawing in drawn])


def matrix(mat: Path, name: str) -> np.ndarray:
    """The variable `name` (in any case) of a .mat. Raises ValueError: why it cannot be had, without the file's name."""
    try:
        held = scipy.io.loadmat(mat)
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    for key, value in held.items():
        if key.lower() == name.lower():
            return value
    names = ", ".join(key for key in held if not key.startswith("_"))
    raise ValueError(f"it holds {names or 'nothing'}, but no {name}")


def _drawn(mat: Path, field: str) -> list[np.ndarray]:
    """One field of every annotator, arrays (H, W)."""
    if not mat.is_file():
        raise ValueError(f"has no ground truth {mat.name}")
    try:
        return [_cell(cell, field) for cell in matrix(mat, "groundTruth").ravel()]
    except UNREADABLE as error:
        raise ValueError(f"the ground truth {mat.name} is not readable ({error})") from error


def _cell(cell: np.ndarray, field: str) -> np.ndarray:
    names = {name.lower(): name for name in cell.dtype.names or ()}
    if field.lower() not in names:
        raise ValueError(f"an annotator has no {field}")
    drawn = cell[names[field.lower()]][0, 0]
    if drawn.ndim != 2:
        raise ValueError(f"an annotator's {field} has {drawn.ndim} axes")
    return drawn
