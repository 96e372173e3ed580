"""All checks, a line each; and the cheap ones, which every start of a training makes first.

    code = examine(RECIPES.find("train_sam"), config, "frisket train configs/train_sam.yaml")
    ready(plan)

Every rank of a job looks at what it sees; those after the first say only what fails.
"""

import os
import socket
from collections.abc import Callable
from types import ModuleType

from frisket import plugins
from frisket.engine.doctor import model, network, reading, room
from frisket.engine.doctor.plan import Plan, plan
from frisket.engine.strategy import launch
from frisket.errors import UserError
from frisket.recipes.recipe_config import RecipeConfig

Check = Callable[[Plan], str]

CHEAP: tuple[Check, ...] = (reading.shards, room.shared_memory)
"""Seconds, and before any weight is loaded."""
CHECKS: tuple[Check, ...] = (
    network.place,
    network.ranks,  # first: the ranks of a job have just started together
    room.folder,
    *CHEAP,
    reading.samples,
    model.model,
    room.checkpoints,
    room.embeddings,
    model.memory,
    network.wandb,
    reading.speed,
)


def ready(start: Plan) -> None:
    """Raise UserError, doctor's own sentence, for what a check costs too little to leave out."""
    for check in CHEAP:
        check(start)


def examine(recipe: ModuleType, config: RecipeConfig, command: str) -> int:
    """Print a line for each check and the one that starts the run. Returns 1 if anything fails; raises UserError where
    the settings themselves contradict each other."""
    start, failed = plan(recipe, config, anywhere=True), 0
    theirs = [check for module in plugins.loaded().values() for check in getattr(module, "CHECKS", ())]
    for check in (*CHECKS, *theirs):
        name, whole = check.__name__.replace("_", " "), True
        try:
            said = check(start)
        except UserError as error:
            said, whole, failed = str(error), False, failed + 1
        if whole and start.rank:
            continue
        who = f"rank {start.rank} on {socket.gethostname()}: " if start.rank else ""
        print(f"{'ok  ' if whole else 'FAIL'} {name:13} {who}{said}", flush=True)
    if not start.rank:
        verdict = f"{failed} of {len(CHECKS) + len(theirs)} checks failed" if failed else "all is well"
        print(f"{verdict}; start: {starting(start, command)}", flush=True)
    return 1 if failed else 0


def starting(start: Plan, command: str) -> str:
    """The line that starts this run: slurm/env.sh's where that is who asks."""
    here, where = start.config.place, start.where
    if os.environ.get("FRISKET_SRUN"):
        return os.environ["FRISKET_SRUN"]
    if launch() or (start.world == 1 and not start.elsewhere):
        return command
    gpus = [f"--gres=gpu:{where['devices']}"] if here.accelerator != "cpu" else []
    nodes = [f"--nodes={where['num_nodes']}", f"--ntasks-per-node={where['devices']}"]
    return " ".join(["srun", *nodes, *gpus, f"--cpus-per-task={here.workers + 2}", "--wait=60", command])
