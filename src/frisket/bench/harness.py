"""How a speed is measured here: baseline and ours in one process, alternating, medians, and a guard that ours is right.

Use     `frisket bench configs/bench.yaml rows=[rle_fill]`; docs/bench.md says how to read the table.
Add     one function and one entry in ROWS of a file in this folder:
            def my_row(setting: Setting) -> Case:
                x = …                                              # inputs, small when setting.quick
                guard = at_most("max diff", lambda: difference(theirs(x), ours(x)), 1e-5)
                return Case(lambda: theirs(x), lambda: ours(x), [guard])
            ROWS = [Row("my_row", "ours vs theirs, 4096 tokens", my_row)]
Source  our choice. Clock: CUDA events on a GPU; on one CPU thread that thread's CPU time, which a busy machine disturbs
        least; wall time on several. A sample repeats a short call until it lasts `MIN_SAMPLE` seconds.
"""

import importlib
import math
import pkgutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

import frisket.bench
from frisket.environment import cpu_bf16, environment
from frisket.errors import UserError, nearest
from frisket.eval.clock import switched, timer
from frisket.files import write_json
from frisket.place import Place, device
from frisket.plugins import Extensible

MIN_SAMPLE = 0.02  # seconds
SCHEMA = 1


@dataclass
class BenchConfig(Extensible):
    """What to measure."""

    renamed: ClassVar[dict[str, str]] = {"threads": "place.threads", "device": "place.accelerator"}
    rows: list[str] = field(default_factory=list)
    """Names of rows; all when empty."""
    quick: bool = False
    """Tiny sizes that prove the mechanism, never a speed."""
    repeats: int = field(default=7, metadata={"least": 1})
    """Samples of each side."""
    warmup: int = field(default=1, metadata={"least": 0})
    """Calls before them."""
    seed: int = field(default=0, metadata={"least": 0, "most": 2**32 - 1})
    """Of the inputs."""
    checkpoint: str = ""
    """A trained model, for the rows that need one; without it they are left out. A quantized one is what the int8 rows
    measure instead of random weights."""
    high_score_thresh: float = 8.5
    """Of everything_hierarchical; the paper's, which a small model may never reach."""
    out: str = "runs/bench.json"
    """The JSON with every sample."""
    place: Place = field(default_factory=lambda: Place(threads=1))
    """A GPU where there is one, and one CPU thread for both sides."""


@dataclass(frozen=True)
class Setting:
    """What a row is told: small sizes or real ones, where, the seed of its inputs, and what BenchConfig says."""

    quick: bool
    device: torch.device
    seed: int = 0
    checkpoint: str = ""
    high_score_thresh: float = 8.5


@dataclass(frozen=True)
class Guard:
    """A claim about ours, computed once before timing: `measure()` must be <= limit (or >= with `least`)."""

    text: str
    measure: Callable[[], float]
    limit: float
    least: bool = False


@dataclass(frozen=True)
class Case:
    """One row made ready. Both calls return after their work is queued (CUDA) or done (CPU).

    `note` describes inputs and `dtype` the arithmetic, for the JSON; `grad` keeps autograd on. `sampled`, where calls
    cannot be repeated one by one: takes that many samples of both sides itself, seconds by side; no call is made.
    """

    baseline: Callable[[], Any]
    ours: Callable[[], Any]
    guards: Sequence[Guard]
    note: str = ""
    dtype: str = "float32"
    grad: bool = False
    sampled: Callable[[int], dict[str, list[float]]] | None = None


@dataclass(frozen=True)
class Row:
    """A line of the table: name, what is compared, and the function that makes it ready.

    `cpu` rows ignore a GPU; `bf16` rows are left out on a CPU without bf16 instructions (where they take minutes and
    say nothing), unless they are named or quick. `needs`: a package without which a row is left out, unless named.
    `trained` rows need `checkpoint=`, unless quick.
    """

    name: str
    what: str
    make: Callable[[Setting], Case]
    cpu: bool = False
    bf16: bool = False
    needs: str = ""
    trained: bool = False


def at_most(text: str, measure: Callable[[], float], limit: float) -> Guard:
    """The value must not exceed `limit`. NaN fails."""
    return Guard(text, measure, limit)


def at_least(text: str, measure: Callable[[], float], limit: float) -> Guard:
    """The value must reach `limit`. NaN fails."""
    return Guard(text, measure, limit, least=True)


@dataclass(frozen=True)
class Verdict:
    """What a guard said."""

    text: str
    value: float
    limit: float
    least: bool
    ok: bool

    def __str__(self) -> str:
        sign = (">=" if self.least else "<=") if self.ok else ("<" if self.least else ">")
        return f"{self.text} {self.value:.3g} {sign} {self.limit:g}" + ("" if self.ok else " FAIL")


@dataclass
class Result:
    """A measured row. Seconds per call; `ratio` is None (and no sample is taken) when a guard failed."""

    name: str
    what: str
    device: str
    clock: str
    dtype: str
    note: str
    guards: list[Verdict]
    baseline_seconds: float | None = None
    ours_seconds: float | None = None
    ratio: float | None = None
    ratio_range: tuple[float, float] | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    calls_per_sample: dict[str, int] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every guard held."""
        return all(verdict.ok for verdict in self.guards)


def all_rows() -> list[Row]:
    """ROWS of every file in this folder, in the files' alphabetical order."""
    files = (importlib.import_module(f"frisket.bench.{m.name}") for m in pkgutil.iter_modules(frisket.bench.__path__))
    return [row for module in files for row in getattr(module, "ROWS", ())]


def choose(rows: Sequence[Row], names: Sequence[str]) -> list[Row]:
    """The rows called `names`, or all. Raises UserError for an unknown name."""
    known = {row.name: row for row in rows}
    for name in names:
        if name not in known:
            raise UserError(f"bench has no row '{name}': {nearest(name, known)}")
    return [known[name] for name in names] if names else list(rows)


def run(config: BenchConfig, rows: Sequence[Row]) -> int:
    """Measure `rows`, print the table as it grows, write the JSON; return 0, or 1 when a guard failed.

    The JSON is rewritten after every row, so that a long run cut short keeps what it has.
    """
    use_cuda = device(config.place).type == "cuda"
    threads = config.place.threads or 1
    chosen = choose(rows, config.rows)
    slow = [] if config.rows or config.quick or use_cuda or cpu_bf16() else [row.name for row in chosen if row.bf16]
    missing = {row.name: row.needs for row in chosen if row.needs and not config.rows and find_spec(row.needs) is None}
    untrained = [row.name for row in chosen if row.trained and not config.checkpoint and not config.quick]
    if untrained and config.rows:
        raise UserError(f"row {untrained[0]} needs a trained model: give checkpoint=RUN")
    results: list[Result] = []
    with switched(threads=threads):
        here = environment(
            cuda=use_cuda, repeats=1 if config.quick else config.repeats, quick=config.quick, seed=config.seed
        )
        print(f"{here['gpu'] or here['cpu']}, {threads} thread(s), torch {here['torch']}, {here['attention']}")
        if config.quick:
            print("quick=true: tiny sizes, one sample; the ratios mean nothing")
        if slow:
            print(f"left out, since this CPU has no bf16 instructions: {', '.join(slow)} (rows=[…] runs them)")
        for package in sorted(set(missing.values())):
            names = ", ".join(name for name, needs in missing.items() if needs == package)
            print(f"left out, since {package} is not installed: {names}")
        if untrained:
            print(f"left out, since checkpoint= names no trained model: {', '.join(untrained)}")
        print(HEADER)
        for row in (row for row in chosen if row.name not in {*slow, *missing, *untrained}):
            on = torch.device("cuda" if use_cuda and not row.cpu else "cpu")
            results.append(measure(row, config, on))
            print(line(results[-1]), flush=True)
            report = {"schema": SCHEMA, "environment": here, "rows": [record(result) for result in results]}
            write_json(config.out, report)
    failed = [result.name for result in results if not result.ok]
    weights = f"Weights are random but for {config.checkpoint}" if config.checkpoint else "Weights are random"
    print(f"JSON with every sample: {config.out}. {weights}: speed and equality are shown, accuracy is not.")
    if failed:
        print(f"FAIL: a guard of {', '.join(failed)} does not hold, so there is no ratio")
    return 1 if failed else 0


def measure(row: Row, config: BenchConfig, device: torch.device) -> Result:
    """Make one row ready, ask its guards, and time it when they hold."""
    torch.manual_seed(config.seed)
    case = row.make(Setting(config.quick, device, config.seed, config.checkpoint, config.high_score_thresh))
    threads = config.place.threads or 1
    clock = "cuda events" if device.type == "cuda" else "thread CPU time" if threads == 1 else "wall time"
    with torch.set_grad_enabled(case.grad):
        with switched(tf32=False):  # a GPU's default for convolutions is too coarse for a guard
            verdicts = [ask(guard) for guard in case.guards]
        result = Result(row.name, row.what, str(device), clock, case.dtype, case.note, verdicts)
        if result.ok:
            _time(result, case, config, timer(device, one_thread=threads == 1))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return result


def ask(guard: Guard) -> Verdict:
    """Compute a guard's value and compare it."""
    value = float(guard.measure())
    ok = value >= guard.limit if guard.least else value <= guard.limit  # False for NaN either way
    return Verdict(guard.text, value, guard.limit, guard.least, ok)


def _time(result: Result, case: Case, config: BenchConfig, clock: Callable[..., float]) -> None:
    """Fill in times and ratio: warm up, size the samples, then take them by turns (A B, B A, A B, …)."""
    sides = {"baseline": case.baseline, "ours": case.ours}
    repeats, warmup = (1, 0) if config.quick else (config.repeats, config.warmup)
    if case.sampled:
        result.samples, result.calls_per_sample = case.sampled(repeats), dict.fromkeys(sides, 1)
        return _conclude(result)
    for name, call in sides.items():
        for _ in range(warmup):
            clock(call, 1)
        once = clock(call, 1)
        result.calls_per_sample[name] = (
            1 if config.quick else max(1, min(1000, math.ceil(MIN_SAMPLE / max(once, 1e-9))))
        )
    result.samples = {name: [] for name in sides}
    for number in range(repeats):
        for name in ("ours", "baseline") if number % 2 else ("baseline", "ours"):
            calls = result.calls_per_sample[name]
            result.samples[name].append(clock(sides[name], calls) / calls)
    _conclude(result)


def _conclude(result: Result) -> None:
    """Medians and ratio of the samples."""
    result.baseline_seconds, result.ours_seconds = (
        statistics.median(result.samples[name]) for name in ("baseline", "ours")
    )
    paired = [a / max(b, 1e-12) for a, b in zip(result.samples["baseline"], result.samples["ours"], strict=True)]
    result.ratio = result.baseline_seconds / max(result.ours_seconds, 1e-12)
    result.ratio_range = (min(paired), max(paired))


# ---------------------------------------------------------------- telling

HEADER = f"{'row':<20}{'baseline':>11}{'ours':>11}{'ratio':>9}  guard | what"


def line(result: Result) -> str:
    """One line of the table."""
    guards = "; ".join(str(verdict) for verdict in result.guards)
    if not result.ok:
        return f"{result.name:<20}{'':>11}{'':>11}{'FAIL':>9}  {guards} | {result.what}"
    times = f"{duration(result.baseline_seconds):>11}{duration(result.ours_seconds):>11}"
    return f"{result.name:<20}{times}{ratio(result.ratio):>9}  {guards} | {result.what}"


def duration(seconds: float | None) -> str:
    """1.23 s, 45.6 ms, 7.89 us."""
    if seconds is None:
        return "-"
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "us")
    return f"{seconds * scale:.3g} {unit}"


def ratio(value: float | None) -> str:
    """39.1x, 574x."""
    return "-" if value is None else f"{value:.1f}x" if value < 100 else f"{value:.0f}x"


def record(result: Result) -> dict[str, Any]:
    """A result as JSON: verdict first; NaN becomes null."""
    plain = {"ok": result.ok, **asdict(result)}
    for verdict in plain["guards"]:
        verdict["value"] = verdict["value"] if math.isfinite(verdict["value"]) else None
    return plain
