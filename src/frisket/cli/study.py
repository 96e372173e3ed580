"""`frisket study STUDY.yaml key=value…`: named arms, seeds, one judge; a table that says what differs.

    frisket study studies/lightening.yaml jobs=2

Finished cells are passed over; a study that was stopped goes on with the same command. `jobs=slurm` submits it as one
array job. See docs/study.md; everything it does is in `frisket.study`.
"""

from pathlib import Path

from frisket import config as settings
from frisket.errors import UserError
from frisket.study.plan import StudyConfig, plan
from frisket.study.run import study
from frisket.study.submit import submit


def schema(files: list[str], overrides: list[str]) -> type:
    """The one schema of this verb."""
    return StudyConfig


def run(files: list[str], overrides: list[str]) -> int:
    """Run the study, or submit it; return the exit code."""
    if not files:
        raise UserError("no study is named: give its YAML, e.g. frisket study studies/lightening.yaml")
    config, name = settings.load(StudyConfig, files, overrides), Path(files[0]).stem
    if config.jobs == "slurm":
        return submit(plan(config, name), files, overrides, config.sbatch)
    return study(config, name)
