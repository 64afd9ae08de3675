"""The hit ratio of `eviction = unused` against a real Redis with allkeys-lru, and against an exact LRU.

The load is a cache's: get a key, and set it if it is missing. The keys are drawn from a Zipf distribution with exponent
0.99, and the store holds a tenth of them. `redis-server` is a Debian package, which .ci/run installs.
"""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from time import monotonic, sleep

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_engine.options import OLDEST, UNUSED

KEYS = 50_000
HELD = KEYS // 10
CALLS = 300_000
VALUE = bytes(64)
START_S = 20.0
PIPELINED = 1_000
#: Redis evicts keys before a script runs, so each call is a script of its own.
SCRIPT = "if redis.call('GET', KEYS[1]) then return 1 end redis.call('SET', KEYS[1], string.rep('v', 64)) return 0"


def zipf(keys: int, calls: int, exponent: float = 0.99) -> list[bytes]:
    """Return the keys of the calls. The more frequent keys are spread over all names."""
    rng = random.Random(20)
    weights = list(accumulate((rank + 1) ** -exponent for rank in range(keys)))
    names = [b"key-%08d" % number for number in range(keys)]
    rng.shuffle(names)
    return [names[bisect_left(weights, rng.random() * weights[-1])] for _ in range(calls)]


class Redis:
    """A Redis server that one client uses, over a Unix socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(START_S)
        until_s = monotonic() + START_S
        while True:
            try:
                self._socket.connect(str(path))
                break
            except OSError:
                if monotonic() > until_s:
                    raise
                sleep(0.01)
        self._replies = self._socket.makefile("rb")

    def call(self, *commands: Sequence[bytes]) -> list[bytes]:
        """Send the commands together. Return the replies, without their types."""
        self._socket.sendall(
            b"".join(
                b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in command)
                for command in commands
            )
        )
        return [self._reply() for _ in commands]

    def _reply(self) -> bytes:
        line = self._replies.readline()
        assert line[:1] != b"-", line
        if line[:1] == b"$":
            return self._replies.read(int(line[1:]) + 2)[:-2]
        return line[1:-2]

    def memory_bytes(self) -> int:
        lines = self.call([b"INFO", b"memory"])[0].splitlines()
        return int(next(line for line in lines if line.startswith(b"used_memory:")).partition(b":")[2])

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed: apt-get install redis-server")
    path = tmp_path / "socket"
    command = [
        program,
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--save",
        "",
        "--dir",
        str(tmp_path),
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            client = Redis(path)
            yield client
            client.close()
        finally:
            process.terminate()


def hits_of_redis(redis: Redis, trace: Sequence[bytes]) -> tuple[int, int]:
    """Return the hits, and the number of keys that Redis held at the end. The limit of its memory is found by trial."""
    empty_bytes = redis.memory_bytes()
    redis.call(*([b"SET", b"key-%08d" % number, VALUE] for number in range(HELD)))
    memory_bytes = redis.memory_bytes()
    key_bytes = (memory_bytes - empty_bytes) // HELD
    redis.call([b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru"])
    digest = redis.call([b"SCRIPT", b"LOAD", SCRIPT.encode()])[0]

    def run(calls: int) -> tuple[int, int]:
        redis.call([b"FLUSHALL"], [b"CONFIG", b"SET", b"maxmemory", b"%d" % memory_bytes])
        hits = 0
        for at in range(0, calls, PIPELINED):
            hits += sum(map(int, redis.call(*([b"EVALSHA", digest, b"1", key] for key in trace[at : at + PIPELINED]))))
        return hits, int(redis.call([b"DBSIZE"])[0])

    for _ in range(3):
        memory_bytes += (HELD - run(CALLS // 10)[1]) * key_bytes
    return run(CALLS)


def hits_of_lru(trace: Sequence[bytes], keys_max: int) -> int:
    held: OrderedDict[bytes, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in held:
            hits += 1
            held.move_to_end(key)
        else:
            if len(held) == keys_max:
                held.popitem(last=False)
            held[key] = None
    return hits


def hits_of_store(trace: Sequence[bytes], keys_max: int, eviction: str) -> int:
    store = Store(StoreOptions(keys_max=keys_max, eviction=eviction))
    bucket = store.bucket(b"b")
    hits = 0
    for key in trace:
        if bucket.get(key) is None:
            bucket.set(key, VALUE)
        else:
            hits += 1
    assert len(store) == keys_max
    store.check()
    return hits


def test_unused_keeps_the_keys_that_redis_keeps(redis: Redis) -> None:
    trace = zipf(KEYS, CALLS)
    of_redis, held = hits_of_redis(redis, trace)
    assert held == pytest.approx(HELD, rel=0.1), "Redis holds a tenth of the keys"
    of_lru = hits_of_lru(trace, held)
    of_unused = hits_of_store(trace, held, UNUSED)
    print(f"hits: redis {of_redis / CALLS:.4f}, lru {of_lru / CALLS:.4f}, unused {of_unused / CALLS:.4f}, held {held}")  # noqa: T201
    assert of_unused / CALLS > of_redis / CALLS - 0.01
    assert of_unused / CALLS > of_lru / CALLS - 0.01
    assert of_unused > hits_of_store(trace, held, OLDEST)
