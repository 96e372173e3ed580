"""`frisket report RUN… [key=value …]`: results of runs and published numbers as one HTML page that opens offline.

    frisket report runs/eval runs/eval_latency runs/train_sam out=runs/report.html

Each RUN is a folder that `frisket eval` or `frisket train` wrote, a folder of such folders (configs/eval_all.yaml's
out=), or an eval.json. `frisket.report.report` makes the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frisket import config as settings
from frisket.errors import UserError
from frisket.plugins import Extensible
from frisket.report.report import write


@dataclass
class ReportConfig(Extensible):
    """One page."""

    runs: list[str] = field(default_factory=list)
    """Folders of runs, where the command names none."""
    out: str = "runs/report.html"
    """The page."""
    title: str = "Leaderboard"
    """Its heading."""
    vitdet: list[str] = field(default_factory=list)
    """ViTDet-H's results files: AP prompted with these very files stands beside AP published with its boxes."""


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[ReportConfig]:
    """The config dataclass that these sources fill."""
    return ReportConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Write the page and say where it is; return the exit code."""
    yamls, folders = settings.split(files)
    config = settings.load(ReportConfig, yamls, overrides)
    if Path(config.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={config.out} must end in .html: the report is one page")
    path = write(folders or config.runs, config.out, title=config.title, vitdet=config.vitdet)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, opens offline)")
    return 0
