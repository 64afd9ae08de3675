"""The arguments of a client's calls: all bytes of every buffer, and a clear TypeError for anything else."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.arguments import as_bytes, as_entries, as_keys, as_number, as_text


@given(st.binary(), st.sampled_from("bBhHiIlLqQfd"), st.sampled_from([1, 2, -1]))
def test_all_bytes_of_a_buffer_are_copied(octets: bytes, kind: str, step: int) -> None:
    """Compare with the buffer's elements, also if the elements are wide or not next to each other."""
    wide = array(kind, octets[: len(octets) // array(kind).itemsize * array(kind).itemsize])
    view = memoryview(wide)[::step]
    copied = as_bytes("value", view)
    assert copied == wide[::step].tobytes()
    assert as_bytes("value", wide) == wide.tobytes()
    entries: dict[str, Any] = {"k": view, "l": wide}
    assert as_entries(entries) == [(b"k", copied), (b"l", wide.tobytes())]
    view.release()
    wide.append(0)  # no view of it is left, and the copy does not change
    assert as_bytes("value", bytearray(octets)) == as_bytes("value", octets) == octets


def test_keys_and_numbers() -> None:
    assert as_text("key", "ключ") == "ключ".encode() == as_text("key", "ключ".encode())
    assert as_keys(key for key in ("a", b"b")) == as_keys({"a": 1, b"b": 2}) == [b"a", b"b"]
    assert as_number("delta", ctypes.c_uint8(7).value) == 7


@pytest.mark.parametrize(
    ("convert", "argument", "text"),
    [
        (as_keys, "visits", "keys is of the type str; expected a list of keys"),
        (as_keys, b"", "keys is of the type bytes; expected a list of keys"),
        (as_keys, None, "keys is None; expected a list of keys"),
        (as_keys, ["a", 1], "a key is of the type int; expected str or bytes"),
        (as_entries, [("a", b"v")], "entries is of the type list; expected a mapping of keys to values"),
        (
            as_entries,
            {"a": "text"},
            "the value of 'a' is of the type str; expected bytes or another buffer; encode it first",
        ),
        (as_entries, {1: b"v"}, "a key is of the type int; expected str or bytes"),
        (lambda value: as_text("bucket", value), None, "bucket is None; expected str or bytes"),
        (lambda value: as_bytes("value", value), 3, "value is of the type int; expected bytes or another buffer"),
        (lambda value: as_bytes("value", value), [1, 2], "value is of the type list; expected bytes or another buffer"),
        (
            lambda value: as_bytes("value", value),
            (ctypes.py_object * 2)(),
            "value is of the type py_object_Array_2 of Python objects; expected bytes or a buffer of plain data",
        ),
        (lambda value: as_number("delta", value), 1.0, "delta is of the type float; expected an int"),
    ],
)
def test_other_types_are_refused(convert: Callable[[Any], object], argument: object, text: str) -> None:
    with pytest.raises(TypeError) as caught:
        convert(argument)
    assert str(caught.value) == text
