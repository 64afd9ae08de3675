"""Readers and writers of values: tables of encodings, and properties that hold for any bytes and any `end`."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyvalue_transport.wrpc import values
from keyvalue_transport.wrpc.errors import DecodeError, Length, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.values import (
    U64_MAX,
    read_bool,
    read_bytes,
    read_tag,
    read_text,
    read_unsigned,
    write_length,
    write_unsigned,
)

U32_MAX = 2**32 - 1
BYTES_MAX = 40
KEY = Length("key is {} bytes", "key_bytes_max")
VALUE = Length("value is {} bytes")

Reader: TypeAlias = Callable[[bytes, int, int], tuple[object, int]]

READERS: dict[str, Reader] = {
    "u32": lambda buffer, at, end: read_unsigned(buffer, at, end, 32),
    "u64": lambda buffer, at, end: read_unsigned(buffer, at, end, 64),
    "list<u8>": lambda buffer, at, end: read_bytes(buffer, at, end, BYTES_MAX, VALUE),
    "list<u8> of any length": lambda buffer, at, end: read_bytes(buffer, at, end, 2**32, VALUE),
    "string": lambda buffer, at, end: read_text(buffer, at, end, BYTES_MAX, KEY),
    "tag of two": lambda buffer, at, end: read_tag(buffer, at, end, 2, "an option"),
    "tag of three": lambda buffer, at, end: read_tag(buffer, at, end, 3, "an error"),
    "bool": read_bool,
}
#: Readers that refuse a length above a limit.
LIMITED = {"list<u8>", "string"}

names = st.sampled_from(sorted(READERS))
lengths = st.integers(0, BYTES_MAX + 2) | st.sampled_from([127, 128, U32_MAX, 2**32, 2**63, U64_MAX])
overlong = st.builds(
    lambda number, zeros: longer(write_unsigned(number), zeros), st.integers(0, 300), st.integers(0, 9)
)
#: Any bytes, and any bytes after a length, since random bytes seldom begin with the right length.
wild = st.binary(max_size=20) | st.builds(
    lambda length, rest: length + rest, lengths.map(write_length) | overlong, st.binary(max_size=BYTES_MAX + 4)
)


def longer(encoded: bytes, zeros: int) -> bytes:
    """Return the encoding of the same number with `zeros` more bytes than it needs."""
    if not zeros:
        return encoded
    return encoded[:-1] + bytes([encoded[-1] | 128]) + b"\x80" * (zeros - 1) + b"\x00"


def outcome(read: Reader, buffer: bytes, at: int, end: int) -> tuple[object, ...]:
    """Return the outcome of a reader, in a form that can be compared. An unexpected exception fails the test."""
    try:
        value, trailing = read(buffer, at, end)
    except NeedMoreBytes as more:
        return "more", more.end_min
    except (DecodeError, LengthLimitError) as error:
        return type(error), str(error)
    return "value", value, trailing


# Tables


@pytest.mark.parametrize(
    ("number", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (127, "7f"),
        (128, "8001"),
        (300, "ac02"),
        (2**14 - 1, "ff7f"),
        (2**14, "808001"),
        (2**28 - 1, "ffffff7f"),
        (2**28, "8080808001"),
        (U32_MAX, "ffffffff0f"),
        (2**32, "8080808010"),
        (2**63 - 1, "ffffffffffffffff7f"),
        (2**63, "80808080808080808001"),
        (U64_MAX, "ffffffffffffffffff01"),
    ],
)
def test_a_number_and_its_leb128(number: int, encoded: str) -> None:
    written = bytes.fromhex(encoded)
    assert write_unsigned(number) == written
    assert write_length(number) == written
    assert read_unsigned(written, 0, len(written), 64) == (number, len(written))
    if number <= U32_MAX:
        assert read_unsigned(written, 0, len(written), 32) == (number, len(written))
    else:
        with pytest.raises(DecodeError, match=r"^a number does not fit in 32 bits$"):
            read_unsigned(written, 0, len(written), 32)


@pytest.mark.parametrize("number", [-1, -128, -(2**64)])
def test_a_negative_number_is_not_written(number: int) -> None:
    with pytest.raises(ValueError, match=f"^number is {number}; the minimum is 0$"):
        write_unsigned(number)


@pytest.mark.parametrize(
    ("bits", "encoded"),
    [
        (32, "ffffffff10"),  # bit 32
        (32, "ffffffff7f"),
        (32, "8080808080"),  # a sixth byte would follow
        (32, "80808080808000"),
        (64, "ffffffffffffffffff02"),  # bit 64
        (64, "ffffffffffffffffff7f"),
        (64, "80808080808080808080"),  # an eleventh byte would follow
        (64, "ffffffffffffffffffff"),
    ],
)
def test_a_number_that_does_not_fit_is_refused_at_once(bits: int, encoded: str) -> None:
    buffer = bytes.fromhex(encoded)
    last = 5 if bits == 32 else 10
    with pytest.raises(DecodeError, match=f"^a number does not fit in {bits} bits$"):
        read_unsigned(buffer, 0, last, bits)
    with pytest.raises(NeedMoreBytes) as raised:
        read_unsigned(buffer, 0, last - 1, bits)
    assert raised.value.end_min == last


@pytest.mark.parametrize(("byte", "tags"), [(2, 2), (127, 2), (128, 2), (255, 2), (3, 3), (128, 3)])
def test_an_unknown_tag_is_refused(byte: int, tags: int) -> None:
    with pytest.raises(DecodeError, match=f"^the tag of an option is {byte}; the limit is {tags - 1}$"):
        read_tag(bytes([byte, 0]), 0, 2, tags, "an option")


# Properties


@given(st.integers(0, U64_MAX) | st.integers(0, 64).map(lambda bits: 2**bits - 1), st.binary(max_size=3))
def test_numbers_survive_a_round_trip(number: int, trailing: bytes) -> None:
    written = write_unsigned(number)
    assert len(written) == max(1, -(-number.bit_length() // 7)), "the shortest form"
    assert read_unsigned(b"\xff" + written + trailing, 1, 1 + len(written), 64) == (number, 1 + len(written))


@given(st.integers(0, U32_MAX), st.integers(0, 9))
def test_longer_forms_are_read_while_they_fit(number: int, zeros: int) -> None:
    encoded = longer(write_unsigned(number), zeros)
    for bits, bytes_max in ((32, 5), (64, 10)):
        if len(encoded) <= bytes_max:
            assert read_unsigned(encoded, 0, len(encoded), bits) == (number, len(encoded))
        else:
            with pytest.raises(DecodeError, match=f"^a number does not fit in {bits} bits$"):
                read_unsigned(encoded, 0, len(encoded), bits)


@example(bytes(127), b"")
@example(bytes(128), b"\x00")
@given(st.binary(max_size=300), st.binary(max_size=3))
def test_bytes_survive_a_round_trip(value: bytes, trailing: bytes) -> None:
    written = write_length(len(value)) + value
    assert read_bytes(written + trailing, 0, len(written), 300, VALUE) == (value, len(written))


@example(b"caf\xc3")  # begins a character that is cut off
@example(b"\xc0\x80")  # zero in two bytes
@example(b"\xed\xa0\x80")  # half of a surrogate pair
@example(b"\xf4\x90\x80\x80")  # after the last code point
@given(st.binary(max_size=12) | st.text(max_size=40).map(str.encode))
def test_a_string_is_read_if_it_is_utf8(text: bytes) -> None:
    buffer = write_length(len(text)) + text
    try:
        text.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(DecodeError, match=f"^a string is not UTF-8 at byte {error.start}$"):
            read_text(buffer, 0, len(buffer), 160, KEY)
    else:
        assert read_text(buffer, 0, len(buffer), 160, KEY) == (text, len(buffer))


@given(names, st.binary(max_size=5), wild, st.binary(max_size=60))
def test_any_bytes_have_an_outcome_that_does_not_depend_on_bytes_after_the_end(
    name: str, before: bytes, own: bytes, trailing: bytes
) -> None:
    read = READERS[name]
    at, end = len(before), len(before + own)
    found = outcome(read, before + own + trailing, at, end)
    assert found == outcome(read, before + own, at, end)
    match found:
        case ("value", _, int(offset)):
            assert at < offset <= end
        case ("more", int(end_min)):
            assert end_min > end
        case _:
            assert found[0] is DecodeError or name in LIMITED


@given(names, wild, st.data())
def test_a_request_for_more_bytes_never_overshoots(name: str, encoded: bytes, choice: st.DataObject) -> None:
    """Read any prefix of a value, then what it asks for, until it is whole. It never asks for bytes after it."""
    read = READERS[name]
    whole = outcome(read, encoded, 0, len(encoded))
    end = choice.draw(st.integers(0, len(encoded)))
    while (found := outcome(read, encoded, 0, end))[0] == "more":
        end_min = found[1]
        assert isinstance(end_min, int)
        assert end_min > end
        if end_min > len(encoded):
            assert whole == found, "the value is not whole, and every prefix of it that knows its length says the same"
            return
        end = end_min
    assert found == whole
    if whole[0] == "value":
        assert isinstance(whole[2], int)
        for cut in range(whole[2]):
            assert outcome(read, encoded, 0, cut)[0] == "more"


def test_the_examples_of_the_documentation_run() -> None:
    results = doctest.testmod(values)
    assert results.attempted > 0
    assert results.failed == 0
