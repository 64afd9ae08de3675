"""The life of invocations at the server, without I/O.

    first piece ──┬─ whole ──────────────────────────> CALLED ─┬─ bytes ─────────────────────────> result, end
                  │                                      ^     └─ something to wait for: WAITING ── result, end
                  │ cut                                  │
                  └──────> HALF-OPEN ── piece: whole ────┘
                              │  ── piece: still cut ──> HALF-OPEN
                              └─ empty piece (the parameters end), damaged parameters, expiry, a limit ──> end without a result

What comes in is told to `Invocations` (`receive`, `receive_params`, `finish`, `expire`, `close`); each returns a `Step`: messages to
send in order, and what to wait for or to log. Messages for an invocation:

    handshake   to R_c, reply R_s, empty. An invocation whose parameters came whole gets an R_s that nobody listens to, since the
                client still sends its closing message there
    result      to R_c.results, in pieces of at most max_payload
    end         to R_c.results, empty; alone, where there is no result (no bytes are none, as of a function that has no result), so that
                no client waits for its time-out

Invariant: an invocation that was taken (it has a reply subject) gets exactly one end. What is held is bounded: half-open invocations by
number, bytes and time since their last piece; waiting ones by number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import Answer, Caller, Handler, Measure, NeedMoreElements, drop_answer
from keyvalue_transport.wrpc.subjects import results_subject

__all__ = ["InvocationCounts", "InvocationLimits", "Invocations", "Send", "Step", "Waiting"]


@dataclass(frozen=True, slots=True)
class InvocationLimits:
    """What invocations may hold. Beyond it they are refused: their result stream is closed at once."""

    half_open_max: int = 1024
    half_open_bytes_max: int = 256 * 1024 * 1024
    half_open_timeout_s: float = 10.0  # since the last piece
    waiting_max: int = 4096
    half_open_lifetime_s: float = 60.0  # since the first piece


@dataclass(slots=True)
class InvocationCounts:
    """How invocations went, since the start."""

    answered: int = 0
    damaged: int = 0  # parameters that are no values of their types, or end too soon
    expired: int = 0
    refused: int = 0
    failed: int = 0  # the handler raised
    without_reply: int = 0  # not carried out
    stray_pieces: int = 0  # of parameters that nobody waits for
    received_bytes: int = 0  # of invocations; on the direct path with their framing
    sent_bytes: int = 0


class Send(NamedTuple):
    """A message to publish."""

    subject: str
    payload: bytes
    reply: str = ""


class Waiting(NamedTuple):
    """A handler's answer that must be waited for; then `Invocations.finish(waiting, result)`."""

    reply: str
    traceparent: str | None
    answer: Awaitable[bytes]


class InvocationFailure(NamedTuple):
    """Why an invocation was ended without a result: what its handler raised, or what is wrong with its parameters.

    :ivar traceparent: the header of this name, which says what trace the invocation is part of
    """

    error: Exception
    traceparent: str | None


class Step(NamedTuple):
    """What to do next, in this order: log the failure, send the messages, wait for the answer."""

    sends: list[Send]
    waiting: Waiting | None = None
    failure: InvocationFailure | None = None


@dataclass(slots=True)
class HalfOpen:
    """An invocation whose parameters are not whole yet. `needed` is how many bytes they have at the least, by `measure` if there is one.

    :ivar first: their first piece as it came, which of a large value is most; none where `measure` wants all in one buffer
    :ivar more: the other pieces in one buffer: many small ones would take more memory than they are counted for
    """

    handler: Handler
    reply: str
    caller: Caller
    traceparent: str | None
    first: bytes
    end_s: float
    more: bytearray = field(default_factory=bytearray)
    needed: int = 0
    measure: Measure | None = None
    deadline_s: float = 0.0

    def __len__(self) -> int:
        return len(self.first) + len(self.more)

    def need(self, error: NeedMoreBytes) -> None:
        """A handler needs more than there is."""
        self.needed = error.end_min
        self.measure = error.measure if isinstance(error, NeedMoreElements) else None
        if self.measure is not None and self.first:
            self.first, self.more = b"", bytearray(self.first) + self.more


class Invocations:
    """All invocations of one server.

    :param inbox: the server's inbox; pieces of parameters come to `{inbox}.{token}.params`
    :param nobody: an inbox of which nobody listens to `.params`
    :param new_token: gives tokens that cannot be guessed, so that no client can reach into another's invocation
    """

    def __init__(
        self,
        inbox: str,
        nobody: str,
        new_token: Callable[[], str],
        limits: InvocationLimits | None = None,
        max_payload: int = 1024 * 1024,
    ) -> None:
        self.max_payload = max_payload
        self.counts = InvocationCounts()
        self._limits = limits or InvocationLimits()
        self._inbox = inbox
        self.nobody = nobody
        self._new_token = new_token
        self._half_open: dict[str, HalfOpen] = {}
        self._closed = False
        self._half_open_bytes = 0
        self._waiting = 0

    @property
    def half_open(self) -> int:
        """Invocations whose parameters are not whole."""
        return len(self._half_open)

    @property
    def half_open_bytes(self) -> int:
        """Bytes of parameters held for them."""
        return self._half_open_bytes

    @property
    def waiting(self) -> int:
        """Invocations whose handler is being waited for."""
        return self._waiting

    def receive(
        self,
        handler: Handler,
        reply: str,
        caller: Caller,
        piece: bytes,
        outcome: Answer[bytes] | Exception,
        now_s: float,
        traceparent: str | None,
    ) -> Step:
        """The first piece of an invocation's parameters, maybe all of them, and what its handler returned or raised for it."""
        if isinstance(outcome, NeedMoreBytes):
            return self._cut(handler, reply, caller, traceparent, piece, outcome, now_s)
        handshake = Send(reply, b"", self.nobody)
        if isinstance(outcome, Exception):
            return self._fail(reply, outcome, traceparent, [handshake])
        return self._answer(reply, outcome, traceparent, [handshake])

    def receive_params(self, token: str, piece: bytes, now_s: float) -> Step:
        """A further piece of the parameters of a half-open invocation; an empty one ends them."""
        half_open = self._half_open.pop(token, None)
        if half_open is None:
            self.counts.stray_pieces += bool(piece)
            return Step([])
        self._half_open_bytes -= len(half_open)
        reply = half_open.reply
        if not piece:
            error = DecodeError(f"found {len(half_open)} bytes of parameters of at least {half_open.needed}")
            return self._fail(reply, error, half_open.traceparent, [])
        half_open.more += piece
        if len(half_open) >= half_open.needed and half_open.measure is not None:
            half_open.needed = half_open.measure(half_open.more)
        if len(half_open) >= half_open.needed:
            # Only when the length that is known is there, so that large parameters are copied once.
            buffer = half_open.first + half_open.more
            try:
                answer = half_open.handler(half_open.caller, buffer, 0, len(buffer))
            except NeedMoreBytes as more:
                half_open.need(more)
            except Exception as error:
                return self._fail(reply, error, half_open.traceparent, [])
            else:
                return self._answer(reply, answer, half_open.traceparent, [])
        if self._hold(token, half_open, now_s):
            return Step([])
        return self._refuse(reply, [])

    def finish(self, waiting: Waiting, result: bytes | Exception) -> Step:
        """The answer that was waited for: a result, or what the handler raised."""
        self._waiting -= 1
        if isinstance(result, Exception):
            return self._fail(waiting.reply, result, waiting.traceparent, [])
        return Step(self._result(waiting.reply, result, []))

    def expire(self, now_s: float) -> Step:
        """End the half-open invocations that got no piece for too long, or are not whole after very long."""
        late = [token for token, half_open in self._half_open.items() if half_open.deadline_s <= now_s]
        self.counts.expired += len(late)
        return Step([self._drop(token) for token in late])

    def close(self) -> Step:
        """End all half-open invocations, and hold no other: the server stops."""
        self._closed = True
        sends = []
        while self._half_open:
            sends.append(self._drop(next(iter(self._half_open))))
            self.counts.refused += 1
        return Step(sends)

    def refuse(self, reply: str) -> Step:
        """End an invocation at its first piece, unread: it can't be carried out now."""
        if not reply:
            self.counts.without_reply += 1
            return Step([])
        return self._refuse(reply, [Send(reply, b"", self.nobody)])

    def _cut(
        self,
        handler: Handler,
        reply: str,
        caller: Caller,
        traceparent: str | None,
        piece: bytes,
        more: NeedMoreBytes,
        now_s: float,
    ) -> Step:
        end_s = now_s + self._limits.half_open_lifetime_s
        half_open = HalfOpen(handler, reply, caller, traceparent, piece, end_s)
        half_open.need(more)
        token = self._new_token()
        if not self._hold(token, half_open, now_s):
            return self.refuse(reply)
        # Registered before the handshake leaves.
        return Step([Send(reply, b"", f"{self._inbox}.{token}")])

    def _hold(self, token: str, half_open: HalfOpen, now_s: float) -> bool:
        limits = self._limits
        held_bytes = self._half_open_bytes + len(half_open)
        if self._closed or len(self._half_open) >= limits.half_open_max or held_bytes > limits.half_open_bytes_max:
            return False
        half_open.deadline_s = min(now_s + limits.half_open_timeout_s, half_open.end_s)
        self._half_open[token] = half_open
        self._half_open_bytes = held_bytes
        return True

    def _drop(self, token: str) -> Send:
        half_open = self._half_open.pop(token)
        self._half_open_bytes -= len(half_open)
        return Send(results_subject(half_open.reply), b"")

    def _answer(self, reply: str, answer: Answer[bytes], traceparent: str | None, sends: list[Send]) -> Step:
        if isinstance(answer, bytes):
            return Step(self._result(reply, answer, sends))
        if self._waiting >= self._limits.waiting_max:
            drop_answer(answer)
            return self._refuse(reply, sends)
        self._waiting += 1
        return Step(sends, Waiting(reply, traceparent, answer))

    def _result(self, reply: str, result: bytes, sends: list[Send]) -> list[Send]:
        self.counts.answered += 1
        subject = results_subject(reply)
        size = self.max_payload
        sends += [Send(subject, result[at : at + size]) for at in range(0, len(result), size)]
        sends.append(Send(subject, b""))
        return sends

    def _refuse(self, reply: str, sends: list[Send]) -> Step:
        self.counts.refused += 1
        sends.append(Send(results_subject(reply), b""))
        return Step(sends)

    def _fail(self, reply: str, error: Exception, traceparent: str | None, sends: list[Send]) -> Step:
        if isinstance(error, DecodeError):
            self.counts.damaged += 1
        else:
            self.counts.failed += 1
        sends.append(Send(results_subject(reply), b""))
        return Step(sends, failure=InvocationFailure(error, traceparent))
