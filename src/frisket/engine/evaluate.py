"""Judge checkpoints: one task, or a suite of tasks over the same models; a table, eval.json, per_image.csv, pictures.

    evaluate(TASKS.find("miou").Task, config)                   # one task
    suite(config)                                               # several, each into its own folder, and a page

`frisket.engine.judge` runs a task on the devices there are. A suite started again passes over the tasks whose eval.json
is there.
"""

import csv
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from frisket import checkpoint, config
from frisket.callbacks import Judged
from frisket.engine.judge import Items, Verdict, judge
from frisket.engine.rundir import RunDir, wandb_log
from frisket.engine.strategy import place, quiet
from frisket.environment import environment
from frisket.errors import UserError, nearest
from frisket.eval.task import TASKS, BaseTask, TaskConfig
from frisket.files import atomic, write_json
from frisket.models.sam import Sam
from frisket.picture import comparison
from frisket.place import Place
from frisket.report.report import write as page

SCHEMA = 2
OWN = ("task", "tasks", "out")  # of a suite; not handed to its tasks
LEAST = {"limit": 1, "pictures": 0, "workers": 0, "num_nodes": 1, "batch": 1, "seed": 0}
ACCELERATORS = ("auto", "cpu", "gpu", "cuda")
CELL = 16  # pixels: every encoder answers in cells of this side


@dataclass
class Suite(TaskConfig):
    """Several tasks over the same checkpoints and photographs.

    tasks: {task: its own settings, which win}; what is set beside `tasks` is shared by those tasks that know the key.
    """

    tasks: dict[str, Any] = field(default_factory=dict)
    images: str = ""
    split: str = "val"
    out: str = "runs/eval_all"


def run_suite(suite: Suite) -> int:
    """Run each task into out/<task>, with out/report.html after each. All settings are checked before a task runs.

    Tasks that finished in an earlier start are passed over. Every rank decides that alike: a task's eval.json is
    written only once all ranks are in that task, and so have decided.
    """
    default = asdict(Suite())
    shared = {name: value for name, value in asdict(suite).items() if value != default[name] and name not in OWN}
    plans: list[tuple[type[BaseTask], TaskConfig]] = []
    for name, own in suite.tasks.items():
        module = TASKS.find(name)
        known = {entry.name for entry in fields(module.Config)}
        given = {key: value for key, value in shared.items() if key in known} | dict(own or {})
        given |= {"task": name, "out": str(Path(suite.out) / name)}
        plans.append((module.Task, config.from_dict(module.Config, given, f"tasks.{name}")))
        check(plans[-1][1])
    path, folders, first = Path(suite.out) / "report.html", [], False
    for kind, settings in plans:
        first = evaluate(kind, settings, again=False)
        folders.append(Path(settings.out))
        if first:
            page(folders, path)
    if first:
        print(f"report: {path}")
    return 0


def check(settings: TaskConfig) -> None:
    """Raises UserError for a value that no task can work with, before anything is loaded."""
    where = f"of task {settings.task}"
    for name, least in LEAST.items():
        value = getattr(settings, name, None)
        if value is not None and value < least:
            raise UserError(f"{name}={value} {where} is too small: give {least} or more")
    side = settings.image_size
    if side is not None and (side < CELL or side % CELL):
        raise UserError(f"image_size={side} {where} does not fit the models: give a multiple of {CELL}, e.g. 1024")
    if settings.devices != "auto" and not (settings.devices.isdecimal() and int(settings.devices)):
        raise UserError(f"devices={settings.devices} {where} is no number of devices: give auto, or 1 or more")
    if settings.accelerator not in ACCELERATORS:
        raise UserError(
            f"accelerator={settings.accelerator} {where} is unknown: {nearest(settings.accelerator, ACCELERATORS)}"
        )
    if settings.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(f"accelerator={settings.accelerator} {where} but torch sees no GPU here: give auto or cpu")


def evaluate(kind: type[BaseTask], settings: TaskConfig, *, again: bool = True) -> bool:
    """Run one task and write its results under `settings.out`; whether this is rank 0, which alone writes.

    Without `again`, a task whose results are there (the same settings, side and weights) is left as it is.
    """
    quiet()
    where = place(
        Place(accelerator=settings.accelerator, devices=settings.devices, num_nodes=settings.num_nodes)  # type: ignore[arg-type]
    )
    if kind.needs_model and not settings.checkpoint:
        raise UserError("eval needs checkpoint=…: a run folder, a checkpoint file or a model name (several as [a,b])")
    models, out = load_all(settings.checkpoint), Path(settings.out)
    side, first = input_side(settings, models), is_first(where)
    if not again:
        done = finished(settings, side, models)
        if first:
            print(
                f"== {settings.task}"
                + (f": finished already, {out / 'eval.json'} (delete the folder to judge again)" if done else "")
            )
        if done:
            return first
    if not first and where["devices"] * where["num_nodes"] == 1:
        return False  # started by an earlier task of the suite that took more devices
    task = kind(settings, side)
    verdict = judge(task, models, where, workers=settings.workers, callbacks=[Judged(len(Items(task)))])
    if verdict is None:
        return False
    write(task, models, verdict)
    print(task.table(verdict.numbers))
    print(f"numbers: {out / 'eval.json'}   per image: {out / 'per_image.csv'}")
    for name in verdict.pictures:
        print(f"picture ({name}): {out / f'{name}.png'}")
    log_to_wandb(settings, verdict)
    return True


def is_first(where: dict[str, Any]) -> bool:
    """Whether this process is rank 0, before a Trainer has told: Lightning's own ranks know only node and place."""
    environment = where["plugins"][0]
    return not any((environment.global_rank(), environment.local_rank(), environment.node_rank()))


def finished(settings: TaskConfig, side: int, models: dict[str, Sam]) -> bool:
    """Whether `settings.out` holds an eval.json of these settings, at this input side, of these very weights."""
    try:
        report = json.loads((Path(settings.out) / "eval.json").read_text(encoding="utf-8"))
        found = [report[key] for key in ("schema", "settings", "image_size", "weights")]
    except (OSError, ValueError, KeyError, TypeError):
        return False  # not there, or damaged: judged again
    return found == json.loads(json.dumps([SCHEMA, config.flatten(settings), side, digests(models)]))


def digests(models: dict[str, Sam]) -> dict[str, str]:
    """{label: digest of the model's weights}."""
    return {label: checkpoint.weights_digest(sam) for label, sam in models.items()}


def load_all(names: list[str]) -> dict[str, Sam]:
    """{label: model}; the label is what precedes ':', else the path's last part."""
    models: dict[str, Sam] = {}
    for name in names:
        label, colon, path = name.partition(":")
        label, path = (label, path) if colon else (Path(name).name, name)
        if label in models:
            raise UserError(f"two checkpoints are called '{label}': name one, as in other:{path}")
        models[label] = checkpoint.load(path).eval()
    return models


def input_side(settings: TaskConfig, models: dict[str, Sam]) -> int:
    """The one input side S that every model is judged at."""
    sizes = {sam.image_size for sam in models.values()}
    if settings.image_size is None and len(sizes) > 1:
        raise UserError(f"the checkpoints take different input sides {sorted(sizes)}: judge them at one, image_size=…")
    return settings.image_size or (sizes.pop() if sizes else 1024)


def write(task: BaseTask, models: dict[str, Sam], verdict: Verdict) -> None:
    """Write per_image.csv, the pictures and, as the sign that all is there, eval.json last.

    An answer that stands alone has its numbers at the top too.
    """
    settings, out = task.config, Path(task.config.out)
    alone = next(iter(verdict.numbers.values())) if len(verdict.numbers) == 1 else {}
    report = alone | {
        "schema": SCHEMA,
        "task": settings.task,
        "protocol": {"name": task.protocol or settings.task, "arguments": task.arguments, "sentence": task.sentence},
        "dataset": asdict(task.dataset(len(Items(task)))),
        "strategy": task.strategy,
        "image_size": task.image_size,
        "data": settings.data,
        "models": verdict.numbers,
        "weights": digests(models),
        "parameters": {label: sum(p.numel() for p in sam.parameters()) for label, sam in models.items()},
        "settings": config.flatten(settings),
        "environment": environment(cuda=_on_gpu(models), command=sys.argv[1:]),
    }
    rows = ({"model": label} | plain(row) for label, part in verdict.rows.items() for row in part)
    write_rows(out / "per_image.csv", rows)
    for label, part in verdict.rows.items():
        for path in task.extras(out, label, part):
            print(f"masks ({label}): {path}")
    for name, panels in verdict.pictures.items():
        with atomic(out / f"{name}.png") as tmp:
            comparison(panels).save(tmp, format="PNG")
    write_json(out / "eval.json", report)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a row that fit a CSV."""
    return {name: value for name, value in row.items() if isinstance(value, str | int | float) and name != "score"}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A CSV whose columns are the union of all rows' keys."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with atomic(path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def log_to_wandb(settings: TaskConfig, verdict: Verdict) -> None:
    """Send the numbers, as eval/<task>/<model>/<number>, to the W&B run that belongs to `out`."""
    mode = {"False": "off", "True": "auto"}.get(settings.wandb, settings.wandb)
    logger, sentence = wandb_log(
        RunDir(settings.out), mode=mode, project=settings.project, config=config.flatten(settings)
    )
    if logger is None:
        return
    print(sentence)
    for label, numbers in verdict.numbers.items():
        shown = {f"eval/{settings.task}/{label}/{k}": v for k, v in numbers.items() if isinstance(v, int | float)}
        logger.log_metrics(shown, 0)
    logger.close()  # type: ignore[attr-defined]


def _on_gpu(models: dict[str, Sam]) -> bool:
    return any(next(sam.parameters()).is_cuda for sam in models.values())
