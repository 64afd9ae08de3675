"""Handles: buckets under a link's options, quotas, and calls during which links change.

A real service over a real store.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sortedcontainers import SortedList

from keyvalue_engine import Store
from keyvalue_engine.quota import Usage
from keyvalue_provider.config.options import LINK_OPTIONS
from keyvalue_provider.host.links import LinkDefinition
from keyvalue_provider.keyvalue import handles as module
from keyvalue_provider.keyvalue.handles import KEPT_NAME_BYTES
from keyvalue_provider.keyvalue.policy import Access
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.errors import AccessDeniedError, NoSuchStoreError, OtherError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from tests.conftest import options_of
from tests.provider.keyvalue.scene import (
    CALLS,
    KEY,
    LINKED,
    OTHER,
    STRANGER,
    WRITES,
    Call,
    Scene,
    at_once,
)
from tests.provider.keyvalue.waiting_store import LATER, WaitingStore

# Kept handles


def test_unknown_callers_grow_nothing() -> None:
    scene = Scene(quota_keys="1_000")
    scene.put()
    handles = scene.service._handles
    scene.service.get(LINKED, b"b", b"k")
    entries = len(handles), scene.quotas
    for number in range(100):
        for name in (f"link-{number}", None):
            scene.service.set(Caller(f"component-{number}", name), b"b", b"k", b"v")
    assert (len(handles), scene.quotas) == entries


def test_all_callers_together_keep_a_limited_number_of_handles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDLES_MAX", 100)
    scene = Scene()
    callers = [Caller(f"component-{number}", "default") for number in range(7)]
    for caller in callers:
        scene.put(caller)
    for number in range(70):
        for caller in callers:
            handles = scene.service._handles[caller].readable
            handle = handles[b"%d" % number]
            assert handles[b"%d" % number] is handle
            assert 1 <= sum(len(each.readable) for each in scene.service._handles.values()) <= 100
        if not number % 10:
            scene.put(callers[0], page_keys=str(number + 1))  # its handles go without notice


def test_the_handle_of_a_long_name_is_not_kept() -> None:
    scene = Scene(bucket_name_bytes_max="10_000")
    scene.put(bucket_prefix="p" * (KEPT_NAME_BYTES - 2))
    scene.put(OTHER, bucket="b" * (KEPT_NAME_BYTES + 1))
    for caller, name in ((STRANGER, b"n" * (KEPT_NAME_BYTES + 1)), (LINKED, b"nnn"), (OTHER, b"n")):
        handles = scene.service._handles[caller].readable
        scene.service.set(caller, name, b"k", b"v")
        assert scene.service.get(caller, name, b"k") == b"v"
        assert len(handles) == 0
    scene.service.get(LINKED, b"nn", b"k")
    assert len(scene.service._handles[LINKED].readable) == 1


def test_an_unchanged_link_keeps_its_handles() -> None:
    scene = Scene()
    scene.put()
    handles = scene.service._handles[LINKED]
    handle = handles.readable[b"b"]
    scene.put(OTHER)
    scene.delete(OTHER)
    assert scene.service._handles[LINKED] is handles
    assert handles.readable[b"b"] is handle
    scene.put(page_keys="1")
    assert scene.service._handles[LINKED] is not handles


@pytest.mark.parametrize("changes", [1, 50])
def test_a_change_reads_only_the_changed_links(changes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new configuration reads none. Each caller's access is worked out at its next call."""
    scene = Scene()
    callers = [Caller(f"component-{number}", "default") for number in range(100)]
    for caller in callers:
        scene.put(caller, quota_keys="10", bucket_prefix=caller.source_id or "")
        scene.service.set(caller, b"b", b"k", b"v")
    work = Counter[str]()

    def count(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def counted(*arguments: Any) -> Any:
            result = function(*arguments)
            work[name] += len(result) if isinstance(result, list) else 1
            return result

        monkeypatch.setattr(owner, name, counted)

    count(LINK_OPTIONS, "read")
    count(Access, "of")
    count(Usage, "next_names")  # the buckets that a quota counts
    for caller in callers[:changes]:
        assert scene.links.put(LinkDefinition(caller.source_id or "", KEY, "default", target_config={"page_keys": "7"}))
    scene.links_changed()
    assert work == {"read": changes, "of": changes}
    scene.configure(options_of({"access": "read-only"}))
    assert work == {"read": changes, "of": changes + 1}
    for caller in callers:
        with pytest.raises(AccessDeniedError):
            scene.service.set(caller, b"b", b"k", b"v")
    assert work["read"] == changes
    assert work["of"] == changes + 1 + len(callers)
    assert scene.counted_reaches == len(callers) - changes
    assert work["next_names"] == 0, "an unchanged reach is not counted again"


# Lengths, pages, time


def refused(function: Callable[..., object], *arguments: object) -> str:
    """Return the message of `other`."""
    with pytest.raises(OtherError) as caught:
        function(*arguments)
    return caught.value.message


def test_lengths_of_a_link() -> None:
    scene = Scene(key_bytes_max="8", value_bytes_max="8")
    scene.put(key_bytes_max="2", value_bytes_max="3")
    scene.put(OTHER, key_bytes_max="16", value_bytes_max="32")
    kv = scene.service
    for caller, key_bytes, value_bytes in ((LINKED, 2, 3), (STRANGER, 8, 8), (OTHER, 16, 32)):
        kv.set(caller, b"b", b"k" * key_bytes, b"v" * value_bytes)
        key, value = b"n" * (key_bytes + 1), b"v" * (value_bytes + 1)
        too_long = f"key is {key_bytes + 1} bytes; the limit is {key_bytes} (key_bytes_max)"
        assert refused(kv.set, caller, b"b", key, b"") == refused(kv.increment, caller, b"b", key, 1) == too_long
        too_long = f"value is {value_bytes + 1} bytes; the limit is {value_bytes} (value_bytes_max)"
        assert refused(kv.set_many, caller, b"b", {b"n": b"", b"m": value}) == too_long
    assert len(scene.store) == 3


def test_pages_of_a_link() -> None:
    scene = Scene(page_keys="3")
    scene.put(page_keys="2")
    scene.put(OTHER, page_keys="100", page_bytes="10")
    for number in range(5):
        scene.service.set(ANONYMOUS, b"b", b"%d" % number, b"")
    for caller, size in ((LINKED, 2), (OTHER, 2), (ANONYMOUS, 3)):  # a key counts its byte and four more
        assert len(at_once(scene.service.list_keys(caller, b"b", None)).keys) == size


def test_time_to_live_of_a_link() -> None:
    scene = Scene(ttl_ms="5000")
    scene.put(ttl_ms="1000")
    kv = scene.service
    kv.set(LINKED, b"b", b"set", b"v")
    kv.set_many(LINKED, b"b", {b"many": b"v"})
    kv.increment(LINKED, b"b", b"counter", 1)
    kv.set(ANONYMOUS, b"b", b"longer", b"v")
    keys = [b"set", b"many", b"counter", b"longer"]
    for move_ms, values in ((999, [b"v", b"v", b"1", b"v"]), (1, [None] * 3 + [b"v"]), (4000, [None] * 4)):
        scene.clock.move_ms(move_ms)
        assert kv.get_many(LINKED, b"b", keys) == values


NOTHING = {"get": None, "exists": False, "get-many": [None], "delete": None, "delete-many": None}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize(
    ("of_store", "of_link", "is_strict"),
    [
        ({}, "false", False),
        ({}, "true", True),
        ({"strict_buckets": "true"}, None, True),
        ({"strict_buckets": "true"}, "false", False),
    ],
)
def test_strictness_of_a_link(name: str, of_store: dict[str, str], of_link: str | None, is_strict: bool) -> None:
    """A strict link finds no bucket where nothing was written. A missing key is no error."""
    scene = Scene(**of_store)
    scene.put(bucket_prefix="p-", **({} if of_link is None else {"strict_buckets": of_link}))
    kv, call = scene.service, CALLS[name]
    kv.set(ANONYMOUS, b"b", b"k", b"of another bucket")
    assert kv.list_keys(LINKED, b"b", None) == ([], None)
    if is_strict:
        with pytest.raises(NoSuchStoreError):
            call(kv, LINKED, b"b")
    else:
        assert call(kv, LINKED, b"b") == NOTHING[name]
    kv.set(ANONYMOUS, b"p-b", b"another", b"v")
    assert call(kv, LINKED, b"b") == NOTHING[name]
    assert kv.get(LINKED, b"b", b"another") == b"v"
    scene.store.check()


# Quotas


KEYS_MAX = "the buckets of this quota would hold {} keys; the limit is {} (quota_keys)"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"bucket_prefix": "p-"}, [b"a", b"b", b""]),
        ({"buckets": "a,b,c"}, [b"a", b"b", b"c"]),
        ({"buckets": "a,b,c", "bucket_prefix": "p-"}, [b"a", b"b", b"c"]),
        ({"bucket": "one"}, [b"a", b"b", b"c"]),
        ({}, [b"a", b"b", b"c"]),
    ],
)
def test_a_quota_covers_all_buckets_of_a_link_together(options: dict[str, str], names: list[bytes]) -> None:
    scene = Scene()
    scene.put(quota_keys="3", **options)
    kv = scene.service
    for number, name in enumerate(names):
        kv.set(LINKED, name, b"%d" % number, b"v")
    for name in names:
        assert refused(kv.set, LINKED, name, b"new", b"v") == KEYS_MAX.format(4, 3)
        assert refused(kv.increment, LINKED, name, b"new", 1) == KEYS_MAX.format(4, 3)
    assert refused(kv.set_many, LINKED, names[0], {b"0": b"w", b"n": b"", b"m": b""}) == KEYS_MAX.format(5, 3)
    assert kv.get(LINKED, names[0], b"0") == b"v"
    kv.set(LINKED, names[0], b"0", b"as long as it likes")  # no new key
    kv.delete(LINKED, names[0], b"0")
    kv.set(LINKED, names[1], b"new", b"v")
    assert len(scene.store) == 3
    scene.store.check()


def test_a_quota_counts_other_callers_writes_without_limiting_them() -> None:
    scene = Scene()
    kv = scene.service
    kv.set(ANONYMOUS, b"p-a", b"before", b"v")
    kv.set(ANONYMOUS, b"elsewhere", b"k", b"v")
    scene.put(quota_keys="2", bucket_prefix="p-")
    kv.set(ANONYMOUS, b"p-b", b"meanwhile", b"v")
    assert refused(kv.set, LINKED, b"c", b"k", b"v") == KEYS_MAX.format(3, 2)
    kv.set(ANONYMOUS, b"p-b", b"not bound", b"v")
    assert refused(kv.set, LINKED, b"c", b"k", b"v") == KEYS_MAX.format(4, 2)
    for bucket, key in ((b"p-b", b"not bound"), (b"p-a", b"before")):
        kv.delete(ANONYMOUS, bucket, key)
    kv.set(LINKED, b"c", b"k", b"v")
    scene.store.check()


def test_a_changed_link_is_held_to_the_content_of_its_buckets() -> None:
    scene = Scene()
    kv = scene.service
    scene.put(quota_keys="3", bucket_prefix="p-")
    kv.set_many(LINKED, b"a", {b"1": b"", b"2": b"", b"3": b""})
    scene.put(quota_keys="4", bucket_prefix="p-")
    kv.set(LINKED, b"b", b"4", b"")
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 4)
    scene.put(quota_keys="2", bucket_prefix="p-")
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 2)
    scene.put(quota_keys="2", bucket_prefix="p-", page_keys="7")  # the quota is unchanged
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 2)
    scene.put(quota_keys="2", bucket_prefix="q-")
    kv.set(LINKED, b"a", b"1", b"")
    scene.put(quota_keys="2", bucket_prefix="p-")
    kv.delete_many(LINKED, b"a", [b"1", b"2", b"3"])
    kv.set(LINKED, b"a", b"1", b"")
    assert refused(kv.set, LINKED, b"a", b"2", b"") == KEYS_MAX.format(3, 2)
    assert scene.quotas == scene.counted_reaches == 1
    scene.store.check()


def test_quotas_are_removed_with_their_links() -> None:
    scene = Scene()
    kv = scene.service
    scene.put(quota_keys="1")
    scene.put(OTHER, quota_bytes="1")
    scene.put(STRANGER, buckets="a", quota_keys="1")
    assert scene.counted_reaches == 0, "a quota counts from the first call on"
    for caller in (LINKED, OTHER, STRANGER):
        kv.get(caller, b"a", b"k")
    assert (scene.quotas, scene.counted_reaches) == (3, 2)
    scene.put(OTHER)
    scene.put(STRANGER, buckets="a", quota_keys="one")  # malformed: it is denied everything, and needs no quota
    assert (scene.quotas, scene.counted_reaches) == (1, 1)
    kv.set(LINKED, b"b", b"k", b"v")
    assert refused(kv.set, LINKED, b"b", b"new", b"v") == KEYS_MAX.format(2, 1)
    scene.delete()
    assert (scene.quotas, scene.counted_reaches) == (0, 0)
    kv.set(LINKED, b"b", b"new", b"v")
    scene.store.check()


def test_links_with_the_same_buckets_share_counts_under_different_limits() -> None:
    """A write then costs the same under thousands of links as under one."""
    scene = Scene(quota_bytes="10_000")
    kv = scene.service
    for number in range(100):
        caller = Caller(f"component-{number}", "default")
        scene.put(caller, quota_keys=str(number + 2))
        kv.set(caller, b"b", b"k", b"")
    assert scene.counted_reaches == 1
    large = Caller("component-7", "default")
    scene.put(large, quota_bytes="20_000")
    kv.set(large, b"b", b"k", bytes(15_000))
    assert scene.counted_reaches == 1
    for caller in (Caller("component-8", "default"), ANONYMOUS):
        message = refused(kv.set, caller, b"b", b"n", b"")
        assert message.startswith("the buckets of this quota would take 15")
        assert message.endswith("bytes of memory; the limit is 10000 (quota_bytes)")
    scene.store.check()


@pytest.mark.parametrize("later", [None, *LATER])
async def test_writes_wait_while_a_new_quota_is_counted(later: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads, deletions and other callers do not wait. The count takes bounded steps, between which others are served."""
    monkeypatch.setattr(module, "COUNTED_BUCKETS", 3)
    scene = Scene()
    store = scene.store if later is None else WaitingStore(LATER[later])
    held = store if isinstance(store, Store) else store.held
    kv = Service(store, scene.policy)
    for number in range(20):
        held.bucket(b"%02d" % number).set(b"k", b"v")
    steps: list[list[bytes]] = []
    next_names = Usage.next_names

    def count(usage: Usage, names: SortedList, names_max: int) -> list[bytes]:
        steps.append(next_names(usage, names, names_max))
        return steps[-1]

    monkeypatch.setattr(Usage, "next_names", count)
    scene.links.put(LinkDefinition("component", KEY, "default", target_config={"quota_keys": "21"}))
    kv.policy_changed(scene.policy.links_changed(scene.links.take_changed()))

    async def done(answer: Any) -> Any:
        return await answer if isinstance(answer, Awaitable) else answer

    writes = [
        asyncio.ensure_future(done(write))
        for write in (
            kv.set(LINKED, b"00", b"first", b"v"),
            kv.increment(LINKED, b"19", b"second", 1),
            kv.set_many(LINKED, b"new", {b"third": b"v"}),
        )
    ]
    assert await done(kv.get(LINKED, b"00", b"k")) == b"v"
    assert await done(kv.delete(LINKED, b"05", b"k")) is None
    await done(kv.set(ANONYMOUS, b"06", b"another", b"v"))
    assert not any(write.done() for write in writes)
    assert kv.set_each(LINKED, b"00", [b"first"], [b"v"]) == 0, "they must wait one by one"
    assert kv._increment_each(LINKED, b"00", [b"first"], [1]) == ()
    assert (kv.increment_each is None) == (later is not None)
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert outcomes[0] is None
    assert [str(each) for each in outcomes[1:]] == [KEYS_MAX.format(22, 21)] * 2
    assert [len(step) for step in steps[:-1]] == [3] * 6
    with pytest.raises(OtherError):
        await done(kv.set(LINKED, b"00", b"n", b"v"))
    assert [*kv._handles[LINKED].readable] == [b"00"], "handles are kept from now on"
    held.check()


def test_the_keys_max_of_the_provider_is_not_a_quota() -> None:
    scene = Scene(keys_max="2")
    scene.put()
    assert scene.quotas == 0


# Changes


class OvertakenName(bytes):
    """A bucket's name that runs a change once, when it is looked up."""

    overtake: list[Callable[[], object]]

    def __hash__(self) -> int:
        while self.overtake:
            self.overtake.pop()()
        return super().__hash__()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("after", [{"bucket": "new", "access": "read-only"}, {"buckets": "none"}, {"ttl_ms": ""}, None])
def test_a_call_that_a_change_overtakes_keeps_the_rules_it_began_under(
    call: Call, after: dict[str, str] | None
) -> None:
    def change() -> None:
        if after is None:
            scene.delete()
        else:
            scene.put(**after)

    outcomes = []
    for overtake in ([], [change]):
        scene = Scene(require_link="true")
        scene.put(bucket="old", strict_buckets="true")
        scene.service.set(LINKED, b"b", b"k", b"7")
        name = OvertakenName(b"b")
        name.overtake = list(overtake)
        outcomes.append((call(scene.service, LINKED, name), list(scene.store.bucket(b"old").keys())))
        assert scene.store.bucket_names() in ([b"old"], [])
        assert not name.overtake
    assert outcomes[0] == outcomes[1]
    with pytest.raises((AccessDeniedError, NoSuchStoreError)):
        WRITES["set"](scene.service, LINKED, b"b")
