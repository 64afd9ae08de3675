"""The service: its functions, and the store's errors as the interface's.

test_policy.py tests what each caller may do.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import LimitError, Store, StoreError, StoreOptions
from keyvalue_provider.keyvalue.handles import CallerHandles, Handles
from keyvalue_provider.keyvalue.service import Service
from keyvalue_transport.keyvalue.atomics import atomics_handlers, encode_increment
from keyvalue_transport.keyvalue.batch import batch_handlers, encode_bucket_keys, encode_set_many
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_bucket_key
from keyvalue_transport.keyvalue.store import (
    KEY_RESPONSE_BYTES,
    KeyResponse,
    encode_key_response,
    encode_list_keys,
    encode_set,
    store_handlers,
)
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Answer, Caller, LargeResult, drop_answer
from tests.provider.keyvalue.scene import Scene, at_once
from tests.provider.keyvalue.waiting_store import LATER, Later, WaitingStore
from tests.transport.keyvalue.functions import carried_out

T = TypeVar("T")

LINKED = Caller("component", "default")


def service(**options: int | bool) -> Service:
    return Service(Store(StoreOptions(**options)))  # type: ignore[arg-type] # by name


@pytest.mark.parametrize("caller", [ANONYMOUS, LINKED])
def test_every_function(caller: Caller) -> None:
    store = Store(StoreOptions(page_keys_max=2))
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
    first = at_once(kv.list_keys(caller, b"b", None))
    last = at_once(kv.list_keys(caller, b"b", first.cursor))
    assert sorted([*first.keys, *last.keys]) == [b"1", b"2", b"n"]
    assert last.cursor is None
    assert kv.get_many(caller, b"b", [b"2", b"no", b"1", b"2", b"n"]) == [b"", None, b"one", b"", b"0"]
    kv.delete_many(caller, b"b", [b"1", b"no", b"2", b"1"])
    kv.delete_many(caller, b"b", [])
    kv.set_many(caller, b"b", {})
    assert kv.get_many(caller, b"b", []) == []
    assert kv.list_keys(caller, b"b", None) == ([b"n"], None)
    kv.delete(caller, b"b", b"n")
    assert len(store) == 0


def test_old_handles_are_not_kept_if_another_thread_finds_them_during_a_change(
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


NUMBER = "a decimal number from 0 to 18446744073709551615"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda kv: kv.set(ANONYMOUS, b"b", b"k", b"123456789"), "value is 9 bytes; the limit is 8 (value_bytes_max)"),
        (lambda kv: kv.set(ANONYMOUS, b"b", b"12345", b""), "key is 5 bytes; the limit is 4 (key_bytes_max)"),
        (
            lambda kv: kv.set(ANONYMOUS, b"123456", b"k", b""),
            "bucket name is 6 bytes; the limit is 5 (bucket_name_bytes_max)",
        ),
        (lambda kv: kv.set(ANONYMOUS, b"b", b"2nd", b""), "the store would hold 2 keys; the limit is 1 (keys_max)"),
        (
            lambda kv: kv.set_many(ANONYMOUS, b"b", {b"k": b"w", b"2": b"", b"3": b""}),
            "the store would hold 3 keys; the limit is 1 (keys_max)",
        ),
        (lambda kv: kv.increment(ANONYMOUS, b"b", b"k", 1), f"the value 'seven' is not {NUMBER}"),
    ],
)
def test_errors_of_the_store_become_other(call: Callable[[Service], object], message: str) -> None:
    store = Store(StoreOptions(value_bytes_max=8, key_bytes_max=4, bucket_name_bytes_max=5, keys_max=1))
    kv = Service(store)
    kv.set(ANONYMOUS, b"b", b"k", b"seven")
    with pytest.raises(OtherError) as caught:
        call(kv)
    assert caught.value.message == message
    assert isinstance(caught.value, InterfaceError)
    assert kv.get(ANONYMOUS, b"b", b"k") == b"seven"
    assert len(store) == 1


def test_writes_that_are_made_together_stop_at_an_error() -> None:
    kv = Service(Store(StoreOptions(keys_max=2)))
    assert kv.set_each(ANONYMOUS, b"b", [b"1", b"2", b"3", b"1"], [b"1", b"2", b"3", b"4"]) == 2
    assert kv.increment_each is not None
    assert kv.increment_each(ANONYMOUS, b"b", [b"1", b"2", b"3", b"1"], [4, 5, 6, 7]) == [5, 7]
    assert kv.get_many(ANONYMOUS, b"b", [b"1", b"2", b"3"]) == [b"5", b"7", None]


@given(
    st.sets(st.text(max_size=100).map(str.encode), max_size=60),
    st.integers(1, 2_000),
    st.integers(1, 2_000),
)
def test_a_page_is_not_larger_than_a_message(keys: set[bytes], message_bytes_max: int, page_bytes: int) -> None:
    """The server's limit may change between pages. A page of one key may be larger."""
    store = Store(StoreOptions(page_bytes_max=page_bytes))
    limit = message_bytes_max
    kv = Service(store, None, lambda: limit)
    for key in keys:
        kv.set(ANONYMOUS, b"b", key, b"")
    found: list[bytes] = []
    cursor: int | None = None
    for limit in itertools.cycle((message_bytes_max, 100)):
        page = at_once(kv.list_keys(ANONYMOUS, b"b", cursor))
        size = len(encode_key_response(page))
        assert len(page.keys) <= 1 or size <= min(limit, page_bytes + KEY_RESPONSE_BYTES)
        found += page.keys
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == sorted(keys)


async def test_keys_that_are_not_utf8_are_left_out() -> None:
    """A page of such keys alone is empty, so the rest of the page follows, as after expired keys."""
    kv = Service(Store(StoreOptions(page_keys_max=2)))
    keys = {b"\xff%d" % number for number in range(40)} | {"\xe4".encode(), b"a"}
    for key in keys:
        kv.set(ANONYMOUS, b"b", key, b"")
    found: list[bytes] = []
    cursor: int | None = None
    while True:
        answer = kv.list_keys(ANONYMOUS, b"b", cursor)
        page = answer if isinstance(answer, tuple) else await answer
        found += page.keys
        cursor = page.cursor
        if cursor is None:
            break
    assert sorted(found) == [b"a", "\xe4".encode()]
    assert kv.left_out_keys == 40


def test_parameters_need_not_be_read_beyond_the_limits_of_the_store() -> None:
    kv = service(bucket_name_bytes_max=1, key_bytes_max=2, value_bytes_max=3)
    assert kv.parameter_limits == ParameterLimits(bucket_bytes_max=1, key_bytes_max=2, value_bytes_max=3)
    assert Service(Store()).parameter_limits == ParameterLimits()


# Pending answers. tests/integration/test_order.py runs every function with them over both paths.


async def waited(answer: Answer[T]) -> T:
    """Return the result of a pending answer."""
    assert isinstance(answer, Awaitable)
    return await answer


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
async def test_a_pending_answer_is_translated_when_it_is_awaited(later: Later) -> None:
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


async def test_a_server_waits_for_the_future_of_the_store_itself() -> None:
    """No function needs a task. The results are those of a store that answers at once."""
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
            if isinstance(pending, LargeResult):
                pending = pending.encode()
            assert not isinstance(pending, bytes | Again)
            assert pending.answer is made[-1]
            assert pending.encode(made[-1].result) == carried_out(expected[name], params), name


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
async def test_a_dropped_answer_is_not_carried_out(later: Later) -> None:
    store = WaitingStore(later)
    answer = Service(store).set(ANONYMOUS, b"b", b"k", b"v")
    assert answer is not None
    drop_answer(answer)
    await asyncio.sleep(0)
    assert len(store.held) == 0
