"""The leaderboard: results of runs, and what others published, as one HTML page that opens offline.

Use     write(["runs/eval", "runs/eval_latency", "runs/train_sam"], "runs/report.html")
Holds   an overview of models x protocols; a section for each task with a board for each protocol and data set, its
        curves and pictures; published numbers, in the same table only where protocol, data set and strategy are equal,
        else folded; training curves; the environment and command of every run. Everything is inside the file.
Source  our choice. Tables, curves and pictures are made here, the page is templates/ (Jinja2, every string escaped).
"""

import base64
import datetime
import hashlib
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image, UnidentifiedImageError

from frisket.errors import UserError
from frisket.files import write_text
from frisket.picture import mounting
from frisket.report import tables
from frisket.report.chart import Chart, Line, chart, number
from frisket.report.published import tables as published
from frisket.report.results import WORDS, Board, Evaluation, Quantization, Training, boards, curve, read

SIZES = {"miou_s": ", small", "miou_m": ", medium", "miou_l": ", large"}


def write(paths: Sequence[str | Path], out: str | Path, **words: Any) -> Path:
    """Write the `page` of these runs to `out`; `words` are its title and vitdet."""
    write_text(out, page(paths, **words))
    return Path(out)


def page(paths: Sequence[str | Path], *, title: str = "Leaderboard", vitdet: Sequence[str | Path] = ()) -> str:
    """The whole page. Raises UserError for a run that is missing or damaged, or for none at all.

    vitdet: ViTDet-H's results files; results prompted with these very files may join what others published with them.
    """
    if not paths:
        raise UserError("report needs runs: frisket report runs/eval runs/train_sam, folders that eval or train wrote")
    detectors = {_digest(Path(file)): "vitdet" for file in vitdet}
    parts = [part for path in paths for part in read(path)]
    evaluations = [part for part in parts if isinstance(part, Evaluation)]
    shown = boards(evaluations, detectors)
    templates = FileSystemLoader(Path(__file__).with_name("templates"))
    jinja = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    jinja.filters |= {"breakable": breakable, "flat": flat, "shell": lambda words: shlex.join(map(str, words))}
    jinja.globals |= {"tables": tables, "number": number, "curves": curves, "training_curves": training_curves}
    jinja.globals |= {"read_picture": picture, "newest_picture": newest_picture, "sensitivity": sensitivity}
    return jinja.get_template("page.html").render(
        title=title,
        now=datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC"),
        words=WORDS,
        heading=tables.heading,
        tasks=list(dict.fromkeys(board.task for board in shown)),
        boards=shown,
        evaluations=evaluations,
        trainings=[part for part in parts if isinstance(part, Training)],
        quantizations=[part for part in parts if isinstance(part, Quantization)],
        all_published=published(),
    )


def breakable(text: str) -> Markup:
    """`text` that a narrow place may break after + / _ - . : and at spaces, rather than inside words."""
    return Markup("<wbr>").join(map(escape, re.split(r"(?<=[+/_.:-])(?![+/_.:-]|$)", text)))


def flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as (dotted key, words), empty ones left out."""
    pairs: list[tuple[str, str]] = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            pairs += flat(inner, f"{prefix}{key}.")
        elif inner not in (None, "", []):
            pairs.append((f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner, default=str)))
    return pairs


def curves(board: Board) -> dict[str, list[Chart]]:
    """Every list of numbers drawn: precision over recall, mIoU over clicks, images/s over batch, else by place.

    {fold: charts}: "" for those that are shown at once.
    """
    names = dict.fromkeys(k for e in board.entries for k, v in e.numbers.items() if curve(v))
    folds: dict[str, list[Chart]] = {"": [], "Curves by size": []}
    for name in names:
        where, _, measure = name.rpartition("/")
        said, over, title = WORDS["measures"].get(measure, measure.replace("_", " ")), "", name
        percent = tables.column(board.task, name).kind == "percent"
        axis = next((axis for axis in ("threshold", "batch") if f"{where}/{axis}" in names), "number")
        unit = {f"{where}/precision", f"{where}/recall"} <= names.keys() and measure in ("precision", "recall")
        if where == "samples" or measure == axis or (unit and measure == "recall"):
            continue
        if unit:
            axis, over, title, percent = "recall", f"{where}/recall", "Precision over recall", False
        elif axis != "number":
            over = f"{where}/{axis}"
            title = "Throughput of the encoder" if axis == "batch" else f"{said} over threshold"
        elif measure.startswith("miou"):
            title = f"mIoU over clicks{SIZES.get(measure, '')}"
            axis, said = "clicks", "mIoU"
        lines = []
        for entry in board.entries:
            ys = [100 * y if percent else y for y in curve(entry.numbers.get(name))]
            xs = curve(entry.numbers.get(over)) or range(1, len(ys) + 1)
            lines.append(Line(entry.label, list(zip(xs, ys))))
        drawn = chart(lines, x=axis, y=said + ", %" * percent, title=title, unit=unit)
        folds["Curves by size" if measure in SIZES else ""] += [drawn] if drawn else []
    return folds


def training_curves(run: Training) -> list[Chart]:
    """Validation numbers over all sizes, and the loss, over steps."""
    names = dict.fromkeys(key for row in run.rows for key in row)
    overall = [name for name in names if name.startswith("val/") and not name.endswith(("_s", "_m", "_l"))]
    losses = ["train/loss"] if "train/loss" in names else [name for name in names if name.startswith("train/loss")][:4]

    def draw(keys: list[str], y: str, title: str) -> Chart | None:
        lines = [Line(key, [(row["step"], row[key]) for row in run.rows if key in row]) for key in keys]
        return chart(lines, x="step", y=y, title=title)

    drawn = [draw(overall, y="fraction", title="Validation"), draw(losses, y="loss", title="Training loss")]
    return [drawing for drawing in drawn if drawing]


def sensitivity(run: Quantization) -> list[Chart]:
    """What each layer costs when it alone is quantized."""
    points = [(number, row["agreement"]) for number, row in enumerate(run.layers, start=1)]
    title = "Mask IoU with the float model, one layer quantized"
    drawn = chart([Line(run.name, points)], x="layer, costliest first", y="mask IoU", title=title)
    return [drawn] if drawn else []


def picture(path: Path) -> dict[str, Any]:
    """A picture file as an <img>'s attributes, the paper around its panels transparent; {"error": …} if unreadable."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return {"error": f"{path.name} cannot be read as a picture ({error})."}
    image.putalpha(Image.fromarray(np.where(mounting(image), 0, 255).astype(np.uint8)))
    stored = io.BytesIO()
    image.save(stored, format="WEBP", quality=90)
    data = f"data:image/webp;base64,{base64.b64encode(stored.getvalue()).decode()}"
    return {"error": "", "src": data, "width": image.width, "height": image.height}


def newest_picture(run: Training) -> Path | None:
    """The last gallery picture of a training run."""
    return max((run.path / "gallery").glob("*.png"), key=lambda path: path.stat().st_mtime, default=None)


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError(
            f"there is no file {path}: vitdet=[FILE] names ViTDet-H's results, the files that eval was given"
        )
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
