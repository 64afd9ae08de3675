"""The direct path below nats-py: what its protocol answers, what it passes on, and what it holds."""

from __future__ import annotations

import asyncio
import itertools
from functools import partial
from itertools import pairwise

import pytest

from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.direct import protocol as protocol_module
from keyvalue_transport.nats.direct import window as window_module
from keyvalue_transport.nats.direct import writing_protocol
from keyvalue_transport.nats.direct.frames import LINE_BYTES_MAX
from keyvalue_transport.nats.direct.protocol import OUTPUT_BYTES, DirectProtocol
from keyvalue_transport.nats.direct.read_flow import PARTIAL_BYTES, SLICE_BYTES, TURN_S, ReadFlow
from keyvalue_transport.nats.direct.routes import DirectRoutes, Frames, InOrder
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.half_open import INVOCATION_BYTES
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Pending
from tests.transport.nats.direct.scene import (
    CALLER,
    EXISTS,
    GET,
    HEADERS,
    INBOX,
    MALFORMED_LINES,
    MIB,
    OTHERS,
    PIECES,
    SET,
    UNIT,
    Direct,
    NewDirect,
    Socket,
    answer,
    cut,
    get_params,
    hmsg,
    info,
    msg,
    piece,
    publications,
    set_params,
)

# Frames, and where a read may end.

#: Each frame or line of a stream, and True if nats-py gets it.
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
    (msg(GET, get_params(b"k"), b""), False),  # nobody to answer
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


def check_stream(new_direct: NewDirect, pieces: list[bytes]) -> None:
    direct = new_direct(greeting=b"")
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


def test_a_stream_may_be_cut_anywhere(new_direct: NewDirect) -> None:
    for size in (1, 2, 3, 5, 7, 64, len(WHOLE)):
        check_stream(new_direct, cut(WHOLE, range(0, len(WHOLE), size)))
    for at in range(1, len(WHOLE)):
        check_stream(new_direct, cut(WHOLE, [at]))


def test_the_answers_of_a_read_are_one_write(direct: Direct) -> None:
    frames = b"".join(hmsg(GET, get_params(b"k"), b"r%d" % number) for number in range(64))
    direct.protocol.data_received(frames)
    assert len(direct.socket.buffer) == 1
    assert direct.read() == [send for number in range(64) for send in answer(f"r{number}", b"\x00\x00")]
    assert direct.reader.pieces == []


def test_a_server_that_is_not_nats_is_left_to_nats_py(new_direct: NewDirect) -> None:
    direct = new_direct(greeting=b"")
    pieces = [b"HTTP/1.1 400", b" Bad Request\r\n", b"MSG f 1 r 2\r\n"]
    assert direct.read(*pieces) == []
    assert direct.reader.pieces == pieces
    assert direct.routes.violations == 0


def test_over_tls_the_info_that_came_in_clear_is_followed(new_direct: NewDirect) -> None:
    direct = new_direct(greeting=b"")
    direct.protocol.follow(info(1))
    assert direct.read(msg(GET, get_params(b"k"))) == answer("r", b"\x00", b"\x00")


def test_a_subscription_is_answered_as_long_as_it_is_routed(direct: Direct) -> None:
    """Learn the shape of its frames before its route is removed."""
    gets = msg(GET, get_params(b"k")) * 3
    found, there = answer("r", encode_get_result(b"v")) * 3, answer("r", b"\x00\x01") * 3
    assert direct.read(msg(SET, set_params(b"k", b"v"), b"s"), gets) == answer("s", UNIT) + found
    get, exists = direct.route(GET), direct.route(EXISTS)
    for handler, expected in ((exists, there), (get, found)):
        direct.routes.add(GET, handler)
        assert direct.read(gets) == expected
    direct.routes.remove(GET)
    direct.routes.remove(PIECES)
    assert direct.read(gets, piece("0", b"")) == []
    assert direct.passed == gets + piece("0", b"")
    direct.routes.add(GET, get)
    assert direct.read(gets) == found
    direct.routes.clear()
    assert direct.read(gets) == []
    assert direct.routes.routes == {}


def test_a_batch_is_timed(direct: Direct) -> None:
    took: list[float] = []
    assert direct.routes.server is not None
    direct.routes.server = direct.routes.server._replace(on_batch=took.append)
    frame = msg(GET, get_params(b"k"))
    assert direct.read(frame + frame, frame[:9], frame[9:]) == answer("r", b"\x00\x00") * 3
    assert len(took) == 3
    assert all(0 < seconds < 60 for seconds in took)


# One caller's frame next to another's.


@pytest.mark.parametrize("size", range(len(set_params(b"k", b"v" * 40))))
def test_cut_parameters_end_with_their_frame(direct: Direct, size: int) -> None:
    """The length of the value, key or bucket reaches beyond the frame, into another caller's bytes."""
    whole = set_params(b"k", b"v" * 40)
    other = set_params(b"secret", b"s" * 100)
    batch = msg(SET, whole[:size], b"cut") + msg(SET, other, b"other") + hmsg(GET, get_params(b"secret"), b"last")
    assert direct.read(batch) == [
        Send("cut", b"", f"{INBOX}.0"),
        *answer("other", UNIT),
        *answer("last", encode_get_result(b"s" * 100)),
    ]
    assert (direct.invocations.half_open, direct.invocations.half_open_bytes) == (
        1,
        INVOCATION_BYTES + len("cut") + size,
    )
    assert direct.get(b"k") is None
    assert direct.read(piece("0", whole[size:])) == answer("cut", UNIT, handshake=False)
    assert direct.get(b"k") == b"v" * 40
    assert direct.invocations.half_open == 0


# Limits of the server.


@pytest.mark.parametrize(
    "told", [*(b"0", b"-1", b"1e999", b"null", b"[]", b'"many"', b"[" * 100_000), *(b"nonsense", b"{}", b"[]", b"")]
)
def test_an_info_without_a_limit_is_left_to_nats_py(direct: Direct, told: bytes) -> None:
    direct.read(info(10))
    direct.routes.add(9, lambda caller, buffer, start, end: b"0123456789ab")
    for line in (b'INFO {"max_payload": %b}\r\n' % told, b"INFO %b\r\n" % told):
        assert direct.read(line + msg(9, b"")) == answer("r", b"0123456789", b"ab")
        assert direct.passed.endswith(line)


def test_the_last_info_limits_the_messages_of_the_connection(direct: Direct) -> None:
    connection = Connection(ConnectionOptions(("nats://127.0.0.1",)))
    connection.direct = direct.routes
    of_nats_py = connection.max_payload
    for told, limit in ((10, 10), (0, 10), (7, 7), (of_nats_py + 1, of_nats_py)):
        direct.read(info(told))
        assert connection.max_payload == limit


@pytest.mark.parametrize("line", [*MALFORMED_LINES, b"MSG f 1 r %d\r\n" % (MIB + LINE_BYTES_MAX + 1)])
def test_a_malformed_frame_aborts_the_connection(direct: Direct, line: bytes) -> None:
    assert direct.read(line + bytes(64)) == []
    assert direct.socket.aborted
    assert direct.routes.violations == 1
    assert direct.passed == b""
    assert direct.invocations.half_open == 0


@pytest.mark.parametrize("start", [b"", b"MSG f 1 r ", b"INFO "])
def test_a_line_without_end_aborts_the_connection(direct: Direct, start: bytes) -> None:
    direct.protocol.data_received(start + b"x" * (LINE_BYTES_MAX - len(start)))
    assert direct.routes.violations == 0
    direct.protocol.data_received(b"x")
    assert direct.socket.aborted
    assert direct.routes.violations == 1
    assert direct.passed == b""


def test_the_server_sets_the_largest_frame(direct: Direct) -> None:
    """An INFO between frames of one shape counts too."""
    for size in (MIB, 3 * MIB):
        frames = msg(OTHERS, bytes(size)) + hmsg(OTHERS, bytes(size))
        direct.read(info(size), frames)
        assert direct.passed.endswith(frames)
    direct.routes.add(9, lambda caller, buffer, start, end: UNIT)
    large = hmsg(9, bytes(3 * MIB))
    direct.read(info(3 * MIB), large * 3 + info(1024) + large)
    assert direct.invocations.counts.answered == 3
    assert direct.socket.aborted


def test_a_line_that_is_not_utf8_is_handled_as_any_other(direct: Direct) -> None:
    """NATS accepts any bytes except spaces and tabs as a subject."""
    before, after = msg(OTHERS, b"before", b"r"), msg(OTHERS, b"after", b"r")
    stray = msg(PIECES, b"x", b"", INBOX.encode() + b".\xff.params")
    call = msg(SET, set_params(b"k", b"v")[:-1], b"\xff")
    between = msg(OTHERS, b"between", b"\xff")
    assert len(direct.read(before + between + stray + call + after)) == 1
    assert direct.passed == before + between + after
    assert direct.invocations.counts.stray_pieces == 1
    assert direct.invocations.expire(float("inf")).sends == [b"PUB \xff.results 0\r\n\r\n"]


def test_a_change_that_fails_loses_no_call(direct: Direct, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise KeyError("ours")

    direct.routes.add(9, InOrder(fail))
    direct.routes.before_next_call(fail)
    assert direct.read(msg(9, b"", b"", b"changes") + msg(GET, get_params(b"k")) * 9) == answer("r", b"\x00\x00") * 9
    assert caplog.messages == ["a message to changes was not handled", "a change was not carried out"]


@pytest.mark.parametrize("reply", [b"$JS.API.x", b"wasmbus.rpc.x", b"own.prefix.f", b"x" * 4_001])
def test_a_call_with_a_refused_reply_subject_is_only_counted(direct: Direct, reply: bytes) -> None:
    """Not even among calls of the same size, whose shape is known."""
    direct.routes.replies.forbid("own.prefix")
    allowed = b"y" * len(reply) if len(reply) < 4_001 else b"y"
    calls = msg(GET, get_params(b"k"), allowed) * 9
    found = direct.read(calls + msg(GET, get_params(b"k"), reply) + calls)
    assert found == answer(allowed.decode(), b"\x00\x00") * 18
    assert direct.routes.replies.refused == 1


# Output that is not sent.


@pytest.fixture
def full_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause parsing and reading as soon as the socket's buffer is above its high-water mark. Request no receipts."""
    monkeypatch.setattr(writing_protocol, "FULL_BYTES", 0)
    monkeypatch.setattr(window_module, "WINDOW_BYTES", 2**40)


@pytest.mark.usefixtures("full_at_once")
def test_nothing_is_parsed_while_the_socket_is_full(new_direct: NewDirect) -> None:
    direct = new_direct(high_water_bytes=0)
    calls: list[int] = []
    result = bytes(OUTPUT_BYTES)

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
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


@pytest.mark.usefixtures("full_at_once")
def test_results_of_parameters_in_pieces_are_bounded_too(new_direct: NewDirect) -> None:
    """All last pieces arrive in one read, along with other calls and lines."""
    number, size = 80, MIB // 16
    direct = new_direct(high_water_bytes=MIB)
    direct.store.bucket(b"b").set(b"k", bytes(size))
    params = get_params(b"k")
    direct.read(*(msg(GET, params[:-1], b"cut%d" % token) for token in range(number)))
    last = (piece(str(token), params[-1:]) + b"PING\r\n" for token in range(number))
    direct.protocol.data_received(b"".join(last) + msg(GET, params, b"whole"))
    sends: list[Send] = []
    while direct.socket.buffer:
        assert direct.passed.count(b"PING\r\n") <= len(sends) // 2 + 36
        sends += publications(direct.socket.take())
    result = encode_get_result(bytes(size))
    expected = [answer(f"cut{token}", result, handshake=False) for token in range(number)]
    assert sends == [*itertools.chain(*expected), *answer("whole", result)]
    assert direct.passed == b"PING\r\n" * number
    assert direct.socket.buffer_bytes_max < 2 * (MIB + OUTPUT_BYTES)


def test_reading_resumes_when_all_allow_it(loop: asyncio.AbstractEventLoop) -> None:
    """The three that pause reading: nats-py's reader, a full output, and a long turn of the event loop."""
    changes = {
        "pause_reading": (0, True),
        "resume_reading": (0, False),
        "hold": (1, True),
        "release": (1, False),
        "worked": (2, True),
        "_end_rest": (2, False),
    }
    for names in itertools.product(changes, repeat=5):
        socket = Socket()
        flow = ReadFlow(socket, loop)
        wants = [False, False, False]
        for name in names:
            owner, pausing = changes[name]
            if (name.endswith("_reading") or owner == 2) and wants[owner] == pausing:
                continue  # neither a StreamReader nor the event loop says it twice
            getattr(flow, name)(*([TURN_S, 0] if name == "worked" else []))
            wants[owner] = pausing
            assert socket.reading is not any(wants), names


@pytest.mark.parametrize("value_bytes", [0, 2 * SLICE_BYTES])
def test_parsing_pauses_in_the_middle_of_a_read_after_a_long_turn(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch, value_bytes: int
) -> None:
    """A read of 256 KiB holds 29,000 keys in batches, which took 75 ms. Every turn is long here."""
    monkeypatch.setattr(protocol_module, "ReadFlow", partial(ReadFlow, turn_s=0.0))
    direct = new_direct()
    count = 20 if value_bytes else 5_000
    frames = [msg(SET, set_params(b"%05d" % number, bytes(value_bytes))) for number in range(count)]
    direct.protocol.data_received(b"".join(frames) + b"PING\r\n" + frames[0][:9])
    assert len(direct.store) <= 1 + SLICE_BYTES // len(frames[0])
    while not direct.socket.reading:
        loop.run_until_complete(asyncio.sleep(0))
    left_bytes = [*direct.protocol.parsed, 0]  # at the beginning of each slice
    assert max(before - after for before, after in pairwise(left_bytes)) <= SLICE_BYTES + len(frames[0])
    assert len(direct.store) == len(frames)
    direct.protocol.data_received(frames[0][9:])
    assert publications(direct.socket.take()) == answer("r", UNIT) * (len(frames) + 1)
    assert direct.passed == b"PING\r\n"


def test_a_long_turn_lets_others_have_a_turn(loop: asyncio.AbstractEventLoop) -> None:
    socket = Socket()
    flow = ReadFlow(socket, loop)
    flow.worked(TURN_S * 0.6, PARTIAL_BYTES - 1)
    flow.worked(TURN_S * 0.6, PARTIAL_BYTES)
    assert socket.reading, "the first read was the last one in its turn"
    flow.worked(TURN_S * 0.6, PARTIAL_BYTES - 1)
    readings = [socket.reading]
    loop.run_until_complete(asyncio.sleep(0))
    assert [*readings, socket.reading] == [False, True]
    flow.worked(TURN_S, 0)
    flow.close()
    loop.run_until_complete(asyncio.sleep(0))
    assert not socket.reading, "a lost connection is not read"


def test_a_full_reader_pauses_and_a_blocked_socket_holds(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop
) -> None:
    direct = new_direct(high_water_bytes=0)
    direct.protocol.data_received(msg(OTHERS, bytes(256 * 1024)))
    assert not direct.socket.reading  # for nats-py
    direct.protocol.data_received(msg(GET, get_params(b"k")))
    direct.socket.take()
    assert not direct.socket.reading  # the output has been sent, but nats-py's reader is still full
    loop.run_until_complete(direct.reader.read(MIB))
    assert direct.socket.reading


def test_callers_are_kept_by_their_header_block(direct: Direct) -> None:
    callers: list[Caller] = []

    def note(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        callers.append(caller)
        return buffer[start:end]

    direct.routes.add(9, note)
    large = HEADERS[:-2] + b"other: %b\r\n\r\n" % (b"x" * 5000)
    assert direct.read(msg(9, b"none"), hmsg(9, b"first"), hmsg(9, b"again"), hmsg(9, b"large", headers=large)) == [
        send for params in (b"none", b"first", b"again", b"large") for send in answer("r", params)
    ]
    assert callers == [ANONYMOUS, CALLER, CALLER, CALLER]
    assert callers[1] is callers[2]
    assert direct.routes.callers.callers == {HEADERS: CALLER}


# Connections that come and go.


@pytest.mark.parametrize("left", [1, 9, len(msg(GET, get_params(b"k"))) - 1])
def test_a_new_connection_starts_clean(direct: Direct, left: int) -> None:
    frame = msg(GET, get_params(b"k"))
    whole = set_params(b"k", b"v")
    assert direct.read(msg(SET, whole[:-1], b"cut")) == [Send("cut", b"", f"{INBOX}.0")]
    assert direct.read(frame[:left]) == []
    lost, socket = direct.protocol, direct.socket
    unsent: list[int] = []
    assert direct.routes.server is not None
    direct.routes.server = direct.routes.server._replace(on_lost=unsent.append)
    assert lost.send([b"in the turn", b"of the loss"]) is True
    lost.connection_lost(None)
    lost.flush()
    assert lost.send([b"late"]) is False
    assert unsent == [2]
    direct.connect(info(MIB))
    assert direct.protocol.send([b"before CONNECT"]) is False
    assert direct.read(frame) == answer("r", b"\x00\x00")
    lost.connection_lost(None)
    assert direct.routes.protocol is direct.protocol, "the loss of the previous connection is reported late"
    # An invocation outlives its connection: its client may still be connected, to another server.
    assert direct.read(piece("0", whole[-1:])) == answer("cut", UNIT, handshake=False)
    assert (direct.passed, socket.take()) == (b"", b"")
    assert direct.reader.at_eof() is False


@pytest.mark.usefixtures("full_at_once")
def test_a_lost_connection_is_not_written_to(new_direct: NewDirect) -> None:
    direct = new_direct(high_water_bytes=0)
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


class QuickReader:
    """A quick reader that reads nothing."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        return at


def test_the_quick_reader_with_the_longest_prefix_gets_a_frame() -> None:
    routes = DirectRoutes()
    for number, prefix in enumerate((b"MSG $KV.", b"MSG $KV.b.", b"MSG _INBOX.of.acknowledgements."), 1):
        routes.add(number, Frames(lambda *_: None, (QuickReader(prefix),)))
    assert [key for _, _, key in routes.quick] == [b"3", b"2", b"1"]


def test_what_the_end_of_a_read_asks_for_needs_no_further_read(loop: asyncio.AbstractEventLoop, direct: Direct) -> None:
    done: list[bool] = []
    soon = direct.routes.call_soon
    direct.routes.add(OTHERS, Frames(lambda *_: soon(lambda: soon(lambda: done.append(True)))))
    direct.protocol.data_received(msg(OTHERS, b""))
    loop.run_until_complete(asyncio.sleep(0))
    assert done


def test_a_fault_at_the_end_of_a_read_ends_neither_the_connection_nor_the_rest(
    direct: Direct, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[bool] = []

    def handle(*_: bytes) -> None:
        direct.routes.call_soon(lambda: done[0])  # type: ignore[arg-type]
        direct.routes.call_soon(lambda: done.append(True))

    direct.routes.add(OTHERS, Frames(handle))
    direct.protocol.data_received(msg(OTHERS, b""))
    assert done
    assert "the end of a read was not handled" in caplog.text


def test_a_protocol_has_so_few_attributes_that_python_reads_them_fast(loop: asyncio.AbstractEventLoop) -> None:
    assert len(vars(DirectProtocol(asyncio.StreamReader(loop=loop), DirectRoutes(), loop))) <= 29
