"""The life of invocations at the server: each arrow of its diagram, and a model under random interleavings."""

from __future__ import annotations

import inspect
import sys
import tracemalloc
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.store import decode_set, encode_set
from keyvalue_transport.wrpc.errors import DecodeError, Length, NeedMoreBytes, NoPlaceError
from keyvalue_transport.wrpc.half_open import INVOCATION_BYTES, SHARES
from keyvalue_transport.wrpc.handler import (
    ANONYMOUS,
    Again,
    Caller,
    Derived,
    Handler,
    HandlerResult,
    LargeResult,
    Pending,
    drop_answer,
)
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Step, Waiting
from keyvalue_transport.wrpc.values import read_bytes, write_length
from tests.invoking import invoke
from tests.recorded_replies import Core, Later, Reply, accept, ended, new_core, outcome_of, result, waited

REPLY = "client"
END = ended(REPLY)
#: The result of the value "val".
RESULT = result(REPLY, b"result of val")


class Served:
    """Handlers of a function with one parameter, a list<u8>, and the parameters that they were called with."""

    def __init__(self) -> None:
        self.attempts = 0
        self.received: list[tuple[Caller, bytes]] = []

    def _read(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        self.attempts += 1
        value, _ = read_bytes(buffer, start, end, 2**32, Length("value is {} bytes"))
        self.received.append((caller, value))
        return value

    def plain(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        return result_of(self._read(caller, buffer, start, end))

    def waiting(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        value = self._read(caller, buffer, start, end)

        async def wait() -> bytes:
            return result_of(value)

        return Later(wait())

    def damaged(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self._read(caller, buffer, start, end)
        raise DecodeError("found 7, allowed 3")

    def failing(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self._read(caller, buffer, start, end)
        raise RuntimeError("the disk is on fire")

    def failing_later(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self._read(caller, buffer, start, end)

        async def wait() -> bytes:
            raise RuntimeError("the disk is on fire")

        return Later(wait())


def result_of(value: bytes) -> bytes:
    return b"result of " + value


def encode(value: bytes) -> bytes:
    return write_length(len(value)) + value


def opened(limits: InvocationLimits | None = None, piece: bytes = b"\x03va") -> tuple[Core, Served]:
    """Return one half-open invocation with token 0 at time 0."""
    invocations = new_core(limits)
    served = Served()
    step = invoke(invocations, served.plain, REPLY, ANONYMOUS, piece, 0.0)
    assert step == Step([accept(REPLY, "0")])
    assert held(invocations) == (1, memory(len(piece)), 0)
    return invocations, served


def held(invocations: Core) -> tuple[int, int, int]:
    return invocations.half_open, invocations.half_open_bytes, invocations.waiting


NOTHING_HELD = (0, 0, 0)


def memory(*sent: int) -> int:
    """Return the memory that is counted for anonymous invocations, with this many bytes in their first pieces."""
    return sum(INVOCATION_BYTES + len(REPLY) + one for one in sent)


# A first piece with all parameters


def test_whole_parameters_are_answered_at_once() -> None:
    invocations = new_core()
    served = Served()
    caller = Caller("component", "default")
    step = invoke(invocations, served.plain, REPLY, caller, b"\x03val", 0.0)
    assert step == Step([accept(REPLY), RESULT, END])
    assert served.received == [(caller, b"val")]
    assert invocations.counts == InvocationCounts(answered=1)
    assert held(invocations) == NOTHING_HELD


def test_an_empty_result_is_its_end() -> None:
    invocations = new_core()
    step = invoke(invocations, lambda *_: b"", REPLY, ANONYMOUS, b"", 0.0)
    assert step == Step([accept(REPLY), END])
    assert invocations.counts == InvocationCounts(answered=1)


def test_a_pending_answer_is_waited_for() -> None:
    invocations = new_core()
    served = Served()
    caller = Caller("component", "default")
    step = invoke(invocations, served.waiting, REPLY, caller, b"\x03val", 0.0, "00-trace")
    assert step.sends == [accept(REPLY)]
    assert step.failure is None
    assert step.waiting is not None
    assert step.waiting[:2] == (REPLY, "00-trace")
    assert served.received == [(caller, b"val")]
    assert invocations.counts == InvocationCounts()
    assert held(invocations) == (0, 0, 1)
    finished = invocations.finish(step.waiting, outcome_of(step.waiting.pending))
    assert finished == Step([RESULT, END])
    assert invocations.counts == InvocationCounts(answered=1)
    assert held(invocations) == NOTHING_HELD


@pytest.mark.parametrize("pieces", [[b"\x00"], [b"", b"\x00"]], ids=["whole", "cut"])
@pytest.mark.parametrize(
    ("handler", "message", "counts"),
    [
        (Served().damaged, "found 7, allowed 3", InvocationCounts(damaged=1)),
        (Served().failing, "the disk is on fire", InvocationCounts(failed=1)),
        (Served().failing_later, "the disk is on fire", InvocationCounts(failed=1)),
    ],
)
def test_a_handler_that_raises_ends_the_invocation(
    handler: Handler, message: str, counts: InvocationCounts, pieces: list[bytes]
) -> None:
    invocations = new_core()
    step = invoke(invocations, handler, REPLY, ANONYMOUS, pieces[0], 0.0, "00-trace")
    sends = [*step.sends]
    for piece in pieces[1:]:
        assert step.failure is None
        step = invocations.receive_params("0", piece, 0.0)
        sends += step.sends
    if step.waiting is not None:
        step = invocations.finish(step.waiting, outcome_of(step.waiting.pending))
        sends += step.sends
    assert sends == [accept(REPLY, "0" if len(pieces) > 1 else None), END]
    assert step.failure is not None
    assert str(step.failure.error) == message
    assert step.failure.traceparent == "00-trace"
    assert invocations.counts == counts
    assert held(invocations) == NOTHING_HELD


# Cut parameters


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (b"", "the parameters end after 0 bytes; at least 1 are needed"),
        (b"\x03", "the parameters end after 1 bytes; at least 4 are needed"),
        (b"\x03va", "the parameters end after 3 bytes; at least 4 are needed"),
        (b"\xff\xff", "the parameters end after 2 bytes; at least 3 are needed"),
    ],
)
def test_parameters_that_end_too_soon_are_malformed(piece: bytes, message: str) -> None:
    invocations, served = opened(piece=piece)
    step = invocations.receive_params("0", b"", 0.0)
    assert step.sends == [END]
    assert step.failure is not None
    assert isinstance(step.failure.error, DecodeError)
    assert str(step.failure.error) == message
    assert served.received == []
    assert invocations.counts == InvocationCounts(damaged=1)
    assert held(invocations) == NOTHING_HELD


def test_late_pieces_are_counted_unless_they_are_empty() -> None:
    """The empty one is the end message, which usually comes after the result."""
    invocations, _ = opened()
    assert invocations.receive_params("17", b"stray", 0.0) == Step([])
    assert invocations.receive_params("17", b"", 0.0) == Step([])
    assert invocations.counts == InvocationCounts(stray_pieces=1)
    invocations.receive_params("0", b"l", 0.0)
    assert invocations.receive_params("0", b"", 0.0) == Step([])
    assert invocations.receive_params("0", b"late", 0.0) == Step([])
    assert invocations.counts == InvocationCounts(answered=1, stray_pieces=2)
    assert held(invocations) == NOTHING_HELD


@pytest.mark.parametrize(
    ("value_bytes", "piece_bytes", "attempts"), [(2**20, 1024, 2), *((5000, n, 8) for n in (1, 2, 7))]
)
def test_the_handler_is_called_only_when_all_it_needs_has_arrived(
    value_bytes: int, piece_bytes: int, attempts: int
) -> None:
    """Otherwise each piece would be joined and read again.

    With the smallest pieces, there is a call for each text and each byte of a length.
    """
    called = 0

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        nonlocal called
        called += 1
        assert decode_set(buffer, start, end, ParameterLimits())[0] == (b"bucket", b"key", value)
        return b"\x00"

    value = bytes(range(250)) * (value_bytes // 250)
    params = encode_set(b"bucket", b"key", value)
    pieces = [params[at : at + piece_bytes] for at in range(0, len(params), piece_bytes)]
    invocations = new_core()
    step = invoke(invocations, handler, REPLY, ANONYMOUS, pieces[0], 0.0)
    for piece in pieces[1:]:
        assert step.sends[1:] == []
        step = invocations.receive_params("0", piece, 0.0)
    assert step == Step([result(REPLY, b"\x00"), END])
    assert called <= attempts


# Limits


@pytest.mark.parametrize(
    "limits",
    [InvocationLimits(half_open_max=1), InvocationLimits(half_open_bytes_max=4 * INVOCATION_BYTES)],
    ids=["number", "bytes"],
)
def test_one_callers_half_open_invocations_are_limited(limits: InvocationLimits) -> None:
    invocations, served = opened(limits)
    refused = invoke(invocations, served.plain, "R2", ANONYMOUS, b"\x09xx", 0.0)
    assert refused == Step([accept("R2"), ended("R2")])
    assert invocations.counts == InvocationCounts(refused=1)
    assert held(invocations) == (1, memory(3), 0)
    whole = invoke(invocations, served.plain, "R3", ANONYMOUS, b"\x04long", 0.0)
    assert whole.sends == [accept("R3"), result("R3", b"result of long"), ended("R3")]
    other = invoke(invocations, served.plain, "R4", Caller("another", None), b"\x09x", 0.0)
    assert other.sends == ([accept("R4"), ended("R4")] if limits.half_open_max == 1 else [accept("R4", "2")])


def test_a_further_piece_over_the_limit_ends_only_its_own_invocation() -> None:
    invocations, served = opened(InvocationLimits(half_open_bytes_max=4 * memory(4, 4)), piece=b"\x04v")
    assert invocations.receive_params("0", b"a", 0.0) == Step([])
    assert invoke(invocations, served.plain, "client", ANONYMOUS, b"\x7fxxx", 0.0).sends == [accept("client", "1")]
    assert invocations.receive_params("1", b"yyyy", 0.0) == Step([ended("client")])
    assert invocations.counts == InvocationCounts(refused=1)
    assert held(invocations) == (1, memory(3), 0)
    assert invocations.receive_params("0", b"lu", 0.0) == Step([result(REPLY, b"result of valu"), END])


def test_a_handshake_is_sent_when_there_is_room_for_the_rest() -> None:
    invocations, served = opened(InvocationLimits(expected_bytes_max=8), piece=b"\x05va")
    first, second = Caller("a", None), Caller("b", None)
    assert invoke(invocations, served.plain, "R1", first, b"\x07v", 0.0) == Step([])
    assert invoke(invocations, served.plain, "R2", second, b"\x02v", 0.5) == Step([]), "it would fit, but R1 is first"
    assert (invocations.half_open, invocations.half_open_queued, invocations.expected_bytes) == (3, 2, 3)
    whole = invocations.receive_params("0", b"lid", 1.0)
    assert whole == Step([result(REPLY, b"result of valid"), END, accept("R1", "1"), accept("R2", "2")])
    assert (invocations.half_open, invocations.half_open_queued, invocations.expected_bytes) == (2, 0, 7)
    assert invocations.receive_params("2", b"a", 1.0).sends[0] == result("R2", b"result of va")
    assert invoke(invocations, served.plain, "R3", second, b"\x04v", 2.0) == Step([])
    assert invoke(invocations, served.plain, "R4", second, b"\x04v", 10.5) == Step([])
    assert invocations.expire(10.9) == Step([])
    assert invocations.expire(11.0) == Step([ended("R1"), accept("R3", "3")]), "time starts again with the handshake"
    assert invocations.expire(20.9) == Step([accept("R4"), ended("R4")])
    assert invocations.expire(21.0) == Step([ended("R3")])
    assert invocations.counts == InvocationCounts(answered=2, expired=2, refused=1)


@pytest.mark.parametrize("pieces", [[b"\x00"], [b"", b"\x00"]])
def test_the_number_of_pending_answers_is_limited(pieces: list[bytes]) -> None:
    """The refused answer is closed, since Python would warn about a coroutine that is never awaited."""
    invocations = new_core(InvocationLimits(waiting_max=1))
    served = Served()
    first = invoke(invocations, served.waiting, "R1", ANONYMOUS, b"\x00", 0.0).waiting
    assert first is not None
    sends = list(invoke(invocations, served.waiting, REPLY, ANONYMOUS, pieces[0], 0.0).sends)
    for piece in pieces[1:]:
        sends += invocations.receive_params("0", piece, 0.0).sends
    assert sends == [accept(REPLY, "0" if len(pieces) > 1 else None), END]
    assert invocations.counts == InvocationCounts(refused=1)
    assert held(invocations) == (0, 0, 1)
    invocations.finish(first, outcome_of(first.pending))
    again = invoke(invocations, served.waiting, REPLY, ANONYMOUS, b"\x00", 0.0).waiting
    assert again is not None
    invocations.finish(again, outcome_of(again.pending))
    assert invocations.counts == InvocationCounts(answered=2, refused=1)
    assert held(invocations) == NOTHING_HELD


def test_one_caller_leaves_places_for_pending_answers_to_others() -> None:
    invocations = new_core(InvocationLimits(waiting_max=8))
    served = Served()
    greedy, modest = Caller("greedy", "default"), Caller("modest", "default")

    def begin(caller: Caller) -> Waiting[str] | None:
        return invoke(invocations, served.waiting, REPLY, caller, b"\x00", 0.0).waiting

    waiting = [begin(greedy) for _ in range(10)] + [begin(modest) for _ in range(3)]
    assert [one is not None for one in waiting] == [True] * 6 + [False] * 4 + [True] * 2 + [False]
    first = waiting[0]
    assert first is not None
    invocations.finish(first, outcome_of(first.pending))
    waiting[0] = begin(greedy)
    for one in waiting:
        if one is not None:
            invocations.finish(one, outcome_of(one.pending))
    assert invocations.counts == InvocationCounts(answered=9, refused=5)
    assert held(invocations) == NOTHING_HELD


@pytest.mark.parametrize("whole", [True, False])
def test_a_function_that_begins_at_once_is_not_called_without_a_place(whole: bool) -> None:
    """Otherwise it changes something, although its call is refused."""
    invocations = new_core(InvocationLimits(waiting_max=1))
    served, began = Served(), []

    def begin(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        answer = served.waiting(caller, buffer, start, end)
        began.append(buffer[start:end])
        return answer

    handler = invocations.if_may_wait(begin)
    cut = invoke(invocations, handler, "R2", Caller("other", None), b"", 0.0)
    assert cut == Step([accept("R2", "0")])
    first = invoke(invocations, handler, "R1", ANONYMOUS, b"\x00", 0.0).waiting
    assert first is not None
    if whole:
        sends = invoke(invocations, handler, "R2", Caller("other", None), b"\x00", 0.0).sends
        assert sends == [accept("R2"), ended("R2")]
    else:
        assert invocations.receive_params("0", b"\x00", 0.0) == Step([ended("R2")])
    assert began == [b"\x00"]
    assert invocations.counts == InvocationCounts(refused=1)
    message = bytes(100)
    references = sys.getrefcount(message)
    with suppress(NoPlaceError):
        handler(ANONYMOUS, message, 0, len(message))
    assert sys.getrefcount(message) == references, "the error keeps the message until the next garbage collection"
    invocations.finish(first, outcome_of(first.pending))


@pytest.mark.parametrize("pieces", [[b"\x00"], [b"", b"\x00"]], ids=["whole", "cut"])
@pytest.mark.parametrize(
    ("second", "ends", "counts"),
    [
        (b"result of val", [RESULT, END], InvocationCounts(answered=1)),
        (LargeResult(lambda: b"result of val"), [RESULT, END], InvocationCounts(answered=1)),
        (None, [END], InvocationCounts(failed=1)),
    ],
    ids=["a result", "a large result", "the same thing"],
)
def test_a_call_may_have_to_be_made_again(
    pieces: list[bytes], second: HandlerResult | None, ends: list[Reply], counts: InvocationCounts
) -> None:
    invocations = new_core()
    source: Any = object()
    again = Again(source)
    returns = [again, again if second is None else second]

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        if start == end:
            raise NeedMoreBytes(1)
        assert (caller, buffer[start:end]) == (ANONYMOUS, b"\x00")
        return returns.pop(0)

    step = invoke(invocations, handler, REPLY, ANONYMOUS, pieces[0], 0.0)
    if len(pieces) > 1:
        step = invocations.receive_params("0", pieces[1], 0.0)
    assert step.waiting is not None
    assert step.waiting.pending.answer is source
    finished = invocations.finish(step.waiting, outcome_of(step.waiting.pending))
    assert finished.sends == ends
    assert invocations.counts == counts
    assert held(invocations) == NOTHING_HELD


def test_a_derived_answer_is_made_from_another_one_or_its_error() -> None:
    async def source(error: Exception | None) -> bytes:
        if error is not None:
            raise error
        return b"value"

    def derive(read: Callable[[], bytes]) -> bytes:
        try:
            return b"derived " + read()
        except LookupError:
            return b"no value"

    assert waited(Later(Derived(source(None), derive))) == b"derived value"
    assert waited(Later(Derived(source(LookupError()), derive))) == b"no value"
    given_up = source(None)
    drop_answer(Derived(given_up, derive))
    assert inspect.getcoroutinestate(given_up) == inspect.CORO_CLOSED
    drop_answer(Ready())


class Ready:
    """An answer that can neither be closed nor cancelled."""

    def __await__(self) -> Generator[object, object, bytes]:
        raise AssertionError("nobody waits")


# Expiry, and the end of the server


def test_small_pieces_do_not_keep_a_half_open_invocation_alive_forever() -> None:
    invocations, _ = opened(InvocationLimits(half_open_timeout_s=10.0, half_open_lifetime_s=25.0), piece=b"\x7f")
    for now_s in (9.0, 18.0):
        assert invocations.receive_params("0", b"x", now_s) == Step([])
    assert invocations.expire(24.9) == Step([])
    assert invocations.expire(25.0) == Step([END])
    assert invocations.counts == InvocationCounts(expired=1)


def test_small_pieces_take_no_more_memory_than_is_counted_for_them() -> None:
    invocations, _ = opened(InvocationLimits(), piece=b"\xff\xff\x3f")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(5_000):
        invocations.receive_params("0", b"xy", 0.0)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert invocations.half_open_bytes == memory(3 + 10_000 + 10_000 // 8)
    assert taken < 2 * invocations.half_open_bytes


def test_a_half_open_invocation_expires_after_its_last_piece() -> None:
    invocations, served = opened(InvocationLimits(half_open_timeout_s=10.0))
    invoke(invocations, served.plain, "R2", ANONYMOUS, b"\x09", 4.0)
    invocations.receive_params("0", b"", 5.0)
    invoke(invocations, served.plain, "R3", ANONYMOUS, b"\x09x", 6.0)
    invocations.receive_params("1", b"yy", 8.0)
    assert invocations.counts == InvocationCounts(damaged=1)
    assert invocations.half_open == 2
    assert invocations.expire(15.9) == Step([])
    assert invocations.expire(16.0) == Step([ended("R3")])
    assert invocations.half_open == 1
    assert invocations.expire(17.9) == Step([])
    assert invocations.expire(18.0) == Step([ended("R2")])
    assert invocations.counts == InvocationCounts(damaged=1, expired=2)
    assert held(invocations) == NOTHING_HELD
    assert invocations.receive_params("1", b"late", 18.0) == Step([])
    assert invocations.counts == InvocationCounts(damaged=1, expired=2, stray_pieces=1)


def test_an_invocation_that_cannot_be_carried_out_now_is_refused_unread() -> None:
    invocations = new_core()
    assert invocations.refuse(REPLY) == Step([accept(REPLY), END])
    assert invocations.counts == InvocationCounts(refused=1)
    assert held(invocations) == NOTHING_HELD


# Properties


@given(st.binary(max_size=300), st.binary(max_size=5), st.lists(st.integers(0, 310), max_size=6))
def test_the_result_does_not_depend_on_where_the_parameters_are_cut(
    value: bytes, trailing: bytes, cuts: list[int]
) -> None:
    params = encode(value)
    bounds = sorted({0, len(params), *(cut for cut in cuts if cut < len(params))})
    pieces = [params[at:end] for at, end in pairwise(bounds)]
    pieces[-1] += trailing
    invocations = new_core()
    served = Served()
    sends = list(invoke(invocations, served.plain, REPLY, ANONYMOUS, pieces[0], 0.0).sends)
    for piece in [*pieces[1:], b""]:
        sends += invocations.receive_params("0", piece, 0.0).sends
    assert sends == [accept(REPLY, "0" if len(pieces) > 1 else None), result(REPLY, result_of(value)), END]
    assert invocations.counts == InvocationCounts(answered=1)
    assert held(invocations) == NOTHING_HELD


@dataclass(eq=False)
class Expected:
    """An invocation in the model. The bytes of its value are unique in the run."""

    kind: str
    reply: str
    caller: Caller
    value: bytes
    params: bytes
    end_s: float
    first: int = 0
    sent: int = 0
    token: str | None = None
    deadline_s: float = 0.0
    waiting: Waiting[str] | None = None
    handshakes: int = 0
    ends: int = 0
    results: int = 0

    @property
    def whole(self) -> bool:
        return self.sent >= len(encode(self.value))

    @property
    def trace(self) -> str:
        return f"trace of {self.reply}"

    @property
    def memory(self) -> int:
        texts = len(f"{self.caller.source_id}{self.caller.link_name}{self.trace}")
        more = self.sent - self.first
        return INVOCATION_BYTES + 4 * texts + len(self.reply) + self.first + more + more // 8

    @property
    def missing(self) -> int:
        """Return the number of bytes that are known to be missing: the length is at the beginning."""
        length = len(encode(self.value)) - len(self.value)
        return (self.sent + 1 if self.sent < length else len(encode(self.value))) - self.sent


KINDS = ["plain", "waiting", "damaged", "failing", "failing_later"]


class InvocationsMachine(RuleBasedStateMachine):
    """Any number of invocations at the same time, against a model that knows each one's bytes."""

    invocations = Bundle("invocations")

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.served = Served()
        self.counts = InvocationCounts()
        self.taken: list[Expected] = []
        self.half_open: list[Expected] = []  # with a handshake, in the order of their last pieces
        self.queued: list[Expected] = []  # in the order of arrival
        self.closed = False
        self.waiting = 0
        self.called: list[tuple[Caller, bytes]] = []

    @initialize(
        half_open_max=st.integers(1, 16),
        half_open_invocations=st.integers(1, 16),
        waiting_max=st.integers(1, 5),
        expected_bytes_max=st.integers(1, 600),
    )
    def start(self, half_open_max: int, half_open_invocations: int, waiting_max: int, expected_bytes_max: int) -> None:
        bytes_max = half_open_invocations * (INVOCATION_BYTES + 100)
        self.limits = InvocationLimits(half_open_max, bytes_max, 10.0, waiting_max, 25.0, expected_bytes_max)
        self.core = new_core(self.limits)

    @rule(
        target=invocations,
        kind=st.sampled_from(KINDS),
        source=st.sampled_from("aabcd"),
        size=st.integers(0, 200),
        trailing=st.integers(0, 3),
        first=st.integers(0, 210),
    )
    def invoke(self, kind: str, source: str, size: int, trailing: int, first: int) -> Expected:
        number = len(self.taken)
        value = bytes([number % 256]) * size
        caller = Caller(source, f"link {number}")
        params = encode(value) + bytes([number % 256]) * trailing
        end_s = self.now_s + self.limits.half_open_lifetime_s
        expected = Expected(kind, f"R{number}", caller, value, params, end_s)
        self.taken.append(expected)
        piece = expected.params[:first]
        expected.first = expected.sent = len(piece)
        handler = getattr(self.served, kind)
        step = invoke(self.core, handler, expected.reply, caller, piece, self.now_s, expected.trace)
        if not expected.whole and self.has_place(expected):
            expected.deadline_s = self.now_s + self.limits.half_open_timeout_s
            self.queued.append(expected)
            self.check_handshakes(step)
            return expected
        handshake, *rest = step.sends
        assert handshake == accept(expected.reply)
        expected.handshakes += 1
        if expected.whole:
            self.check_called(expected, Step(rest, step.waiting, step.failure))
        else:
            self.check_end(expected, Step(rest, step.waiting, step.failure))
            self.counts.refused += 1
        return expected

    @rule(expected=invocations, size=st.integers(1, 100))
    def send_piece(self, expected: Expected, size: int) -> None:
        if expected.token is None:
            return
        piece = expected.params[expected.sent : expected.sent + size]
        if expected not in self.half_open:
            assert self.receive_params(expected, piece or b"late") == Step([])
            self.counts.stray_pieces += 1
            return
        self.half_open.remove(expected)
        expected.sent += len(piece)
        step = self.receive_params(expected, piece)
        if expected.whole:
            self.check_called(expected, self.without_handshakes(step, expected))
        elif self.has_place(expected):
            self.hold(expected)
            self.check_handshakes(step)
        else:
            self.check_end(expected, self.without_handshakes(step, expected))
            self.counts.refused += 1

    @rule(expected=invocations)
    def end_params(self, expected: Expected) -> None:
        """Send the end message, whatever the state of the invocation."""
        if expected.token is None:
            return
        step = self.receive_params(expected, b"")
        if expected in self.half_open:
            self.half_open.remove(expected)
            self.check_end(expected, self.without_handshakes(step, expected), "the parameters end after")
            self.counts.damaged += 1
        else:
            assert step == Step([])

    @rule(expected=invocations)
    def finish(self, expected: Expected) -> None:
        if expected.waiting is not None:
            self.finish_waiting(expected)

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 9.0, 10.0]))
    def expire(self, seconds: float) -> None:
        self.now_s += seconds
        late = [expected for expected in self.half_open if expected.deadline_s <= self.now_s]
        refused = [expected for expected in self.queued if expected.deadline_s <= self.now_s]
        step = self.core.expire(self.now_s)
        self.counts.expired += len(late)
        self.counts.refused += len(refused)
        self.check_handshakes(step._replace(sends=self.without_ends(late, refused, step.sends)))

    @rule()
    def close(self) -> None:
        step = self.core.close()
        self.closed = True
        self.counts.refused += len(self.half_open) + len(self.queued)
        assert self.without_ends(self.half_open[:], self.queued[:], step.sends) == []

    @invariant()
    def the_content_and_counts_are_those_of_the_model(self) -> None:
        held = [*self.half_open, *self.queued]
        assert self.core.half_open == len(held) <= self.limits.half_open_max
        assert self.core.half_open_queued == len(self.queued)
        assert self.core.half_open_bytes == sum(one.memory for one in held) <= self.limits.half_open_bytes_max
        assert self.core.expected_bytes == sum(map(self.reserved, self.half_open))
        for source in "abcd":
            own = [one for one in held if one.caller.source_id == source]
            assert len(own) <= max(1, self.limits.half_open_max // SHARES)
            assert len(own) < 2 or sum(one.memory for one in own) <= self.limits.half_open_bytes_max * 3 // 4
        assert self.core.waiting == self.waiting <= self.limits.waiting_max
        assert self.core.in_flight.held_bytes == sum(one.waiting.held_bytes for one in self.taken if one.waiting)
        assert self.core.counts == self.counts
        assert self.served.received == self.called, "each handler got its own invocation's bytes, once"

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for expected in self.taken:
            if expected.waiting is not None:
                self.finish_waiting(expected)
        self.close()
        self.the_content_and_counts_are_those_of_the_model()
        assert held(self.core) == NOTHING_HELD
        assert [(one.handshakes, one.ends) for one in self.taken] == [(1, 1)] * len(self.taken)
        counts = self.counts
        ended = counts.answered + counts.damaged + counts.expired + counts.refused + counts.failed
        assert ended == len(self.taken)
        for expected in self.taken:
            assert expected.results <= 1

    def receive_params(self, expected: Expected, piece: bytes) -> Step[str, Reply]:
        assert expected.token is not None
        return self.core.receive_params(expected.token, piece, self.now_s)

    def has_place(self, expected: Expected) -> bool:
        """Return True if an invocation may be half-open besides all others."""
        limits, held = self.limits, [one for one in (*self.half_open, *self.queued) if one is not expected]
        own = [one for one in held if one.caller.source_id == expected.caller.source_id]
        share = limits.half_open_bytes_max // SHARES
        return (
            not self.closed
            and len(held) < limits.half_open_max
            and len(own) < max(1, limits.half_open_max // SHARES)
            and sum(one.memory for one in held) + expected.memory <= limits.half_open_bytes_max
            and sum(one.memory for one in own) + expected.memory
            <= (share if own else limits.half_open_bytes_max - share)
        )

    def reserved(self, expected: Expected) -> int:
        most = self.limits.expected_bytes_max
        return min(expected.missing, most - most // SHARES)

    def has_share(self, expected: Expected) -> bool:
        """Return True if an invocation's caller may expect its bytes too."""
        own = [one for one in self.half_open if one.caller.source_id == expected.caller.source_id]
        share = self.limits.expected_bytes_max // SHARES
        return not own or sum(map(self.reserved, own)) + self.reserved(expected) <= share

    def has_room(self, expected: Expected) -> bool:
        total = sum(map(self.reserved, self.half_open)) + self.reserved(expected)
        return total <= self.limits.expected_bytes_max

    def heads(self) -> list[Expected]:
        """Return the queued invocation of each caller that arrived first."""
        first = {one.caller.source_id: one for one in reversed(self.queued)}
        return list(first.values())

    def hold(self, expected: Expected) -> None:
        expected.deadline_s = min(self.now_s + self.limits.half_open_timeout_s, expected.end_s)
        self.half_open.append(expected)

    def check_handshakes(self, step: Step[str, Reply]) -> None:
        """Check that the step has only handshakes: of the first of each caller, while there is room for them."""
        assert (step.waiting, step.failure) == (None, None)
        for handshake in step.sends:
            (expected,) = (one for one in self.heads() if one.reply == handshake.to)
            assert handshake.kind == "accept"
            assert isinstance(handshake.content, str)
            assert handshake.content not in [other.token for other in self.taken]
            assert self.has_share(expected)
            assert self.has_room(expected)
            expected.token = handshake.content
            expected.handshakes += 1
            self.queued.remove(expected)
            self.hold(expected)
        ready = [one for one in self.heads() if self.has_share(one)]
        assert not ready or not all(map(self.has_room, ready)), "a handshake was due"

    def without_handshakes(self, step: Step[str, Reply], expected: Expected) -> Step[str, Reply]:
        """Check the handshakes of other invocations, and return the rest of the step."""
        own = [message for message in step.sends if message.to == expected.reply]
        assert step.sends[: len(own)] == own
        self.check_handshakes(Step(step.sends[len(own) :]))
        return step._replace(sends=own)

    def without_ends(self, late: list[Expected], refused: list[Expected], sends: list[Reply]) -> list[Reply]:
        """Check the ends of half-open and of queued invocations, and return the other messages."""
        ends = [ended(expected.reply) for expected in late]
        for expected in refused:
            ends += [accept(expected.reply), ended(expected.reply)]
            expected.handshakes += 1
            self.queued.remove(expected)
        for expected in late:
            self.half_open.remove(expected)
        for expected in (*late, *refused):
            expected.ends += 1
        assert sends[: len(ends)] == ends
        return sends[len(ends) :]

    def check_called(self, expected: Expected, step: Step[str, Reply]) -> None:
        """Check that the handler got the parameters, and what `step` sends besides the handshake."""
        self.called.append((expected.caller, expected.value))
        match expected.kind:
            case "plain":
                self.check_result(expected, step)
            case "damaged":
                self.check_end(expected, step, "found 7, allowed 3")
                self.counts.damaged += 1
            case "failing":
                self.check_end(expected, step, "the disk is on fire")
                self.counts.failed += 1
            case _ if self.waiting == self.limits.waiting_max or self.waiting_of(expected) == max(
                1, self.limits.waiting_max - self.limits.waiting_max // SHARES
            ):
                self.check_end(expected, step)
                self.counts.refused += 1
            case _:
                assert step.waiting is not None
                source_id = expected.caller.source_id
                rest = step.waiting.pending, source_id, step.waiting.held_bytes
                assert step == Step([], Waiting(expected.reply, expected.trace, *rest))
                assert step.waiting.held_bytes > len(expected.value)
                expected.waiting = step.waiting
                self.waiting += 1

    def waiting_of(self, expected: Expected) -> int:
        """Return the number of waiting invocations of an invocation's caller."""
        source_id = expected.caller.source_id
        return sum(one.waiting is not None and one.caller.source_id == source_id for one in self.taken)

    def finish_waiting(self, expected: Expected) -> None:
        assert expected.waiting is not None
        step = self.core.finish(expected.waiting, outcome_of(expected.waiting.pending))
        expected.waiting = None
        self.waiting -= 1
        if expected.kind == "waiting":
            self.check_result(expected, step)
        else:
            self.check_end(expected, step, "the disk is on fire")
            self.counts.failed += 1

    def check_result(self, expected: Expected, step: Step[str, Reply]) -> None:
        first, *rest = step.sends
        assert first == result(expected.reply, result_of(expected.value))
        expected.results += 1
        self.check_end(expected, Step(rest, step.waiting, step.failure))
        self.counts.answered += 1

    def check_end(self, expected: Expected, step: Step[str, Reply], failure: str | None = None) -> None:
        assert step.sends == [ended(expected.reply)]
        assert step.waiting is None
        if failure is None:
            assert step.failure is None
        else:
            assert step.failure is not None
            assert failure in str(step.failure.error)
            assert step.failure.traceparent == expected.trace
        expected.ends += 1


InvocationsMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40)
TestInvocations = InvocationsMachine.TestCase
