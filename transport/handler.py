"""What a server calls: handlers, and the caller they are told of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeAlias, TypeVar

from transport.errors import NeedMoreBytes

__all__ = [
    "ACCESS_DENIED",
    "ANONYMOUS",
    "FAILED",
    "NONE",
    "NO_SUCH_STORE",
    "OK",
    "OTHER",
    "OUTCOMES",
    "Answer",
    "Caller",
    "Handler",
    "Measure",
    "NeedMoreElements",
    "Origin",
    "Tally",
    "new_tally",
]

T = TypeVar("T")


class Origin(NamedTuple):
    """Whose call it is: a component and the name of its link. None where the header is absent."""

    source_id: str | None
    link_name: str | None


class _Caller(NamedTuple):
    origin: Origin
    traceparent: str | None


class Caller(_Caller):
    """Who invokes: the headers of an invocation. Its origin repeats from call to call, and is made once: what a caller may do is looked up by it.

    >>> Caller("component", "default").origin
    Origin(source_id='component', link_name='default')
    """

    __slots__ = ()

    def __new__(cls, source_id: str | None, link_name: str | None, traceparent: str | None = None) -> Caller:
        return super().__new__(cls, Origin(source_id, link_name), traceparent)

    def traced(self, traceparent: str) -> Caller:
        """The same with a trace; cheaper than to make it anew."""
        return tuple.__new__(Caller, (self[0], traceparent))

    @property
    def source_id(self) -> str | None:
        """The component."""
        return self.origin.source_id

    @property
    def link_name(self) -> str | None:
        """The name of its link."""
        return self.origin.link_name


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


#: How many calls of one function ended how: a list of counts, by OUTCOMES. A plain list, since each call adds to it.
Tally: TypeAlias = list[int]

OUTCOMES = ("ok", "none", "no_such_store", "access_denied", "other", "failed")
OK, NONE, NO_SUCH_STORE, ACCESS_DENIED, OTHER, FAILED = range(len(OUTCOMES))


def new_tally() -> Tally:
    """A tally of no calls."""
    return [0] * len(OUTCOMES)
