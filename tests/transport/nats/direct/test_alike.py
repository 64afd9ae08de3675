"""Frames that are like the one before are not taken apart: it must not show."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import encode_get_result
from keyvalue_transport.nats.direct import protocol
from keyvalue_transport.nats.direct.alike import SHAPES_MAX
from keyvalue_transport.nats.direct.frames import read_frame
from keyvalue_transport.nats.headers import BLOCK_BYTES_MAX
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import Caller, Handler, Pending
from tests.transport.nats.direct.scene import (
    GET,
    HEADERS,
    INBOX,
    MIB,
    OTHERS,
    SET,
    UNIT,
    Direct,
    NewDirect,
    Unawaited,
    answer,
    get_params,
    hmsg,
    info,
    msg,
    piece,
    set_params,
)

T = TypeVar("T")

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

    def __init__(self, direct: Direct) -> None:
        self.direct = direct
        self.calls: list[tuple[int, Caller, bytes]] = []
        for number in (20, 21):
            self.direct.routes.add(number, self.handler(number))

    def handler(self, number: int) -> Handler:
        def note(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
            parameters = buffer[start:end]
            self.calls.append((number, caller, parameters))
            if number == 21:
                raise RuntimeError
            if parameters == CUT:
                raise NeedMoreBytes(start + 3)
            if parameters == LATE:
                return Unawaited()
            return {SILENT: b"", LONG: bytes(5000)}.get(parameters, UNIT)

        return note

    @property
    def traces(self) -> list[str | None]:
        return [step.failure.traceparent for step in self.direct.steps if step.failure is not None]


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
    new_direct: NewDirect,
    frames: list[tuple[int, list[bytes | None], list[bytes], list[bytes], int]],
    cuts: list[int],
) -> None:
    wires = []
    for number, blocks, payloads, replies, count in frames:
        for _, block, payload, reply in zip(
            range(count), itertools.cycle(blocks), itertools.cycle(payloads), itertools.cycle(replies), strict=False
        ):
            wires.append(msg(number, payload, reply) if block is None else hmsg(number, payload, reply, headers=block))
    together, alone = Noted(new_direct()), Noted(new_direct())
    alone.direct.routes.alike.is_on = False
    stream = b"".join(wires)
    sent, passed = [], b""
    at = 0
    for size in [*cuts, len(stream)]:
        sent += together.direct.read(stream[at : at + size])
        at += size
    sent_alone = []
    for wire in wires:
        alone.direct.connect(info(MIB))
        sent_alone += alone.direct.read(wire)
        passed += alone.direct.passed
    assert together.calls == alone.calls
    assert together.traces == alone.traces
    assert sent == sent_alone
    assert together.direct.passed == passed
    counts, counts_alone = (asdict(noted.direct.invocations.counts) for noted in (together, alone))
    greetings_bytes = len(info(MIB)) * len(wires)
    assert counts | {"received_bytes": counts["received_bytes"] + greetings_bytes} == counts_alone


@pytest.mark.parametrize("stream", [b"\n", b"\nPING\r\n", b"PING\r\n\nPONG\r\n", b"\n\n \n\n\r\n", b"\n \n\n\r\n\n"])
def test_a_line_feed_is_no_shape(direct: Direct, stream: bytes) -> None:
    """A server that is none may send it at the beginning of a line."""
    assert direct.read(stream) == []
    whole, _, _ = stream.rpartition(b"\r\n")
    assert direct.passed == (whole + b"\r\n" if whole else b"")


def test_shapes_are_forgotten_at_an_info_in_the_midst_of_a_read(new_direct: NewDirect) -> None:
    noted = Noted(new_direct())
    frame = hmsg(20, bytes(3 * MIB), b"r")
    noted.direct.read(info(4 * MIB))
    noted.direct.read(frame * 3 + info(1024) + frame)
    assert len(noted.calls) == 3
    assert noted.direct.socket.aborted


def apart(direct: Direct, stream: bytes) -> int:
    """Read a stream, and return the number of frames in it that were taken apart."""
    numbers = itertools.count()
    with pytest.MonkeyPatch.context() as patches:

        def counted(buffer: bytes, at: int, end: int, frame_bytes_max: int) -> object:
            next(numbers)
            return read_frame(buffer, at, end, frame_bytes_max)

        patches.setattr(protocol, "read_frame", counted)
        direct.read(stream)
    return next(numbers)


def test_frames_that_are_alike_are_not_taken_apart(new_direct: NewDirect) -> None:
    """The first two are, and then those of a run are cut at once, which is what the switch is for."""
    noted = Noted(new_direct())
    frames = [hmsg(20, b"a%d" % digit, b"r") for digit in range(10)]
    assert apart(noted.direct, b"".join(frames)) == (2 if noted.direct.routes.alike.is_on else 10)
    assert noted.calls == [(20, Caller("component", "default"), b"a%d" % digit) for digit in range(10)]


def test_shapes_are_found_again(new_direct: NewDirect) -> None:
    """Calls that are taken apart since another kind came between do not make their shape anew."""
    noted = Noted(new_direct())
    for number in (22, 23):
        noted.direct.routes.add(number, noted.handler(number))
    kinds = [hmsg(number, b"ab", b"r", headers=block) for number in (20, 22, 23) for block in BLOCKS[:2]]
    shapes = []
    for _ in range(4):
        noted.direct.read(b"".join(frame * 6 for frame in kinds))
        shapes.append(list(map(id, noted.direct.routes.alike._shapes.values())))
    assert shapes == shapes[:1] * 4
    assert len(shapes[0]) == (len(kinds) if noted.direct.routes.alike.is_on else 0)


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
    shapes = direct.routes.alike._shapes
    for size in range(1, 2 * SHAPES_MAX):
        assert len(direct.read(bucket_get(b"b", b"k" * size) * 3)) == 3 * len(answer("r", UNIT))
        assert len(shapes) <= SHAPES_MAX
    assert bool(shapes) is direct.routes.alike.is_on


def test_the_bytes_of_shapes_are_bounded(direct: Direct) -> None:
    """A caller writes the block. A shape holds nothing that is longer than what is kept of callers."""
    direct.limits.bucket_bytes_max = MIB
    longest = BLOCK_BYTES_MAX - len(b"NATS/1.0\r\n\r\n")
    for bucket_bytes, block_bytes, is_kept in ((100_000, 9, True), (1, longest, True), (1, longest + 1, False)):
        block = b"NATS/1.0\r\n%b\r\n" % (b"x" * block_bytes)  # no header, so all of them have one caller
        frame = hmsg(GET, encode_bucket_key(b"b" * bucket_bytes, b"k"), b"r", headers=block)
        direct.routes.alike.forget()
        assert direct.read(frame * 6) == answer("r", encode_get_result(None)) * 6
        assert (direct.routes.alike.shape is not None) == (is_kept and direct.routes.alike.is_on)
        for shape in direct.routes.alike._shapes.values():
            assert len(shape.prefix + shape.suffix + shape.rest) < BLOCK_BYTES_MAX + 100


def test_a_route_that_changes_is_not_remembered(direct: Direct, new_direct: NewDirect) -> None:
    first, second = Noted(new_direct()), Noted(new_direct())
    for noted in (first, second):
        direct.routes.add(20, noted.handler(20))
        direct.read(hmsg(20, b"ab", b"r") * 3)
        assert len(noted.calls) == 3
    direct.routes.remove(20)
    frame = hmsg(20, b"ab", b"r")
    assert direct.read(frame) == []
    assert direct.passed == frame
    assert len(second.calls) == 3
