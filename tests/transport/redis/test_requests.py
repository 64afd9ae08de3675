"""Requests: however the bytes are cut, the same requests come out. Malformed bytes cost bounded memory."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_provider.host.secret import Secret
from keyvalue_transport.redis.requests import HELD_READ_BYTES, Request, RequestReader
from tests.integration.redis_server import encode_request
from tests.transport.redis.side import compare

REQUEST_BYTES_MAX = 1 << 20
#: Parts that look like the beginning of a request.
parts = st.binary(max_size=12) | st.sampled_from(
    [b"GET", b"\r\n*2\r\n$3", b"*123456789", b"$5\r\n", b"x" * 300, b">1000000", b"*-1\r\n"]
)
requests = st.lists(st.lists(parts, min_size=1, max_size=6), max_size=8)


def read_all(read: bytes, cuts: list[int], request_bytes_max: int = REQUEST_BYTES_MAX) -> tuple[list[Request], str]:
    """Return the requests in some bytes, cut at offsets, and the error."""
    reader = RequestReader(request_bytes_max)
    found: list[Request] = []
    at = 0
    for cut in [*sorted(cuts), len(read)]:
        if cut > at:
            found += reader.feed(read[at:cut])
            at = cut
        if reader.error is not None:
            break
    assert reader.error is not None or reader.scanner.held_bytes <= len(read) + HELD_READ_BYTES * (len(cuts) + 1)
    return found, str(reader.error or "")


@given(requests=requests, data=st.data())
def test_requests_come_out_however_they_are_cut(requests: list[Request], data: st.DataObject) -> None:
    read = b"".join(map(encode_request, requests))
    cuts = data.draw(st.lists(st.integers(0, len(read)), max_size=10))
    assert read_all(read, cuts) == (requests, "")
    assert read_all(read, list(range(len(read)))) == (requests, "")


@settings(max_examples=500)
@given(read=st.lists(st.sampled_from([b"*", b"$", b"1", b"2", b"-", b"\r\n", b"\n", b":", b"a", b'"', b"'", b"\\x4"])
                     | st.binary(max_size=3), max_size=30).map(b"".join), data=st.data())  # fmt: skip
def test_any_bytes_mean_the_same_however_they_are_cut(read: bytes, data: st.DataObject) -> None:
    """The two readers agree: whole reads go to hiredis, single bytes to the scanner."""
    whole = read_all(read, [])
    assert read_all(read, data.draw(st.lists(st.integers(0, len(read)), max_size=5))) == whole
    assert read_all(read, list(range(len(read)))) == whole


def test_an_empty_array_is_an_empty_request_however_it_is_cut() -> None:
    assert read_all(b"*0\r\n", [2]) == read_all(b"*0\r\n", []) == ([[]], "")


@pytest.mark.parametrize(
    "read",
    [
        b"*1000000000\r\n",
        b"*1\r\n*1000000000\r\n",
        b"*2\r\n$3\r\nGET\r\n*1000000000\r\n",
        b"%1000000000\r\n",
        b"*1048576\r\n" * 100,
        b"*1\r\n$536870912\r\n",
        b"*1\r\n$1048577\r\nx",
        b"*99999\r\n" * 100,
        b"*9\r\n" * 10_000,
        b"*99\r\n" * 10_000,
        *(b"*1\r\n%b99999999\r\n" % kind for kind in (b">", b"~", b"|", b"%")),
        *(b"%b99999999\r\n" % kind for kind in (b">", b"~", b"|", b"%")),
    ],
)
def test_a_length_takes_no_memory(read: bytes) -> None:
    tracemalloc.start()
    try:
        for cuts in ([], list(range(len(read)))):
            read_all(read, cuts)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


def test_held_bytes_are_the_memory_of_a_request_in_tiny_reads() -> None:
    reader = RequestReader(REQUEST_BYTES_MAX)
    tracemalloc.start()
    try:
        reader.feed(b"*2\r\n$3\r\nSET\r\n$16384\r\n")
        for number in range(8_000):
            reader.feed(b"%d" % (10 + number % 90))
        allocated_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 * allocated_bytes < reader.scanner.held_bytes < 2 * allocated_bytes


@pytest.mark.parametrize("kind", list(b":-+=(#_,!>~|%$*x"))
def test_hiredis_reads_no_more_types_than_requests_have(kind: int) -> None:
    """It knows all types of RESP3, also at the beginning of a request, and in its arguments."""
    kinds = bytes([kind])
    for part in (
        b"%b4\r\nPING\r\n",
        b"%bPING\r\n",
        b"%b1\r\n$4\r\nPING\r\n",
        b"%b0\r\n\r\n",
        b"%b-1\r\n",
        b"%b8\r\ntxt:PING\r\n",
    ):
        for before in (b"", b"*1\r\n", b"*1\r\n$4\r\nPING\r\n", b"*2\r\n$4\r\nECHO\r\n", b"*2\r\n$1\r\n%b\r\n" % kinds):
            read = before + part % kinds + encode_request([b"PING"])
            assert read_all(read, []) == read_all(read, list(range(len(read))))


def test_a_large_value_is_joined_once() -> None:
    """Reading takes time in proportion to the bytes. Otherwise, this test takes minutes."""
    value = random.Random(1).randbytes(30_000_000)
    read = encode_request([b"SET", b"k", value])
    found, _ = read_all(read, list(range(0, len(read), 4096)), 1 << 26)
    assert found == [[b"SET", b"k", value]]


LONG = [b"MGET", *[b"k"] * 10]
BULK, MULTIBULK = b"unauthenticated bulk length", b"unauthenticated multibulk length"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        ([LONG], MULTIBULK),
        ([[b"GET", b"k" * 16_385]], BULK),
        ([[b"AUTH", b"default", b"wrong"], LONG], MULTIBULK),
        ([[b"PING"], [b"auth", b"secret"], LONG], b"*10\r\n" + b"$-1\r\n" * 10),
        (
            [[b"HELLO", b"2", b"AUTH", b"default", b"secret"], [b"ECHO", b"k" * 16_385], LONG],
            b"*10\r\n" + b"$-1\r\n" * 10,
        ),
        ([[b"AUTH", b"secret"], [b"RESET"], [b"QUIT"], LONG], b"+OK\r\n"),
    ],
)
def test_limits_before_a_password(sent: list[list[bytes]], answer: bytes) -> None:
    """They hold however the bytes are cut, and end within a read."""
    side = asyncio.run(compare([b"".join(map(encode_request, sent))], redis_password=Secret("secret")))
    assert answer in side.transport.written
    assert side.transport.is_closed == (not answer.startswith(b"*"))


def test_logins_take_time_in_proportion_to_their_bytes() -> None:
    """Otherwise, this test takes some seconds."""
    read, at, found = b"AUTH\n" * 50_000, 0, 0
    reader = RequestReader(REQUEST_BYTES_MAX)
    began_s = process_time()
    while at < len(read):
        requests, at = reader.feed_before_auth(read, at)
        found += len(requests)
    assert found == 50_000
    assert process_time() - began_s < 2


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_million_random_inputs() -> None:
    """Any bytes, cut anywhere, end in requests, an error, or a wait. No exception leaves the reader."""
    chance = random.Random(22)
    pieces = [
        b"*",
        b"$",
        b"\r\n",
        b"1",
        b"3",
        b"GET",
        b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
        b"\n",
        b'"',
        b"-1",
        b":",
        b"x" * 50,
    ]
    for _ in range(1_000_000):
        read = b"".join(chance.choices(pieces, k=chance.randrange(1, 9)))
        cut = chance.randrange(len(read) + 1)
        reader = RequestReader(1000)
        reader.feed(read[:cut])
        if reader.error is None:
            reader.feed(read[cut:])
        assert reader.scanner.held_bytes <= len(read) + 2 * HELD_READ_BYTES
