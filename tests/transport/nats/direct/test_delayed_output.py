"""Delayed output on the direct path: which calls wait, in which order they are answered, and what they leave to others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.direct import delayed_output, protocol, window
from keyvalue_transport.nats.direct.window import Window
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.transport.nats.direct.scene import (
    GET,
    RECEIPT,
    RECEIPT_SUBJECT,
    SET,
    UNIT,
    Direct,
    NewDirect,
    answer,
    get_params,
    hmsg,
    info,
    piece,
    publications,
    set_params,
)

KIB = 1024
MAX_PAYLOAD = 40 * KIB
HIGH_WATER_BYTES = 50 * KIB
WINDOW_BYTES = 150 * KIB
PART_BYTES_MIN = 64 * KIB
#: Values by key. Two of them fit into one message, and two are large.
VALUES = {b"small": b"s", b"middle": bytes(39 * KIB), b"large": bytes(70 * KIB), b"huge": b"h" * (300 * KIB)}
PONG = b"PONG\r\n"


class Call(NamedTuple):
    source_id: str
    key: bytes


class Peer:
    """A direct path, and the NATS server, which takes its output and sends receipts, each when the test wants it."""

    def __init__(
        self, new_direct: NewDirect, loop: asyncio.AbstractEventLoop, limits: InvocationLimits | None = None
    ) -> None:
        self.direct: Direct = new_direct(
            high_water_bytes=HIGH_WATER_BYTES, greeting=info(MAX_PAYLOAD) + PONG, limits=limits
        )
        self.core = self.direct.invocations
        self.sends: list[Send] = []
        self.receipts: list[bytes] = []
        self.number = -1
        self.calls: list[Call] = []
        self._loop = loop
        for key, value in VALUES.items():
            self.direct.store.bucket(b"b").set(key, value)

    def read(self, calls: Iterable[Call]) -> None:
        """Read calls, whose reply subjects are `r0`, `r1`, and so on."""
        frames = []
        for call in calls:
            frames.append(self.frame(GET, get_params(call.key), call.source_id))
            self.calls.append(call)
        if frames:
            self.direct.protocol.data_received(b"".join(frames))

    def frame(self, function: int, params: bytes, source_id: str) -> bytes:
        headers = b"NATS/1.0\r\nsource-id: %b\r\n\r\n" % source_id.encode()
        self.number += 1
        return hmsg(function, params, b"r%d" % self.number, headers)

    def turn(self) -> None:
        """Let the event loop make a turn."""
        self._loop.run_until_complete(asyncio.sleep(0))

    def take(self) -> None:
        for send in publications(self.direct.socket.take()):
            if send.subject == RECEIPT_SUBJECT:
                self.receipts.append(send.payload)
            else:
                self.sends.append(send)

    def receive(self) -> None:
        """Send the receipts."""
        receipts, self.receipts = self.receipts, []
        if receipts:
            self.direct.protocol.data_received(b"".join(piece(RECEIPT, payload) for payload in receipts))

    def rest(self) -> None:
        """Let the peer take everything."""
        for _ in range(1000):
            self.take()
            self.receive()
            self.turn()
            waiting = self.receipts or self.core.queued or self.core.held
            if self.direct.protocol.has_room() and not (self.direct.socket.buffer or waiting):
                return
        raise AssertionError("large results do not go on")

    def of(self, number: int) -> list[Send]:
        """Return what was sent for a call."""
        return [send for send in self.sends if send.subject in (f"r{number}", f"r{number}.results")]

    def ended(self) -> list[int]:
        """Return the numbers of the calls that have ended, in this order."""
        return [
            int(send.subject[1:-8]) for send in self.sends if send.subject.endswith(".results") and not send.payload
        ]


def expected(number: int, call: Call) -> list[Send]:
    result = encode_get_result(VALUES[call.key])
    return answer(f"r{number}", *(result[at : at + MAX_PAYLOAD] for at in range(0, len(result), MAX_PAYLOAD)))


@pytest.fixture(autouse=True)
def narrow_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "WINDOW_BYTES", WINDOW_BYTES)
    monkeypatch.setattr(window, "LATE_S", 60.0)
    monkeypatch.setattr(window, "RECEIPT_TIMEOUT_S", 60.0)
    monkeypatch.setattr(delayed_output, "PART_BYTES_MIN", PART_BYTES_MIN)
    monkeypatch.setattr(delayed_output, "SLICE_S", 60.0)


@pytest.fixture
def peer(new_direct: NewDirect, loop: asyncio.AbstractEventLoop) -> Peer:
    return Peer(new_direct, loop)


CALLS = st.lists(st.builds(Call, st.sampled_from("abc"), st.sampled_from([b"small", b"large", b"huge"])), max_size=6)


@settings(max_examples=60)
@given(st.lists(st.tuples(CALLS, st.booleans(), st.booleans(), st.integers(0, 3)), max_size=12))
def test_large_results_leave_room_for_small_ones(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop, steps: list[tuple[list[Call], bool, bool, int]]
) -> None:
    """The peer takes the output and sends receipts at any time, or not for long."""
    peer = Peer(new_direct, loop)
    for calls, takes, receives, turns in steps:
        first = len(peer.calls)
        is_open = peer.direct.protocol._delayed.window.is_open() and not peer.core.held
        peer.read(calls)
        written = b"".join(peer.direct.socket.buffer)
        for number, call in enumerate(calls, first):
            if call.key == b"small" and is_open:
                assert b"PUB r%d.results 0\r\n" % number in written, "a small answer waited"
        for _ in range(turns):
            peer.turn()
        if takes:
            peer.take()
        if receives:
            peer.receive()
        assert peer.direct.socket.reading
    peer.rest()
    for number, call in enumerate(peer.calls):
        assert peer.of(number) == expected(number, call)
    assert peer.core.counts.answered == len(peer.calls)
    assert (peer.core.queued, peer.core.queued_bytes) == (0, 0)
    part_bytes = 2 * PART_BYTES_MIN + MAX_PAYLOAD + KIB
    assert peer.direct.socket.buffer_bytes_max < HIGH_WATER_BYTES + part_bytes + 200 * len(peer.calls)


def test_no_more_than_a_window_is_sent_without_receipts(peer: Peer) -> None:
    """The socket's buffer is always empty here, as with a fast kernel."""
    peer.read([Call("a", b"huge")] * 3)
    for _ in range(50):
        peer.take()
        peer.turn()
    large_bytes = sum(len(send.payload) for send in peer.sends)
    assert WINDOW_BYTES <= large_bytes < WINDOW_BYTES * 3 // 2 + PART_BYTES_MIN + MAX_PAYLOAD
    peer.rest()
    assert peer.ended() == [0, 1, 2]


def test_callers_take_turns(peer: Peer) -> None:
    """One caller asked for much before the others asked for a little."""
    peer.read([Call("a", b"large")] * 20)
    peer.read([Call("b", b"large"), Call("c", b"huge"), Call("b", b"large")])
    peer.rest()
    places = {number: place for place, number in enumerate(peer.ended())}
    assert (places[20], places[21], places[22]) == (2, 3, 5)
    assert [number for number in peer.ended() if number < 20] == list(range(20))


def test_a_caller_beyond_its_share_is_refused_and_others_are_not(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop
) -> None:
    peer = Peer(new_direct, loop, InvocationLimits(queued_bytes_max=48 * KIB))
    peer.read([Call("a", b"large")] * 30)
    peer.read([Call("b", b"large")])
    refused = peer.core.counts.refused
    assert 0 < refused < 30
    assert peer.core.queued_bytes <= 24 * KIB
    peer.rest()
    for number in range(30 - refused, 30):
        assert peer.of(number) == answer(f"r{number}")
    for number in (*range(30 - refused), 30):
        assert peer.of(number) == expected(number, peer.calls[number])
    assert peer.core.counts.answered == 31 - refused


def test_calls_outlive_their_connection(peer: Peer) -> None:
    """The rest of a result is lost and counted. Queued calls wait until nats-py has opened a new connection."""
    lost: list[int] = []
    assert peer.direct.routes.server is not None
    peer.direct.routes.server = peer.direct.routes.server._replace(on_lost=lost.append)
    peer.read([Call("a", b"huge")] * 3)
    peer.turn()
    peer.direct.protocol.connection_lost(None)
    peer.turn()
    assert len(lost) == 1
    assert 0 < lost[0] < len(expected(0, peer.calls[0]))
    assert peer.core.queued == 2
    peer.direct.connect(info(MAX_PAYLOAD))
    peer.direct.protocol.pause_writing()
    peer.direct.protocol.resume_writing()
    peer.turn()
    assert peer.direct.socket.buffer == [], "something was sent before CONNECT"
    peer.direct.protocol.data_received(PONG)
    peer.rest()
    assert peer.ended() == [1, 2]
    assert peer.core.counts.answered == 3


def test_a_stop_ends_queued_calls_and_writes_what_was_begun(peer: Peer) -> None:
    peer.read([Call("a", b"huge")] * 3)
    peer.direct.protocol.send(peer.core.close().sends)
    peer.direct.protocol.flush()
    peer.take()
    assert sorted(peer.ended()) == [0, 1, 2]
    assert peer.of(0) == expected(0, peer.calls[0])
    assert peer.of(1) == answer("r1")
    assert (peer.core.queued, peer.core.counts.refused) == (0, 2)
    peer.read([Call("a", b"huge")])
    peer.rest()


def test_without_receipts_large_results_are_sent_all_the_same(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server may forbid publishing to our own inbox. Then no more receipts are asked for, until a late one arrives."""
    monkeypatch.setattr(window, "RECEIPT_TIMEOUT_S", 0.0)
    peer.read([Call("a", b"huge")] * 3)
    for _ in range(1000):
        peer.take()
        peer.turn()
    assert peer.ended() == [0, 1, 2]
    assert len(peer.receipts) <= window.RECEIPTS
    peer.receive()
    peer.read([Call("a", b"huge")])
    peer.take()
    peer.turn()
    peer.take()
    assert peer.receipts


# Held calls


def fill_window(peer: Peer, source_id: str) -> int:
    """Let a caller ask for more than a window. Return the number of its calls that were answered."""
    for _ in range(10):
        peer.read([Call(source_id, b"middle")])
        peer.take()
    assert 0 < peer.core.held < 10
    return 10 - peer.core.held


def test_callers_with_small_results_take_turns_too(peer: Peer) -> None:
    answered = fill_window(peer, "a")
    peer.read(
        [Call("a", b"small"), Call("b", b"small"), Call("c", b"middle"), Call("b", b"small"), Call("a", b"small")]
    )
    assert peer.direct.socket.buffer == [], "sent more than a window"
    peer.rest()
    assert peer.ended()[answered:][:6] == [answered, 11, 12, answered + 1, 13, answered + 2]
    assert peer.ended()[-1] == 14
    for number, call in enumerate(peer.calls):
        assert peer.of(number) == expected(number, call)


def test_calls_of_a_caller_stay_in_order(peer: Peer) -> None:
    """A call that arrives when the window is open again must not overtake the calls that are held."""
    fill_window(peer, "a")
    frames = [peer.frame(SET, set_params(b"k", b"%d" % number), "a") for number in range(5)]
    for frame in frames:
        peer.direct.protocol.data_received(frame)
        assert peer.direct.get(b"k") is None, "a handler was called"
    peer.receive()
    peer.direct.protocol.data_received(peer.frame(SET, set_params(b"k", b"last"), "a"))
    peer.rest()
    assert peer.direct.get(b"k") == b"last"
    assert peer.of(15) == answer("r15", UNIT)
    assert peer.ended() == list(range(16))


def test_one_read_is_held_from_where_the_window_is_full(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of this read look alike, so they come from one generator."""
    monkeypatch.setattr(protocol, "OUTPUT_BYTES", 40 * KIB)
    peer.read([Call("a", b"middle")] * 30)
    assert 0 < peer.core.counts.answered < 10
    assert peer.core.counts.answered + peer.core.held == 30
    peer.rest()
    assert peer.ended() == list(range(30))


def test_refusals_wait_for_room_too(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller is refused beyond its share. If many refusals wait, others are only counted."""
    monkeypatch.setattr(delayed_output, "REFUSALS_MAX", 5)
    peer = Peer(new_direct, loop, InvocationLimits(queued_bytes_max=16 * KIB))
    fill_window(peer, "a")
    peer.read([Call("a", b"small")] * 30)
    peer.read([Call("b", b"small")])
    refused = peer.core.counts.refused
    assert 20 < refused < 30
    assert peer.direct.socket.buffer == []
    peer.rest()
    answers = [peer.of(number) for number in range(10, 40)]
    held = 30 - refused
    assert answers[:held] == [expected(number, peer.calls[number]) for number in range(10, 10 + held)]
    assert answers[held:] == [answer(f"r{10 + number}") if number < held + 5 else [] for number in range(held, 30)]
    assert peer.of(40) == expected(40, peer.calls[40])


def test_late_receipts_make_the_window_narrow(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quick ones make it wide again. All receipts are late here, or none."""
    monkeypatch.setattr(window, "WINDOW_BYTES_MIN", 20 * KIB)
    monkeypatch.setattr(window, "LATE_S", -60.0)
    fill_window(peer, "a")
    peer.rest()
    sent = len(peer.sends)
    fill_window(peer, "a")
    narrow_bytes = sum(len(send.payload) for send in peer.sends[sent:])
    assert narrow_bytes < 100 * KIB
    monkeypatch.setattr(window, "LATE_S", 60.0)
    peer.rest()
    sent = len(peer.sends)
    fill_window(peer, "a")
    assert sum(len(send.payload) for send in peer.sends[sent:]) >= WINDOW_BYTES


@pytest.mark.parametrize("arrives", [True, False])
def test_a_late_receipt_is_not_taken_for_one_of_newer_output(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    """After a time without receipts, one window more is sent, half as large. Receipts that are lost do no harm."""
    monkeypatch.setattr(window, "WINDOW_BYTES_MIN", 20 * KIB)
    limits: Window = peer.direct.protocol._delayed.window
    peer.read([Call("a", b"huge")])
    peer.rest()
    fill_window(peer, "a")
    late, peer.receipts = peer.receipts, []
    assert len(late) == window.RECEIPTS
    limits._miss_receipt()
    for _ in range(10):
        peer.turn()
        peer.take()
    unread_bytes, sent = limits.unread_bytes, len(peer.sends)
    assert 0 < WINDOW_BYTES // 2 <= unread_bytes < WINDOW_BYTES
    assert peer.core.held
    for payload in [*late, b"", b"-1", b"9" * 18, b"9" * 5000] if arrives else []:
        peer.direct.protocol.data_received(piece(RECEIPT, payload))
        peer.turn()
        peer.take()
    assert (limits.unread_bytes, len(peer.sends)) == (unread_bytes, sent)
    peer.receive()
    assert limits.unread_bytes == 0
    peer.rest()
    assert [*map(peer.of, range(len(peer.calls)))] == [*map(expected, range(len(peer.calls)), peer.calls)]
