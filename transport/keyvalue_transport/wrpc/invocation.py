"""The lifecycle of an invocation on the server side, without I/O and without NATS.

    first piece ──┬─ complete ──> CALLED ─┬─ bytes, or a LargeResult and room ─────────────────────> result, end
                  │                 ^     ├─ a Pending answer: WAITING ── finish ──────────────────> result, end
                  │ incomplete      │     └─ a LargeResult and no room: QUEUED ── answer_queued ──> result, end
                  └──> HALF-OPEN ───┴─ piece: complete
                           │  ── room for the parameters that it expects ──> handshake, HALF-OPEN
                           │  ── piece: still incomplete ──> HALF-OPEN
                           └─ empty piece (the parameters end), malformed parameters, expiry, a limit ──> end alone

For each event, call a method of `Invocations` (`receive`, `receive_params`, `finish`, `answer_queued`, `expire`,
`close`). The method returns a `Step`: messages to send in order, an answer to wait for, and a failure to log.

A queued call holds its parameters, but no result. Its handler is called again when there is room to send the result
(`LargeResult` in handler.py, queued_calls.py). If there is no room for any answer, the transport calls `hold` before it
calls the handler. A held call goes through this diagram from the beginning when the transport takes it (`take_held`).

`Replies` builds the messages, and the transport sends them. An invocation has three kinds of message:

    accept   the handshake; if it has a token, the client uses the token to send the remaining parameters
    result   the encoded result, in one or more pieces
    end      the end of the invocation; if no result was sent, the client stops waiting for one

Invariant: an invocation gets exactly one handshake, and then exactly one `end`. `half_open.py` holds the half-open
invocations. It limits them, and decides which handshakes are sent next. Waiting invocations are limited by number, and
by memory together with Redis requests (`in_flight.py`). One caller may take three quarters of each. Queued calls are
limited by bytes and time, and one caller's may take a quarter of the bytes. The same limits apply to held calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes, NoPlaceError
from keyvalue_transport.wrpc.half_open import SHARES, HalfOpen, HalfOpenInvocations, InvocationLimits
from keyvalue_transport.wrpc.handler import (
    EXPIRED,
    LARGE_BYTES,
    REFUSED,
    Again,
    Begun,
    Caller,
    Handler,
    HandlerResult,
    LargeResult,
    Pending,
    drop_answer,
    give_up,
)
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES, BytesInFlight
from keyvalue_transport.wrpc.queued_calls import QueuedCall, QueuedCalls
from keyvalue_transport.wrpc.repeated import Repeated

__all__ = ["InvocationCounts", "InvocationFailure", "InvocationLimits", "Invocations", "Replies", "Step", "Waiting"]

#: The transport's reply address: the address for the messages that answer one invocation.
A = TypeVar("A", bound=Sized)
A_contra = TypeVar("A_contra", bound=Sized, contravariant=True)
#: A message of the transport.
M = TypeVar("M")


@dataclass(slots=True)
class InvocationCounts:
    """Counts of invocations since the start."""

    answered: int = 0
    damaged: int = 0  # the parameters were malformed, or ended too early
    expired: int = 0
    refused: int = 0
    failed: int = 0  # the handler raised an exception
    without_reply: int = 0  # not executed, because the client gave no reply subject
    stray_pieces: int = 0  # pieces of parameters that match no half-open invocation
    received_bytes: int = 0  # bytes of all invocations; the direct path also counts the framing
    sent_bytes: int = 0


class Replies(Protocol[A_contra, M]):
    """The builder of the messages that answer an invocation."""

    def accept(self, reply: A_contra, token: str | None, /) -> list[M]:
        """Return the handshake. If `token` is given, the client uses the token to send the remaining pieces."""

    def result(self, reply: A_contra, result: bytes, /) -> list[M]:
        """Return the pieces of a result and the message that ends the invocation. The result must not be empty."""

    def end(self, reply: A_contra, /) -> list[M]:
        """Return the message that ends an invocation."""


class Waiting(NamedTuple, Generic[A]):
    """An answer to wait for. When it is ready, call `Invocations.finish(waiting, result)`."""

    reply: A
    traceparent: str | None
    pending: Pending
    source_id: str | None
    held_bytes: int


class InvocationFailure(NamedTuple):
    """The error that ended an invocation without a result.

    :ivar traceparent: the `traceparent` header, which identifies the trace of the invocation
    """

    error: Exception
    traceparent: str | None


class Step(NamedTuple, Generic[A, M]):
    """The steps that the transport must take, in this order: log the failure, send the messages, await the answer."""

    sends: list[M]
    waiting: Waiting[A] | None = None
    failure: InvocationFailure | None = None
    is_large: bool = False  # the messages hold a LargeResult; messages of other invocations may be sent between them


class Invocations(Generic[A, M]):
    """The invocations of one server.

    :param replies: builds the messages
    :param new_token: returns a token that clients cannot guess, so no client can add to another client's parameters
    :param has_room: returns True if there are room and time for a large result now; if not, call `answer_queued` later
    :ivar encode_refusal: encodes the error of a call that `in_flight` refuses; b"" to end it without a result
    """

    def __init__(
        self,
        replies: Replies[A, M],
        new_token: Callable[[], str],
        limits: InvocationLimits | None = None,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self.counts = InvocationCounts()
        self._replies = replies
        self._limits = limits or InvocationLimits()
        self._new_token = new_token
        self._half_open: HalfOpenInvocations[A] = HalfOpenInvocations(self._limits)
        self._closed = False
        self.encode_refusal: Callable[[str], bytes] = lambda text: b""
        self.in_flight = BytesInFlight(self._limits.in_flight_bytes_max)
        self._waiting = 0
        self._waiting_of: dict[str | None, int] = {}  # by source id
        self._waiting_max = self._limits.waiting_max
        self._waiting_share = max(1, self._waiting_max - self._waiting_max // SHARES)
        self._has_room = has_room
        self._queue = QueuedCalls[A](self._limits.queued_bytes_max)
        self._held = QueuedCalls[A](self._limits.queued_bytes_max)

    @property
    def half_open(self) -> int:
        """Return the number of invocations whose parameters are incomplete."""
        return len(self._half_open)

    @property
    def half_open_bytes(self) -> int:
        """Return the memory that half-open invocations hold, in bytes."""
        return self._half_open.held_bytes

    @property
    def expected_bytes(self) -> int:
        """Return the number of bytes that half-open invocations with a handshake still expect."""
        return self._half_open.expected_bytes

    @property
    def half_open_queued(self) -> int:
        """Return the number of half-open invocations that wait for their handshake."""
        return self._half_open.queued

    @property
    def waiting(self) -> int:
        """Return the number of invocations whose answer is not ready yet."""
        return self._waiting

    @property
    def queued(self) -> int:
        """Return the number of calls whose result is large, and that wait for room to send it."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Return the number of calls whose handlers have not been called, because there is no room for their answers."""
        return len(self._held)

    @property
    def queued_bytes(self) -> int:
        """Return the number of bytes that queued calls count."""
        return self._queue.held_bytes

    def if_may_wait(self, handler: Handler) -> Begun:
        """Return a handler that is called only if its call may wait for an answer. If not, the invocation is refused.

        This is for functions that begin to change something before their answer is ready.
        """
        return Begun(handler, self._check_place)

    def receive(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        piece: bytes,
        outcome: HandlerResult | Exception,
        now_s: float,
        traceparent: str | None,
    ) -> Step[A, M]:
        """Process the first piece of an invocation's parameters.

        :param outcome: the return value or the exception of the handler
        """
        if isinstance(outcome, NeedMoreBytes):
            return self._cut(handler, reply, caller, traceparent, piece, outcome, now_s)
        handshake = self._replies.accept(reply, None)
        if isinstance(outcome, Exception):
            return self._fail(reply, outcome, traceparent, handshake)
        if isinstance(outcome, LargeResult):
            return self._answer_or_queue(handler, reply, caller, piece, traceparent, outcome, now_s, handshake)
        if isinstance(outcome, Again):
            outcome = Repeated(outcome, handler, caller, piece)
        return self._answer(reply, outcome, caller, len(piece), traceparent, handshake)

    def may_wait(self, pending: Pending, source_id: str | None, held_bytes: int) -> bool:
        """Count an invocation that waits for its answer. Return False, and drop the answer, if too many wait."""
        if self.room(source_id) > 0:
            self.begin_waits(source_id, 1, held_bytes)
            return True
        drop_answer(pending.answer)
        give_up(REFUSED, pending)
        return False

    def begin_waits(self, source_id: str | None, number: int, held_bytes: int) -> None:
        """Count calls that wait, at most as many as there is room for, and their memory."""
        self._waiting += number
        self._waiting_of[source_id] = self._waiting_of.get(source_id, 0) + number
        self.in_flight.begin(source_id, held_bytes)

    def _check_place(self, source_id: str | None) -> None:
        if self.room(source_id) <= 0:
            raise self.no_place(source_id)

    def no_place(self, source_id: str | None) -> NoPlaceError:
        """Return the error of a call that may not wait. Only the limit for memory has a result."""
        in_flight = self.in_flight
        return NoPlaceError(self.encode_refusal(in_flight.why_full) if in_flight.is_full(source_id) else b"")

    def room(self, source_id: str | None) -> int:
        """Return how many more calls may wait. A caller leaves a quarter of the places and of the memory to others."""
        if self.in_flight.is_full(source_id):
            return 0
        room, own_room = self._waiting_max - self._waiting, self._waiting_share - self._waiting_of.get(source_id, 0)
        return own_room if own_room < room else room

    def end_waits(self, source_id: str | None, number: int, held_bytes: int) -> None:
        """End the count of invocations that `begin_waits` began."""
        self.in_flight.end(source_id, held_bytes)
        self._waiting -= number
        own = self._waiting_of[source_id]
        if own > number:
            self._waiting_of[source_id] = own - number
        else:
            del self._waiting_of[source_id]

    def receive_params(self, token: str, piece: bytes, now_s: float) -> Step[A, M]:
        """Process the next piece of a half-open invocation's parameters. An empty piece ends the parameters."""
        half_open = self._half_open.take(token)
        if half_open is None:
            self.counts.stray_pieces += bool(piece)
            return Step([])
        step = self._read_on(half_open, piece, now_s)
        handshakes = self._handshakes(now_s)
        # The handshakes precede a large result, because its messages may be sent much later.
        sends = [*handshakes, *step.sends] if step.is_large else [*step.sends, *handshakes]
        return step._replace(sends=sends)

    def finish(self, waiting: Waiting[A], result: bytes | Exception) -> Step[A, M]:
        """Process the encoded result of a waiting invocation, or its error."""
        if isinstance(result, Exception):
            self.end_waits(waiting.source_id, 1, waiting.held_bytes)
            return self._fail(waiting.reply, result, waiting.traceparent, [])
        return Step(self.answer(waiting, result))

    def answer(self, waiting: Waiting[A], result: bytes) -> list[M]:
        """Return the messages that answer a waiting invocation. Count it as answered."""
        reply, _, _, source_id, held_bytes = waiting
        self.end_waits(source_id, 1, held_bytes)
        self.counts.answered += 1
        return self._replies.result(reply, result) if result else self._replies.end(reply)

    def expire(self, now_s: float) -> Step[A, M]:
        """End the half-open invocations and the calls with queued results that have passed their deadline.

        The deadline of a half-open invocation is `half_open_timeout_s` after the handshake or the last piece, but at
        most `half_open_lifetime_s` after the first piece. An invocation that still waits for its handshake
        `half_open_timeout_s` after its first piece is refused.
        """
        late, queued = self._half_open.expire(now_s)
        calls, held = self._queue.expire(now_s), self._held.expire(now_s)
        self.counts.expired += len(late) + len(calls) + len(held)
        self.counts.refused += len(queued)
        give_up(EXPIRED, *(call.handler for call in late), *(call.handler for call in (*calls, *held)))
        give_up(REFUSED, *(call.handler for call in queued))
        ends = [*self._half_open_ends(late, queued), *self._ends(calls), *self._whole_ends(held)]
        return Step([*ends, *self._handshakes(now_s)])

    def close(self) -> Step[A, M]:
        """End all half-open and queued invocations, and refuse new ones. The server calls this method when it stops."""
        self._closed = True
        self.counts.refused += len(self._half_open) + len(self._queue) + len(self._held)
        admitted, waiting = self._half_open.clear()
        calls, held = self._queue.clear(), self._held.clear()
        give_up(REFUSED, *(call.handler for call in admitted + waiting), *(call.handler for call in calls + held))
        return Step([*self._half_open_ends(admitted, waiting), *self._ends(calls), *self._whole_ends(held)])

    def refuse(self, reply: A, what: object = None, result: bytes = b"") -> Step[A, M]:
        """Refuse an invocation without a handshake. Tell `what`, its handler or Pending answer, unless it was told."""
        return self._refuse(reply, self._replies.accept(reply, None), what, result)

    def _cut(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        traceparent: str | None,
        piece: bytes,
        more: NeedMoreBytes,
        now_s: float,
    ) -> Step[A, M]:
        end_s = now_s + self._limits.half_open_lifetime_s
        half_open = HalfOpen(self._new_token(), handler, reply, caller, traceparent, piece, end_s)
        half_open.need(more)
        if self._closed or not self._half_open.add(half_open, now_s):
            return self.refuse(reply, handler)
        return Step(self._handshakes(now_s))

    def _read_on(self, half_open: HalfOpen[A], piece: bytes, now_s: float) -> Step[A, M]:
        """Process the next piece of an invocation that was taken out of the half-open ones."""
        reply = half_open.reply
        if not piece:
            error = DecodeError(
                f"the parameters end after {len(half_open)} bytes; at least {half_open.needed} are needed"
            )
            give_up(type(error).__name__, half_open.handler)
            return self._fail(reply, error, half_open.traceparent, [])
        half_open.more += piece
        if len(half_open) >= half_open.needed and half_open.measure is not None:
            half_open.needed = half_open.measure(half_open.more)
        if len(half_open) >= half_open.needed:
            # Join the pieces only after enough bytes have arrived, so that large parameters are copied only once.
            buffer = half_open.first + half_open.more
            try:
                answer = half_open.handler(half_open.caller, buffer, 0, len(buffer))
            except NeedMoreBytes as more:
                half_open.need(more)
            except Exception as error:
                return self._fail(reply, error, half_open.traceparent, [])
            else:
                caller, traceparent = half_open.caller, half_open.traceparent
                if isinstance(answer, Again):
                    answer = Repeated(answer, half_open.handler, caller, buffer)
                if not isinstance(answer, LargeResult):
                    return self._answer(reply, answer, caller, len(buffer), traceparent, [])
                return self._answer_or_queue(half_open.handler, reply, caller, buffer, traceparent, answer, now_s, [])
        if self._half_open.keep(half_open, now_s):
            return Step([])
        return self._refuse(reply, [], half_open.handler)

    def _handshakes(self, now_s: float) -> list[M]:
        """Return the handshakes of the half-open invocations whose turn it is."""
        accept = self._replies.accept
        return [
            message
            for half_open in self._half_open.admit(now_s)
            for message in accept(half_open.reply, half_open.token)
        ]

    def _half_open_ends(self, admitted: list[HalfOpen[A]], queued: list[HalfOpen[A]]) -> list[M]:
        """Return the messages that end half-open invocations. A queued one gets its handshake first."""
        end = self._replies.end
        return [*(message for half_open in admitted for message in end(half_open.reply)), *self._whole_ends(queued)]

    def _whole_ends(self, calls: Sequence[HalfOpen[A] | QueuedCall[A]]) -> list[M]:
        """Return the messages that end calls without a handshake."""
        accept, end = self._replies.accept, self._replies.end
        return [message for call in calls for message in (*accept(call.reply, None), *end(call.reply))]

    def hold(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        piece: bytes,
        now_s: float,
        traceparent: str | None,
        holder: str | bytes | None,
    ) -> bool:
        """Keep an invocation until `take_held`, because there is no room for its answer. Its handler is not called.

        Return False if the calls of all holders, or of this holder, take too much memory, or the server stops.
        """
        end_s = now_s + self._limits.queued_timeout_s
        return not self._closed and self._held.add(
            QueuedCall(handler, reply, caller, piece, traceparent, end_s, holder)
        )

    def take_held(self) -> QueuedCall[A] | None:
        """Remove and return the next held call, to be processed as if it arrived now. Return None if there is none."""
        return self._held.take()

    def answer_queued(self) -> Step[A, M] | None:
        """Answer a queued call, because there is room to send a large result. Return None if no call is queued."""
        call = self._queue.take()
        if call is None:
            return None
        try:
            answer = call.handler(call.caller, call.params, 0, len(call.params))
        except Exception as error:
            return self._fail(call.reply, error, call.traceparent, [])
        if isinstance(answer, LargeResult):
            return self._answer_large(call.reply, answer, call.caller, len(call.params), call.traceparent, [])
        if isinstance(answer, Again):
            answer = Repeated(answer, call.handler, call.caller, call.params)
        return self._answer(call.reply, answer, call.caller, len(call.params), call.traceparent, [])

    def _ends(self, calls: list[QueuedCall[A]]) -> list[M]:
        return [message for call in calls for message in self._replies.end(call.reply)]

    def _answer_or_queue(
        self,
        handler: Handler,
        reply: A,
        caller: Caller,
        params: bytes,
        traceparent: str | None,
        result: LargeResult,
        now_s: float,
        sends: list[M],
    ) -> Step[A, M]:
        if not self._queue and self._has_room():
            return self._answer_large(reply, result, caller, len(params), traceparent, sends)
        end_s = now_s + self._limits.queued_timeout_s
        call = QueuedCall(handler, reply, caller, params, traceparent, end_s, caller.source_id)
        if self._closed or not self._queue.add(call):
            return self._refuse(reply, sends, handler)
        return Step(sends)

    def _answer_large(
        self,
        reply: A,
        result: LargeResult,
        caller: Caller,
        params_bytes: int,
        traceparent: str | None,
        sends: list[M],
    ) -> Step[A, M]:
        try:
            encoded = result.encode()
        except Exception as error:
            return self._fail(reply, error, traceparent, sends)
        if not isinstance(encoded, bytes):
            return self._answer(reply, encoded, caller, params_bytes, traceparent, sends)
        return Step(self._result(reply, encoded, sends), is_large=len(encoded) > LARGE_BYTES)

    def _answer(
        self,
        reply: A,
        answer: bytes | Pending,
        caller: Caller,
        params_bytes: int,
        traceparent: str | None,
        sends: list[M],
    ) -> Step[A, M]:
        if isinstance(answer, bytes):
            return Step(self._result(reply, answer, sends))
        source_id, held_bytes = caller.source_id, params_bytes + WAIT_BYTES + getattr(answer, "extra_bytes", 0)
        if not self.may_wait(answer, source_id, held_bytes):
            return self._fail(reply, self.no_place(source_id), traceparent, sends)
        return Step(sends, Waiting(reply, traceparent, answer, source_id, held_bytes))

    def _result(self, reply: A, result: bytes, sends: list[M]) -> list[M]:
        self.counts.answered += 1
        sends += self._replies.result(reply, result) if result else self._replies.end(reply)
        return sends

    def _refuse(self, reply: A, sends: list[M], what: object = None, result: bytes = b"") -> Step[A, M]:
        give_up(REFUSED, what)
        self.counts.refused += 1
        return Step([*sends, *(self._replies.result(reply, result) if result else self._replies.end(reply))])

    def _fail(self, reply: A, error: Exception, traceparent: str | None, sends: list[M]) -> Step[A, M]:
        if isinstance(error, NoPlaceError):
            return self._refuse(reply, sends, result=error.result)
        if isinstance(error, DecodeError):
            self.counts.damaged += 1
        else:
            self.counts.failed += 1
        return Step([*sends, *self._replies.end(reply)], failure=InvocationFailure(error, traceparent))
