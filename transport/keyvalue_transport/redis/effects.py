"""The effects of commands, which decide their order, and answers that are not ready."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

__all__ = ["AFTER", "Awaited", "Effect"]

#: The types of answers that need no wait, besides tuples.
IMMEDIATE = frozenset({bytes, int, bool, list, type(None)})


class Effect(Enum):
    """The effect of a command, as far as the order of commands depends on it."""

    LOCAL = "answers without the store"
    READ = "reads"
    WRITE = "writes, whatever is stored"
    UPDATE = "writes, depending on what is stored"
    ALONE = "depends on several keys, or changes the session"


#: The kinds of unanswered requests after which a request of a kind may start.
AFTER = {
    Effect.LOCAL: frozenset(Effect),
    Effect.READ: frozenset({Effect.READ, Effect.WRITE}),
    Effect.WRITE: frozenset({Effect.WRITE}),
    Effect.UPDATE: frozenset({Effect.WRITE, Effect.UPDATE}),
    Effect.ALONE: frozenset[Effect](),
}


class Awaited(NamedTuple):
    """An answer that is not ready: what to wait for, and a function that makes the answer from the result.

    A result may be another Awaited.
    """

    answer: Any
    encode: Callable[[Any], bytes | Awaited]

    @classmethod
    def of(cls, answer: Any, encode: Callable[[Any], bytes | Awaited]) -> bytes | Awaited:
        """Return the encoded answer, or a Awaited if it must be awaited."""
        if type(answer) in IMMEDIATE or isinstance(answer, tuple):
            return encode(answer)
        return cls(answer, encode)
