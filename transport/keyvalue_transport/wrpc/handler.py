"""The handler contract: what a server calls for an invocation, and what it gets back.

    handler(caller, buffer, start, end)  ->  the encoded result, or a Pending answer that must be waited for
                                         or raises NeedMoreBytes, DecodeError, or anything else

A handler sees `buffer[start:end]` alone, although the buffer may go on with the bytes of another caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from keyvalue_transport.wrpc.errors import NeedMoreBytes

__all__ = [
    "ANONYMOUS",
    "Answer",
    "Caller",
    "Derived",
    "Handler",
    "Measure",
    "NeedMoreElements",
    "Pending",
    "drop_answer",
]

T = TypeVar("T")


class Caller(NamedTuple):
    """The component that invokes, and the name of its link. None where the header is absent."""

    source_id: str | None
    link_name: str | None


#: A caller that sent no header.
ANONYMOUS = Caller(None, None)

#: What a function returns: the value, or an awaitable of it.
Answer: TypeAlias = T | Awaitable[T]


class Pending(Protocol):
    """What a handler returns if its function's answer must be waited for."""

    @property
    def answer(self) -> Awaitable[object]:
        """Return the function's answer. A future costs no task.

        It is cancelled if the server refuses the invocation or stops. Several invocations may share a future, but one that others too depend
        on must be shielded.
        """

    def encode(self, read: Callable[[], object], /) -> bytes:
        """Return the encoded result.

        :param read: returns the answer, or raises what the function raised
        """


#: Called with parameters `buffer[start:end]`. Returns the encoded result, empty if the function has none. Raises NeedMoreBytes if the
#: parameters are cut, DecodeError if they are malformed; both at once, also if the answer must be waited for.
Handler: TypeAlias = Callable[[Caller, bytes, int, int], bytes | Pending]

#: Called with all parameters that have arrived, more each time. Returns the least number of bytes that they have in all.
Measure: TypeAlias = Callable[[bytearray], int]


class NeedMoreElements(NeedMoreBytes):
    """The parameters are cut inside a list, whose size is not known before its last element is there.

    Calling the handler again for each piece would read a large list once for each piece. `measure` reads only the lengths that are new,
    and says when to call.
    """

    def __init__(self, end_min: int, measure: Measure) -> None:
        super().__init__(end_min)
        self.measure = measure


class Derived(Generic[T]):
    """An answer that is made of another one once that is there. A server waits for the other one, so this costs no task.

    :ivar source: the other answer
    :ivar derive: returns the answer, or raises. It is called with what returns the other one, or raises what that raised
    """

    __slots__ = ("derive", "source")

    def __init__(self, source: Awaitable[object], derive: Callable[[Callable[[], Any]], T]) -> None:
        self.source = source
        self.derive = derive

    def __await__(self) -> Generator[object, None, T]:
        try:
            value = yield from self.source.__await__()
        except Exception as error:
            raised = error
        else:
            return self.derive(lambda: value)

        def fail() -> object:
            raise raised

        return self.derive(fail)

    def close(self) -> None:
        """Give up the other answer."""
        drop_answer(self.source)


def drop_answer(answer: Awaitable[object]) -> None:
    """Give up an answer: close a coroutine, so that it does not warn, or cancel a future."""
    drop = getattr(answer, "close", None) or getattr(answer, "cancel", None)
    if drop is not None:
        drop()
