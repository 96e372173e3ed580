"""`frisket study STUDY.yaml key=value…`: named arms, seeds, one judge; a table that says what differs.

    frisket study studies/lightening.yaml jobs=2

Finished cells are passed over; a study that was stopped goes on with the same command. A second YAML changes the first,
and names the study. See docs/study.md; everything it does is in `frisket.study`.
"""

from pathlib import Path

from frisket import config as settings
from frisket.errors import UserError
from frisket.study.plan import StudyConfig
from frisket.study.run import study


def schema(files: list[str], overrides: list[str]) -> type:
    """The one schema of this verb."""
    return StudyConfig


def run(files: list[str], overrides: list[str]) -> int:
    """Run the study; return its exit code."""
    if not files:
        raise UserError("no study is named: give its YAML, e.g. frisket study studies/lightening.yaml")
    words = [*files, *(word for word in overrides if not word.startswith("slurm="))]
    return study(settings.load(StudyConfig, files, overrides), Path(files[-1]).stem, words)
