"""Numbers that others have published, and which results of ours may stand in one table with them.

Use     for table in tables(): table.task, table.rows["SAM ViT-H"]["box/miou"]     # fractions, like ours
        equal(table.equal, {"protocol": …, "dataset": …, "strategy": …})          # of an eval.json: may it join?
Source  published.yaml beside this file, which names the paper or repository of each table and says at its top how it is
        written. Nothing is read out of a sentence, a name or a path: fields are equal, or the table stands apart.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from frisket import config as settings


@dataclass(frozen=True)
class Published:
    """One printed table. words: as printed; equal: what an eval.json must hold to join it, None where nothing can."""

    task: str
    data: str
    source: str
    protocol: str
    columns: list[str]
    words: dict[str, dict[str, str]]
    equal: dict[str, Any] | None = None
    percent: bool = True

    @cached_property
    def rows(self) -> dict[str, dict[str, float]]:
        """{model: {key: value}}, percent as fractions."""
        scale = 100 if self.percent else 1
        return {name: {k: float(v) / scale for k, v in cells.items()} for name, cells in self.words.items()}


@cache
def tables() -> tuple[Published, ...]:
    """Every table, in the file's order."""
    entries = settings.read(Path(__file__).with_name("published.yaml"))["tables"]
    return tuple(Published(words=printed(entry["columns"], entry.pop("rows")), **entry) for entry in entries)


def printed(columns: list[str], text: str) -> dict[str, dict[str, str]]:
    """{model: {key: as printed}} of "model | number | …" lines. Raises ValueError for a line that does not fit."""
    words: dict[str, dict[str, str]] = {}
    for line in text.strip().splitlines():
        name, *cells = (cell.strip() for cell in line.split("|"))
        if len(cells) != len(columns) or name in words:
            raise ValueError(f"published.yaml: '{line}' does not fit the columns {columns}")
        words[name] = {key: cell for key, cell in zip(columns, cells) if cell != "-"}
    return words


def equal(wanted: Any, given: Any) -> bool:
    """Whether `given` holds every key of `wanted` with an equal value, at every depth; lists are equal as a whole."""
    if not isinstance(wanted, dict):
        return wanted == given
    return isinstance(given, dict) and all(key in given and equal(value, given[key]) for key, value in wanted.items())
