"""Hostile input, drawn by Hypothesis: odd values, good things with some of their parts replaced, and `fuzz`, which
feeds them to a function that may raise nothing but UserError.

    tally = fuzz(changed(record), 300, lambda notes: parse(json.dumps(notes), where="x"))

The cases are the same on every machine and in every run. Address space is bounded meanwhile, so that an absurd
allocation fails at once; pytest's time-out ends what hangs.
"""

import contextlib
import copy
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frisket.errors import UserError

HEADROOM = 3 << 29
"""Bytes of address space a case may ask for beyond what the process has: a picture of the largest size allowed."""


def address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Within, an allocation beyond HEADROOM fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + HEADROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(values: st.SearchStrategy[Any], cases: int, attack: Callable[[Any], Any]) -> Counter[str]:
    """Call `attack` with each of `cases` values; how many were "answered" and how many "refused" by a sentence.

    Anything else than UserError is raised, with the smallest value that does it.
    """
    tally: Counter[str] = Counter()

    @settings(
        max_examples=cases, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(values)
    def case(value: Any) -> None:
        try:
            attack(value)
            tally["answered"] += 1
        except UserError as error:
            assert 10 < len(str(error)) < 2000 and "\n" not in str(error), f"no sentence: {str(error)[:3000]!r}"
            tally["refused"] += 1

    with bounded_memory():
        case()
    assert tally.total() >= 0.9 * cases, f"only {tally.total()} different cases were drawn"
    return tally


# ---------------------------------------------------------------- values

WORDS = st.sampled_from(["", "0", "abc", "../x", "a/b", "a\0b", "é", "\udcff", "%s", "${x}", "${oc.env:NO}", "x" * 99])
FLOATS = st.sampled_from([0.0, -0.0, 1.5, -1.0, 1e30, -1e308, 5e-324, float("nan"), float("inf"), float("-inf")])
WHOLE = st.sampled_from(
    [0, 1, -1, 2, 3, 7, 255, 4096, 65_535, 1 << 20, 1 << 31, -(1 << 31), 1 << 53, 1 << 62, 1 << 63, 1 << 64, 10**400]
)
SCALARS = st.one_of(st.none(), st.booleans(), WHOLE, FLOATS, WORDS)
ODD = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["size", "counts", "id", "x", ""]), inner, max_size=3),
    ),
    max_leaves=6,
)
"""What JSON, YAML or a checkpoint's table can hold, and nobody expects."""


@st.composite
def changed(draw: st.DrawFn, good: Any, most: int = 3) -> Any:
    """A copy of nested lists and dicts with up to `most` of their parts replaced, left out, doubled or renamed."""
    value = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, most))):
        holder, key, node = None, None, value
        while isinstance(node, dict | list) and node and (holder is None or draw(st.integers(0, 3))):
            holder, key = (
                node,
                draw(st.sampled_from(sorted(node, key=str) if isinstance(node, dict) else range(len(node)))),
            )
            node = holder[key]
        how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double", "wrap"]))
        if holder is None:
            value = draw(ODD)
        elif how == "drop":
            del holder[key]
        elif how == "double" and isinstance(holder, list):
            holder.append(copy.deepcopy(node))
        elif how == "wrap":
            holder[key] = [node]
        else:
            holder[key] = draw(ODD)
    return value


@st.composite
def damaged(draw: st.DrawFn, good: bytes, most: int = 3) -> bytes:
    """Bytes with up to `most` damages: a bit flipped, bytes replaced, cut out, doubled or zeroed, the end cut off."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, most))):
        at, length = draw(st.integers(0, max(0, len(data) - 1))), draw(st.sampled_from([1, 2, 8, 64, 512]))
        how = draw(st.sampled_from(["flip", "flip", "put", "cut", "double", "zero", "end"]))
        if how == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "put":
            data[at : at + length] = draw(st.binary(max_size=length))
        elif how == "cut":
            del data[at : at + length]
        elif how == "double":
            data[at:at] = data[at : at + length]
        elif how == "zero":
            data[at : at + length] = bytes(len(data[at : at + length]))
        else:
            del data[at:]
    return bytes(data)
