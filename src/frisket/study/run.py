"""Runs a study: what is prepared, then every cell and its judgement; skips what is finished, goes on after a kill.

    code = study(config, "lightening")          # 0 done, 1 a cell failed, 75 or 130 asked to stop

Each command is a process of its own (`python -m frisket train …`), so a cell is exactly what a person would have typed,
and a crash stays in its cell; what it prints goes to LOG beside its folder. Cells that stand on one another run in
order, families side by side (`jobs`). A cell's settings are kept beside it as YAML: other settings under the same name
are refused, never mixed. Our choice.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from frisket import config as settings
from frisket.engine.quantize import QuantRun
from frisket.errors import UserError
from frisket.eval.task import TASKS
from frisket.everything.strategy import chosen as chosen_strategy
from frisket.files import write_text
from frisket.recipes.base import RECIPES
from frisket.study.collect import finish
from frisket.study.plan import FIDELITY, Plan, Step, StudyConfig, plan

STOPPED = (75, 130)  # a command's exit codes for "asked to stop, run me again"
STOP = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    """In a new process: be killed when the study is, so that the next start finds no folder of a cell in use. Linux
    counts the thread that started it as the parent; ours waits for its command."""
    if LIBC is not None:
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Runner:
    """Starts commands, and ends them all when asked to stop. `code`: what the study should leave with, so far."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.code = 0
        self._stopping: int | None = None
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a request to stop goes to every command that runs; no new one starts."""
        before = {number: signal.signal(number, self._asked) for number in STOP}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked(self, number: int, frame: object) -> None:
        self._stopping = number
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(process.pid, number)  # not send_signal, which may take from wait4 what it waits for

    @property
    def stopping(self) -> bool:
        """Whether somebody asked to stop."""
        return self._stopping is not None

    def run(self, label: str, words: Sequence[str], log: Path) -> bool:
        """Run `frisket WORDS`; whether it ended well. Sets `code` where it did not. Says how long it took, and the
        processor's seconds, which other users of the machine do not change."""
        began = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"$ frisket {' '.join(words)}\n")
            file.flush()
            with self._lock:
                if self.stopping:
                    return False
                # a session of its own: Ctrl-C at a terminal reaches it once, through us
                process = subprocess.Popen(
                    [sys.executable, "-m", "frisket", *words], stdout=file, stderr=file, start_new_session=True,
                    preexec_fn=_die_with_parent,
                )  # fmt: skip
                self._running.add(process)
            _, status, used = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
            self._running.discard(process)
        if code in STOPPED or self.stopping:
            self.code = code if code in STOPPED else 75
        elif code:
            self.code = self.code or 1
            print(f"{label}: {words[0]} left with code {code}: {_last(log)} ({log})", file=sys.stderr, flush=True)
        else:
            seconds = f"{time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU"
            print(f"{label}: {words[0]} done in {seconds}", flush=True)
        return code == 0


def study(config: StudyConfig, name: str, words: Sequence[str] = ()) -> int:
    """Run what is not finished, then write OUT/study.json, study.md and report.html; or, with `config.slurm`, send
    `frisket study WORDS` as jobs. Raises UserError."""
    laid = plan(config, name)
    check(laid)
    remember(laid)
    if config.slurm is not None:
        return submit(shlex.split(config.slurm), words, len(laid.families()))
    cells = [step for step in laid.prepare if step.verb != "prep"] + laid.cells()
    print(f"study {name}: {len(laid.arms)} arms, {len(laid.cells())} cells in {laid.out}", flush=True)
    runner, began = Runner(config.threads), time.monotonic()
    with runner.listening():
        families, ready = chosen(config.cell, laid), all(do(runner, step, laid) for step in laid.prepare)
        with ThreadPoolExecutor(config.jobs) as pool:
            list(pool.map(lambda family: all(do(runner, step, laid) for step in family), families if ready else []))
    if runner.stopping:
        print(f"stopped on request after {time.monotonic() - began:.0f} s; the same command goes on from there")
        return runner.code or 75
    if ready and not config.cell:
        finish(laid, [cell for cell in cells if not unjudged(cell, laid)])
    return runner.code


def submit(options: Sequence[str], words: Sequence[str], families: int) -> int:
    """Send `frisket study WORDS` as three Slurm jobs: what is prepared; when that has ended well, an array of the
    cells; then what is unfinished, and the table. Returns 0; raises UserError when sbatch refuses."""

    def send(*more: str) -> str:
        said = subprocess.run(["sbatch", "--parsable", *options, *more], capture_output=True, text=True)
        if said.returncode:
            raise UserError(f"sbatch refused the study: {said.stderr.strip()}")
        return said.stdout.strip().partition(";")[0]

    script = ["slurm/study.sh", *words]
    if not shutil.which("sbatch") or not Path(script[0]).is_file():
        raise UserError(
            f"slurm=… needs sbatch, and the checkout with {script[0]} as the current folder; or leave it out"
        )
    prepared = send(*script, "cell=prepare")
    cells = send(f"--dependency=afterok:{prepared}", f"--array=0-{families - 1}", *script)
    table = send(f"--dependency=afterany:{cells}", *script)
    print(f"sent: {prepared} prepares, {cells} runs {families} cells, {table} writes the table; again to go on")
    return 0


def chosen(cell: str, laid: Plan) -> list[list[Step]]:
    """The families to run: all, the one of `cell` (a number, or ARM/SEED), or none (prepare). Raises UserError."""
    families = laid.families()
    if cell in ("", "prepare"):
        return [] if cell else families
    if cell.isdecimal() and int(cell) < len(families):
        return [families[int(cell)]]
    named = {f"{step.name}/{step.seed}": family for family in families for step in family}
    if cell not in named:
        raise UserError(
            f"cell={cell} does not exist: give 0 to {len(families) - 1}, prepare, or one of {', '.join(named)}"
        )
    return [named[cell]]


def unjudged(step: Step, laid: Plan) -> list[str]:
    """The judges that have not said theirs of a step."""
    return [told for told in laid.evaluations(step) if not (step.folder / told / "eval.json").is_file()]


def do(runner: Runner, step: Step, laid: Plan) -> bool:
    """One step and, for a model, its judgements; whether all are finished. Passes over what already is."""
    log = step.folder.with_name(step.folder.name + ".log")
    label = step.name if step.seed is None else f"{step.name}/{step.seed}"
    if not finished(step) and not runner.run(label, command(step, laid), log):
        return False
    for told in unjudged(step, laid):
        words = ["eval", *laid.judges[told][0], str(said(told, laid)), f"checkpoint=[{step.name}:{step.folder}]"]
        if not runner.run(label, [*words, f"out={step.folder / told}", f"place.threads={runner.threads}"], log):
            return False
    return True


def finished(step: Step) -> bool:
    """Whether a step's folder is complete."""
    last = {"train": "summary.json", "quant": "quant.json", "prep": "index.json"}
    return (step.folder / last[step.verb]).is_file()


def command(step: Step, laid: Plan) -> list[str]:
    """The words a person would type for this step."""
    words = [step.verb, step.yaml, str(record(step))]
    words += (
        [f"out={step.folder.parent}", f"name={step.folder.name}"] if step.verb == "train" else [f"out={step.folder}"]
    )
    if step.after is not None:
        parent = next(cell for cell in laid.arms[step.after] if cell.seed == step.seed)
        words.append(f"{'init_from' if step.verb == 'train' else 'checkpoint'}={parent.folder}")
    return words if step.seed is None else [*words, f"seed={step.seed}"]


def record(step: Step) -> Path:
    """The YAML of a step's settings, beside its folder."""
    return step.folder.with_name(step.folder.name + ".yaml")


def said(told: str, laid: Plan) -> Path:
    """The YAML of a judge's settings."""
    return laid.out / f"{'judge' if told == FIDELITY else told}.yaml"


def remember(laid: Plan) -> None:
    """Write every step's settings. Raises UserError where a folder was made with others, before anything is written."""
    steps = [*laid.prepare, *laid.cells()]
    wanted = [(record(step), step.settings, step.folder.exists()) for step in steps]
    for told, (_, asked) in laid.judges.items():
        wanted.append((said(told, laid), asked, any((step.folder / told).exists() for step in steps)))
    for path, values, begun in wanted:
        if begun and path.is_file() and settings.read(path) != values:
            raise UserError(f"{path} holds other settings than the study asks for: delete {path.parent}, or set out=…")
    for path, values, _ in wanted:
        write_text(path, settings.show(values))


def check(laid: Plan) -> None:
    """Load the settings of everything but data, so that a wrong key, or a variable that is not set, is found before the
    first hour. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:  # nothing is left of a study that is refused
        for step in [*laid.prepare, *laid.cells()]:
            if step.verb == "prep":
                continue
            quant = step.verb == "quant"
            with _settings(Path(folder), step.name, [step.yaml], step.settings) as files:
                schema = QuantRun if quant else RECIPES.find(str(settings.peek(files, [], "recipe"))).Config
                settings.load(schema, files)
        for told, (yamls, asked) in laid.judges.items():
            with _settings(Path(folder), said(told, laid).stem, yamls, asked) as files:
                settings.load(TASKS.find(str(settings.peek(files, [], "task"))).Config, files)
                if "everything" in asked:
                    chosen_strategy(asked["everything"])


@contextlib.contextmanager
def _settings(folder: Path, name: str, yamls: list[str], values: dict[str, Any]) -> Iterator[list[Path | str]]:
    """The YAMLs of one command; inside, what is wrong with the last is said to be in the study's `name`."""
    mine = folder / f"{name}.yaml"
    write_text(mine, settings.show(values))
    try:
        yield [*(settings.find(yaml) or yaml for yaml in yamls), mine]
    except UserError as error:
        raise UserError(str(error).replace(str(mine), f"the study's {name}")) from error


def _last(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"
