"""Source sa1b: Meta's SA-1B tars, repacked into shards that are paired, checked and small enough to shuffle.

    frisket prep configs/prep_sa1b.yaml inputs=/data/sa1b task=$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT

inputs  a folder of sa_000000.tar ..., a glob or a brace pattern. Flat or in a folder, gzip-wrapped though named .tar,
        halves of a pair apart: all read. A tar that breaks off gives what is whole, and one line in rejected.jsonl.
        Or Meta's list of links, a .txt or .tsv: its tars are downloaded into `tars` as their turn comes, see
        frisket.prep.download.
Unit    one tar. subset=1pct takes a hash share of the images of *every* tar, so that all topics are met.
Source  SA-1B's README (format); its known defects are those named above.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frisket.data.pairs import read_pairs
from frisket.data.shards import expand
from frisket.errors import UserError
from frisket.prep.download import fetch, links
from frisket.prep.records import PhotoConfig, Record, Reject, Unit, percent, selected, unit_name

LISTS = (".txt", ".tsv")


@dataclass(kw_only=True)
class Config(PhotoConfig):
    """Meta's tars."""

    source: str = "sa1b"
    tars: str = ""
    """The folder of tars that a list of links names; empty: tars, beside the list."""
    only: str = ""
    """Of a list's tars those of this glob or brace pattern: sa_0000{00..09}.tar; empty: all."""
    input_sha256: bool = False
    """Note the sha256 of every input tar in index.json (reads it once more)."""


def units(config: Config) -> list[Unit]:
    """One unit per tar, named after it. Its stamp is the tar's size, so a tar downloaded again is read again; its name
    where a list of links, which change, leads to it."""
    listed, made = Path(config.inputs), []
    if listed.suffix in LISTS and listed.is_file():
        folder = Path(config.tars) if config.tars else listed.parent / "tars"
        return [
            Unit(unit_name(Path(link.name).stem), str(folder / link.name), link.name, (link, folder))
            for link in links(listed, config.only)
        ]
    for tar in expand(config.inputs):
        if not isinstance(tar, Path):
            raise UserError(f"inputs: '{tar}' is not a file; prep reads tars that are on disk, download it first")
        made.append(Unit(unit_name(tar.stem), str(tar), tar.stat().st_size, str(tar)))
    return made


def records(config: Config, unit: Unit, reject: Reject) -> Iterator[Record]:
    """The tar's records in the subset, bytes untouched. `reject` gets its lone halves and where the tar breaks off."""
    share = percent(config.subset)

    def chosen(key: str) -> bool:
        number = re.search(r"(\d+)$", key)
        return number is None or selected(int(number[1]), share)

    tar = fetch(*unit.payload) if isinstance(unit.payload, tuple) else unit.payload
    for key, pair in read_pairs(tar, reject, keep=chosen):
        yield Record(key, pair["jpg"], pair["json"])
