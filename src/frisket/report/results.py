"""Reads what runs left behind, and sorts their numbers into boards: one task, one protocol, one data set each.

Use     found = [part for path in paths for part in read(path)]; boards(evaluations)
Source  our choice. eval.json is by `frisket.engine.evaluate`, the rest by `frisket.engine.rundir`. Two
        results stand in one table only when task, protocol sentence, data, limit and (for times) hardware are equal.
"""

import csv
import json
import math
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from frisket import config
from frisket.errors import UserError
from frisket.everything import grid
from frisket.report.published import BSDS, COCO, LVIS, TABLES, Table

TASKS = {
    "miou": "Boxes and clicks",
    "instance": "Instance segmentation from boxes",
    "everything": "Segment everything",
    "edges": "Edges",
    "latency": "Cost: time, memory, MACs",
}
"""Headings, in the page's order; a task that is not here gets its own name, last."""

COUNTS = ("masks", "images", "objects", "detections", "annotations", "drawings", "n")
"""Keys that say how much was judged; they belong to every protocol of a result, and alone make no row."""


@dataclass
class Evaluation:
    """One eval.json: `name` is its folder's, `report` its content."""

    path: Path
    name: str
    report: dict[str, Any]

    @property
    def task(self) -> str:
        """Its task; "evaluation" in files that do not say."""
        return str(self.report.get("task") or "evaluation")

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings, {} in files that do not say."""
        return _mapping(self.report.get("settings"))

    @property
    def environment(self) -> dict[str, Any]:
        """What it ran on, {} in files that do not say."""
        return _mapping(self.report.get("environment"))

    def parameters(self, label: str) -> float | None:
        """How many weights the model called `label` has."""
        return scalar(_mapping(self.report.get("parameters")).get(label))

    def digest(self, label: str) -> str:
        """SHA-256 of that model's weights, "" when unknown."""
        return str(_mapping(self.report.get("weights")).get(label) or "")


@dataclass
class Training:
    """One training run: `rows` of metrics.csv as {column: float}, its last metrics, its configuration."""

    path: Path
    name: str
    rows: list[dict[str, float]]
    summary: dict[str, Any]
    settings: dict[str, Any]


@dataclass
class Entry:
    """One model on one board. `numbers` holds what the board's part of eval.json held, keys without the preset."""

    label: str
    numbers: dict[str, Any]
    evaluation: Evaluation


@dataclass
class Board:
    """Results that may be compared: everything but the model is equal. `published`: tables that may join them."""

    task: str
    preset: str
    protocol: str
    data: str
    note: str
    entries: list[Entry] = field(default_factory=list)
    published: list[Table] = field(default_factory=list)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The runs on this board, each once."""
        return list({id(entry.evaluation): entry.evaluation for entry in self.entries}.values())


def read(path: str | Path) -> list[Evaluation | Training]:
    """The evaluation and the training run in a folder (or an eval.json itself), whichever is there.

    A folder that holds neither, such as a suite's, stands for its direct sub-folders that do. Raises UserError when
    there is none, or when a file cannot be understood.
    """
    path = Path(path)
    if path.is_file():
        return [read_evaluation(path)]
    if not path.exists():
        raise UserError(f"there is no run at {path}: give folders that `frisket eval` or `frisket train` wrote (out=…)")
    found: list[Evaluation | Training] = []
    if (path / "eval.json").is_file():
        found.append(read_evaluation(path / "eval.json"))
    if (path / "metrics.csv").is_file():
        found.append(read_training(path))
    if not found:
        found = [part for folder in sorted(path.iterdir()) if _holds(folder) for part in read(folder)]
    if not found:
        raise UserError(f"{path} holds neither eval.json nor metrics.csv: evaluate or train first, or name its folder")
    return found


def _holds(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("eval.json", "metrics.csv"))


def read_evaluation(path: Path) -> Evaluation:
    """One eval.json. Raises UserError when it is damaged or holds no numbers."""
    report = _json(path)
    models = report.get("models") if isinstance(report, dict) else None
    if not isinstance(models, dict) or not models or not all(isinstance(m, dict) for m in models.values()):
        raise UserError(f"{path} holds no 'models' with numbers: it is not what `frisket eval` writes; evaluate again")
    return Evaluation(path, path.parent.name or path.stem, report)


def read_training(folder: Path) -> Training:
    """metrics.csv, and summary.json and config.yaml when they are there. Raises UserError for a damaged one."""
    path = folder / "metrics.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [
                {k: v for k, text in row.items() if k and (v := _float(text)) is not None}
                for row in csv.DictReader(file)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}): it is not a training run's") from error
    if not any("step" in row for row in rows):
        raise UserError(f"{path} has no step: it is not a training run's metrics, or nothing was logged yet")
    summary = _json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    settings = config.read(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    return Training(folder, folder.name, rows, _mapping(summary), settings)


def boards(evaluations: list[Evaluation]) -> list[Board]:
    """Every comparable group of results, in the order of TASKS and then as given."""
    found: dict[tuple[str, ...], Board] = {}
    for evaluation in evaluations:
        labels = _mapping(evaluation.report["models"])
        for preset in presets(evaluation):
            told = sentence(evaluation, preset)
            data = str(evaluation.report.get("data") or evaluation.settings.get("truth") or "")
            identity = (evaluation.task, preset, told, data, note(evaluation))
            board = found.setdefault(identity, Board(*identity))
            for label, numbers in labels.items():
                mine = of_preset(numbers, preset, presets(evaluation))
                if any(key not in COUNTS for key in mine):
                    board.entries.append(Entry(label, mine, evaluation))
    order = [*TASKS, *dict.fromkeys(board.task for board in found.values())]
    result = sorted((b for b in found.values() if b.entries), key=lambda board: order.index(board.task))
    for board in result:
        board.published = [table for table in TABLES if comparable(table, board)]
    return result


def presets(evaluation: Evaluation) -> list[str]:
    """Names of the protocols whose numbers one eval.json holds as name/what/measure; else [the single one's, or ""]."""
    keys = [key for numbers in evaluation.report["models"].values() for key in numbers]
    found = list(dict.fromkeys(key.split("/")[0] for key in keys if key.count("/") >= 2))
    if found:
        rest = any(key.split("/")[0] not in found and key not in COUNTS for key in keys)
        return [*found, ""] if rest else found
    named = evaluation.settings.get("protocol")
    named = named if isinstance(named, list) else [named] if isinstance(named, str) and named else []
    return [str(named[0])] if len(named) == 1 and named[0] != "all" else [""]


def of_preset(numbers: dict[str, Any], preset: str, known: list[str]) -> dict[str, Any]:
    """The numbers of one preset, its name cut off; with a single one, all of them."""
    if len(known) == 1 and not any(key.startswith(f"{preset}/") for key in numbers):
        return dict(numbers)
    if preset:
        mine = {key.removeprefix(f"{preset}/"): v for key, v in numbers.items() if key.startswith(f"{preset}/")}
        return mine | {key: numbers[key] for key in COUNTS if key in numbers and key not in mine}
    return {key: value for key, value in numbers.items() if key.split("/")[0] not in known}


def sentence(evaluation: Evaluation, preset: str) -> str:
    """What the result says of its protocol; of several ("a: …; b: …; set") only `preset`'s part and the set's."""
    told = evaluation.report.get("protocol")
    whole = str((told.get("sentence") if isinstance(told, dict) else told) or "not stated")
    parts = whole.split("; ")
    names = {match[1] for part in parts if (match := re.match(r"([\w.+-]+): ", part))}
    if preset not in names:
        return whole
    kept, mine = [], True
    for part in parts:
        match = re.match(r"([\w.+-]+): ", part)
        if match and match[1] in names:
            mine = match[1] == preset
        if mine:
            kept.append(part)
    if parts[-1] not in kept:
        kept.append(parts[-1])  # the data set, which stands last and belongs to all
    return "; ".join(kept)


def note(evaluation: Evaluation) -> str:
    """What else must be equal: a limit on the photographs, and for times the hardware."""
    settings, here = evaluation.settings, evaluation.environment
    words = [f"first {settings['limit']} only"] if settings.get("limit") else []
    if settings.get("split") and (
        evaluation.task == "edges" or "bsds" in str(evaluation.report.get("protocol")).lower()
    ):
        words.append(f"split {settings['split']}")
    if evaluation.task == "latency":
        threads = settings.get("threads", here.get("threads"))
        words.append(str(here["gpu"]) if here.get("gpu") else f"{here.get('cpu', 'unknown CPU')}, {threads} thread(s)")
    return "; ".join(words)


def known_as(board: Board) -> str:
    """The name by which published tables know a board's protocol; "" when it is no published one."""
    s = board.entries[0].evaluation.settings
    if board.task == "instance":
        plain = "gt" if not s.get("detections") else str(s.get("output", ""))
        vitdet = "vitdet" in str(s.get("detections", "")).lower()
        if plain == "gt":
            return plain if s.get("output") == "multimask" and not s.get("refine") else ""
        return "" if not vitdet else "refine" if s.get("refine") else plain
    if board.task == "everything":
        sams = {"strategy": "grid", "points_per_side": 64, "pred_iou_thresh": 0, "stability_score_thresh": 0}
        made = {
            key: s.get(f"everything.{key}", s.get(f"generator.{key}", value))  # the older name
            for key, value in asdict(grid.Config()).items()
        }
        return "ar1000" if made.items() >= (sams | {"crop_n_layers": 0, "box_nms_thresh": 0.9}).items() else ""
    if board.task == "edges":
        return "sam" if s.get("checkpoint") and s.get("nms") and s.get("thresholds") == 99 else ""
    return board.preset


def comparable(table: Table, board: Board) -> bool:
    """Whether a published table has the board's task, protocol and (whole) data set: known by name and number."""
    if not table.preset or table.task != board.task or "first " in board.note or table.preset != known_as(board):
        return False
    told = " ".join([board.data, board.protocol, board.note]).lower()
    images = max((scalar(entry.numbers.get("images")) or 0 for entry in board.entries), default=0)
    whole = {
        COCO: "val2017" in told and "lvis" not in told and 4900 <= images <= 5000,
        LVIS: "lvis" in told and "v1" in told and images >= 19000,
        BSDS: "bsds" in told and "split test" in told and images == 200,
    }
    return whole.get(table.data, False)


def scalar(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def curve(value: Any) -> list[float] | None:
    """A list of numbers (None and NaN as NaN) with at least two, or None."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    if not all(v is None or (isinstance(v, int | float) and not isinstance(v, bool)) for v in value):
        return None
    return [math.nan if v is None else float(v) for v in value]


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except (TypeError, ValueError):
        return None  # a cell that is words: no curve


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is no valid JSON (line {error.lineno}: {error.msg}): run the command again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): give the folder of a finished run") from error
