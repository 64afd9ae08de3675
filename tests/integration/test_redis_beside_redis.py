"""The Redis listener beside a real redis-server: the same requests get the same answers.

docs/redis.md lists the differences. The requests here avoid them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import NatsServer
from tests.integration.redis_provider import redis_provider
from tests.integration.redis_server import Wire, redis_server

KEYS = [b"", b"a", b"b", b"key", b"\xff\x00\r\n", b"a*c", b"[x]"]
keys = st.sampled_from(KEYS)
numbers = st.sampled_from([b"0", b"1", b"-1", b"10", b"9223372036854775807", b"-9223372036854775808"])
malformed = st.sampled_from([b"", b"x", b"1.5", b"+1", b"01", b" 1", b"-0", b"9223372036854775808", b"1e3"])
values = numbers | malformed | st.binary(max_size=20)
#: No key expires during the test: a time is long, or past.
times = st.sampled_from([b"100000", b"1000000", b"0", b"-5", b"9223372036854775807", b"9223372036854775", b"abc"])
PAST, FUTURE = b"1000000000", b"4000000000"
moments = st.sampled_from([PAST, FUTURE, b"0", b"-1", b"x", b"9223372036854775807"])
moments_ms = st.sampled_from([PAST + b"000", FUTURE + b"123", b"0", b"-1", b"9223372036854775807"])
patterns = st.sampled_from([b"*", b"a*", b"?", b"[ab]", b"[^a]", b"\\[x\\]", b"a\\*c", b"[a-c]*", b"", b"*\xff*"])
anything = keys | values


def command(name: bytes, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    return st.tuples(st.sampled_from([name, name.lower()]), *parts).map(list)


def joined(*parts: st.SearchStrategy[list[bytes]]) -> st.SearchStrategy[list[bytes]]:
    return st.tuples(*parts).map(lambda found: [part for each in found for part in each])


lifetimes = (
    st.tuples(st.sampled_from([b"EX", b"px"]), times).map(list)
    | st.tuples(st.just(b"EXAT"), moments).map(list)
    | st.tuples(st.just(b"PXAT"), moments_ms).map(list)
)
set_options = st.lists(
    lifetimes | st.sampled_from([[b"NX"], [b"xx"], [b"GET"], [b"KEEPTTL"], [b"EX"], [b"what"]]), max_size=3
).map(lambda found: [part for each in found for part in each])
getex_options = st.lists(lifetimes | st.just([b"PERSIST"]), max_size=2).map(
    lambda found: [part for each in found for part in each]
)
conditions = st.lists(st.sampled_from([b"NX", b"XX", b"GT", b"lt", b"no"]), max_size=2)
pairs = st.lists(st.tuples(keys, values), min_size=1, max_size=4).map(
    lambda found: [part for each in found for part in each]
)
some_keys = st.lists(keys, min_size=1, max_size=4)
requests = st.one_of(
    command(b"GET", keys),
    joined(command(b"SET", keys, values), set_options),
    command(b"SETNX", keys, values),
    command(b"SETEX", keys, times, values),
    command(b"PSETEX", keys, times, values),
    command(b"GETSET", keys, values),
    command(b"GETDEL", keys),
    joined(command(b"GETEX", keys), getex_options),
    joined(command(b"MGET"), some_keys),
    joined(command(b"MSET"), pairs),
    joined(command(b"MSETNX"), pairs),
    joined(command(b"DEL"), some_keys),
    joined(command(b"UNLINK"), some_keys),
    joined(command(b"EXISTS"), some_keys),
    command(b"INCR", keys),
    command(b"DECR", keys),
    command(b"INCRBY", keys, numbers | malformed),
    command(b"DECRBY", keys, numbers | malformed),
    command(b"STRLEN", keys),
    command(b"APPEND", keys, values),
    command(b"TYPE", keys),
    command(b"TTL", keys),
    command(b"PTTL", keys),
    joined(command(b"EXPIRE", keys, times), conditions),
    joined(command(b"PEXPIRE", keys, times), conditions),
    joined(command(b"EXPIREAT", keys, moments), conditions),
    joined(command(b"PEXPIREAT", keys, moments_ms), conditions),
    command(b"PERSIST", keys),
    command(b"EXPIRETIME", keys),
    command(b"PEXPIRETIME", keys),
    command(b"KEYS", patterns),
    command(b"SCAN", st.just(b"0"), st.just(b"COUNT"), st.just(b"1000"), st.just(b"match"), patterns),
    command(b"DBSIZE"),
    command(b"PING"),
    command(b"PING", values),
    command(b"ECHO", values),
    command(b"SELECT", st.sampled_from([b"0", b"1", b"16", b"x", b"-1", b"2147483648", b"-2147483649"])),
    command(b"CLIENT", st.just(b"SETNAME"), st.sampled_from([b"", b"me", b"a b"])),
    command(b"CLIENT", st.just(b"GETNAME")),
    command(b"FLUSHDB"),
    command(b"CLIENT", st.just(b"KILL"), st.sampled_from([b"ID", b"type", b"ADDR"]), numbers | malformed),
    command(b"HELLO", numbers | malformed),
    joined(
        command(b"MEMORY", st.just(b"usage")), st.lists(st.sampled_from([b"none", b"SAMPLES"]) | numbers, max_size=3)
    ),
    # Requests with the wrong number of parts.
    st.tuples(
        st.sampled_from([b"GET", b"SET", b"SETEX", b"MSET", b"MSETNX", b"DEL", b"INCRBY", b"EXPIRE", b"NOPE"]),
        st.lists(anything, max_size=5),
    ).map(lambda found: [found[0], *found[1]]),
    # Connections reset the session, so that the next request sees database 0.
    command(b"RESET"),
)
#: Pipelines of all kinds of requests, and runs of one kind.
pipelines_of_requests = st.one_of(
    st.lists(requests, min_size=1, max_size=12),
    st.lists(st.tuples(st.just(b"GET"), keys).map(list), min_size=4, max_size=12),
    st.lists(st.tuples(st.just(b"SET"), keys, values).map(list), min_size=4, max_size=12),
)
#: Answers that are times, in units of the first number: they may differ by less than the second.
TIMES = {b"TTL": 2, b"PTTL": 2_000, b"EXPIRETIME": 2, b"PEXPIRETIME": 2_000}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], tuple[Wire, Wire]]]:
    directory = tmp_path_factory.mktemp("redis")
    nats = NatsServer(directory)
    try:
        with redis_server(directory) as path, redis_provider(directory, nats, redis_flush="true") as provider:
            yield lambda: (Wire(path), Wire(provider.socket))
    finally:
        nats.stop()


def shown(request: list[bytes], answer: Any) -> Any:
    """Return an answer in a form that can be compared."""
    name = request[0].upper()
    if isinstance(answer, Exception):
        return str(answer)
    if name in (b"KEYS", b"SCAN") and isinstance(answer, list):
        return sorted(answer[-1] if name == b"SCAN" else answer)
    return answer


def assert_same(both: Callable[[], tuple[Wire, Wire]], pipelines: list[list[list[bytes]]]) -> None:
    """Send each pipeline in one write to both servers, and compare the answers."""
    theirs, ours = both()
    with theirs, ours:
        for wire in (theirs, ours):
            for database in (b"1", b"0"):
                wire.calls([[b"SELECT", database], [b"FLUSHDB"]])
        sent = [part for pipeline in pipelines for request in pipeline for part in request]
        has_expired = any(part.startswith(PAST) for part in sent)  # Redis counts such keys until it removes them
        for pipeline in pipelines:
            for request, expected, found in zip(pipeline, theirs.calls(pipeline), ours.calls(pipeline), strict=True):
                error_max = TIMES.get(request[0].upper())
                if error_max and isinstance(expected, int) and expected > 0:
                    assert abs(found - expected) < error_max, request
                elif has_expired and request[0].upper() == b"DBSIZE" and isinstance(expected, int):
                    assert found <= expected, request
                else:
                    assert shown(request, found) == shown(request, expected), request


@settings(max_examples=300, deadline=None)
@given(pipelines=st.lists(pipelines_of_requests, min_size=1, max_size=4))
def test_the_same_requests_get_the_same_answers(
    both: Callable[[], tuple[Wire, Wire]], pipelines: list[list[list[bytes]]]
) -> None:
    assert_same(both, pipelines)


def test_resp3(both: Callable[[], tuple[Wire, Wire]]) -> None:
    """Nil, maps and sets have types of their own in RESP3. These are the bytes of a real server."""
    answers = []
    for wire in both():
        with wire:
            wire.call(b"HELLO", b"3")
            wire.call(b"SET", b"k", b"v")
            wire.send(b"GET none\r\nMGET k none\r\nCONFIG GET save\r\nCLIENT GETNAME\r\nGET k\r\nPING\r\nQUIT\r\n")
            answer = b""
            while read := wire.socket.recv(4096):
                answer += read
            answers.append(answer)
    assert answers[0] == answers[1]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_patterns_match_the_same_keys(both: Callable[[], tuple[Wire, Wire]], data: st.DataObject) -> None:
    alphabet = st.sampled_from([b"*", b"?", b"[", b"]", b"^", b"-", b"\\", b"a", b"b", b"c", b"\n", b"\xe4"])
    texts = st.lists(alphabet, max_size=8).map(b"".join)
    pattern = data.draw(texts)
    names = data.draw(st.lists(texts.filter(bool), min_size=1, max_size=20, unique=True))
    found = []
    for wire in both():
        with wire:
            wire.call(b"FLUSHDB")
            wire.call(b"MSET", *(part for name in names for part in (name, b"")))
            found.append(sorted(wire.call(b"KEYS", pattern)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "sent",
    [
        b"*1\r\n$4\r\nPING\r\nPING\r\n\r\nping x\r\nSET a 'b c' \r\nGET a\r\nGET \"\\x61\"\r\n",
        b"PING\r\n*1\r\n:4\r\n",
        b"*1\r\n$-1\r\n",
        b"*-1\r\nPING\r\n*0\r\n*1\r\n$4\r\nPING\r\nQUIT\r\n",
        b"*x\r\n",
        b"*1\r\n$x\r\n",
        b"*1\r\n$999999999999\r\n",
        b'GET "a\r\n',
        b'GET "a"b\r\n',
        b"x" * 70_000,
        b"*" + b"1" * 70_000,
        b"*1\r\n*1\r\n$4\r\nPING\r\n",
        b"*1\r\n$0\r\n\r\nQUIT\r\n",
    ],
)
def test_malformed_requests(both: Callable[[], tuple[Wire, Wire]], sent: bytes, tmp_path: Path) -> None:
    answers = []
    for wire in both():
        with wire:
            wire.send(sent)
            wire.socket.shutdown(1)
            answer = b""
            try:
                while read := wire.socket.recv(65536):
                    answer += read
            except ConnectionResetError:  # it was closed with bytes that nobody has read
                pass
            answers.append(answer)
    assert answers[1] == answers[0]
