"""What an interrupted evaluation has judged, kept beside its results: rows that the next start need not make again.

    journal = Journal(folder, identity, rank=0)
    rows = journal.read()                  # {item: rows by label}, of all ranks; {} when `identity` is another
    journal.add(7, rows)                   # one line, at once
    journal.remove()                       # all ranks' files

One file for each rank, `.judged-<rank>.jsonl`: a line that says what is judged (settings, side, weights, data), then a
line for each item. JSON, with arrays as base64 of their bytes, so that rows come back to the last bit and reading runs
no code, which a pickle might. A line that a kill cut short is judged again. Our choice.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frisket.eval.task import Row

Rows = dict[str, Row] | None
"""Of one item, by label; None where there was nothing to judge."""


class Journal:
    """The files of one evaluation in `folder`. identity: everything that decides a row, as JSON holds it."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], rank: int = 0) -> None:
        self.folder, self.rank, self.known = folder, rank, json.dumps(identity, sort_keys=True)
        self.path = folder / f".judged-{rank}.jsonl"
        self._file: Any = None

    def files(self) -> list[Path]:
        """Of all ranks that there were."""
        return sorted(self.folder.glob(".judged-*.jsonl"))

    def read(self) -> dict[int, Rows]:
        """{item: rows} of all ranks' files that tell the same identity; damaged lines and other files count as none."""
        rows: dict[int, Rows] = {}
        for path in self.files():
            lines = path.read_bytes().split(b"\n")[:-1]  # the last has no end, or is empty
            if lines and lines[0].decode("utf-8", "replace") == self.known:
                for line in lines[1:]:
                    try:
                        number, row = json.loads(line, object_hook=_decoded)
                    except (ValueError, TypeError, KeyError):
                        break  # what follows a damaged line is not believed
                    rows[int(number)] = row
        return rows

    def start(self, rows: Mapping[int, Rows]) -> None:
        """Begin this rank's file anew with `rows`, which it kept from before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".tmp")
        with open(fresh, "w", encoding="utf-8") as file:
            file.writelines([self.known + "\n", *(_line(number, row) for number, row in rows.items())])
        fresh.replace(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # closed by `remove` or the process

    def add(self, number: int, rows: Rows) -> None:
        """One item's rows, written before the next item begins."""
        self._file.write(_line(number, rows))
        self._file.flush()

    def remove(self) -> None:
        """The results are written: no rank needs its journal any more."""
        if self._file is not None:
            self._file.close()
        for path in self.files():
            path.unlink(missing_ok=True)


def _line(number: int, rows: Rows) -> str:
    return json.dumps([number, rows], default=_encoded) + "\n"


def _encoded(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    kind = "tensor" if isinstance(value, torch.Tensor) else "array"
    array = np.ascontiguousarray(value.cpu().numpy() if isinstance(value, torch.Tensor) else value)
    if array.dtype.hasobject:  # its bytes would be addresses
        raise TypeError(f"a row holds a {type(value).__name__}: give numbers, texts, arrays or tensors")
    data = base64.b64encode(array.tobytes()).decode("ascii")
    return {"__kind__": kind, "dtype": array.dtype.str, "shape": array.shape, "data": data}


def _decoded(held: dict[str, Any]) -> Any:
    if "__kind__" not in held:
        return held
    array = np.frombuffer(base64.b64decode(held["data"]), np.dtype(held["dtype"])).reshape(held["shape"]).copy()
    return torch.from_numpy(array) if held["__kind__"] == "tensor" else array
