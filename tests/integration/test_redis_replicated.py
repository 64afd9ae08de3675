"""The Redis listener over the replicated store: answers come later, and several instances share the keys."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import NatsServer
from tests.integration.redis_provider import RedisProvider, redis_provider
from tests.integration.redis_server import Wire, encode_request, redis_server
from tests.integration.test_redis_beside_redis import assert_same, pipelines_of_requests


@pytest.fixture(scope="module")
def instances(jetstream_server: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RedisProvider]]:
    directory = tmp_path_factory.mktemp("instances")
    options = {"store": "jetstream", "jetstream_bucket": "shared", "jetstream_storage": "memory", "redis_flush": "true"}
    with (
        redis_provider(directory, jetstream_server, "first", **options) as first,
        redis_provider(directory, jetstream_server, "second", **options) as second,
    ):
        yield [first, second]


@pytest.fixture(scope="module")
def both(
    instances: list[RedisProvider], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], tuple[Wire, Wire]]]:
    with redis_server(tmp_path_factory.mktemp("redis")) as path:
        yield lambda: (Wire(path), Wire(instances[0].socket))


def is_the_same_here(request: list[bytes]) -> bool:
    """Return False for requests that docs/redis.md excepts: deadlines move by up to a millisecond."""
    words = {word.upper() for word in request}
    return not words & {b"GT", b"LT"}


@settings(max_examples=60, deadline=None)
@given(
    pipelines=st.lists(
        pipelines_of_requests.map(lambda pipeline: list(filter(is_the_same_here, pipeline))).filter(bool),
        min_size=1,
        max_size=3,
    )
)
@example(pipelines=[[[b"GETEX", b"k"], [b"SETNX", b"k", b"0"]]])
@example(pipelines=[[[b"SET", b"k", b"1", b"NX"], [b"GET", b"k"], [b"SET", b"k", b"2"], [b"GET", b"k"]]])
@example(pipelines=[[[b"SETEX", b"k", b"9000000000", b"1"], [b"SET", b"k", b"2"], [b"GET", b"k"]]])
def test_the_same_requests_get_the_same_answers(
    both: Callable[[], tuple[Wire, Wire]], pipelines: list[list[list[bytes]]]
) -> None:
    """Requests of one connection take effect in their order, although none waits for the answer to the one before."""
    assert_same(both, pipelines)


def test_updates_of_many_clients_are_linearizable(instances: list[RedisProvider], jetstream_server: NatsServer) -> None:
    """Clients of two instances add to one counter, and take one lock. No step is lost, and no lock is held twice."""
    locked: list[int] = []
    holders = 0

    def work(number: int) -> None:
        nonlocal holders
        with Wire(instances[number % 2].socket) as wire:
            for turn in range(50):
                wire.call(b"INCR", b"counter")
                wire.call(b"APPEND", b"text", b"x")
                if wire.call(b"SET", b"lock", b"%d-%d" % (number, turn), b"NX") == b"OK":
                    holders += 1
                    assert holders == 1
                    locked.append(number)
                    holders -= 1
                    assert wire.call(b"GETDEL", b"lock") == b"%d-%d" % (number, turn)

    with Wire(instances[0].socket) as wire:
        wire.call(b"FLUSHDB")
    failed: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    assert locked
    with Wire(instances[1].socket) as wire:
        assert wire.call(b"GET", b"counter") == b"300"
        assert wire.call(b"STRLEN", b"text") == 300


def test_a_long_time_to_live(instances: list[RedisProvider]) -> None:
    """JetStream removes a message at once if its deadline does not fit into 64 bits. The marker of that came as a delete."""
    with Wire(instances[0].socket) as wire:
        wire.call(b"PSETEX", b"long", b"%d" % (2**63 // 1000), b"v")
        ends_s = time.monotonic() + 1.2  # the server looks for expired messages every second
        while time.monotonic() < ends_s:
            assert wire.call(b"GET", b"long") == b"v"


def test_calls_get_errors_while_nats_is_silent(tmp_path: Path) -> None:
    server = NatsServer(tmp_path, f"jetstream {{ store_dir: {json.dumps(str(tmp_path))} }}\n")
    options = {"store": "jetstream", "jetstream_bucket": "silent", "jetstream_timeout_ms": "500"}
    try:
        with redis_provider(tmp_path, server, "silent", **options) as running, Wire(running.socket) as wire:
            with server.silence():
                answers = [wire.call(*request) for request in ([b"GET", b"k"], [b"SET", b"k", b"v"], [b"INCR", b"k"])]
                answers += [wire.call(b"EXISTS", b"k"), wire.call(b"MSETNX", b"k", b"v", b"l", b"v")]
            for answer in answers:
                assert re.match("ERR .*(values are not known|may or may not have been stored)", str(answer)), answers
            assert wire.call(b"GET", b"none") is None
    finally:
        server.stop()


async def test_increments_over_both_protocols(instances: list[RedisProvider], jetstream_server: NatsServer) -> None:
    with Wire(instances[0].socket) as wire:
        wire.call(b"SET", b"n", b"40")
        async with KeyValueClient(jetstream_server.url, instances[1].prefix) as client:
            assert await client.increment("default", "n") == 41
            assert wire.call(b"INCR", b"n") == 42
            assert await client.get("default", "n") == b"42"


@pytest.mark.parametrize("batch", ["atomic", "pipelined"])
def test_of_several_clients_one_creates_the_keys(jetstream_server: NatsServer, tmp_path: Path, batch: str) -> None:
    """Clients of two instances create and remove the same 1,000 keys. An atomic batch is stored once, and whole."""
    options = {"store": "jetstream", "jetstream_bucket": batch, "jetstream_storage": "memory", "batch": batch}
    names = [b"%d" % number for number in range(1_000 if batch == "atomic" else 1_001)]
    with (
        redis_provider(tmp_path, jetstream_server, f"{batch}1", **options) as first,
        redis_provider(tmp_path, jetstream_server, f"{batch}2", **options) as second,
        Wire(first.socket) as one,
        Wire(second.socket) as two,
    ):
        for turn in range(5):
            for wire, name in ((one, b"one"), (two, b"two")):
                wire.send(encode_request([b"MSETNX", *(part for key in names for part in (key, name))]))
            answers = [one.answer(), two.answer()]
            found = set(one.call(b"MGET", *names))
            if batch == "atomic":
                assert sorted(answers) == [0, 1], turn
                assert found == {(b"one", b"two")[answers.index(1)]}
            else:
                assert len(found) == 1 or "some of the keys may have been stored" in str(answers)
            assert two.call(b"MSETNX", b"other", b"1", names[7], b"1") == 0
            assert one.call(b"DEL", *names) == len(names)
        one.send(b"".join(map(encode_request, [[b"INCR", b"n"], [b"MSETNX", b"n", b"1", b"m", b"1"], [b"GET", b"m"]])))
        assert [one.answer() for _ in range(3)] == [1, 0, None]
        if batch == "atomic":
            assert "1001 keys" in str(one.call(b"MSETNX", *(part for n in range(1_001) for part in (b"%d" % n, b""))))


def test_a_client_that_requests_large_values_and_does_not_read(jetstream_server: NatsServer, tmp_path: Path) -> None:
    """500 requests of one read wait for one barrier. Their answers must not be made together when it passes."""
    value = b"v" * 900_000
    with redis_provider(tmp_path, jetstream_server, "large", store="jetstream", jetstream_bucket="large") as running:
        status = Path(f"/proc/{running.process.process.pid}/status")
        with Wire(running.socket) as wire, Wire(running.socket) as other:
            assert wire.call(b"SET", b"k", value) == b"OK"
            before_kib = int(status.read_text().partition("VmRSS:")[2].split()[0])
            wire.send(encode_request([b"SET", b"other", b"v"]) + encode_request([b"GET", b"k"]) * 500)
            for _ in range(20):
                assert other.call(b"GET", b"missing") is None
            assert wire.answer() == b"OK"
            assert all(wire.answer() == value for _ in range(500))
        peak_kib = int(status.read_text().partition("VmHWM:")[2].split()[0])
        assert peak_kib - before_kib < 40_000
