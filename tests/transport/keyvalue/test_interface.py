"""What the interfaces share: the error in a result, both ways. Their handlers are tested with each of them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress

import pytest

from keyvalue_transport.keyvalue.atomics import decode_increment_result
from keyvalue_transport.keyvalue.batch import decode_get_many_result
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, decode_unit_result, encode_error, function_handler
from keyvalue_transport.keyvalue.outcomes import new_tally
from keyvalue_transport.keyvalue.store import (
    decode_exists,
    decode_get_result,
    decode_key_response,
    decode_truth_result,
    encode_truth_result,
)
from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from keyvalue_transport.wrpc.values import write_length

#: Of all results that may be an error.
DECODERS = (
    *(decode_get_result, decode_unit_result, decode_truth_result, decode_key_response),
    *(decode_increment_result, decode_get_many_result),
)


class QuotaError(InterfaceError):
    """A kind that the variant does not know."""


class ForgottenStoreError(NoSuchStoreError):
    """A kind of one that it knows."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (NoSuchStoreError(), NoSuchStoreError, "no such store"),
        (ForgottenStoreError(), NoSuchStoreError, "no such store"),
        (AccessDeniedError(), AccessDeniedError, "access denied"),
        (OtherError("disk: found 3, allowed 2"), OtherError, "disk: found 3, allowed 2"),
        (OtherError(""), OtherError, ""),
        (QuotaError("quota: found 3, allowed 2"), OtherError, "quota: found 3, allowed 2"),
        (QuotaError(), OtherError, ""),
        (InterfaceError("сбой 🔑"), OtherError, "сбой 🔑"),
        (OtherError("half a pair: \ud83d"), OtherError, "half a pair: ?"),
        (OtherError("m" * 65536), OtherError, "m" * 65536),
    ],
)
@pytest.mark.parametrize("decode", DECODERS)
def test_errors_come_back_as_their_kind(
    decode: Callable[[bytes, int, int], tuple[object, int]],
    error: InterfaceError,
    kind: type[InterfaceError],
    message: str,
) -> None:
    encoded = encode_error(error)
    with pytest.raises(InterfaceError) as raised:
        decode(encoded, 0, len(encoded))
    assert type(raised.value) is kind
    assert str(raised.value) == message
    if isinstance(raised.value, OtherError):
        assert raised.value.message == message


def test_a_message_too_long_for_the_client_is_refused_before_its_bytes_are_there() -> None:
    encoded = b"\x01\x02" + write_length(65537) + b"m" * 65537
    for end in (5, len(encoded)):
        with pytest.raises(DecodeError, match=r"^error message in bytes: found 65537, allowed 65536$"):
            decode_unit_result(encoded, 0, end)


@pytest.mark.parametrize("character", ["m", "é", "漢"])
def test_a_message_too_long_is_cut_where_it_is_written(character: str) -> None:
    """At a character, so that every peer can read it."""
    encoded = encode_error(OtherError(character * 65537))
    with pytest.raises(OtherError) as raised:
        decode_unit_result(encoded, 0, len(encoded))
    assert raised.value.message == character * (65536 // len(character.encode()))


def test_a_message_that_is_not_utf8_is_mended() -> None:
    """The peer's error is told, whatever its text is."""
    with pytest.raises(OtherError) as raised:
        decode_unit_result(b"\x01\x02\x03a\xffb", 0, 6)
    assert raised.value.message == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.parametrize("params", [b"\x01b\x05cut", b"\x01b\x01\xff"], ids=["cut", "malformed"])
def test_what_a_handler_raises_holds_no_parameters(params: bytes) -> None:
    """An exception whose traceback holds itself keeps the caller's bytes until the garbage collector comes, which is seldom."""

    def function(caller: Caller, bucket: bytes, key: bytes) -> bool:
        raise AssertionError

    handle = function_handler(decode_exists, function, encode_truth_result, False, ParameterLimits(), new_tally())
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            with suppress(NeedMoreBytes, DecodeError):
                handle(ANONYMOUS, params, 0, len(params))
        assert gc.collect() == 0
    finally:
        gc.enable()
