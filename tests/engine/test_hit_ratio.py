"""The hit ratio of `eviction = unused` against a real Redis with allkeys-lru, and against an exact LRU.

The load is a cache's: get a key, and set it if it is missing. The keys are drawn from a Zipf distribution with exponent
0.99, and the store holds a tenth of them. `redis-server` is a Debian package, which .ci/run installs.
"""

from __future__ import annotations

import random
import shutil
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_engine.options import OLDEST, UNUSED
from tests.integration.redis_server import Wire, redis_server

KEYS = 50_000
HELD = KEYS // 10
CALLS = 300_000
VALUE = bytes(64)
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


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Wire]:
    if shutil.which("redis-server") is None:
        pytest.fail("redis-server is not installed: apt-get install redis-server")
    with redis_server(tmp_path) as path, Wire(path) as redis:
        yield redis


def answers(redis: Wire, *requests: Sequence[bytes]) -> list[Any]:
    """Send requests together. Return their answers, none of which may be an error."""
    found = redis.calls(requests)
    assert [answer for answer in found if isinstance(answer, Exception)] == []
    return found


def memory_bytes_of(redis: Wire) -> int:
    lines = answers(redis, [b"INFO", b"memory"])[0].splitlines()
    return int(next(line for line in lines if line.startswith(b"used_memory:")).partition(b":")[2])


def hits_of_redis(redis: Wire, trace: Sequence[bytes]) -> tuple[int, int]:
    """Return the hits, and the number of keys that Redis held at the end. The limit of its memory is found by trial."""
    empty_bytes = memory_bytes_of(redis)
    answers(redis, *([b"SET", b"key-%08d" % number, VALUE] for number in range(HELD)))
    memory_bytes = memory_bytes_of(redis)
    key_bytes = (memory_bytes - empty_bytes) // HELD
    answers(redis, [b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru"])
    digest = answers(redis, [b"SCRIPT", b"LOAD", SCRIPT.encode()])[0]

    def run(calls: int) -> tuple[int, int]:
        answers(redis, [b"FLUSHALL"], [b"CONFIG", b"SET", b"maxmemory", b"%d" % memory_bytes])
        hits = 0
        for at in range(0, calls, PIPELINED):
            hits += sum(
                map(int, answers(redis, *([b"EVALSHA", digest, b"1", key] for key in trace[at : at + PIPELINED])))
            )
        return hits, int(answers(redis, [b"DBSIZE"])[0])

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


@pytest.mark.bulk
def test_unused_keeps_the_keys_that_redis_keeps(redis: Wire) -> None:
    trace = zipf(KEYS, CALLS)
    of_redis, held = hits_of_redis(redis, trace)
    assert held == pytest.approx(HELD, rel=0.1), "Redis holds a tenth of the keys"
    of_lru = hits_of_lru(trace, held)
    of_unused = hits_of_store(trace, held, UNUSED)
    print(f"hits: redis {of_redis / CALLS:.4f}, lru {of_lru / CALLS:.4f}, unused {of_unused / CALLS:.4f}, held {held}")  # noqa: T201
    assert of_unused / CALLS > of_redis / CALLS - 0.01
    assert of_unused / CALLS > of_lru / CALLS - 0.01
    assert of_unused > hits_of_store(trace, held, OLDEST)
