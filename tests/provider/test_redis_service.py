"""Sessions on a service without sockets: LOADING, and the facts of INFO."""

from __future__ import annotations

import pytest

from keyvalue_engine import Store, StoreOptions
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.redis_plan import plan_redis
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.redis_service import RedisService
from keyvalue_transport.redis.limits import Address
from keyvalue_transport.redis.session import RedisSession
from keyvalue_transport.wrpc.handler import ANONYMOUS
from keyvalue_transport.wrpc.in_flight import BytesInFlight


async def test_info_of_a_store_that_evicts_keys() -> None:
    store = Store(StoreOptions(keys_max=2, eviction="oldest"))
    policy = Policy(store.options)
    plan = plan_redis(ProviderOptions(redis_address=(Address(path="/none"),)))
    assert plan is not None
    service = Service(store, policy)
    redis = RedisService(plan, service, policy, store, None, BytesInFlight(1))
    for number in range(5):
        service.set(ANONYMOUS, b"default", b"%d" % number, b"v")
    assert redis.information(redis.anonymous())["Stats"]["evicted_keys"] == 3
    assert redis.settings()["maxmemory-policy"] == "allkeys-lru"


async def test_while_keys_are_loaded_most_commands_get_loading() -> None:
    """A silent server would stop the heartbeat of a wasmCloud 2.x host, so CLIENT SETINFO is answered at once."""
    store = Store()
    policy = Policy(store.options)
    plan = plan_redis(ProviderOptions(redis_address=(Address(path="/none"),)))
    assert plan is not None
    ready: list[bool] = []
    redis = RedisService(plan, Service(store, policy), policy, store, lambda: bool(ready), BytesInFlight(1))
    redis.is_open = True
    session = RedisSession(redis, redis.listener.commands, 1, lambda: pytest.fail("nothing waits"))

    def call(*parts: bytes) -> bytes:
        session.receive([list(parts)])
        return session.take_output()

    for _ in range(2):  # the store may have to be read again
        ready.clear()
        assert call(b"CLIENT", b"SETINFO", b"LIB-NAME", b"redis-rs") == b"+OK\r\n"
        assert call(b"SELECT", b"1") == b"+OK\r\n"
        assert call(b"HELLO", b"2").startswith(b"*14\r\n")
        assert call(b"GET", b"k").startswith(b"-LOADING ")
        assert call(b"SET", b"k", b"v").startswith(b"-LOADING ")
        assert b"loading:1\r\n" in call(b"INFO", b"persistence")
        ready.append(True)
        assert call(b"SET", b"k", b"v") == b"+OK\r\n"
    assert b"db1:keys=1," in call(b"INFO", b"keyspace")
    assert b"cmdstat_set:calls=4," in call(b"INFO", b"commandstats")
