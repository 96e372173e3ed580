"""The one error a person should read: a single sentence saying what is wrong, where, and how to mend it.

Raise `UserError` wherever the cause lies outside the program (a file, a key, a shard, a full disk); `frisket.cli.main`
prints it without a traceback and exits with code 2. Anything else is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """One sentence for a person: what is wrong, where (file, key, shard, sample), and the mend."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return a hint that ends an error sentence: the closest of `choices`, or all of them when none is close."""
    known = sorted(choices)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
