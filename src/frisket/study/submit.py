"""A study as Slurm jobs: one that prepares, one array with a family of cells each, one that makes the table.

    code = submit(plan(config, "lightening"), ["studies/lightening.yaml"], ["sbatch=[--partition=a100]"])

slurm/study.sh is the script of all three; each is submitted once and requeues itself when it is preempted. A cell that
fails is named by the last job, which runs whatever became of the array. Our choice.
"""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from frisket.errors import UserError
from frisket.study.plan import Plan

SCRIPT = Path("slurm/study.sh")


def submit(laid: Plan, files: Sequence[str], overrides: Sequence[str], words: Sequence[str]) -> int:
    """Submit the three jobs and print their numbers; `words`: more for sbatch. Raises UserError where it cannot."""
    if not SCRIPT.is_file():
        raise UserError(f"{SCRIPT} is not here: submit a study from the checkout's folder")
    laid.out.mkdir(parents=True, exist_ok=True)
    given = [*files, *(word for word in overrides if not word.startswith(("jobs=", "only=", "cell=")))]
    last = len(laid.families()) - 1
    first = _sbatch([*words, str(SCRIPT), *given, "only=prepare"])
    cells = _sbatch([*words, f"--array=0-{last}", f"--dependency=afterok:{first}", str(SCRIPT), *given, "only=cells"])
    table = _sbatch([*words, f"--dependency=afterany:{cells}", str(SCRIPT), *given, "only=table"])
    print(f"submitted: {first} prepares, {cells}_[0-{last}] run {len(laid.cells())} cells, {table} makes the table")
    return 0


def _sbatch(words: Sequence[str]) -> str:
    """Submit; the job's number."""
    try:
        done = subprocess.run(["sbatch", "--parsable", *words], capture_output=True, text=True, env=dict(os.environ))
    except FileNotFoundError as error:
        raise UserError(
            "jobs=slurm needs sbatch, which is not here: give jobs=2 to run the study on this machine"
        ) from error
    if done.returncode:
        raise UserError(
            f"sbatch refused ({done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no word'})"
        )
    return done.stdout.strip().split(";")[0]
