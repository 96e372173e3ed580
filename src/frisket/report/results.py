"""Reads what runs left behind, and sorts their numbers into boards: one task, one protocol, one data set each.

Use     parts = [part for path in paths for part in read(path)]; boards(evaluations)
Source  our choice. eval.json is by `frisket.engine.evaluate`, the rest by `frisket.engine.rundir`. Two results stand in
        one table only when what eval.json tells of itself is equal: protocol, data set, strategy and, for times, the
        hardware. Files of schema 1 tell only a sentence: they have boards of their own, and join nothing published.
"""

import csv
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frisket import config as settings
from frisket.errors import UserError
from frisket.report.published import Published, equal, tables

WORDS = settings.read(Path(__file__).with_name("words.yaml"))
FILES = ("eval.json", "metrics.csv", "quant.json")
"""By which a folder is known."""
COUNTS = ("masks", "images", "objects", "detections", "annotations", "drawings", "n")
"""Keys that say how much was judged; they belong to every protocol of a result, and alone make no row."""


@dataclass
class Evaluation:
    """One eval.json. name: its folder's; report: its content; named: whether it tells protocol and data set by fields
    (schema 2), not by a sentence and a path; what a file does not say is empty."""

    path: Path
    name: str
    report: dict[str, Any]
    task: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    named: bool

    @property
    def hardware(self) -> str:
        """What times depend on: the GPU, or the CPU and its threads; "" for tasks that measure none."""
        if self.task != "latency":
            return ""
        threads = self.settings.get("place.threads") or self.settings.get("threads") or "?"
        cpu = f"{self.environment.get('cpu', 'unknown CPU')}, {threads} thread{'s' * (threads != 1)}"
        return str(self.environment.get("gpu") or cpu)

    @property
    def data(self) -> str:
        """Its data set in words: a public set's name, else the path that was given, and how many images."""
        path = str(self.report.get("data") or self.settings.get("truth") or "")
        if not self.named:
            return path
        told = self.report["dataset"]
        known, images = WORDS["datasets"].get(told.get("name")), scalar(told.get("images"))
        name = f"{known} {told.get('split') or ''}".strip() if known else path or str(told.get("name"))
        return name if images is None else f"{name}, {images:,.0f} image{'s' * (images != 1)}"

    @property
    def protocols(self) -> list[str]:
        """The names of the protocols of prompts and clicks that it was judged by."""
        given = self.settings.get("protocol") or []
        if self.named:
            given = mapping(self.report["protocol"].get("arguments")).get("protocols") or []
        return given if isinstance(given, list) else [given]

    @property
    def note(self) -> str:
        """What a heading says besides protocol and data: hardware, strategy, or what a file of schema 1 leaves out."""
        limit, split = self.settings.get("limit"), self.settings.get("split")
        old = [f"first {limit} only" if limit else "", f"split {split}" if split else ""]
        words = [mapping(self.report.get("strategy")).get("name")] if self.named else old
        return "; ".join(str(word) for word in [*words, self.hardware] if word)

    def parameters(self, label: str) -> float | None:
        """How many weights the model called `label` has; None for a baseline, or where it is not told."""
        return scalar(mapping(self.report.get("parameters")).get(label))

    def digest(self, label: str) -> str:
        """SHA-256 of that model's weights, "" when unknown."""
        return str(mapping(self.report.get("weights")).get(label) or "")


@dataclass
class Training:
    """One training run: `rows` of metrics.csv as {column: float}, its last metrics, its configuration."""

    path: Path
    name: str
    rows: list[dict[str, float]]
    summary: dict[str, Any]
    settings: dict[str, Any]


@dataclass
class Quantization:
    """What `frisket quant` wrote: quant.json's content, its layers as {"layer", "agreement", …}, costliest first."""

    path: Path
    name: str
    report: dict[str, Any]
    layers: list[dict[str, Any]]


@dataclass
class Entry:
    """One model on one board; `numbers` without the preset in their keys."""

    label: str
    numbers: dict[str, Any]
    evaluation: Evaluation


@dataclass
class Board:
    """Results that may be compared: everything but the model is equal. preset: which of several protocols in one file,
    or ""; told: all that had to be equal; sentence: the protocol in words; published: tables that may join."""

    preset: str
    told: dict[str, Any]
    sentence: str
    entries: list[Entry] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)

    @property
    def first(self) -> Evaluation:
        """Any of its runs: they tell alike."""
        return self.entries[0].evaluation

    @property
    def task(self) -> str:
        """The task of all."""
        return self.first.task


def read(path: str | Path) -> list[Evaluation | Training | Quantization]:
    """The evaluation, the training run and the quantization in a folder (or an eval.json itself), whichever is there.

    A folder that holds neither, such as a suite's, stands for its direct sub-folders that do. Raises UserError when
    there is none, or when a file cannot be understood.
    """
    path = Path(path)
    if path.is_file():
        return [read_evaluation(path)]
    if not path.is_dir():
        raise UserError(f"there is no run at {path}: give folders that `frisket eval` or `frisket train` wrote (out=…)")
    parts: list[Evaluation | Training | Quantization] = []
    if (path / "eval.json").is_file():
        parts.append(read_evaluation(path / "eval.json"))
    if (path / "metrics.csv").is_file():
        parts.append(read_training(path))
    own = len(parts)
    if (path / "quant.json").is_file():
        parts.append(read_quantization(path))
    if not own:  # beside a quantization, too: a study judges it in there
        holding = [p for p in sorted(path.iterdir()) if any((p / name).is_file() for name in FILES)]
        parts += [part for folder in holding for part in read(folder)]
    if not parts:
        raise UserError(
            f"{path} holds none of {', '.join(FILES)}: evaluate, train or quantize first, or name the folder that did"
        )
    return parts


def read_evaluation(path: Path) -> Evaluation:
    """One eval.json. Raises UserError when it is damaged or holds no numbers."""
    report = _json(path)
    models = report.get("models") if isinstance(report, dict) else None
    if not isinstance(models, dict) or not models or not all(isinstance(m, dict) for m in models.values()):
        raise UserError(f"{path} holds no 'models' with numbers: it is not what `frisket eval` writes; evaluate again")
    named = report.get("schema") == 2 and all(isinstance(report.get(key), dict) for key in ("protocol", "dataset"))
    task, name = str(report.get("task") or "evaluation"), path.parent.name or path.stem
    told, here = mapping(report.get("settings")), mapping(report.get("environment"))
    return Evaluation(path, name, report, task, told, here, named)


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
    rows = [row for row in rows if "step" in row]
    if not rows:
        raise UserError(f"{path} has no step: it is not a training run's metrics, or nothing was logged yet")
    summary = _json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    config = settings.read(folder / "config.yaml") if (folder / "config.yaml").is_file() else {}
    return Training(folder, folder.name, rows, mapping(summary), config)


def read_quantization(folder: Path) -> Quantization:
    """quant.json. Raises UserError for a damaged one."""
    path = folder / "quant.json"
    report = mapping(_json(path))
    bits, layers = mapping(mapping(report.get("settings")).get("quant")), report.get("layers")
    rows = layers if isinstance(layers, list) else []
    told = [report.get(key) for key in ("agreement", "masks", "bytes", "float_bytes")]
    told += [bits.get("weight_bits"), bits.get("activation_bits"), *(mapping(row).get("agreement") for row in rows)]
    if not rows or any(scalar(value) is None for value in told):
        raise UserError(f"{path} lacks what `frisket quant` writes, layers and what they cost: run it again")
    return Quantization(folder, folder.name, report, rows)


def boards(evaluations: list[Evaluation], detectors: Mapping[str, str]) -> list[Board]:
    """Every comparable group of results, in the order of words.yaml's tasks and then as given.

    detectors: {SHA-256 of a detector's results file: the name by which published tables know it}.
    """
    groups: dict[str, Board] = {}
    for evaluation in evaluations:
        parts = presets(evaluation.report["models"], evaluation.protocols, task=evaluation.task)
        for preset, models in parts.items():
            told = identity(evaluation, preset, detectors)
            board = Board(preset, told, sentence(evaluation, preset, parts))
            board = groups.setdefault(json.dumps(told, sort_keys=True, default=str), board)
            board.entries += [Entry(label, numbers, evaluation) for label, numbers in models.items()]
    order = [*WORDS["tasks"], *(board.task for board in groups.values())]
    for board in groups.values():
        board.published = [t for t in tables() if t.equal and t.task == board.task and equal(t.equal, board.told)]
    return sorted(groups.values(), key=lambda board: order.index(board.task))


def presets(models: dict[str, dict[str, Any]], told: list[str], task: str = "") -> dict[str, dict[str, dict[str, Any]]]:
    """{preset: {label: numbers}}: keys name/what/measure are the protocol `name`'s, all others those of "", or of the
    only protocol `told`. Counts without a name are every protocol's; a model of which only counts are left goes."""
    names = {key.split("/")[0] for numbers in models.values() for key in numbers if key.count("/") >= 2}
    names -= {"teacher"} if task == "fidelity" else set()  # whose own scores stand beside the student's
    alone = told[0] if len(told) == 1 and told[0] != "all" else ""
    parts: dict[str, dict[str, dict[str, Any]]] = {}
    for label, numbers in models.items():
        shared = {key: value for key, value in numbers.items() if key in COUNTS}
        for key, value in numbers.items():
            first, _, rest = key.partition("/")
            preset, rest = (first, rest) if first in names else (alone, key)
            parts.setdefault(preset, {}).setdefault(label, {})[rest] = value
        for part in parts.values():
            part[label] = shared | part.get(label, {})
    kept = {preset: {k: v for k, v in part.items() if v.keys() - {*COUNTS}} for preset, part in parts.items()}
    return {preset: part for preset, part in kept.items() if part}


def identity(evaluation: Evaluation, preset: str, detectors: Mapping[str, str]) -> dict[str, Any]:
    """All that must be equal for two results to share a table, and what a published table compares itself with."""
    report, told = evaluation.report, {"task": evaluation.task, "hardware": evaluation.hardware}
    if not evaluation.named:
        words = {"preset": preset, "sentence": report.get("protocol"), "data": evaluation.data, "note": evaluation.note}
        return told | {"schema": 1} | words
    arguments = dict(mapping(report["protocol"].get("arguments")))
    if preset:
        arguments["protocols"] = [preset]
    for key in ("clicks", "maps"):  # not how it is measured but what of: a number's key names its click, a row its maps
        arguments.pop(key, None)
    digest = str(mapping(arguments.get("detections")).get("digest"))
    if digest in detectors:
        arguments["detections"] = detectors[digest]
    protocol = {"name": report["protocol"].get("name"), "arguments": arguments}
    return told | {"protocol": protocol, "dataset": report["dataset"], "strategy": report.get("strategy")}


def sentence(evaluation: Evaluation, preset: str, known: Collection[str]) -> str:
    """The protocol in words; of a sentence over several ("a: …; b: …") what belongs to `preset`. For reading only."""
    told = evaluation.report.get("protocol")
    told = str((told.get("sentence") if isinstance(told, dict) else told) or "not stated")
    parts = re.split(rf"(?:^|; )({'|'.join(map(re.escape, known))}): ", told) if preset else []
    return dict(zip(parts[1::2], parts[2::2])).get(preset, told)


def scalar(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def curve(value: Any) -> list[float]:
    """A list of at least two numbers (None and NaN as NaN); [] for anything else."""
    if not isinstance(value, list) or len(value) < 2 or not all(v is None or type(v) in (int, float) for v in value):
        return []
    return [math.nan if v is None else float(v) for v in value]


def mapping(value: Any) -> dict[str, Any]:
    """A mapping, or {} for anything else."""
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
