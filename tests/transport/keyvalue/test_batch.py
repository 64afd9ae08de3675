"""The codec of `batch` and its handlers: vectors written by hand, round trips, damage, limits, lists that come in pieces, errors of the interface."""

from __future__ import annotations

import asyncio
import gc
import re
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.batch import (
    BATCH,
    BatchInterface,
    batch_handlers,
    batch_tallies,
    decode_delete_many,
    decode_get_many,
    decode_get_many_result,
    decode_set_many,
    encode_bucket_keys,
    encode_get_many_result,
    encode_set_many,
)
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, decode_unit_result, encode_error, encode_unit_result
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Step
from keyvalue_transport.wrpc.values import write_length
from tests.conftest import NatsServer
from tests.invoking import invoke
from tests.recorded_replies import Reply, accept, ended, new_core, result
from tests.transport.keyvalue.test_atomics import check_written, serving
from tests.transport.keyvalue.test_interface import QuotaError
from tests.transport.keyvalue.test_store import (
    buckets,
    carried_out,
    counted,
    interface_errors,
    keys,
    mutated,
    value_bytes,
)
from tests.transport.nats.direct.scene import PIECES, Direct, cut, hmsg, piece
from tests.vectors.by_hand import Written, load

LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=200, value_bytes_max=300, batch_keys_max=200)
CALLER = Caller("component", "default")

Pairs = list[tuple[bytes, bytes]]

key_lists = st.lists(keys | st.binary(max_size=0) | st.integers(120, 200).map(lambda size: b"k" * size), max_size=12)
pairs = st.lists(st.tuples(keys, value_bytes | st.integers(120, 300).map(lambda size: b"\xff" * size)), max_size=12)

#: Of each function: parameters on the wire, and how they are read.
ENCODED = {
    "get-many": st.builds(encode_bucket_keys, buckets, key_lists),
    "set-many": st.builds(encode_set_many, buckets, pairs),
    "delete-many": st.builds(encode_bucket_keys, buckets, key_lists),
}
DECODE: dict[str, Callable[[bytes, int, int, ParameterLimits], tuple[tuple[bytes, Any], int]]] = {
    "get-many": decode_get_many,
    "set-many": decode_set_many,
    "delete-many": decode_delete_many,
}
#: A valid call of each function.
CALLS = {
    "get-many": encode_bucket_keys(b"bucket", [b"a", b"none", b"a"]),
    "set-many": encode_set_many(b"bucket", [(b"a", b"1"), (b"b", b"2"), (b"a", b"3")]),
    "delete-many": encode_bucket_keys(b"bucket", [b"a", b"none"]),
}
functions = st.sampled_from(sorted(DECODE))
each_function = pytest.mark.parametrize("name", sorted(DECODE))


def whole(name: str, encoded: bytes, limits: ParameterLimits = LIMITS) -> tuple[bytes, Any]:
    """Parameters that are nothing but these bytes."""
    parameters, offset = DECODE[name](encoded, 0, len(encoded), limits)
    assert offset == len(encoded)
    return parameters


# What is written by hand


@pytest.mark.parametrize("vector", load("batch"), ids=str)
def test_what_is_written_by_hand(vector: Written) -> None:
    match vector.function, vector.part:
        case "get-many", "result":
            check_written(vector, read_pairs, write_pairs)
        case _, "result":
            check_written(vector, decode_unit_result, encode_unit_result)
        case "set-many", _:
            check_written(vector, read_entries, lambda value: encode_set_many(*value))
        case name, _:
            check_written(
                vector,
                lambda buffer, at, end: DECODE[name](buffer, at, end, LIMITS),
                lambda value: encode_bucket_keys(*value),
            )


def read_entries(buffer: bytes, at: int, end: int) -> tuple[object, int]:
    """Parameters of set-many, as the vectors have them."""
    (bucket, entries), at = decode_set_many(buffer, at, end, LIMITS)
    return (bucket, list(map(list, entries.items()))), at


def read_pairs(buffer: bytes, at: int, end: int) -> tuple[object, int]:
    """A result of get-many, as the vectors have it."""
    found, at = decode_get_many_result(buffer, at, end)
    return [pair and list(pair) for pair in found], at


def write_pairs(value: list[list[bytes] | None]) -> bytes:
    asked = [b"never written" if pair is None else pair[0] for pair in value]
    return encode_get_many_result(asked, [None if pair is None else pair[1] for pair in value], 10_000)


def test_vectors_are_of_all_functions() -> None:
    found = {(vector.function, vector.part) for vector in load("batch")}
    assert found == {(name, part) for name in DECODE for part in ("parameters", "result")}


def test_the_instance_is_named_as_on_the_wire() -> None:
    assert BATCH == "wrpc:keyvalue/batch@0.2.0-draft"


# Parameters


@settings(deadline=None)
@given(buckets, key_lists, st.binary(max_size=5), st.binary(max_size=5))
def test_keys_come_back(bucket: bytes, asked: list[bytes], before: bytes, behind: bytes) -> None:
    encoded = encode_bucket_keys(bucket, asked)
    end = len(before + encoded)
    assert decode_get_many(before + encoded + behind, len(before), end, LIMITS) == ((bucket, asked), end)
    assert decode_delete_many(before + encoded + behind, len(before), end, LIMITS) == ((bucket, asked), end)


@settings(deadline=None)
@given(buckets, pairs, st.binary(max_size=5), st.binary(max_size=5))
def test_entries_come_back(bucket: bytes, entries: Pairs, before: bytes, behind: bytes) -> None:
    encoded = encode_set_many(bucket, entries)
    end = len(before + encoded)
    assert decode_set_many(before + encoded + behind, len(before), end, LIMITS) == ((bucket, dict(entries)), end)


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=5), st.binary(max_size=300))
def test_every_prefix_needs_more(name: str, choice: st.DataObject, before: bytes, behind: bytes) -> None:
    """As does the measure that comes with it, when it is asked about any longer one."""
    encoded = choice.draw(ENCODED[name])
    start = len(before)
    for cut_at in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            DECODE[name](before + encoded[:cut_at] + behind, start, start + cut_at, LIMITS)
        assert start + cut_at < raised.value.end_min <= start + len(encoded)
        measure = getattr(raised.value, "measure", None)
        if measure is not None:
            for longer in sorted({cut_at + 1, (cut_at + len(encoded)) // 2, len(encoded) - 1}):
                if cut_at < longer < len(encoded):
                    assert longer < measure(bytearray(encoded[:longer])) <= len(encoded)
            assert measure(bytearray(encoded)) <= len(encoded)


@settings(deadline=None)
@given(functions, st.data())
def test_any_bytes_have_an_outcome_as_parameters(name: str, choice: st.DataObject) -> None:
    limits = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16, value_bytes_max=32, batch_keys_max=9)
    buffer = choice.draw(st.binary(max_size=60) | mutated(ENCODED[name]))
    try:
        (bucket, read), offset = DECODE[name](buffer, 0, len(buffer), limits)
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except LengthLimitError as error:
        found, allowed = map(int, re.findall(r"\d+", str(error)))
        assert found > allowed
        assert allowed in (8, 16, 32, 9)
    except DecodeError as error:
        assert str(error).startswith("found ")
    else:
        assert offset <= len(buffer)
        again = encode_set_many(bucket, read.items()) if name == "set-many" else encode_bucket_keys(bucket, read)
        assert whole(name, again, limits) == (bucket, read)
        for key in read:
            key.decode()


@settings(deadline=None)
@given(functions, st.data(), st.data())
def test_any_bytes_are_measured(name: str, choice: st.DataObject, further: st.DataObject) -> None:
    """Whatever comes behind a cut list, the measure ends, and never asks for more than the decoder does."""
    encoded = bytearray(choice.draw(ENCODED[name]))
    first = bytes(encoded[: choice.draw(st.integers(0, len(encoded)))])
    try:
        DECODE[name](first, 0, len(first), LIMITS)
    except NeedMoreBytes as more:
        measure = getattr(more, "measure", None)
    else:
        return
    params = bytearray(first)
    for behind in further.draw(st.lists(st.binary(min_size=1, max_size=20), max_size=6)):
        params += behind
        if measure is None:
            break
        needed = measure(params)
        try:
            DECODE[name](bytes(params), 0, len(params), LIMITS)
        except NeedMoreBytes as more:
            assert needed == more.end_min
        except DecodeError as error:  # a key that is not UTF-8 is not the measure's to find
            assert needed <= len(params) or "UTF-8" in str(error)
        except LengthLimitError:
            assert needed <= len(params)
        else:
            assert needed <= len(params)


@pytest.mark.parametrize(
    ("name", "encoded", "message"),
    [
        ("get-many", b"\x01\xff\x00", "found a string that is not UTF-8 at its byte 0"),
        ("get-many", b"\x01b\x01\x02a\xff", "found a string that is not UTF-8 at its byte 1"),
        ("get-many", b"\x01b\x02\x01\xc3\x01\xa9", "found a string that is not UTF-8 at its byte 0"),
        ("get-many", b"\x01b\x03\x01\xff\x01a", "found a string that is not UTF-8 at its byte 0"),
        ("get-many", b"\x01b\xff\xff\xff\xff\x10", "found a number that does not fit in 32 bits"),
        ("get-many", b"\x01b\x01\xff\xff\xff\xff\x10", "found a number that does not fit in 32 bits"),
        ("set-many", b"\x01b\x01\x03\xed\xa0\x80\x00", "found a string that is not UTF-8 at its byte 0"),
        ("set-many", b"\x01b\x02\x01\xff\x01v\x01", "found a string that is not UTF-8 at its byte 0"),
        ("set-many", b"\x01b\x01\x01k\xff\xff\xff\xff\x10", "found a number that does not fit in 32 bits"),
        ("delete-many", b"\x01b\x02\x01a\x01\x80", "found a string that is not UTF-8 at its byte 0"),
    ],
)
def test_damaged_parameters_call_nothing(name: str, encoded: bytes, message: str) -> None:
    """Damage in front of a cut is found at the cut."""
    with pytest.raises(DecodeError, match=f"^{message}$"):
        DECODE[name](encoded, 0, len(encoded), LIMITS)
    batch = PlainBatch()
    with pytest.raises(DecodeError, match=f"^{message}$"):
        batch_handlers(batch, LIMITS)[name](ANONYMOUS, encoded, 0, len(encoded))
    assert batch.callers == []


def test_a_value_needs_not_be_text() -> None:
    encoded = encode_set_many(b"b", [(b"k", b"\xff\xc3"), ("ключ".encode(), b"\x80")])
    assert whole("set-many", encoded) == (b"b", {b"k": b"\xff\xc3", "ключ".encode(): b"\x80"})


@pytest.mark.parametrize(
    ("name", "before", "what", "allowed"),
    [
        ("get-many", b"", "bucket name in bytes", 8),
        ("get-many", b"\x01b", "keys of a batch", 200),
        ("get-many", b"\x01b\x01", "key in bytes", 16),
        ("get-many", b"\x01b\x02\x01k", "key in bytes", 16),
        ("set-many", b"", "bucket name in bytes", 8),
        ("set-many", b"\x01b", "keys of a batch", 200),
        ("set-many", b"\x01b\x01", "key in bytes", 16),
        ("set-many", b"\x01b\x01\x01k", "value in bytes", 32),
        ("set-many", b"\x01b\x02\x01k\x00\x01k", "value in bytes", 32),
        ("delete-many", b"", "bucket name in bytes", 8),
        ("delete-many", b"\x01b", "keys of a batch", 200),
        ("delete-many", b"\x01b\x01", "key in bytes", 16),
    ],
)
def test_a_number_or_length_over_its_limit_is_answered_before_what_it_announces_is_there(
    name: str, before: bytes, what: str, allowed: int
) -> None:
    limits = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16, value_bytes_max=32, batch_keys_max=200)
    batch = PlainBatch()
    handler = batch_handlers(batch, limits)[name]
    for found in (allowed + 1, 2**32 - 1):
        buffer = before + write_length(found)
        message = f"{what}: found {found}, allowed {allowed}"
        for behind in (b"", b"k" * (allowed + 1)):
            with pytest.raises(LengthLimitError, match=f"^{message}$"):
                DECODE[name](buffer + behind, 0, len(buffer + behind), limits)
            assert carried_out(handler, buffer + behind) == encode_error(OtherError(message))
    at_limit = before + write_length(allowed)
    with pytest.raises(NeedMoreBytes):
        DECODE[name](at_limit, 0, len(at_limit), limits)
    assert batch.callers == []


def test_what_is_as_long_as_its_limit_is_taken() -> None:
    limits = ParameterLimits(bucket_bytes_max=1, key_bytes_max=2, value_bytes_max=3, batch_keys_max=2)
    assert whole("get-many", encode_bucket_keys(b"b", [b"kk", b"ll"]), limits) == (b"b", [b"kk", b"ll"])
    entries = {b"kk": b"vvv", b"ll": b""}
    assert whole("set-many", encode_set_many(b"b", entries.items()), limits) == (b"b", entries)


def test_equal_keys_count_each() -> None:
    limits = ParameterLimits(batch_keys_max=2)
    encoded = encode_set_many(b"b", [(b"k", b"1")] * 3)
    with pytest.raises(LengthLimitError, match=r"^keys of a batch: found 3, allowed 2$"):
        DECODE["set-many"](encoded, 0, len(encoded), limits)


@pytest.mark.parametrize(
    ("read", "encoded", "end_min"),
    [
        (decode_get_many, "0162 ffffffff0f", 7 + 2**32 - 1),
        (decode_get_many, "0162 ffffff7f 016101620163", 6 + 2**28 - 1 + 3),
        (decode_get_many, "0162 01 ffffffff0f 61", 8 + 2**32 - 1),
        (decode_set_many, "0162 ffffffff0f", 7 + 2 * (2**32 - 1)),
        (decode_set_many, "0162 ffffff7f 01610162 0163", 6 + 2 * (2**28 - 1) + 3),
        (decode_set_many, "0162 01 0161 ffffffff0f 76", 10 + 2**32 - 1),
        (lambda buffer, at, end, limits: decode_get_many_result(buffer, at, end), "00 ffffffff0f 00", 6 + 2**32 - 1),
        (lambda buffer, at, end, limits: decode_get_many_result(buffer, at, end), "00 01 01 ffffffff0f", 8 + 2**32 - 1),
    ],
)
def test_nothing_is_allocated_on_the_word_of_a_number_or_length(
    read: Callable[[bytes, int, int, ParameterLimits], object], encoded: str, end_min: int
) -> None:
    buffer = bytes.fromhex(encoded)
    limits = ParameterLimits(key_bytes_max=2**32, value_bytes_max=2**32, batch_keys_max=2**32)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(NeedMoreBytes) as raised:
            read(buffer, 0, len(buffer), limits)
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 1024
    finally:
        tracemalloc.stop()
    assert raised.value.end_min == end_min


def test_the_default_limits() -> None:
    limits = ParameterLimits()
    for name in DECODE:
        buffer = b"\x01b" + write_length(10_001)
        with pytest.raises(LengthLimitError, match=r"^keys of a batch: found 10001, allowed 10000$"):
            DECODE[name](buffer, 0, len(buffer), limits)
    assert limits.answer_bytes_max == 33_554_432


# Results


@settings(deadline=None)
@given(st.lists(st.none() | st.tuples(keys, value_bytes)), st.binary(max_size=5), st.binary(max_size=5))
def test_results_come_back(found: list[tuple[bytes, bytes] | None], before: bytes, behind: bytes) -> None:
    encoded = encode_get_many_result(
        [b"not there" if pair is None else pair[0] for pair in found], [pair and pair[1] for pair in found], 10_000
    )
    end = len(before + encoded)
    assert decode_get_many_result(before + encoded + behind, len(before), end) == (found, end)
    for cut_at in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            decode_get_many_result(encoded[:cut_at] + behind, 0, cut_at)
        assert cut_at < raised.value.end_min <= len(encoded)


@settings(deadline=None)
@given(
    st.binary(max_size=40)
    | mutated(pairs.map(lambda found: write_pairs(list(map(list, found)))))
    | mutated(interface_errors.map(encode_error))
)
def test_any_bytes_have_an_outcome_as_a_result(buffer: bytes) -> None:
    try:
        found, offset = decode_get_many_result(buffer, 0, len(buffer))
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except InterfaceError as error:
        assert isinstance(error, (NoSuchStoreError, AccessDeniedError, OtherError))
    except DecodeError as error:
        assert "found " in str(error)
    else:
        assert offset <= len(buffer)
        again = write_pairs([pair and list(pair) for pair in found])
        assert decode_get_many_result(again, 0, len(again)) == (found, len(again))


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ("02", "found 2 as the tag of a result, allowed 0 to 1"),
        ("000102", "found 2 as the tag of an option, allowed 0 to 1"),
        ("00010101ff00", "found a string that is not UTF-8 at its byte 0"),
        ("00ffffffff10", "found a number that does not fit in 32 bits"),
    ],
)
def test_a_damaged_result_says_what_was_found(encoded: str, message: str) -> None:
    buffer = bytes.fromhex(encoded)
    with pytest.raises(DecodeError, match=f"^{message}$"):
        decode_get_many_result(buffer, 0, len(buffer))


def test_an_answer_is_bounded_by_its_keys_and_values() -> None:
    asked, values = [b"kk", b"none" * 100, b"kk"], [b"vvv", None, b"vvv"]
    encoded = encode_get_many_result(asked, values, 10)
    assert decode_get_many_result(encoded, 0, len(encoded))[0] == [(b"kk", b"vvv"), None, (b"kk", b"vvv")]
    with pytest.raises(OtherError, match=r"^answer in bytes: found at least 10, allowed 9$"):
        encode_get_many_result(asked, values, 9)


def test_an_answer_over_its_limit_is_never_made() -> None:
    """A key asked for often enough: 10,000 references to a value of 16 MiB, and 156 GiB of them on the wire."""
    value = bytes(16 * 1024 * 1024)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(OtherError, match=r"^answer in bytes: found at least 167772170000, allowed 33554432$"):
            encode_get_many_result([b"k"] * 10_000, [value] * 10_000, ParameterLimits().answer_bytes_max)
        assert tracemalloc.get_traced_memory()[1] - before < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


def test_values_that_are_not_of_the_keys_are_a_failure() -> None:
    with pytest.raises(ValueError, match="shorter"):
        encode_get_many_result([b"a", b"b"], [b"1"], 100)


# Handlers


class PlainBatch:
    """`batch` over a dict. `error` is raised by every call."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.error: Exception | None = None
        self.callers: list[Caller] = []
        self.seen: object = None

    def _enter(self, caller: Caller, bucket: bytes, seen: object) -> None:
        assert bucket in (b"bucket", b"b")
        self.callers.append(caller)
        self.seen = seen
        if self.error is not None:
            raise self.error

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> list[bytes | None]:
        self._enter(caller, bucket, keys)
        return list(map(self.entries.get, keys))

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> None:
        self._enter(caller, bucket, entries)
        self.entries |= entries

    def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> None:
        self._enter(caller, bucket, keys)
        for key in keys:
            self.entries.pop(key, None)


class WaitingBatch:
    """The same with coroutine functions, each of which gives way to others once."""

    def __init__(self, plain: PlainBatch) -> None:
        self._plain = plain

    async def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> list[bytes | None]:
        await asyncio.sleep(0)
        return self._plain.get_many(caller, bucket, keys)

    async def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> None:
        await asyncio.sleep(0)
        self._plain.set_many(caller, bucket, entries)

    async def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> None:
        await asyncio.sleep(0)
        self._plain.delete_many(caller, bucket, keys)


def plain(batch: PlainBatch) -> BatchInterface:
    return batch


def waiting(batch: PlainBatch) -> BatchInterface:
    return WaitingBatch(batch)


KINDS = pytest.mark.parametrize("kind", [plain, waiting])
Kind = Callable[[PlainBatch], BatchInterface]


def test_there_is_a_handler_and_a_tally_for_each_function() -> None:
    assert set(batch_handlers(PlainBatch(), LIMITS)) == set(batch_tallies()) == set(DECODE)


@KINDS
def test_handlers_carry_out_what_the_parameters_say(kind: Kind) -> None:
    batch = PlainBatch()
    handlers = batch_handlers(kind(batch), LIMITS)
    assert carried_out(handlers["set-many"], CALLS["set-many"], CALLER) == b"\x00"
    assert batch.entries == {b"a": b"3", b"b": b"2"}
    assert carried_out(handlers["get-many"], CALLS["get-many"], CALLER) == bytes.fromhex(
        "00 03 01 0161 0133 00 01 0161 0133"
    )
    assert batch.seen == [b"a", b"none", b"a"]
    assert carried_out(handlers["delete-many"], CALLS["delete-many"], CALLER) == b"\x00"
    assert batch.entries == {b"b": b"2"}
    assert carried_out(handlers["get-many"], encode_bucket_keys(b"b", []), ANONYMOUS) == b"\x00\x00"
    assert batch.callers == [CALLER, CALLER, CALLER, ANONYMOUS]


@KINDS
@each_function
def test_calls_are_counted_by_their_outcome(kind: Kind, name: str) -> None:
    batch = PlainBatch()
    tallies = batch_tallies()
    handler = batch_handlers(kind(batch), LIMITS, tallies)[name]
    params = CALLS[name]
    carried_out(handler, params)
    for cut_at in range(len(params)):
        with pytest.raises(NeedMoreBytes):
            handler(ANONYMOUS, params, 0, cut_at)
    assert len(batch.callers) == 1, "what is cut is no call yet"
    errors: list[InterfaceError] = [NoSuchStoreError(), AccessDeniedError(), OtherError("full"), QuotaError("full")]
    for error in errors:
        batch.error = error
        assert carried_out(handler, params) == encode_error(error)
    over = encode_error(OtherError("keys of a batch: found 201, allowed 200"))
    assert carried_out(handler, b"\x01b" + write_length(201)) == over
    batch.error = RuntimeError("the disk is on fire")
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        carried_out(handler, params)
    with pytest.raises(DecodeError, match=r"^found a string that is not UTF-8 at its byte 0$"):
        carried_out(handler, b"\x01\xff")
    assert counted(tallies[name]) == {"ok": 1, "no_such_store": 1, "access_denied": 1, "other": 3, "failed": 2}
    assert [counted(tally) for other, tally in tallies.items() if other != name] == [{}] * 2


@KINDS
def test_an_answer_over_its_limit_is_an_error_of_the_interface(kind: Kind) -> None:
    batch = PlainBatch()
    batch.entries[b"a"] = b"12345"
    limits, tallies = ParameterLimits(answer_bytes_max=11), batch_tallies()
    handler = batch_handlers(kind(batch), limits, tallies)["get-many"]
    assert carried_out(handler, CALLS["get-many"]) == encode_error(
        OtherError("answer in bytes: found at least 12, allowed 11")
    )
    assert counted(tallies["get-many"]) == {"other": 1}
    limits.answer_bytes_max = 12
    assert carried_out(handler, CALLS["get-many"])[0] == 0
    assert counted(tallies["get-many"]) == {"other": 1, "ok": 1}


@each_function
def test_limits_are_read_at_each_call(name: str) -> None:
    limits = ParameterLimits(batch_keys_max=3, key_bytes_max=4, value_bytes_max=1)
    handler = batch_handlers(PlainBatch(), limits)[name]
    assert carried_out(handler, CALLS[name])[0] == 0
    limits.batch_keys_max = 1
    assert b"keys of a batch: found " in carried_out(handler, CALLS[name])
    limits.batch_keys_max, limits.key_bytes_max = 3, 0
    assert b"key in bytes: found 1, allowed 0" in carried_out(handler, CALLS[name])
    limits.key_bytes_max = 4
    assert carried_out(handler, CALLS[name])[0] == 0


def test_values_of_another_number_end_the_invocation() -> None:
    class Forgetful(PlainBatch):
        def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> list[bytes | None]:
            return [b"1"]

    tallies = batch_tallies()
    handler = batch_handlers(Forgetful(), LIMITS, tallies)["get-many"]
    with pytest.raises(ValueError, match="shorter"):
        carried_out(handler, CALLS["get-many"])
    assert counted(tallies["get-many"]) == {"failed": 1}


@each_function
def test_a_coroutine_that_is_refused_is_closed(name: str) -> None:
    batch = PlainBatch()
    handler = batch_handlers(waiting(batch), LIMITS)[name]
    invocations = new_core(InvocationLimits(waiting_max=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = invoke(invocations, handler, "R_c", ANONYMOUS, CALLS[name], 0.0)
        gc.collect()
    assert step == Step([accept("R_c"), ended("R_c")])
    assert [str(warning.message) for warning in caught] == []
    assert batch.callers == []


# Lists that come in pieces


class Attempts:
    """A handler, and how often it was called."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.count = 0

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        self.count += 1
        return self._handler(caller, buffer, start, end)


class Core:
    """Invocations of one function: what it was called with, and how often its handler was."""

    def __init__(self, name: str, limits: ParameterLimits = LIMITS) -> None:
        self.batch = PlainBatch()
        self.handler = Attempts(batch_handlers(self.batch, limits)[name])
        self.invocations = new_core()

    def take(self, pieces: list[bytes]) -> Iterator[list[Reply]]:
        """What is sent after each piece but for the handshake."""
        first, *rest = pieces
        step = invoke(self.invocations, self.handler, "R_c", ANONYMOUS, first, 0.0)
        yield step.sends[1:]
        for further in rest:
            yield self.invocations.receive_params("0", further, 0.0).sends


@settings(deadline=None)
@given(functions, st.data(), st.lists(st.integers(0, 2000), max_size=12))
def test_a_list_is_answered_with_its_last_byte_wherever_it_is_cut(
    name: str, choice: st.DataObject, cuts: list[int]
) -> None:
    encoded = choice.draw(ENCODED[name])
    encoded = b"\x01b" + encoded[1 + encoded[0] :]
    core, expected = Core(name), Core(name)
    pieces = cut(encoded, (at % len(encoded) for at in cuts))
    *before, last = core.take(pieces)
    assert before == [[]] * (len(pieces) - 1)
    assert [last] == list(expected.take([encoded]))
    assert core.batch.seen == expected.batch.seen
    assert core.invocations.counts == InvocationCounts(answered=1)
    assert core.invocations.half_open_bytes == 0


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(("first", "reads"), [(40, 2), (1, 4)], ids=["cut in the list", "cut before it"])
@each_function
def test_a_list_is_not_read_anew_at_each_piece(name: str, first: int, reads: int, size: int) -> None:
    """Or a large one would be read as often as it has pieces: one of 156 MiB in pieces of 1 MiB for 9 s."""
    entries = [(b"key %d" % number, b"v" * 130) for number in range(40)]
    encoded = encode_set_many(b"b", entries) if name == "set-many" else encode_bucket_keys(b"b", dict(entries))
    core = Core(name)
    pieces = [encoded[:first], *(encoded[at : at + size] for at in range(first, len(encoded), size))]
    *_, last = core.take(pieces)
    assert last[-1] == ended("R_c")
    assert core.handler.count <= reads
    assert core.batch.seen == (dict(entries) if name == "set-many" else list(dict(entries)))


@pytest.mark.parametrize(
    ("name", "pieces", "message"),
    [
        ("get-many", [b"\x01b\x03\x01k", b"\x01k", b"\x03"], "key in bytes: found 3, allowed 2"),
        ("set-many", [b"\x01b\x02\x01k\x01v", b"\x03k"], "key in bytes: found 3, allowed 2"),
        ("set-many", [b"\x01b\x02\x01k", b"\x01v", b"\x01k", b"\x05"], "value in bytes: found 5, allowed 4"),
        ("set-many", [b"\x01b\x02\x01k", b"\x01v\x01", b"k", b"\x80", b"\x02"], "value in bytes: found 256, allowed 4"),
    ],
)
def test_a_length_over_its_limit_is_answered_with_the_piece_it_comes_in(
    name: str, pieces: list[bytes], message: str
) -> None:
    core = Core(name, ParameterLimits(key_bytes_max=2, value_bytes_max=4))
    *before, last = core.take(pieces)
    assert before == [[]] * (len(pieces) - 1)
    assert last == [result("R_c", encode_error(OtherError(message))), ended("R_c")]
    assert core.batch.callers == []


def test_a_damaged_length_ends_the_invocation_with_the_piece_it_comes_in() -> None:
    core = Core("get-many")
    *before, last = core.take([b"\x01b\x02", b"\x01k\xff\xff", b"\xff\xff", b"\x10"])
    assert before == [[]] * 3
    assert last == [ended("R_c")]
    assert core.invocations.counts == InvocationCounts(damaged=1)


def test_limits_may_be_raised_while_a_list_comes() -> None:
    limits = ParameterLimits(key_bytes_max=2)
    core = Core("get-many", limits)
    coming = core.take([b"\x01b\x03\x01k", b"\x02kk", b"\x03kk", b"k"])
    assert [next(coming), next(coming)] == [[], []]
    limits.key_bytes_max = 3
    assert next(coming) == []
    assert next(coming)[-1] == ended("R_c")
    assert core.batch.seen == [b"k", b"kk", b"kkk"]


# Over the direct path


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is asked for its time alone."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@each_function
@pytest.mark.parametrize("alike", [True, False])
def test_a_list_that_is_cut_between_other_frames(loop: asyncio.AbstractEventLoop, name: str, alike: bool) -> None:
    """The measure counts from where the parameters begin, and not from where the read does."""
    params = CALLS[name]
    for edges in pairwise(range(1, len(params))):
        direct = Direct(loop, alike)
        expected, batch = PlainBatch(), PlainBatch()
        for each in (expected, batch):
            each.entries[b"a"] = b"before"
        handler = Attempts(batch_handlers(batch, LIMITS)[name])
        direct.routes.add(PIECES + 1, handler)
        first, second, third = cut(params, edges)
        sends = direct.read(
            hmsg(1, b"\x01b\x01k", b"R_before") + hmsg(PIECES + 1, first, b"R_c") + hmsg(1, b"\x01b\x01k", b"R_behind"),
            piece("0", second),
            piece("0", third) + piece("0", b""),
        )
        answers = [send.payload for send in sends if send.subject == "R_c.results"]
        assert answers == [carried_out(batch_handlers(expected, LIMITS)[name], params), b""]
        assert batch.seen == expected.seen
        assert direct.invocations.counts.answered == 3


# Over NATS


@KINDS
async def test_the_client_calls_them(nats_server: NatsServer, path: str, kind: Kind) -> None:
    batch = PlainBatch()
    async with (
        serving(nats_server, path, BATCH, batch_handlers(kind(batch), LIMITS)) as prefix,
        KeyValueClient(nats_server.url, prefix) as client,
    ):
        await client.set_many("bucket", {"a": b"1", "ключ": b"", "b": b"\xff"})
        await client.set_many("bucket", {b"c": b"3"})
        assert batch.entries == {b"a": b"1", "ключ".encode(): b"", b"b": b"\xff", b"c": b"3"}
        assert await client.get_many("bucket", ["ключ", "none", b"a", "a"]) == [b"", None, b"1", b"1"]
        assert await client.get_many("bucket", []) == []
        await client.delete_many("bucket", ("a", b"b", "none"))
        assert batch.entries == {"ключ".encode(): b"", b"c": b"3"}
        batch.error = OtherError("full")
        with pytest.raises(OtherError, match=r"^full$"):
            await client.set_many("bucket", {"a": b"1"})
        with pytest.raises(OtherError, match=r"^keys of a batch: found 201, allowed 200$"):
            await client.get_many("bucket", map(str, range(201)))


async def test_a_batch_larger_than_a_message(nats_server: NatsServer, path: str) -> None:
    batch = PlainBatch()
    entries = {b"key %d" % number: b"%d" % number * 2000 for number in range(1000)}
    async with (
        serving(nats_server, path, BATCH, batch_handlers(batch, ParameterLimits())) as prefix,
        KeyValueClient(nats_server.url, prefix) as client,
    ):
        await client.set_many("bucket", entries)
        assert batch.entries == entries
        assert await client.get_many("bucket", entries) == list(entries.values())


async def test_the_client_goes_by_the_keys_of_an_answer(nats_server: NatsServer, path: str) -> None:
    """Not every provider keeps the order, or has a place for a key that is not there."""

    def disordered(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        return encode_get_many_result([b"b", b"gone", b"a"], [b"2", None, b"1"], 100)

    async with (
        serving(nats_server, path, BATCH, {"get-many": disordered}) as prefix,
        KeyValueClient(nats_server.url, prefix) as client,
    ):
        assert await client.get_many("bucket", ["a", "none", "b", "a"]) == [b"1", None, b"2", b"1"]
