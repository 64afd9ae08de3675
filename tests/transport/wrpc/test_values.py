"""Readers and writers of values: tables of encodings, and what holds for any bytes and any `end`."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyvalue_transport.wrpc import values
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
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

Reader: TypeAlias = Callable[[bytes, int, int], tuple[object, int]]

READERS: dict[str, Reader] = {
    "u32": lambda buffer, at, end: read_unsigned(buffer, at, end, 32),
    "u64": lambda buffer, at, end: read_unsigned(buffer, at, end, 64),
    "list<u8>": lambda buffer, at, end: read_bytes(buffer, at, end, BYTES_MAX, "value in bytes"),
    "list<u8> of any length": lambda buffer, at, end: read_bytes(buffer, at, end, 2**32, "value in bytes"),
    "string": lambda buffer, at, end: read_text(buffer, at, end, BYTES_MAX, "key in bytes"),
    "tag of two": lambda buffer, at, end: read_tag(buffer, at, end, 2, "an option"),
    "tag of three": lambda buffer, at, end: read_tag(buffer, at, end, 3, "an error"),
    "bool": read_bool,
}
#: Those that refuse a length by a limit.
LIMITED = {"list<u8>", "string"}

names = st.sampled_from(sorted(READERS))
lengths = st.integers(0, BYTES_MAX + 2) | st.sampled_from([127, 128, U32_MAX, 2**32, 2**63, U64_MAX])
overlong = st.builds(
    lambda number, zeros: longer(write_unsigned(number), zeros), st.integers(0, 300), st.integers(0, 9)
)
#: Any bytes; also those that begin with a length, since a random byte seldom is the length of what follows it.
wild = st.binary(max_size=20) | st.builds(
    lambda length, rest: length + rest, lengths.map(write_length) | overlong, st.binary(max_size=BYTES_MAX + 4)
)


def longer(encoded: bytes, zeros: int) -> bytes:
    """The same number in `zeros` more bytes than it needs."""
    if not zeros:
        return encoded
    return encoded[:-1] + bytes([encoded[-1] | 128]) + b"\x80" * (zeros - 1) + b"\x00"


def outcome(read: Reader, buffer: bytes, at: int, end: int) -> tuple[object, ...]:
    """What a reader does, in a form that compares. Any other exception than a reader may raise fails the test."""
    try:
        value, behind = read(buffer, at, end)
    except NeedMoreBytes as more:
        return "more", more.end_min
    except (DecodeError, LengthLimitError) as error:
        return type(error), str(error)
    return "value", value, behind


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
        with pytest.raises(DecodeError, match=r"^found a number that does not fit in 32 bits$"):
            read_unsigned(written, 0, len(written), 32)


@pytest.mark.parametrize("number", [-1, -128, -(2**64)])
def test_a_number_below_zero_is_not_written(number: int) -> None:
    with pytest.raises(ValueError, match=f"^found {number}, allowed numbers from 0$"):
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
def test_a_number_that_does_not_fit_is_damage_at_once(bits: int, encoded: str) -> None:
    buffer = bytes.fromhex(encoded)
    last = 5 if bits == 32 else 10
    with pytest.raises(DecodeError, match=f"^found a number that does not fit in {bits} bits$"):
        read_unsigned(buffer, 0, last, bits)
    with pytest.raises(NeedMoreBytes) as raised:
        read_unsigned(buffer, 0, last - 1, bits)
    assert raised.value.end_min == last


@pytest.mark.parametrize(("byte", "tags"), [(2, 2), (127, 2), (128, 2), (255, 2), (3, 3), (128, 3)])
def test_an_unknown_tag_is_damage(byte: int, tags: int) -> None:
    with pytest.raises(DecodeError, match=f"^found {byte} as the tag of an option, allowed 0 to {tags - 1}$"):
        read_tag(bytes([byte, 0]), 0, 2, tags, "an option")


# Properties


@given(st.integers(0, U64_MAX) | st.integers(0, 64).map(lambda bits: 2**bits - 1), st.binary(max_size=3))
def test_numbers_come_back(number: int, behind: bytes) -> None:
    written = write_unsigned(number)
    assert len(written) == max(1, -(-number.bit_length() // 7)), "the shortest form"
    assert read_unsigned(b"\xff" + written + behind, 1, 1 + len(written), 64) == (number, 1 + len(written))


@given(st.integers(0, U32_MAX), st.integers(0, 9))
def test_longer_forms_come_back_while_they_fit(number: int, zeros: int) -> None:
    encoded = longer(write_unsigned(number), zeros)
    for bits, bytes_max in ((32, 5), (64, 10)):
        if len(encoded) <= bytes_max:
            assert read_unsigned(encoded, 0, len(encoded), bits) == (number, len(encoded))
        else:
            with pytest.raises(DecodeError, match=f"^found a number that does not fit in {bits} bits$"):
                read_unsigned(encoded, 0, len(encoded), bits)


@example(bytes(127), b"")
@example(bytes(128), b"\x00")
@given(st.binary(max_size=300), st.binary(max_size=3))
def test_bytes_come_back(value: bytes, behind: bytes) -> None:
    written = write_length(len(value)) + value
    assert read_bytes(written + behind, 0, len(written), 300, "value in bytes") == (value, len(written))


@example(b"caf\xc3")  # begins a character, but does not go on
@example(b"\xc0\x80")  # zero in two bytes
@example(b"\xed\xa0\x80")  # half of a surrogate pair
@example(b"\xf4\x90\x80\x80")  # behind the last code point
@given(st.binary(max_size=12) | st.text(max_size=40).map(str.encode))
def test_a_string_is_read_if_it_is_utf8(text: bytes) -> None:
    buffer = write_length(len(text)) + text
    try:
        text.decode()
    except UnicodeDecodeError as error:
        with pytest.raises(DecodeError, match=f"^found a string that is not UTF-8 at its byte {error.start}$"):
            read_text(buffer, 0, len(buffer), 160, "key in bytes")
    else:
        assert read_text(buffer, 0, len(buffer), 160, "key in bytes") == (text, len(buffer))


@given(names, st.binary(max_size=5), wild, st.binary(max_size=60))
def test_any_bytes_have_an_outcome_that_what_is_behind_the_end_does_not_change(
    name: str, before: bytes, own: bytes, behind: bytes
) -> None:
    read = READERS[name]
    at, end = len(before), len(before + own)
    found = outcome(read, before + own + behind, at, end)
    assert found == outcome(read, before + own, at, end)
    match found:
        case ("value", _, int(offset)):
            assert at < offset <= end
        case ("more", int(end_min)):
            assert end_min > end
        case _:
            assert found[0] is DecodeError or name in LIMITED


@given(names, wild, st.data())
def test_what_is_needed_never_overshoots(name: str, encoded: bytes, choice: st.DataObject) -> None:
    """From any prefix of a value, asking for what is needed leads to it, and never behind it."""
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
