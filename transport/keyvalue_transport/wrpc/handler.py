"""The handler contract: what a server calls for an invocation, and what it gets back.

    handler(caller, buffer, start, end)  ->  the encoded result, or a Pending answer to wait for
                                         or raises NeedMoreBytes, DecodeError, or another exception

A handler reads only `buffer[start:end]`. The bytes after `end` may belong to another caller.
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
    """The component that calls, and the name of its link. None if the header is missing."""

    source_id: str | None
    link_name: str | None


#: A caller that sent no header.
ANONYMOUS = Caller(None, None)

#: The return value of a function: the value, or an awaitable of it.
Answer: TypeAlias = T | Awaitable[T]


class Pending(Protocol):
    """The return value of a handler if the answer of its function is not ready."""

    @property
    def answer(self) -> Awaitable[object]:
        """The function's answer. A future needs no task.

        The server cancels it if it refuses the invocation or stops. Several invocations may share a future. Shield a
        future that other code depends on too.
        """

    def encode(self, read: Callable[[], object], /) -> bytes:
        """Return the encoded result.

        :param read: returns the answer, or raises what the function raised
        """


#: A handler is called with the parameters in `buffer[start:end]`. It returns the encoded result, which is empty if
#: the function has no result. It raises NeedMoreBytes if the parameters are incomplete, and DecodeError if they are
#: malformed. It raises both before it returns a Pending answer.
Handler: TypeAlias = Callable[[Caller, bytes, int, int], bytes | Pending]

#: A measure is called with all parameters that have arrived so far. It returns the smallest total number of bytes
#: that they can have.
Measure: TypeAlias = Callable[[bytearray], int]


class NeedMoreElements(NeedMoreBytes):
    """The parameters end inside a list, whose size is unknown until its last element arrives.

    If the handler were called for each piece, it would read a large list from its beginning each time. `measure`
    reads only the new lengths, and tells the server when to call the handler.
    """

    def __init__(self, end_min: int, measure: Measure) -> None:
        super().__init__(end_min)
        self.measure = measure


class Derived(Generic[T]):
    """An answer that is calculated from another answer, the source.

    A server waits for the source, so this needs no task.

    :ivar source: the answer to wait for
    :ivar derive: returns this answer, or raises an error; its argument returns the source's value, or raises its
        error
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
        """Drop the source."""
        drop_answer(self.source)


def drop_answer(answer: Awaitable[object]) -> None:
    """Drop an answer: cancel a future, or close a coroutine, so that it does not warn."""
    drop = getattr(answer, "close", None) or getattr(answer, "cancel", None)
    if drop is not None:
        drop()
