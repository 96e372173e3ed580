"""`frisket eval YAML… key=value…`: checkpoints in; a table, eval.json, per_image.csv and pictures of masks out.

    frisket eval configs/eval_miou.yaml data=SHARDS checkpoint=[teacher:runs/train_sam,runs/finetune_decoder]

The YAML names the task (see frisket.eval.task). A YAML with `tasks:` (configs/eval_all.yaml) runs several, each into
its own folder under `out`, and writes report.html over them after each; started again, it passes over those whose
eval.json is there. Everything it does is in `frisket.engine.evaluate`; here the configuration is read.
"""

from collections.abc import Sequence
from types import ModuleType

from frisket import config as settings
from frisket.engine.evaluate import Suite, run_suite, run_task
from frisket.errors import UserError
from frisket.eval.task import TASKS, TaskConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Judge every checkpoint on every photograph; print the table; return the exit code."""
    if settings.peek(files, overrides, "tasks"):
        return run_suite(settings.load(Suite, files, overrides))
    task = chosen(files, overrides)
    return run_task(task.Task, settings.load(task.Config, files, overrides))


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[TaskConfig]:
    """The config dataclass that these sources fill: the suite's or the task's."""
    return Suite if settings.peek(files, overrides, "tasks") else chosen(files, overrides).Config


def chosen(files: Sequence[str], overrides: Sequence[str]) -> ModuleType:
    """The task's module that the configuration names. Raises UserError for an unknown name."""
    name = settings.peek(files, overrides, "task")
    if not name:
        raise UserError(f"no task is named: give a YAML with 'task: …', e.g. configs/eval_{TASKS.names()[0]}.yaml")
    return TASKS.find(str(name))
