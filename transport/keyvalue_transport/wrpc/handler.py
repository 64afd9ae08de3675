"""What a server calls: handlers, and the caller they are told of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias, TypeVar

from keyvalue_transport.wrpc.errors import NeedMoreBytes

__all__ = [
    "ANONYMOUS",
    "Answer",
    "Caller",
    "Handler",
    "Measure",
    "Narrowed",
    "NeedMoreElements",
    "drop_answer",
    "narrow",
    "narrowable",
]

T = TypeVar("T")


class Caller(NamedTuple):
    """Who invokes: a component and the name of its link. None where the header is absent."""

    source_id: str | None
    link_name: str | None


#: A caller that sent no header.
ANONYMOUS = Caller(None, None)

#: What a function returns: the value, or something to wait for that gives it.
Answer: TypeAlias = T | Awaitable[T]

#: Called with parameters `buffer[start:end]`; returns the encoded result, no bytes where the function has none. Raises NeedMoreBytes where
#: they are not whole, DecodeError where they never will be; both at once, also where the result must be waited for.
Handler: TypeAlias = Callable[[Caller, bytes, int, int], Answer[bytes]]

#: Called with all that came of parameters, more each time; returns how many bytes they have at the least.
Measure: TypeAlias = Callable[[bytearray], int]


class NeedMoreElements(NeedMoreBytes):
    """The parameters end within a list, whose size is not known before its last element is there.

    Whoever called the handler again at each piece would read a large list as often as it has pieces. `measure` reads the lengths that are new
    alone, and says when to call.
    """

    def __init__(self, end_min: int, measure: Measure) -> None:
        super().__init__(end_min)
        self.measure = measure


class Narrowed(NamedTuple):
    """A handler that may be called in another's place for parameters that begin with `head` and are not shorter than those it was made for."""

    head: bytes
    handler: Handler


def narrowable(handler: Handler, narrowing: Callable[[bytes], Narrowed | None]) -> Handler:
    """The same handler, of which `narrow` can make one that reads less."""
    handler.narrowing = narrowing  # type: ignore[attr-defined] # a function has room for what belongs to it
    return handler


def narrow(handler: Handler, parameters: bytes) -> Narrowed | None:
    """A handler for parameters that begin like these, which came for `handler`; None where there is none."""
    narrowing: Callable[[bytes], Narrowed | None] | None = getattr(handler, "narrowing", None)
    return None if narrowing is None else narrowing(parameters)


def drop_answer(answer: Awaitable[object]) -> None:
    """Nobody will wait for an answer: a coroutine is closed, so that it does not warn, a task cancelled."""
    drop = getattr(answer, "close", None) or getattr(answer, "cancel", None)
    if drop is not None:
        drop()
