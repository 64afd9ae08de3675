"""The headers of an invocation: one table of blocks for our reader and nats-py's, and callers that are kept by block."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from keyvalue_transport.nats.headers import (
    BLOCK_BYTES_MAX,
    BLOCK_READ_BYTES_MAX,
    CALLER_CHARACTERS_MAX,
    CALLERS_MAX,
    TRACEPARENT_CHARACTERS_MAX,
    CallerCache,
    Headers,
    headers_of,
    read_headers,
)
from keyvalue_transport.nats.opening import LastingClient
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller

FIRST = b"NATS/1.0\r\n"
MIB = 1024 * 1024
#: The newest nats-py reads lines, as we do. Older ones use an e-mail parser, which reads malformed headers differently.
READS_LINES = hasattr(Client, "_parse_header_lines")


def nats_py_headers(block: bytes, kind: type[Client] = Client) -> Headers:
    """Return what the plain path finds, where nats-py reads the headers."""
    errors: list[Exception] = []

    async def read() -> Any:
        client = kind()

        async def note(error: Exception) -> None:
            errors.append(error)

        client._error_cb = note
        return await client._process_headers(block)

    headers = asyncio.run(read())
    assert errors == []
    return headers_of(headers)


WELL_FORMED = {
    "no headers": (b"\r\n", None, None, None),
    "all": (b"source-id: a\r\nlink-name: l\r\ntraceparent: 00-1-2-01\r\n\r\n", "a", "l", "00-1-2-01"),
    "another order": (b"traceparent: t\r\nlink-name: l\r\nsource-id: a\r\n\r\n", "a", "l", "t"),
    "one of them": (b"link-name: l\r\n\r\n", None, "l", None),
    "no space": (b"source-id:a\r\n\r\n", "a", None, None),
    "colons": (b"source-id:a:b\r\nlink-name: : \r\n\r\n", "a:b", ":", None),
    "others": (b"other: source-id: a\r\nx-source-id: b\r\nlink-name-2: l\r\n\r\n", None, None, None),
    "equal names": (b"source-id: first\r\nlink-name: l\r\nsource-id: last\r\n\r\n", "last", "l", None),
}
MALFORMED = {
    "no end": (b"source-id: ab", "ab", None, None),
    "an end that is cut": (b"source-id: ab\r\nlink-name: l\r", "ab", "l", None),
    "no empty line": (b"source-id: ab\r\n", "ab", None, None),
    "cut within a name": (b"link-name: l\r\nsource-i", None, "l", None),
    "no first line's end": (b"", None, None, None),
    "an empty value": (b"source-id:\r\nlink-name: \r\n\r\n", "", "", None),
    "a value cleared by a later one": (b"source-id: a\r\nsource-id:\r\n\r\n", "", None, None),
    "white space around a name": (b" source-id: a\r\nlink-name\t: l\r\n\r\n", "a", "l", None),
    "white space around a value": (b"source-id: \t a \t\r\nlink-name: a b\r\n\r\n", "a", "a b", None),
    "white space within a name": (b"source- id: a\r\nlink name: l\r\n\r\n", None, None, None),
    "no colon": (b"source-id\r\nlink-name l\r\ntraceparent: t\r\n\r\n", None, None, "t"),
    "a folded line": (b"source-id: a\r\n b\r\nlink-name: l\r\n\r\n", "a", "l", None),
    "a folded line with a colon": (b"source-id: a\r\n link-name: l\r\n\r\n", "a", "l", None),
    "LF alone": (b"source-id: a\nlink-name: l\r\n\r\n", "a\nlink-name: l", None, None),
    "another case": (b"Source-Id: a\r\nLINK-NAME: l\r\n\r\n", None, None, None),
    "not ASCII": (b"source-id: \xd0\xb6\r\nlink-name: \xe2\x82\xac\r\n\r\n", "\u0436", "\u20ac", None),
    "not UTF-8": (b"source-id: a\xff\r\nlink-name: l\r\n\r\n", "a\ufffd", "l", None),
    "a name that is not ASCII": (b"source-id\xd0\xb6: a\r\n\xa0link-name: l\r\n\r\n", None, None, None),
    "an empty line between": (b"source-id: a\r\n\r\nlink-name: l\r\n\r\n", "a", "l", None),
}


@pytest.mark.parametrize("case", [*WELL_FORMED, *MALFORMED])
def test_blocks(case: str) -> None:
    lines, source_id, link_name, traceparent = (WELL_FORMED | MALFORMED)[case]
    block = (FIRST + lines)[:-2] if case == "no first line's end" else FIRST + lines
    expected = Headers(Caller(source_id, link_name), traceparent)
    assert read_headers(block) == expected
    assert CallerCache().find(block) == expected.caller
    if (case in WELL_FORMED or READS_LINES) and case != "no first line's end":  # which ends nats-py's reading for good
        assert nats_py_headers(block) == expected


@pytest.mark.parametrize("over", [0, 1, 100_000])
@pytest.mark.parametrize("character", [b"a", "\u0436".encode(), "\U0001f600".encode(), b"\xff"])
@pytest.mark.parametrize("name", [b"source-id", b"link-name", b"traceparent"])
def test_a_long_caller_is_nobody_and_a_long_trace_is_none(name: bytes, character: bytes, over: int) -> None:
    """A short header beside a long one must not make the caller somebody: without a link name, it has the default link."""
    characters_max = TRACEPARENT_CHARACTERS_MAX if name == b"traceparent" else CALLER_CHARACTERS_MAX
    headers = {b"source-id": b"a", b"link-name": b"l", b"traceparent": b"t", name: character * (characters_max + over)}
    block = FIRST + b"".join(b"%b: %b\r\n" % header for header in headers.items()) + b"\r\n"
    texts = {name: value.decode(errors="replace") for name, value in headers.items()}
    caller = Caller(texts[b"source-id"], texts[b"link-name"])
    traceparent: str | None = texts[b"traceparent"]
    if over and name == b"traceparent":
        traceparent = None
    elif over:
        caller = ANONYMOUS
    if len(block) > BLOCK_READ_BYTES_MAX:
        caller, traceparent = Headers(ANONYMOUS, None)
    assert read_headers(block) == Headers(caller, traceparent)
    if READS_LINES:
        assert nats_py_headers(block, LastingClient) == read_headers(block)
    cache = CallerCache()
    for _ in range(2):
        assert (cache.callers.get(block) or cache.find(block)) == caller
    assert all(len(known) <= BLOCK_BYTES_MAX for known in cache.callers)


@pytest.mark.parametrize("lines", [b"source-id: " + b"a" * MIB, b"x" * MIB + b": a", b"ab: c\r\n" * (MIB // 7)])
def test_a_large_block_takes_little_memory(lines: bytes) -> None:
    """Count what is kept, and what is needed while it is read."""
    block = FIRST + lines + b"\r\nlink-name: l\r\n\r\n"
    cache, queued = CallerCache(), []
    tracemalloc.start()
    for _ in range(3):
        cache.find(block)
        queued.append(asyncio.run(LastingClient()._process_headers(block)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [headers_of(headers) for headers in queued] == [read_headers(block)] * 3
    assert kept < 100_000
    assert peak < 25 * MIB


def test_without_a_block_there_is_no_caller() -> None:
    assert read_headers(b"") == headers_of(None) == headers_of({}) == Headers(ANONYMOUS, None)


@pytest.mark.parametrize("status", [b" 503", b" 100 Idle Heartbeat", b" 404 No: Messages"])
def test_a_status_is_not_a_header(status: bytes) -> None:
    block = b"NATS/1.0%b\r\nsource-id: a\r\n\r\n" % status
    assert read_headers(block) == Headers(Caller("a", None), None)
    if READS_LINES:
        assert nats_py_headers(block) == read_headers(block)
    bare = b"NATS/1.0%b\r\n\r\n" % status
    assert read_headers(bare) == nats_py_headers(bare) == Headers(ANONYMOUS, None)


NAMES = st.sampled_from([b"source-id", b"link-name", b"traceparent", b"other", b"x-source-id", b"link-name-2"])
#: Parts of lines, with all the faults that they can have.
PARTS = NAMES | st.sampled_from(
    [b":", b": ", b" ", b"\t", b"\r", b"\n", b"\r\n", b"a", b"\xff", b"\x85", b"\r\ntraceparent:"]
)


@pytest.mark.skipif(not READS_LINES, reason="this nats-py parses malformed headers as an e-mail's")
@given(st.lists(PARTS, max_size=14).map(b"".join))
def test_any_bytes_are_read_as_nats_py_reads_them(lines: bytes) -> None:
    block = FIRST + lines
    assert read_headers(block) == nats_py_headers(block)


@given(st.lists(PARTS, max_size=8).map(b"".join), st.lists(PARTS, max_size=14).map(b"".join))
@example(b"NATS", b"\r\ntraceparent: t\r\nsource-id: a\r\n")
def test_a_block_without_its_trace_has_the_same_caller(first: bytes, lines: bytes) -> None:
    """Remove the trace even from a malformed block, since nothing before us checks it."""
    cache = CallerCache()
    for block in (FIRST + lines, first + lines):
        for _ in range(2):  # the second time it may be kept
            assert (cache.callers.get(block) or cache.find(block)) == read_headers(block).caller


def test_a_traced_block_is_kept_without_its_trace() -> None:
    """The trace differs in every call, and the rest repeats. A caller writes the block, so what is kept is bounded."""
    cache = CallerCache()
    rest = FIRST + b"source-id: a\r\n\r\n"
    for number, at in enumerate((len(FIRST), len(rest) - 2, len(FIRST))):
        caller = cache.find(rest[:at] + b"traceparent: %d\r\n" % number + rest[at:])
        assert cache.callers == {rest: caller}
    many = b"".join(b"traceparent: %d\r\n" % number for number in range(2000))
    assert cache.find(FIRST + many + rest[len(FIRST) :]) == caller
    assert cache.callers == {rest: caller}
    for number in range(CALLERS_MAX - 1):
        cache.find(FIRST + b"source-id: %d\r\n\r\n" % number)
    assert len(cache.callers) == CALLERS_MAX
    assert cache.find(FIRST + b"\r\n") == ANONYMOUS
    assert len(cache.callers) == 1


@pytest.mark.parametrize("over", [0, 1, 900_000])
def test_a_block_that_is_too_long_is_not_read(over: int) -> None:
    """A block of 1 MB with short lines took 40 ms. Its caller must not lose its link name alone."""
    first, last = FIRST + b"source-id: a\r\ntraceparent: t\r\n", b"link-name: l\r\n\r\n"
    room = BLOCK_READ_BYTES_MAX + over - len(first) - len(last)
    block = first + b"a:\r\n" * (room // 4 - 1) + b"a:%b\r\n" % (b"x" * (room % 4)) + last
    assert len(block) == BLOCK_READ_BYTES_MAX + over
    expected = Headers(ANONYMOUS, None) if over else Headers(Caller("a", "l"), "t")
    assert read_headers(block) == expected
    assert CallerCache().find(block) == expected.caller
    assert nats_py_headers(block, LastingClient) == expected
