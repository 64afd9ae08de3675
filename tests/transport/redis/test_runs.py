"""Runs: they get the answers, and have the effects, of the same requests one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_engine import Bucket
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.redis.requests import RequestReader
from keyvalue_transport.redis.runs import (
    PART_REQUESTS_MAX,
    RUN_BYTES_MIN,
    RUN_REQUESTS_MIN,
    RequestRun,
    run_of,
    split_run,
)
from keyvalue_transport.redis.session import OUTPUT_BYTES_MAX
from tests.integration.redis_server import encode_request
from tests.provider.keyvalue.waiting_store import LATER
from tests.transport.redis.side import Side, compare

GET, SET = encode_request([b"GET", b"abcd"]), encode_request([b"SET", b"abcd", b"1234"])
#: Parts of requests, which are also keys and values.
PARTS = [GET[:18], GET[16:], GET[:-2], SET[:17], SET[17:-2], SET, b"\r\n$4\r\n", b"\r\n"]
#: Most keys and values have four bytes, so that many runs have requests of one size. The store takes four keys.
FOUR = [b"abcd", b"efgh", b"ijkl", b"mnop", b"qrst", b"\r\n$4", b"\r\n*2"]
keys = st.sampled_from(FOUR) | st.sampled_from([b"", b"k", b"x" * 9, b"x" * 99, b"x" * 100, b"x" * 121, *PARTS])
values = st.sampled_from(FOUR) | st.sampled_from([b"", b"v", b"1" * 490, b"1" * 511, b"1" * 540, b"1" * 600, *PARTS])
requests = st.one_of(
    st.lists(st.tuples(st.just(b"GET"), st.sampled_from(FOUR)), min_size=4, max_size=12),
    st.lists(st.tuples(st.just(b"SET"), st.sampled_from(FOUR), st.sampled_from(FOUR)), min_size=4, max_size=12),
    st.lists(st.tuples(st.sampled_from([b"GET", b"get"]), keys), min_size=4, max_size=12),
    st.lists(st.tuples(st.sampled_from([b"SET", b"set"]), keys, values), min_size=4, max_size=12),
    st.lists(st.sampled_from([(b"GET",), (b"GET", b"abcd"), (b"SET", b"abcd", b"1", b"XX"), ()]), max_size=6),
    st.sampled_from([[(b"KEYS", b"abcd")], [(b"DEL", b"abcd", b"efgh")], [(b"SELECT", b"1")], [(b"HELLO", b"3")]]),
    st.sampled_from([[(b"AUTH", b"default", b"secret")], [(b"RESET",)], [(b"QUIT",)]]),
)
#: A byte that is replaced, or added: its place, the byte, and True if it is added.
faults = st.none() | st.tuples(st.floats(0, 0.99), st.sampled_from(b"*$234\r\nGTk+"), st.booleans())


def encode(found: tuple[Sequence[Sequence[bytes]], tuple[float, int, bool] | None]) -> bytes:
    """Return the bytes of requests, with a fault."""
    read, fault = b"".join(map(encode_request, found[0])), found[1]
    if fault is not None and read:
        at = int(fault[0] * len(read))
        read = read[:at] + bytes([fault[1]]) + read[at + (not fault[2]) :]
    return read


pieces = st.tuples(requests, faults).map(encode)
#: A place in a piece at which a read ends, or None, and True if time passes then.
cuts = st.none() | st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.booleans())


def reads_of(steps: list[tuple[bytes, tuple[float, bool] | None]]) -> list[bytes]:
    """Return the reads, with an empty one where time passes."""
    reads, read = [], b""
    for piece, cut in steps:
        at = len(piece) if cut is None else int(cut[0] * len(piece))
        read += piece[:at]
        if cut is not None:
            reads += [read, b""] if cut[1] else [read]
            read = piece[at:]
    return [*reads, read]


@settings(max_examples=200)
@given(
    steps=st.lists(st.tuples(pieces, cuts), min_size=1, max_size=6),
    later=st.sampled_from([None, None, *LATER.values()]),
    options=st.sampled_from(
        [
            *({}, {"access": "read-only"}, {"strict_buckets": True}, {"ttl_ms": 1_000_000}, {"require_link": True}),
            *({"redis_request_bytes_max": 150}, {"redis_password": Secret("secret")}, {"answer_bytes_max": 100}),
        ]
    ),
)
def test_runs_get_the_answers_of_single_requests(steps: list[Any], later: Any, options: dict[str, Any]) -> None:
    asyncio.run(compare(reads_of(steps), later, **options))


def assert_is_run_of(read: bytes, run: RequestRun) -> None:
    """Assert that a parser finds the same requests."""
    reader = RequestReader(10_000)
    assert run_of(reader.feed(read)) == run
    assert not reader.scanner.held_bytes


@settings(max_examples=300)
@given(read=st.lists(pieces, min_size=1, max_size=3).map(b"".join))
def test_a_run_consists_of_the_requests_that_a_parser_finds(read: bytes) -> None:
    run = split_run(read)
    if run is not None:
        assert_is_run_of(read, run)


@pytest.mark.parametrize("request_", [GET, SET, encode_request([b"SET", b"k", b""])])
def test_a_request_that_differs_in_one_byte_ends_a_run(request_: bytes) -> None:
    for place in range(len(request_)):
        for byte in b"*$0123456\r\nGTk+ESe":
            other = request_[:place] + bytes([byte]) + request_[place + 1 :]
            run = split_run(request_ * 2 + other + request_ * 2)
            if run is not None:
                assert_is_run_of(request_ * 2 + other + request_ * 2, run)
    for requests in ([[b"GET", b"k"], [b"DEL", b"k"]], [[b"GET", b"k"], [b"GET"]], [[b"SET", b"k", b"v"], []]):
        assert run_of([requests[0], requests[1], requests[0]]) is None
        assert run_of(requests) is run_of(requests[::-1]) is None


@pytest.mark.parametrize("key_bytes", [0, 1, 9, 10, 16, 99])
@pytest.mark.parametrize("value_bytes", [None, 0, 1, 9, 10, 64, 99, 100, 400])
def test_requests_of_one_size_need_no_parser(key_bytes: int, value_bytes: int | None) -> None:
    for number in (2, RUN_REQUESTS_MIN, 100):
        for word in (b"GET", b"get") if value_bytes is None else (b"SET", b"set"):
            parts = [] if value_bytes is None else [b"v" * value_bytes]
            found = [[word, b"%d" % (place % 10) * key_bytes, *parts] for place in range(number)]
            read = b"".join(map(encode_request, found))
            run = split_run(read)
            assert run is not None
            assert run == run_of(found)
            assert split_run(read[:-1]) is None
            assert number < RUN_REQUESTS_MIN or len(read) >= RUN_BYTES_MIN


@pytest.mark.parametrize("second", [b"efgh", b"longer"])
@pytest.mark.parametrize("cut", [0, 5])
def test_no_request_of_a_run_is_executed_alone(monkeypatch: pytest.MonkeyPatch, second: bytes, cut: int) -> None:
    """This holds also for the whole requests of reads that end in the middle of a request."""

    async def run() -> None:
        side = Side()
        await side.receive(encode_request([b"PING"]))  # ends the check of the password
        monkeypatch.setattr(Service, "get", None)
        monkeypatch.setattr(Service, "set", None)
        for word, parts, answer in ((b"SET", [b"1"], b"+OK\r\n"), (b"GET", [], b"$1\r\n1\r\n")):
            stream = b"".join(encode_request([word, key, *parts]) for key in (b"abcd", second) * 8)
            side.transport.written.clear()
            for read in (stream[: 8 * len(stream) // 16 - cut], stream[8 * len(stream) // 16 - cut :]):
                await side.receive(read)
            assert side.transport.written == answer * 16

    asyncio.run(run())


@pytest.mark.bulk
def test_the_output_of_a_long_run_is_written_in_parts() -> None:
    number = 3 * OUTPUT_BYTES_MAX // 500
    gets = [[b"GET", b"k"], [b"GET", b"kk"]]

    async def run() -> None:
        side = await compare(
            [
                *(encode_request([b"SET", key, b"x" * 500]) for _, key in gets),
                encode_request(gets[0]) * number,
                b"".join(encode_request(gets[place % 2]) for place in range(number)),
                encode_request([b"SET", b"k", b"y"]) * number,
            ]
        )
        assert number > 3 * PART_REQUESTS_MAX
        assert side.transport.largest_bytes < 1.3 * OUTPUT_BYTES_MAX

    asyncio.run(run())


@pytest.mark.parametrize(("word", "parts", "functions"), [(b"GET", [], ["get", "get_many"]), (b"SET", [b"1"], ["set"])])
@pytest.mark.parametrize("last", [b"ijkl", b"longer"])
def test_an_internal_error_is_the_answer_of_its_request(
    monkeypatch: pytest.MonkeyPatch, word: bytes, parts: list[bytes], functions: list[str], last: bytes
) -> None:
    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(bucket: Bucket, key: Any, *rest: Any) -> Any:
            if b"fail" in (key, *key):
                raise RuntimeError
            return function(bucket, key, *rest)

        return call

    for name in functions:
        monkeypatch.setattr(Bucket, name, failing(getattr(Bucket, name)))
    requests = [encode_request([word, key, *parts]) for key in (b"abcd", b"fail", b"efgh", b"fail", last)]
    side = asyncio.run(compare([b"".join(requests)]))
    assert side.transport.written.count(b"internal error") == 2
