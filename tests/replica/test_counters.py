"""The two forms of a counter, with the bytes that keyvalue-nats and hosts of wasmCloud 2.x write."""

from __future__ import annotations

import pytest

from keyvalue_engine import CounterError
from keyvalue_replica.counters import Addition, add_to_be64, add_to_text

#: The form, the value before, what is added, and the value after.
VECTORS = [
    (add_to_text, None, 1, b"1"),
    (add_to_text, b"41", 1, b"42"),
    (add_to_text, b"12345678", 1, b"12345679"),
    (add_to_be64, None, 1, b"\0\0\0\0\0\0\0\x01"),
    (add_to_be64, b"\0\0\0\0\0\0\0\xff", 1, b"\0\0\0\0\0\0\x01\0"),
    (add_to_be64, b"\xff" * 7 + b"\xfe", 1, b"\xff" * 8),
]


@pytest.mark.parametrize(("add", "before", "delta", "after"), VECTORS)
def test_vectors(add: Addition, before: bytes | None, delta: int, after: bytes) -> None:
    total, value = add(before, delta)
    assert value == after
    assert total == (int(after) if add is add_to_text else int.from_bytes(after))


@pytest.mark.parametrize(
    ("add", "value", "text"),
    [
        (add_to_text, bytes(8), "set counter=be64"),
        (add_to_text, b"many", "is not a decimal number"),
        (add_to_be64, b"12345678", "set counter=text"),
        (add_to_be64, b"7", "set counter=text"),
        (add_to_be64, b"abc", r"3 bytes; a counter has 8 bytes \(counter is be64\)"),
        (add_to_be64, b"\xff" * 8, "outside the range"),
    ],
)
def test_a_value_of_the_other_form_is_refused_with_the_option(add: Addition, value: bytes, text: str) -> None:
    with pytest.raises(CounterError, match=text):
        add(value, 1)
