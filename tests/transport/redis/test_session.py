"""Sessions over a store that answers later: the answers stay in order, and only a few are held."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from itertools import cycle
from time import perf_counter
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_transport.redis import keys as keys_of_a_bucket
from keyvalue_transport.redis import session
from keyvalue_transport.redis.listener import HIGH_WATER_BYTES
from tests.integration.redis_server import encode_request
from tests.provider.keyvalue.waiting_store import Later
from tests.transport.redis.side import Side, Transport

OUTPUT_BYTES_MAX = 1_200
#: The largest answer: MGET with four keys.
ANSWER_BYTES_MAX = 4 * 560 + 10
#: Answers in slots become output at once when those before them have come, so there may be twice as much.
HELD_BYTES_MAX = 2 * (OUTPUT_BYTES_MAX + ANSWER_BYTES_MAX)
TURNS_MAX = 20_000
KEYS = [b"a", b"b", b"c", b"d"]
keys = st.sampled_from(KEYS)
requests = st.one_of(
    st.tuples(st.just(b"GET"), keys),
    st.tuples(st.just(b"SET"), keys, st.sampled_from([b"1", b"v" * 540])),
    st.sampled_from(
        [
            *((b"MGET", *KEYS), (b"GETDEL", b"a"), (b"GETSET", b"b", b"x" * 500), (b"APPEND", b"c", b"y")),
            *((b"INCR", b"d"), (b"GETEX", b"a", b"PERSIST"), (b"ECHO", b"e" * 500), (b"KEYS", b"a"), (b"GET",)),
        ]
    ),
)


def late(turns: list[int]) -> Later:
    """Return a store's way to answer: calls take effect in the next turn, in order, and are answered some turns later."""
    left = cycle(turns)

    def later(function: Callable[..., Any], *arguments: object) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def act() -> None:
            try:
                answer, failure = function(*arguments), None
            except Exception as error:
                answer, failure = None, error
            wait(next(left), answer, failure)

        def wait(turns: int, answer: Any, failure: Exception | None) -> None:
            if turns:
                loop.call_soon(wait, turns - 1, answer, failure)
            elif failure is not None:
                future.set_exception(failure)
            else:
                future.set_result(answer)

        loop.call_soon(act)
        return future

    return later


def in_tasks(turns: list[int]) -> Later:
    """Return a store's way to answer that keeps no order: calls take effect some turns later, or at once."""
    left = cycle(turns)

    async def act(turns: int, function: Callable[..., Any], *arguments: object) -> Any:
        for _ in range(turns):
            await asyncio.sleep(0)
        return function(*arguments)

    def later(function: Callable[..., Any], *arguments: object) -> Any:
        turns = next(left)
        return act(turns, function, *arguments) if turns else function(*arguments)

    return later


class SlowTransport(Transport):
    """A transport whose client reads nothing in most turns."""

    waiting_bytes = 0

    def write(self, out: bytes) -> None:
        super().write(out)
        self.waiting_bytes += len(out)

    def get_write_buffer_size(self) -> int:
        return HIGH_WATER_BYTES + self.waiting_bytes if self.waiting_bytes else 0

    def abort(self) -> None:
        self.is_closed = True


async def receive_slowly(side: Side, read: bytes, reads_at: int) -> None:
    """Receive a read. Check the bytes that are held until all answers have been written."""
    transport, connection = SlowTransport(), side.connection
    side.transport = connection._transport = transport
    connection.data_received(read)
    for turn in range(TURNS_MAX):
        assert max(connection._session.held_bytes, transport.waiting_bytes) < HELD_BYTES_MAX
        if not (connection.unanswered or connection._session.waits or connection._session.held_bytes):
            return
        if not turn % reads_at and transport.waiting_bytes:
            transport.waiting_bytes = 0
            connection.resume_writing()
        await asyncio.sleep(0)
    pytest.fail("some answers are not written")


@settings(max_examples=150)
@given(
    pipeline=st.lists(requests | st.tuples(requests, st.integers(2, 40)), min_size=1, max_size=12),
    turns=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    reads_at=st.sampled_from([1, 3, 10]),
    kind=st.sampled_from([late, in_tasks]),
)
@example(pipeline=[((b"GET", b"a"), 40)], turns=[*range(50)], reads_at=60, kind=late)
def test_a_client_that_reads_slowly_gets_all_answers_and_few_are_held(
    pipeline: list[Any], turns: list[int], reads_at: int, kind: Callable[[list[int]], Later]
) -> None:
    """The answers are those of a store that answers at once, whatever the order in which the others come."""
    sent = [each for step in pipeline for each in ([step[0]] * step[1] if isinstance(step[0], tuple) else [step])]
    read = b"".join(map(encode_request, [(b"PING",), *((b"SET", key, b"0" * 500) for key in KEYS), *sent]))

    async def run() -> None:
        at_once, slow = Side(), Side(kind(turns))
        await at_once.receive(read)
        await receive_slowly(slow, read, reads_at)
        expected, facts = await at_once.finish()
        found, other_facts = await slow.finish()
        assert found == expected
        assert other_facts == facts

    with patch.object(session, "OUTPUT_BYTES_MAX", OUTPUT_BYTES_MAX):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("number", "limit_bytes", "parts"), [(3, 1_000, [b"GET", b"a"]), (12, 5_000, [b"GETSET", b"a", b"v" * 500])]
)
async def test_held_answers_count_as_answers_that_clients_do_not_read(
    number: int, limit_bytes: int, parts: list[bytes]
) -> None:
    """So do the results of updates, which can't be made again. The connection that exceeds the limit for all is closed."""
    with patch.object(session, "OUTPUT_BYTES_MAX", OUTPUT_BYTES_MAX):
        side = Side(late([0]), redis_unsent_bytes_max=HIGH_WATER_BYTES + limit_bytes)
        side.transport = side.connection._transport = transport = SlowTransport()
        await side.receive(encode_request([b"SET", b"a", b"v" * 500]))
        await side.finish()
        transport.waiting_bytes = 1
        await side.receive(encode_request(parts) * number)
        for _ in range(20):
            await asyncio.sleep(0)
        assert transport.is_closed
        side.connection.connection_lost(None)
        await side.finish()
        assert side.redis.listener.counts.slow == 1


@settings(max_examples=100)
@given(
    pipeline=st.lists(requests, min_size=1, max_size=20),
    turns=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    turn=st.integers(0, 30),
    kind=st.sampled_from([late, in_tasks]),
)
@example(pipeline=[(b"GET", b"a")] * 20, turns=[0], turn=6, kind=late)  # disconnects while answers wait for room
def test_a_client_that_disconnects_leaves_nothing_in_flight(
    pipeline: list[Any], turns: list[int], turn: int, kind: Callable[[list[int]], Later]
) -> None:
    """Its requests count until the store has answered."""
    read = b"".join(map(encode_request, [(b"SET", key, b"0" * 500) for key in KEYS] + pipeline))

    async def run() -> None:
        side = Side(kind(turns))
        side.transport = side.connection._transport = SlowTransport()
        side.connection.data_received(read)
        assert side.in_flight.held_bytes > 0 or not any(turns)
        for _ in range(turn):
            await asyncio.sleep(0)
        side.connection.connection_lost(None)
        for _ in range(TURNS_MAX):
            if not side.in_flight.held_bytes:
                return
            await asyncio.sleep(0)
        pytest.fail(f"{side.in_flight.held_bytes} bytes are still counted")

    with patch.object(session, "OUTPUT_BYTES_MAX", OUTPUT_BYTES_MAX):
        asyncio.run(run())


@pytest.mark.parametrize(
    ("request_", "left"),
    [
        ((b"SET", b"a", b"1"), [b"a", b"b"]),
        ((b"SET", b"a", b"1" * 551), [b"b"]),
        ((b"FLUSHDB",), []),
        ((b"KEYS", b"*"), [b"b"]),
    ],
)
async def test_a_write_goes_on_when_its_client_disconnects(request_: tuple[bytes, ...], left: list[bytes]) -> None:
    """A walk that only reads ends. No error of a task is lost, because asyncio would log it."""
    lost: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
    side = Side(in_tasks([3]), redis_flush=True)
    side.store.bucket(b"default").set(b"b", b"2")
    await side.receive(encode_request(request_))
    await asyncio.sleep(0)
    side.connection.connection_lost(None)
    for _ in range(20):
        await asyncio.sleep(0)
    assert sorted(key for key, _ in side.store.bucket(b"default").items()) == left
    assert side.redis.listener.unanswered == 0
    await side.finish()
    gc.collect()
    assert not lost


@pytest.mark.parametrize("later", [None, late([2]), in_tasks([2])])
async def test_a_client_that_ends_its_requests_gets_all_answers(later: Later | None) -> None:
    side = Side(later)
    await side.receive(encode_request([b"PING"]))
    assert not side.connection.eof_received()
    sent = [[b"SET", b"a", b"1"], [b"KEYS", b"*"], [b"RANDOMKEY"], [b"GETDEL", b"a"], [b"EXISTS", b"a"]]
    await side.receive(b"".join(map(encode_request, sent)))
    assert side.connection.eof_received()
    written, _ = await side.finish()
    assert written == b"+PONG\r\n+OK\r\n*1\r\n$1\r\na\r\n$1\r\na\r\n$1\r\n1\r\n:0\r\n"
    assert side.transport.is_closed


async def test_a_client_that_reads_is_not_idle_and_one_that_does_not_is_closed() -> None:
    side = Side(late([9]))
    side.transport = side.connection._transport = transport = SlowTransport()
    await side.receive(encode_request([b"GET", b"a"]))
    side.connection.end_if_idle(perf_counter())  # the store has not answered yet
    await side.finish()
    closed = [transport.is_closed]
    for transport.waiting_bytes in (900, 800, 700, 700):
        side.connection.end_if_idle(perf_counter())
        closed.append(transport.is_closed)
    assert closed == [False, False, False, False, True]
    assert side.redis.listener.counts.slow == 1


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ([b"CONFIG", b"GET", *[b"?*" * 50] * 65], b"-ERR the request has 65 arguments; the limit is 64\r\n"),
        ([b"COMMAND", b"INFO", *[b"get"] * 1_001], b"-ERR the request has 1001 arguments; the limit is 1000\r\n"),
        ([b"COMMAND", b"DOCS", *[b"get"] * 1_001], b"-ERR the request has 1001 arguments; the limit is 1000\r\n"),
        ([b"CLIENT", b"KILL", *[b"USER", b"default"] * 1_000], b":2\r\n"),
        ([b"CLIENT", b"KILL", b"USER", b"default", b"USER", b"other"], b":0\r\n"),
        ([b"CLIENT", b"KILL", b"TYPE", b"pubsub"], b":0\r\n"),
        ([b"CLIENT", b"KILL", b"ID", b"2", b"TYPE", b"normal"], b":1\r\n"),
    ],
)
async def test_no_request_takes_time_for_each_argument_and_each_client(request_: list[bytes], expected: bytes) -> None:
    side = Side()
    listener = side.redis.listener
    listener.clients = lambda: [Killable(number) for number in (1, 2, 3)]  # type: ignore[method-assign]
    Killable.described = 0
    await side.receive(encode_request(request_))
    assert side.transport.written == expected
    assert Killable.described <= 3


class Killable:
    """A client that counts how often it is described."""

    described = 0
    user = "default"

    def __init__(self, number: int) -> None:
        self.number = number

    def describe(self) -> dict[str, object]:
        Killable.described += 1
        return {"id": self.number, "user": self.user}

    def kill(self) -> None: ...


@pytest.mark.parametrize(
    ("pattern", "answer_bytes_max", "keys_max"),
    [(b"*", 1_000, 4), (b"*", 250, 2), (b"*" * 50, 1_000, 2), (b"*" * 4_000, 1_000, 1)],
)
async def test_pages_respect_the_limit_for_answers_and_the_length_of_patterns(
    pattern: bytes, answer_bytes_max: int, keys_max: int
) -> None:
    side = Side(answer_bytes_max=answer_bytes_max)
    for number in range(4):
        side.store.bucket(b"default").set(b"%d" % number * 100, b"")
    with patch.object(keys_of_a_bucket, "MATCH_WORK_MAX", 12_000):
        await side.receive(encode_request([b"SCAN", b"0", b"MATCH", pattern, b"COUNT", b"1000"]))
        assert side.transport.written.count(b"$100\r\n") == keys_max
        side.transport.written.clear()
        await side.receive(encode_request([b"KEYS", pattern]))
        await side.finish()
        assert side.transport.written.count(b"$100\r\n") == (4 if answer_bytes_max == 1_000 else 0)
