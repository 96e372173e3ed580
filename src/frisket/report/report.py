"""The leaderboard: results of runs, and what others published, as one HTML page that opens offline.

Use     write(["runs/eval", "runs/eval_latency", "runs/train_sam"], "runs/report.html")
Holds   an overview of models x protocols; a section for each task with a board for each protocol and data set, its
        curves and pictures; published numbers, in the same table only where task, protocol and whole data set are
        the same; training curves; the environment and command of every run. Everything is inside the file.
Source  our choice. Numbers of different protocols, data sets or (for times) hardware never share a column.
"""

import base64
import datetime
import io
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from frisket.errors import UserError
from frisket.files import write_text
from frisket.report.board import board_section, heading, published_tables
from frisket.report.markup import Html, Line, chart, join, number, tag
from frisket.report.published import TABLES
from frisket.report.results import COUNTS, Board, Evaluation, Training, boards, read, scalar
from frisket.report.style import CSS, SCRIPT
from frisket.report.tables import QUIET, Column, cell, column, row_name, table

HEADLINES = {
    "miou": ("box/miou", "click1/miou"),
    "instance": ("ap",),
    "everything": ("ar1000", "miou"),
    "edges": ("ods",),
    "latency": ("end_to_end/ms", "encoder/ms"),
}
"""What of each task stands in the overview; of another task, its first number."""

PICTURES = {
    "masks": "The first photographs",
    "best": "Where the last model did best",
    "worst": "Where the last model did worst",
}


def write(paths: Sequence[str | Path], out: str | Path, *, title: str = "Leaderboard") -> Path:
    """Read the runs and write the page. Raises UserError for a run that is missing or damaged, or for none at all."""
    if not paths:
        raise UserError("report needs runs: frisket report runs/eval runs/train_sam, folders that eval or train wrote")
    found = [part for path in paths for part in read(path)]
    evaluations = [part for part in found if isinstance(part, Evaluation)]
    trainings = [part for part in found if isinstance(part, Training)]
    write_text(out, page(evaluations, trainings, title=title))
    return Path(out)


def page(evaluations: list[Evaluation], trainings: list[Training], *, title: str = "Leaderboard") -> Html:
    """The whole page."""
    found = boards(evaluations)
    tasks = list(dict.fromkeys(board.task for board in found))
    parts: list[tuple[str, str, Html]] = []
    if found:
        parts.append(("overview", "Overview", overview(found)))
    parts += [(f"task-{task}", heading(task), task_section(task, found)) for task in tasks]
    if trainings:
        parts.append(("training", "Training", join([training_section(run) for run in trainings])))
    rest = [table for table in TABLES if table.task not in tasks]
    if rest:
        words = tag("p", "Tasks that were not run here. Each table has its own protocol and data.", class_="muted")
        folded = [
            tag("details", tag("summary", heading(task)), published_tables([one for one in rest if one.task == task]))
            for task in dict.fromkeys(one.task for one in rest)
        ]
        parts.append(("published", "Published elsewhere", join(words, folded)))
    parts.append(("runs", "Runs", runs_section(evaluations, trainings)))
    now = datetime.datetime.now(datetime.UTC).strftime("%-d %B %Y, %H:%M UTC")
    models = len(
        {
            entry.evaluation.digest(entry.label) or entry.label
            for board in found
            for entry in board.entries
            if entry.evaluation.parameters(entry.label) is not None or "parameters" not in entry.evaluation.report
        }
    )
    said = (
        f"{_plural(models, 'model')} on {_plural(len(found), 'board')}, from {_plural(len(evaluations), 'evaluation')}"
    )
    said += f" and {_plural(len(trainings), 'training run')}" if trainings else ""
    links = [tag("li", tag("a", text, href=f"#{name}")) for name, text, _ in parts]
    body = [
        tag("a", "To the tables", href="#main", class_="skip"),
        tag(
            "header",
            tag("h1", title),
            tag("p", f"{said}. Written {now}.", class_="lead"),
            tag("nav", tag("ul", links), aria_label="Page"),
            class_="top",
        ),
        tag("main", *(tag("section", tag("h2", text), part, id=name) for name, text, part in parts), id="main"),
        tag("footer", tag("p", "Made by frisket report. The page needs no network and loads nothing.")),
        tag("script", Html(SCRIPT)),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'",
        ),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(CSS)),
    ]
    return Html("<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n")


# ---------------------------------------------------------------- sections


def overview(found: list[Board]) -> Html:
    """Models as rows, the headline of every board as columns; one column, one protocol and data set."""
    picks = [(board, column(board.task, key)) for board in found for key in headline(board)]
    models: dict[tuple[str, str], dict[int, float]] = {}
    sizes: dict[tuple[str, str], float | None] = {}
    for index, (board, col) in enumerate(picks):
        for entry in board.entries:
            who = (entry.label, entry.evaluation.digest(entry.label))
            sizes[who] = sizes.get(who) or entry.evaluation.parameters(entry.label)
            value = scalar(entry.numbers.get(col.key))
            if value is not None:
                models.setdefault(who, {})[index] = value
    shown = [
        Column(str(index), short(board), f"{col.group} {col.name}".strip(), col.kind, col.lower)
        for index, (board, col) in enumerate(picks)
    ]
    weight = Column("parameters", "", "params, M", "plain", lower=True)
    rows = []
    repeated = {label for label, _ in models if sum(label == other for other, _ in models) > 1}
    for (label, digest), values in models.items():
        size = sizes[(label, digest)]
        who = tag("small", f"weights {digest[:8]}") if label in repeated and digest else None
        cells = [cell(weight, None if size is None else size / 1e6)]
        for index, col in enumerate(shown):
            rivals = [other[index] for other in models.values() if index in other]
            top = (min if col.lower else max)(rivals) if len(set(rivals)) > 1 else None
            value = values.get(index)
            cells.append(cell(col, value, best=value is not None and value == top))
        rows.append(tag("tr", row_name(label, who), *cells))
    words = "Every column is one protocol on one data set; compare down a column, never across."
    return join(tag("p", words, class_="muted"), table("Overview: models and headline numbers", [weight, *shown], rows))


def headline(board: Board) -> list[str]:
    """The keys of a board that stand in the overview."""
    known = [key for entry in board.entries for key, value in entry.numbers.items() if scalar(value) is not None]
    wanted = HEADLINES.get(board.task, ())
    found = [key for key in wanted if key in known]
    if board.task == "latency":
        found = found[:1]
    return found or [key for key in dict.fromkeys(known) if key not in (*COUNTS, *QUIET)][:1]


def short(board: Board) -> str:
    """A board's name in a column's head: protocol and data."""
    data = Path(board.data).name or board.data
    parent = Path(board.data).parent.name
    where = f"{parent}/{data}" if data in ("val", "train", "test", "images") and parent else data
    if board.task == "latency":
        where = re.sub(r"\(.*?\)|@.*|,.*", "", board.note).strip()
    return " · ".join(word for word in (board.preset or board.task, where) if word)


def task_section(task: str, found: list[Board]) -> Html:
    """Every board of one task, then what others published for it."""
    mine = [board for board in found if board.task == task]
    joined = [table for board in mine for table in board.published]
    others = [table for table in TABLES if table.task == task and table not in joined]
    shown: list[Html] = [board_section(board) for board in mine]
    pictures = {id(e): e for board in mine for e in board.evaluations}
    shown += [gallery(e) for e in pictures.values()]
    if others:
        words = "Other protocols or other data than above: not comparable with the tables above, nor with each other."
        shown.append(
            tag(
                "details",
                tag("summary", f"Published numbers of other protocols and data ({_plural(len(others), 'table')})"),
                tag("p", words, class_="muted"),
                published_tables(others),
                open=True,
            )
        )
    return join(shown)


def gallery(evaluation: Evaluation) -> Html:
    """masks.png, best.png and worst.png beside an eval.json, inside the page."""
    shown = []
    for name, words in PICTURES.items():
        path = evaluation.path.with_name(f"{name}.png")
        if path.is_file():
            caption = f"{words}: photograph, each model's masks, the truth. Run {evaluation.name}, {name}.png."
            shown.append(picture(path, caption))
    if not shown:
        return Html("")
    first, *rest = shown
    more = tag("details", tag("summary", "Best and worst photographs"), *rest) if rest else None
    return join(tag("h3", f"Pictures of {evaluation.name}"), first, more)


def picture(path: Path, caption: str) -> Html:
    """A picture file as a figure that holds it; one that cannot be read is said to be so."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        return tag("p", f"{path.name} cannot be read as a picture ({error}).", class_="muted")
    jpeg = io.BytesIO()
    image.save(jpeg, format="JPEG", quality=88, subsampling=0, optimize=True)
    stored, kind = path.read_bytes(), "png"
    if jpeg.tell() < len(stored) or path.suffix.lower() != ".png":
        stored, kind = jpeg.getvalue(), "jpeg"
    data = f"data:image/{kind};base64,{base64.b64encode(stored).decode()}"
    shown = tag("img", src=data, alt=caption, width=image.width, height=image.height, loading="lazy")
    frame = tag("div", shown, tabindex=0, role="region", aria_label=caption)
    return tag("figure", tag("figcaption", caption), frame, class_="picture")


def training_section(run: Training) -> Html:
    """A training run: its last validation numbers, its curves, its newest gallery picture."""
    names = list(dict.fromkeys(key for row in run.rows for key in row))
    overall = [name for name in names if name.startswith("val/") and not name.endswith(("_s", "_m", "_l"))]
    steps = [row["step"] for row in run.rows if "step" in row]

    def line(name: str) -> Line:
        points = [(row["step"], row[name]) for row in run.rows if name in row and "step" in row]
        return Line(name, [x for x, _ in points], [y for _, y in points])

    made = [chart([line(name) for name in overall], x="step", y="fraction", title="Validation")]
    losses = [name for name in names if name == "train/loss"] or [n for n in names if n.startswith("train/loss")][:4]
    made.append(chart([line(name) for name in losses], x="step", y="loss", title="Training loss"))
    last = {key: value for name in overall for key, value in [(name, line(name).y[-1] if line(name).y else None)]}
    recipe = run.settings.get("recipe")
    state = "finished" if run.summary else "not finished (no summary.json)"
    facts = [f"recipe {recipe}" if recipe else "", f"step {number(max(steps))}", state]
    facts += [f"{name} {value:.4f}" for name, value in last.items() if value is not None]
    drawn = sorted((run.path / "gallery").glob("*.png"), key=lambda path: path.stat().st_mtime)
    shown = picture(drawn[-1], f"Masks during training: {run.name}/gallery/{drawn[-1].name}") if drawn else None
    return join(
        tag("h3", run.name),
        tag("p", ", ".join(word for word in facts if word), class_="protocol"),
        tag("div", *made, class_="charts") if any(made) else None,
        tag("details", tag("summary", "Newest picture of masks"), shown) if shown else None,
    )


def runs_section(evaluations: list[Evaluation], trainings: list[Training]) -> Html:
    """How each number came to be: command, hardware, commit, weights, settings."""
    shown = []
    for one in evaluations:
        here, settings = one.environment, one.settings
        words = here.get("command")
        command = f"frisket {shlex.join(str(word) for word in words)}" if isinstance(words, list) and words else ""
        hardware = here.get("gpu") or here.get("cpu")
        summary = " · ".join(str(x) for x in (one.name, one.task, str(here.get("date") or "")[:10], hardware) if x)
        facts = {"file": str(one.path), "protocol": one.report.get("protocol"), "data": one.report.get("data")}
        facts |= {key: value for key, value in here.items() if key != "command"}
        facts |= {f"weights of {label}": digest for label, digest in (one.report.get("weights") or {}).items()}
        facts |= {f"parameters of {label}": count for label, count in (one.report.get("parameters") or {}).items()}
        first = next(iter(one.report["models"].values()))
        facts |= {key: first[key] for key in ("setup", "conditions") if key in first}
        facts |= {f"settings: {key}": value for key, value in settings.items() if value not in (None, "", [])}
        shown.append(
            tag("details", tag("summary", summary), tag("pre", command) if command else None, definitions(facts))
        )
    for run in trainings:
        facts = {"folder": str(run.path), **flat(run.settings)}
        shown.append(tag("details", tag("summary", f"{run.name} · training"), definitions(facts)))
    return join(shown)


def definitions(facts: dict[str, Any]) -> Html:
    """Facts as a list of terms; empty ones are left out."""
    pairs = [
        (tag("dt", key), tag("dd", value if isinstance(value, str) else json.dumps(value, default=str)))
        for key, value in facts.items()
        if value not in (None, "", [], {})
    ]
    return tag("dl", pairs)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as {dotted key: value}."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")
