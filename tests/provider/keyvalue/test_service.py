"""The service: the functions, and the store's errors as the interface's. Who may do what is tests/provider/keyvalue/test_policy.py's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from keyvalue_engine import LimitError, Store, StoreError, StoreOptions
from keyvalue_engine.order import CROWD_KEYS_MAX
from keyvalue_provider.keyvalue.handles import CallerHandles, Handles
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import atomics_handlers, encode_increment
from keyvalue_transport.keyvalue.batch import batch_handlers, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_bucket_key
from keyvalue_transport.keyvalue.store import KeyResponse, encode_list_keys, encode_set, store_handlers
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, drop_answer
from tests.provider.keyvalue.scene import Scene, at_once
from tests.provider.keyvalue.waiting_store import LATER, Later, WaitingStore

T = TypeVar("T")

LINKED = Caller("component", "default")


def service(**options: int | bool) -> Service:
    return Service(Store(StoreOptions(**options)))  # type: ignore[arg-type] # by name


@pytest.mark.parametrize("caller", [ANONYMOUS, LINKED])
def test_every_function(caller: Caller) -> None:
    store = Store()
    kv = Service(store)
    assert kv.get(caller, b"b", b"k") is None
    kv.set(caller, b"b", b"k", b"v")
    assert kv.get(caller, b"b", b"k") == b"v"
    assert kv.exists(caller, b"b", b"k") is True
    assert kv.list_keys(caller, b"b", None) == ([b"k"], None)
    assert kv.list_keys(caller, b"another", None) == ([], None)
    kv.delete(caller, b"b", b"k")
    kv.delete(caller, b"b", b"k")
    assert kv.exists(caller, b"b", b"k") is False
    assert kv.increment(caller, b"b", b"n", 2) == 2
    assert kv.increment(caller, b"b", b"n", 2**64 - 3) == 2**64 - 1
    assert kv.get(caller, b"b", b"n") == b"18446744073709551615"
    kv.set_many(caller, b"b", {b"1": b"one", b"2": b"", b"n": b"0"})
    assert kv.get_many(caller, b"b", [b"2", b"no", b"1", b"2", b"n"]) == [b"", None, b"one", b"", b"0"]
    kv.delete_many(caller, b"b", [b"1", b"no", b"2", b"1"])
    kv.delete_many(caller, b"b", [])
    kv.set_many(caller, b"b", {})
    assert kv.get_many(caller, b"b", []) == []
    assert kv.list_keys(caller, b"b", None) == ([b"n"], None)
    kv.delete(caller, b"b", b"n")
    assert len(store) == 0


def test_handles_of_before_a_change_are_not_kept_where_another_thread_finds_them_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(access="read-write")
    kv, find = scene.service, CallerHandles.__getitem__

    def find_late(handles: CallerHandles, caller: Caller) -> Handles:
        found = find(handles, caller)
        monkeypatch.setattr(CallerHandles, "__getitem__", find, raising=False)
        scene.put(access="read-only")
        return found

    kv.get(ANONYMOUS, b"b", b"k")
    monkeypatch.setattr(CallerHandles, "__getitem__", find_late, raising=False)
    kv.get(LINKED, b"b", b"k")
    with pytest.raises(AccessDeniedError):
        kv.set(LINKED, b"b", b"k", b"v")


def test_pages_and_cursors_are_the_stores() -> None:
    kv = service(page_keys_max=2)
    for number in range(5):
        kv.set(ANONYMOUS, b"b", b"%d" % number, b"")
    found: list[bytes] = []
    cursor: int | None = None
    for size in (2, 2, 1):
        keys, cursor = at_once(kv.list_keys(ANONYMOUS, b"b", cursor))
        assert len(keys) == size
        found += keys
    assert cursor is None
    assert sorted(found) == [b"%d" % number for number in range(5)]


STRICT: list[Callable[[Service], object]] = [
    lambda kv: kv.get(ANONYMOUS, b"b", b"k"),
    lambda kv: kv.exists(ANONYMOUS, b"b", b"k"),
    lambda kv: kv.delete(ANONYMOUS, b"b", b"k"),
    lambda kv: any(at_once(kv.get_many(ANONYMOUS, b"b", [b"k"]))),
    lambda kv: kv.delete_many(ANONYMOUS, b"b", [b"k"]),
]


@pytest.mark.parametrize("call", STRICT)
def test_a_bucket_that_was_never_written(call: Callable[[Service], object]) -> None:
    assert not call(service())
    with pytest.raises(NoSuchStoreError):
        call(service(strict_buckets=True))


@pytest.mark.parametrize(
    ("bucket", "key", "value", "message"),
    [
        (b"b", b"k", b"1234", "value is 4 bytes; the limit is 3 (value_bytes_max)"),
        (b"b", b"12345", b"", "key is 5 bytes; the limit is 4 (key_bytes_max)"),
        (b"123456", b"k", b"", "bucket name is 6 bytes; the limit is 5 (bucket_name_bytes_max)"),
        (b"b", b"2nd", b"", "the store would hold 2 keys; the limit is 1 (keys_max)"),
    ],
)
def test_limits_become_other(bucket: bytes, key: bytes, value: bytes, message: str) -> None:
    store = Store(StoreOptions(value_bytes_max=3, key_bytes_max=4, bucket_name_bytes_max=5, keys_max=1))
    kv = Service(store)
    kv.set(ANONYMOUS, b"b", b"k", b"v")
    with pytest.raises(OtherError) as caught:
        kv.set(ANONYMOUS, bucket, key, value)
    assert caught.value.message.endswith(message)
    assert isinstance(caught.value, InterfaceError)
    assert kv.get(ANONYMOUS, b"b", b"k") == b"v"
    assert len(store) == 1


def test_keys_of_one_position_become_other() -> None:
    kv = Service(Store(StoreOptions(page_keys_max=10), hash_function=lambda key, seed: 0))
    for number in range(CROWD_KEYS_MAX + 1):
        kv.set(ANONYMOUS, b"b", b"%d" % number, b"")
    with pytest.raises(OtherError, match=r"position 0: found at least .* keys"):
        kv.list_keys(ANONYMOUS, b"b", None)
    assert kv.get(ANONYMOUS, b"b", b"7") == b""


@pytest.mark.parametrize(
    ("value", "delta", "message"),
    [
        (b"seven", 1, "value: found 'seven', allowed a decimal number from 0 to 18446744073709551615"),
        (b"-1", 1, "value: found '-1', allowed a decimal number from 0 to 18446744073709551615"),
        (
            b"\xff" * 40,
            1,
            "value: found '" + r"\xff" * 32 + "'..., allowed a decimal number from 0 to 18446744073709551615",
        ),
        (b"7", 2**64 - 1, "counter: found 7 + 18446744073709551615, allowed a sum up to 18446744073709551615"),
    ],
)
def test_what_cannot_be_incremented_becomes_other(value: bytes, delta: int, message: str) -> None:
    kv = service()
    kv.set(ANONYMOUS, b"b", b"k", value)
    with pytest.raises(OtherError) as caught:
        kv.increment(ANONYMOUS, b"b", b"k", delta)
    assert caught.value.message == message
    assert kv.get(ANONYMOUS, b"b", b"k") == value


def test_a_batch_that_passes_a_limit_becomes_other() -> None:
    kv = service(keys_max=2)
    kv.set(ANONYMOUS, b"b", b"1", b"v")
    with pytest.raises(OtherError, match=r"^the store would hold 3 keys; the limit is 2 \(keys_max\)$"):
        kv.set_many(ANONYMOUS, b"b", {b"1": b"w", b"2": b"", b"3": b""})
    assert kv.list_keys(ANONYMOUS, b"b", None) == ([b"1"], None)
    assert kv.get(ANONYMOUS, b"b", b"1") == b"v"


def test_a_reader_of_parameters_need_not_read_more_than_the_store_takes() -> None:
    kv = service(bucket_name_bytes_max=1, key_bytes_max=2, value_bytes_max=3)
    assert kv.parameter_limits == ParameterLimits(bucket_bytes_max=1, key_bytes_max=2, value_bytes_max=3)
    assert Service(Store()).parameter_limits == ParameterLimits()


# Answers that must be waited for. Every function is carried out so over both paths by tests/integration/test_waiting_store.py.


async def waited(answer: Answer[T]) -> T:
    """Return an answer that is not there at once."""
    assert isinstance(answer, Awaitable)
    return await answer


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
async def test_an_answer_to_wait_for_is_translated_when_it_is_awaited(later: Later) -> None:
    store = WaitingStore(later, StoreOptions(value_bytes_max=1))
    kv = Service(store)
    await waited(kv.set(ANONYMOUS, b"b", b"k", b"v"))
    assert await waited(kv.list_keys(ANONYMOUS, b"b", None)) == KeyResponse([b"k"], None)
    deleted: object = await waited(kv.delete(ANONYMOUS, b"b", b"k"))
    assert deleted is None
    answer = kv.set(ANONYMOUS, b"b", b"k", b"vv")
    with pytest.raises(OtherError, match=r"^value is 2 bytes; the limit is 1 \(value_bytes_max\)$") as caught:
        await waited(answer)
    assert isinstance(caught.value.__cause__, LimitError)


async def test_a_future_of_the_store_is_what_a_server_waits_for() -> None:
    """Of every function, so that no task is made for it. What comes out is what a store that answers at once gives."""
    made: list[asyncio.Future[object]] = []

    def later(function: Callable[..., object], *arguments: object) -> asyncio.Future[object]:
        answer = asyncio.get_running_loop().create_future()
        try:
            answer.set_result(function(*arguments))
        except StoreError as error:
            answer.set_exception(error)
        made.append(answer)
        return answer

    options = StoreOptions(value_bytes_max=2, keys_max=3)
    immediate, waiting = Service(Store(options)), Service(WaitingStore(later, options))
    limits = ParameterLimits()
    handlers, expected = (
        {**store_handlers(kv, limits), **atomics_handlers(kv, limits), **batch_handlers(kv, limits)}
        for kv in (waiting, immediate)
    )
    key = encode_bucket_key(b"b", b"k")
    calls = {
        "set": [encode_set(b"b", b"k", b"v"), encode_set(b"b", b"k", b"too long")],
        "get": [key, encode_bucket_key(b"b", b"none")],
        "exists": [key],
        "increment": [encode_increment(b"b", b"n", 2), encode_increment(b"b", b"k", 1)],
        "get-many": [encode_bucket_keys(b"b", [b"k", b"none"])],
        "set-many": [encode_set_many(b"b", [(b"1", b""), (b"2", b""), (b"3", b"")])],
        "delete-many": [encode_bucket_keys(b"b", [b"n"])],
        "list-keys": [encode_list_keys(b"b", None)],
        "delete": [key],
    }
    assert set(calls) == set(handlers)
    for name, parameters in calls.items():
        for params in parameters:
            pending = handlers[name](ANONYMOUS, params, 0, len(params))
            assert not isinstance(pending, bytes)
            assert pending.answer is made[-1]
            assert pending.encode(made[-1].result) == expected[name](ANONYMOUS, params, 0, len(params)), name


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
async def test_an_answer_that_is_dropped_is_not_carried_out(later: Later) -> None:
    store = WaitingStore(later)
    answer = Service(store).set(ANONYMOUS, b"b", b"k", b"v")
    assert answer is not None
    drop_answer(answer)
    await asyncio.sleep(0)
    assert len(store.held) == 0
