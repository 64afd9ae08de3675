"""How calls of an interface's functions end, and the counts of it."""

from __future__ import annotations

from typing import TypeAlias

__all__ = [
    "ACCESS_DENIED",
    "FAILED",
    "NONE",
    "NO_SUCH_STORE",
    "OK",
    "OTHER",
    "OUTCOMES",
    "Tally",
    "new_tally",
]

#: The number of calls of one function that ended in each way, in the order of OUTCOMES. A plain list, since each call adds to it.
Tally: TypeAlias = list[int]

OUTCOMES = ("ok", "none", "no_such_store", "access_denied", "other", "failed")
OK, NONE, NO_SUCH_STORE, ACCESS_DENIED, OTHER, FAILED = range(len(OUTCOMES))


def new_tally() -> Tally:
    """Return a tally of no calls."""
    return [0] * len(OUTCOMES)
