"""Half-open invocations: what they hold and expect, whose turn it is, and when they expire. No I/O.

    add ─┬─ no place ──> refused
         └─> QUEUED ─┬─ admit ──> ADMITTED ── take ─┬─ keep ─┬─> ADMITTED
                     │                │             │        └─ no place ──> refused
                     │                │             └─ its parameters are complete or malformed
                     └─ expire        └─ expire

A client sends all remaining parameters as soon as the handshake arrives. A NATS server cuts a connection for which more
than 64 MiB are pending. So an invocation is queued, without a handshake, until the bytes that all admitted invocations
still expect leave room for its own. The server writes all that is pending in one step, and counts it until the end of
that step. While we read it, as much again may be expected and arrive. So at most half of 64 MiB may be expected.

Limits, all of which `InvocationLimits` sets: the number of invocations, the memory that they hold, and the bytes that
they expect. No caller (source id) takes more than a share of a limit, which is a quarter. There is one exception: a
caller with nothing else may hold or expect more with a single invocation, but at most what leaves a share to others.

Invocations of one caller are admitted in order of arrival. Callers take turns. If the next one does not fit, no other
is admitted before it, so that small ones cannot delay a large one forever.

The bytes that an invocation expects are known from the lengths that have arrived. If the size of a list is not known,
a share is reserved until the list is complete. A later piece may announce more than the first piece did. The handshake
cannot be taken back, so the invocation is refused, unless its caller's share has room, or its caller has no other one
that expects anything. So the sum may exceed the limit, but only by one invocation of each caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sized
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import Caller, Handler, Measure, NeedMoreElements

__all__ = ["INVOCATION_BYTES", "SHARES", "HalfOpen", "HalfOpenInvocations", "InvocationLimits"]

#: The transport's reply address: the address for the messages that answer one invocation.
A = TypeVar("A", bound=Sized)

#: One caller takes at most one of this many shares.
SHARES = 4
#: Memory of a half-open invocation and of its holder, without texts and parameters. A process with 20,000 of them, each
#: of another caller and inside a list, grows by 1,460 bytes for each. tests/transport/wrpc/test_half_open.py checks it.
INVOCATION_BYTES = 1536
#: Python stores a character of text in at most this many bytes.
CHARACTER_BYTES_MAX = 4


@dataclass(frozen=True, slots=True)
class InvocationLimits:
    """Limits for half-open and waiting invocations, and for calls with queued results.

    An invocation that would exceed a limit of number or memory is refused. One that would exceed the limit of expected
    bytes is queued, and refused after `half_open_timeout_s`. An invocation that exceeds a time limit expires. A refused
    or expired invocation ends without a result.

    :ivar in_flight_bytes_max: limit for the memory of the calls that wait for an answer
    """

    half_open_max: int = 1024
    half_open_bytes_max: int = 256 * 1024 * 1024
    half_open_timeout_s: float = 10.0  # since the last piece, or since the handshake
    waiting_max: int = 4096
    half_open_lifetime_s: float = 60.0  # since the first piece
    expected_bytes_max: int = 32 * 1024 * 1024  # half of the 64 MiB of a NATS server
    queued_bytes_max: int = 64 * 1024 * 1024
    in_flight_bytes_max: int = 256 * 1024 * 1024
    queued_timeout_s: float = 60.0


@dataclass(slots=True, eq=False)
class HalfOpen(Generic[A]):
    """An invocation whose parameters are incomplete.

    :ivar token: names the invocation in its handshake
    :ivar first: the first piece as it arrived, without a copy; empty if `measure` needs all pieces in one buffer
    :ivar end_s: the time when it expires even if pieces arrive
    :ivar more: the later pieces in one buffer, because many small objects would take more memory than the server counts
    :ivar needed: the smallest possible size of the complete parameters in bytes; `measure`, if set, updates this size
    :ivar held_bytes: memory that is counted for it
    :ivar expected_bytes: bytes that are reserved for its remaining parameters; 0 while it is queued
    """

    token: str
    handler: Handler
    reply: A
    caller: Caller
    traceparent: str | None
    first: bytes
    end_s: float
    more: bytearray = field(default_factory=bytearray)
    needed: int = 0
    measure: Measure | None = None
    deadline_s: float = 0.0
    held_bytes: int = 0
    expected_bytes: int = 0

    def __len__(self) -> int:
        return len(self.first) + len(self.more)

    def need(self, error: NeedMoreBytes) -> None:
        """Record the number of bytes that the handler needs, and its measure, if any."""
        self.needed = error.end_min
        self.measure = error.measure if isinstance(error, NeedMoreElements) else None
        if self.measure is not None and self.first:
            self.first, self.more = b"", bytearray(self.first) + self.more

    def memory_bytes(self) -> int:
        """Return the memory that it takes at most. A bytearray grows by up to an eighth more than it holds."""
        texts = sum(len(text) for text in (*self.caller, self.traceparent) if text is not None)
        parameters = len(self.first) + len(self.more) + len(self.more) // 8
        return INVOCATION_BYTES + CHARACTER_BYTES_MAX * texts + len(self.reply) + parameters


@dataclass(slots=True, eq=False)
class Holder(Generic[A]):
    """The share of one caller, and its queued invocations by token, in order of arrival."""

    number: int = 0
    held_bytes: int = 0
    expected_bytes: int = 0
    queue: OrderedDict[str, HalfOpen[A]] = field(default_factory=OrderedDict)


class HalfOpenInvocations(Generic[A]):
    """The half-open invocations of one server. All methods take O(1), except `expire`, which reads every
    deadline: 3 ms for 65,536 invocations.

    :ivar held_bytes: memory that all half-open invocations hold
    :ivar expected_bytes: bytes that admitted invocations still expect
    """

    def __init__(self, limits: InvocationLimits) -> None:
        self.held_bytes = 0
        self.expected_bytes = 0
        self._limits = limits
        self._number_share = max(1, limits.half_open_max // SHARES)
        self._expected_share = limits.expected_bytes_max // SHARES
        self._admitted: dict[str, HalfOpen[A]] = {}  # by token, in the order of their last pieces
        self._queued: dict[str, HalfOpen[A]] = {}  # by token, in order of arrival
        self._holders: dict[str | None, Holder[A]] = {}  # by source id
        self._turns: OrderedDict[Holder[A], None] = OrderedDict()  # holders that may have a turn, in order

    def __len__(self) -> int:
        return len(self._admitted) + len(self._queued)

    @property
    def queued(self) -> int:
        """Return the number of invocations that wait for their handshake."""
        return len(self._queued)

    def add(self, half_open: HalfOpen[A], now_s: float) -> bool:
        """Queue a new invocation. Call `admit` next. Return False if there is no place for it."""
        holder = self._hold(half_open)
        if holder is None:
            return False
        half_open.deadline_s = min(now_s + self._limits.half_open_timeout_s, half_open.end_s)
        self._queued[half_open.token] = half_open
        holder.queue[half_open.token] = half_open
        self._turns[holder] = None
        return True

    def admit(self, now_s: float) -> list[HalfOpen[A]]:
        """Admit all invocations whose turn it is, and return them. Call this after every change, then send handshakes."""
        admitted = []
        while self._turns:
            holder = next(iter(self._turns))
            half_open = next(iter(holder.queue.values()), None)
            expected_bytes = 0 if half_open is None else self._expected(half_open)
            if half_open is None or self._is_beyond_share(holder, expected_bytes):
                del self._turns[holder]  # until `take` or `expire` makes room in its share
                continue
            if self.expected_bytes + expected_bytes > self._limits.expected_bytes_max:
                break
            del self._turns[holder]
            del holder.queue[half_open.token], self._queued[half_open.token]
            self._expect(half_open, holder, expected_bytes, now_s)
            if holder.queue:
                self._turns[holder] = None  # after the others
            admitted.append(half_open)
        return admitted

    def take(self, token: str) -> HalfOpen[A] | None:
        """Remove an admitted invocation, because its next piece has arrived. Return None if there is none."""
        half_open = self._admitted.pop(token, None)
        if half_open is not None:
            self._let_go(half_open)
        return half_open

    def keep(self, half_open: HalfOpen[A], now_s: float) -> bool:
        """Put back an invocation that `take` returned and that is still incomplete. Return False if it has no place."""
        holder = self._hold(half_open)
        if holder is None:
            return False
        expected_bytes = self._expected(half_open)
        if self._is_beyond_share(holder, expected_bytes):
            self._let_go(half_open)
            return False
        self._expect(half_open, holder, expected_bytes, now_s)
        return True

    def expire(self, now_s: float) -> tuple[list[HalfOpen[A]], list[HalfOpen[A]]]:
        """Remove the admitted and the queued invocations that have passed their deadlines, and return both lists."""
        admitted = [half_open for half_open in self._admitted.values() if half_open.deadline_s <= now_s]
        for half_open in admitted:
            del self._admitted[half_open.token]
            self._let_go(half_open)
        queued = [half_open for half_open in self._queued.values() if half_open.deadline_s <= now_s]
        for half_open in queued:
            del self._queued[half_open.token]
            del self._holders[half_open.caller.source_id].queue[half_open.token]
            self._let_go(half_open)
        return admitted, queued

    def clear(self) -> tuple[list[HalfOpen[A]], list[HalfOpen[A]]]:
        """Remove all admitted and queued invocations, and return both lists."""
        return self.expire(float("inf"))

    def _expected(self, half_open: HalfOpen[A]) -> int:
        """Return the bytes to reserve. They are capped, so that even the largest invocation can have its turn."""
        expected_bytes = half_open.needed - len(half_open)
        if half_open.measure is not None:
            expected_bytes = max(expected_bytes, self._expected_share)
        return min(expected_bytes, self._limits.expected_bytes_max - self._expected_share)

    def _is_beyond_share(self, holder: Holder[A], expected_bytes: int) -> bool:
        return bool(holder.expected_bytes) and holder.expected_bytes + expected_bytes > self._expected_share

    def _expect(self, half_open: HalfOpen[A], holder: Holder[A], expected_bytes: int, now_s: float) -> None:
        half_open.deadline_s = min(now_s + self._limits.half_open_timeout_s, half_open.end_s)
        half_open.expected_bytes = expected_bytes
        holder.expected_bytes += expected_bytes
        self.expected_bytes += expected_bytes
        self._admitted[half_open.token] = half_open

    def _hold(self, half_open: HalfOpen[A]) -> Holder[A] | None:
        """Count an invocation and its memory. Return its holder, or None if there is no place."""
        limits, source_id, memory_bytes = self._limits, half_open.caller.source_id, half_open.memory_bytes()
        holder = self._holders.get(source_id) or Holder()
        share_bytes = limits.half_open_bytes_max // SHARES
        own_bytes_max = share_bytes if holder.number else limits.half_open_bytes_max - share_bytes
        if (
            len(self) >= limits.half_open_max
            or holder.number >= self._number_share
            or self.held_bytes + memory_bytes > limits.half_open_bytes_max
            or holder.held_bytes + memory_bytes > own_bytes_max
        ):
            return None
        self._holders[source_id] = holder
        holder.number += 1
        holder.held_bytes += memory_bytes
        self.held_bytes += memory_bytes
        half_open.held_bytes = memory_bytes
        return holder

    def _let_go(self, half_open: HalfOpen[A]) -> None:
        """Give back what an invocation holds and expects."""
        holder = self._holders[half_open.caller.source_id]
        holder.number -= 1
        holder.held_bytes -= half_open.held_bytes
        self.held_bytes -= half_open.held_bytes
        holder.expected_bytes -= half_open.expected_bytes
        self.expected_bytes -= half_open.expected_bytes
        half_open.expected_bytes = 0
        if not holder.number:
            del self._holders[half_open.caller.source_id]
            self._turns.pop(holder, None)
        elif holder.queue:
            self._turns[holder] = None
