"""`frisket report RUN… [out=…] [title=…]`: results of runs and published numbers as one HTML page that opens offline.

    frisket report runs/eval runs/eval_latency runs/train_sam out=runs/report.html

Each RUN is a folder that `frisket eval` or `frisket train` wrote, a folder of such folders (configs/eval_all.yaml's
out=), or an eval.json. `frisket.report.report` makes the page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from frisket import config
from frisket.errors import UserError
from frisket.plugins import Extensible
from frisket.report.report import write


@dataclass
class ReportConfig(Extensible):
    """runs: folders, or the command's words; out: the page; title: its heading."""

    runs: list[str] = field(default_factory=list)
    out: str = "runs/report.html"
    title: str = "Leaderboard"


def schema(files: Sequence[str], overrides: Sequence[str]) -> type[ReportConfig]:
    """The config dataclass that these sources fill."""
    return ReportConfig


def run(files: Sequence[str], overrides: Sequence[str]) -> int:
    """Write the page and say where it is; return the exit code."""
    yamls, folders = config.split(files)
    settings = config.load(ReportConfig, yamls, overrides)
    if Path(settings.out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out={settings.out} must end in .html: the report is one page")
    given = folders or settings.runs
    path = write(given, settings.out, title=settings.title)
    print(f"report: {path} ({path.stat().st_size / 1e6:.1f} MB, opens offline)")
    return 0
