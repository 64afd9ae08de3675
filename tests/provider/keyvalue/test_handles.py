"""Handles: how buckets are used under a link's options, quotas, and calls that a change of links overtakes. A real service over a real store."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from threading import Event

import pytest

from keyvalue_provider.keyvalue.handles import HANDLES_MAX
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from tests.provider.keyvalue.scene import (
    CALLS,
    LINKED,
    OTHER,
    READS,
    STRANGER,
    WRITES,
    Call,
    Scene,
    at_once,
)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as the interpreter allows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


# Which are kept


def test_callers_that_nobody_knows_grow_nothing() -> None:
    scene = Scene()
    scene.put()

    def call(numbers: range) -> None:
        for number in numbers:
            caller = Caller(f"component-{number}", f"link-{number}")
            scene.service.set(caller, b"b", b"k", b"v")
            scene.service.get(Caller(f"component-{number}", None), b"b", b"k")

    call(range(100))
    entries = len(scene.service._handles)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call(range(100, 10_100))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(scene.service._handles) == entries
    assert grown < 16_384  # one entry for each would be more than a MiB


def test_names_of_buckets_grow_to_a_limit() -> None:
    scene = Scene()
    scene.put()
    handles = scene.service._handles[LINKED].readable
    for number in range(2 * HANDLES_MAX + 10):
        scene.service.get(LINKED, b"%d" % number, b"k")
        assert 1 <= len(handles) <= HANDLES_MAX


def test_a_link_that_is_as_before_keeps_its_handles() -> None:
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


def test_lengths_of_a_link() -> None:
    scene = Scene(key_bytes_max="8", value_bytes_max="8")
    scene.put(key_bytes_max="2", value_bytes_max="3")
    scene.put(OTHER, key_bytes_max="16", value_bytes_max="32")
    kv = scene.service
    kv.set(LINKED, b"b", b"kk", b"vvv")
    kv.set(STRANGER, b"b", b"k" * 8, b"v" * 8)
    kv.set(OTHER, b"b", b"k" * 16, b"v" * 32)
    refused: list[tuple[Callable[[], object], str]] = [
        (lambda: kv.set(LINKED, b"b", b"kkk", b""), "key is 3 bytes; the limit is 2 (key_bytes_max)"),
        (lambda: kv.set(LINKED, b"b", b"k", b"vvvv"), "value is 4 bytes; the limit is 3 (value_bytes_max)"),
        (lambda: kv.increment(LINKED, b"b", b"kkk", 1), "key is 3 bytes; the limit is 2 (key_bytes_max)"),
        (
            lambda: kv.set_many(LINKED, b"b", {b"n": b"", b"m": b"vvvv"}),
            "value is 4 bytes; the limit is 3 (value_bytes_max)",
        ),
        (lambda: kv.set(STRANGER, b"b", b"k" * 9, b""), "key is 9 bytes; the limit is 8 (key_bytes_max)"),
        (lambda: kv.set(OTHER, b"b", b"k", b"v" * 33), "value is 33 bytes; the limit is 32 (value_bytes_max)"),
    ]
    for call, message in refused:
        with pytest.raises(OtherError) as caught:
            call()
        assert caught.value.message == message
    assert len(scene.store) == 3


def test_pages_of_a_link() -> None:
    scene = Scene(page_keys="3")
    scene.put(page_keys="2")
    scene.put(OTHER, page_keys="100", page_bytes="10")
    for number in range(5):
        scene.service.set(ANONYMOUS, b"b", b"%d" % number, b"")
    sizes = {
        caller: len(at_once(scene.service.list_keys(caller, b"b", None)).keys) for caller in (LINKED, OTHER, ANONYMOUS)
    }
    assert sizes == {LINKED: 2, OTHER: 2, ANONYMOUS: 3}  # a key counts its byte and four more


def test_time_to_live_of_a_link() -> None:
    scene = Scene(ttl_ms="5000")
    scene.put(ttl_ms="1000")
    kv = scene.service
    kv.set(LINKED, b"b", b"set", b"v")
    kv.set_many(LINKED, b"b", {b"many": b"v"})
    kv.increment(LINKED, b"b", b"counter", 1)
    kv.set(ANONYMOUS, b"b", b"longer", b"v")
    keys = [b"set", b"many", b"counter", b"longer"]
    scene.clock.move_ms(999)
    assert kv.get_many(LINKED, b"b", keys) == [b"v", b"v", b"1", b"v"]
    scene.clock.move_ms(1)
    assert kv.get_many(LINKED, b"b", keys) == [None, None, None, b"v"]
    scene.clock.move_ms(4000)
    assert kv.get_many(LINKED, b"b", keys) == [None] * 4


STRICTEST: dict[str, tuple[Call, object]] = {
    "get": (READS["get"], None),
    "exists": (READS["exists"], False),
    "get-many": (READS["get-many"], [None]),
    "delete": (WRITES["delete"], None),
    "delete-many": (WRITES["delete-many"], None),
}


@pytest.mark.parametrize(("call", "nothing"), STRICTEST.values(), ids=STRICTEST)
@pytest.mark.parametrize("of_store", [None, "true", "false"])
@pytest.mark.parametrize("of_link", [None, "true", "false"])
def test_strictness_of_a_link(call: Call, nothing: object, of_store: str | None, of_link: str | None) -> None:
    scene = Scene(**({} if of_store is None else {"strict_buckets": of_store}))
    scene.put(**({} if of_link is None else {"strict_buckets": of_link}))
    kv = scene.service
    assert kv.list_keys(LINKED, b"b", None) == ([], None)
    if (of_link or of_store) == "true":
        with pytest.raises(NoSuchStoreError):
            call(kv, LINKED, b"b")
    else:
        assert call(kv, LINKED, b"b") == nothing
    kv.set(LINKED, b"b", b"another", b"v")
    assert call(kv, LINKED, b"b") == nothing  # a missing key is no error
    kv.set(LINKED, b"b", b"k", b"v")
    call(kv, LINKED, b"b")
    assert kv.get(LINKED, b"b", b"another") == b"v"
    kv.delete_many(LINKED, b"b", [b"k", b"another"])
    if of_store == "true":  # it keeps what was emptied known
        assert call(kv, LINKED, b"b") == nothing
    scene.store.check()


def test_strictness_goes_by_the_bucket_that_a_name_means() -> None:
    scene = Scene()
    scene.put(strict_buckets="true", bucket_prefix="p-")
    scene.service.set(ANONYMOUS, b"b", b"k", b"v")
    with pytest.raises(NoSuchStoreError):
        scene.service.get(LINKED, b"b", b"k")
    scene.service.set(ANONYMOUS, b"p-b", b"k", b"of the link")
    assert scene.service.get(LINKED, b"b", b"k") == b"of the link"


# Quotas


KEYS_MAX = "the buckets of this quota would hold {} keys; the limit is {} (quota_keys)"


def refused(function: Callable[..., object], *arguments: object) -> str:
    """The message of `other`."""
    with pytest.raises(OtherError) as caught:
        function(*arguments)
    return caught.value.message


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
def test_a_quota_is_of_all_buckets_of_a_link_together(options: dict[str, str], names: list[bytes]) -> None:
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


def test_a_quota_counts_what_others_write_and_does_not_bind_them() -> None:
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


def test_a_quota_of_memory() -> None:
    scene = Scene()
    scene.put(quota_bytes="1000", bucket_prefix="p-")
    kv = scene.service
    kv.set(LINKED, b"a", b"k", bytes(400))
    message = refused(kv.set, LINKED, b"b", b"k", bytes(500))
    assert message.startswith("the buckets of this quota would take ")
    assert message.endswith(" bytes of memory; the limit is 1000 (quota_bytes)")
    kv.set(LINKED, b"a", b"k", bytes(100))
    kv.set(LINKED, b"b", b"k", bytes(500))
    assert refused(kv.set, LINKED, b"b", b"k", bytes(800)).endswith(" bytes of memory; the limit is 1000 (quota_bytes)")
    assert len(at_once(kv.get(LINKED, b"b", b"k")) or b"") == 500
    scene.store.check()


def test_a_quota_gives_back_what_expires() -> None:
    scene = Scene()
    scene.put(quota_keys="1", ttl_ms="1000")
    scene.service.set(LINKED, b"b", b"k", b"v")
    assert refused(scene.service.set, LINKED, b"b", b"new", b"v") == KEYS_MAX.format(2, 1)
    scene.clock.move_ms(1000)
    scene.service.set(LINKED, b"b", b"new", b"v")


def test_a_changed_link_is_held_to_what_its_buckets_hold() -> None:
    scene = Scene()
    kv = scene.service
    scene.put(quota_keys="3", bucket_prefix="p-")
    kv.set_many(LINKED, b"a", {b"1": b"", b"2": b"", b"3": b""})
    scene.put(quota_keys="4", bucket_prefix="p-")
    kv.set(LINKED, b"b", b"4", b"")
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 4)
    scene.put(quota_keys="2", bucket_prefix="p-")
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 2)
    scene.put(quota_keys="2", bucket_prefix="p-", page_keys="7")  # the quota is as before
    assert refused(kv.set, LINKED, b"b", b"5", b"") == KEYS_MAX.format(5, 2)
    scene.put(quota_keys="2", bucket_prefix="q-")
    kv.set(LINKED, b"a", b"1", b"")
    scene.put(quota_keys="2", bucket_prefix="p-")
    kv.delete_many(LINKED, b"a", [b"1", b"2", b"3"])
    kv.set(LINKED, b"a", b"1", b"")
    assert refused(kv.set, LINKED, b"a", b"2", b"") == KEYS_MAX.format(3, 2)
    assert scene.quotas == 1
    scene.store.check()


def test_quotas_go_with_their_links() -> None:
    scene = Scene()
    kv = scene.service
    scene.put(quota_keys="1")
    scene.put(OTHER, quota_bytes="1")
    scene.put(STRANGER, buckets="a", quota_keys="1")
    assert scene.quotas == 3
    scene.put(OTHER)
    scene.put(STRANGER, buckets="a", quota_keys="one")  # malformed: it may do nothing, and needs none
    assert scene.quotas == 1
    kv.set(LINKED, b"b", b"k", b"v")
    assert refused(kv.set, LINKED, b"b", b"new", b"v") == KEYS_MAX.format(2, 1)
    scene.delete()
    assert scene.quotas == 0
    kv.set(LINKED, b"b", b"new", b"v")
    scene.store.check()


def test_links_that_reach_the_same_under_the_same_limits_share_a_quota() -> None:
    """What buckets hold is the same for all that reach them; so thousands of links with a default quota cost a write as much as one."""
    scene = Scene(quota_bytes="10_000")
    for number in range(100):
        scene.put(Caller(f"component-{number}", "default"))
    assert scene.quotas == 1
    scene.put(Caller("component-7", "default"), quota_bytes="20_000")
    assert scene.quotas == 2
    kv = scene.service
    kv.set(Caller("component-7", "default"), b"b", b"k", bytes(15_000))
    for caller in (Caller("component-8", "default"), ANONYMOUS):
        assert "the buckets of this quota would take 15" in refused(kv.set, caller, b"b", b"n", b"")


def test_the_keys_max_of_the_provider_is_no_quota() -> None:
    scene = Scene(keys_max="2")
    scene.put()
    assert scene.quotas == 0
    scene.service.set_many(LINKED, b"b", {b"1": b"", b"2": b""})
    assert (
        refused(scene.service.set, LINKED, b"b", b"3", b"") == "the store would hold 3 keys; the limit is 2 (keys_max)"
    )


def test_quotas_are_exact_under_threads(hasty_threads: None) -> None:
    keys_max, threads = 500, 8
    scene = Scene()
    scene.put(quota_keys=str(keys_max), bucket_prefix="p-")
    kv = scene.service

    def write(thread: int) -> int:
        written = 0
        for number in range(2 * keys_max // threads):
            try:
                kv.set(LINKED, b"%d" % (number % 5), b"%d-%d" % (thread, number), b"v")
                written += 1
            except OtherError as error:
                assert error.message == KEYS_MAX.format(keys_max + 1, keys_max)
        return written

    with ThreadPoolExecutor(threads) as pool:
        assert sum(pool.map(write, range(threads))) == keys_max
    assert len(scene.store) == keys_max
    scene.store.check()


# Changes


def test_a_put_and_a_delete_take_effect_at_once() -> None:
    scene = Scene(bucket="of-strangers")
    kv = scene.service
    for bucket in ("one", "two"):
        scene.put(bucket=bucket)
        kv.set(LINKED, b"b", b"k", bucket.encode())
    scene.delete()
    kv.set(LINKED, b"b", b"k", b"unlinked")
    names = (b"one", b"two", b"of-strangers")
    assert [scene.store.bucket(name).get(b"k") for name in names] == [b"one", b"two", b"unlinked"]


class OvertakenName(bytes):
    """A bucket's name at whose look-up something else happens first, once."""

    overtake: list[Callable[[], object]]

    def __hash__(self) -> int:
        while self.overtake:
            self.overtake.pop()()
        return super().__hash__()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("after", [{"bucket": "new", "access": "read-only"}, {"buckets": "none"}, {"ttl_ms": ""}, None])
def test_a_call_that_a_change_overtakes_is_carried_out_as_it_was_begun(
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


#: Definitions that differ in all that one call needs: what a name means, who may write, how long a value may be.
DEFINITIONS: list[dict[str, str] | None] = [
    {"bucket": "four", "buckets": "a,b", "value_bytes_max": "4"},
    {"bucket": "eight", "buckets": "b,c", "value_bytes_max": "8"},
    {"bucket": "read", "access": "read-only", "value_bytes_max": "16"},
    {"bucket": "malformed", "access": "neither"},
    None,
]


def test_no_call_is_answered_by_a_mix_of_two_definitions(hasty_threads: None) -> None:
    """What a name means, whether it may be given, and how long a value may be, are always of one definition, whoever changes it meanwhile."""
    scene = Scene(bucket="linkless", value_bytes_max="2")
    store, kv = scene.store, scene.service
    store.bucket(b"read").set(b"k", b"rd")
    stopped = Event()

    def outcome(function: Callable[..., object], *arguments: object) -> str:
        try:
            function(LINKED, *arguments)
        except InterfaceError as error:
            return str(error)
        return "ok"

    def write(name: bytes) -> set[str]:
        outcomes = set()
        for size in cycle((2, 4, 8, 16)):
            value = bytes(size)
            outcomes.add(outcome(kv.set, name, b"k", value))
            outcomes.add(outcome(kv.set_many, name, {b"k": value, b"l": value}))
            if stopped.is_set():
                break
        return outcomes

    def read(name: bytes) -> set[int]:
        sizes = set()
        while not stopped.is_set():
            try:
                sizes |= {len(value) for value in at_once(kv.get_many(LINKED, name, [b"k", b"l"])) if value is not None}
            except InterfaceError:
                continue
        return sizes

    names = (b"a", b"b", b"c")
    with ThreadPoolExecutor(2 * len(names)) as pool:
        writers = [pool.submit(write, name) for name in names]
        readers = [pool.submit(read, name) for name in names]
        try:
            for definition in islice(cycle(DEFINITIONS), 1000):
                if definition is None:
                    scene.delete()
                else:
                    scene.put(**definition)
        finally:
            stopped.set()
        of_a, of_b, of_c = (writer.result() for writer in writers)
        sizes_of_a, sizes_of_b, sizes_of_c = (reader.result() for reader in readers)
    both = {
        "ok",
        "access denied",
        *(f"value is {found} bytes; the limit is 2 (value_bytes_max)" for found in (4, 8, 16)),
    }
    four = {f"value is {found} bytes; the limit is 4 (value_bytes_max)" for found in (8, 16)}
    eight = {"value is 16 bytes; the limit is 8 (value_bytes_max)"}
    assert of_a <= both | four | {"no such store"}
    assert of_b <= both | four | eight
    assert of_c <= both | eight | {"no such store"}
    assert {"ok", "access denied"} <= of_a & of_b & of_c
    assert sizes_of_a <= {2, 4}
    assert sizes_of_b <= {2, 4, 8}
    assert sizes_of_c <= {2, 4, 8}
    for bucket, size in ((b"four", 4), (b"eight", 8), (b"linkless", 2)):
        assert all(len(value or b"") <= size for value in store.bucket(bucket).get_many([b"k", b"l"])), bucket
    assert set(store.bucket_names()) <= {b"four", b"eight", b"read", b"linkless"}
    assert store.bucket(b"read").get_many([b"k", b"l"]) == [b"rd", None]
    store.check()
