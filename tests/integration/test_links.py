"""Links over the wire: the last `linkdefs.put` decides what a caller may do, without a restart, on both of the transport's paths.

tests/provider/keyvalue tests each option of a link, and tests/integration/test_order.py the order of changes among
calls.
"""

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
    PATHS,
    Connect,
    Launch,
    Naming,
    NatsServer,
    Provider,
    RawInvocation,
    connecting,
    settled,
)
from tests.integration.test_host import HEALTHY, health, tell

ROUNDS = 20
#: Calls that are sent right after the link that they need.
AT_ONCE = 10
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
    """The host's side of a launched provider. A change is in force when its method returns."""

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

    async def put(self, name: str = "default", /, **target_config: str) -> Mapping[str, Any]:
        """Put the component's link. Return health after it."""
        return await self.put_value(self.link(name, **target_config))

    async def put_value(self, link: dict[str, object]) -> Mapping[str, Any]:
        """Put a link that may be malformed. Return health after it."""
        self._links.add(str(link["name"]))
        return await self._tell("put", link)

    async def delete(self, name: str = "default") -> Mapping[str, Any]:
        """Delete the component's link. Return health after it."""
        self._links.discard(name)
        return await self._tell("del", self.link(name))

    async def delete_all(self) -> None:
        """Delete the links that were put and not deleted."""
        for name in list(self._links):
            await self.delete(name)

    async def _tell(self, verb: str, link: dict[str, object]) -> Mapping[str, Any]:
        await tell(self._raw, self.provider, f"linkdefs.{verb}", link)
        return await health(self._raw, self.provider)


@pytest.fixture
async def host(raw: Client, provider: Provider) -> AsyncIterator[Host]:
    """Yield the host of the shared provider. Delete its links after the test."""
    host = Host(raw, provider)
    yield host
    await host.delete_all()


@pytest.fixture
async def connect(nats_server: NatsServer) -> AsyncIterator[Connect]:
    async with connecting(nats_server.url) as connect:
        yield connect


async def test_the_meaning_of_a_name_changes_with_the_link(
    host: Host, provider: Provider, connect: Connect, client: KeyValueClient, bucket: str, named: Naming
) -> None:
    linked, alone = await connect(provider), named(f"{bucket} alone")
    await linked.set(bucket, "k", b"without a link")
    assert await host.put(bucket_prefix="mine-") == HEALTHY
    assert await linked.get(bucket, "k") is None
    await linked.set(bucket, "k", b"with a prefix")
    assert await host.put(bucket=alone) == HEALTHY
    await linked.set(bucket, "k", b"in one")
    assert await linked.get("any other", "k") == b"in one"
    assert await host.put(buckets=f"{alone}, {bucket}") == HEALTHY
    assert await linked.get(bucket, "k") == b"without a link"
    assert await linked.get(alone, "k") == b"in one"
    for call in (READS | WRITES).values():
        with pytest.raises(NoSuchStoreError):
            await call(linked, f"mine-{bucket}")
    assert await host.delete() == HEALTHY
    assert await linked.get(f"mine-{bucket}", "k") == b"with a prefix"
    assert await client.get(f"mine-{bucket}", "k") == b"with a prefix"


async def test_a_link_can_be_required_and_links_of_host_data_are_in_force_from_the_start(
    launch: Launch, raw: Client, connect: Connect
) -> None:
    key = "kv-of-required-links"
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target": key, "target_config": {"access": "read-only"}}
    known = [link | {"source_id": "known"}]
    provider = launch({"require_link": "true"}, provider_key=key, link_definitions=known)
    host = Host(raw, provider)
    linked, reader, anonymous = [await connect(provider, name) for name in (COMPONENT, "known", None)]
    for call in (READS | WRITES).values():
        with pytest.raises(AccessDeniedError):
            await call(linked, "b")
    await host.put()
    for call in (READS | WRITES).values():
        await call(linked, "b")
        with pytest.raises(AccessDeniedError):
            await call(anonymous, "b")
    await READS["get"](reader, "b")
    with pytest.raises(AccessDeniedError):
        await WRITES["set"](reader, "b")
    await host.delete()
    with pytest.raises(AccessDeniedError):
        await linked.get("b", "k")


async def test_limits_of_a_link(launch: Launch, raw: Client, connect: Connect, bucket: str) -> None:
    """A link may allow more than the provider. Parameters are read up to the largest limit of all."""
    provider = launch({"value_bytes_max": "100", "page_keys": "2"})
    host = Host(raw, provider)
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await host.put(value_bytes_max="5000", page_keys="10", quota_keys="3")
    await linked.set_many(bucket, {"1": bytes(5000), "2": b"", "3": b""})
    for call, message in (
        (stranger.set(bucket, "k", bytes(5000)), r"value is 5000 bytes; the limit is 100 \(value_bytes_max\)"),
        (linked.set(bucket, "4", b""), r"the buckets of this quota would hold 4 keys; the limit is 3 \(quota_keys\)"),
    ):
        with pytest.raises(OtherError, match=f"^{message}$"):
            await call
    assert len((await linked.list_keys(bucket)).keys) == 3
    assert len((await stranger.list_keys(bucket)).keys) == 2
    await host.delete()
    with pytest.raises(OtherError, match=r"^value is 5000 bytes; the limit is 100 \(value_bytes_max\)$"):
        await linked.set(bucket, "k", bytes(5000))
    assert await linked.get(bucket, "1") == bytes(5000)


@pytest.mark.parametrize(
    ("target_config", "reason"),
    [
        ({"access": "read"}, "everything is denied: access: found 4 characters, allowed read-write or read-only"),
        ({"acess": "read-only"}, "everything is denied: acess: no option has this name; did you mean access?"),
        ({"page_keys": 5}, "target_config.page_keys: found a number, expected a string"),
    ],
)
async def test_a_link_that_is_replaced_by_a_malformed_one_denies_everything(
    host: Host, provider: Provider, connect: Connect, bucket: str, target_config: dict[str, object], reason: str
) -> None:
    """Otherwise its caller would count as one without a link, and might be allowed more than before."""
    linked, stranger = await connect(provider), await connect(provider, "stranger")
    await host.put(bucket_prefix="mine-", access="read-only")
    told = await host.put_value(host.link() | {"target_config": target_config})
    assert told == {"healthy": False, "message": f"link {COMPONENT} -> {provider.key} (default): {reason}"}
    for call in (READS | WRITES).values():
        with pytest.raises(AccessDeniedError):
            await call(linked, bucket)
        await call(stranger, bucket)
    await stranger.set(bucket, "k", b"v")
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


async def test_a_call_right_after_its_link_uses_it(
    raw: Client, provider: Provider, client: KeyValueClient, bucket: str
) -> None:
    for number in range(AT_ONCE):
        params = encode_set(bucket.encode(), b"k%d" % number, b"v")
        result = await after_link(raw, provider, "set", params, f"read-only-{number}", {"access": "read-only"})
        assert result == encode_error(AccessDeniedError())
        result = await after_link(raw, provider, "set", params, f"prefixed-{number}", {"bucket_prefix": "mine-"})
        assert result == OK_UNIT
    assert await client.list_keys(bucket) == ([], None)
    assert len((await client.list_keys(f"mine-{bucket}")).keys) == AT_ONCE


@pytest.mark.bulk
@pytest.mark.parametrize("path", PATHS)
async def test_links_that_change_under_load(launch: Launch, raw: Client, connect: Connect, path: str) -> None:
    """Answer every call by a single definition: the bucket it reads and the bucket it writes belong together."""
    provider = launch({"require_link": "true", "transport": path})
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
            except (AccessDeniedError, NoSuchStoreError) as error:
                seen[name].add(type(error))
            except InterfaceError as error:
                seen[name].add(str(error))

    calls = [asyncio.create_task(call(client, name)) for client in callers for name in seen for _ in range(4)]
    for _ in range(ROUNDS):
        await host.put(bucket="old", buckets="a,b")
        await host.put(bucket="new", buckets="b,c")
        seen["b"].add(await callers[0].get("b", "which"))  # the calls of the others may wait until the next change
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
