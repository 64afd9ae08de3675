"""Calls that wait for something they share, and are made again then: each is answered once, whatever its result."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.direct import delayed_output, repeats
from keyvalue_transport.nats.direct.protocol import DirectProtocol
from keyvalue_transport.nats.direct.routes import InOrder
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.handler import LARGE_BYTES, Again, Caller, ForRuns, HandlerResult, LargeResult, RunResults
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.transport.nats.direct.scene import GET, MIB, Reader, Socket, answer, direct_core, hmsg, info, publications

WAITING_MAX = 4
#: The result of a call that is refused because of `in_flight_bytes_max`.
FULL = b"full"
LARGE = bytes(LARGE_BYTES + 1)
MIDDLE = bytes(60_000)


def fail() -> HandlerResult:
    raise ValueError


#: The results of calls that are made again, by their parameters.
SECOND: dict[bytes, Callable[[], HandlerResult]] = {
    b"small": lambda: b"result",
    b"other": lambda: b"later",
    b"empty": lambda: b"",
    b"large": lambda: LargeResult(lambda: LARGE),
    b"middle": lambda: MIDDLE,
    b"fault": fail,
}
#: The pieces of each of these results.
PIECES: dict[bytes, list[bytes]] = {
    b"at once": [b"now"],
    b"small": [b"result"],
    b"other": [b"later"],
    b"large": [LARGE],
    b"middle": [MIDDLE],
}


class Source:
    """Something to wait for, which calls its callbacks at once when it is done."""

    def __init__(self) -> None:
        self._acts: list[Callable[[object], object]] = []

    def add_done_callback(self, act: Callable[[object], object], /) -> None:
        self._acts.append(act)

    def end(self) -> None:
        for act in self._acts:
            act(self)


class Scene:
    """A connection with one function. Its calls wait for a source that they share until the source is done."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        high_water_bytes: int = 2**40,
        waiting_max: int = WAITING_MAX,
        has_runs: bool = False,
        bytes_max: int = 2**40,
    ) -> None:
        limits = InvocationLimits(waiting_max=waiting_max, in_flight_bytes_max=bytes_max)
        routes, self.invocations, _ = direct_core(limits)
        self.invocations.encode_refusal = lambda text: FULL
        self.routes = routes
        routes.add(GET, ForRuns(self._handle, list, self._call_run) if has_runs else self._handle)
        self.socket = Socket(high_water_bytes)
        self.protocol = DirectProtocol(Reader(loop), routes, loop)
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)  # type: ignore[arg-type] # what is used of it
        self.protocol.data_received(info(MIB) + b"PONG\r\n")
        self._again = Again(Source())
        self._others: list[Again] = []  # what calls wait for after that
        self._is_over = self._are_others_over = False
        self.made: Counter[bytes] = Counter()
        self.made_in_runs = 0

    def _handle(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        params = buffer[start:end]
        self.made[params] += 1
        if params == b"at once":
            return b"now"
        if not self._is_over:
            return self._again
        if params == b"again":
            return self._ended
        if params == b"other" and not self._are_others_over:
            self._others.append(Again(Source()))
            return self._others[-1]
        return SECOND[params]()

    def _call_run(self, caller: Caller, params: Sequence[bytes]) -> RunResults | Again | None:
        if b"at once" in params:
            return None
        if not self._is_over:
            return self._again
        if b"again" in params:
            return self._ended
        if set(params) == {b"small"}:
            self.made.update(params)
            self.made_in_runs += len(params)
            return b"re", [b"sult"] * len(params)
        return None

    def end(self) -> None:
        self._ended, self._again = self._again, Again(Source())
        self._is_over = True
        self._ended.source.end()  # type: ignore[attr-defined] # ours
        self._are_others_over = True
        while self._others:
            self._others.pop().source.end()  # type: ignore[attr-defined] # ours
        self._is_over = self._are_others_over = False


OPERATIONS = st.lists(
    st.lists(st.sampled_from([b"at once", b"again", *SECOND.keys() - {b"large", b"middle"}]), min_size=1, max_size=6)
    | st.sampled_from([[b"small"] * 8, [b"other"] * 8])  # these make runs
    | st.just("end"),
    max_size=12,
)


#: The sizes that a read may have for each call that keeps it. With 0, calls keep copies of their parameters. With that of a
#: frame, runs keep copies of their frames.
KEPT = st.sampled_from((0, len(hmsg(GET, b"small", b"r10")), repeats.KEPT_BYTES))


@given(OPERATIONS, KEPT, st.booleans(), st.sampled_from((WAITING_MAX, 40)), st.sampled_from((3 * WAIT_BYTES, 2**40)))
def test_each_call_is_answered_once(
    operations: list[list[bytes] | str], kept_bytes: int, has_runs: bool, waiting_max: int, bytes_max: int
) -> None:
    loop = asyncio.new_event_loop()
    try:
        with patch.object(repeats, "KEPT_BYTES", kept_bytes):
            scene = Scene(loop, waiting_max=waiting_max, has_runs=has_runs, bytes_max=bytes_max)
            check_answers(scene, loop, operations, waiting_max)
    finally:
        loop.close()


def check_answers(
    scene: Scene, loop: asyncio.AbstractEventLoop, operations: list[list[bytes] | str], waiting_max: int
) -> None:
    calls: dict[str, bytes] = {}
    waiting: list[str] = []
    refused: dict[str, list[bytes]] = {}  # the pieces of their results
    sent: list[Send] = []
    in_flight = scene.invocations.in_flight
    for operation in [*operations, "end"]:
        was_full, replies = in_flight.is_full(None), list[str]()
        if isinstance(operation, str):
            scene.end()
            waiting.clear()
        else:
            replies = [f"r{len(calls) + number}" for number in range(len(operation))]
            calls |= zip(replies, operation, strict=True)
            scene.protocol.data_received(b"".join(hmsg(GET, calls[reply], reply.encode()) for reply in replies))
        is_full = in_flight.is_full(None)
        loop.run_until_complete(asyncio.sleep(0))
        sent += publications(scene.socket.take())
        full = {send.subject.removesuffix(".results") for send in sent if send.payload == FULL}
        assert is_full or full.isdisjoint(replies), "a call was refused without need"
        for reply in replies:
            if reply in full or (calls[reply] != b"at once" and len(waiting) >= waiting_max * 3 // 4):
                refused[reply] = [FULL] if reply in full else []
            elif calls[reply] != b"at once":
                assert not was_full, "the limit does not hold"
                waiting.append(reply)
        assert scene.invocations.waiting == len(waiting)
        assert in_flight.held_bytes >= WAIT_BYTES * len(waiting)
        assert waiting or not in_flight.held_bytes
    refused |= {reply: [FULL] for reply in full}  # also calls that had to wait for something else
    for reply, params in calls.items():
        own = [send for send in sent if send.subject in (reply, f"{reply}.results")]
        assert own == answer(reply, *refused.get(reply, PIECES.get(params, []))), params
    failed = [reply for reply, params in calls.items() if params in (b"again", b"fault") and reply not in refused]
    counts = scene.invocations.counts
    assert (counts.refused, counts.answered) == (len(refused), len(calls) - len(refused) - len(failed))
    assert scene.invocations.waiting == 0


def test_a_large_result_leaves_in_parts(loop: asyncio.AbstractEventLoop) -> None:
    scene = Scene(loop)
    scene.protocol.data_received(hmsg(GET, b"large", b"r0") + hmsg(GET, b"small", b"r1"))
    scene.end()
    loop.run_until_complete(asyncio.sleep(0.01))
    sent = publications(scene.socket.take())
    for reply, result in (("r0", LARGE), ("r1", b"result")):
        assert [send for send in sent if send.subject in (reply, f"{reply}.results")] == answer(reply, result)


def test_many_results_leave_in_parts(loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call waits without its result, so thousands of calls may wait. Their results must not be written all at once."""
    monkeypatch.setattr(delayed_output, "PART_BYTES_MIN", len(MIDDLE))
    scene = Scene(loop, high_water_bytes=0)
    replies = [b"r%d" % number for number in range(WAITING_MAX * 3 // 4)]
    scene.protocol.data_received(b"".join(hmsg(GET, b"middle", reply) for reply in replies))
    scene.end()
    sent = []
    for _ in replies:
        loop.run_until_complete(asyncio.sleep(0.001))
        assert scene.socket.buffer_bytes < 1.5 * len(MIDDLE)
        sent += publications(scene.socket.take())
    loop.run_until_complete(asyncio.sleep(0.001))
    sent += publications(scene.socket.take())
    assert sent == [send for reply in replies for send in answer(reply.decode(), MIDDLE)]


def test_the_results_of_one_source_and_the_answers_of_a_read_leave_in_one_write(
    loop: asyncio.AbstractEventLoop,
) -> None:
    scene = Scene(loop)
    scene.protocol.data_received(b"".join(hmsg(GET, b"small", b"r%d" % number) for number in range(3)))
    assert scene.socket.take() == b"", "the handshakes leave with the results"
    scene.end()
    loop.run_until_complete(asyncio.sleep(0))
    assert len(scene.socket.buffer) == 1
    assert scene.made == {b"small": 6}


@pytest.mark.parametrize(("has_runs", "first"), [(False, 3), (True, 2)])
def test_calls_after_one_that_waits_are_made_only_then(
    loop: asyncio.AbstractEventLoop, has_runs: bool, first: int
) -> None:
    scene = Scene(loop, waiting_max=64, has_runs=has_runs)
    replies = [b"r%d" % number for number in range(10, 30)]
    scene.protocol.data_received(b"".join(hmsg(GET, b"small", reply) for reply in replies))
    assert scene.made == {b"small": first}, (
        "two calls before there is a shape, and the first one that has it if not in a run"
    )
    assert scene.invocations.waiting == 20
    scene.end()
    loop.run_until_complete(asyncio.sleep(0))
    assert scene.made == {b"small": 20 + first}
    assert publications(scene.socket.take()) == [
        send for reply in replies for send in answer(reply.decode(), b"result")
    ]


@pytest.mark.parametrize("run", [1, 8])
def test_a_call_keeps_no_large_read_and_a_run_stays_one(loop: asyncio.AbstractEventLoop, run: int) -> None:
    scene = Scene(loop, waiting_max=64, has_runs=True)
    scene.routes.add(9, InOrder(lambda payload: None))
    large, call = hmsg(9, bytes(MIB // 2), b""), hmsg(GET, b"small", b"r2")
    scene.protocol.data_received(call * 2)  # a shape is learned from these
    scene.end()
    tracemalloc.start()
    try:
        for _ in range(3):
            scene.protocol.data_received(large + call * run + large)
        assert scene.invocations.waiting == 3 * run
        assert tracemalloc.get_traced_memory()[0] < MIB // 4
    finally:
        tracemalloc.stop()
    scene.end()
    assert scene.invocations.counts.answered == 2 + 3 * run
    assert scene.made_in_runs == (3 * run if run > 1 else 0)


def test_calls_that_still_wait_end_when_the_server_stops(loop: asyncio.AbstractEventLoop) -> None:
    scene = Scene(loop)
    scene.protocol.data_received(hmsg(GET, b"small", b"r0") + hmsg(GET, b"small", b"r1"))
    assert scene.routes.repeats is not None
    assert publications(b"".join(scene.routes.repeats.close())) == [*answer("r0"), *answer("r1")]
    scene.end()
    loop.run_until_complete(asyncio.sleep(0))
    assert scene.socket.take() == b""
    assert scene.invocations.counts.refused == 2
    assert scene.invocations.waiting == scene.invocations.in_flight.held_bytes == 0
    assert scene.invocations.counts.answered == 0
