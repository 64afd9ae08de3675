"""The direct path below nats-py: what its protocol answers, what it passes on, and what it holds."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from operator import eq
from typing import Any, TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nats.aio.client import Client

from keyvalue_engine import Store
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set, store_handlers
from keyvalue_transport.nats.direct.protocol import LINE_BYTES_MAX, OUTPUT_BYTES, DirectProtocol
from keyvalue_transport.nats.direct.read_flow import ReadFlow
from bench.load.responder import PARAMS
from keyvalue_transport.nats.direct.alike import SHAPES_MAX
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.nats.headers import CALLERS_MAX, parse_caller, traceparent_of
from keyvalue_transport.nats.server import caller_of
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, Handler, Narrowed, narrowable
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Step
from keyvalue_transport.nats.replies import Send

T = TypeVar("T")

MIB = 1024 * 1024
INBOX = "_INBOX.server"
NOBODY = "_INBOX.nobody"
GET, SET, DELETE, EXISTS, LIST_KEYS, PIECES = range(1, 7)  # subscriptions that are routed
OTHERS = 77  # one that is not
UNIT = b"\x00"
HEADERS = b"NATS/1.0\r\nlink-name: default\r\nsource-id: component\r\n\r\n"
CALLER = Caller("component", "default")


class Socket:
    """asyncio's transport, with a peer that takes what was written when it is told to.

    :param high_water_bytes: above them the protocol is told to pause
    """

    def __init__(self, high_water_bytes: int = 2**40) -> None:
        self.protocol: DirectProtocol | None = None
        self.reading = True
        self.aborted = False
        self.buffer: list[bytes] = []
        self.buffer_bytes = self.buffer_bytes_max = 0
        self._high_water_bytes = high_water_bytes
        self._paused = False

    def write(self, frames: bytes, /) -> None:
        self.buffer.append(frames)
        self.buffer_bytes += len(frames)
        self.buffer_bytes_max = max(self.buffer_bytes_max, self.buffer_bytes)
        if self.buffer_bytes > self._high_water_bytes and not self._paused:
            self._paused = True
            assert self.protocol is not None
            self.protocol.pause_writing()

    def take(self) -> bytes:
        """What the peer reads, which is all; then the protocol may go on."""
        taken = b"".join(self.buffer)
        self.buffer = []
        self.buffer_bytes = 0
        if self._paused:
            self._paused = False
            assert self.protocol is not None
            self.protocol.resume_writing()
        return taken

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        self.reading = True

    def abort(self) -> None:
        self.aborted = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Reader(asyncio.StreamReader):
    """asyncio's, which notes in what pieces it was fed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=64 * 1024, loop=loop)
        self.pieces: list[bytes] = []

    def feed_data(self, data: Any) -> None:
        self.pieces.append(data)
        super().feed_data(data)


class Counted(DirectProtocol):
    """Notes the size of each buffer that is parsed."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, routes, loop)
        self.parsed: list[int] = []

    def _parse(self, buffer: bytes) -> None:
        self.parsed.append(len(buffer))
        super()._parse(buffer)


class Direct:
    """The routes of a store's handlers, and one connection that speaks to them. `reconnect` makes another."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        limits: InvocationLimits | None = None,
        high_water_bytes: int = 2**40,
        greeting: bytes | None = None,
    ) -> None:
        self._loop = loop
        self._high_water_bytes = high_water_bytes
        tokens = itertools.count()
        self.store = Store()
        self.routes = DirectRoutes()
        self.steps: list[Step] = []
        self.routes.on_step = self.steps.append
        self.invocations = self.routes.invocations = Invocations(INBOX, NOBODY, lambda: str(next(tokens)), limits)
        service = Service(self.store)
        self.limits = service.parameter_limits
        for number, handler in enumerate(store_handlers(service, self.limits).values(), GET):
            self.routes.add(number, handler)
        self.routes.add(PIECES, PARAMS)
        self.connect(info(MIB) if greeting is None else greeting)

    def connect(self, greeting: bytes) -> None:
        """A new connection; the greeting is not noted as passed on."""
        self.socket = Socket(self._high_water_bytes)
        self.reader = Reader(self._loop)
        self.protocol = Counted(self.reader, self.routes, self._loop)
        self.socket.protocol = self.protocol
        self.protocol.connection_made(self.socket)  # type: ignore[arg-type] # what is used of it
        if greeting:
            self.protocol.data_received(greeting)
            self.reader.pieces.clear()
            self.protocol.parsed.clear()

    def read(self, *pieces: bytes) -> list[Send]:
        """What is sent for what is read."""
        for piece in pieces:
            self.protocol.data_received(piece)
        return publications(self.socket.take())

    @property
    def passed(self) -> bytes:
        """What nats-py was given."""
        return b"".join(self.reader.pieces)

    def get(self, key: bytes) -> bytes | None:
        return self.store.bucket(b"b").get(key)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is asked for its time alone."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture
def direct(loop: asyncio.AbstractEventLoop) -> Direct:
    return Direct(loop)


def info(max_payload: object) -> bytes:
    return b"INFO %b \r\n" % json.dumps({"server_id": "N", "headers": True, "max_payload": max_payload}).encode()


def msg(subscription: int, payload: bytes, reply: bytes = b"r", subject: bytes = b"f") -> bytes:
    """A frame without headers."""
    to = b"%b %d %b" % (subject, subscription, reply + b" " if reply else b"")
    return b"MSG %b%d\r\n%b\r\n" % (to, len(payload), payload)


def hmsg(subscription: int, payload: bytes, reply: bytes = b"r", headers: bytes = HEADERS) -> bytes:
    """A frame with headers."""
    to = b"f %d %b" % (subscription, reply + b" " if reply else b"")
    return b"HMSG %b%d %d\r\n%b%b\r\n" % (to, len(headers), len(headers) + len(payload), headers, payload)


def set_params(key: bytes, value: bytes) -> bytes:
    return encode_set(b"b", key, value)


def get_params(key: bytes) -> bytes:
    return encode_bucket_key(b"b", key)


def piece(token: str, payload: bytes) -> bytes:
    """The frame of a further piece of parameters."""
    return msg(PIECES, payload, b"", b"%b.%b.params" % (INBOX.encode(), token.encode()))


def answer(reply: str, *pieces: bytes, handshake: bool = True) -> list[Send]:
    """What is sent for an invocation whose parameters came whole."""
    handshakes = [Send(reply, b"", NOBODY)] if handshake else []
    return [*handshakes, *(Send(reply + ".results", piece) for piece in pieces), Send(reply + ".results", b"")]


def publications(stream: bytes) -> list[Send]:
    """The messages of a client's stream, which must be nothing but whole PUB frames."""
    sends = []
    at = 0
    while at < len(stream):
        line_end = stream.index(b"\r\n", at)
        command, subject, *reply, size = stream[at:line_end].decode().split(" ")
        start, at = line_end + 2, line_end + 2 + int(size)
        assert command == "PUB"
        assert stream[at : at + 2] == b"\r\n"
        sends.append(Send(subject, stream[start:at], *reply))
        at += 2
    return sends


def cut(stream: bytes, cuts: Iterable[int]) -> list[bytes]:
    """The stream in pieces, none empty."""
    edges = sorted({0, *cuts, len(stream)})
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


# Frames, and where a read may end.

#: Each frame or line of a stream, and whether nats-py gets it.
STREAM: list[tuple[bytes, bool]] = [
    (info(MIB), True),
    (msg(SET, set_params(b"k", b"first"), b"_INBOX.c.1"), False),
    (b"PING\r\n", True),
    (hmsg(GET, get_params(b"k"), b"_INBOX.c.2"), False),
    (hmsg(GET, get_params(b"k"), b"_INBOX.c.3"), False),
    (msg(OTHERS, b"\r\nMSG f 1 r 5\r\n", b""), True),
    (b"-ERR 'Permissions Violation for Subscription to \"MSG\"'\r\n", True),
    (hmsg(OTHERS, b"HMSG\r\n", headers=b"NATS/1.0 503\r\n\r\n"), True),
    (msg(OTHERS, b""), True),
    (b"+OK\r\n", True),
    (hmsg(SET, set_params(b"k", b"\r\nPING\r\n"), b"_INBOX.c.4"), False),
    (msg(SET, set_params(b"cut", b"abc")[:-2], b"_INBOX.c.5"), False),
    (piece("0", b"bc"), False),
    (info(MIB), True),
    (piece("stray", b"x"), False),
    (msg(GET, get_params(b"k"), b""), False),  # nobody to answer to
    (b"PONG\r\n", True),
    (msg(GET, get_params(b"k"), b"_INBOX.c.6"), False),
]
ANSWERS = [
    *answer("_INBOX.c.1", UNIT),
    *answer("_INBOX.c.2", encode_get_result(b"first")),
    *answer("_INBOX.c.3", encode_get_result(b"first")),
    *answer("_INBOX.c.4", UNIT),
    Send("_INBOX.c.5", b"", f"{INBOX}.0"),
    *answer("_INBOX.c.5", UNIT, handshake=False),
    *answer("_INBOX.c.6", encode_get_result(b"\r\nPING\r\n")),
]
WHOLE = b"".join(frame for frame, _ in STREAM)
PASSED = [frame for frame, is_passed in STREAM if is_passed]


def check_stream(loop: asyncio.AbstractEventLoop, pieces: list[bytes]) -> None:
    direct = Direct(loop, greeting=b"")
    assert direct.read(*pieces) == ANSWERS
    assert direct.passed == b"".join(PASSED)
    edges = set(itertools.accumulate(map(len, PASSED)))
    assert set(itertools.accumulate(map(len, direct.reader.pieces))) <= edges, "nats-py got a part of a frame"
    assert direct.get(b"cut") == b"abc"
    counts = direct.invocations.counts
    assert (counts.answered, counts.without_reply, counts.stray_pieces) == (6, 1, 1)
    assert counts.received_bytes == len(WHOLE)
    assert counts.sent_bytes == sum(
        len(f"PUB {send.subject} {send.reply + ' ' if send.reply else ''}{len(send.payload)}\r\n\r\n")
        + len(send.payload)
        for send in ANSWERS
    )
    assert direct.routes.violations == 0


def test_a_stream_in_one_read(loop: asyncio.AbstractEventLoop) -> None:
    check_stream(loop, [WHOLE])


def test_a_stream_cut_at_every_byte(loop: asyncio.AbstractEventLoop) -> None:
    for at in range(1, len(WHOLE)):
        check_stream(loop, cut(WHOLE, [at]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_a_stream_in_pieces_of_one_size(loop: asyncio.AbstractEventLoop, size: int) -> None:
    check_stream(loop, cut(WHOLE, range(0, len(WHOLE), size)))


@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=12))
def test_a_stream_cut_anywhere(loop: asyncio.AbstractEventLoop, cuts: list[int]) -> None:
    check_stream(loop, cut(WHOLE, cuts))


def test_the_answers_of_a_read_are_one_write(direct: Direct) -> None:
    frames = b"".join(hmsg(GET, get_params(b"k"), b"r%d" % number) for number in range(64))
    direct.protocol.data_received(frames)
    assert len(direct.socket.buffer) == 1
    assert direct.read() == [send for number in range(64) for send in answer(f"r{number}", b"\x00\x00")]
    assert direct.reader.pieces == []


def test_what_is_no_nats_server_is_left_to_nats_py(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, greeting=b"")
    pieces = [b"HTTP/1.1 400", b" Bad Request\r\n", b"MSG f 1 r 2\r\n"]
    assert direct.read(*pieces) == []
    assert direct.reader.pieces == pieces
    assert direct.routes.violations == 0


def test_a_subscription_is_answered_as_long_as_it_is_routed(direct: Direct) -> None:
    frame = msg(GET, get_params(b"k"))
    direct.routes.remove(GET)
    direct.routes.remove(PIECES)
    assert direct.read(frame, piece("0", b"")) == []
    assert direct.passed == frame + piece("0", b"")
    direct.routes.add(GET, direct.routes.handlers[b"%d" % EXISTS])
    assert direct.read(frame) == answer("r", b"\x00\x00")
    direct.routes.clear()
    assert direct.read(frame) == []
    assert (direct.routes.handlers, direct.routes.params) == ({}, set())


def test_a_batch_is_timed(direct: Direct) -> None:
    took: list[float] = []
    direct.routes.on_batch = took.append
    frame = msg(GET, get_params(b"k"))
    direct.read(frame + frame, frame[:9], frame[9:])
    assert len(took) == 3
    assert all(0 < seconds < 60 for seconds in took)


# One caller's frame beside another's.


@pytest.mark.parametrize("size", range(len(set_params(b"k", b"v" * 40))))
def test_cut_parameters_end_with_their_frame(direct: Direct, size: int) -> None:
    """The length of the value, of the key or of the bucket passes the end of the frame, behind which another caller's bytes are."""
    whole = set_params(b"k", b"v" * 40)
    other = set_params(b"secret", b"s" * 100)
    batch = msg(SET, whole[:size], b"cut") + msg(SET, other, b"other") + hmsg(GET, get_params(b"secret"), b"last")
    assert direct.read(batch) == [
        Send("cut", b"", f"{INBOX}.0"),
        *answer("other", UNIT),
        *answer("last", encode_get_result(b"s" * 100)),
    ]
    assert (direct.invocations.half_open, direct.invocations.half_open_bytes) == (1, size)
    assert direct.get(b"k") is None
    assert direct.read(piece("0", whole[size:])) == answer("cut", UNIT, handshake=False)
    assert direct.get(b"k") == b"v" * 40
    assert direct.invocations.half_open == 0


def test_what_follows_whole_parameters_is_not_read(direct: Direct) -> None:
    assert direct.read(msg(SET, set_params(b"k", b"v") + b"more", b"a") + msg(GET, get_params(b"k"), b"b")) == [
        *answer("a", UNIT),
        *answer("b", encode_get_result(b"v")),
    ]


def test_parameters_in_many_pieces_are_decoded_when_they_may_be_whole(direct: Direct) -> None:
    whole = set_params(b"k", b"v" * 5000)
    attempts = 0
    handler = direct.routes.handlers[b"%d" % SET]

    def counted(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        nonlocal attempts
        attempts += 1
        return handler(caller, buffer, start, end)

    direct.routes.add(SET, counted)
    pieces = cut(whole, range(100, len(whole), 100))
    # Other frames before it: what is needed is counted from the start of its own parameters, not of the read.
    direct.read(msg(GET, get_params(b"k")) * 50 + msg(SET, pieces[0], b"cut"))
    assert direct.read(*(piece("0", part) for part in pieces[1:])) == answer("cut", UNIT, handshake=False)
    assert attempts == 2
    assert direct.get(b"k") == b"v" * 5000


def test_a_handler_that_raises_ends_its_invocation_alone(direct: Direct) -> None:
    error = RuntimeError("the disk is on fire")

    def failing(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        raise error

    direct.routes.add(9, failing)
    batch = (
        msg(SET, set_params(b"k", b"v"), b"1") + hmsg(9, b"x", b"2") + b"PING\r\n" + msg(GET, get_params(b"k"), b"3")
    )
    expected = [*answer("1", UNIT), *answer("2"), *answer("3", encode_get_result(b"v"))]
    assert direct.read(batch) == expected
    assert direct.read(batch) == expected
    counts = direct.invocations.counts
    assert (counts.answered, counts.failed, counts.damaged) == (4, 2, 0)
    assert [step.failure and step.failure.error for step in direct.steps] == [error, error]
    assert not direct.socket.aborted


def test_damaged_parameters_are_ended_without_a_result(direct: Direct) -> None:
    assert direct.read(msg(LIST_KEYS, b"\x01b\x07", b"1") + msg(GET, get_params(b"k"), b"2")) == [
        *answer("1"),
        *answer("2", b"\x00\x00"),
    ]
    assert direct.invocations.counts.damaged == 1
    assert "found 7 as the tag of an option, allowed 0 to 1" in str(direct.steps[0].failure)


def test_an_answer_that_must_be_waited_for_is_handed_over(direct: Direct) -> None:
    async def wait() -> bytes:
        return b"late"

    waited = wait()
    direct.routes.add(9, lambda caller, buffer, start, end: waited)
    assert direct.read(hmsg(9, b"", b"r")) == [Send("r", b"", NOBODY)]
    (step,) = direct.steps
    assert step.waiting is not None
    assert (step.waiting.reply, step.waiting.traceparent, step.waiting.answer) == ("r", None, waited)
    assert direct.invocations.waiting == 1
    waited.close()


# Limits of the server.


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 9999, 10_000, 10_001, 20_000, 20_001, 35_000])
def test_results_are_cut_at_max_payload(direct: Direct, size: int) -> None:
    result = bytes(number % 251 for number in range(size))
    direct.routes.add(9, lambda caller, buffer, start, end: result)
    frame = msg(9, b"x")
    assert direct.read(frame) == answer("r", *([result] if result else []))
    assert direct.read(info(10_000) + frame) == answer(
        "r", *(result[at : at + 10_000] for at in range(0, size, 10_000))
    )
    assert direct.read(info(MIB), frame) == answer("r", *([result] if result else []))
    assert direct.invocations.counts.answered == 3


@pytest.mark.parametrize(
    "line", [b"INFO nonsense\r\n", b"INFO {}\r\n", info("much"), info(None), b"INFO []\r\n", b"INFO\r\n"]
)
def test_an_info_that_is_none_is_left_to_nats_py(direct: Direct, line: bytes) -> None:
    direct.read(info(10))
    direct.routes.add(9, lambda caller, buffer, start, end: b"0123456789ab")
    assert direct.read(line + msg(9, b"")) == answer("r", b"0123456789", b"ab")
    assert direct.passed == info(10) + line


@pytest.mark.parametrize(
    "line",
    [
        b"MSG f 1 r %d" % (MIB + LINE_BYTES_MAX + 1),
        b"MSG f 77 r 4294967296",
        b"MSG f 1 r " + b"9" * 5000,
        b"MSG f 1 r -1",
        b"MSG f 1 r five",
        b"MSG f 1 r ",
        b"MSG f 1 r 1.5",
        b"MSG",
        b"MSG 5",
        b"MSG f 5",
        b"MSG f 1 r more 5",
        b"HMSG f 1 r 12 11",
        b"HMSG f 1 r -1 11",
        b"HMSG f 1 r -2 11",
        b"HMSG f 1 r -12 11",
        b"HMSG f 1 r x 11",
        b"HMSG f 1 r 12 -1",
        b"HMSG f 1 r 4294967296 4294967297",
        b"HMSG",
        b"HMSG f",
        b"HMSG f 1",
        b"HMSG f 1 12",
        b"HMSG f 1 r more 1 12",
        b"MSG \xff",
    ],
)
def test_what_is_no_frame_aborts_the_connection(direct: Direct, line: bytes) -> None:
    assert direct.read(line + b"\r\n" + bytes(64)) == []
    assert direct.socket.aborted
    assert direct.routes.violations == 1
    assert direct.passed == b""
    assert direct.invocations.half_open == 0


def test_the_largest_frame_is_taken(direct: Direct) -> None:
    payload = bytes(MIB)
    assert direct.read(msg(9, b"") + msg(OTHERS, payload) + hmsg(OTHERS, payload)) == []
    assert direct.passed == msg(9, b"") + msg(OTHERS, payload) + hmsg(OTHERS, payload)
    assert not direct.socket.aborted


@pytest.mark.parametrize("start", [b"", b"MSG f 1 r ", b"INFO "])
def test_a_line_without_end_aborts_the_connection(direct: Direct, start: bytes) -> None:
    direct.protocol.data_received(start + b"x" * (LINE_BYTES_MAX - len(start)))
    assert direct.routes.violations == 0
    direct.protocol.data_received(b"x")
    assert direct.socket.aborted
    assert direct.routes.violations == 1
    assert direct.passed == b""


def test_a_longer_frame_is_taken_when_the_server_says_so(direct: Direct) -> None:
    frame = msg(OTHERS, bytes(3 * MIB))
    direct.read(info(3 * MIB), frame)
    assert direct.passed == info(3 * MIB) + frame
    direct.read(info(MIB), frame)
    assert direct.socket.aborted


def test_a_subject_that_is_no_text_costs_its_invocation_alone(direct: Direct) -> None:
    """NATS takes any bytes but white space as a subject."""
    stray = msg(PIECES, b"x", b"", INBOX.encode() + b".\xff.params")
    batch = msg(SET, set_params(b"k", b"v")[:-1], b"\xff") + stray + msg(GET, get_params(b"k"), b"2")
    sends = direct.read(batch)
    assert sends[-3:] == answer("2", b"\x00\x00")
    assert direct.invocations.counts.stray_pieces == 1
    assert not direct.socket.aborted
    for send in direct.invocations.expire(float("inf")).sends:
        send.subject.encode()  # what nats-py does with it


# Pieces of parameters.


def test_pieces_of_parameters(direct: Direct) -> None:
    whole = set_params(b"k", b"value")
    handshake = [Send("r", b"", f"{INBOX}.0")]
    assert direct.read(msg(SET, whole[:1])) == handshake
    assert direct.read(piece("0", whole[1:3]), piece("0", whole[3:-1])) == []
    assert direct.invocations.half_open_bytes == len(whole) - 1
    assert direct.read(piece("0", whole[-1:])) == answer("r", UNIT, handshake=False)
    assert direct.read(piece("0", b"")) == []  # the closing message comes always
    assert direct.invocations.counts.stray_pieces == 0
    assert direct.get(b"k") == b"value"
    assert direct.read(piece("0", b"late"), piece("1", b"guessed")) == []
    assert direct.invocations.counts.stray_pieces == 2


def test_the_closing_message_ends_parameters_that_are_not_whole(direct: Direct) -> None:
    whole = set_params(b"k", b"value")
    direct.read(msg(SET, whole[:3]) + piece("0", whole[3:4]))
    assert direct.read(piece("0", b"")) == answer("r", handshake=False)
    assert direct.invocations.counts.damaged == 1
    assert f"found 4 bytes of parameters of at least {len(whole) - 5}" in str(direct.steps[-1].failure)
    assert direct.get(b"k") is None


def test_half_open_invocations_are_limited(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, InvocationLimits(half_open_max=2))
    cuts = [msg(SET, b"\x05", b"r%d" % number) for number in range(3)]
    assert direct.read(b"".join(cuts)) == [
        Send("r0", b"", f"{INBOX}.0"),
        Send("r1", b"", f"{INBOX}.1"),
        *answer("r2"),
    ]
    assert direct.invocations.counts.refused == 1


@pytest.mark.parametrize("frame", [msg(SET, set_params(b"k", b"v"), b""), hmsg(SET, set_params(b"k", b"v"), b"")])
def test_an_invocation_without_reply_is_not_carried_out(direct: Direct, frame: bytes) -> None:
    assert direct.read(frame + msg(GET, get_params(b"k"))) == answer("r", b"\x00\x00")
    assert direct.invocations.counts.without_reply == 1


# Output that does not leave.


def test_nothing_is_parsed_while_the_socket_is_above_its_high_water_mark(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, high_water_bytes=0)
    calls: list[int] = []
    result = bytes(OUTPUT_BYTES)

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        calls.append(buffer[start])
        return result

    direct.routes.add(9, handle)
    frames = [msg(9, bytes([number])) for number in range(8)]
    direct.protocol.data_received(b"".join(frames[:4]) + b"PING\r\n")
    assert (calls, direct.socket.reading) == ([0], False)
    for part in (*frames[4:6], frames[6][:5], frames[6][5:], frames[7]):  # the kernel's buffer may hold more
        direct.protocol.data_received(part)
    assert calls == [0]
    assert direct.passed == b""
    for number in range(1, 8):
        assert publications(direct.socket.take()) == answer("r", result)
        assert calls == list(range(number + 1))
        assert direct.passed == (b"PING\r\n" if number > 3 else b"")
    assert direct.socket.take()
    assert direct.socket.reading
    assert direct.invocations.counts.answered == 8


def test_half_a_frame_that_comes_while_blocked_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, high_water_bytes=0)
    frame = msg(GET, get_params(b"k"), b"2")
    direct.protocol.data_received(msg(GET, get_params(b"k"), b"1"))
    for part in cut(frame, range(1, len(frame) - 1, 3)):
        direct.protocol.data_received(part)
    assert publications(direct.socket.take()) == answer("1", b"\x00\x00")
    assert publications(direct.socket.take()) == answer("2", b"\x00\x00")
    assert direct.socket.take() == b""
    assert direct.socket.reading


@pytest.mark.parametrize(("size", "number"), [(128 * 1024, 2000), (MIB, 100), (5 * MIB, 20)])
def test_large_results_in_flight_are_bounded(loop: asyncio.AbstractEventLoop, size: int, number: int) -> None:
    direct = Direct(loop, high_water_bytes=MIB)
    value = bytes(size)
    direct.store.bucket(b"b").set(b"k", value)
    direct.protocol.data_received(hmsg(GET, get_params(b"k")) * number)
    result = encode_get_result(value)
    expected = answer("r", *(result[at : at + MIB] for at in range(0, len(result), MIB)))
    answered = 0
    while direct.socket.buffer:
        sends = publications(direct.socket.take())
        assert all(map(eq, sends, itertools.cycle(expected)))
        answered += len(sends)
    assert answered == number * len(expected)
    assert direct.socket.buffer_bytes_max < MIB + OUTPUT_BYTES + len(result) + 1024
    assert direct.socket.reading
    assert not direct.protocol._pieces


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6])
def test_reading_goes_on_when_both_want_it(length: int) -> None:
    changes = {"pause_reading": (0, True), "resume_reading": (0, False), "hold": (1, True), "release": (1, False)}
    for names in itertools.product(changes, repeat=length):
        socket = Socket()
        flow = ReadFlow(socket)
        wants = [False, False]
        for name in names:
            owner, pausing = changes[name]
            if name.endswith("_reading") and wants[owner] == pausing:
                continue  # a StreamReader never says so twice
            getattr(flow, name)()
            wants[owner] = pausing
            assert socket.reading is not any(wants), names


def test_a_full_reader_pauses_and_a_blocked_socket_holds(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, high_water_bytes=0)
    direct.protocol.data_received(msg(OTHERS, bytes(256 * 1024)))
    assert not direct.socket.reading  # for nats-py
    direct.protocol.data_received(msg(GET, get_params(b"k")))
    direct.socket.take()
    assert not direct.socket.reading  # the socket's output has left, nats-py's reader is full all the same
    loop.run_until_complete(direct.reader.read(MIB))
    assert direct.socket.reading


# Callers.


def sent_caller(direct: Direct, headers: bytes | None) -> Caller:
    """The caller that a handler is told of."""
    callers: list[Caller] = []

    def note(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        assert buffer[start:end] == b"params"
        callers.append(caller)
        return UNIT

    direct.routes.add(9, note)
    frame = msg(9, b"params") if headers is None else hmsg(9, b"params", headers=headers)
    assert direct.read(frame) == answer("r", UNIT)
    (caller,) = callers
    return caller


def test_callers_are_kept_by_their_header_block(direct: Direct) -> None:
    assert sent_caller(direct, None) is ANONYMOUS
    assert direct.routes.callers.callers == {}
    first = sent_caller(direct, HEADERS)
    assert first == CALLER
    assert sent_caller(direct, HEADERS) is first
    assert direct.routes.callers.callers == {HEADERS: first}


@pytest.mark.parametrize("at", [len(b"NATS/1.0\r\n"), HEADERS.index(b"source-id"), len(HEADERS) - 2])
def test_of_a_traced_block_the_rest_is_kept(direct: Direct, at: int) -> None:
    """The trace is another in every call, the rest repeats."""
    for number in range(3):
        block = HEADERS[:at] + b"traceparent: 00-trace-%d\r\n" % number + HEADERS[at:]
        assert sent_caller(direct, block) == CALLER
        assert traceparent_of(block) == f"00-trace-{number}"
    assert direct.routes.callers.callers == {HEADERS: CALLER}


def test_the_last_of_many_traces_counts(direct: Direct) -> None:
    """However many there are: a caller writes the block."""
    block = HEADERS[:-2] + b"".join(b"traceparent: %d\r\n" % number for number in range(5000)) + b"\r\n"
    assert sent_caller(direct, block) == CALLER
    assert traceparent_of(block) == "4999"
    assert direct.routes.callers.callers == {}


# Frames that are like the one before are not taken apart: it must not show.

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BLOCKS = (
    HEADERS,
    b"NATS/1.0\r\nlink-name: default\r\nsource-id: componenT\r\n\r\n",  # as long, another caller
    b"NATS/1.0\r\nsource-id: component\r\nlink-name: default\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE + b"\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE[::-1] + b"\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE + b"\r\ntracestate: \r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE[:-21] + b"\r\nsource-id: somebody\r\n\r\n",  # a header where the trace was
    HEADERS[:-2] + b"traceparent: " + TRACE[:-2] + b" \t\r\n\r\n",
    HEADERS[:-2] + b"traceparent:" + TRACE + b" \r\n\r\n",
    HEADERS[:-2] + b"traceparent: \r\n\r\n",
    HEADERS[:-2] + b"traceparent: 1\r\ntraceparent: 2\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE[:-1] + b"\xff\r\n\r\n",
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:],
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:].swapcase(),
    b"NATS/1.0\r\ntraceparent: " + TRACE + HEADERS[8:].replace(b"component", b"componenT"),
    b"NATS/1.0\r\n\r\n",
    HEADERS[:-2] + b"traceparent: " + TRACE,  # without an end
    HEADERS[:-2] + b"traceparent: " + TRACE[:9] + b"\r" + TRACE[10:] + b"\r\n\r\n",
)
PAYLOADS = (
    b"",
    b"ab",
    b"cd",
    b"ae",
    b"abc",
    b"a 60 85\r\nNATS/1.0\r\n\r\n",
    b" 2\r\nab",
    HEADERS,
    b"\r\n",
    b"a\r\n",
    b"x 3\r\na\r\n",
    b"PING\r\n",
)
CUT, SILENT, LONG, LATE = b"a?", b"a!", b"a+", b"a-"
REPLIES = (b"", b"r", b"s", b"_INBOX.x.1", b"_INBOX.x.2")


def repeated(values: Sequence[T]) -> st.SearchStrategy[list[T]]:
    """What frames that follow each other have of something: mostly the same."""
    return st.one_of(
        st.sampled_from(values).map(lambda value: [value]),
        st.lists(st.sampled_from(values), min_size=1, max_size=8),
    )


#: Frames of a subscription, so many: their header blocks, payloads and reply subjects, which repeat.
FRAMES = st.tuples(
    st.sampled_from([20, 21, OTHERS]),
    repeated([None, *BLOCKS]),
    repeated([*PAYLOADS, CUT, SILENT, LONG, LATE]),
    repeated(REPLIES),
    st.integers(1, 16),
)


class Noted:
    """Notes what its handlers are told: subscription, caller, parameters. That of subscription 21 fails, and its trace is told."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.direct = Direct(loop)
        self.calls: list[tuple[int, Caller, bytes]] = []
        self.narrowed = 0
        for number in (20, 21):
            self.direct.routes.add(number, self.handler(number))

    def handler(self, number: int) -> Handler:
        def note(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
            parameters = buffer[start:end]
            self.calls.append((number, caller, parameters))
            if number == 21:
                raise RuntimeError
            if parameters == CUT:
                raise NeedMoreBytes(3)
            if parameters == LATE:
                return Late()
            return {SILENT: b"", LONG: bytes(5000)}.get(parameters, UNIT)

        def narrowing(parameters: bytes) -> Narrowed:
            def note_narrowed(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
                assert buffer.startswith(parameters[:1], start)
                assert end - start >= len(parameters)
                self.narrowed += 1
                return note(caller, buffer, start, end)

            return Narrowed(parameters[:1], note_narrowed)

        return narrowable(note, narrowing)

    @property
    def traces(self) -> list[str | None]:
        return [step.failure.traceparent for step in self.direct.steps if step.failure is not None]


class Late:
    """An answer that must be waited for; nobody does."""

    def __await__(self) -> Generator[None, None, bytes]:
        yield from ()
        return UNIT


@settings(max_examples=600)
@given(st.lists(FRAMES, max_size=4), st.lists(st.integers(1, 2000), max_size=6))
@example([(20, [None], [b"ab", b" 2\r\nab"], [b"r", b""], 2)], [])  # the second has no reply subject, and looks as if
@example([(20, [None], [b"ab"] * 8 + [b"x 2\r\nab"], [b"rrrr"] * 8 + [b""], 9)], [])  # so does the ninth, in a run
@example(
    [(20, [None], [b"a\r\n", b"a\r\n", b"x 3\r\na\r\n"], [b"r", b"r", b""], 3)], []
)  # its parameters have a line's end too
@example([(20, [BLOCKS[-1]], [b"ab"], [b"r"], 9)], [])
@example([(20, [None], [b"ab"], [b"r"], 8), (21, [None], [b"ab"], [b"r"], 2)], [])
@example([(20, [HEADERS], [b"ab"] * 6 + [b"cd"] * 6, [b"r"], 12)], [])  # begin otherwise
@example([(20, [HEADERS], [b"ab", b"cd"], [b"r"], 12)], [])
@example([(20, [BLOCKS[3]] * 6 + [BLOCKS[6]] + [BLOCKS[3]] * 6, [b"ab"], [b"r"], 13)], [])
def test_frames_that_are_alike_are_answered_as_if_each_were_the_first(
    loop: asyncio.AbstractEventLoop,
    frames: list[tuple[int, list[bytes | None], list[bytes], list[bytes], int]],
    cuts: list[int],
) -> None:
    wires = []
    for number, blocks, payloads, replies, count in frames:
        for _, block, payload, reply in zip(
            range(count), itertools.cycle(blocks), itertools.cycle(payloads), itertools.cycle(replies), strict=False
        ):
            wires.append(msg(number, payload, reply) if block is None else hmsg(number, payload, reply, headers=block))
    together, alone = Noted(loop), Noted(loop)
    stream = b"".join(wires)
    sent, passed = [], b""
    at = 0
    for size in [*cuts, len(stream)]:
        sent += together.direct.read(stream[at : at + size])
        at += size
    sent_alone = []
    for wire in wires:
        alone.direct.connect(info(MIB))
        alone.direct.routes.forget_shapes()
        sent_alone += alone.direct.read(wire)
        passed += alone.direct.passed
    assert together.calls == alone.calls
    assert together.traces == alone.traces
    assert sent == sent_alone
    assert together.direct.passed == passed
    assert together.direct.invocations.counts == replace(
        alone.direct.invocations.counts, received_bytes=together.direct.invocations.counts.received_bytes
    )
    assert not alone.narrowed


@pytest.mark.parametrize("stream", [b"\n", b"\nPING\r\n", b"PING\r\n\nPONG\r\n", b"\n\n \n\n\r\n", b"\n \n\n\r\n\n"])
def test_a_line_feed_is_no_shape(direct: Direct, stream: bytes) -> None:
    """A server that is none may send it at the beginning of a line."""
    assert direct.read(stream) == []
    whole, _, _ = stream.rpartition(b"\r\n")
    assert direct.passed == (whole + b"\r\n" if whole else b"")


def test_shapes_are_forgotten_at_an_info_in_the_midst_of_a_read(loop: asyncio.AbstractEventLoop) -> None:
    noted = Noted(loop)
    frame = hmsg(20, bytes(3 * MIB), b"r")
    noted.direct.read(info(4 * MIB))
    noted.direct.read(frame * 3 + info(1024) + frame)
    assert len(noted.calls) == 3
    assert noted.direct.socket.aborted


def test_a_run_is_answered_by_a_narrowed_handler(loop: asyncio.AbstractEventLoop) -> None:
    """Two frames are taken apart, then the head of the parameters is compared with the headers."""
    noted = Noted(loop)
    frames = [hmsg(20, b"a%d" % digit, b"r") for digit in range(10)]
    assert noted.direct.read(b"".join(frames)) == [send for _ in frames for send in answer("r", UNIT)]
    assert noted.narrowed == 8
    assert [parameters for _, _, parameters in noted.calls] == [b"a%d" % digit for digit in range(10)]


def test_parameters_that_begin_otherwise_make_their_shape_one_of_all(loop: asyncio.AbstractEventLoop) -> None:
    noted = Noted(loop)
    noted.direct.read(hmsg(20, b"ab", b"r") * 3 + hmsg(20, b"cd", b"r") + hmsg(20, b"ab", b"r") * 3)
    assert noted.narrowed == 1
    noted.direct.read(hmsg(20, b"abc", b"r") * 3)  # of another size
    assert noted.narrowed == 2


def test_shapes_are_found_again(loop: asyncio.AbstractEventLoop) -> None:
    """Calls that are taken apart since another kind came between do not make their shape anew, nor look as if they began otherwise."""
    noted = Noted(loop)
    for number in (22, 23):
        noted.direct.routes.add(number, noted.handler(number))
    kinds = [hmsg(number, b"ab", b"r", headers=block) for number in (20, 22, 23) for block in BLOCKS[:2]]
    for _ in range(4):
        noted.direct.read(b"".join(frame * 6 for frame in kinds))
    assert noted.narrowed == 4 * len(kinds) * 4


def test_a_line_with_a_word_too_many_in_a_run_is_no_frame(direct: Direct) -> None:
    frames = hmsg(GET, get_params(b"k"), b"rrr") * 8
    direct.read(frames)
    assert not direct.socket.aborted
    direct.read(frames + hmsg(GET, get_params(b"k"), b"r r"))
    assert direct.socket.aborted


def bucket_get(bucket: bytes, key: bytes) -> bytes:
    return hmsg(GET, encode_bucket_key(bucket, key), b"r")


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 20])
def test_gets_that_are_alike(direct: Direct, number: int) -> None:
    """Keys of other alphabets, and other buckets with names as long, among those that are alike."""
    for bucket, key in itertools.product((b"b", b"c"), (b"key", b"kex", "kö".encode())):
        direct.store.bucket(bucket).set(key, bucket + key)
    wires, expected = [], []
    for bucket, key in [(b"b", b"key"), (b"b", b"kex"), (b"b", "kö".encode()), (b"b", b"nix"), (b"c", b"key")]:
        value = direct.store.bucket(bucket).get(key)
        wires += [bucket_get(bucket, key)] * number
        expected += answer("r", encode_get_result(value)) * number
    assert direct.read(b"".join(wires * 2)) == expected * 2


def test_a_key_that_is_no_text_among_gets_that_are_alike(direct: Direct) -> None:
    direct.store.bucket(b"b").set(b"key", b"value")
    good, bad = bucket_get(b"b", b"key"), bucket_get(b"b", b"k\xff\xff")
    right = answer("r", encode_get_result(b"value"))
    assert direct.read(good * 6 + bad + good * 6) == right * 6 + answer("r") + right * 6
    assert direct.invocations.counts.damaged == 1


def test_a_limit_that_changes_counts_for_calls_that_are_alike(direct: Direct) -> None:
    direct.store.bucket(b"b").set(b"key", b"value")
    gets, sets = bucket_get(b"b", b"key") * 6, hmsg(SET, set_params(b"key", b"value"), b"r") * 6
    assert direct.read(gets + sets) == answer("r", encode_get_result(b"value")) * 6 + answer("r", UNIT) * 6
    for key_bytes, bucket_bytes, what in (
        (2, 1, b"key in bytes: found 3, allowed 2"),
        (3, 0, b"bucket name in bytes: found 1, allowed 0"),
    ):
        direct.limits.key_bytes_max, direct.limits.bucket_bytes_max = key_bytes, bucket_bytes
        results = [send.payload for send in direct.read(gets + sets) if send.payload]
        assert len(results) == 12
        assert all(result.endswith(what) for result in results)


def test_a_value_that_goes_on_among_sets_that_are_alike(direct: Direct) -> None:
    """As large as the others, but its value claims more: the rest comes as a piece."""
    sets = [hmsg(SET, set_params(b"k%d" % digit, b"v%d" % digit), b"r") for digit in range(8)]
    cut_params = set_params(b"k9", b"abcd")[:-2]
    assert len(cut_params) == len(set_params(b"k0", b"v0"))
    sent = direct.read(b"".join((*sets[:6], hmsg(SET, cut_params, b"r9"), *sets[6:])))
    assert sent == answer("r", UNIT) * 6 + [Send("r9", b"", f"{INBOX}.0")] + answer("r", UNIT) * 2
    assert direct.read(piece("0", b"cd")) == answer("r9", UNIT, handshake=False)
    assert direct.get(b"k9") == b"abcd"
    assert direct.get(b"k7") == b"v7"


def test_shapes_are_bounded(direct: Direct) -> None:
    direct.store.bucket(b"b").set(b"k", b"v")
    for size in range(1, 2 * SHAPES_MAX):
        assert len(direct.read(bucket_get(b"b", b"k" * size) * 3)) == 3 * len(answer("r", UNIT))
        assert len(direct.routes._shapes) <= SHAPES_MAX
    assert direct.routes._shapes


def test_the_bytes_of_shapes_are_bounded(direct: Direct) -> None:
    """A bucket's name may be allowed to be long; a shape that has it takes no more than what frames of others take."""
    direct.limits.bucket_bytes_max = MIB
    for bucket_bytes, narrowed in ((1000, True), (100_000, False)):
        frame = bucket_get(b"b" * bucket_bytes, b"k")
        assert direct.read(frame * 6) == answer("r", encode_get_result(None)) * 6
        shape = direct.routes.shape
        assert shape.payload_bytes > bucket_bytes
        assert (len(shape.suffix) > bucket_bytes) == narrowed


def test_a_route_that_changes_is_not_remembered(direct: Direct, loop: asyncio.AbstractEventLoop) -> None:
    first, second = Noted(loop), Noted(loop)
    for noted in (first, second):
        direct.routes.add(20, noted.handler(20))
        direct.read(hmsg(20, b"ab", b"r") * 3)
        assert len(noted.calls) == 3
    direct.routes.remove(20)
    frame = hmsg(20, b"ab", b"r")
    assert direct.read(frame) == []
    assert direct.passed == frame
    assert len(second.calls) == 3


@pytest.mark.parametrize("max_payload", ["0", "-1", "1e999", "null", "[]", '"many"', "[" * 100_000])
def test_a_max_payload_that_is_none_is_not_taken(direct: Direct, max_payload: str) -> None:
    direct.read(b'INFO {"max_payload": ' + max_payload.encode() + b"}\r\n")
    assert direct.read(msg(SET, set_params(b"k", b"v"), b"r")) == answer("r", UNIT)


def test_a_line_that_is_no_text_does_not_reach_nats_py(direct: Direct) -> None:
    """Its reading would end for good; the frames around it are whole, and go on."""
    before, after = msg(OTHERS, b"before", b"r"), msg(OTHERS, b"after", b"r")
    direct.read(before + msg(OTHERS, b"between", b"\xff") + after)
    assert direct.passed == before + after


def test_callers_are_forgotten_when_there_are_too_many(direct: Direct) -> None:
    callers = direct.routes.callers
    for number in range(CALLERS_MAX):
        callers.find(b"NATS/1.0\r\nsource-id: %d\r\n\r\n" % number)
    assert len(callers.callers) == CALLERS_MAX
    assert sent_caller(direct, HEADERS) == CALLER
    assert callers.callers == {HEADERS: CALLER}


def nats_py_caller(block: bytes) -> tuple[Caller, str | None]:
    """Caller and trace as the plain path finds them: nats-py reads the headers."""
    errors: list[Exception] = []

    async def parse() -> Any:
        client = Client()

        async def note(error: Exception) -> None:
            errors.append(error)

        client._error_cb = note
        return await client._process_headers(block)

    headers = asyncio.run(parse())
    assert errors == []
    return caller_of(headers), (headers or {}).get("traceparent")


NAMES = st.sampled_from(["source-id", "link-name", "traceparent", "other", "x-source-id", "link-name-2"])
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=":"), min_size=1, max_size=12)


@given(
    lines=st.lists(
        st.tuples(NAMES, st.sampled_from(["", " ", "  "]), WORDS, st.sampled_from(["", " "])), min_size=1, max_size=6
    )
)
def test_headers_are_read_as_nats_py_reads_them(lines: list[tuple[str, str, str, str]]) -> None:
    block = "".join(f"{name}:{before}{value}{after}\r\n" for name, before, value, after in lines)
    headers = f"NATS/1.0\r\n{block}\r\n".encode()
    assert (parse_caller(headers), traceparent_of(headers)) == nats_py_caller(headers)


@pytest.mark.parametrize(
    ("block", "caller"),
    [
        (b"NATS/1.0\r\n\r\n", ANONYMOUS),
        (b"", ANONYMOUS),
        (b"NATS/1.0 503\r\n\r\n", ANONYMOUS),
        (b"NATS/1.0\r\nsource-id:a:b\r\n\r\n", Caller("a:b", None)),
        (b"NATS/1.0\r\nsource-id: \xd0\xb6\r\nlink-name: \xe2\x82\xac\r\n\r\n", Caller("\u0436", "\u20ac")),
        (b"NATS/1.0\r\nother: source-id: a\r\n\r\n", ANONYMOUS),
        (b"NATS/1.0\r\nsource-id: first\r\nsource-id: last\r\n\r\n", Caller("last", None)),
    ],
)
def test_header_blocks(block: bytes, caller: Caller) -> None:
    assert parse_caller(block) == caller
    if block and block.isascii():  # nats-py 2.10 takes no others
        assert nats_py_caller(block) == (caller, None)


def test_a_header_that_is_not_utf_8_ends_nothing(direct: Direct) -> None:
    assert sent_caller(direct, b"NATS/1.0\r\nsource-id: a\xff\r\nlink-name: l\r\n\r\n") == Caller("a\ufffd", "l")


def test_a_header_block_without_end_is_read_up_to_its_own(direct: Direct) -> None:
    """The size of the headers ends within a line: nothing of the parameters is taken for a header."""
    caller = sent_caller(direct, b"NATS/1.0\r\nsource-id: ab")
    assert "params" not in str(caller)


# Connections that come and go.


@pytest.mark.parametrize("left", range(1, len(msg(GET, get_params(b"k")))))
def test_a_new_connection_starts_clean(direct: Direct, left: int) -> None:
    frame = msg(GET, get_params(b"k"))
    whole = set_params(b"k", b"v")
    assert direct.read(msg(SET, whole[:-1], b"cut")) == [Send("cut", b"", f"{INBOX}.0")]
    assert direct.read(frame[:left]) == []
    lost, socket = direct.protocol, direct.socket
    lost.connection_lost(None)
    direct.connect(info(MIB))
    assert direct.read(frame) == answer("r", b"\x00\x00")
    # An invocation outlives the connection that it began on: its client may be there, on another server.
    assert direct.read(piece("0", whole[-1:])) == answer("cut", UNIT, handshake=False)
    assert (direct.passed, socket.take()) == (b"", b"")
    assert direct.reader.at_eof() is False


def test_a_lost_connection_is_not_written_to(loop: asyncio.AbstractEventLoop) -> None:
    direct = Direct(loop, high_water_bytes=0)
    frame = msg(GET, get_params(b"k"))
    direct.protocol.data_received(frame)
    direct.protocol.data_received(frame)
    direct.protocol.connection_lost(ConnectionResetError("reset by peer"))
    direct.protocol.data_received(frame)
    assert publications(b"".join(direct.socket.buffer)) == answer("r", b"\x00\x00")
    assert isinstance(direct.reader.exception(), ConnectionResetError)


@pytest.mark.parametrize("subscription", [SET, OTHERS])
def test_large_frames_are_joined_once(direct: Direct, subscription: int) -> None:
    frame = msg(subscription, set_params(b"k", bytes(8 * MIB)))
    direct.read(info(16 * MIB))
    direct.protocol.parsed.clear()
    direct.read(*cut(frame, range(100, len(frame), 4096)))
    assert len(direct.protocol.parsed) == 2
    assert sum(direct.protocol.parsed) == 100 + len(frame)
    if subscription == SET:
        assert direct.get(b"k") == bytes(8 * MIB)
    else:
        assert direct.passed == info(16 * MIB) + frame
