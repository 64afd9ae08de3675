"""Components that watch KV buckets with plain names: what other NATS clients do with a bucket, and which are followed.

tests/integration/test_replicated_watch.py tests what is the same with encoded names, and instances that are killed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, in_thread, launching, until
from tests.integration import test_shared_buckets, test_watch
from tests.integration.test_host import HEALTHY, health, tell
from tests.integration.test_replicated import jetstream
from tests.integration.test_replicated_watch import consumers, last_of
from tests.integration.test_shared_buckets import CREATING, bare_bucket, client_of, config_of
from tests.integration.test_watch import Component, key_of, serving, watch_link

admin, bucket, launch = test_shared_buckets.admin, test_shared_buckets.bucket, test_shared_buckets.launch
nats_server, component = test_shared_buckets.nats_server, test_watch.component


CREATE = {"enable_bucket_auto_create": "true"}


@pytest.fixture(scope="module")
def path() -> str:
    """Use the direct path."""
    return "direct"


async def followed(admin: Client, *buckets: str) -> None:
    """Wait until each KV bucket is followed for one watcher."""

    async def is_followed() -> bool:
        return all([len(await consumers(admin, bucket)) == 1 for bucket in buckets])

    await until(is_followed, f"{buckets} are followed")


async def test_what_other_clients_do_is_told(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    """The KV bucket belongs to others, and its configuration stays as it is."""
    theirs = await bare_bucket(admin, bucket)
    await theirs.put("before", b"the link was put")
    before = await config_of(admin, bucket)
    key = key_of(bucket)
    link = watch_link(key, component.name, {"watch": "SET@*,DEL@*", "bucket": bucket, "watch_bucket": "{bucket}"})
    provider = launch(provider_key=key, link_definitions=[link])
    await followed(admin, bucket)
    async with client_of(nats_server, provider) as ours:
        await theirs.put("a.b/c=d_e-f", b"put")
        await theirs.put("deleted", b"1")
        await theirs.delete("deleted")
        revision = await theirs.create("purged", b"2")
        await theirs.update("purged", b"3", revision)
        await theirs.purge("purged")
        await ours.set(bucket, "ours", b"4")
        await ours.increment(bucket, "n", 5)
        await ours.delete(bucket, "ours")
        last = {b"a.b/c=d_e-f": b"put", b"deleted": None, b"purged": None, b"ours": None, b"n": b"5"}
        await component.until(lambda told: last_of(told) == last)
        await admin.request(f"$KV.{bucket}.only", b"v", headers={"Nats-Rollup": "all"}, timeout=DEADLINE_S)
        await component.told_last(b"only")
    assert last_of(component.told) == last | {b"only": b"v"}
    assert {bucket for bucket, _, _ in component.told} == {bucket.encode()}
    assert await config_of(admin, bucket) == before
    await tell(admin, provider, "linkdefs.del", link)

    async def is_deleted() -> bool:
        return not await consumers(admin, bucket)

    await until(is_deleted, "the consumer is deleted")


async def test_patterns_and_links_decide_which_kv_buckets_are_followed(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    """A pattern without a bucket follows the KV buckets that other links name. Nothing keeps open what nobody watches."""
    named, linked, other = buckets = [f"{bucket}_{name}" for name in ("named", "linked", "other")]
    theirs = [await admin.jetstream().create_key_value(KeyValueConfig(name)) for name in buckets]
    key = key_of(bucket)
    options = {"watch": f"SET@{named}/a*,DEL@c*", "watch_bucket": "{bucket}"}
    watching = watch_link(key, component.name, options)
    linking = watch_link("c", key, {}, interfaces=["store"], target_config={"bucket": linked})
    provider = launch({"bucket_idle_ms": "300"}, provider_key=key, link_definitions=[watching])
    await followed(admin, named)
    await tell(admin, provider, "linkdefs.put", linking)
    await followed(admin, named, linked)
    async with client_of(nats_server, provider) as client:
        assert await client.exists(other, "k") is False
        await in_thread(provider.wait_for, f"closed KV_{other}")
    for each in theirs:
        for name in ("a1", "c1"):
            await each.put(name, b"v")
            await each.delete(name)
    await component.told_of(3)
    last = {(name, key): value for name, key, value in component.told}
    assert last == {(named.encode(), b"a1"): b"v", (named.encode(), b"c1"): None, (linked.encode(), b"c1"): None}
    assert not [line for line in provider.output.splitlines() if f"closed KV_{named}" in line]
    await tell(admin, provider, "linkdefs.del", linking)

    async def is_left() -> bool:
        return not await consumers(admin, linked)

    await until(is_left, "the consumer of the KV bucket that no link names is deleted")
    assert len(await consumers(admin, named)) == 1


async def test_a_kv_bucket_that_is_missing_or_created_again_is_told_from_its_beginning(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    """Health names it while it is missing. One instance is killed, so that both know all of this."""
    key = key_of(bucket)
    link = watch_link(key, component.name, {"watch": f"SET@{bucket}/*"})
    running = [launch(provider_key=key, link_definitions=[link]) for _ in range(2)]
    missing = f"serving; the KV bucket {bucket} is watched, but does not exist yet"
    js = admin.jetstream()

    async def is_missing() -> bool:
        return [await health(admin, running[0]) for _ in range(6)] == [{"healthy": True, "message": missing}] * 6

    await until(is_missing, "health names the missing KV bucket")
    for number in range(3):  # sequences of the second and the third one begin again
        theirs = await js.create_key_value(KeyValueConfig(bucket, history=5))
        for _ in range(3 - number):
            await theirs.put(f"k{number}", b"%d" % number)
        await component.told_last(b"k%d" % number)
        if number < 2:
            await js.delete_key_value(bucket)
        if number == 0:
            await until(is_missing, "health names the missing KV bucket again")
    await theirs.put("last", b"v")
    await component.told_last(b"last")
    assert last_of(component.told) == {b"k0": b"0", b"k1": b"1", b"k2": b"2", b"last": b"v"}

    async def is_healthy() -> bool:
        return [await health(admin, running[0]) for _ in range(6)] == [HEALTHY] * 6

    await until(is_healthy, "both instances follow the last KV bucket")


async def test_a_kv_bucket_that_others_delete_is_created_again_only_by_a_write(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    key = key_of(bucket)
    links = [
        watch_link(key, component.name, {"watch": "SET@*"}),
        watch_link("c", key, {}, interfaces=["store"], target_config={"bucket": bucket} | CREATE),
    ]
    provider = launch(provider_key=key, link_definitions=links)
    await followed(admin, bucket)
    await admin.jetstream().delete_key_value(bucket)

    async def is_named() -> bool:
        return "is watched, but does not exist yet" in (await health(admin, provider))["message"]

    await until(is_named, "health names the missing KV bucket")
    async with KeyValueClient(nats_server.url, provider.prefix, source_id="c", link_name="default") as client:
        assert await client.get("any", "k") is None
        assert await is_named()
        await client.set("any", "k", b"v")
        await component.told_last(b"k")


async def test_a_watched_kv_bucket_takes_the_room_of_an_unused_one(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    names = [f"{bucket}_{number}" for number in range(3)]
    theirs = [await admin.jetstream().create_key_value(KeyValueConfig(name)) for name in names]
    key = key_of(bucket)
    provider = launch({"open_buckets_max": "2"}, provider_key=key)
    watch = ",".join(f"SET@{name}/*" for name in names[1:])
    async with client_of(nats_server, provider) as client:
        assert await client.get(names[0], "k") is None
        await tell(
            admin,
            provider,
            "linkdefs.put",
            watch_link(key, component.name, {"watch": watch, "watch_bucket": "{bucket}"}),
        )
        which = "the KV bucket {} of a link: the provider would hold 3 KV buckets open; the limit is 2 "
        full = tuple(map(which.format, names[1:]))  # the first one that is found takes the room

        async def is_named() -> bool:
            message: str = (await health(admin, provider))["message"]
            return message.startswith(full)

        await until(is_named, "health names the KV bucket that finds no room")
        assert not (await health(admin, provider))["healthy"]
        await in_thread(provider.wait_for, f"closed KV_{names[0]}")
        await followed(admin, *names[1:])
        for each in theirs:
            await each.put("k", each._name.encode())
        assert {value for _, _, value in await component.told_of(2)} == {name.encode() for name in names[1:]}
        with pytest.raises(OtherError, match="would hold 3 KV buckets open"):
            await client.get(names[0], "k")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"watch": "SET@*"}, "no pattern names a bucket (SET@bucket/key), and no link names a KV bucket"),
        ({"watch": "SET@b/a b"}, "watch: the key has the character ' ' at byte 1; NATS allows letters, digits"),
        ({"watch": "SET@b/a..*"}, "watch: the key begins or ends with a dot, or has two dots side by side"),
        ({"watch": "SET@a.b/*"}, "watch: the bucket's name has the character '.' at byte 1"),
        ({"watch": "SET@k", "keys": "encoded"}, "watch: keys=encoded needs a provider with keys=encoded"),
    ],
)
async def test_a_link_that_can_tell_nothing_is_named(
    launch: Launch, admin: Client, config: Mapping[str, str], reason: str
) -> None:
    provider = launch()
    await tell(admin, provider, "linkdefs.put", watch_link(provider.key, "component", config))
    answer = await health(admin, provider)
    assert not answer["healthy"]
    assert reason in answer["message"]
    await tell(admin, provider, "linkdefs.del", watch_link(provider.key, "component", {}))
    assert await health(admin, provider) == HEALTHY


async def test_a_provider_with_encoded_names_watches_both(
    launch: Launch, nats_server: NatsServer, admin: Client, component: Component, bucket: str
) -> None:
    theirs = await admin.jetstream().create_key_value(KeyValueConfig(bucket))
    key = key_of(bucket)
    links = [
        watch_link(key, component.name, {"watch": "SET@*", "watch_bucket": "{bucket}"}),
        watch_link(key, component.name, {"watch": "SET@*", "keys": "plain", "bucket": bucket}, name="plain"),
    ]
    provider = launch({"keys": "encoded"}, provider_key=key, link_definitions=links)
    await followed(admin, bucket, key)
    async with client_of(nats_server, provider) as client:
        await client.set("b", "k", b"encoded")
    await theirs.put("k", b"plain")
    assert sorted(await component.told_of(2)) == [(b"0", b"k", b"plain"), (b"b", b"k", b"encoded")]


async def test_the_kv_bucket_of_a_domain(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path, path: str, bucket: str
) -> None:
    """The deletion of an expired key is told, too."""
    server = new_nats_server(jetstream(tmp_path / "streams").replace("store_dir", "domain: hub, store_dir"))
    component = Component("component")
    watching = {"watch": "SET@a.*,DEL@*", "bucket": "kv", "js_domain": "hub", "watch_bucket": "{bucket}"}
    links = [
        watch_link("provider", "component", watching),
        watch_link("w", "provider", {}, interfaces=["store"], target_config={"js_domain": "hub", "ttl_ms": "300"}),
    ]
    with launching(server.url, tmp_path) as launch:
        provider = launch(CREATING, provider_key="provider", link_definitions=links)
        async with (
            serving(server.url, component, path),
            KeyValueClient(server.url, provider.prefix, source_id="w", link_name="default") as client,
        ):
            await client.set("kv", "b", b"1")
            await client.set("kv", "a.b", b"2")
            await component.until(lambda told: last_of(told) == {b"a.b": None, b"b": None})
    assert (b"kv", b"a.b", b"2") in component.told
    assert {name for name, _, _ in component.told} == {b"kv"}
