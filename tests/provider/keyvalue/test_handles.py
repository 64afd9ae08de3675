"""Handles: buckets under a link's options, quotas, and calls during which links change.

A real service over a real store.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyvalue_provider.keyvalue.handles import HANDLES_MAX
from keyvalue_transport.keyvalue.errors import AccessDeniedError, NoSuchStoreError, OtherError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from tests.provider.keyvalue.scene import (
    CALLS,
    LINKED,
    OTHER,
    STRANGER,
    WRITES,
    Call,
    Scene,
    at_once,
)

# Kept handles


def test_unknown_callers_grow_nothing() -> None:
    scene = Scene()
    scene.put()
    handles = scene.service._handles
    entries = len(handles), len(handles._of_accesses), len(handles._quotas), len(scene.policy.accesses)
    for number in range(100):
        for name in (f"link-{number}", None):
            scene.service.set(Caller(f"component-{number}", name), b"b", b"k", b"v")
    assert (len(handles), len(handles._of_accesses), len(handles._quotas), len(scene.policy.accesses)) == entries


def test_names_of_buckets_grow_to_a_limit() -> None:
    scene = Scene()
    scene.put()
    handles = scene.service._handles[LINKED].readable
    for number in range(2 * HANDLES_MAX + 10):
        scene.service.get(LINKED, b"%d" % number, b"k")
        assert 1 <= len(handles) <= HANDLES_MAX


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
    assert scene.quotas == 1
    scene.store.check()


def test_quotas_are_removed_with_their_links() -> None:
    scene = Scene()
    kv = scene.service
    scene.put(quota_keys="1")
    scene.put(OTHER, quota_bytes="1")
    scene.put(STRANGER, buckets="a", quota_keys="1")
    assert scene.quotas == 3
    scene.put(OTHER)
    scene.put(STRANGER, buckets="a", quota_keys="one")  # malformed: it is denied everything, and needs no quota
    assert scene.quotas == 1
    kv.set(LINKED, b"b", b"k", b"v")
    assert refused(kv.set, LINKED, b"b", b"new", b"v") == KEYS_MAX.format(2, 1)
    scene.delete()
    assert scene.quotas == 0
    kv.set(LINKED, b"b", b"new", b"v")
    scene.store.check()


def test_links_with_the_same_buckets_and_limits_share_a_quota() -> None:
    """With a default quota, a write then costs the same under thousands of links as under one."""
    scene = Scene(quota_bytes="10_000")
    for number in range(100):
        scene.put(Caller(f"component-{number}", "default"))
    assert scene.quotas == 1
    scene.put(Caller("component-7", "default"), quota_bytes="20_000")
    assert scene.quotas == 2
    kv = scene.service
    kv.set(Caller("component-7", "default"), b"b", b"k", bytes(15_000))
    for caller in (Caller("component-8", "default"), ANONYMOUS):
        message = refused(kv.set, caller, b"b", b"n", b"")
        assert message.startswith("the buckets of this quota would take 15")
        assert message.endswith("bytes of memory; the limit is 10000 (quota_bytes)")


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
