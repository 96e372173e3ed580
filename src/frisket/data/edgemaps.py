"""Edge maps on disk: one .png (value / 255) or .mat (ucm2) for each photograph, named as it is.

Use     maps = EdgeMaps(Path("runs/hed/val"), ["101085", …])      # looks for every file now
        edges = maps.read("101085", (321, 481))                    # float64 (H, W) in 0..1
Source  The Berkeley benchmark's two inputs. A ucm2 of (2h + 1, 2w + 1) is read at odd positions from the third, counted
        from one. 16-bit .png (value / 65535) is our addition.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from frisket.data.bsds import matrix
from frisket.errors import UserError

KINDS = (".png", ".mat")


class EdgeMaps:
    """A folder of edge maps for photographs called `names`.

    Raises UserError when the folder is missing, holds no map, or lacks one.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UserError(
                f"there is no folder of maps at {folder}: give the folder that holds one map per photograph"
            )
        held: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            held.setdefault(path.stem, []).append(path)
        known = {stem: [path for path in paths if path.suffix.lower() in KINDS] for stem, paths in held.items()}
        if not any(known.values()) and not any(name in held for name in names):
            raise UserError(f"{folder} holds no maps: they are .png or .mat files, one for each photograph")
        self.paths = {name: self._one(name, held.get(name, []), known.get(name, [])) for name in names}

    def _one(self, name: str, held: list[Path], known: list[Path]) -> Path:
        if len(known) > 1:
            raise UserError(f"{self.folder} holds {known[0].name} and {known[1].name}: leave one map per photograph")
        if known:
            return known[0]
        if held:
            raise UserError(f"{held[0]} is no map: '{held[0].suffix}' files are not read, only .png and .mat (ucm2)")
        raise UserError(f"{self.folder} has no map of the photograph {name}: add {name}.png or {name}.mat")

    def read(self, name: str, size: tuple[int, int]) -> NDArray[np.float64]:
        """The map of photograph `name`, float64 (H, W) in 0..1.

        Raises UserError when it is damaged, of another size than `size` (h, w), or holds NaN or values outside 0..1.
        """
        path = self.paths[name]
        edges = _png(path) if path.suffix.lower() == ".png" else _ucm2(path)
        if edges.shape != size:
            raise UserError(
                f"the map {path} is {edges.shape[1]} wide and {edges.shape[0]} high, its photograph {size[1]} and "
                f"{size[0]}: save maps at the photograph's size (ucm2 at twice that, plus one)"
            )
        if np.isnan(edges).any():
            raise UserError(f"the map {path} holds NaN at {int(np.isnan(edges).sum())} pixels: save numbers in 0..1")
        low, high = float(edges.min(initial=0)), float(edges.max(initial=0))
        if low < 0 or high > 1 + 1e-6:  # of rounding
            raise UserError(f"the map {path} holds values from {low:g} to {high:g}: save edge strengths in 0..1")
        return edges


def _png(path: Path) -> NDArray[np.float64]:
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith("I"):  # 16 bits
                return np.asarray(opened, np.float64) / 65535
            if opened.mode in ("1", "L"):
                return np.asarray(opened.convert("L"), np.float64) / 255
            pixels = np.asarray(opened.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"the map {path} cannot be read ({reason}): save it again as a grey .png") from error
    if (pixels != pixels[..., :1]).any():
        raise UserError(f"the map {path} is a colour picture: save edge strengths as a grey .png")
    return pixels[..., 0] / 255


def _ucm2(path: Path) -> NDArray[np.float64]:
    try:
        values = np.asarray(matrix(path, "ucm2"), np.float64)
    except (ValueError, TypeError) as error:
        raise UserError(f"the map {path} cannot be read ({error}): a .mat map holds the matrix ucm2") from error
    if values.ndim != 2:
        raise UserError(f"the map {path} cannot be read (its ucm2 has {values.ndim} axes): a map has two")
    return values[2::2, 2::2]
