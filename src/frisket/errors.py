"""The one error a person should read: a single sentence saying what is wrong, where, and how to mend it.

Raise `UserError` wherever the cause lies outside the program (a file, a key, a shard, a full disk); `frisket.cli.main`
prints it without a traceback and exits with code 2. Anything else is a bug and keeps its traceback.
"""

import difflib
import os
import sys
from collections.abc import Iterable


class UserError(Exception):
    """One sentence for a person: what is wrong, where (file, key, shard, sample), and the mend."""


def warn(text: str) -> None:
    """Write one line to standard error, once per run: from the first rank only. What follows goes on."""
    if os.environ.get("LOCAL_RANK", "0") == os.environ.get("SLURM_PROCID", "0") == os.environ.get("RANK", "0") == "0":
        print(f"frisket: {text}", file=sys.stderr, flush=True)


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that ends an error sentence: the closest of `choices`, or all of them when none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
