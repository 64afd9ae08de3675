"""The direct path below nats-py: what its protocol answers, what it passes on, and what it holds."""

from __future__ import annotations

import asyncio
import itertools
from operator import eq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.direct.frames import LINE_BYTES_MAX
from keyvalue_transport.nats.direct.protocol import OUTPUT_BYTES
from keyvalue_transport.nats.direct.read_flow import ReadFlow
from keyvalue_transport.nats.headers import CALLERS_MAX, read_headers
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Pending
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.transport.nats.direct.scene import (
    CALLER,
    EXISTS,
    GET,
    HEADERS,
    INBOX,
    LIST_KEYS,
    MIB,
    NOBODY,
    OTHERS,
    PIECES,
    SET,
    UNIT,
    Direct,
    NewDirect,
    Socket,
    Unawaited,
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


def test_a_stream_in_one_read(new_direct: NewDirect) -> None:
    check_stream(new_direct, [WHOLE])


def test_a_stream_cut_at_every_byte(new_direct: NewDirect) -> None:
    for at in range(1, len(WHOLE)):
        check_stream(new_direct, cut(WHOLE, [at]))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_a_stream_in_pieces_of_one_size(new_direct: NewDirect, size: int) -> None:
    check_stream(new_direct, cut(WHOLE, range(0, len(WHOLE), size)))


@given(cuts=st.lists(st.integers(1, len(WHOLE) - 1), max_size=12))
def test_a_stream_cut_anywhere(new_direct: NewDirect, cuts: list[int]) -> None:
    check_stream(new_direct, cut(WHOLE, cuts))


def test_the_answers_of_a_read_are_one_write(direct: Direct) -> None:
    frames = b"".join(hmsg(GET, get_params(b"k"), b"r%d" % number) for number in range(64))
    direct.protocol.data_received(frames)
    assert len(direct.socket.buffer) == 1
    assert direct.read() == [send for number in range(64) for send in answer(f"r{number}", b"\x00\x00")]
    assert direct.reader.pieces == []


def test_what_is_no_nats_server_is_left_to_nats_py(new_direct: NewDirect) -> None:
    direct = new_direct(greeting=b"")
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
    direct.routes.add(GET, direct.route(EXISTS))
    assert direct.read(frame) == answer("r", b"\x00\x00")
    direct.routes.clear()
    assert direct.read(frame) == []
    assert direct.routes.routes == {}


def test_a_batch_is_timed(direct: Direct) -> None:
    took: list[float] = []
    assert direct.routes.server is not None
    direct.routes.server = direct.routes.server._replace(on_batch=took.append)
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
    handler = direct.route(SET)

    def counted(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
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

    def failing(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
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
    waited = Unawaited()
    direct.routes.add(9, lambda caller, buffer, start, end: waited)
    assert direct.read(hmsg(9, b"", b"r")) == [Send("r", b"", NOBODY)]
    (step,) = direct.steps
    assert step.waiting == (b"r", None, waited)
    assert direct.invocations.waiting == 1


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
    assert direct.invocations.expire(float("inf")).sends == [b"PUB \xff.results 0\r\n\r\n"]


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


def test_half_open_invocations_are_limited(new_direct: NewDirect) -> None:
    direct = new_direct(InvocationLimits(half_open_max=2))
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


def test_nothing_is_parsed_while_the_socket_is_above_its_high_water_mark(new_direct: NewDirect) -> None:
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


def test_half_a_frame_that_comes_while_blocked_is_kept(new_direct: NewDirect) -> None:
    direct = new_direct(high_water_bytes=0)
    frame = msg(GET, get_params(b"k"), b"2")
    direct.protocol.data_received(msg(GET, get_params(b"k"), b"1"))
    for part in cut(frame, range(1, len(frame) - 1, 3)):
        direct.protocol.data_received(part)
    assert publications(direct.socket.take()) == answer("1", b"\x00\x00")
    assert publications(direct.socket.take()) == answer("2", b"\x00\x00")
    assert direct.socket.take() == b""
    assert direct.socket.reading


@pytest.mark.parametrize(("size", "number"), [(128 * 1024, 2000), (MIB, 100), (5 * MIB, 20)])
def test_large_results_in_flight_are_bounded(new_direct: NewDirect, size: int, number: int) -> None:
    direct = new_direct(high_water_bytes=MIB)
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


@pytest.mark.parametrize("number", [1, 100])
def test_results_of_parameters_in_pieces_are_bounded_too(new_direct: NewDirect, number: int) -> None:
    """All of the last pieces come in one read, and other calls and lines with them."""
    direct = new_direct(high_water_bytes=MIB)
    direct.store.bucket(b"b").set(b"k", bytes(MIB // 2))
    params = get_params(b"k")
    direct.read(*(msg(GET, params[:-1], b"cut%d" % token) for token in range(number)))
    last = (piece(str(token), params[-1:]) + b"PING\r\n" for token in range(number))
    direct.protocol.data_received(b"".join(last) + msg(GET, params, b"whole"))
    sends: list[Send] = []
    while direct.socket.buffer:
        assert direct.passed.count(b"PING\r\n") <= len(sends) // 2 + 4
        sends += publications(direct.socket.take())
    result = encode_get_result(bytes(MIB // 2))
    expected = [answer(f"cut{token}", result, handshake=False) for token in range(number)]
    assert sends == [*itertools.chain(*expected), *answer("whole", result)]
    assert direct.passed == b"PING\r\n" * number
    assert direct.socket.buffer_bytes_max < 2 * (MIB + OUTPUT_BYTES)
    assert direct.invocations.counts.received_bytes == direct.protocol.received_bytes


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


def test_a_full_reader_pauses_and_a_blocked_socket_holds(
    new_direct: NewDirect, loop: asyncio.AbstractEventLoop
) -> None:
    direct = new_direct(high_water_bytes=0)
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

    def note(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
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
        assert read_headers(block).traceparent == f"00-trace-{number}"
    assert direct.routes.callers.callers == {HEADERS: CALLER}


def test_the_last_of_many_traces_counts(direct: Direct) -> None:
    """However many there are: a caller writes the block."""
    block = HEADERS[:-2] + b"".join(b"traceparent: %d\r\n" % number for number in range(5000)) + b"\r\n"
    assert sent_caller(direct, block) == CALLER
    assert read_headers(block).traceparent == "4999"
    assert direct.routes.callers.callers == {}


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
