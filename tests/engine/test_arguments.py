"""Arguments of odd types: each is refused with TypeError or kept as bytes, and all that is kept can be saved and loaded."""

from __future__ import annotations

from array import array
from collections import UserDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyvalue_engine import BucketOptions, Quota, Reach, Store, StoreError, StoreOptions
from tests.engine.clock import Clock


class Bytes(bytes):
    """Bytes whose conversion gives something else."""

    def __bytes__(self) -> bytes:
        return b"another"


class Number(int):
    """An int that is printed as something else."""

    def __str__(self) -> str:
        return "another"


def view(buffer: bytes | bytearray) -> memoryview:
    return memoryview(buffer)


binary = st.binary(max_size=3) | st.sampled_from([b"1", b"2"])
odd = st.one_of(
    binary,
    binary.map(bytearray),
    binary.map(view),
    binary.map(bytearray).map(view),
    binary.map(Bytes),
    st.lists(st.floats(allow_nan=False), max_size=2).map(lambda numbers: array("d", numbers)),
    st.text(max_size=2),
    st.integers(-2, 2**63),
    st.integers(0, 9).map(Number),
    st.floats(),
    st.sampled_from([None, True, 3_600_000 / 2, [b"k"], (b"k",), {b"k": b"v"}, object()]),
)
maps: st.SearchStrategy[dict[Any, Any]] = st.dictionaries(
    binary | st.text(max_size=2) | binary.map(view), odd, max_size=3
)
calls = st.one_of(
    st.tuples(st.just("set"), odd, odd) | st.tuples(st.just("set"), odd, odd, odd),
    st.tuples(st.just("set_many"), maps | maps.map(UserDict) | odd),
    st.tuples(st.just("increment"), odd, odd),
    st.tuples(st.sampled_from(["get", "delete", "exists", "ttl_ms", "persist", "__getitem__", "__delitem__"]), odd),
    st.tuples(st.sampled_from(["get_many", "delete_many"]), st.lists(odd, max_size=3) | odd),
    st.tuples(st.just("page"), odd, odd, odd),
)


def untyped(call: Any) -> Any:
    """Return `call`, to which mypy lets any argument pass."""
    return call


def contents(store: Store) -> dict[tuple[bytes, bytes], bytes]:
    """Return all values by the name of their bucket and their key."""
    return {(name, key): value for name in store.bucket_names() for key, value in store.bucket(name).items()}


def lasting(store: Store) -> set[tuple[bytes, bytes]]:
    """Return the keys that will not expire within a minute, with the names of their buckets."""
    return {(name, key) for name, key in contents(store) if (store.bucket(name).ttl_ms(key) or 60_000) >= 60_000}


def spoil(arguments: Any) -> None:
    """Change each buffer that the caller still holds."""
    for part in arguments.values() if isinstance(arguments, dict | UserDict) else arguments:
        if isinstance(part, bytearray | array) or (isinstance(part, memoryview) and not part.readonly):
            for index in range(len(part)):
                part[index] = 7
        elif isinstance(part, dict | UserDict | list):
            spoil(part)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(odd, calls), max_size=12))
def test_whatever_is_accepted_can_be_saved_and_loaded(steps: list[tuple[Any, tuple[Any, ...]]], tmp_path: Path) -> None:
    store = Store(clock=Clock())
    for name, (method, *arguments) in steps:
        with suppress(TypeError, ValueError, KeyError, StoreError):
            getattr(store.bucket(name), method)(*arguments)
        kept = contents(store)
        spoil([name, *arguments])
        assert contents(store) == kept, "the store shares a buffer with the caller"
        store.check()
    store.save(tmp_path / "snapshot")
    saved, loaded = contents(store), contents(Store.load(tmp_path / "snapshot"))
    assert loaded.items() <= saved.items()
    assert lasting(store) <= loaded.keys()


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda bucket: bucket.get("k"), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.exists(1), "key: found int, allowed bytes or a buffer"),
        (lambda bucket: "k" in bucket, "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.get_many(["k"]), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.delete_many("visits"), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.delete_many(b"visits"), "key: found int, allowed bytes or a buffer"),
        (lambda bucket: bucket.set(b"k", "text"), "value: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.set("k", b"v"), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.set(b"k", b"v", 3600 * 1000 / 2), "ttl_ms: found float, allowed int"),
        (lambda bucket: bucket.set_many({b"k": "v"}), "value: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.set_many({"k": b"v"}), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.set_many("text"), "entries: found str, allowed a mapping"),
        (lambda bucket: bucket.increment(b"k", None), "delta: found NoneType, allowed int"),
        (lambda bucket: bucket.delete(None), "key: found NoneType, allowed bytes or a buffer"),
        (lambda bucket: bucket.ttl_ms("k"), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.persist("k"), "key: found str, allowed bytes or a buffer"),
        (lambda bucket: bucket.page(0.5), "cursor: found float, allowed int"),
        (lambda bucket: untyped(Store().bucket)("b"), "bucket name: found str, allowed bytes or a buffer"),
        (lambda bucket: untyped(Store().sweep)(0.5), "keys_max: found float, allowed int"),
        (lambda bucket: untyped(BucketOptions)(quota=1), "quota: found int, allowed Quota"),
        (lambda bucket: Quota(untyped(Reach)(prefix="b"), None, None), "prefix: found str, allowed bytes or a buffer"),
        (lambda bucket: untyped(Quota)(Reach(), 0.5, None), "keys_max: found float, allowed int"),
    ],
)
def test_an_argument_of_another_type_is_refused(call: Callable[[Any], object], error: str, is_known: bool) -> None:
    store = Store()
    bucket = store.bucket(b"b")
    if is_known:
        bucket.set(b"k", b"1")
    with pytest.raises(TypeError) as caught:
        call(bucket)
    assert str(caught.value) == error
    assert contents(store) == ({(b"b", b"k"): b"1"} if is_known else {})
    store.check()


def test_a_buffer_is_copied_whole_and_counts_in_bytes() -> None:
    numbers = array("d", [1.5, 2.5, 3.5])
    bucket = untyped(Store(StoreOptions(value_bytes_max=23))).bucket(bytearray(b"b"))
    with pytest.raises(StoreError, match="value is 24 bytes; the limit is 23"):
        bucket.set(b"k", numbers)
    bucket.set_many({memoryview(b"k"): numbers[:2]})
    assert bucket.get_many([bytearray(b"k"), Bytes(b"k")]) == [numbers[:2].tobytes()] * 2
    assert bucket.delete_many([bytearray(b"k")]) == 1
