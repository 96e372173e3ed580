"""Judge checkpoints: one task, or a suite of tasks over the same models; a table, eval.json, per_image.csv, pictures.

    code = run_task(TASKS.find("miou").Task, config)            # one task
    code = run_suite(suite)                                     # several, each into its own folder, and a page

`frisket.engine.judge` runs a task on the devices there are. Asked to stop (SIGTERM, Slurm's warning, Ctrl-C), it leaves
with code 75 or 130 and keeps what it has judged (frisket.engine.journal); the same command goes on from there. A suite
loads and hashes each checkpoint once, and passes over the tasks whose eval.json is there.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from frisket import checkpoint
from frisket import config as settings
from frisket.engine import signals
from frisket.engine.journal import Journal
from frisket.engine.judge import PICTURES, Items, Verdict, judge
from frisket.engine.preempt import Stopped, exit_code
from frisket.engine.rundir import RunDir, wandb_log
from frisket.engine.strategy import exits_for_all, place, quiet
from frisket.environment import environment
from frisket.errors import UserError
from frisket.eval.task import TASKS, BaseTask, PhotographConfig, TaskConfig, labelled
from frisket.files import atomic, remove, writable, write_csv, write_json
from frisket.models.sam import Sam
from frisket.picture import comparison
from frisket.place import device
from frisket.report.report import write as page

SCHEMA = 2
OWN = ("task", "tasks", "out", "plugins")  # of a suite; not handed to its tasks
IDLE = ("place.devices", "place.num_nodes", "place.workers", "pictures", "plugins")  # change no number
CELL = 16  # pixels: every encoder answers in cells of this side


@dataclass
class Suite(PhotographConfig):
    """Several tasks over the same checkpoints and photographs. What is set beside `tasks` is shared by those tasks that
    know the key."""

    tasks: dict[str, Any] = field(default_factory=dict)
    """{task: its own settings, which win}."""
    out: str = "runs/eval_all"
    """The folder of the tasks' folders and of report.html."""


class Shelf:
    """Checkpoints, loaded and hashed once however many tasks judge them; `trust`: see frisket.checkpoint.load."""

    def __init__(self, trust: bool) -> None:
        self.trust = trust
        self._models: dict[str, tuple[Sam, str]] = {}

    def models(self, names: list[str]) -> dict[str, Sam]:
        """{label: model}, in eval mode."""
        return {label: self._load(path)[0] for label, path in labelled(names, "checkpoints").items()}

    def digests(self, names: list[str]) -> dict[str, str]:
        """{label: digest of the model's weights}."""
        return {label: self._load(path)[1] for label, path in labelled(names, "checkpoints").items()}

    def _load(self, path: str) -> tuple[Sam, str]:
        if path not in self._models:
            sam = checkpoint.load(path, trust=self.trust)
            self._models[path] = sam, checkpoint.weights_digest(sam)
        return self._models[path]


def run_task(kind: type[BaseTask], config: TaskConfig) -> int:
    """Judge by one task. Returns the exit code; raises UserError."""
    with signals.held():
        check(config)
        try:
            evaluate(kind, config, Shelf(config.trust))
        except Stopped:
            return _left(config)
    return 0


def run_suite(suite: Suite) -> int:
    """Run each task into out/<task>, with out/report.html after each. All settings are checked before a task runs.

    Tasks that finished in an earlier start are passed over. Every rank decides that alike: a task's eval.json is
    written only once all ranks are in that task, and so have decided. Returns the exit code; raises UserError.
    """
    with signals.held():
        default, whole = settings.flatten(Suite()), settings.flatten(suite)
        shared = {k: v for k, v in whole.items() if v != default.get(k) and k.split(".")[0] not in OWN}
        plans: list[tuple[type[BaseTask], TaskConfig]] = []
        for name, own in suite.tasks.items():
            module = TASKS.find(name)
            known = {entry.name for entry in fields(module.Config)}
            given = {key: value for key, value in shared.items() if key.split(".")[0] in known}
            given |= settings.flatten(own or {}) | {"task": name, "out": str(Path(suite.out) / name)}
            plans.append((module.Task, settings.from_dict(module.Config, given, f"tasks.{name}")))
            check(plans[-1][1])
        path, folders, first, shelf = Path(suite.out) / "report.html", [], False, Shelf(suite.trust)
        for kind, config in plans:
            try:
                first = evaluate(kind, config, shelf, again=False)
            except Stopped:
                return _left(config)
            folders.append(Path(config.out))
            if first:
                page(folders, path)
        if first:
            print(f"report: {path}")
    return 0


def check(config: TaskConfig) -> None:
    """Raises UserError for what would fail later and less clearly, before anything is loaded."""
    where = f"of task {config.task}"
    if config.image_size is not None and config.image_size % CELL:
        raise UserError(f"image_size={config.image_size} {where} must be a multiple of {CELL}, e.g. 1024")
    devices = config.place.devices
    if devices != "auto" and not (devices.isdecimal() and int(devices)):
        raise UserError(f"place.devices={devices} {where} is no number of devices: give auto, or 1 or more")
    device(config.place, f" {where}")
    writable(Path(config.out), f"out={config.out} {where}")


def evaluate(kind: type[BaseTask], config: TaskConfig, shelf: Shelf, *, again: bool = True) -> bool:
    """Run one task and write its results under `config.out`; whether this is rank 0, which alone writes.

    Without `again`, a task whose results are there (the same settings, side and weights) is left as it is. Raises
    Stopped, on every rank, when one was asked to stop.
    """
    quiet()
    if kind.needs_model and not config.checkpoint:
        raise UserError("eval needs checkpoint=…: a run folder, a checkpoint file or a model name (several as [a,b])")
    if config.place.threads:
        torch.set_num_threads(config.place.threads)
    where = trainers(config)
    models, out = shelf.models(config.checkpoint), Path(config.out)
    side, first = input_side(config, models), is_first(where)
    known = identity(config, side, shelf)
    if not again:
        done = finished(out, known)
        if first:
            print(
                f"== {config.task}"
                + (f": finished already, {out / 'eval.json'} (delete the folder to judge again)" if done else "")
            )
        if done:
            return first
    if not first and where["devices"] * where["num_nodes"] == 1:
        return False  # started by an earlier task of the suite that took more devices
    task = kind(config, side)
    known |= {"dataset": asdict(task.dataset(len(Items(task)))), "arguments": task.arguments}
    verdict = judge(task, models, where, memory=(out, known) if task.resumes else None)
    if verdict is None:
        return False
    write(task, models, verdict, known)
    Journal(out, known).remove()
    print(task.table(verdict.numbers))
    print(f"numbers: {out / 'eval.json'}   per image: {out / 'per_image.csv'}")
    for name in verdict.pictures:
        print(f"picture ({name}): {out / f'{name}.png'}")
    log_to_wandb(config, verdict)
    return True


def _left(config: TaskConfig) -> int:
    """Say that the task was stopped on request; the exit code, from the ranks whose code reaches somebody."""
    where = trainers(config)
    if first := is_first(where):
        print(f"stopped on request in task {config.task}; the same command goes on from there", flush=True)
    return exit_code() if exits_for_all(where["plugins"][0], not first) else 0


def trainers(config: TaskConfig) -> dict[str, Any]:
    """The Trainer's keyword arguments for the place, in fp32."""
    return place(replace(config.place, strategy="auto", precision="32-true"))


def is_first(where: dict[str, Any]) -> bool:
    """Whether this process is rank 0, before a Trainer has told: Lightning's own ranks know only node and place."""
    cluster = where["plugins"][0]
    return not any((cluster.global_rank(), cluster.local_rank(), cluster.node_rank()))


def identity(config: TaskConfig, side: int, shelf: Shelf) -> dict[str, Any]:
    """What a result is of, but for the data: the fields of eval.json that decide whether it is this one."""
    return {
        "schema": SCHEMA,
        "settings": decisive(settings.flatten(config)),
        "image_size": side,
        "weights": shelf.digests(config.checkpoint),
    }


def decisive(flat: dict[str, Any]) -> dict[str, Any]:
    """The settings that may change a number: not how many ranks and workers there are, nor where numbers go."""
    return {key: value for key, value in flat.items() if key not in IDLE and not key.startswith("log.")}


def finished(out: Path, known: dict[str, Any]) -> bool:
    """Whether `out` holds an eval.json of these settings, at this input side, of these very weights."""
    try:
        report = json.loads((out / "eval.json").read_text(encoding="utf-8"))
        told = {key: report[key] for key in known} | {"settings": decisive(report["settings"])}
        return told == json.loads(json.dumps(known))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # not there, or damaged: judged again


def input_side(config: TaskConfig, models: dict[str, Sam]) -> int:
    """The one input side S that every model is judged at: the given one, else the side they were all trained at."""
    sizes = {sam.image_size for sam in models.values()}
    if config.image_size is None and len(sizes) > 1:
        raise UserError(f"the checkpoints take different input sides {sorted(sizes)}: judge them at one, image_size=…")
    return config.image_size or (sizes.pop() if sizes else 1024)


def write(task: BaseTask, models: dict[str, Sam], verdict: Verdict, known: dict[str, Any]) -> None:
    """Write per_image.csv, the pictures and, as the sign that all is there, eval.json last.

    An answer that stands alone has its numbers at the top too.
    """
    config, out = task.config, Path(task.config.out)
    alone = next(iter(verdict.numbers.values())) if len(verdict.numbers) == 1 else {}
    report = alone | {
        "schema": SCHEMA,
        "task": config.task,
        "protocol": {"name": task.protocol or config.task, "arguments": task.arguments, "sentence": task.sentence},
        "dataset": known["dataset"],
        "strategy": task.strategy,
        "image_size": task.image_size,
        "data": config.data,
        "models": verdict.numbers,
        "weights": known["weights"],
        "parameters": {label: sum(p.numel() for p in sam.parameters()) for label, sam in models.items()},
        "settings": settings.flatten(config),
        "environment": environment(cuda=_on_gpu(models), command=sys.argv[1:]),
    }
    rows = ({"model": label} | plain(row) for label, part in verdict.rows.items() for row in part)
    write_csv(out / "per_image.csv", rows)
    for label, part in verdict.rows.items():
        for path in task.extras(out, label, part):
            print(f"masks ({label}): {path}")
    for name in PICTURES:
        remove(out / f"{name}.png")  # an older result's, maybe of another task
    for name, panels in verdict.pictures.items():
        with atomic(out / f"{name}.png") as tmp:
            comparison(panels).save(tmp, format="PNG")
    write_json(out / "eval.json", report)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """The cells of a row that fit a CSV."""
    return {name: value for name, value in row.items() if isinstance(value, str | int | float) and name != "score"}


def log_to_wandb(config: TaskConfig, verdict: Verdict) -> None:
    """Send the numbers, as eval/<task>/<model>/<number>, to the W&B run that belongs to `out`."""
    logger, sentence = wandb_log(
        RunDir(config.out), mode=config.log.wandb, project=config.log.project, config=settings.flatten(config)
    )
    if logger is None:
        return
    print(sentence)
    for label, numbers in verdict.numbers.items():
        shown: dict[str, float] = {
            f"eval/{config.task}/{label}/{k}": v for k, v in numbers.items() if isinstance(v, int | float)
        }
        logger.log_metrics(shown, 0)
    logger.close()


def _on_gpu(models: dict[str, Sam]) -> bool:
    return any(next(sam.parameters()).is_cuda for sam in models.values())
