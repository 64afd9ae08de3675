"""An invocation at the client: what it sends and when, and how it reads replies that arrive in any order and cut anywhere."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import encode_error
from keyvalue_transport.keyvalue.store import (
    decode_get_result,
    encode_get_result,
)
from keyvalue_transport.keyvalue.watcher import decode_nothing
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import DecodeError, InvocationEndedError, Length, LengthLimitError, NoProviderError
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from keyvalue_transport.wrpc.invocation import InvocationCounts
from keyvalue_transport.wrpc.values import read_bytes, write_length
from tests.invoking import invoke
from tests.recorded_replies import ended, new_core


def call(
    params: bytes = b"params", first_bytes_max: int = 1024, piece_bytes_max: int = 1024, result_bytes_max: int = 1024
) -> Call[bytes | None]:
    return Call(params, decode_get_result, first_bytes_max, piece_bytes_max, result_bytes_max)


def state(call: Call[bytes | None]) -> tuple[bool, bytes | None, Exception | None]:
    return call.done, call.value, call.error


def params_of(call: Call[bytes | None]) -> list[bytes]:
    """Return all that a call sends."""
    return [call.start(), *call.accepted()]


# Sending


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
    assert params_of(call(b"", first_bytes_max, piece_bytes_max)) == [b"", b""]
    invocation = call(b"0123456789", first_bytes_max, piece_bytes_max)
    assert params_of(invocation) == pieces
    assert not invocation.done
    assert invocation.accepted() == [], "a second handshake sends nothing"


def test_a_handshake_after_the_result_still_ends_the_parameters() -> None:
    """Always send the end, since a server may wait for it."""
    invocation = call()
    invocation.start()
    invocation.result(encode_get_result(b"value"))
    assert invocation.done
    assert invocation.accepted() == [b""]


# Results


@pytest.mark.parametrize(
    "result",
    [
        *(None, b"", b"value", b"v" * 200),
        *(NoSuchStoreError(), AccessDeniedError(), OtherError("сбой: disk"), OtherError("m" * 300)),
    ],
)
def test_a_result_is_read_wherever_it_is_cut(result: bytes | InterfaceError | None) -> None:
    encoded = encode_error(result) if isinstance(result, InterfaceError) else encode_get_result(result)
    for cut in range(1, len(encoded)):
        invocation = call()
        invocation.result(encoded[:cut])
        assert state(invocation) == (False, None, None)
        invocation.result(encoded[cut:])
        if isinstance(result, InterfaceError):
            assert state(invocation) == (True, None, invocation.error)
            assert repr(invocation.error) == repr(result)
        else:
            assert state(invocation) == (True, result, None)


def test_messages_after_the_result_change_nothing() -> None:
    invocation = call()
    invocation.result(encode_get_result(b"value") + b"trailing")
    for piece in (b"", b"more", encode_error(AccessDeniedError())):
        invocation.result(piece)
        assert state(invocation) == (True, b"value", None)


def test_a_result_is_read_only_when_all_it_needs_has_arrived() -> None:
    """Otherwise each of the thousand pieces would be joined and read again."""
    attempts = 0

    def decode(buffer: bytes, at: int, end: int) -> tuple[bytes, int]:
        nonlocal attempts
        attempts += 1
        return read_bytes(buffer, at, end, 2**32, Length("value is {} bytes"))

    value = bytes(range(256)) * 4096
    encoded = write_length(len(value)) + value
    invocation = Call(b"", decode, 1024, 1024)
    for at in range(0, len(encoded), 1024):
        assert not invocation.done
        invocation.result(encoded[at : at + 1024])
    assert invocation.value == value
    assert attempts == 2


def test_a_function_without_a_result_ends_with_the_empty_message() -> None:
    invocation: Call[None] = Call(b"", decode_nothing, 1024, 1024)
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


@pytest.mark.parametrize(
    ("value", "sizes", "message"),
    [
        (b"7 bytes", [10], None),
        (b"7 bytes", [4, 3, 3], None),
        (b"v" * 100, [11], "result is 11 bytes; the limit is 10"),
        (b"v" * 100, [10, 1], "result is 11 bytes; the limit is 10"),
        (b"v" * 100, [4, 4, 4], "result is 12 bytes; the limit is 10"),
    ],
)
def test_a_result_over_the_size_limit_is_refused_before_it_is_whole(
    value: bytes, sizes: list[int], message: str | None
) -> None:
    encoded = encode_get_result(value)
    invocation = call(result_bytes_max=10)
    for size in sizes:
        assert not invocation.done
        invocation.result(encoded[:size])
        encoded = encoded[size:]
    assert invocation.done
    if message is None:
        assert invocation.value == value
    else:
        assert isinstance(invocation.error, DecodeError)
        assert str(invocation.error) == message


@pytest.mark.parametrize(
    "error", [DecodeError("found 7"), LengthLimitError(Length("name is {} bytes"), 4, 3), LookupError("a fault")]
)
def test_an_error_of_a_decoder_is_reported_at_once(error: Exception) -> None:
    """The core knows no interface's errors.

    A fault of a decoder is reported to the caller, who would otherwise wait for the timeout.
    """

    def decode(buffer: bytes, at: int, end: int) -> tuple[None, int]:
        assert (buffer, at, end) == (b"piece", 0, 5)
        raise error

    invocation = Call(b"", decode, 1024, 1024)
    invocation.result(b"piece")
    assert invocation.done
    assert invocation.error is error


def test_a_call_can_be_told_that_it_failed() -> None:
    invocation = call()
    invocation.result(b"\x00\x01\x05val")
    invocation.fail(NoProviderError("nobody serves this function"))
    invocation.result(b"ue")
    assert (invocation.done, invocation.value) == (True, None)
    assert str(invocation.error) == "nobody serves this function"


# Client and server together


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
    """Cut the parameters at the client, and the result on its way."""
    received: list[bytes] = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        value, _ = read_bytes(buffer, start, end, 2**32, Length("value is {} bytes"))
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
