"""The handler contract: the function that a server calls for an invocation, and its return value.

    handler(caller, buffer, start, end)  ->  the encoded result, or a Pending answer to wait for, or a LargeResult,
                                         or Again to be called again
                                         or raises NeedMoreBytes, DecodeError, or another exception

A handler reads only `buffer[start:end]`. The bytes after `end` may belong to another caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar, final

from keyvalue_transport.wrpc.errors import NeedMoreBytes

__all__ = [
    "ANONYMOUS",
    "EXPIRED",
    "LARGE_BYTES",
    "REFUSED",
    "SMALL_BYTES",
    "Again",
    "Answer",
    "Begun",
    "BegunRun",
    "Caller",
    "Derived",
    "ForBegunRuns",
    "ForRuns",
    "Handler",
    "HandlerResult",
    "LargeResult",
    "Measure",
    "NeedMoreElements",
    "Pending",
    "RunResults",
    "drop_answer",
    "give_up",
]

T = TypeVar("T")


class Caller(NamedTuple):
    """The component that sent the call, and its link's name. Each field is None if the call has no such header."""

    source_id: str | None
    link_name: str | None


#: Why a call ends without a result, apart from an exception: because of a limit or a stop, or at its deadline.
REFUSED, EXPIRED = "refused", "expired"

#: A caller that sent no headers.
ANONYMOUS = Caller(None, None)

#: The return value of an interface function: the value itself, or an awaitable of the value.
Answer: TypeAlias = T | Awaitable[T]


class Pending(Protocol):
    """The return value of a handler whose function has not finished.

    It may have an attribute `extra_bytes`: the memory of the call while it waits, besides its parameters and `WAIT_BYTES`.
    """

    @property
    def answer(self) -> Awaitable[object]:
        """The function's answer. If the answer is a future, the server needs no task to wait for it.

        The server cancels the answer if it refuses the invocation, or when it stops. Several invocations may share a
        future. If other code also depends on the future, shield it (`asyncio.shield`).
        """

    def encode(self, read: Callable[[], object], /) -> bytes:
        """Return the encoded result.

        :param read: returns the answer, or raises the function's exception
        """


class LargeResult(NamedTuple):
    """A result of more than LARGE_BYTES that is not encoded yet, or a result that may take long to calculate.

    The server calls `encode` if it has room to send the result, and time. Otherwise the server drops the result, and
    calls the handler again later. A waiting call then holds only its parameters. So a handler may return a LargeResult
    only if its function changes nothing, and it counts the call in `encode`.

    :ivar encode: returns the encoded result, or a Pending answer, or raises the function's error
    """

    encode: Callable[[], bytes | Pending]


class Source(Protocol):
    """Something to wait for. It may call the functions at once when it is done, or later."""

    def add_done_callback(self, act: Callable[[Any], object], /) -> None: ...


@final
class Again:
    """The return value of a handler whose call must wait, and must be made again then. Many calls may share it.

    Waiting for an answer costs several objects for each call, but waiting for `source` costs only one. The server makes
    the call again in a callback of the source, with the present handler's policy. So the handler knows then that the
    wait is over, and returns a result. If the policy has changed meanwhile, it may also return something else to wait
    for. It may return Again only if the function changes nothing. Until then, the server may also let this caller's
    next calls of the function wait, without calling the handler.

    :param source: what the calls wait for; it is awaitable
    """

    __slots__ = ("source",)

    def __init__(self, source: Any) -> None:
        self.source: Source = source

    def __await__(self) -> Generator[object, None, None]:
        yield from self.source.__await__()  # type: ignore[attr-defined] # a future or the like


#: Handlers that can return a LargeResult do so for results of more than this. It must be above 64 KiB, so that a value
#: of this size needs no second call.
LARGE_BYTES = 64 * 1024 + 64

#: The return value of a handler.
HandlerResult: TypeAlias = bytes | Pending | LargeResult | Again

#: The server calls a handler with the parameters in `buffer[start:end]`. The handler returns the encoded result, or a
#: Pending answer, a LargeResult, or Again. The result is empty if the function has no result. The handler raises
#: NeedMoreBytes if the parameters are incomplete, and DecodeError if they are malformed. It reads all parameters before
#: it returns a Pending answer.
Handler: TypeAlias = Callable[[Caller, bytes, int, int], HandlerResult]


class Begun:
    """The handler of a function that begins a change before its answer is ready. Its call begins only if it may wait.

    :param handler: begins a call
    :param check: raises NoPlaceError if no further call of a source id may wait
    """

    __slots__ = ("_check", "handler")

    def __init__(self, handler: Handler, check: Callable[[str | None], None]) -> None:
        self.handler = handler
        self._check = check

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        """Begin a call.

        :raises NoPlaceError: too many calls wait, so this one has begun nothing
        """
        # With the error in a variable here, a refused message would live until the next garbage collection.
        self._check(caller.source_id)
        return self.handler(caller, buffer, start, end)


class BegunRun(Protocol):
    """The answers to calls that have begun changes together. They come in the order of the calls."""

    def begin(
        self, take: Callable[[BegunRun, int, bytes], object], part: Callable[[BegunRun, Sequence[Pending]], object], /
    ) -> None:
        """Tell the caller when answers come. This is called once, before any has come.

        :param take: called with the number of the next calls that have the same result, and the encoded result
        :param part: called once with the Pending answer of each call that still waits, if they come one by one from now
            on; then `take` is not called any more
        """

    def part(self) -> None:
        """Let the answers that have not come yet come one by one."""


class ForBegunRuns:
    """The handler of a function that changes something, and whose calls cost less if many are begun together.

    :param handler: makes one call
    :param begin_run: begins the calls of one caller, in order. It gets their parameters, each whole and of the same size.
        It returns None if they must be made one by one, and then it has begun none of them. It must not raise
    """

    __slots__ = ("begin_run", "handler")

    def __init__(self, handler: Handler, begin_run: Callable[[Caller, Sequence[bytes]], BegunRun | None]) -> None:
        self.handler = handler
        self.begin_run = begin_run

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        """Make one call."""
        return self.handler(caller, buffer, start, end)


#: The maximum size of a result of a run.
SMALL_BYTES = 4095
#: The encoded results of calls of a run: the bytes with which all begin, and the rest of each. If the first are not empty,
#: all results have the same size. So the bytes that they share need not be copied.
RunResults: TypeAlias = tuple[bytes, Sequence[bytes]]


class ForRuns:
    """The handler of a function whose calls cost less if many are made together.

    Neither `split` nor `call_run` may raise. Each returns None if the calls must be made one by one, and then it has made
    and counted none of them. Only for a function that changes nothing may `call_run` return Again.

    :param handler: makes one call
    :param split: reads the parameters of a run, each whole and of the same size, and returns the arguments for `call_run`
    :param call_run: makes the calls of one caller, in order. It returns at least one result, each of 1 to SMALL_BYTES. If
        there are fewer than calls, the others must be made one by one. Or it returns Again, if all calls must wait, and
        be made again with the same arguments
    """

    __slots__ = ("call_run", "handler", "split")

    def __init__(
        self,
        handler: Handler,
        split: Callable[[Sequence[bytes]], Any],
        call_run: Callable[[Caller, Any], RunResults | Again | None],
    ) -> None:
        self.handler = handler
        self.split = split
        self.call_run = call_run

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        """Make one call."""
        return self.handler(caller, buffer, start, end)


#: The server calls a measure with all parameter bytes that have arrived so far. The measure returns the
#: smallest number of bytes that the complete parameters can have.
Measure: TypeAlias = Callable[[bytearray], int]


class NeedMoreElements(NeedMoreBytes):
    """The parameters end inside a list. The list's size is unknown until its last element arrives.

    If the server called the handler for each piece, the handler would read a large list from the beginning each time.
    `measure` reads only the lengths in the new bytes. The server calls the handler once enough bytes have arrived.
    """

    def __init__(self, end_min: int, measure: Measure) -> None:
        super().__init__(end_min)
        self.measure = measure


class Derived(Generic[T]):
    """An answer that is calculated from another answer, the source.

    The server waits for the source itself, so a derived answer needs no task.

    :ivar source: the answer to wait for
    :ivar derive: calculates the derived answer, or raises an error; its argument is a function that returns the
        source's value or raises the source's error
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
        """Cancel or close the source."""
        drop_answer(self.source)


def drop_answer(answer: Awaitable[object]) -> None:
    """Cancel a future, or close a coroutine. Python warns about a coroutine that is neither awaited nor closed."""
    drop = getattr(answer, "close", None) or getattr(answer, "cancel", None)
    if drop is not None:
        drop()


def give_up(reason: str, *told: object) -> None:
    """Tell handlers, or Pending answers, that their calls end without a result. Most of them need not know it."""
    for each in told:
        tell = getattr(each, "give_up", None)
        if tell is not None:
            tell(reason)
