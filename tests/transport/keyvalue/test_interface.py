"""Rules that all functions keep: encoding both ways, limits, damage, errors in a result, and how handlers call and count."""

from __future__ import annotations

import gc
import re
import tracemalloc
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.atomics import ATOMICS
from keyvalue_transport.keyvalue.batch import BATCH, encode_bucket_keys
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import AwaitedResult, ParameterLimits, decode_unit_result, encode_error
from keyvalue_transport.keyvalue.store import STORE, KeyResponse
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, LARGE_BYTES, Derived, LargeResult
from keyvalue_transport.wrpc.invocation import InvocationLimits, Step
from keyvalue_transport.wrpc.values import write_length
from tests.conftest import NatsServer
from tests.invoking import invoke
from tests.recorded_replies import accept, ended, new_core, waited
from tests.transport.keyvalue.functions import (
    ANSWERED,
    CALLER,
    FUNCTIONS,
    KINDS,
    LIMITS,
    TALLIES,
    Kind,
    Noted,
    Waiting,
    answered,
    carried_out,
    counted,
    functions_of,
    handler_of,
    interface_errors,
    mutated,
    params_of,
    serving,
)
from tests.vectors.by_hand import Failure, Written, load

each_function = pytest.mark.parametrize("name", FUNCTIONS)
each_answered = pytest.mark.parametrize("name", ANSWERED)
each_kind = pytest.mark.parametrize("kind", KINDS)


#: The limits of a decoder without limits.
Reader: TypeAlias = Callable[[bytes, int, int], tuple[Any, int]]


class QuotaError(InterfaceError):
    """An error kind that the variant does not know."""


class ForgottenStoreError(NoSuchStoreError):
    """An error kind derived from one that the variant knows."""


# Encodings


@pytest.mark.parametrize("vector", [*load("atomics"), *load("batch"), *load("watcher")], ids=str)
def test_vectors_written_by_hand(vector: Written) -> None:
    """Read each one whole and between other bytes, ask for more at every cut, and write it again."""
    function = FUNCTIONS[vector.function]
    value = vector.value
    if vector.part == "result":
        read, write = function.decode_result, function.encode_result
        if vector.function == "get-many" and isinstance(value, list):
            value = [pair and tuple(pair) for pair in value]
    else:
        read, write = read_parameters(vector.function, ParameterLimits()), write_parameters(vector.function)
        if vector.function == "set-many":
            value = (value[0], dict(value[1]))
    check_encoding(
        vector.encoded, lambda buffer, at, end: outcome(read, buffer, at, end), value, b"\xff\x80", b"\x01\x00"
    )
    if not vector.read_only:
        assert (encode_error(error_of(value)) if isinstance(value, Failure) else write(value)) == vector.encoded


def test_vectors_cover_all_functions_that_were_not_captured() -> None:
    found = {(vector.function, vector.part) for vector in (*load("atomics"), *load("batch"), *load("watcher"))}
    parts = {(name, "parameters") for name in FUNCTIONS} | {(name, "result") for name in ANSWERED}
    assert found == {(name, part) for name, part in parts if "store" not in FUNCTIONS[name].instance}


def read_parameters(name: str, limits: ParameterLimits) -> Reader:
    return lambda buffer, at, end: FUNCTIONS[name].decode(buffer, at, end, limits)


def write_parameters(name: str) -> Callable[[Any], bytes]:
    return lambda parameters: FUNCTIONS[name].encode(*parameters)


def outcome(read: Reader, buffer: bytes, start: int, end: int) -> tuple[Any, int]:
    """Return the value that is read, or the error of the interface."""
    try:
        return read(buffer, start, end)
    except InterfaceError as error:
        case = "no-such-store" if isinstance(error, NoSuchStoreError) else "access-denied"
        return (Failure("other", error.message) if isinstance(error, OtherError) else Failure(case)), end


def error_of(failure: Failure) -> InterfaceError:
    """Return the error that a vector names."""
    if failure.message is not None:
        return OtherError(failure.message)
    return {"no-such-store": NoSuchStoreError, "access-denied": AccessDeniedError}[failure.case]()


def check_encoding(encoded: bytes, read: Reader, value: Any, before: bytes, trailing: bytes) -> None:
    """Check that a value is read correctly between other bytes, and that every prefix of it needs more."""
    start, end = len(before), len(before + encoded)
    assert read(encoded, 0, len(encoded)) == (value, len(encoded))
    assert read(before + encoded + trailing, start, end) == (value, end)
    for cut in range(start, end):
        for buffer in (before + encoded + trailing, (before + encoded)[:cut]):
            with pytest.raises(NeedMoreBytes) as raised:
                read(buffer, start, cut)
            assert cut < raised.value.end_min <= end


@each_function
@settings(max_examples=20)
@given(choice=st.data(), before=st.binary(max_size=5), trailing=st.binary(max_size=5))
def test_values_survive_a_round_trip(name: str, choice: st.DataObject, before: bytes, trailing: bytes) -> None:
    function = FUNCTIONS[name]
    parameters, result = choice.draw(function.parameters), choice.draw(function.results)
    encoded = function.encode(*parameters)
    check_encoding(encoded, read_parameters(name, LIMITS), parameters, before, trailing)
    check_encoding(function.encode_result(result), function.decode_result, result, before, trailing)


@pytest.mark.parametrize("size", [127, 128, 129])
@each_function
def test_lengths_of_one_byte_and_of_two(name: str, size: int) -> None:
    """Make each text and value this long, so that its bytes might be mistaken for a length."""
    function = FUNCTIONS[name]
    parameters, result = sized(function.call, size), sized(function.result, size)
    params = function.encode(*parameters)
    check_encoding(params, read_parameters(name, ParameterLimits()), parameters, b"", b"k" * 130)
    check_encoding(function.encode_result(result), function.decode_result, result, b"", b"k" * 130)
    service = Noted(sized(function.answer, size))
    assert carried_out(handler_of(name, service, ParameterLimits()), params) == function.encode_result(result)
    assert service.calls == [(name, ANONYMOUS, *parameters)]


def sized(value: Any, size: int) -> Any:
    """Return the value with texts and bytes of another size."""
    match value:
        case bytes():
            return value[:1] * size
        case dict():
            return {sized(key, size): sized(element, size) for key, element in value.items()}
        case KeyResponse(keys, cursor):
            return KeyResponse(sized(keys, size), cursor)
        case list() | tuple():
            return type(value)(sized(element, size) for element in value)
    return value


@each_function
@settings(max_examples=40)
@given(choice=st.data())
def test_any_bytes_have_an_outcome(name: str, choice: st.DataObject) -> None:
    function = FUNCTIONS[name]
    params = choice.draw(st.binary(max_size=40) | mutated(function.parameters.map(lambda each: function.encode(*each))))
    check_outcome(params, read_parameters(name, LIMITS), write_parameters(name))
    results = function.results.map(function.encode_result) | interface_errors.map(encode_error)
    check_outcome(
        choice.draw(st.binary(max_size=40) | mutated(results)), function.decode_result, function.encode_result
    )


#: The errors that readers of parameters and results raise.
FAULT = (
    r"a number does not fit in (32|64) bits|a string is not UTF-8 at byte \d+|the tag of an? \w+ is \d+; the limit is [12]|"
    r"error message is \d+ bytes; the limit is 65536"
)


def check_outcome(buffer: bytes, read: Reader, write: Callable[[Any], bytes]) -> None:
    """Check that bytes decode to a value that can be written again, need more, or raise an error that says why."""
    try:
        value, offset = read(buffer, 0, len(buffer))
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except LengthLimitError as error:
        found, allowed = map(int, re.findall(r"\d+", str(error)))
        assert found > allowed
        assert allowed in (8, 16, 32, 9)
    except InterfaceError as error:
        assert isinstance(error, (NoSuchStoreError, AccessDeniedError, OtherError))
    except DecodeError as error:
        assert re.fullmatch(FAULT, str(error))
    else:
        assert offset <= len(buffer)
        again = write(value)
        assert read(again, 0, len(again)) == (value, len(again))


@pytest.mark.parametrize("number", [-1, 2**64])
def test_a_number_that_is_not_a_u64_is_not_written(number: int) -> None:
    for name, what, parameters in (
        ("increment", "delta", (b"b", b"k", number)),
        ("list-keys", "cursor", (b"b", number)),
    ):
        with pytest.raises(ValueError, match=rf"^{what}: found {number}, allowed 0 to 2\*\*64 - 1$"):
            FUNCTIONS[name].encode(*parameters)
    with pytest.raises(ValueError, match=f"^cursor: found {number}, allowed 0 to "):
        FUNCTIONS["list-keys"].encode_result(KeyResponse([], number))


@pytest.mark.parametrize(
    ("name", "part", "encoded", "end_min"),
    [
        ("get", "parameters", "ffffffff0f 62", 5 + 2**32 - 1),
        ("set", "parameters", "0162 016b ffffffff0f 76", 9 + 2**32 - 1),
        ("get-many", "parameters", "0162 ffffffff0f", 7 + 2**32 - 1),
        ("get-many", "parameters", "0162 ffffff7f 016101620163", 6 + 2**28 - 1 + 3),
        ("get-many", "parameters", "0162 01 ffffffff0f 61", 8 + 2**32 - 1),
        ("set-many", "parameters", "0162 ffffffff0f", 7 + 2 * (2**32 - 1)),
        ("set-many", "parameters", "0162 ffffff7f 01610162 0163", 6 + 2 * (2**28 - 1) + 3),
        ("set-many", "parameters", "0162 01 0161 ffffffff0f 76", 10 + 2**32 - 1),
        ("get", "result", "0001 ffffffff0f 76", 7 + 2**32 - 1),
        ("list-keys", "result", "00 ffffffff0f", 6 + 2**32 - 1 + 1),
        ("list-keys", "result", "00 ffffff7f 016101620163", 5 + 2**28 - 1 + 1),
        ("list-keys", "result", "0001 ffffffff0f 61", 7 + 2**32 - 1),
        ("list-keys", "result", "00 02 00", 2 + 2 + 1),
        ("get-many", "result", "00 03 00", 2 + 3),
        ("get-many", "result", "00 ffffffff0f 00", 6 + 2**32 - 1),
        ("get-many", "result", "00 01 01 ffffffff0f", 8 + 2**32 - 1),
    ],
)
def test_an_announced_number_or_length_allocates_nothing(name: str, part: str, encoded: str, end_min: int) -> None:
    buffer, function = bytes.fromhex(encoded), FUNCTIONS[name]
    limits = ParameterLimits(2**32, 2**32, 2**32, 2**32)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(NeedMoreBytes) as raised:
            if part == "result":
                function.decode_result(buffer, 0, len(buffer))
            else:
                function.decode(buffer, 0, len(buffer), limits)
        assert tracemalloc.get_traced_memory()[1] - before < 64 * 1024
    finally:
        tracemalloc.stop()
    assert raised.value.end_min == end_min


# Limits and damage


BUCKET = "bucket name is {} bytes; the limit is {} (bucket_name_bytes_max)"
KEY = "key is {} bytes; the limit is {} (key_bytes_max)"
VALUE = "value is {} bytes; the limit is {} (value_bytes_max)"
KEYS = "the batch has {} keys; the limit is {} (batch_keys_max)"

#: The message of each limit, the functions that have it, and the parameters before it.
LIMITED = [
    (BUCKET, "bucket_bytes_max", list(FUNCTIONS), b""),
    (KEY, "key_bytes_max", ["get", "set", "delete", "exists", "increment", "on-set", "on-delete"], b"\x01b"),
    (VALUE, "value_bytes_max", ["set", "on-set"], b"\x01b\x01k"),
    (KEYS, "batch_keys_max", ["get-many", "set-many", "delete-many"], b"\x01b"),
    (KEY, "key_bytes_max", ["get-many", "set-many", "delete-many"], b"\x01b\x01"),
    (KEY, "key_bytes_max", ["get-many", "delete-many"], b"\x01b\x02\x01k"),
    (VALUE, "value_bytes_max", ["set-many"], b"\x01b\x01\x01k"),
    (VALUE, "value_bytes_max", ["set-many"], b"\x01b\x02\x01k\x00\x01k"),
]


@pytest.mark.parametrize("allowed", [1, 9, 127, 128])
@pytest.mark.parametrize(
    ("name", "what", "limit", "before"),
    [(name, what, limit, before) for what, limit, names, before in LIMITED for name in names],
)
def test_a_number_or_length_over_its_limit_is_answered_before_its_data_arrives(
    name: str, what: str, limit: str, before: bytes, allowed: int
) -> None:
    """Read the limits at each call, since a link may change them while the server runs."""
    limits, service = ParameterLimits(), Noted(FUNCTIONS[name].answer)
    handler = handler_of(name, service, limits)
    setattr(limits, limit, allowed)
    for found in (allowed + 1, 2**32 - 1):
        for trailing in (b"", b"k" * (allowed + 1)):
            params = before + write_length(found) + trailing
            message = what.format(found, allowed)
            if FUNCTIONS[name].instance == WATCHER:  # no result could express it
                with pytest.raises(DecodeError, match=f"^{re.escape(message)}$"):
                    carried_out(handler, params)
            else:
                assert carried_out(handler, params) == encode_error(OtherError(message))
    assert service.calls == []
    params = before + write_length(allowed) + bytes(allowed)
    with suppress(NeedMoreBytes):
        FUNCTIONS[name].decode(params, 0, len(params), limits)
    setattr(limits, limit, allowed + 1)
    with pytest.raises(NeedMoreBytes):
        carried_out(handler, before + write_length(allowed + 1))


def test_the_default_limits() -> None:
    assert ParameterLimits() == ParameterLimits(1024, 65_536, 16_777_216, 10_000, 33_554_432)


NOT_UTF8 = "a string is not UTF-8 at byte"


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        *((name, b"\x01\xff\x01k\x00\x00", f"{NOT_UTF8} 0") for name in FUNCTIONS),
        *((name, b"\x01b\x02a\xff\x00", f"{NOT_UTF8} 1") for name in functions_of(STORE) if name != "list-keys"),
        ("get", b"\x01b\x03\xed\xa0\x80", f"{NOT_UTF8} 0"),
        ("set", b"\x01b\x02\xc3(\x00", f"{NOT_UTF8} 0"),
        ("set", b"\x01b\x01k\xff\xff\xff\xff\x10", "a number does not fit in 32 bits"),
        ("delete", b"\x80\x80\x80\x80\x80", "a number does not fit in 32 bits"),
        ("exists", b"\x01b\x02a\xff", f"{NOT_UTF8} 1"),
        ("list-keys", b"\x01b\x02", "the tag of an option is 2; the limit is 1"),
        ("list-keys", b"\x01b\x01" + b"\xff" * 10, "a number does not fit in 64 bits"),
        ("increment", b"\x01b\x02a\xff\x01", f"{NOT_UTF8} 1"),
        ("increment", b"\x01b\x01k" + b"\xff" * 10, "a number does not fit in 64 bits"),
        ("increment", b"\x01b\x01k" + b"\xff" * 9 + b"\x02", "a number does not fit in 64 bits"),
        ("get-many", b"\x01b\x01\x02a\xff", f"{NOT_UTF8} 1"),
        ("get-many", b"\x01b\x02\x01\xc3\x01\xa9", f"{NOT_UTF8} 0"),
        ("get-many", b"\x01b\x03\x01\xff\x01a", f"{NOT_UTF8} 0"),
        ("get-many", b"\x01b\xff\xff\xff\xff\x10", "a number does not fit in 32 bits"),
        ("get-many", b"\x01b\x01\xff\xff\xff\xff\x10", "a number does not fit in 32 bits"),
        ("set-many", b"\x01b\x01\x03\xed\xa0\x80\x00", f"{NOT_UTF8} 0"),
        ("set-many", b"\x01b\x02\x01\xff\x01v\x01", f"{NOT_UTF8} 0"),
        ("set-many", b"\x01b\x01\x01k\xff\xff\xff\xff\x10", "a number does not fit in 32 bits"),
        ("delete-many", b"\x01b\x02\x01a\x01\x80", f"{NOT_UTF8} 0"),
        ("on-set", b"\x01b\x02a\xff\x00", f"{NOT_UTF8} 1"),
    ],
)
def test_malformed_parameters_call_nothing(name: str, params: bytes, message: str) -> None:
    """The error is found at a cut after it, too."""
    service = Noted(FUNCTIONS[name].answer)
    with pytest.raises(DecodeError, match=f"^{message}$"):
        carried_out(handler_of(name, service), params)
    assert service.calls == []


@pytest.mark.parametrize(
    ("name", "encoded", "message"),
    [
        *((name, "02", "the tag of a result is 2; the limit is 1") for name in ANSWERED),
        ("get", "0002", "the tag of an option is 2; the limit is 1"),
        ("get", "0001ffffffff10", "a number does not fit in 32 bits"),
        ("delete", "0103", "the tag of an error is 3; the limit is 2"),
        ("exists", "0002", "the tag of a bool is 2; the limit is 1"),
        ("list-keys", "00ffffffff10", "a number does not fit in 32 bits"),
        ("list-keys", "000101ff00", f"{NOT_UTF8} 0"),
        ("list-keys", "000002", "the tag of an option is 2; the limit is 1"),
        ("list-keys", "000001ffffffffffffffffff02", "a number does not fit in 64 bits"),
        ("increment", "00ffffffffffffffffff02", "a number does not fit in 64 bits"),
        ("get-many", "000102", "the tag of an option is 2; the limit is 1"),
        ("get-many", "00010101ff00", f"{NOT_UTF8} 0"),
        ("get-many", "00ffffffff10", "a number does not fit in 32 bits"),
    ],
)
def test_a_malformed_result_error_shows_what_was_found(name: str, encoded: str, message: str) -> None:
    buffer = bytes.fromhex(encoded)
    with pytest.raises(DecodeError, match=f"^{message}$"):
        FUNCTIONS[name].decode_result(buffer, 0, len(buffer))


# Errors in a result


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NoSuchStoreError(), NoSuchStoreError, "no such store"),
        (ForgottenStoreError(), NoSuchStoreError, "no such store"),
        (AccessDeniedError(), AccessDeniedError, "access denied"),
        (OtherError("disk: found 3, allowed 2"), OtherError, "disk: found 3, allowed 2"),
        (OtherError(""), OtherError, ""),
        (QuotaError("quota: found 3, allowed 2"), OtherError, "quota: found 3, allowed 2"),
        (InterfaceError("сбой 🔑"), OtherError, "сбой 🔑"),
        (OtherError("half a pair: \ud83d"), OtherError, "half a pair: ?"),
        (OtherError("m" * 65536), OtherError, "m" * 65536),
        (OtherError("m" * 65537), OtherError, "m" * 65536),
        (OtherError("é" * 65537), OtherError, "é" * (65536 // 2)),
        (
            OtherError("漢" * 65537),
            OtherError,
            "漢" * (65536 // 3),
        ),  # cut between characters, so that every peer can read it
    ],
)
def test_errors_arrive_as_their_kind(error: InterfaceError, kind: type[InterfaceError], message: str) -> None:
    encoded = encode_error(error)
    for name in ANSWERED:
        with pytest.raises(InterfaceError) as raised:
            FUNCTIONS[name].decode_result(encoded, 0, len(encoded))
        assert type(raised.value) is kind
        assert str(raised.value) == getattr(raised.value, "message", message) == message


def test_a_message_too_long_for_the_client_is_refused_before_it_has_arrived() -> None:
    encoded = b"\x01\x02" + write_length(65537) + b"m" * 65537
    for end in (5, len(encoded)):
        with pytest.raises(DecodeError, match=r"^error message is 65537 bytes; the limit is 65536$"):
            decode_unit_result(encoded, 0, end)


def test_a_message_that_is_not_utf8_is_repaired() -> None:
    """Report the peer's error, whatever its text is."""
    with pytest.raises(OtherError) as raised:
        decode_unit_result(b"\x01\x02\x03a\xffb", 0, 6)
    assert raised.value.message == "a\N{REPLACEMENT CHARACTER}b"


# Handlers


@each_kind
@each_function
def test_a_handler_passes_only_the_parameters_to_its_function(name: str, kind: Kind) -> None:
    """One read may hold the frames of several callers, so the buffer goes on after the parameters.

    A caller's trailing bytes are ignored.
    """
    function = FUNCTIONS[name]
    service = Noted(function.answer)
    handler = handler_of(name, kind(service))
    params = params_of(name)
    for before, trailing, end in ((b"", b"", len(params)), (b"before", b"\xffbehind", 6 + len(params) + 7)):
        assert answered(handler(CALLER, before + params + trailing, len(before), end)) == function.encode_result(
            function.result
        )
    assert service.calls == [(name, CALLER, *function.call)] * 2
    for cut in range(len(params)):
        with pytest.raises(NeedMoreBytes) as raised:
            handler(ANONYMOUS, params + b"secret", 0, cut)
        assert cut < raised.value.end_min <= len(params)
    assert len(service.calls) == 2


@each_kind
@each_answered
def test_calls_are_counted_by_their_outcome(name: str, kind: Kind) -> None:
    function = FUNCTIONS[name]
    service, tallies = Noted(function.answer), TALLIES[function.instance]()
    handler = handler_of(name, kind(service), LIMITS, tallies)
    params = params_of(name)
    carried_out(handler, params)
    with pytest.raises(NeedMoreBytes):
        carried_out(handler, params[:-1])
    assert counted(tallies[name]) == {"ok": 1}, "cut parameters are not a call yet"
    for error in (NoSuchStoreError(), AccessDeniedError(), OtherError("full"), QuotaError("full")):
        service.answer = error
        assert carried_out(handler, params) == encode_error(error)
    assert carried_out(handler, b"\x09")[:2] == b"\x01\x02", "a name over its limit"
    service.answer = RuntimeError("the disk is on fire")
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        carried_out(handler, params)
    with pytest.raises(DecodeError):
        carried_out(handler, b"\x01\xff")
    assert counted(tallies[name]) == {"ok": 1, "no_such_store": 1, "access_denied": 1, "other": 3, "failed": 2}
    assert not any(counted(tally) for other, tally in tallies.items() if other != name)


@each_kind
@pytest.mark.parametrize(
    ("name", "answer", "outcome"),
    [("get", None, "none"), ("get", b"", "ok"), ("exists", False, "none"), ("increment", 0, "ok")],
)
def test_only_a_missing_key_is_counted_as_none(name: str, answer: object, outcome: str, kind: Kind) -> None:
    tallies = TALLIES[FUNCTIONS[name].instance]()
    result = carried_out(handler_of(name, kind(Noted(answer)), LIMITS, tallies), params_of(name))
    assert FUNCTIONS[name].decode_result(result, 0, len(result)) == (answer, len(result))
    assert counted(tallies[name]) == {outcome: 1}


@each_kind
@pytest.mark.parametrize(
    ("name", "answer", "message"),
    [
        ("list-keys", KeyResponse([], 2**64), r"^cursor: found 18446744073709551616, allowed 0 to 2\*\*64 - 1$"),
        ("get-many", [b"1"], "shorter"),
    ],
)
def test_an_answer_that_cannot_be_encoded_is_a_failure(name: str, answer: object, message: str, kind: Kind) -> None:
    tallies = TALLIES[FUNCTIONS[name].instance]()
    with pytest.raises(ValueError, match=message):
        carried_out(handler_of(name, kind(Noted(answer)), LIMITS, tallies), params_of(name))
    assert counted(tallies[name]) == {"failed": 1}


def test_a_derived_answer_waits_for_its_source() -> None:
    async def source() -> bytes:
        return b"value"

    answer = source()
    pending = handler_of("get", Noted(Derived(answer, lambda read: read()[1:])))(CALLER, params_of("get"), 0, 11)
    assert isinstance(pending, AwaitedResult)
    assert pending.answer is answer
    assert waited(pending) == FUNCTIONS["get"].encode_result(b"alue")


def test_a_refused_coroutine_is_closed() -> None:
    """Otherwise Python warns that it was never awaited."""
    service = Noted()
    invocations = new_core(InvocationLimits(waiting_max=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in FUNCTIONS:
            step = invoke(invocations, handler_of(name, Waiting(service)), "R_c", ANONYMOUS, params_of(name), 0.0)
            assert step == Step([accept("R_c"), ended("R_c")])
        gc.collect()
    assert [str(warning.message) for warning in caught] == []
    assert service.calls == []


@pytest.mark.parametrize("params", [b"\x01b\x05cut", b"\x01b\x01\xff"], ids=["cut", "malformed"])
def test_an_exception_of_a_handler_holds_no_parameters(params: bytes) -> None:
    """An exception whose traceback refers to itself keeps the caller's bytes until the garbage collector runs, which is seldom."""
    handler = handler_of("exists", Noted())
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with suppress(NeedMoreBytes, DecodeError):
                carried_out(handler, params)
        assert gc.collect() == 0
    finally:
        gc.enable()


# The client, over NATS


@each_kind
async def test_the_client_calls_all_functions(nats_server: NatsServer, path: str, kind: Kind) -> None:
    services = {name: Noted(FUNCTIONS[name].answer) for name in ANSWERED}
    handlers = {
        instance: {name: handler_of(name, kind(services[name])) for name in functions_of(instance)}
        for instance in (STORE, ATOMICS, BATCH)
    }
    async with (
        serving(nats_server, path, handlers) as prefix,
        KeyValueClient(nats_server.url, prefix, source_id="component", link_name="default") as client,
    ):
        for name, service in services.items():
            function, method = FUNCTIONS[name], getattr(client, name.replace("-", "_"))
            bucket, first, *rest = function.call
            assert await method(bucket, first, *rest) == function.answer
            assert await method(as_text(bucket), as_text(first), *rest) == function.answer
            assert service.calls == [(name, CALLER, *function.call)] * 2
            service.answer = OtherError("full")
            with pytest.raises(OtherError, match=r"^full$"):
                await method(*function.call)
        services["increment"].answer = 1
        assert await client.increment("bucket", "ключ") == 1
        assert services["increment"].calls[-1] == ("increment", CALLER, b"bucket", "ключ".encode(), 1)
        with pytest.raises(OtherError, match=r"^the batch has 10 keys; the limit is 9 \(batch_keys_max\)$"):
            await client.get_many("bucket", map(str, range(10)))


def as_text(value: Any) -> Any:
    """Return bucket and keys as `str`, which a caller may pass too."""
    match value:
        case bytes():
            return value.decode()
        case list():
            return list(map(as_text, value))
        case dict():
            return {as_text(key): element for key, element in value.items()}
    return value


def test_a_large_result_is_counted_when_it_is_encoded() -> None:
    """Functions that change something have no large result, so that the server cannot call them twice.

    A page of keys may also take long, so `list-keys` leaves it to the server when to make each page.
    """
    size, count = LARGE_BYTES + 1, 600
    function_answers: dict[str, Any] = {
        "get": bytes(size),
        "get-many": [bytes(size)],
        "list-keys": KeyResponse([b"k" * 128] * count, None),
    }
    for name in FUNCTIONS:
        if FUNCTIONS[name].instance not in TALLIES:
            continue
        tallies = TALLIES[FUNCTIONS[name].instance]()
        service = Noted(function_answers.get(name, FUNCTIONS[name].answer))
        handler = handler_of(name, service, tallies=tallies)
        params = encode_bucket_keys(b"b", [b"k"]) if name == "get-many" else params_of(name)
        answers = [handler(CALLER, params, 0, len(params)) for _ in range(2)]
        assert all(isinstance(answer, LargeResult) is (name in function_answers) for answer in answers), name
        if name in function_answers:
            assert counted(tallies[name]) == {}
            assert len(answered(answers[1])) > size
            assert counted(tallies[name]) == {"ok": 1}
