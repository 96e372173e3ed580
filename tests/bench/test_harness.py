"""The bench's mechanism: guards decide, sides alternate, the table and the JSON say what happened. Never a timing."""

import json
import math
from pathlib import Path

import pytest
import torch

from frisket import config
from frisket.bench import harness
from frisket.bench.harness import BenchConfig, Case, Row, Setting, at_least, at_most
from frisket.environment import cpu_bf16
from frisket.errors import UserError
from frisket.place import Place

CPU = Place(accelerator="cpu", threads=1)


def row(name: str, *guards: harness.Guard, calls: list[str] | None = None) -> Row:
    """A row whose sides write their names into `calls`."""
    log = [] if calls is None else calls
    return Row(name, "a test", lambda setting: Case(lambda: log.append("B"), lambda: log.append("O"), guards))


def test_a_guard_that_holds_gives_a_ratio_and_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    code = harness.run(BenchConfig(quick=True, out=str(out)), [row("fine", at_most("off by", lambda: 0.25, 0.5))])
    assert code == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("fine"))
    assert "off by 0.25 <= 0.5" in line and "x" in line.split("off by")[0]
    assert "FAIL" not in text
    (found,) = json.loads(out.read_text())["rows"]
    assert found["ok"] and found["ratio"] > 0 and len(found["samples"]["ours"]) == 1


@pytest.mark.parametrize(
    "guard",
    [
        at_most("off by", lambda: 0.75, 0.5),
        at_least("cosine", lambda: 0.5, 0.9),
        at_most("not a number", lambda: math.nan, 0.5),
        at_least("not a number", lambda: math.nan, 0.5),
    ],
)
def test_a_failed_guard_prints_fail_no_ratio_and_code_1(
    guard: harness.Guard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, calls = tmp_path / "bench.json", []
    rows = [
        row("good", at_most("off by", lambda: 0.0, 0.0)),
        row("bad", at_most("fine", lambda: 0, 1), guard, calls=calls),
    ]
    assert harness.run(BenchConfig(quick=True, out=str(out)), rows) == 1
    lines = capsys.readouterr().out.splitlines()
    bad = next(line for line in lines if line.startswith("bad"))
    assert bad.split()[1] == "FAIL" and guard.text in bad
    assert any(line.startswith("FAIL:") and "bad" in line and "good" not in line for line in lines)
    assert calls == []  # nothing wrong is ever timed
    good, failed = json.loads(out.read_text())["rows"]
    assert good["ok"] and good["ratio"] is not None
    assert not failed["ok"] and failed["ratio"] is None and failed["samples"] == {}


def test_sides_alternate_and_swap_who_goes_first() -> None:
    calls: list[str] = []
    config = BenchConfig(repeats=4, warmup=1)
    result = harness.measure(row("turns", calls=calls), config, torch.device("cpu"))
    assert len(result.samples["baseline"]) == len(result.samples["ours"]) == 4
    rest = "".join(calls)[4:]  # after one warm-up and one sizing call of each side
    per = result.calls_per_sample
    b, o = "B" * per["baseline"], "O" * per["ours"]
    assert "".join(calls)[:4] == "BBOO"
    assert rest == b + o + o + b + b + o + o + b


def test_medians_and_the_range_of_pairs() -> None:
    result = harness.Result("r", "w", "cpu", "clock", "float32", "", [])
    case = Case(lambda: None, lambda: None, [])
    times = iter([1.0, 1.0, 8.0, 2.0, 1.0, 10.0, 90.0, 3.0])  # sizing B, O; then B O, O B, B O
    harness._time(result, case, BenchConfig(repeats=3, warmup=0), lambda call, number: next(times))
    assert result.samples == {"baseline": [8.0, 10.0, 90.0], "ours": [2.0, 1.0, 3.0]}
    assert (result.baseline_seconds, result.ours_seconds, result.ratio) == (10.0, 2.0, 5.0)
    assert result.ratio_range == (4.0, 30.0)


def test_threads_are_pinned_and_given_back(tmp_path: Path) -> None:
    seen: list[int] = []

    def make(setting: Setting) -> Case:
        return Case(lambda: seen.append(torch.get_num_threads()), lambda: None, [])

    torch.set_num_threads(3)
    harness.run(BenchConfig(quick=True, place=Place(threads=2), out=str(tmp_path / "b.json")), [Row("t", "t", make)])
    assert set(seen) == {2}
    assert torch.get_num_threads() == 3


def test_the_json_names_the_environment(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bench.json"
    harness.run(BenchConfig(quick=True, place=CPU, out=str(out)), [row("a")])
    report = json.loads(out.read_text())
    here = report["environment"]
    wanted = {
        "date",
        "commit",
        "python",
        "torch",
        "cpu",
        "cores",
        "threads",
        "gpu",
        "driver",
        "attention",
        "quick",
        "seed",
    }
    assert wanted <= set(here)
    assert here["torch"] == torch.__version__ and here["threads"] == 1 and here["gpu"] is None
    assert {"name", "what", "device", "clock", "dtype", "guards", "ratio", "ok"} <= set(report["rows"][0])
    assert report["rows"][0]["clock"] == "thread CPU time"
    assert [p.name for p in out.parent.iterdir()] == ["bench.json"]


def test_every_row_works_at_small_sizes(tmp_path: Path) -> None:
    rows = harness.all_rows()
    names = [r.name for r in rows]
    needed = {"dilated_r2", "dilated_r4", "lightening_fp32", "lightening_bf16", "rle_fill", "sa1b_raw", "sa1b_prepared"}
    assert needed <= set(names) and len(set(names)) == len(names)
    out = tmp_path / "bench.json"
    assert harness.run(BenchConfig(quick=True, place=CPU, out=str(out)), rows) == 0
    found = json.loads(out.read_text())["rows"]
    assert [r["name"] for r in found] == names
    assert all(r["guards"] for r in found), "a row without a guard proves nothing"


def test_bf16_rows_are_left_out_only_where_the_cpu_has_no_bf16(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(setting: Setting) -> Case:
        return Case(lambda: None, lambda: None, [])

    rows = [Row("exact", "w", make), Row("short", "w", make, bf16=True)]
    out = tmp_path / "b.json"
    harness.run(BenchConfig(place=CPU, repeats=1, out=str(out)), rows)
    names = [r["name"] for r in json.loads(out.read_text())["rows"]]
    assert names == (["exact", "short"] if cpu_bf16() else ["exact"])
    assert ("left out" in capsys.readouterr().out) == (not cpu_bf16())
    harness.run(BenchConfig(place=CPU, repeats=1, rows=["short"], out=str(out)), rows)
    assert [r["name"] for r in json.loads(out.read_text())["rows"]] == ["short"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("rows=[dilated_r3]", "did you mean 'dilated_r"),
        ("place.threads=0", "place.threads=0 must be 1 or more"),
        ("repeats=0", "repeats=0 must be 1 or more"),
        ("seed=-1", "seed=-1 must be 0 or more"),
        ("place.accelerator=gpus", "must be one of auto, cpu, gpu, cuda: did you mean 'gpu'"),
        ("device=cuda", "device is now place.accelerator"),
    ],
)
def test_mistakes_get_one_sentence(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        harness.run(config.load(BenchConfig, [], [word]), harness.all_rows())
