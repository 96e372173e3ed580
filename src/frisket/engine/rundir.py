"""The run folder: what one run leaves behind (frisket.runfiles names it), and what its next start continues from.

    run = RunDir("runs/demo")
    run.open()                      # creates, locks and mends; then train; then run.finish(step, metrics); run.close()

Our choice. Rank 0 writes; the other ranks only read.
"""

import csv
import fcntl
import json
import os
import secrets
import socket
import threading
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from frisket.engine.save import tidy
from frisket.errors import UserError
from frisket.files import atomic, write_json, write_text
from frisket.runfiles import RunFiles


class RunDir(RunFiles):
    """`RunDir("runs/demo")` names the places; `open()` (rank 0) makes the folder, locks it and mends old accidents."""

    _lock: Any = None

    @rank_zero_only
    def open(self) -> None:
        """Create and lock the folder. Raises UserError when it cannot be written, or another process trains in it."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # POSIX locks belong to the process: gone after kill -9, and not inherited by forked loader workers
            self._lock = open(self.lock, "w")  # noqa: SIM115  (held until close())
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be written ({error.strerror}): set out=…") from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise UserError(
                f"another process is training in {self.path}: wait for it, or set name=… for a second run"
            ) from error
        tidy(self.checkpoints)

    @rank_zero_only
    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def wandb_id(self) -> str:
        """Return the run's W&B id: made once from the run's name and four random bytes, kept in a file."""
        if not self.wandb.exists():
            write_text(self.wandb, f"{self.path.name}-{secrets.token_hex(4)}\n")
        return self.wandb.read_text(encoding="utf-8").strip()

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run, or None."""
        if not (self.summary.exists() and self.model.exists()):
            return None
        return json.loads(self.summary.read_text(encoding="utf-8"))

    def finish(self, step: int, metrics: dict[str, float]) -> None:
        """Write the summary that marks the run as finished."""
        write_json(self.summary, {"step": step, "metrics": metrics})


class CsvLog(Logger):
    """Append metrics to `path`, a CSV with one header; a resume drops the rows after `resume_step` and goes on.

    Lightning's CSVLogger deletes the previous file when a run is started again. Each call is written at once, so a
    kill loses no row; several calls at one step give several rows, each with its own columns.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.resume_step = resume_step
        self._columns: list[str] = []
        self._repeats: set[frozenset[str]] = set()
        self._ready = False

    @property
    def name(self) -> str:
        """The logger's name."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one version: the run folder."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row; `step` is Lightning's 0-based batch counter, written as optimizer steps done."""
        if not self._ready:
            self._start()
        row = {"step": (step or 0) + 1, **{key: _plain(value) for key, value in metrics.items()}}
        if row["step"] == self.resume_step and frozenset(row) in self._repeats:
            return  # a validation run again because the checkpoint was written just before it
        new = [key for key in row if key not in self._columns]
        if new:
            self._columns += new
            self._rewrite(read_csv(self.path))
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> None:
        rows = [row for row in read_csv(self.path) if int(row["step"]) <= self.resume_step]
        last = [row for row in rows if int(row["step"]) == self.resume_step]
        self._repeats = {frozenset(key for key, value in row.items() if value) for row in last}
        self._columns = list(dict.fromkeys(key for row in rows for key in row)) or ["step"]
        self._rewrite(rows)
        self._ready = True

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with atomic(self.path) as tmp, open(tmp, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)


class WandbCurve(WandbLogger):
    """Lightning's W&B logger, counting steps like metrics.csv does: optimizer steps done, from 1."""

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log under `trainer/global_step` = `step` + 1."""
        super().log_metrics(metrics, None if step is None else step + 1)

    def close(self) -> None:
        """End the W&B run now rather than at interpreter exit."""
        if self._experiment is not None:
            self._experiment.finish()


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file; a last row cut off by a kill is left out. Missing file: no rows."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def wandb_log(run: RunDir, *, mode: str, project: str, config: dict[str, Any]) -> tuple[Logger | None, str]:
    """Return the W&B logger for `run` (None: off) and a sentence for the log about the mode that was chosen.

    `mode`: online, offline, off or auto (online when there is a key and the server answers within two seconds, else
    offline). The environment variable WANDB_MODE, where set, decides instead of auto.
    """
    mode, why = _wandb_mode(mode)
    if mode == "off":
        return None, f"W&B off ({why})"
    os.environ.setdefault("WANDB_SILENT", "true")  # our own lines say what matters
    run_id = run.wandb_id()
    logger = WandbCurve(
        project=project,
        name=run.path.name,
        id=run_id,
        save_dir=run.path,
        offline=mode == "offline",
        resume="allow",
        config=config,
    )
    later = f"; `wandb sync {run.path}/wandb/offline-*` sends it" if mode == "offline" else ""
    return logger, f"W&B {mode}, run {run_id} ({why}{later})"


def _wandb_mode(mode: str) -> tuple[str, str]:
    if mode != "auto":
        return mode, f"log.wandb={mode}"
    said = os.environ.get("WANDB_MODE")
    if said:
        return {"disabled": "off", "dryrun": "offline"}.get(said, said), f"WANDB_MODE={said}"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    if not _has_key(host):
        return "offline", "no API key"
    if not answers(host):
        return "offline", f"{host} does not answer"
    return "online", f"{host} answers"


def _has_key(host: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators(host) is not None
    except (OSError, NetrcParseError):  # no such file, or one that W&B could not read either
        return False


def answers(host: str, port: int = 443, seconds: float = 2.0) -> bool:
    """Whether a TCP connection opens in time. In a thread: a name look-up has no time-out of its own."""
    answered = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
        except OSError:
            return
        answered.set()

    threading.Thread(target=knock, daemon=True).start()
    return answered.wait(seconds)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
