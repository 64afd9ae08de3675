"""Links over the wire: what a caller may do is what the last `linkdefs.put` says, without a restart, on both of the transport's paths."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from nats.aio.client import Client

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import OK_UNIT, encode_error
from keyvalue_transport.keyvalue.store import encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import results_subject
from tests.conftest import (
    COMPONENT,
    DEADLINE_S,
    HOST_CAPTURE,
    Connect,
    Launch,
    NatsServer,
    Provider,
    RawInvocation,
    connecting,
    settled,
)

HEALTHY = {"healthy": True, "message": "serving"}
SECRET = "hush-Xq9"
#: Of a test that waits for a deadline of a key: long enough to be read before, short enough to wait for.
TTL_MS = 500
ROUNDS = 50
#: Calls that are sent right after the link that they need.
AT_ONCE = 20
Call = Callable[[KeyValueClient, str], Awaitable[object]]

READS: dict[str, Call] = {
    "get": lambda client, bucket: client.get(bucket, "k"),
    "exists": lambda client, bucket: client.exists(bucket, "k"),
    "list-keys": lambda client, bucket: client.list_keys(bucket),
    "get-many": lambda client, bucket: client.get_many(bucket, ["k"]),
}
WRITES: dict[str, Call] = {
    "set": lambda client, bucket: client.set(bucket, "k", b"1"),
    "increment": lambda client, bucket: client.increment(bucket, "k", 1),
    "set-many": lambda client, bucket: client.set_many(bucket, {"k": b"1"}),
    "delete-many": lambda client, bucket: client.delete_many(bucket, ["k"]),
    "delete": lambda client, bucket: client.delete(bucket, "k"),
}


class Host:
    """The host's side of a launched provider. What it tells is in force when it returns."""

    def __init__(self, raw: Client, provider: Provider) -> None:
        self.provider = provider
        self._raw = raw
        self._links: set[str] = set()

    def link(self, name: str = "default", **target_config: str) -> dict[str, object]:
        link: dict[str, object] = HOST_CAPTURE["host_data"]["link_definitions"][0]
        return link | {
            "source_id": COMPONENT,
            "target": self.provider.key,
            "name": name,
            "target_config": target_config,
        }

    async def put(self, name: str = "default", /, **target_config: str) -> dict[str, Any]:
        """Put the component's link; health after it."""
        self._links.add(name)
        return await self._tell("put", self.link(name, **target_config))

    async def delete(self, name: str = "default") -> dict[str, Any]:
        """Delete the component's link; health after it."""
        self._links.discard(name)
        return await self._tell("del", self.link(name))

    async def delete_all(self) -> None:
        """Delete what was put and not deleted."""
        for name in list(self._links):
            await self.delete(name)

    async def health(self) -> dict[str, Any]:
        message = await self._raw.request(self.provider.host_subject("health"), timeout=DEADLINE_S)
        health: dict[str, Any] = json.loads(message.data)
        return health

    async def _tell(self, verb: str, link: dict[str, object]) -> dict[str, Any]:
        await self._raw.publish(self.provider.host_subject(f"linkdefs.{verb}"), json.dumps(link).encode())
        await self._raw.flush()
        return await self.health()


@pytest.fixture
async def host(raw: Client, provider: Provider) -> AsyncIterator[Host]:
    """The host of the provider that tests share. What is put is deleted behind the test."""
    host = Host(raw, provider)
    yield host
    await host.delete_all()


@pytest.fixture
async def connect(nats_server: NatsServer) -> AsyncIterator[Connect]:
    async with connecting(nats_server.url) as connect:
        yield connect


async def other(call: Awaitable[object]) -> str:
    """The message of `other`."""
    with pytest.raises(OtherError) as caught:
        await call
    return caught.value.message


async def test_what_a_name_means_changes_with_the_link(
    host: Host, provider: Provider, connect: Connect, client: KeyValueClient, bucket: str
) -> None:
    linked = await connect(provider)
    await linked.set(bucket, "k", b"without a link")
    assert await host.put(bucket_prefix="mine-") == HEALTHY
    assert await linked.get(bucket, "k") is None
    await linked.set(bucket, "k", b"with a prefix")
    assert await host.put(bucket=f"{bucket} alone") == HEALTHY
    await linked.set(bucket, "k", b"in one")
    assert await linked.get("any other", "k") == b"in one"
    assert await host.put(buckets=f"{bucket} alone, {bucket}") == HEALTHY
    assert await linked.get(bucket, "k") == b"without a link"
    assert await linked.get(f"{bucket} alone", "k") == b"in one"
    for call in (READS | WRITES).values():
        with pytest.raises(NoSuchStoreError):
            await call(linked, f"mine-{bucket}")
    assert await host.delete() == HEALTHY
    assert await linked.get(f"mine-{bucket}", "k") == b"with a prefix"
    assert await client.get(f"mine-{bucket}", "k") == b"with a prefix"


async def test_a_link_may_only_read(host: Host, provider: Provider, connect: Connect, bucket: str) -> None:
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await stranger.set(bucket, "k", b"7")
    await host.put(access="read-only")
    assert await linked.get(bucket, "k") == b"7"
    assert await linked.exists(bucket, "k") is True
    assert await linked.list_keys(bucket) == ([b"k"], None)
    assert await linked.get_many(bucket, ["k", "no"]) == [b"7", None]
    for call in WRITES.values():
        with pytest.raises(AccessDeniedError):
            await call(linked, bucket)
    assert await stranger.get(bucket, "k") == b"7"
    await host.delete()
    assert await linked.increment(bucket, "k") == 8


async def test_links_of_several_names(host: Host, provider: Provider, connect: Connect, bucket: str) -> None:
    await host.put(bucket_prefix="default-")
    await host.put("second", bucket_prefix="second-")
    for source_id, link_name, prefix in (
        (COMPONENT, "default", "default-"),
        (COMPONENT, "second", "second-"),
        (COMPONENT, None, "default-"),
        (COMPONENT, "third", ""),
        ("another", "default", ""),
        (None, "default", ""),
        (None, None, ""),
    ):
        value = f"{source_id} {link_name}".encode()
        await (await connect(provider, source_id, link_name)).set(bucket, "k", value)
        assert await (await connect(provider, None, None)).get(prefix + bucket, "k") == value


async def test_a_link_can_be_required(launch: Launch, raw: Client, connect: Connect) -> None:
    provider = launch({"require_link": "true"})
    host = Host(raw, provider)
    linked, anonymous = await connect(provider), await connect(provider, None, None)
    for call in (READS | WRITES).values():
        with pytest.raises(AccessDeniedError):
            await call(linked, "b")
    await host.put()
    for call in (READS | WRITES).values():
        await call(linked, "b")
        with pytest.raises(AccessDeniedError):
            await call(anonymous, "b")
    await host.delete()
    with pytest.raises(AccessDeniedError):
        await linked.get("b", "k")


async def test_links_of_host_data_hold_from_the_start(launch: Launch, connect: Connect) -> None:
    link = HOST_CAPTURE["host_data"]["link_definitions"][0]
    link = link | {"source_id": COMPONENT, "target": "kv-of-host-data", "target_config": {"access": "read-only"}}
    provider = launch({"access": "read-write"}, provider_key="kv-of-host-data", link_definitions=[link])
    with pytest.raises(AccessDeniedError):
        await (await connect(provider)).set("b", "k", b"v")
    await (await connect(provider, "stranger")).set("b", "k", b"v")


async def test_lengths_and_pages_of_a_link(launch: Launch, raw: Client, connect: Connect) -> None:
    """A link may allow more than the provider; parameters are read up to the largest of all."""
    provider = launch({"key_bytes_max": "10", "value_bytes_max": "100", "page_keys": "2", "batch_keys_max": "3"})
    host = Host(raw, provider)
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    too_long = "value is 5000 bytes; the limit is 100 (value_bytes_max)"
    assert await other(linked.set("b", "k", bytes(5000))) == too_long
    await host.put(key_bytes_max="20", value_bytes_max="5000", page_keys="10")
    await linked.set("b", "k" * 20, bytes(5000))
    await linked.set_many("b", {"1": bytes(5000), "2": b"", "3": b""})
    assert await other(linked.set("b", "k" * 21, b"")) == "key is 21 bytes; the limit is 20 (key_bytes_max)"
    assert await other(stranger.set("b", "k", bytes(5000))) == too_long
    assert await other(stranger.set_many("b", {"k": bytes(5000)})) == too_long
    assert len((await linked.list_keys("b")).keys) == 4
    assert len((await stranger.list_keys("b")).keys) == 2
    assert (await other(linked.get_many("b", "1234"))).endswith("the batch has 4 keys; the limit is 3 (batch_keys_max)")
    await host.delete()
    assert await other(linked.set("b", "k", bytes(5000))) == too_long
    assert (await linked.get_many("b", ["1"]))[0] == bytes(5000)


async def test_a_quota_of_a_link(host: Host, provider: Provider, connect: Connect, bucket: str) -> None:
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    prefix = f"{bucket}/"
    await stranger.set(f"{prefix}a", "before", b"")
    await host.put(bucket_prefix=prefix, quota_keys="3")
    await linked.set_many("a", {"1": b"", "2": b""})
    message = "the buckets of this quota would hold {} keys; the limit is 3 (quota_keys)"
    for call in (linked.set("b", "3", b""), linked.increment("b", "3"), linked.set_many("b", {"3": b""})):
        assert await other(call) == message.format(4)
    await stranger.set(f"{prefix}b", "not bound", b"")
    assert await other(linked.set_many("a", {"1": b"new", "3": b""})) == message.format(5)
    assert await linked.get("a", "1") == b""
    await linked.delete_many("a", ["1", "2"])
    await linked.set("b", "3", b"")
    await host.put(bucket_prefix=prefix, quota_bytes="1000")
    refusal = await other(linked.set("b", "3", bytes(2000)))
    assert refusal.startswith("the buckets of this quota would take ")
    assert refusal.endswith(" bytes of memory; the limit is 1000 (quota_bytes)")
    await host.delete()
    await linked.set(f"{prefix}b", "3", bytes(2000))


async def test_what_a_link_writes_expires(host: Host, provider: Provider, connect: Connect, bucket: str) -> None:
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await host.put(ttl_ms=str(TTL_MS))
    began_s = asyncio.get_running_loop().time()
    await linked.set(bucket, "set", b"v")
    await linked.set_many(bucket, {"many": b"v"})
    await linked.increment(bucket, "counter")
    await stranger.set(bucket, "for good", b"v")
    async with asyncio.timeout(DEADLINE_S):
        while await stranger.list_keys(bucket) != ([b"for good"], None):
            pass
    assert asyncio.get_running_loop().time() - began_s >= TTL_MS / 1000
    assert await linked.get_many(bucket, ["set", "many", "counter", "for good"]) == [None, None, None, b"v"]


async def test_a_link_may_be_strict_about_buckets(
    host: Host, provider: Provider, connect: Connect, bucket: str
) -> None:
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await host.put(strict_buckets="true")
    for name in ("get", "exists", "get-many", "delete", "delete-many"):
        with pytest.raises(NoSuchStoreError):
            await (READS | WRITES)[name](linked, bucket)
        await (READS | WRITES)[name](stranger, bucket)
    await stranger.set(bucket, "other", b"v")
    assert await linked.get(bucket, "k") is None


async def test_a_link_for_another_provider_works(launch: Launch, raw: Client, connect: Connect) -> None:
    provider = launch()
    host = Host(raw, provider)
    remark = "ignored, since no option has this name: URL, timeout"
    for _ in range(2):  # a host publishes each to several subjects
        health = await host.put(URL=f"redis://:{SECRET}@127.0.0.1:16379/", timeout="5s", bucket="b")
        assert health == {
            "healthy": True,
            "message": f"serving; link {COMPONENT} -> {provider.key} (default): {remark}",
        }
    await (await connect(provider)).set("any", "k", b"v")
    assert await (await connect(provider, None, None)).get("b", "k") == b"v"
    assert await host.delete() == HEALTHY
    assert provider.stop() == 0
    assert provider.output.count(remark) == 1
    assert SECRET not in provider.output


async def test_a_malformed_option_denies_everything(launch: Launch, raw: Client, connect: Connect) -> None:
    provider = launch()
    host = Host(raw, provider)
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await host.put(page_keys="5")
    await linked.set("b", "k", b"1")
    reason = (
        f"link {COMPONENT} -> {provider.key} (default): everything is denied: "
        "access: found 4 characters, allowed read-write or read-only"
    )
    for _ in range(2):
        assert await host.put(access="read", password=SECRET) == {"healthy": False, "message": reason}
    for call in (READS | WRITES).values():
        with pytest.raises(AccessDeniedError):
            await call(linked, "b")
        await call(stranger, "c")
    assert await host.put(access="read-only") == HEALTHY
    assert await linked.get("b", "k") == b"1"
    misspelt = await host.put(acess="read-only")
    assert misspelt["message"].endswith("everything is denied: acess: no option has this name; did you mean access?")
    assert misspelt["healthy"] is False
    with pytest.raises(AccessDeniedError):
        await linked.set("b", "k", b"2")
    assert await host.delete() == HEALTHY
    assert await linked.get("b", "k") == b"1"
    assert provider.stop() == 0
    assert provider.output.count(reason) == 1
    assert SECRET not in provider.output


async def test_a_link_that_is_replaced_by_what_can_not_be_read_denies_everything(
    host: Host, raw: Client, provider: Provider, connect: Connect, bucket: str
) -> None:
    """Else its caller would be one without a link, and might do more than before."""
    linked = await connect(provider)
    await host.put(bucket_prefix="mine-", access="read-only")
    broken = host.link() | {"target_config": {"page_keys": 5}}
    await raw.publish(provider.host_subject("linkdefs.put"), json.dumps(broken).encode())
    await raw.flush()
    assert (await host.health())["healthy"] is False
    with pytest.raises(AccessDeniedError):
        await linked.get(bucket, "k")
    await (await connect(provider, None, None)).set(bucket, "k", b"v")
    assert await host.delete() == HEALTHY
    assert await linked.get(bucket, "k") == b"v"


async def after_link(
    raw: Client, provider: Provider, function: str, params: bytes, source_id: str, target_config: Mapping[str, str]
) -> bytes:
    """Put a link and call a function at once, on one NATS connection. Return the result."""
    link: dict[str, object] = HOST_CAPTURE["host_data"]["link_definitions"][0]
    link = link | {"source_id": source_id, "target": provider.key, "name": "default", "target_config": target_config}
    reply = raw.new_inbox()
    invocation = RawInvocation(raw, reply, await raw.subscribe(reply), await raw.subscribe(results_subject(reply)))
    await settled(raw)
    await raw.publish(provider.host_subject("linkdefs.put"), json.dumps(link).encode())
    headers = {"source-id": source_id, "link-name": "default"}
    await raw.publish(provider.subject(function), params, reply, headers)
    return await invocation.result()


async def test_a_call_right_after_a_read_only_link_is_refused(
    raw: Client, provider: Provider, client: KeyValueClient, bucket: str
) -> None:
    for number in range(AT_ONCE):
        params = encode_set(bucket.encode(), b"k%d" % number, b"v")
        result = await after_link(raw, provider, "set", params, f"read-only-{number}", {"access": "read-only"})
        assert result == encode_error(AccessDeniedError())
    assert await client.list_keys(bucket) == ([], None)


async def test_a_first_write_goes_to_the_bucket_of_its_link(
    raw: Client, provider: Provider, client: KeyValueClient, bucket: str
) -> None:
    for number in range(AT_ONCE):
        params = encode_set(bucket.encode(), b"k%d" % number, b"v")
        result = await after_link(raw, provider, "set", params, f"prefixed-{number}", {"bucket_prefix": "mine-"})
        assert result == OK_UNIT
    assert await client.list_keys(bucket) == ([], None)
    assert len((await client.list_keys(f"mine-{bucket}")).keys) == AT_ONCE


async def test_the_first_call_of_a_link_that_is_required_is_allowed(launch: Launch, raw: Client) -> None:
    provider = launch({"require_link": "true"})
    for number in range(AT_ONCE):
        params = encode_set(b"b", b"k%d" % number, b"v")
        assert await after_link(raw, provider, "set", params, f"good-{number}", {}) == OK_UNIT


async def test_links_that_change_under_load(launch: Launch, raw: Client, connect: Connect) -> None:
    """Every call is answered, and by one definition: what it reads and where it writes belong together."""
    provider = launch({"require_link": "true"})
    host = Host(raw, provider)
    callers = [await connect(provider) for _ in range(4)]
    await host.put(bucket="old", buckets="a,b")
    await callers[0].set("a", "which", b"old")
    await host.put(bucket="new", buckets="b,c")
    await callers[0].set("b", "which", b"new")
    over = asyncio.Event()
    seen: dict[str, set[object]] = {name: set() for name in "abc"}

    async def call(client: KeyValueClient, name: str) -> None:
        while not over.is_set():
            try:
                seen[name].add(await client.get(name, "which"))
                await client.set_many(name, {name: b"v", "written": b"v"})
            except InterfaceError as error:
                seen[name].add(type(error))

    calls = [asyncio.create_task(call(client, name)) for client in callers for name in seen for _ in range(4)]
    for _ in range(ROUNDS):
        await host.put(bucket="old", buckets="a,b")
        await host.put(bucket="new", buckets="b,c")
        await host.put(bucket="new", access="read-write ?")
        await host.delete()
    over.set()
    await asyncio.wait_for(asyncio.gather(*calls), DEADLINE_S)
    refusals = {AccessDeniedError, NoSuchStoreError}
    assert seen == {"a": {b"old", *refusals}, "b": {b"old", b"new", AccessDeniedError}, "c": {b"new", *refusals}}
    await host.put()
    assert set((await callers[0].list_keys("old")).keys) <= {b"which", b"written", b"a", b"b"}
    assert set((await callers[0].list_keys("new")).keys) <= {b"which", b"written", b"b", b"c"}
    for name in ("a", "b", "c"):
        assert await callers[0].list_keys(name) == ([], None)
