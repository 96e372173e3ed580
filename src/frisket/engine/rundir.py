"""The run folder: what one run leaves behind (frisket.runfiles names it), and what its next start continues from.

    run = RunDir("runs/demo")
    run.open()                      # creates, locks and mends; then train; then run.finish(…); run.close()

Our choice. Rank 0 writes; the other ranks only read.
"""

import csv
import errno
import fcntl
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from frisket.engine.save import tidy
from frisket.engine.strategy import PATIENCE, launch
from frisket.errors import UserError, warn
from frisket.files import atomic, full_disk_is_a_sentence, remove, write_json, write_text
from frisket.recipes.recipe_config import RecipeConfig
from frisket.runfiles import RunFiles


class RunDir(RunFiles):
    """`RunDir("runs/demo")` names the places; `open()` makes the folder, locks it and mends old accidents."""

    _lock: Any = None
    _made: tuple[Path, ...] = ()  # folders that open() had to make, outermost last

    @classmethod
    def of(cls, config: RecipeConfig) -> "RunDir":
        """Where a training of these settings goes."""
        return cls(Path(config.out) / (config.name or config.recipe))

    def open(self) -> None:
        """Create and lock the folder (rank 0; the others wait for it).

        Raises UserError, on all ranks, when the folder cannot be written or another process trains in it.
        """
        if rank_zero_only.rank:
            self._follow()
            return
        self._made = tuple(folder for folder in (self.path, *self.path.parents) if not folder.exists())
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # POSIX locks belong to the process: gone after kill -9, and not inherited by forked loader workers
            self._lock = open(self.lock, "a")  # noqa: SIM115  (held until close())
        except OSError as error:
            raise UserError(f"the run folder {self.path} cannot be written ({error.strerror}): set out=…") from error
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                self._lock.close()
                write_text(self.refused, launch())
                raise UserError(self.taken()) from error
            warn(f"{self.path} is on a file system without locks ({error.strerror}): start no second run in it")
        self._lock.truncate(0)
        self._lock.write(launch())
        self._lock.flush()
        remove(self.refused)
        for folder in (self.path, self.checkpoints, self.gallery):
            tidy(folder)

    def _follow(self) -> None:
        """Wait until rank 0 of this launch holds the folder. Ranks that it starts itself, later, need not."""
        end = time.monotonic() + PATIENCE.total_seconds()
        while launch() and _line(self.lock) != launch():
            if _line(self.refused) == launch():
                raise UserError(self.taken())
            if time.monotonic() > end:
                raise UserError(f"rank 0 did not open {self.path} within {PATIENCE}: see its own last words")
            time.sleep(0.1)

    def taken(self) -> str:
        """The sentence for who comes second."""
        return f"another process is training in {self.path}: wait for it, or set name=… for a second run"

    @rank_zero_only
    def close(self) -> None:
        """Release the lock. A folder made by a start that was refused before it had settings goes again, with empty
        ones above it; under a launcher it stays, since other ranks may still be looking for the lock in it, and one
        that holds a checkpoint always stays."""
        if self._lock is None:
            return
        self._lock.close()
        self._lock = None
        empty = not self.config.exists() and not any(self.checkpoints.glob("*"))
        if self._made and empty and not launch():
            remove(self.path)
            for folder in self._made[1:]:
                if not any(folder.iterdir()):
                    folder.rmdir()

    def wandb_id(self) -> str:
        """Return the run's W&B id: made once from the run's name and four random bytes, kept in a file."""
        known = _line(self.wandb)
        if not re.fullmatch(r"[\w.-]{1,128}", known):
            if self.wandb.exists():
                warn(f"{self.wandb} is damaged: the run gets a new W&B id")
            known = f"{self.path.name}-{secrets.token_hex(4)}"
            write_text(self.wandb, f"{known}\n")
        return known

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of a finished run; None when there is none, or a damaged one: the end is then redone."""
        try:
            summary = json.loads(self.summary.read_text(encoding="utf-8"))
            return {**summary, "step": int(summary["step"])} if self.result.is_file() else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            warn(f"{self.summary} is damaged ({error}): finishing the run again")
            return None

    def finish(self, step: int, metrics: dict[str, float], recipe: str) -> None:
        """Write the summary that marks the run as finished."""
        write_json(self.summary, {"step": step, "recipe": recipe, "metrics": metrics})

    def stalled(self) -> bool:
        """Whether the last start was stopped before it had made a step."""
        return self.stalls.exists()

    @rank_zero_only
    def stall(self, now: bool) -> None:
        """Remember that this start was stopped before it had made a step, or that one was made."""
        write_text(self.stalls, "") if now else remove(self.stalls)


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
        self._step = resume_step
        self._kinds: set[frozenset[str]] = set()  # which columns this step's rows have: each kind of row comes once
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
        if row["step"] != self._step:
            self._step, self._kinds = row["step"], set()
        if frozenset(row) in self._kinds:
            return  # written before a checkpoint, or a validation run again because that was written just before it
        self._kinds.add(frozenset(row))
        new = [key for key in row if key not in self._columns]
        if new:
            self._columns += new
            self._rewrite(read_csv(self.path))
        with full_disk_is_a_sentence(self.path), open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _start(self) -> None:
        rows = [row for row in read_csv(self.path) if int(row["step"]) <= self.resume_step]
        last = [row for row in rows if int(row["step"]) == self.resume_step]
        self._kinds = {frozenset(key for key, value in row.items() if value) for row in last}
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

    _gone = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._wandb_init.pop("anonymous", None)  # even a None makes W&B warn that the word is old

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log under `trainer/global_step` = `step` + 1."""
        log = super().log_metrics
        self._ask(lambda: log(metrics, None if step is None else step + 1))

    def close(self) -> None:
        """End the W&B run now rather than at interpreter exit."""
        if self._experiment is not None:
            self._ask(self._experiment.finish)

    def _ask(self, work: Callable[[], Any]) -> None:
        """Its service is a process of its own, which scancel ends at once: the checkpoint that we then save counts."""
        if self._gone:
            return
        try:
            work()
        except Exception as error:
            self._gone = True
            warn(f"W&B failed ({error}): its curve ends here, metrics.csv goes on")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a metrics file; what a kill or a damage left of others is left out. Missing file: no rows."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace").replace("\0", "")
    lines = text[: text.rfind("\n") + 1].splitlines()
    rows = [row for row in csv.DictReader(lines) if (row.get("step") or "").isdecimal() and None not in row]
    if lines and len(rows) < len(lines) - 1:
        warn(f"{path} is damaged: {len(lines) - 1 - len(rows)} of its lines are left out")
    return [{key: value or "" for key, value in row.items()} for row in rows]


def wandb_log(run: RunDir, *, mode: str, project: str, config: dict[str, Any]) -> tuple["WandbCurve | None", str]:
    """Return the W&B logger for `run` (None: off) and a sentence for the log about the mode that was chosen.

    `mode`: online, offline, off or auto (online when there is a key and the server answers within two seconds, else
    offline). The environment variable WANDB_MODE, where set, decides instead of auto.
    """
    mode, why = wandb_mode(mode)
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


def wandb_mode(mode: str) -> tuple[str, str]:
    """(online, offline or off, why): what the setting `mode` comes to here."""
    if mode != "auto":
        return mode, f"log.wandb={mode}"
    said = os.environ.get("WANDB_MODE")
    if said:
        return {"disabled": "off", "dryrun": "offline"}.get(said, said), f"WANDB_MODE={said}"
    refused = wandb_refused()
    return ("offline", refused) if refused else ("online", f"{_host()} answers")


def wandb_refused() -> str:
    """Why nothing can be sent; "" when it can."""
    if not _has_key(_host()):
        return "no API key"
    return "" if answers(_host()) else f"{_host()} does not answer"


def _host() -> str:
    return urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"


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


def _line(path: Path) -> str:
    """A small file's text; "" when it is not there."""
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
