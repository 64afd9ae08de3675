"""The codec of `wrpc:keyvalue` and the handlers over it: round trips, limits, damage, errors of the interface."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing
from typing import Any, NamedTuple, TypeAlias, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import (
    NEVER,
    ParameterLimits,
    decode_unit_result,
    encode_bucket_key,
    encode_error,
    encode_unit_result,
    function_handler,
)
from keyvalue_transport.keyvalue.outcomes import OUTCOMES, Tally
from keyvalue_transport.keyvalue.store import (
    STORE,
    KeyResponse,
    StoreInterface,
    decode_delete,
    decode_exists,
    decode_get,
    decode_get_result,
    decode_key_response,
    decode_list_keys,
    decode_set,
    decode_truth_result,
    encode_get_result,
    encode_key_response,
    encode_list_keys,
    encode_set,
    encode_truth_result,
    store_handlers,
    store_tallies,
)
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationLimits, Step
from keyvalue_transport.wrpc.values import U64_MAX, write_length
from tests.invoking import invoke
from tests.recorded_replies import accept, ended, new_core, waited
from tests.transport.keyvalue.test_interface import QuotaError

LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16, value_bytes_max=32)
CALLER = Caller("component", "default")

T = TypeVar("T")
Parameters: TypeAlias = tuple[Any, ...]


class Function(NamedTuple):
    """Codec of one function, and values to give it."""

    encode: Callable[..., bytes]
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[Parameters, int]]
    parameters: st.SearchStrategy[Parameters]
    encode_result: Callable[[Any], bytes]
    decode_result: Callable[[bytes, int, int], tuple[object, int]]
    results: st.SearchStrategy[object]


buckets = st.text(max_size=8).map(str.encode).filter(lambda name: len(name) <= LIMITS.bucket_bytes_max)
keys = st.text(max_size=16).map(str.encode).filter(lambda key: len(key) <= LIMITS.key_bytes_max)
value_bytes = st.binary(max_size=LIMITS.value_bytes_max)
cursors = st.none() | st.integers(0, U64_MAX) | st.sampled_from([0, 127, 128, U64_MAX])
pages = st.builds(KeyResponse, st.lists(keys, max_size=5), cursors)

FUNCTIONS = {
    "get": Function(
        encode_bucket_key,
        decode_get,
        st.tuples(buckets, keys),
        encode_get_result,
        decode_get_result,
        st.none() | st.binary(max_size=300),
    ),
    "set": Function(
        encode_set,
        decode_set,
        st.tuples(buckets, keys, value_bytes),
        encode_unit_result,
        decode_unit_result,
        st.none(),
    ),
    "delete": Function(
        encode_bucket_key,
        decode_delete,
        st.tuples(buckets, keys),
        encode_unit_result,
        decode_unit_result,
        st.none(),
    ),
    "exists": Function(
        encode_bucket_key,
        decode_exists,
        st.tuples(buckets, keys),
        encode_truth_result,
        decode_truth_result,
        st.booleans(),
    ),
    "list-keys": Function(
        encode_list_keys,
        decode_list_keys,
        st.tuples(buckets, cursors),
        encode_key_response,
        decode_key_response,
        pages,
    ),
}
#: A valid call of each function.
CALLS: dict[str, Parameters] = {
    "get": (b"bucket", b"key"),
    "set": (b"bucket", b"key", b"value"),
    "delete": (b"bucket", b"key"),
    "exists": (b"bucket", b"key"),
    "list-keys": (b"bucket", 300),
}

functions = st.sampled_from(sorted(FUNCTIONS))
interface_errors = (
    st.builds(NoSuchStoreError) | st.builds(AccessDeniedError) | st.text(max_size=40).map(lambda text: OtherError(text))
)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Almost a valid encoding: a byte changed, bytes put in, or an end cut off."""
    encoded = bytearray(draw(whole))
    at = draw(st.integers(0, len(encoded)))
    match draw(st.sampled_from(["change", "insert", "cut"])):
        case "change" if at < len(encoded):
            encoded[at] = draw(st.integers(0, 255))
        case "insert":
            encoded[at:at] = draw(st.binary(max_size=6))
        case _:
            del encoded[at:]
    return bytes(encoded)


class PlainStore:
    """`store` over a dict. An error under a bucket's name is raised by every function."""

    def __init__(self) -> None:
        self.entries: dict[tuple[bytes, bytes], bytes] = {}
        self.errors: dict[bytes, Exception] = {}
        self.callers: list[Caller] = []

    def _enter(self, caller: Caller, bucket: bytes) -> None:
        self.callers.append(caller)
        if bucket in self.errors:
            raise self.errors[bucket]

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> bytes | None:
        self._enter(caller, bucket)
        return self.entries.get((bucket, key))

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        self._enter(caller, bucket)
        self.entries[bucket, key] = value

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        self._enter(caller, bucket)
        self.entries.pop((bucket, key), None)

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> bool:
        self._enter(caller, bucket)
        return (bucket, key) in self.entries

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
        self._enter(caller, bucket)
        held = sorted(key for name, key in self.entries if name == bucket)
        start = cursor or 0
        return KeyResponse(held[start : start + 2], start + 2 if start + 2 < len(held) else None)


class WaitingStore:
    """The same with coroutine functions, each of which gives way to others once."""

    def __init__(self, plain: PlainStore) -> None:
        self._plain = plain

    async def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> bytes | None:
        await asyncio.sleep(0)
        return self._plain.get(caller, bucket, key)

    async def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        await asyncio.sleep(0)
        self._plain.set(caller, bucket, key, value)

    async def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        await asyncio.sleep(0)
        self._plain.delete(caller, bucket, key)

    async def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> bool:
        await asyncio.sleep(0)
        return self._plain.exists(caller, bucket, key)

    async def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
        await asyncio.sleep(0)
        return self._plain.list_keys(caller, bucket, cursor)


class DelegatingStore:
    """The same with plain functions that return what a coroutine function gives them, as a decorator makes them."""

    def __init__(self, waiting: WaitingStore) -> None:
        self._waiting = waiting
        self._given: list[Coroutine[object, object, object]] = []

    def _give(self, answer: Coroutine[object, object, T]) -> Awaitable[T]:
        self._given.append(answer)
        return answer

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Awaitable[bytes | None]:
        return self._give(self._waiting.get(caller, bucket, key))

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Awaitable[None]:
        return self._give(self._waiting.set(caller, bucket, key, value))

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Awaitable[None]:
        return self._give(self._waiting.delete(caller, bucket, key))

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Awaitable[bool]:
        return self._give(self._waiting.exists(caller, bucket, key))

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Awaitable[KeyResponse]:
        return self._give(self._waiting.list_keys(caller, bucket, cursor))

    def close(self) -> None:
        """Close what nobody waited for, which would warn."""
        for answer in self._given:
            answer.close()


def plain(store: PlainStore) -> StoreInterface:
    return store


def waiting(store: PlainStore) -> StoreInterface:
    return WaitingStore(store)


KINDS = pytest.mark.parametrize("kind", [plain, waiting])


def answered(answer: bytes | Pending) -> bytes:
    """The answer of a handler, waited for where it must be."""
    return answer if isinstance(answer, bytes) else waited(answer)


def counted(tally: Tally) -> dict[str, int]:
    """The counts of a tally that are not 0, by their names."""
    return {outcome: count for outcome, count in zip(OUTCOMES, tally, strict=True) if count}


def carried_out(handler: Handler, params: bytes, caller: Caller = ANONYMOUS) -> bytes:
    return answered(handler(caller, params, 0, len(params)))


# Tables


def test_the_instance_is_named_as_on_the_wire() -> None:
    assert STORE == "wrpc:keyvalue/store@0.2.0-draft"


@pytest.mark.parametrize(
    ("written", "encoded"),
    [
        (encode_bucket_key(b"b", b"key"), "0162 036b6579"),
        (encode_bucket_key(b"", b""), "00 00"),
        (encode_bucket_key(b"b", "ключ".encode()), "0162 08d0bad0bbd18ed187"),
        (encode_set(b"b", b"k", b""), "0162 016b 00"),
        (encode_set(b"b", b"k", b"\xff\x00"), "0162 016b 02ff00"),
        (encode_set(b"b", b"k", b"v" * 128), "0162 016b 8001" + "76" * 128),
        (encode_list_keys(b"b", None), "0162 00"),
        (encode_list_keys(b"b", 0), "0162 01 00"),
        (encode_list_keys(b"b", 300), "0162 01 ac02"),
        (encode_list_keys(b"b", U64_MAX), "0162 01 ffffffffffffffffff01"),
        (encode_get_result(None), "00 00"),
        (encode_get_result(b""), "00 01 00"),
        (encode_get_result(b"v" * 300), "00 01 ac02" + "76" * 300),
        (encode_unit_result(None), "00"),
        (encode_truth_result(False), "00 00"),
        (encode_truth_result(True), "00 01"),
        (encode_key_response(KeyResponse([], None)), "00 00 00"),
        (encode_key_response(KeyResponse([b"a", b""], 128)), "00 02 0161 00 01 8001"),
        (encode_error(NoSuchStoreError()), "01 00"),
        (encode_error(AccessDeniedError()), "01 01"),
        (encode_error(OtherError("")), "01 02 00"),
        (encode_error(OtherError("сбой")), "01 02 08d181d0b1d0bed0b9"),
    ],
)
def test_encodings(written: bytes, encoded: str) -> None:
    assert written == bytes.fromhex(encoded)


# Parameters


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=5), st.binary(max_size=5))
def test_parameters_come_back(name: str, choice: st.DataObject, before: bytes, behind: bytes) -> None:
    function = FUNCTIONS[name]
    parameters = choice.draw(function.parameters)
    encoded = function.encode(*parameters)
    end = len(before + encoded)
    assert function.decode(before + encoded + behind, len(before), end, LIMITS) == (parameters, end)


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=40))
def test_every_prefix_of_parameters_needs_more(name: str, choice: st.DataObject, behind: bytes) -> None:
    function = FUNCTIONS[name]
    encoded = function.encode(*choice.draw(function.parameters))
    for cut in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            function.decode(encoded[:cut] + behind, 0, cut, LIMITS)
        assert cut < raised.value.end_min <= len(encoded)


@settings(deadline=None)
@given(functions, st.data())
def test_any_bytes_have_an_outcome_as_parameters(name: str, choice: st.DataObject) -> None:
    function = FUNCTIONS[name]
    buffer = choice.draw(
        st.binary(max_size=40) | mutated(function.parameters.map(lambda parameters: function.encode(*parameters)))
    )
    try:
        parameters, offset = function.decode(buffer, 0, len(buffer), LIMITS)
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except LengthLimitError as error:
        found, allowed = map(int, re.findall(r"\d+", str(error)))
        assert found > allowed
        assert allowed in (LIMITS.bucket_bytes_max, LIMITS.key_bytes_max, LIMITS.value_bytes_max)
    except DecodeError as error:
        assert str(error).startswith("found ")
    else:
        assert offset <= len(buffer)
        again = function.encode(*parameters)
        assert function.decode(again, 0, len(again), LIMITS) == (parameters, len(again))


@pytest.mark.parametrize(
    ("name", "before", "what", "allowed"),
    [
        ("get", b"", "bucket name in bytes", 8),
        ("get", b"\x01b", "key in bytes", 16),
        ("set", b"", "bucket name in bytes", 8),
        ("set", b"\x01b", "key in bytes", 16),
        ("set", b"\x01b\x01k", "value in bytes", 32),
        ("delete", b"", "bucket name in bytes", 8),
        ("delete", b"\x01b", "key in bytes", 16),
        ("exists", b"", "bucket name in bytes", 8),
        ("exists", b"\x01b", "key in bytes", 16),
        ("list-keys", b"", "bucket name in bytes", 8),
    ],
)
def test_a_length_over_its_limit_is_refused_before_its_bytes_are_there(
    name: str, before: bytes, what: str, allowed: int
) -> None:
    decode = FUNCTIONS[name].decode
    handler = store_handlers(PlainStore(), LIMITS)[name]
    for length in (allowed + 1, 2**32 - 1):
        buffer = before + write_length(length)
        message = f"{what}: found {length}, allowed {allowed}"
        with pytest.raises(LengthLimitError, match=f"^{message}$"):
            decode(buffer, 0, len(buffer), LIMITS)
        assert carried_out(handler, buffer) == encode_error(OtherError(message))
    at_limit = before + write_length(allowed)
    with pytest.raises(NeedMoreBytes) as raised:
        decode(at_limit, 0, len(at_limit), LIMITS)
    assert raised.value.end_min == len(at_limit) + allowed


def test_limits_are_not_shared_by_functions_or_parameters() -> None:
    """A text as long as the limit is taken for each of them."""
    bucket, key, value = b"b" * 8, b"k" * 16, b"v" * 32
    for name, parameters in {
        "get": (bucket, key),
        "set": (bucket, key, value),
        "delete": (bucket, key),
        "exists": (bucket, key),
        "list-keys": (bucket, None),
    }.items():
        encoded = FUNCTIONS[name].encode(*parameters)
        assert FUNCTIONS[name].decode(encoded, 0, len(encoded), LIMITS) == (parameters, len(encoded))


@pytest.mark.parametrize("cursor", [-1, 2**64])
def test_a_cursor_that_is_no_u64_is_not_written(cursor: int) -> None:
    with pytest.raises(ValueError, match=f"found {cursor}"):
        encode_list_keys(b"b", cursor)
    with pytest.raises(ValueError, match=f"found {cursor}"):
        encode_key_response(KeyResponse([], cursor))


# Results


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=5), st.binary(max_size=5))
def test_results_come_back(name: str, choice: st.DataObject, before: bytes, behind: bytes) -> None:
    function = FUNCTIONS[name]
    result = choice.draw(function.results)
    encoded = function.encode_result(result)
    end = len(before + encoded)
    assert function.decode_result(before + encoded + behind, len(before), end) == (result, end)


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=40))
def test_every_prefix_of_a_result_needs_more(name: str, choice: st.DataObject, behind: bytes) -> None:
    function = FUNCTIONS[name]
    error = choice.draw(st.none() | interface_errors)
    encoded = function.encode_result(choice.draw(function.results)) if error is None else encode_error(error)
    for cut in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            function.decode_result(encoded[:cut] + behind, 0, cut)
        assert cut < raised.value.end_min <= len(encoded)


@settings(deadline=None)
@given(functions, st.data())
def test_any_bytes_have_an_outcome_as_a_result(name: str, choice: st.DataObject) -> None:
    function = FUNCTIONS[name]
    buffer = choice.draw(
        st.binary(max_size=40)
        | mutated(function.results.map(function.encode_result))
        | mutated(interface_errors.map(encode_error))
    )
    try:
        result, offset = function.decode_result(buffer, 0, len(buffer))
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except InterfaceError as error:
        assert isinstance(error, (NoSuchStoreError, AccessDeniedError, OtherError))
    except DecodeError as error:
        assert "found " in str(error)
    else:
        assert offset <= len(buffer)
        again = function.encode_result(result)
        assert function.decode_result(again, 0, len(again)) == (result, len(again))


@pytest.mark.parametrize(
    ("name", "encoded", "message"),
    [
        ("get", "02", "found 2 as the tag of a result, allowed 0 to 1"),
        ("get", "0002", "found 2 as the tag of an option, allowed 0 to 1"),
        ("get", "0001ffffffff10", "found a number that does not fit in 32 bits"),
        ("set", "ff", "found 255 as the tag of a result, allowed 0 to 1"),
        ("delete", "0103", "found 3 as the tag of an error, allowed 0 to 2"),
        ("exists", "0002", "found 2 as the tag of a bool, allowed 0 to 1"),
        ("list-keys", "00ffffffff10", "found a number that does not fit in 32 bits"),
        ("list-keys", "000101ff00", "found a string that is not UTF-8 at its byte 0"),
        ("list-keys", "000002", "found 2 as the tag of an option, allowed 0 to 1"),
        ("list-keys", "000001ffffffffffffffffff02", "found a number that does not fit in 64 bits"),
    ],
)
def test_a_damaged_result_says_what_was_found(name: str, encoded: str, message: str) -> None:
    buffer = bytes.fromhex(encoded)
    with pytest.raises(DecodeError, match=f"^{message}$"):
        FUNCTIONS[name].decode_result(buffer, 0, len(buffer))


@pytest.mark.parametrize(
    ("name", "encoded", "end_min"),
    [
        ("list-keys", "00ffffffff0f", 6 + 2**32 - 1 + 1),
        ("list-keys", "00ffffff7f 016101620163", 5 + 2**28 - 1 + 1),
        ("list-keys", "0001ffffffff0f 61", 7 + 2**32 - 1),
        ("get", "0001ffffffff0f 76", 7 + 2**32 - 1),
    ],
)
def test_nothing_is_allocated_on_the_word_of_a_count_or_length(name: str, encoded: str, end_min: int) -> None:
    buffer = bytes.fromhex(encoded)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(NeedMoreBytes) as raised:
            FUNCTIONS[name].decode_result(buffer, 0, len(buffer))
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 1024
    finally:
        tracemalloc.stop()
    assert raised.value.end_min == end_min


# Handlers


def test_there_is_a_handler_for_each_function() -> None:
    assert set(store_handlers(PlainStore(), LIMITS)) == set(FUNCTIONS)


@KINDS
def test_handlers_carry_out_what_the_parameters_say(kind: Callable[[PlainStore], StoreInterface]) -> None:
    store = PlainStore()
    handlers = store_handlers(kind(store), LIMITS)

    def call(name: str, *parameters: Any) -> object:
        result = carried_out(handlers[name], FUNCTIONS[name].encode(*parameters), CALLER)
        value, offset = FUNCTIONS[name].decode_result(result, 0, len(result))
        assert offset == len(result)
        return value

    assert call("get", b"b", b"k") is None
    assert call("exists", b"b", b"k") is False
    assert call("set", b"b", b"k", b"v") is None
    assert call("set", b"b", b"empty", b"") is None
    assert call("set", b"b", b"last", b"\xff") is None
    assert store.entries == {(b"b", b"k"): b"v", (b"b", b"empty"): b"", (b"b", b"last"): b"\xff"}
    assert call("get", b"b", b"k") == b"v"
    assert call("get", b"b", b"empty") == b""
    assert call("exists", b"b", b"k") is True
    assert call("list-keys", b"b", None) == KeyResponse([b"empty", b"k"], 2)
    assert call("list-keys", b"b", 2) == KeyResponse([b"last"], None)
    assert call("list-keys", b"other", None) == KeyResponse([], None)
    assert call("delete", b"b", b"k") is None
    assert call("exists", b"b", b"k") is False
    assert store.callers == [CALLER] * 13


@settings(deadline=None)
@given(functions, st.data())
def test_plain_and_coroutine_functions_give_the_same_results(name: str, choice: st.DataObject) -> None:
    entries = choice.draw(st.dictionaries(st.tuples(buckets, keys), value_bytes, max_size=4))
    function = FUNCTIONS[name]
    parameters = choice.draw(function.parameters)
    if entries:
        known = choice.draw(st.sampled_from(sorted(entries)))
        parameters = (known[0], *parameters[1:]) if name == "list-keys" else (*known, *parameters[2:])
    stores = PlainStore(), PlainStore()
    results = []
    for store, kind in zip(stores, (plain, waiting), strict=True):
        store.entries = dict(entries)
        results.append(carried_out(store_handlers(kind(store), LIMITS)[name], function.encode(*parameters)))
    assert results[0] == results[1]
    assert stores[0].entries == stores[1].entries


def decoded_handler(name: str, store: StoreInterface, limits: ParameterLimits, tally: Tally) -> Handler:
    """Return what the handler of get or set is written out of."""
    if name == "get":
        return function_handler(decode_get, store.get, encode_get_result, None, limits, tally)
    return function_handler(decode_set, store.set, encode_unit_result, NEVER, limits, tally)


def outcome_at(handler: Handler, buffer: bytes, start: int, end: int) -> object:
    """Return what a handler does, in a form that compares."""
    try:
        return answered(handler(CALLER, buffer, start, end))
    except NeedMoreBytes as error:
        return error.end_min
    except Exception as error:
        return repr(error)


#: Lengths beside those at which something changes: one byte of a length, and the limits below.
lengths = st.sampled_from([0, 1, 2, 7, 8, 9, 126, 127, 128, 129, 200])
texts = st.builds(lambda size, unit: (unit * size)[:size], lengths, st.sampled_from([b"k", "é".encode(), b"\xff"]))


@settings(deadline=None, max_examples=600)
@given(
    st.sampled_from(["get", "set"]),
    st.sampled_from([plain, waiting]),
    st.builds(ParameterLimits, lengths, lengths, lengths),
    st.data(),
)
def test_the_handlers_that_are_written_out_do_what_their_decoders_say(
    name: str, kind: Callable[[PlainStore], StoreInterface], limits: ParameterLimits, choice: st.DataObject
) -> None:
    """For any bytes and any limits, which change after the handlers were made; and wherever in a buffer they are."""
    encoded = st.builds(FUNCTIONS[name].encode, *[texts] * (2 if name == "get" else 3))
    parameters = choice.draw(encoded | mutated(encoded) | st.binary(max_size=12))
    entries = choice.draw(st.dictionaries(st.tuples(texts, texts), texts, max_size=3))
    (bucket, key), _ = next(iter(entries.items()), ((b"", b""), b""))
    if choice.draw(st.booleans()):
        parameters = FUNCTIONS[name].encode(bucket, key, *([b"new"] if name == "set" else []))
    error = choice.draw(st.none() | interface_errors | st.builds(RuntimeError, st.just("the disk is on fire")))
    before, behind = choice.draw(st.binary(max_size=3)), choice.draw(st.binary(max_size=3))
    in_force, seen = ParameterLimits(), []
    for is_written_out in (True, False):
        store, tallies = PlainStore(), store_tallies()
        store.entries = dict(entries)
        if error is not None:
            store.errors[bucket] = error
        if is_written_out:
            handler = store_handlers(kind(store), in_force, tallies)[name]
        else:
            handler = decoded_handler(name, kind(store), in_force, tallies[name])
        in_force.bucket_bytes_max, in_force.key_bytes_max = limits.bucket_bytes_max, limits.key_bytes_max
        in_force.value_bytes_max = limits.value_bytes_max
        buffer = before + parameters + behind
        outcome = outcome_at(handler, buffer, len(before), len(before) + len(parameters))
        seen.append((outcome, store.entries, store.callers, tallies))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", ["get", "set"])
@pytest.mark.parametrize(
    ("bucket_bytes", "key_bytes"), [(128, 106), (200, 106), (255, 106), (1, 128), (1, 200), (1, 255)]
)
def test_a_length_of_two_bytes_is_never_read_as_one(name: str, bucket_bytes: int, key_bytes: int) -> None:
    """Of texts whose bytes could be lengths ("k" is 107), wherever they are cut."""
    limits, value = ParameterLimits(), [b"k" * 20] if name == "set" else []
    params = FUNCTIONS[name].encode(b"k" * bucket_bytes, b"k" * key_bytes, *value)
    for cut in range(len(params) + 1):
        seen = []
        for is_written_out in (True, False):
            store, tally = PlainStore(), store_tallies()
            handlers = store_handlers(store, limits, tally)
            handler = handlers[name] if is_written_out else decoded_handler(name, store, limits, tally[name])
            seen.append((outcome_at(handler, params, 0, cut), store.entries, store.callers, tally))
        assert seen[0] == seen[1]
    assert seen[0][2] == [CALLER]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_what_a_plain_function_returns_is_waited_for_where_it_must_be(name: str) -> None:
    """The interface's type allows it: `Answer` is a value, or an awaitable of it."""
    stores = PlainStore(), PlainStore()
    for store in stores:
        store.entries[b"bucket", b"key"] = b"before"
    params = FUNCTIONS[name].encode(*CALLS[name])
    expected = carried_out(store_handlers(plain(stores[0]), LIMITS)[name], params)
    with closing(DelegatingStore(WaitingStore(stores[1]))) as delegating:
        assert carried_out(store_handlers(delegating, LIMITS)[name], params) == expected
    assert stores[1].entries == stores[0].entries


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("error", [NoSuchStoreError(), AccessDeniedError(), OtherError("сбой"), QuotaError("quota")])
def test_errors_of_the_interface_are_results(
    kind: Callable[[PlainStore], StoreInterface], name: str, error: InterfaceError
) -> None:
    store = PlainStore()
    store.errors[b"bucket"] = error
    params = FUNCTIONS[name].encode(*CALLS[name])
    assert carried_out(store_handlers(kind(store), LIMITS)[name], params) == encode_error(error)


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_other_exceptions_are_not(kind: Callable[[PlainStore], StoreInterface], name: str) -> None:
    store = PlainStore()
    store.errors[b"bucket"] = RuntimeError("the disk is on fire")
    params = FUNCTIONS[name].encode(*CALLS[name])
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        carried_out(store_handlers(kind(store), LIMITS)[name], params)


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_length_over_its_limit_is_answered_at_once(kind: Callable[[PlainStore], StoreInterface], name: str) -> None:
    store = PlainStore()
    params = write_length(9)
    answer = store_handlers(kind(store), LIMITS)[name](ANONYMOUS, params, 0, len(params))
    assert answer == encode_error(OtherError("bucket name in bytes: found 9, allowed 8"))
    assert store.callers == []


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_cut_parameters_need_more_at_once_and_call_nothing(
    kind: Callable[[PlainStore], StoreInterface], name: str
) -> None:
    store = PlainStore()
    handler = store_handlers(kind(store), LIMITS)[name]
    params = FUNCTIONS[name].encode(*CALLS[name])
    for cut in range(len(params)):
        with pytest.raises(NeedMoreBytes) as raised:
            handler(ANONYMOUS, params, 0, cut)
        assert cut < raised.value.end_min <= len(params)
    assert store.callers == []


@KINDS
def test_a_cut_set_does_not_store_the_next_callers_bytes(kind: Callable[[PlainStore], StoreInterface]) -> None:
    """Where one read holds several callers' frames, the buffer goes on behind the parameters."""
    store = PlainStore()
    handler = store_handlers(kind(store), LIMITS)["set"]
    params = encode_set(b"b", b"k", b"own value")
    buffer = params[:-4] + b"\r\nHMSG another.caller 17\r\nsecret"
    with pytest.raises(NeedMoreBytes) as raised:
        handler(ANONYMOUS, buffer, 0, len(params) - 4)
    assert raised.value.end_min == len(params)
    assert store.entries == {}


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_trailing_bytes_are_ignored(kind: Callable[[PlainStore], StoreInterface], name: str) -> None:
    stores = PlainStore(), PlainStore()
    params = FUNCTIONS[name].encode(*CALLS[name])
    whole, trailed = (store_handlers(kind(store), LIMITS)[name] for store in stores)
    buffer = b"before" + params + b"\xffbehind"
    assert answered(trailed(CALLER, buffer, 6, len(buffer))) == carried_out(whole, params, CALLER)
    assert stores[0].entries == stores[1].entries


@KINDS
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("get", b"\x01\xff\x01k", "found a string that is not UTF-8 at its byte 0"),
        ("get", b"\x01b\x02a\xff", "found a string that is not UTF-8 at its byte 1"),
        ("set", b"\x01b\x02\xc3(\x00", "found a string that is not UTF-8 at its byte 0"),
        ("set", b"\x01b\x01k\xff\xff\xff\xff\x10", "found a number that does not fit in 32 bits"),
        ("delete", b"\x80\x80\x80\x80\x80", "found a number that does not fit in 32 bits"),
        ("exists", b"\x01b\x03\xed\xa0\x80", "found a string that is not UTF-8 at its byte 0"),
        ("list-keys", b"\x01b\x02", "found 2 as the tag of an option, allowed 0 to 1"),
        ("list-keys", b"\x01b\x01" + b"\xff" * 10, "found a number that does not fit in 64 bits"),
    ],
)
def test_damaged_parameters_call_nothing(
    kind: Callable[[PlainStore], StoreInterface], name: str, params: bytes, message: str
) -> None:
    store = PlainStore()
    handler = store_handlers(kind(store), LIMITS)[name]
    with pytest.raises(DecodeError, match=f"^{message}$"):
        handler(ANONYMOUS, params, 0, len(params))
    assert store.callers == []


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_calls_are_counted_by_their_outcome(kind: Callable[[PlainStore], StoreInterface], name: str) -> None:
    store = PlainStore()
    tallies = store_tallies()
    handler = store_handlers(kind(store), LIMITS, tallies)[name]
    params = FUNCTIONS[name].encode(*CALLS[name])
    store.entries[b"bucket", b"key"] = b"value"
    carried_out(handler, params)
    store.entries.clear()
    carried_out(handler, params)
    found = {"ok": 1, "none": 1} if name in ("get", "exists") else {"ok": 2}
    assert counted(tallies[name]) == found
    with pytest.raises(NeedMoreBytes):
        carried_out(handler, params[:-1])
    assert counted(tallies[name]) == found, "what is cut is no call yet"
    errors = [NoSuchStoreError(), AccessDeniedError(), OtherError("full"), QuotaError("full")]
    for error in errors:
        store.errors[b"bucket"] = error
        carried_out(handler, params)
    carried_out(handler, write_length(9))  # a name over its limit
    store.errors[b"bucket"] = RuntimeError("the disk is on fire")
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        carried_out(handler, params)
    with pytest.raises(DecodeError, match=r"^found a string that is not UTF-8 at its byte 0$"):
        carried_out(handler, b"\x01\xff")
    assert counted(tallies[name]) == found | {"no_such_store": 1, "access_denied": 1, "other": 3, "failed": 2}
    assert [counted(tally) for other, tally in tallies.items() if other != name] == [{}] * 4


@KINDS
def test_an_answer_that_has_no_encoding_is_a_failure(kind: Callable[[PlainStore], StoreInterface]) -> None:
    class Endless(PlainStore):
        def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> KeyResponse:
            return KeyResponse([], 2**64)

    tallies = store_tallies()
    handler = store_handlers(kind(Endless()), LIMITS, tallies)["list-keys"]
    with pytest.raises(ValueError, match=r"^cursor: found 18446744073709551616, allowed 0 to 2\*\*64 - 1$"):
        carried_out(handler, encode_list_keys(b"bucket", None))
    assert counted(tallies["list-keys"]) == {"failed": 1}


@KINDS
def test_an_empty_value_that_is_found_is_not_counted_as_none(kind: Callable[[PlainStore], StoreInterface]) -> None:
    store = PlainStore()
    store.entries[b"bucket", b"key"] = b""
    tallies = store_tallies()
    carried_out(store_handlers(kind(store), LIMITS, tallies)["get"], encode_bucket_key(b"bucket", b"key"))
    assert counted(tallies["get"]) == {"ok": 1}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_coroutine_that_is_refused_is_closed(name: str) -> None:
    """Else it would warn that nobody awaited it."""
    store = PlainStore()
    handler = store_handlers(waiting(store), LIMITS)[name]
    invocations = new_core(InvocationLimits(waiting_max=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = invoke(invocations, handler, "R_c", ANONYMOUS, FUNCTIONS[name].encode(*CALLS[name]), 0.0)
        gc.collect()
    assert step == Step([accept("R_c"), ended("R_c")])
    assert [str(warning.message) for warning in caught] == []
    assert store.callers == []


@pytest.mark.parametrize(
    ("before", "what", "allowed"),
    [
        (b"", "bucket name in bytes", 1024),
        (b"\x01b", "key in bytes", 65536),
        (b"\x01b\x01k", "value in bytes", 16777216),
    ],
)
def test_the_default_limits(before: bytes, what: str, allowed: int) -> None:
    buffer = before + write_length(allowed + 1)
    with pytest.raises(LengthLimitError, match=f"^{what}: found {allowed + 1}, allowed {allowed}$"):
        decode_set(buffer, 0, len(buffer), ParameterLimits())


@KINDS
@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_limits_are_read_at_each_call(kind: Callable[[PlainStore], StoreInterface], name: str) -> None:
    """A link may raise them while the server runs."""
    limits = ParameterLimits(bucket_bytes_max=5, key_bytes_max=2, value_bytes_max=4)
    handler = store_handlers(kind(PlainStore()), limits)[name]
    params = FUNCTIONS[name].encode(*CALLS[name])

    def refused() -> str:
        result = carried_out(handler, params)
        return result[3:].decode() if result.startswith(b"\x01\x02") else ""

    assert refused() == "bucket name in bytes: found 6, allowed 5"
    limits.bucket_bytes_max = 6
    assert refused() == ("" if name == "list-keys" else "key in bytes: found 3, allowed 2")
    limits.key_bytes_max = 3
    assert refused() == ("value in bytes: found 5, allowed 4" if name == "set" else "")
    limits.value_bytes_max = 5
    assert refused() == ""
    limits.bucket_bytes_max = 5
    assert refused() == "bucket name in bytes: found 6, allowed 5"
