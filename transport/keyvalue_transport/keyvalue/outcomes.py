"""The possible outcomes of a call, and the tallies that count them."""

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

#: The number of calls to one function with each outcome, in the order of OUTCOMES. A tally is a plain list for speed,
#: because every call updates one.
Tally: TypeAlias = list[int]

OUTCOMES = ("ok", "none", "no_such_store", "access_denied", "other", "failed")
OK, NONE, NO_SUCH_STORE, ACCESS_DENIED, OTHER, FAILED = range(len(OUTCOMES))


def new_tally() -> Tally:
    """Return a tally with all counts at 0."""
    return [0] * len(OUTCOMES)
