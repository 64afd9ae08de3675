"""The bytes of a load, without a socket: what a client sends, what a generator and the bare responder make of what comes, cut anywhere."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.load.answers import FrameGenerator, SmallGenerator, read_page
from bench.load.generator_base import Generator
from bench.load.generator_process import is_small
from bench.load.latency import Latencies
from bench.load.outcome import LoadError, merged
from bench.load.responder import NUMBERS, Responder
from bench.load.watching_component import WatchingComponent
from bench.load.wire import NatsProtocol, WireError, split_address
from bench.load.workload import BATCHES, COUNT_FROM, Function, Headers, Load, Script, key_of, spread_indices, value_of
from keyvalue_provider.host.host_data import HostData
from keyvalue_transport.keyvalue.atomics import decode_increment, decode_increment_result, encode_increment_result
from keyvalue_transport.keyvalue.batch import decode_get_many, decode_get_many_result, decode_set_many
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.store import (
    KeyResponse,
    decode_get,
    decode_list_keys,
    decode_set,
    encode_get_result,
    encode_key_response,
)

INBOX = b"_INBOX.client"
MAX_PAYLOAD = 1024
INFO = b'INFO {"max_payload": 1024}\r\n'
LIMITS = ParameterLimits()


def load_of(**fields: object) -> Load:
    return Load(url="nats://127.0.0.1:1", prefix="default.kv", **fields)  # type: ignore[arg-type]


class Socket(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def connected(protocol: NatsProtocol) -> Socket:
    """The socket of a protocol that a server has greeted."""
    socket = Socket()
    protocol.connection_made(socket)
    protocol.data_received(INFO + b"PONG\r\n")
    return socket


# Scripts.


@given(keys=st.integers(1, 2_000), share=st.integers(1, 10))
def test_indices_are_spread_over_all_keys_each_once(keys: int, share: int) -> None:
    picked = max(1, keys // share)
    indices = spread_indices(keys, picked)
    assert len(set(indices)) == len(indices) == picked
    assert 0 <= min(indices) <= max(indices) < keys
    assert max(indices) >= keys - 2 * share - keys % picked


@pytest.mark.parametrize("value_bytes", [12, 13, 61, 64, 1000])
def test_values_have_their_size_and_begin_with_their_key(value_bytes: int) -> None:
    value = value_of(key_of(5), value_bytes)
    assert len(value) == value_bytes
    assert value.startswith(b"000000000005")
    assert not re.search(rb"[.\s]", value)


@pytest.mark.parametrize("headers", ["none", "host", "traced"])
def test_a_call_is_one_frame_with_the_headers_of_a_host(headers: Headers) -> None:
    script = Script(load_of(headers=headers, keys=3), INBOX, MAX_PAYLOAD)
    head, middle, tail = script.frame(1)
    frame = head + b"1" + middle + (script.span(1) if headers == "traced" else b"") + tail
    line, rest = frame.split(b"\r\n", 1)
    words = line.split(b" ")
    assert words[:3] == [
        b"PUB" if headers == "none" else b"HPUB",
        b"default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.get",
        b"_INBOX.client.1",
    ]
    total, block_size = int(words[-1]), 0 if headers == "none" else int(words[-2])
    assert len(rest) == total + 2
    (bucket, key), end = decode_get(rest, block_size, total, LIMITS)
    assert (bucket, end) == (b"values-0000000064", total)
    assert key in {key_of(index) for index in range(3)}
    block = rest[:block_size]
    assert (b"source-id: bench-component\r\n" in block) == (headers != "none")
    assert bool(re.search(rb"\r\ntraceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-01\r\n", block)) == (headers == "traced")


def test_each_call_is_a_trace_of_its_own() -> None:
    script = Script(load_of(headers="traced"), INBOX, MAX_PAYLOAD)
    spans = {script.span(number) for number in range(100)}
    assert len({span[:32] for span in spans}) == len({span[33:] for span in spans}) == 100


@pytest.mark.parametrize("value_bytes", [64, 700, 5_000])
def test_the_pieces_of_a_set_are_its_parameters(value_bytes: int) -> None:
    script = Script(load_of(function="set", value_bytes=value_bytes, keys=10), INBOX, MAX_PAYLOAD)
    for number in range(10):
        frame = script.frame(number)
        block = int(frame.middle.split()[0])
        first = frame.tail[block:-2]
        assert len(frame.tail) - 2 <= MAX_PAYLOAD
        assert all(0 < len(piece) <= MAX_PAYLOAD for piece in script.later)
        assert script.is_cut(number) == bool(script.later) == (value_bytes > MAX_PAYLOAD)
        params = b"".join((first, *script.later))
        (_, key, value), end = decode_set(params, 0, len(params), LIMITS)
        assert end == len(params)
        assert value == value_of(key, value_bytes)


def test_keys_of_a_fill_come_in_order_each_once() -> None:
    script = Script(load_of(function="set", each_once=True, calls=5, keys=5, first_key=100), INBOX, MAX_PAYLOAD)
    params = [script.frame(number).tail.partition(b"\r\n\r\n")[2][:-2] for number in range(5)]
    assert [decode_set(one, 0, len(one), LIMITS)[0][1] for one in params] == [key_of(100 + index) for index in range(5)]


def test_a_mixed_load_has_one_set_in_twenty() -> None:
    script = Script(load_of(function="mixed", keys=1_000), INBOX, MAX_PAYLOAD)
    sets = sum(b".set " in script.frame(number).head for number in range(1_000))
    assert sets == 50
    assert script.result(19) == b"\0"
    assert len(script.result(18)) == script.result_size(18) == 67


def params_of(script: Script, number: int) -> bytes:
    """The parameters of a call without headers."""
    return script.frame(number).tail[:-2]


def test_batches_have_all_keys_and_no_key_is_in_two() -> None:
    script = Script(load_of(function="get-many", headers="none", keys=1_000, batch_keys=30, first_key=7), INBOX, 2**20)
    seen: list[bytes] = []
    for number in range(33):
        assert b".wrpc:keyvalue/batch@0.2.0-draft.get-many " in script.frame(number).head
        params = params_of(script, number)
        (bucket, keys), end = decode_get_many(params, 0, len(params), LIMITS)
        assert (bucket, len(keys), end) == (b"values-0000000064", 30, len(params))
        result = script.result(number)
        assert len(result) == script.result_size(number)
        pairs, end = decode_get_many_result(result, 0, len(result))
        assert (pairs, end) == ([(key, value_of(key, 64)) for key in keys], len(result))
        seen += keys
    assert len(set(seen)) == len(seen) == 990
    assert set(seen) < {key_of(index) for index in range(7, 1_007)}
    assert params_of(script, 33) == params_of(script, 0)
    assert script.result(33) == script.result(0)


def test_a_batch_that_is_set_has_the_values_of_its_keys() -> None:
    batches = {function: Script(load_of(function=function, headers="none"), INBOX, 2**20) for function in BATCHES}
    for number in (0, 1, 99):
        params = params_of(batches["get-many"], number)
        (_, keys), _ = decode_get_many(params, 0, len(params), LIMITS)
        params = params_of(batches["set-many"], number)
        (bucket, entries), end = decode_set_many(params, 0, len(params), LIMITS)
        assert (bucket, end) == (b"values-0000000064", len(params))
        assert entries == {key: value_of(key, 64) for key in keys}
        assert len(entries) == 100
    assert batches["set-many"].result(0) == b"\0"
    assert batches["set-many"].result_size(0) == 1


def test_counters_go_on_from_what_they_hold() -> None:
    load = load_of(function="increment", headers="none", keys=3, first_key=5, counted=COUNT_FROM, delta=2)
    script = Script(load, INBOX, MAX_PAYLOAD)
    sums = dict.fromkeys(map(key_of, (5, 6, 7)), COUNT_FROM)
    for number in range(12):
        assert b".wrpc:keyvalue/atomics@0.2.0-draft.increment " in script.frame(number).head
        params = params_of(script, number)
        (_, key, delta), end = decode_increment(params, 0, len(params), LIMITS)
        assert (delta, end) == (2, len(params))
        sums[key] += delta
        result = script.result(number)
        assert decode_increment_result(result, 0, len(result)) == (sums[key], len(result))
        assert len(result) == script.result_size(number)
    assert set(sums.values()) == {COUNT_FROM + 8}


def test_counters_are_filled_each_once() -> None:
    load = load_of(function="increment", headers="none", keys=3, calls=3, each_once=True, delta=COUNT_FROM)
    script = Script(load, INBOX, MAX_PAYLOAD)
    params = [params_of(script, number) for number in range(3)]
    found = [decode_increment(one, 0, len(one), LIMITS)[0] for one in params]
    assert found == [(b"values-0000000064", key_of(index), COUNT_FROM) for index in range(3)]
    results = [script.result(number) for number in range(3)]
    assert [decode_increment_result(one, 0, len(one))[0] for one in results] == [COUNT_FROM] * 3


@pytest.mark.parametrize(
    ("fields", "small"),
    [
        ({"function": "get"}, True),
        ({"function": "get", "value_bytes": 4096}, False),
        ({"function": "set", "value_bytes": 4096}, False),
        ({"function": "get-many", "batch_keys": 20}, True),
        ({"function": "get-many", "batch_keys": 100}, False),
        ({"function": "set-many", "batch_keys": 100}, True),
        ({"function": "increment"}, True),
        ({"function": "list-keys"}, False),
    ],
)
def test_loads_of_small_messages_are_told_from_others(fields: dict[str, object], small: bool) -> None:
    assert is_small(load_of(**fields)) is small


def test_a_walk_goes_on_from_its_cursor() -> None:
    script = Script(load_of(function="list-keys", headers="none"), INBOX, MAX_PAYLOAD)
    for cursor in (None, 2**64 - 1):
        params = script.walk_frame(cursor).tail[:-2]
        assert decode_list_keys(params, 0, len(params), LIMITS)[0] == (b"values-0000000064", cursor)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"function": "list"}, "function: found 'list', allowed get, set"),
        ({"headers": "some"}, "headers: found 'some', allowed none, host, traced"),
        ({"value_bytes": 11}, "value_bytes: found 11, allowed from 12"),
        ({"in_flight": 0}, "in_flight, keys, page_keys: found 0, 10000, 1000, allowed from 1"),
        ({"rate": 5.0, "function": "list-keys"}, "rate: found one with list-keys"),
        ({"beside": "p", "rate": 5.0}, "beside: found it with get at 5 calls/s, allowed with get at 2000"),
        ({"beside": "p", "rate": 2000.0, "function": "set"}, "beside: found it with set at 2000 calls/s"),
        ({"rate": 5.0, "warm_calls": 7}, "warm_calls: found 7 with a rate, allowed 0"),
        ({"each_once": True, "calls": 11, "keys": 10}, "calls: found 11 with each of 10 keys once"),
        (
            {"function": "get-many", "batch_keys": 0},
            "batch_keys: found 0, allowed 1 to 6241: keys that there are, in one",
        ),
        (
            {"function": "set-many", "batch_keys": 11, "keys": 10},
            "batch_keys: found 11, allowed 1 to 10: keys that there",
        ),
        (
            {"function": "set-many", "each_once": True},
            "each_once: found it with set-many, allowed with functions of one",
        ),
    ],
)
def test_loads_that_do_not_fit_are_refused(fields: dict[str, object], error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        load_of(**fields)


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
    with pytest.raises(LoadError, match="found no page of our keys"):
        read_page(result, is_looked_at=True)


# Generators.


def answers(generator: Generator, result: bytes, calls: int) -> bytes:
    """What a server sends of the first calls, with large results in pieces."""
    frames = []
    for number in range(calls):
        reply = b"%b.%d" % (generator.inbox, number)
        frames.append(b"MSG %b 1 _INBOX.server.%d 0\r\n\r\n" % (reply, number))
        for at in range(0, len(result), MAX_PAYLOAD):
            piece = result[at : at + MAX_PAYLOAD]
            frames.append(b"MSG %b.results 1 %d\r\n%b\r\n" % (reply, len(piece), piece))
        frames.append(b"MSG %b.results 1 0\r\n\r\n" % reply)
    return b"".join(frames)


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize(("kind", "value_bytes"), [(SmallGenerator, 64), (FrameGenerator, 64), (FrameGenerator, 5_000)])
async def test_answers_are_counted_wherever_they_are_cut(
    kind: type[SmallGenerator | FrameGenerator], value_bytes: int, step: int
) -> None:
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


@pytest.mark.parametrize("kind", [SmallGenerator, FrameGenerator])
async def test_without_closing_messages_none_is_sent(kind: type[SmallGenerator | FrameGenerator]) -> None:
    generator = kind(load_of(calls=1, in_flight=1, closing=False))
    socket = connected(generator)
    generator.data_received(answers(generator, generator.script.result(0), 1))
    await generator.ended
    assert b".params" not in socket.written


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
    ("old", "new", "error"),
    [
        (b"mno", b"xxx", "call 0: found the result .*xxx.*, expected .*mno"),  # a value
        (b"000000000001", b"000000000009", "call 0: found the result"),  # a key
        (b"\x01\x0c000000000001@" + value_of(key_of(1), 64), b"\x00", "found a result of 161 bytes, expected 239"),
    ],
)
async def test_a_batch_with_one_wrong_value_fails_the_load(old: bytes, new: bytes, error: str) -> None:
    generator = FrameGenerator(load_of(function="get-many", calls=1, in_flight=1, keys=3, batch_keys=3))
    connected(generator)
    right = generator.script.result(0)
    assert right.count(old) >= 1
    generator.data_received(answers(generator, right.replace(old, new, 1), 1))
    with pytest.raises(LoadError, match=error):
        await generator.ended


async def test_a_lost_increment_fails_the_load() -> None:
    generator = SmallGenerator(load_of(function="increment", calls=1, in_flight=1, counted=COUNT_FROM))
    connected(generator)
    generator.data_received(answers(generator, encode_increment_result(COUNT_FROM), 1))
    with pytest.raises(LoadError, match=r"call 0: found the result b'\\x00\\xc0\\x84=', expected b'\\x00\\xc1\\x84='"):
        await generator.ended


WRONG = encode_get_result(value_of(key_of(1), 64))


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (WRONG, r"call 0: found the result .*000000000001m.*, expected .*000000000000m"),
        (b"\0\0", r"call 0: found (the result b'\\x00\\x00'|a result of 2 bytes, expected 67)"),
        (b"", r"call 0: found (the result b''|a result of 0 bytes, expected 67)"),
    ],
)
@pytest.mark.parametrize("kind", [SmallGenerator, FrameGenerator])
async def test_wrong_and_missing_results_fail_the_load(
    kind: type[SmallGenerator | FrameGenerator], result: bytes, error: str
) -> None:
    generator = kind(load_of(calls=1, in_flight=1, keys=1))
    connected(generator)
    generator.data_received(answers(generator, result, 1))
    with pytest.raises(LoadError, match=error):
        await generator.ended


async def test_each_answer_has_its_size_looked_at() -> None:
    generator = SmallGenerator(load_of(calls=2, in_flight=2, keys=1))
    connected(generator)
    right = answers(generator, generator.script.result(0), 2)
    at = right.index(b".1.results 1 67")
    generator.data_received(right[:at] + b".1.results 1 2\r\n\0\0\r\nMSG %b.1.results 1 0\r\n\r\n" % generator.inbox)
    with pytest.raises(LoadError, match="found 1 answers of the right size to 2 calls"):
        await generator.ended


@pytest.mark.parametrize("kind", [SmallGenerator, FrameGenerator])
async def test_the_shape_alone_is_looked_at_where_a_load_says_so(kind: type[SmallGenerator | FrameGenerator]) -> None:
    generator = kind(load_of(calls=1, in_flight=1, keys=1, exact=False))
    connected(generator)
    generator.data_received(answers(generator, WRONG, 1))
    await generator.ended
    assert generator.verified == 1


@pytest.mark.parametrize("kind", [SmallGenerator, FrameGenerator])
@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (b"HMSG %b.0 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", "^nobody serves get at default.kv$"),
        (b"HMSG %b.0 1 12 14\r\nNATS/1.0\r\n\r\nhi\r\n", "found no answer, but .*HMSG"),
        (b"-ERR 'Slow Consumer'\r\nMSG %b", "found no answer, but .*Slow Consumer"),
    ],
)
async def test_what_is_no_answer_fails_the_load(
    kind: type[SmallGenerator | FrameGenerator], frames: bytes, error: str
) -> None:
    generator = kind(load_of(calls=1, in_flight=1))
    socket = connected(generator)
    generator.data_received(frames % generator.inbox)
    with pytest.raises(LoadError, match=error):
        await generator.ended
    assert socket.aborted


@pytest.mark.parametrize("kind", [SmallGenerator, FrameGenerator])
@pytest.mark.parametrize("step", [1, 7, 1_000])
async def test_what_nobody_serves_is_said_wherever_the_message_is_cut(
    kind: type[SmallGenerator | FrameGenerator], step: int
) -> None:
    generator = kind(load_of(function="mixed", calls=40, in_flight=20))
    connected(generator)
    stream = b"HMSG %b.19 1 33 33\r\nNATS/1.0 503\r\nNats-Subject: x\r\n\r\n\r\n" % generator.inbox
    for at in range(0, len(stream), step):
        assert not generator.ended.done()
        generator.data_received(stream[at : at + step])
    with pytest.raises(LoadError, match=r"^nobody serves set at default\.kv$"):
        await generator.ended


@pytest.mark.parametrize("url", ["foo", "nats://", "nats://host", ":4222", "host:", "host:0", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"found the URL '{url}', allowed nats://HOST:PORT"):
        split_address(url)


async def test_a_second_end_fails_the_load() -> None:
    for kind in (SmallGenerator, FrameGenerator):
        generator = kind(load_of(calls=2, in_flight=2, keys=1))
        connected(generator)
        first = answers(generator, generator.script.result(0), 1)
        generator.data_received(first + first[-len(b"MSG %b.0.results 1 0\r\n\r\n" % generator.inbox) :])
        with pytest.raises(LoadError, match=r"call 0: found a (second end|message behind the end)"):
            await generator.ended


async def test_calls_are_done_when_all_are_answered_and_the_warm_ones_are_not_measured() -> None:
    generator = SmallGenerator(load_of(warm_calls=4, calls=6, in_flight=2, keys=1))
    socket = connected(generator)
    for number in range(10):
        assert not generator.ended.done()
        reply = b"%b.%d" % (generator.inbox, number)
        result = generator.script.result(number)
        generator.data_received(
            b"MSG %b.results 1 %d\r\n%b\r\nMSG %b.results 1 0\r\n\r\n" % (reply, len(result), result, reply)
        )
    await generator.ended
    assert generator.outcome().calls == 6
    assert socket.written.count(b"HPUB ") == 10


async def test_loads_are_merged_as_if_they_were_one() -> None:
    outcomes = []
    for calls in (1, 3):
        generator = SmallGenerator(load_of(calls=calls, in_flight=calls, keys=1))
        connected(generator)
        generator.data_received(answers(generator, generator.script.result(0), calls))
        await generator.ended
        outcomes.append(generator.outcome())
    slow = replace(outcomes[0], seconds=2.0, cpu_us={"provider": 8.0}, generator_cpu_us=2.0, max_us=5_000.0)
    slow = replace(slow, latencies=Latencies([5_000_000]).encoded())
    fast = replace(outcomes[1], seconds=1.0, cpu_us={"provider": 4.0}, generator_cpu_us=1.0, max_us=3.0)
    fast = replace(fast, latencies=Latencies([1_000, 2_000, 3_000]).encoded())
    both = merged([slow, fast])
    assert (both.calls, both.seconds, both.keys, both.verified) == (4, 3.0, 4, slow.verified + fast.verified)
    assert (both.cpu_us, both.generator_cpu_us) == ({"provider": 5.0}, 1.25)
    assert both.p50_us == pytest.approx(2, rel=0.001)
    assert both.max_us == 5_000.0
    assert len(Latencies.merged([both.latencies])) == 4
    assert merged([fast]).p99_us == pytest.approx(3, rel=0.001)


class Bursts(SmallGenerator):
    """Keeps what was fired and when it was due."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        self.fired: list[tuple[int, int]] = []

    def serve(self) -> None: ...

    def fire(self, count: int, start_ns: int) -> None:
        self.fired.append((count, start_ns))
        self.sent += count


async def test_calls_of_an_open_loop_count_from_when_they_were_due() -> None:
    generator = Bursts(load_of(rate=2_500.0, seconds=0.01))
    generator.fire_due(999_999)
    assert generator.fired == []
    generator.fire_due(5_000_001)  # late: five bursts are due
    assert generator.fired == [(2, 1_000_000), (3, 2_000_000), (2, 3_000_000), (3, 4_000_000), (2, 5_000_000)]
    generator.fire_due(60_000_000)
    assert sum(count for count, _ in generator.fired) == generator.load.calls_max == 25


async def test_a_lost_connection_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    connected(generator)
    generator.connection_lost(None)
    with pytest.raises(WireError, match="the NATS connection is lost: closed by the server"):
        await generator.ended


async def test_a_refusal_in_the_greeting_is_an_error() -> None:
    generator = SmallGenerator(load_of())
    generator.connection_made(Socket())
    generator.data_received(INFO + b"-ERR 'Authorization Violation'\r\n")
    with pytest.raises(WireError, match="the NATS server says -ERR 'Authorization Violation'"):
        await generator.ended


# The bare responder.


@pytest.fixture
async def responder() -> AsyncIterator[Responder]:
    responder = Responder(HostData(config={"value_bytes": "5000", "page_keys": "3", "batch_keys": "7"}))
    connected(responder)
    yield responder
    responder.ended.cancel()


def invocation(number: int, call: int, params: bytes) -> bytes:
    """A call as the server passes it on."""
    block = b"NATS/1.0\r\n\r\n"
    sizes = b"%d %d" % (len(block), len(block) + len(params))
    return b"HMSG some.subject %d _INBOX.c.%d %b\r\n%b%b\r\n" % (number, call, sizes, block, params)


RESULT_BYTES: dict[Function, int] = {
    "get": 5_004,
    "delete": 1,
    "exists": 2,
    "list-keys": 2 + 3 * 13 + 11,
    "get-many": 2 + 7 * (1 + 13 + 5_002),
    "set-many": 1,
    "increment": 4,
}


@pytest.mark.parametrize("function", RESULT_BYTES)
@pytest.mark.parametrize("step", [1, 11, 10_000])
async def test_the_bare_responder_answers_wherever_a_frame_is_cut(
    responder: Responder, function: Function, step: int
) -> None:
    number = NUMBERS[function]
    socket = responder.transport
    assert isinstance(socket, Socket)
    socket.written = b""
    stream = invocation(number, 0, b"params") + b"PING\r\n" + invocation(number, 1, b"\r\nparams\r\n")
    for at in range(0, len(stream), step):
        responder.data_received(stream[at : at + step])
    assert socket.written.count(b"PONG\r\n") == 1
    for call in (0, 1):
        assert re.search(rb"PUB _INBOX\.c\.%d _INBOX\.\w+ 0\r\n\r\n" % call, socket.written)
        sizes = re.findall(rb"PUB _INBOX\.c\.%d\.results (\d+)\r\n" % call, socket.written)
        assert sizes[-1] == b"0"
        assert sum(map(int, sizes)) == RESULT_BYTES[function]
        assert max(map(int, sizes)) <= MAX_PAYLOAD


async def test_the_bare_responder_waits_for_all_of_a_large_set(responder: Responder) -> None:
    socket = responder.transport
    assert isinstance(socket, Socket)
    generator = FrameGenerator(load_of(function="set", calls=1, in_flight=1, value_bytes=5_000, headers="none"))
    connected(generator)
    responder.data_received(invocation(NUMBERS["set"], 0, generator.script.frame(0).tail[:-2]))
    assert b".results" not in socket.written
    (inbox,) = re.findall(rb"PUB _INBOX\.c\.0 (\S+) 0\r\n", socket.written)
    params = b"%b.params %d" % (inbox, NUMBERS["params"])
    pieces = [b"MSG %b %d\r\n%b\r\n" % (params, len(piece), piece) for piece in generator.script.later]
    responder.data_received(b"".join(pieces[:-1]))
    assert b".results" not in socket.written
    responder.data_received(pieces[-1] + b"MSG %b 0\r\n\r\n" % params)
    assert socket.written.endswith(b"PUB _INBOX.c.0.results 1\r\n\0\r\nPUB _INBOX.c.0.results 0\r\n\r\n")


# The watcher.


@pytest.mark.parametrize("is_stuck", [False, True])
@pytest.mark.parametrize("step", [1, 11, 10_000])
async def test_a_watcher_counts_calls_and_answers_unless_it_is_stuck(is_stuck: bool, step: int) -> None:
    watcher = WatchingComponent("default.component", is_stuck)
    socket = connected(watcher)
    subject = b"default.component.wrpc.0.0.1.wrpc:keyvalue/watcher@0.2.0-draft.*"
    assert b"SUB %b default.component 1\r\n" % subject in socket.written
    assert watcher.listening.done()
    socket.written = b""
    plain = b"MSG %bon-delete 1 _INBOX.c.1 8\r\n\r\nparams\r\n" % subject[:-1]
    stream = invocation(1, 0, b"\r\nparams\r\n") + b"PING\r\n" + plain
    for at in range(0, len(stream), step):
        watcher.data_received(stream[at : at + step])
    assert watcher.told == 2
    assert socket.written.count(b"PONG\r\n") == 1
    replies = re.findall(rb"PUB (\S+) _INBOX\.\w+ 0\r\n\r\nPUB (\S+)\.results 0\r\n\r\n", socket.written)
    assert replies == ([] if is_stuck else [(b"_INBOX.c.0",) * 2, (b"_INBOX.c.1",) * 2])
    watcher.ended.cancel()


async def test_what_is_no_call_ends_a_watcher() -> None:
    watcher = WatchingComponent("default.component", is_stuck=False)
    socket = connected(watcher)
    watcher.data_received(b"-ERR 'Slow Consumer'\r\n")
    with pytest.raises(LoadError, match=r"found no call, but .*Slow Consumer"):
        await watcher.ended
    assert socket.aborted
