"""BSDS500 edges: ODS, OIS, AP and R50 of checkpoints, and of any folder of edge maps.

Run     frisket eval configs/eval_edges.yaml maps=DIR truth=DIR thresholds=99 out=DIR         (needs no checkpoint)
        frisket eval configs/eval_edges.yaml maps=[hed:DIR,sobel] truth=/data/BSDS500 split=val
        frisket eval configs/eval_edges.yaml checkpoint=runs/train_sam truth=/data/BSDS500
Source  The Berkeley benchmark (see frisket.eval.boundary) and Segment Anything's zero-shot edges (see
        frisket.everything.edges). The benchmark itself knows no edge NMS: the protocol line says where it ran.

Maps from folders are matched in the loader's workers, those of checkpoints in the judge's own process with as many
threads (the matcher leaves Python's lock), so `workers` cores are busy either way.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from frisket.data.bsds import boundaries, folders
from frisket.data.edgemaps import EdgeMaps
from frisket.data.identity import Identity, of_bsds
from frisket.errors import UserError
from frisket.eval.boundary import MAX_DIST, Counts, best, curve, rates, summary, thresholds
from frisket.eval.task import BaseTask, Row, TaskConfig, labelled
from frisket.everything.edges import asked_by, everything_edges, photograph_edges, thinned
from frisket.everything.strategy import describe
from frisket.models.sam import Sam
from frisket.picture import Panel
from frisket.predict.predictor import PICTURES, Predictor, read_image

SOBEL = "sobel"

Edges = NDArray[np.floating]


@dataclass
class Config(TaskConfig):
    """Whose edges, and how they are compared. Folders' maps are judged as they are."""

    maps: list[str] = field(default_factory=list)
    """Folders of one .png or .mat per photograph, optionally after `label:`; sobel: the photographs' magnitude."""
    truth: str = ""
    """A folder of groundTruth .mat files, or a BSDS500 folder; `data` says the same."""
    split: str = "val"
    """BSDS500's."""
    images: str = ""
    """The folder of the photographs, where `truth` is no BSDS500 folder."""
    thresholds: int = field(default=99, metadata={"least": 1, "most": 9999})
    """How many."""
    max_dist: float = MAX_DIST
    """Largest distance of a match, as a part of the diagonal."""
    strategy: str = "grid"
    """Who says where a checkpoint's masks are: grid: 16 x 16 points; autoppn: 256 of its own; a file of everything/."""
    blur: bool = True
    """3 x 3 Gaussian on the maps made here, before edge NMS."""
    nms: bool = True
    """Edge NMS on the maps made here."""


@dataclass
class Scene:
    """One photograph to judge: its name, picture file (None when not at hand), drawings bool (A, H, W); rows already
    judged, by label."""

    key: str
    photograph: Path | None
    drawings: NDArray[np.bool_]
    rows: dict[str, Row] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w)."""
        return self.drawings.shape[1], self.drawings.shape[2]


class Task(BaseTask):
    """Items are `Scene`s; a row holds counts (T, 4), and the best F of its map alone with its threshold, R and P."""

    protocol = "edges"
    needs_model = False
    config: Config

    def __init__(self, config: Config, image_size: int) -> None:
        super().__init__(config, image_size)
        if not config.maps and not config.checkpoint:
            raise UserError("there are no edges to judge: give maps=DIR, maps=sobel or checkpoint=…")
        if not 0 < config.max_dist < 1:
            raise UserError(f"max_dist={config.max_dist} is a part of the picture's diagonal: between 0 and 1")
        self.asked = asked_by(config.strategy)
        self.levels = thresholds(config.thresholds)
        self.truths, photographs, self.split = truth_files(config)
        names = [path.stem for path in self.truths]
        self.maps = map_sources(config.maps, names)
        for label in self.maps.keys() & labelled(config.checkpoint, "checkpoints").keys():
            raise UserError(f"maps and a checkpoint are both called '{label}': name one, as in maps=other:{label}")
        self.photographs = photograph_files(photographs, names)
        missing = [name for name in names if name not in self.photographs]
        if missing and (config.checkpoint or None in self.maps.values()):
            where = f"{photographs} has no photograph {missing[0]}" if photographs else "the photographs are not known"
            raise UserError(f"{where}: give images=… the folder of the .jpg files, or truth=… a BSDS500 folder")
        self.known: dict[tuple[Any, str], Counts] = {}  # so that drawing a photograph does not match it again

    @property
    def sentence(self) -> str:
        """The benchmark's rules, and what was done to maps before it."""
        count, made = self.config.thresholds, []
        if any(source is not None for source in self.maps.values()):
            made.append("maps from folders as they are, without edge NMS")
        if any(source is None for source in self.maps.values()):
            made.append(f"sobel: gradient magnitude of the grey photograph, {self._after()}")
        if self.config.checkpoint:
            made.append(
                f"models: {describe(self.asked)['sentence']}, Sobel of the probabilities on the "
                f"masks' outer boundary, largest over masks, {self._after()}"
            )
        return (
            f"bsds500 boundaries: {count} threshold{'s' * (count > 1)}, thinned, exact one-to-one matching with each "
            f"annotator within {self.config.max_dist:g} of the diagonal; {'; '.join(made)}"
        )

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the benchmark, and of the maps that were made here."""
        names = ("thresholds", "max_dist", "blur", "nms")
        maps = {label: "maps" if source else SOBEL for label, source in self.maps.items()}
        return {"maps": maps, **{name: getattr(self.config, name) for name in names}}

    @property
    def strategy(self) -> dict[str, Any] | None:
        """What the masks of a checkpoint's edges are asked with."""
        return describe(self.asked) if self.config.checkpoint else None

    def dataset(self, images: int) -> Identity:
        """The drawings."""
        return of_bsds(self.truths, self.photographs.values(), self.split, images)

    def _after(self) -> str:
        blurred = "3 x 3 blur and edge NMS" if self.config.blur else "edge NMS"
        return f"scaled to 0..1, {blurred}" if self.config.nms else "scaled to 0..1, without edge NMS"

    def __len__(self) -> int:
        return len(self.truths)

    def load(self, index: int) -> Scene:
        """One photograph's drawings; in a loader's worker its maps are judged as well."""
        truth = self.truths[index]
        try:
            drawings = boundaries(truth)
        except ValueError as error:
            raise UserError(f"the photograph {truth.stem}: {error}: fetch the ground truth again") from error
        scene = Scene(truth.stem, self.photographs.get(truth.stem), drawings)
        if torch.utils.data.get_worker_info() is not None:
            scene.rows = {label: self.map_row(label, scene, threads=1) for label in self.maps}
        return scene

    def without_model(self, item: Scene) -> dict[str, Row]:
        """The rows of every folder and of sobel."""
        rows = item.rows or {label: self.map_row(label, item, threads=self.threads) for label in self.maps}
        self.known |= {(label, item.key): row["counts"] for label, row in rows.items()}
        return rows

    def answer(self, sam: Sam | None, item: Scene) -> Row:
        """One checkpoint's row."""
        assert sam is not None and item.photograph is not None
        predictor = Predictor(sam, image_size=self.image_size)
        predictor.set_image(photograph(item))
        edges = everything_edges(predictor, self.asked, blur=self.config.blur, nms=self.config.nms).numpy()
        row = self.row(id(sam), item, edges, threads=self.threads)
        self.known[id(sam), item.key] = row["counts"]
        return row

    @property
    def threads(self) -> int:
        """Matchings at once in the judge's own process."""
        return max(1, self.config.place.workers)

    def map_row(self, label: str, item: Scene, *, threads: int) -> Row:
        """The row of one folder, or of sobel."""
        source = self.maps[label]
        if source is not None:
            return self.row(label, item, source.read(item.key, item.size), threads=threads)
        edges = photograph_edges(torch.from_numpy(photograph(item)).permute(2, 0, 1))
        return self.row(
            label, item, (thinned(edges, blur=self.config.blur) if self.config.nms else edges).numpy(), threads=threads
        )

    def row(self, known_as: Any, item: Scene, edges: Edges, *, threads: int) -> Row:
        """The row of a map (H, W), floats in 0..1."""
        counts = self.known.get((known_as, item.key))
        if counts is None:
            counts = curve(edges, item.drawings, self.levels, max_dist=self.config.max_dist, threads=threads)
        threshold, recall, precision, f = best(self.levels, *rates(counts))
        shade = np.rint(255 * edges).astype(np.uint8)
        named = {"ois": f, "ois/threshold": threshold, "ois/recall": recall, "ois/precision": precision, "score": f}
        return {"key": item.key, **named, "counts": counts, "_shade": shade}

    def summarise(self, rows: list[Row]) -> dict[str, Any]:
        """{"ods", "ois", "ap", "r50", "ods/threshold", …, "curve/recall": [T], …, "images"}."""
        return summary([row["counts"] for row in rows], self.levels) | {"images": float(len(rows))}

    def table(self, numbers: dict[str, dict[str, Any]]) -> str:
        """Models and folders as rows; fractions with three digits, as edges are quoted."""
        width = max(len(label) for label in numbers)
        names = ("ods", "ois", "ap", "r50")
        lines = [
            f"{'':{width}}" + "".join(f"{name.upper():>7}" for name in names) + "   (threshold, recall, precision)"
        ]
        for label, values in numbers.items():
            cells = "".join(f"{values[name]:7.3f}" for name in names)
            at = ", ".join(f"{values[f'ods/{name}']:.3f}" for name in ("threshold", "recall", "precision"))
            lines.append(f"{label:{width}}{cells}   ({at})")
        images = int(next(iter(numbers.values()))["images"])
        return "\n".join([*lines, f"{images} photographs; {self.sentence}"])

    def picture(self, item: Scene, answers: dict[str, Row]) -> list[Panel]:
        """The photograph, each map dark on white with its F, and the share of annotators who drew each pixel."""
        drawn = np.rint(255 * item.drawings.mean(0)).astype(np.uint8)
        panels = [] if item.photograph is None else [Panel(photograph(item), title=item.key)]
        panels += [Panel(ink(row["_shade"]), title=f"{label}  F {row['ois']:.2f}") for label, row in answers.items()]
        return [*panels, Panel(ink(drawn), title=f"{len(item.drawings)} annotators")]


def ink(shade: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Strengths uint8 (H, W) as a picture (H, W, 3), strong ones dark."""
    return np.repeat(255 - shade[..., None], 3, axis=2)


def photograph(item: Scene) -> NDArray[np.uint8]:
    """uint8 RGB (H, W, 3). Raises UserError when its size is not that of the drawings."""
    assert item.photograph is not None
    pixels = read_image(item.photograph)
    if pixels.shape[:2] != item.size:
        raise UserError(
            f"{item.photograph} is {pixels.shape[1]} wide and {pixels.shape[0]} high, its ground truth {item.size[1]} "
            f"and {item.size[0]}: give images=… the photographs that were annotated"
        )
    return pixels


def truth_files(config: Config) -> tuple[list[Path], Path | None, str]:
    """(ground truths in the order of their names, folder of the photographs or None, split or ""). Raises UserError for
    none."""
    if not (config.truth or config.data):
        raise UserError("no ground truth is named: give truth=… a folder of .mat files, or a BSDS500 folder")
    root = Path(config.truth or config.data)
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: give truth=… a folder of .mat files, or a BSDS500 folder")
    images, split = None, ""
    truths = sorted(root.glob("*.mat"))
    if truths:
        beside = root.parent.parent / "images" / root.name  # …/groundTruth/val and …/images/val
        images, split = (beside, root.name) if beside.is_dir() else (None, "")
    else:
        try:
            images, folder = folders(root, config.split)
        except UserError as error:
            raise UserError(f"{root} holds no ground truth: no .mat files, and {error}") from error
        truths, split = sorted(folder.glob("*.mat")), config.split
        if not truths:
            raise UserError(f"{folder} holds no ground truth: one .mat file for each photograph belongs there")
    return truths, Path(config.images) if config.images else images, split


def photograph_files(folder: Path | None, names: list[str]) -> dict[str, Path]:
    """{name: picture file} of those `names` that `folder` has."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give images=… the folder of the photographs")
    held = {path.stem: path for path in folder.iterdir() if path.suffix.lower() in PICTURES}
    return {name: held[name] for name in names if name in held}


def map_sources(entries: list[str], names: list[str]) -> dict[str, EdgeMaps | None]:
    """{label: folder, None for sobel}."""
    named = labelled(entries, "folders of maps")
    return {label: None if path == SOBEL else EdgeMaps(Path(path), names) for label, path in named.items()}
