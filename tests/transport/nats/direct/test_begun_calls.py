"""Calls that have begun a change: each is answered once, whatever its result, and none begins that may not wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyvalue_replica.promise import Promise
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.read_flow import SLICE_BYTES
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.errors import DecodeError
from keyvalue_transport.wrpc.handler import BegunRun, Caller, ForBegunRuns, HandlerResult, Pending
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.transport.nats.direct.scene import (
    MIB,
    RECEIPT,
    RECEIPT_SUBJECT,
    SET,
    Reader,
    Socket,
    answer,
    direct_core,
    hmsg,
    info,
    piece,
    publications,
)

WAITING_MAX = 8
SHARE = WAITING_MAX * 3 // 4
#: The result of a call that is refused because of `in_flight_bytes_max`.
FULL = b"full"
LARGE = bytes(MIB + 1)
#: The results of calls that wait, by their parameters. The others end without a result.
RESULTS = {b"small": b"result", b"middle": bytes(60_000), b"large": LARGE, b"shared": b"result", b"ready": b"result"}
PIECES: dict[bytes, list[bytes]] = {
    **{params: [result] for params, result in RESULTS.items()},
    b"at once": [b"now"],
    b"large": [LARGE[:MIB], LARGE[MIB:]],
}
ENDLESS = (b"empty", b"fault", b"cancelled", b"malformed")


class Awaited:
    """The Pending answer of a call."""

    def __init__(self, answer: Any, params: bytes) -> None:
        self.answer = answer
        self._params = params

    def encode(self, read: Callable[[], object]) -> bytes:
        read()
        if self._params == b"fault":
            raise ValueError
        return RESULTS.get(self._params, b"")


class Run:
    """Calls of a run that wait. Two thirds of them end together, and the others one by one."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._promises: list[Promise] = []

    def begin(
        self, take: Callable[[BegunRun, int, bytes], object], part: Callable[[BegunRun, Sequence[Pending]], object]
    ) -> None:
        self._take, self._part = take, part

    def part(self) -> None:
        self._promises = [Promise() for _ in range(self._left)]
        self._left = 0
        self._part(self, [Awaited(promise, b"small") for promise in self._promises])

    def end(self) -> None:
        for number in (self._left // 3, self._left // 3):
            if number:
                self._left -= number
                self._take(self, number, b"result")
        if self._left:
            self.part()
        for promise in self._promises:
            if not promise.done():
                promise.set_result(None)


class Scene:
    """A connection with one function, which begins changes. They end when the test says so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, bytes_max: int = 2**40, waiting_max: int = WAITING_MAX) -> None:
        limits = InvocationLimits(waiting_max=waiting_max, in_flight_bytes_max=bytes_max)
        self.routes, self.invocations, self.steps = direct_core(limits)
        self.invocations.encode_refusal = lambda text: FULL
        self.routes.add(SET, self.invocations.if_may_wait(ForBegunRuns(self._handle, self._begin_run)))
        self.socket = Socket()
        self.protocol = DirectProtocol(Reader(loop), self.routes, loop)
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)  # type: ignore[arg-type] # what is used of it
        self.protocol.data_received(info(MIB) + b"PONG\r\n")
        self.begun: Counter[bytes] = Counter()
        self.runs: list[Run] = []
        self._answers: list[tuple[Promise, bytes]] = []
        self._shared = Promise()

    def _handle(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        params = buffer[start:end]
        self.begun[params] += 1
        if params == b"at once":
            return b"now"
        if params == b"malformed":
            raise DecodeError
        promise = self._shared if params == b"shared" else Promise()
        if params == b"ready":
            promise.set_result(None)
        elif params != b"shared":
            self._answers.append((promise, params))
        return Awaited(promise, params)

    def _begin_run(self, caller: Caller, params: Sequence[bytes]) -> Run | None:
        if set(params) != {b"small"}:
            return None
        self.begun[b"small"] += len(params)
        self.runs.append(Run(len(params)))
        return self.runs[-1]

    def take(self) -> list[Send]:
        """Return what was sent, as the NATS server reads it, and send the receipts. Without them, the window closes."""
        sent = publications(self.socket.take())
        receipts = [piece(RECEIPT, send.payload) for send in sent if send.subject == RECEIPT_SUBJECT]
        self.protocol.data_received(b"".join(receipts))
        return sent

    def end(self) -> None:
        """Let the changes end that have begun, as acknowledgements would that arrive in one read."""
        runs, self.runs = self.runs, []
        for run in runs:
            run.end()
        answers, self._answers = self._answers, []
        for promise, params in answers:
            if params == b"cancelled":
                promise.cancel()
            else:
                promise.set_result(None)
        shared, self._shared = self._shared, Promise()
        shared.set_result(None)
        for step in self.steps:  # of calls that share an answer: all but the first wait as other calls do
            if step.waiting is not None:
                sends = self.invocations.answer(step.waiting, step.waiting.pending.encode(shared.result))
                self.protocol.send(sends)
        self.steps.clear()


OPERATIONS = st.lists(
    st.lists(st.sampled_from([b"at once", *RESULTS, *ENDLESS]), min_size=1, max_size=6) | st.just("end"), max_size=12
)


@example([[b"small"] * 12, "end"], 2**40)
@example([[b"small"] * 7, [b"large"], "end", [b"small"] * 6, "end", [b"small"] * 6], 2**40)
@example([[b"small"] * 3, [b"shared"] * 3], 2**40)
@example([[b"large"] * 4, "end", [b"at once"], [b"small"]], 2**40)
@example([[b"small"] * 6, "end", [b"small"] * 5, [b"ready"] * 3], 3 * WAIT_BYTES)
@example([[b"middle"], "end", [b"shared", b"small", b"shared", b"shared"]], 3 * WAIT_BYTES)
@given(OPERATIONS, st.sampled_from([1, 3 * WAIT_BYTES, 6 * WAIT_BYTES, 2**40]))
def test_each_call_is_answered_once(operations: list[list[bytes] | str], bytes_max: int) -> None:
    """The memory that counts is that of the calls that wait. While it is at the limit, no call begins."""
    loop = asyncio.new_event_loop()
    share_bytes = bytes_max - bytes_max // 4
    try:
        scene = Scene(loop, bytes_max)
        calls: dict[str, bytes] = {}
        waiting: list[str] = []
        refused: dict[str, list[bytes]] = {}  # the pieces of their results
        sent: list[Send] = []

        def held_bytes(replies: list[str]) -> int:
            return sum(len(calls[reply]) + WAIT_BYTES for reply in replies)

        for operation in [*operations, "end"]:
            before_bytes, replies = held_bytes(waiting), list[str]()
            if isinstance(operation, str):
                scene.end()
                waiting.clear()
            else:
                replies = [f"r{len(calls) + 10 + number}" for number in range(len(operation))]
                calls |= zip(replies, operation, strict=True)
                scene.protocol.data_received(b"".join(hmsg(SET, calls[reply], reply.encode()) for reply in replies))
            loop.run_until_complete(asyncio.sleep(0))
            sent += scene.take()
            full = {send.subject.removesuffix(".results") for send in sent if send.payload == FULL}
            for reply in replies:
                if reply in full or len(waiting) >= SHARE:
                    refused[reply] = [FULL] if reply in full else []
                elif calls[reply] not in (b"at once", b"malformed"):
                    waiting.append(reply)
            begun_bytes = held_bytes(waiting)
            assert before_bytes < share_bytes or full.issuperset(replies), "the limit does not hold"
            assert full.isdisjoint(replies) or begun_bytes >= share_bytes, "a call was refused without need"
            waiting = [reply for reply in waiting if calls[reply] != b"ready"]
            assert scene.invocations.waiting == len(waiting)
            assert scene.invocations.in_flight.held_bytes == held_bytes(waiting)
        loop.run_until_complete(asyncio.sleep(0.01))
        sent += scene.take()
        for reply, params in calls.items():
            own = [send for send in sent if send.subject in (reply, f"{reply}.results")]
            assert own == answer(reply, *refused.get(reply, PIECES.get(params, []))), params
        counts = scene.invocations.counts
        taken = Counter(params for reply, params in calls.items() if reply not in refused)
        assert scene.begun == taken, "a refused call has begun"
        assert (counts.refused, counts.damaged) == (len(refused), taken[b"malformed"])
        assert counts.failed == taken[b"fault"] + taken[b"cancelled"]
        assert counts.answered == taken.total() - counts.failed - counts.damaged
    finally:
        loop.close()


@pytest.mark.parametrize("params", [b"small", b"fault"], ids=["runs", "single calls"])
def test_the_calls_of_one_slice_of_a_read_may_exceed_the_limit(loop: asyncio.AbstractEventLoop, params: bytes) -> None:
    scene = Scene(loop, MIB, waiting_max=10**6)
    frames = [hmsg(SET, params, b"r%d" % number) for number in range(10_000, 15_000)]
    scene.protocol.data_received(b"".join(frames))
    held_bytes, slice_calls = scene.invocations.in_flight.held_bytes, SLICE_BYTES // len(frames[0]) + 1
    assert MIB * 3 // 4 <= held_bytes < MIB * 3 // 4 + slice_calls * (WAIT_BYTES + len(params))


def test_the_answers_of_changes_that_end_together_leave_in_one_write(loop: asyncio.AbstractEventLoop) -> None:
    scene = Scene(loop)
    scene.protocol.data_received(b"".join(hmsg(SET, b"small", b"r%d" % number) for number in range(10, 16)))
    assert scene.socket.take() == b"", "the handshakes leave with the results"
    scene.end()
    assert scene.invocations.waiting == 6
    loop.run_until_complete(asyncio.sleep(0))
    assert len(scene.socket.buffer) == 1
    assert scene.invocations.waiting == 0


def test_the_calls_of_a_run_begin_together(loop: asyncio.AbstractEventLoop) -> None:
    scene = Scene(loop)
    for replies in (range(10, 12), range(12, 16)):  # the first two frames are learned from
        scene.protocol.data_received(b"".join(hmsg(SET, b"small", b"r%d" % number) for number in replies))
    assert [run._left for run in scene.runs] == [4]
    assert scene.invocations.waiting == 6
    assert scene.routes.begun is not None
    scene.routes.begun.close()
    loop.run_until_complete(asyncio.sleep(0))
    assert scene.invocations.waiting == 0
    scene.end()  # too late
    assert len(publications(scene.socket.take())) == 2 * 6, "each has a handshake and an end, but no result"
    assert scene.invocations.in_flight.held_bytes == 0


def test_calls_that_still_wait_end_when_the_server_stops(loop: asyncio.AbstractEventLoop) -> None:
    scene = Scene(loop)
    scene.protocol.data_received(hmsg(SET, b"small", b"r10") + hmsg(SET, b"small", b"r11"))
    assert scene.routes.begun is not None
    scene.routes.begun.close()
    loop.run_until_complete(asyncio.sleep(0))
    assert publications(scene.socket.take()) == [*answer("r10"), *answer("r11")]
    scene.end()
    loop.run_until_complete(asyncio.sleep(0))
    assert scene.socket.take() == b""
    assert scene.invocations.counts.failed == 2
    assert scene.invocations.waiting == scene.invocations.in_flight.held_bytes == 0
