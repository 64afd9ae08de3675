"""The two generators without a socket: what they send, and how they read answers that are cut anywhere."""

from __future__ import annotations

import re

import pytest

from bench.load.answers import FrameGenerator, SmallGenerator, read_page
from bench.load.outcome import LoadError
from bench.load.workload import COUNT_FROM, key_of, value_of
from keyvalue_transport.keyvalue.atomics import encode_increment_result
from keyvalue_transport.keyvalue.store import KeyResponse, encode_get_result, encode_key_response
from tests.bench.load.sockets import answers, connected, load_of

Kind = type[SmallGenerator | FrameGenerator]
KINDS: list[Kind] = [SmallGenerator, FrameGenerator]


def test_pages_are_read() -> None:
    keys = [key_of(index) for index in range(200)]
    for cursor in (None, 0, 127, 2**64 - 1):
        result = encode_key_response(KeyResponse(keys, cursor))
        assert read_page(result, is_looked_at=True) == read_page(result, is_looked_at=False) == (200, cursor)
    assert read_page(encode_key_response(KeyResponse([], None)), is_looked_at=True) == (0, None)


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b"\x01\x00",
        encode_key_response(KeyResponse([b"short"], None)),
        encode_key_response(KeyResponse([b"not-a-number"], None)),
        encode_key_response(KeyResponse([key_of(1)] * 2, None)),
        encode_key_response(KeyResponse([key_of(1)], None)) + b"more",
    ],
)
def test_pages_of_other_keys_are_refused(result: bytes) -> None:
    with pytest.raises(LoadError, match="expected a page of the load's keys, found"):
        read_page(result, is_looked_at=True)


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize(("kind", "value_bytes"), [(SmallGenerator, 64), (FrameGenerator, 64), (FrameGenerator, 5_000)])
async def test_answers_are_counted_wherever_they_are_cut(kind: Kind, value_bytes: int, step: int) -> None:
    generator = kind(load_of(calls=3, in_flight=3, keys=1, value_bytes=value_bytes))
    socket = connected(generator)
    assert socket.written.count(b"HPUB ") == 3
    stream = b"PING\r\n" + answers(generator, encode_get_result(value_of(key_of(0), value_bytes)), 3)
    for at in range(0, len(stream), step):
        generator.data_received(stream[at : at + step])
    await generator.ended
    outcome = generator.outcome()
    assert (outcome.calls, outcome.keys) == (3, 3)
    assert outcome.verified > 0
    assert socket.written.count(b"PONG\r\n") == 1
    closings = re.findall(rb"PUB _INBOX\.server\.(\d)\.params 0\r\n\r\n", socket.written)
    assert closings == [b"0", b"1", b"2"]


async def test_a_page_of_another_size_fails_the_load() -> None:
    generator = FrameGenerator(load_of(function="list-keys", calls=1, in_flight=1, page_keys=2))
    connected(generator)
    generator.data_received(answers(generator, encode_key_response(KeyResponse([key_of(0)], 7)), 1))
    with pytest.raises(LoadError, match="call 0: the page has 1 keys, expected 2"):
        await generator.ended


async def test_the_pieces_of_a_large_set_follow_its_handshake() -> None:
    generator = FrameGenerator(load_of(function="set", calls=1, in_flight=1, value_bytes=5_000))
    socket = connected(generator)
    written = len(socket.written)
    generator.data_received(b"MSG %b.0 1 R.s 0\r\n\r\n" % generator.inbox)
    expected = [b"PUB R.s.params %d\r\n%b\r\n" % (len(piece), piece) for piece in generator.script.later]
    assert len(expected) > 3
    assert socket.written[written:] == b"".join((*expected, b"PUB R.s.params 0\r\n\r\n"))


async def test_the_keys_of_batches_are_counted() -> None:
    generator = FrameGenerator(load_of(function="get-many", calls=2, in_flight=2, keys=30, batch_keys=30))
    connected(generator)
    generator.data_received(answers(generator, generator.script.result(0), 2))
    await generator.ended
    assert (generator.outcome().calls, generator.outcome().keys) == (2, 60)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"mno", b"xxx"), (b"000000000001", b"000000000009")],
    ids=["value", "key"],
)
async def test_a_batch_with_one_wrong_value_fails_the_load(old: bytes, new: bytes) -> None:
    generator = FrameGenerator(load_of(function="get-many", calls=1, in_flight=1, keys=3, batch_keys=3))
    connected(generator)
    right = generator.script.result(0)
    assert old in right
    generator.data_received(answers(generator, right.replace(old, new, 1), 1))
    with pytest.raises(LoadError, match=r"call 0: found the result .*, expected .*mno"):
        await generator.ended


WRONG = encode_get_result(value_of(key_of(1), 64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "result", "error"),
    [
        ({}, WRONG, r"found the result .*000000000001m.*, expected .*000000000000m"),
        ({}, b"\0\0", r"(found the result b'\\x00\\x00'|the result is 2 bytes, expected 67)"),
        ({}, b"", r"(found the result b''|the result is 0 bytes, expected 67)"),
        (
            {"function": "increment", "counted": COUNT_FROM},
            encode_increment_result(COUNT_FROM),
            r"found the result b'\\x00\\xc0\\x84=', expected b'\\x00\\xc1\\x84='",
        ),
    ],
    ids=["another value", "no value", "nothing", "a lost increment"],
)
async def test_a_wrong_result_fails_the_load(kind: Kind, fields: dict[str, object], result: bytes, error: str) -> None:
    generator = kind(load_of(calls=1, in_flight=1, keys=1, **fields))
    connected(generator)
    generator.data_received(answers(generator, result, 1))
    with pytest.raises(LoadError, match=f"call 0: {error}"):
        await generator.ended


async def test_the_size_of_each_answer_is_checked() -> None:
    generator = SmallGenerator(load_of(calls=2, in_flight=2, keys=1))
    connected(generator)
    right = answers(generator, generator.script.result(0), 2)
    at = right.index(b".1.results 1 67")
    generator.data_received(right[:at] + b".1.results 1 2\r\n\0\0\r\nMSG %b.1.results 1 0\r\n\r\n" % generator.inbox)
    with pytest.raises(LoadError, match="1 of 2 answers have the right size"):
        await generator.ended


@pytest.mark.parametrize("kind", KINDS)
async def test_only_the_shape_is_checked_if_a_load_asks_for_that(kind: Kind) -> None:
    generator = kind(load_of(calls=1, in_flight=1, keys=1, exact=False))
    connected(generator)
    generator.data_received(answers(generator, WRONG, 1))
    await generator.ended
    assert generator.verified == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (b"HMSG %b.0 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "expected an answer, found .*HMSG"),
        (b"-ERR 'Slow Consumer'\r\nMSG %b", "expected an answer, found .*Slow Consumer"),
    ],
)
async def test_a_message_that_is_not_an_answer_fails_the_load(kind: Kind, frames: bytes, error: str) -> None:
    generator = kind(load_of(calls=1, in_flight=1))
    socket = connected(generator)
    generator.data_received(frames % generator.inbox)
    with pytest.raises(LoadError, match=error):
        await generator.ended
    assert socket.aborted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 7, 1_000])
async def test_a_missing_server_is_reported_wherever_the_message_is_cut(kind: Kind, step: int) -> None:
    generator = kind(load_of(function="mixed", calls=40, in_flight=20))
    connected(generator)
    stream = b"HMSG %b.19 1 33 33\r\nNATS/1.0 503\r\nNats-Subject: x\r\n\r\n" % generator.inbox
    for at in range(0, len(stream), step):
        assert not generator.ended.done()
        generator.data_received(stream[at : at + step])
    with pytest.raises(LoadError, match=r"^nobody serves set at default\.kv$"):
        await generator.ended


async def test_a_second_end_fails_the_load() -> None:
    for kind in KINDS:
        generator = kind(load_of(calls=2, in_flight=2, keys=1))
        connected(generator)
        first = answers(generator, generator.script.result(0), 1)
        generator.data_received(first + first[-len(b"MSG %b.0.results 1 0\r\n\r\n" % generator.inbox) :])
        with pytest.raises(LoadError, match=r"call 0: a (second end arrived|message arrived after the end)"):
            await generator.ended
