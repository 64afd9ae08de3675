"""An invocation at the client: what it sends and when, and what it makes of what comes, in any order and cut anywhere."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_error
from keyvalue_transport.keyvalue.store import (
    KeyResponse,
    decode_get_result,
    decode_key_response,
    encode_get_result,
    encode_key_response,
)
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import DecodeError, InvocationEndedError, LengthLimitError, NoProviderError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from keyvalue_transport.wrpc.invocation import InvocationCounts
from keyvalue_transport.wrpc.values import read_bytes, write_length
from tests.invoking import invoke
from tests.recorded_replies import ended, new_core


def call(
    params: bytes = b"params", first_bytes_max: int = 1024, piece_bytes_max: int = 1024, result_bytes_max: int = 1024
) -> Call[bytes | None]:
    return Call(params, decode_get_result, first_bytes_max, piece_bytes_max, result_bytes_max)


def nothing(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """Decoder of a function without a result."""
    return None, at


def state(call: Call[bytes | None]) -> tuple[bool, bytes | None, Exception | None]:
    return call.done, call.value, call.error


def params_of(call: Call[bytes | None]) -> list[bytes]:
    """All that a call sends."""
    return [call.start(), *call.accepted()]


# What it sends


def test_small_parameters_go_at_once_and_their_end_after_the_handshake() -> None:
    invocation = call(b"params")
    assert invocation.start() == b"params"
    assert invocation.accepted() == [b""]
    assert not invocation.done


def test_no_parameters_are_an_empty_message_and_an_empty_end() -> None:
    assert params_of(call(b"")) == [b"", b""]


@pytest.mark.parametrize(
    ("first_bytes_max", "piece_bytes_max", "pieces"),
    [
        (10, 23, [b"0123456789", b""]),
        (9, 22, [b"012345678", b"9", b""]),
        (7, 23, [b"0123456", b"789", b""]),
        (2, 15, [b"01", b"23456789", b""]),
        (1, 14, [b"0", b"123456789", b""]),
        (0, 8, [b"0", b"12345678", b"9", b""]),
        (-20, 3, [b"0", b"123", b"456", b"789", b""]),
        (1, 1, [*(b"%d" % digit for digit in range(10)), b""]),
    ],
)
def test_parameters_are_cut_where_messages_are_full(
    first_bytes_max: int, piece_bytes_max: int, pieces: list[bytes]
) -> None:
    assert params_of(call(b"0123456789", first_bytes_max, piece_bytes_max)) == pieces


def test_a_second_handshake_sends_nothing() -> None:
    invocation = call(b"0123456789", 0, 8)
    assert len(params_of(invocation)) == 4
    assert invocation.accepted() == []
    assert invocation.accepted() == []


def test_a_handshake_after_the_result_still_ends_the_parameters() -> None:
    """Clients always send the end, and a server may wait for it."""
    invocation = call()
    invocation.start()
    invocation.result(encode_get_result(b"value"))
    assert invocation.done
    assert invocation.accepted() == [b""]


# What it makes of results


@pytest.mark.parametrize("handshake_first", [True, False])
def test_a_result_is_read_before_and_after_the_handshake(handshake_first: bool) -> None:
    invocation = call()
    invocation.start()
    if handshake_first:
        invocation.accepted()
    assert not invocation.done
    invocation.result(encode_get_result(b"value"))
    assert state(invocation) == (True, b"value", None)


@pytest.mark.parametrize("result", [None, b"", b"value", b"v" * 200])
def test_a_result_is_read_wherever_it_is_cut(result: bytes | None) -> None:
    encoded = encode_get_result(result)
    for cut in range(1, len(encoded)):
        invocation = call()
        invocation.result(encoded[:cut])
        assert not invocation.done
        invocation.result(encoded[cut:])
        assert state(invocation) == (True, result, None)


def test_a_result_is_read_byte_by_byte() -> None:
    encoded = encode_key_response(KeyResponse([b"a", b"k" * 200, b""], 300))
    invocation = Call(b"", decode_key_response, 1024, 1024)
    for at in range(len(encoded)):
        assert not invocation.done
        invocation.result(encoded[at : at + 1])
    assert invocation.value == KeyResponse([b"a", b"k" * 200, b""], 300)


def test_what_comes_after_the_result_changes_nothing() -> None:
    invocation = call()
    invocation.result(encode_get_result(b"value") + b"trailing")
    for piece in (b"", b"more", encode_error(AccessDeniedError())):
        invocation.result(piece)
        assert state(invocation) == (True, b"value", None)


def test_a_result_is_read_only_when_what_it_needs_is_there() -> None:
    """Else each of the thousand pieces would be joined and read again."""
    attempts = 0

    def decode(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
        nonlocal attempts
        attempts += 1
        return read_bytes(buffer, at, end, 2**32, "value in bytes")

    value = bytes(range(256)) * 4096
    encoded = write_length(len(value)) + value
    invocation = Call(b"", decode, 1024, 1024)
    for at in range(0, len(encoded), 1024):
        assert not invocation.done
        invocation.result(encoded[at : at + 1024])
    assert invocation.value == value
    assert attempts == 2


def test_a_function_without_a_result_ends_by_the_empty_message() -> None:
    invocation: Call[None] = Call(b"", nothing, 1024, 1024)
    assert not invocation.done
    invocation.result(b"")
    assert (invocation.done, invocation.value, invocation.error) == (True, None, None)


@pytest.mark.parametrize("cut", range(8))
def test_an_end_before_the_result_is_whole_fails(cut: int) -> None:
    encoded = encode_get_result(b"value")
    assert len(encoded) == 8
    invocation = call()
    if cut:
        invocation.result(encoded[:cut])
    assert state(invocation) == (False, None, None)
    invocation.result(b"")
    assert state(invocation) == (True, None, invocation.error)
    assert isinstance(invocation.error, InvocationEndedError)
    assert str(invocation.error) == f"the provider ended the invocation after {cut} bytes of its result"


@pytest.mark.parametrize("sizes", [[10], [4, 6], [4, 3, 3]])
def test_a_result_of_the_largest_size_is_read(sizes: list[int]) -> None:
    encoded = encode_get_result(b"7 bytes")
    assert len(encoded) == 10
    invocation = call(result_bytes_max=10)
    at = 0
    for size in sizes:
        invocation.result(encoded[at : at + size])
        at += size
    assert invocation.value == b"7 bytes"


@pytest.mark.parametrize(("pieces", "found"), [([11], 11), ([10, 1], 11), ([4, 4, 4], 12)])
def test_a_result_over_the_largest_size_is_refused_before_it_is_whole(pieces: list[int], found: int) -> None:
    encoded = encode_get_result(b"v" * 100)
    invocation = call(result_bytes_max=10)
    at = 0
    for size in pieces:
        assert not invocation.done
        invocation.result(encoded[at : at + size])
        at += size
    assert invocation.done
    assert isinstance(invocation.error, DecodeError)
    assert str(invocation.error) == f"result in bytes: found {found}, allowed 10"


def test_a_result_is_bounded_by_default() -> None:
    invocation: Call[bytes] = Call(
        b"", lambda buffer, at, end: read_bytes(buffer, at, end, 2**32, "value in bytes"), 1024, 1024
    )
    piece = write_length(2**31).ljust(1024 * 1024)  # the same bytes again and again, and never joined
    for _ in range(64):
        invocation.result(piece)
        assert invocation.error is None
    invocation.result(b"v")
    assert str(invocation.error) == "result in bytes: found 67108865, allowed 67108864"


@pytest.mark.parametrize(
    "error", [NoSuchStoreError(), AccessDeniedError(), OtherError("сбой: disk"), OtherError("m" * 300)]
)
def test_errors_of_the_interface_are_typed_wherever_they_are_cut(error: InterfaceError) -> None:
    encoded = encode_error(error)
    for cut in range(1, len(encoded)):
        invocation = call()
        invocation.result(encoded[:cut])
        assert state(invocation) == (False, None, None)
        invocation.result(encoded[cut:])
        assert state(invocation) == (True, None, invocation.error)
        assert type(invocation.error) is type(error)
        assert str(invocation.error) == str(error)


def test_a_damaged_result_is_a_typed_error_at_once() -> None:
    invocation = call()
    invocation.result(b"\x00\x07")
    assert isinstance(invocation.error, DecodeError)
    assert str(invocation.error) == "found 7 as the tag of an option, allowed 0 to 1"


def test_a_limit_of_the_decoder_is_a_typed_error_at_once() -> None:
    invocation = Call(b"", lambda buffer, at, end: read_bytes(buffer, at, end, 3, "name in bytes"), 1024, 1024)
    invocation.result(b"\x04")
    assert isinstance(invocation.error, LengthLimitError)
    assert str(invocation.error) == "name in bytes: found 4, allowed 3"


def test_whatever_else_a_decoder_raises_is_the_error_at_once() -> None:
    """The core knows the errors of no interface; and a decoder's fault is told to the caller, who would else wait for its time-out."""

    def decode(buffer: bytes, at: int, end: int) -> tuple[None, int]:
        raise LookupError(buffer)

    invocation = Call(b"", decode, 1024, 1024)
    invocation.result(b"piece")
    assert invocation.done
    assert isinstance(invocation.error, LookupError)
    assert invocation.error.args == (b"piece",)


def test_it_can_be_told_that_it_failed() -> None:
    invocation = call()
    invocation.result(b"\x00\x01\x05val")
    invocation.fail(NoProviderError("nobody serves this function"))
    invocation.result(b"ue")
    assert (invocation.done, invocation.value) == (True, None)
    assert str(invocation.error) == "nobody serves this function"


# Client and server together


@settings(deadline=None)
@given(
    st.binary(max_size=200),
    st.none() | st.binary(max_size=200),
    st.integers(-10, 60),
    st.integers(1, 60),
    st.lists(st.integers(0, 210), max_size=4),
)
def test_a_call_and_the_server_agree_whatever_the_pieces_are(
    params: bytes, result: bytes | None, first_bytes_max: int, piece_bytes_max: int, cuts: list[int]
) -> None:
    """Parameters cut by the client, the result cut on its way."""
    received: list[bytes] = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        value, _ = read_bytes(buffer, start, end, 2**32, "value in bytes")
        received.append(value)
        return encode_get_result(result)

    server = new_core()
    client = call(write_length(len(params)) + params, first_bytes_max, piece_bytes_max)
    first = client.start()
    assert len(first) <= max(1, first_bytes_max)
    handshake, *coming = invoke(server, handler, "client", ANONYMOUS, first, 0.0).sends
    assert handshake[:2] == ("accept", "client")
    for piece in client.accepted():
        assert len(piece) <= piece_bytes_max
        if handshake.content is not None:
            coming += server.receive_params("0", piece, 0.0).sends
    assert received == [params]
    assert server.counts == InvocationCounts(answered=1)
    assert server.half_open_bytes == 0
    assert coming.pop() == ended("client")
    (message,) = coming
    joined = message.content
    assert isinstance(joined, bytes)
    bounds = sorted({0, len(joined), *(cut for cut in cuts if cut < len(joined))})
    for at, end in pairwise(bounds):
        assert not client.done
        client.result(joined[at:end])
    assert state(client) == (True, result, None)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=6))
def test_any_results_leave_a_call_done_with_a_typed_outcome_or_waiting(pieces: list[bytes]) -> None:
    invocation = call(result_bytes_max=40)
    for piece in pieces:
        before = state(invocation)
        invocation.result(piece)
        if before[0]:
            assert state(invocation) == before
        elif not piece:
            assert invocation.done
    if invocation.error is None:
        assert invocation.done or re.fullmatch(rb"(\x00(\x01.*)?|\x01(\x02.*)?)?", b"".join(pieces), re.DOTALL)
    else:
        assert isinstance(invocation.error, (InterfaceError, DecodeError, InvocationEndedError))
        assert invocation.value is None
