"""The queue of calls whose results are large, and that wait until there is room to send them.

    caller a   call, call, call      take: a's first call, b's first, c's first, a's second, ...
    caller b   call
    caller c   call, call

A caller is a source-id. A waiting call holds its parameters, but not its result (see `LargeResult`). So a caller with
many calls delays neither the calls of others nor its own small calls.

Invariant: the calls together take at most `bytes_max` bytes, as counted by `size_of`, and the calls of one caller at
most a quarter of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from keyvalue_transport.wrpc.half_open import SHARES
from keyvalue_transport.wrpc.handler import Caller, Handler

__all__ = ["CALL_BYTES", "LargeCall", "LargeCalls", "size_of"]

A = TypeVar("A", bound=Sized)

#: Approximate size of a call without its parameters and texts.
CALL_BYTES = 1024


class LargeCall(NamedTuple, Generic[A]):
    """A call that waits. `deadline_s` is the time at which it expires."""

    handler: Handler
    reply: A
    caller: Caller
    params: bytes
    traceparent: str | None
    deadline_s: float


@dataclass(slots=True)
class CallerCalls(Generic[A]):
    """The waiting calls of one caller, and their size."""

    calls: deque[LargeCall[A]] = field(default_factory=deque)
    held_bytes: int = 0


def size_of(call: LargeCall[A]) -> int:
    """Return the number of bytes that a waiting call counts."""
    return (
        CALL_BYTES + len(call.params) + len(call.reply) + sum(map(len, filter(None, (call.traceparent, *call.caller))))
    )


class LargeCalls(Generic[A]):
    """Waiting calls, which callers take turns to leave. Every method but `expire` and `clear` takes O(1) time."""

    def __init__(self, bytes_max: int) -> None:
        self.held_bytes = 0
        self._bytes_max = bytes_max
        self._count = 0
        self._callers: dict[str | None, CallerCalls[A]] = {}  # in the order of their turns; none is empty

    def __len__(self) -> int:
        return self._count

    def add(self, call: LargeCall[A]) -> bool:
        """Add a call. Return False if it would exceed the limit or its caller's share."""
        size_bytes, source_id = size_of(call), call.caller.source_id
        of_caller = self._callers.get(source_id) or CallerCalls[A]()
        if (
            self.held_bytes + size_bytes > self._bytes_max
            or of_caller.held_bytes + size_bytes > self._bytes_max // SHARES
        ):
            return False
        self._callers[source_id] = of_caller
        of_caller.calls.append(call)
        of_caller.held_bytes += size_bytes
        self.held_bytes += size_bytes
        self._count += 1
        return True

    def take(self) -> LargeCall[A] | None:
        """Remove and return the oldest call of the caller whose turn it is, or None if no call waits."""
        if not self._callers:
            return None
        source_id = next(iter(self._callers))
        of_caller = self._callers.pop(source_id)
        call = self._remove_oldest(of_caller)
        if of_caller.calls:
            self._callers[source_id] = of_caller  # its next turn comes after those of the other callers
        return call

    def expire(self, now_s: float) -> list[LargeCall[A]]:
        """Remove and return the calls whose deadline has passed. A caller's deadlines must be in order."""
        expired = []
        for source_id, of_caller in list(self._callers.items()):
            while of_caller.calls and of_caller.calls[0].deadline_s <= now_s:
                expired.append(self._remove_oldest(of_caller))
            if not of_caller.calls:
                del self._callers[source_id]
        return expired

    def clear(self) -> list[LargeCall[A]]:
        """Remove and return all calls."""
        return self.expire(float("inf"))

    def _remove_oldest(self, of_caller: CallerCalls[A]) -> LargeCall[A]:
        call = of_caller.calls.popleft()
        size_bytes = size_of(call)
        of_caller.held_bytes -= size_bytes
        self.held_bytes -= size_bytes
        self._count -= 1
        return call
