"""A queue of calls that wait until there is room to send their answers.

    caller a   call, call, call      take: a's first call, b's first, c's first, a's second, ...
    caller b   call
    caller c   call, call

A waiting call holds its parameters, but not its result. So a caller with many calls does not delay those of others.

Invariant: the calls together take at most `bytes_max` bytes, as counted by `size_of` and HOLDER_BYTES, and the calls of
one caller at most a quarter of that.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from keyvalue_transport.wrpc.half_open import SHARES
from keyvalue_transport.wrpc.handler import Caller, Handler

__all__ = ["CALL_BYTES", "HOLDER_BYTES", "QueuedCall", "QueuedCalls", "size_of"]

A = TypeVar("A", bound=Sized)

#: Approximate size of a call without its parameters and texts, and of a caller that has calls.
#: Measured: 300 and 1,090.
CALL_BYTES, HOLDER_BYTES = 384, 1152


class QueuedCall(NamedTuple, Generic[A]):
    """A call that waits.

    :ivar deadline_s: the time at which it expires
    :ivar holder: the caller as the queue sees it, which has turns and a share
    """

    handler: Handler
    reply: A
    caller: Caller
    params: bytes
    traceparent: str | None
    deadline_s: float
    holder: str | bytes | None


@dataclass(slots=True)
class CallerCalls(Generic[A]):
    """The waiting calls of one caller, and their size."""

    calls: deque[QueuedCall[A]] = field(default_factory=deque)
    held_bytes: int = HOLDER_BYTES


def size_of(call: QueuedCall[A]) -> int:
    """Return the number of bytes that a waiting call counts."""
    return (
        CALL_BYTES + len(call.params) + len(call.reply) + sum(map(len, filter(None, (call.traceparent, *call.caller))))
    )


class QueuedCalls(Generic[A]):
    """Waiting calls, which callers take turns to leave. Every method but `expire` and `clear` takes O(1) time."""

    def __init__(self, bytes_max: int) -> None:
        self.held_bytes = 0
        self._bytes_max = bytes_max
        self._count = 0
        # In the order of their turns; none is empty. The first entry of a plain dict is slow to find after removals.
        self._callers: OrderedDict[str | bytes | None, CallerCalls[A]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def add(self, call: QueuedCall[A]) -> bool:
        """Add a call. Return False if it would exceed the limit or its caller's share."""
        size_bytes, of_caller = size_of(call), self._callers.get(call.holder)
        own_bytes = size_bytes + (HOLDER_BYTES if of_caller is None else of_caller.held_bytes)
        added_bytes = size_bytes + (HOLDER_BYTES if of_caller is None else 0)
        if self.held_bytes + added_bytes > self._bytes_max or own_bytes > self._bytes_max // SHARES:
            return False
        if of_caller is None:
            of_caller = self._callers[call.holder] = CallerCalls[A]()
        of_caller.calls.append(call)
        of_caller.held_bytes = own_bytes
        self.held_bytes += added_bytes
        self._count += 1
        return True

    def take(self) -> QueuedCall[A] | None:
        """Remove and return the oldest call of the caller whose turn it is, or None if no call waits."""
        if not self._callers:
            return None
        holder, of_caller = next(iter(self._callers.items()))
        self._callers.move_to_end(holder)  # its next turn comes after those of the other callers
        return self._remove_oldest(holder, of_caller)

    def expire(self, now_s: float) -> list[QueuedCall[A]]:
        """Remove and return the calls whose deadline has passed. A caller's deadlines must be in order."""
        expired = []
        for holder, of_caller in list(self._callers.items()):
            while of_caller.calls and of_caller.calls[0].deadline_s <= now_s:
                expired.append(self._remove_oldest(holder, of_caller))
        return expired

    def clear(self) -> list[QueuedCall[A]]:
        """Remove and return all calls."""
        return self.expire(float("inf"))

    def _remove_oldest(self, holder: str | bytes | None, of_caller: CallerCalls[A]) -> QueuedCall[A]:
        call = of_caller.calls.popleft()
        size_bytes = size_of(call)
        of_caller.held_bytes -= size_bytes
        self.held_bytes -= size_bytes
        self._count -= 1
        if not of_caller.calls:
            del self._callers[holder]
            self.held_bytes -= HOLDER_BYTES
        return call
