"""The runner of `frisket prep`: units of work in, whole shards out, any number of times, from any number of tasks.

    totals = prep(sa1b.Config(inputs="/data/sa1b", out="data/sa1b/train"))

A source (frisket.prep.records says what it is) names units of work and makes records; here each is checked and written.

On disk     <out>/<source>-<split>-<unit>-000000.tar and its .idx.json; rejected.jsonl; index.json (counts, sha256 of
            every shard, source, settings); .prep/: one note per finished unit, and the settings of the folder.
Resume      the same command again. A unit whose note and shards are there is skipped; what a killed run left of the
            others is removed; the end result equals an uninterrupted run's, byte for byte.
Array       task=k/n does the units k, k+n, ...: `task=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT`, --array=0-<n-1>.
            Tasks share nothing but the folder. index.json and rejected.jsonl are written by whichever run finds all
            units finished: the last task to end, or the command once more.
Source      our choice.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from frisket import plugins
from frisket.data.index import build_index, index_path
from frisket.data.sa1b import RecordError, check_record
from frisket.data.shards import ShardWriter
from frisket.errors import UserError
from frisket.files import write_json, write_text
from frisket.prep.records import SOURCES, PhotoConfig, PrepConfig, Record, Reject, ShardConfig, Unit, shrink_jpeg

# Where and how fast, not what: these may differ between two runs into one folder.
NOT_SETTINGS = {"inputs", "tars", "only", "out", "task", "strict", "verify", "batch", "place", "plugins"}

# What belongs to one unit: `<output>-000000.tar`, `<output>.emb.tar`, `<output>.block11.emb.tar` and `<note>.json`,
# with sidecars and temporaries.
PRODUCT = re.compile(r"\.?(.+?)(?:-\d{6}\.tar|(?:\.block\d+)?\.emb\.tar|\.json)(?:\..+)?")
COMMON = re.compile(r"\.(?:index\.json|rejected\.jsonl|settings\.json)\.\d+\.tmp")

Note = dict[str, Any]


def prep(config: PrepConfig) -> dict[str, int]:
    """Do this task's units and, when no unit of any task is left, write index.json.

    Returns {"images", "masks", "rejected", "shards"} of the units finished so far, all tasks together. Raises UserError
    for anything a person must mend; what was finished before stays and is not done again.
    """
    try:
        return _prep(_complete(config))
    except BrokenPipeError:  # whoever read our lines went away: nothing a person must mend
        raise
    except OSError as error:
        what = error.filename or config.out
        raise UserError(f"{what}: {error.strerror or error}; mend that and run the same command again") from error


def _prep(config: PrepConfig) -> dict[str, int]:
    began = time.monotonic()
    task, tasks = _task(config.task)
    units = _units(config)
    out = Path(config.out)
    _claim(config, out, units)
    mine = units[task::tasks]
    pending = [unit for unit in mine if _finished(config, out, unit, verify=config.verify) is None]
    if pending:
        (out / "index.json").unlink(missing_ok=True)  # an index.json says: all units are here
    _sweep(config, out, pending, alone=tasks == 1)
    done = len(mine) - len(pending)
    for note, seconds in _work(config, pending):
        done += 1
        speed = f"{note['images'] / max(seconds, 1e-6):.1f} images/s"
        print(f"[{done}/{len(mine)}] {_stem(config)}-{note['unit']}: {_counts(_totals([note]))}, {speed}", flush=True)
    notes = [note for unit in units if (note := _finished(config, out, unit)) is not None]
    totals = _totals(notes)
    left = len(units) - len(notes)
    if not left:
        _finish(config, out, notes, totals)
    end = f"; {left} of {len(units)} units are still to come, then index.json" if left else ""
    print(f"{out}: {_counts(totals)} ({len(pending)} units in {time.monotonic() - began:.1f} s{end})", flush=True)
    return totals


def _totals(notes: list[Note]) -> dict[str, int]:
    totals = {name: sum(note[name] for note in notes) for name in ("images", "masks", "rejected")}
    return totals | {"shards": sum(len(note["shards"]) for note in notes)}


def _counts(totals: dict[str, int]) -> str:
    return ", ".join(f"{totals[name]:,} {name}" for name in ("images", "masks", "shards", "rejected"))


# ---------------------------------------------------------------- what there is to do


def _complete(config: PrepConfig) -> PrepConfig:
    """The config with its values checked and `out` filled in. Raises UserError."""
    source = SOURCES.find(config.source)
    if getattr(config, "inputs", None) == "":
        raise UserError(f"source {config.source} needs inputs=<folder>: say where the data lies")
    if not re.fullmatch(r"[A-Za-z0-9_]+", config.split):
        raise UserError(f"split='{config.split}' becomes part of file names: use letters, digits and underscores")
    if config.out:
        return config
    if not hasattr(source, "default_out"):
        raise UserError(f"source {config.source} needs out=<folder>: say where the shards shall lie")
    return dataclasses.replace(config, out=source.default_out(config))


def _units(config: PrepConfig) -> list[Unit]:
    units = SOURCES.find(config.source).units(config)
    double = [name for name, times in Counter(unit.name for unit in units).items() if times > 1]
    if double:
        raise UserError(f"two inputs are both called {double[0]}: rename one, shards are named after them")
    return units


def _task(text: str) -> tuple[int, int]:
    numbers = re.fullmatch(r"(\d+)/(\d+)", text)
    task, tasks = (int(numbers[1]), int(numbers[2])) if numbers else (1, 0)
    if task >= tasks:
        raise UserError(f"task='{text}' must be k/n with 0 <= k < n, e.g. task=0/10 for the first of ten")
    return task, tasks


def _settings(config: PrepConfig) -> dict[str, Any]:
    kept = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_SETTINGS}
    settings = json.loads(json.dumps(kept))  # as the folder's own note gives them back: a pair is a list there
    if settings.get("image_size", 0) is None:
        settings.pop("jpeg_quality")  # without effect
    if config.source == "embed":
        settings["precision"] = config.place.precision  # of all places the one that shows in what is written
    return settings


def _modern(before: dict[str, Any]) -> dict[str, Any]:
    """Settings of a folder as they are named now: in those of 2025 every source had every key."""
    if not isinstance(before, dict):
        raise TypeError("no settings")
    if "image_side" not in before:
        return before
    names = {"synthetic": "side", "embed": "image_size"}
    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}.get(before["precision"])
    return {**before, "image_size": before[names.get(before["source"], "image_side")], "precision": precision}


def _stem(config: PrepConfig) -> str:
    return f"{config.source}-{config.split}"


def _output(config: PrepConfig, unit: Unit) -> str:
    return unit.output or f"{_stem(config)}-{unit.name}"


def _note_path(config: PrepConfig, out: Path, unit: Unit) -> Path:
    return out / ".prep" / f"{_stem(config)}-{unit.name}.json"


def _claim(config: PrepConfig, out: Path, units: list[Unit]) -> None:
    """Refuse a folder made with other settings or from other inputs: silently mixed shards are worse than a stop."""
    path, settings = out / ".prep" / "settings.json", _settings(config)
    if path.is_file():
        try:
            before = _modern(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error}): choose another out= or delete that folder") from error
        usual = _settings(type(config)())
        for name in sorted(settings):  # one that is there no more has no effect now; one that is new had its default
            if (then := before.get(name, usual.get(name))) != settings[name]:
                raise UserError(
                    f"{out} was prepared with {name}={then}, now it is {settings[name]}: "
                    f"choose another out= or delete that folder"
                )
    else:
        write_json(path, settings)
    known = {_note_path(config, out, unit).name for unit in units}
    for note in sorted((out / ".prep").glob(f"{_stem(config)}-*.json")):
        if note.name not in known:
            raise UserError(f"{out} also holds unit {note.stem}, which inputs no longer lead to: choose another out=")


def _finished(config: PrepConfig, out: Path, unit: Unit, verify: bool = False) -> Note | None:
    """The unit's note, when it is of this very input and its shards are there as they were written.

    A shard that is newer than the note, or any to `verify`, is read again: only with its sha256 it counts.
    """
    path = _note_path(config, out, unit)
    try:
        note = json.loads(path.read_text())
        moment = 0 if verify else path.stat().st_mtime_ns
        whole = all(_whole(out / shard["name"], shard, moment) for shard in note["shards"])
        return note if whole and note["stamp"] == unit.stamp and _totals([note]) else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # a note that is damaged is none
        return None


def _whole(shard: Path, record: dict[str, Any], moment: int) -> bool:
    facts = shard.stat()
    if facts.st_size != record["bytes"] or not index_path(shard).is_file():
        return False
    return facts.st_mtime_ns <= moment or _sha256(shard) == record["sha256"]


def _sweep(config: PrepConfig, out: Path, pending: list[Unit], *, alone: bool) -> None:
    """Remove what a killed run left of the units about to be done: unfinished and finished shards, notes."""
    ours = {_output(config, unit) for unit in pending} | {_note_path(config, out, unit).stem for unit in pending}
    for path in [*out.iterdir(), *(out / ".prep").iterdir()]:
        product = PRODUCT.fullmatch(path.name)
        # The folder's own temporary files may belong to a neighbour of the array, which is about to rename them.
        if (product and product[1] in ours) or (alone and COMMON.fullmatch(path.name)):
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- doing it


def _work(config: PrepConfig, pending: list[Unit]) -> Iterator[tuple[Note, float]]:
    """Each pending unit's note and its seconds, as it gets finished."""
    workers = min(config.place.workers, len(pending))
    if workers <= 1 or hasattr(SOURCES.find(config.source), "write"):  # embed keeps one device busy; it has the array
        for unit in pending:
            yield do_unit(config, unit)
        return
    # Not forked from here, where torch or numba may run threads; from a server that has imported this file once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent) as pool:
        futures = [pool.submit(do_unit, config, unit) for unit in pending]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed (out of memory?): run the same command again, with fewer place.workers="
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _die_with_parent() -> None:
    """A worker ends when its parent is killed, so that it never writes against the run that takes over."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def do_unit(config: PrepConfig, unit: Unit) -> tuple[Note, float]:
    """Do one unit from start to end in this process; returns its note, which is on disk by then, and the seconds.

    Raises UserError when the disk is full, or with strict=true for the first bad record; nothing of the unit stays.
    """
    began = time.monotonic()
    plugins.load(config.plugins)  # this may be another process
    out, rejected = Path(config.out), []

    def reject(key: str, reason: str) -> None:
        if config.strict:
            what = unit.where if key == "*" else f"{unit.where}, sample {key}:"
            raise UserError(f"{what} {reason}; mend it, or let strict=false note it in rejected.jsonl and go on")
        rejected.append({"shard": unit.where, "key": key, "reason": reason})

    try:
        source = SOURCES.find(config.source)
        work = source.write if hasattr(source, "write") else write_shards
        note: Note = {"unit": unit.name, "where": unit.where, "stamp": unit.stamp, **work(config, unit, reject)}
        if getattr(config, "input_sha256", False) and Path(unit.where).is_file():
            note["input_sha256"] = _sha256(Path(unit.where))
        note |= {"rejected": len(rejected), "rejections": rejected}
        write_json(_note_path(config, out, unit), note)
    except BaseException:
        _sweep(config, out, [unit], alone=False)
        raise
    return note, time.monotonic() - began


def write_shards(config: PrepConfig, unit: Unit, reject: Reject) -> Note:
    """Check the unit's records and write the good ones; returns {"images", "masks", "shards"}."""
    assert isinstance(config, ShardConfig), f"source {config.source} makes records: its Config is a ShardConfig"
    images = masks = 0
    writer = ShardWriter(
        config.out,
        _output(config, unit),
        max_count=config.samples_per_shard,
        max_size=config.shard_bytes,
    )
    with writer:
        for record in SOURCES.find(config.source).records(config, unit, reject):
            try:
                sample, count = _checked(config, unit, record)
            except RecordError as error:
                reject(record.key, error.reason)
                continue
            writer.write(sample)
            images += 1
            masks += count
    for shard in writer.records:
        build_index(Path(config.out) / shard.name)  # normally there already; a unit is not finished without it
    return {"images": images, "masks": masks, "shards": [dataclasses.asdict(shard) for shard in writer.records]}


def _checked(config: ShardConfig, unit: Unit, record: Record) -> tuple[dict[str, Any], int]:
    """The sample to store and its number of masks. Raises RecordError."""
    where = f"{unit.where}, sample {record.key}"
    if not re.fullmatch(r"[^./\0\ud800-\udfff]+", record.key):
        raise RecordError(where, "its name is not UTF-8, or cannot be a member's name")
    notes = check_record(record.key, record.jpg, record.json, shard=unit.where)
    jpg = record.jpg
    if isinstance(config, PhotoConfig):
        jpg = shrink_jpeg(jpg, notes.size, config.image_size, config.jpeg_quality, where=where)
    return {"__key__": record.key, "jpg": jpg, "json": record.json}, len(notes)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- the end


def _finish(config: PrepConfig, out: Path, notes: list[Note], totals: dict[str, int]) -> None:
    """Write rejected.jsonl and then index.json, from the notes alone: whoever writes them writes the same bytes."""
    rows = [row for note in notes for row in note["rejections"]]
    write_text(out / "rejected.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    if not totals["images"]:
        why = f"; the first of {len(rows)} reasons is '{rows[0]['reason']}' ({out}/rejected.jsonl)" if rows else ""
        raise UserError(
            f"{getattr(config, 'inputs', config.source)}: not one image was good{why}: check inputs= and subset="
        )
    index = {
        "source": config.source,
        "split": config.split,
        "subset": getattr(config, "subset", "all"),
        **{name: totals[name] for name in ("images", "masks", "rejected")},
        "config": {**_settings(config), "inputs": getattr(config, "inputs", "")},
        "units": [
            {
                name: note[name]
                for name in ("unit", "where", "images", "masks", "rejected", "input_sha256")
                if name in note
            }
            for note in notes
        ],
        "shards": [shard for note in notes for shard in note["shards"]],
    }
    write_json(out / "index.json", index)
