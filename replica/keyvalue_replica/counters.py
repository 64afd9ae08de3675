"""The forms of a counter. Both hold a number below 2**64.

text    decimal digits, as this store and keyvalue-nats write them
be64    8 bytes, the highest first, as hosts of wasmCloud 2.x write them to NATS
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from keyvalue_engine import CounterError
from keyvalue_engine.counter import COUNTER_MAX, counter_sum

__all__ = ["Addition", "add_to_be64", "add_to_text"]

BE64_BYTES = 8
#: A function that adds to a value, None for a missing one. It returns the sum and the new value, or raises CounterError.
Addition: TypeAlias = Callable[[bytes | None, int], tuple[int, bytes]]


def add_to_text(value: bytes | None, delta: int) -> tuple[int, bytes]:
    """Add to a counter in decimal text.

    >>> add_to_text(b"41", 1), add_to_text(None, 2)
    ((42, b'42'), (2, b'2'))

    :raises CounterError: the value is not such a counter, or the sum is below 0 or at least 2**64
    """
    if value is not None and len(value) == BE64_BYTES and not value.isdigit():
        raise CounterError("the value is 8 bytes and no decimal number; for counters of this form, set counter=be64")
    total = counter_sum(b"0" if value is None else value, delta)
    return total, b"%d" % total


def add_to_be64(value: bytes | None, delta: int) -> tuple[int, bytes]:
    """Add to a counter of 8 bytes. Eight digits are refused, because they are more likely a number in text.

    >>> add_to_be64(bytes(7) + b"!", 1)
    (34, b'\\x00\\x00\\x00\\x00\\x00\\x00\\x00"')

    :raises CounterError: the value is not such a counter, or the sum is below 0 or at least 2**64
    """
    if value is None:
        number = 0
    elif value.isdigit():
        raise CounterError("the value is a decimal number, and counter is be64; for numbers in text, set counter=text")
    elif len(value) != BE64_BYTES:
        raise CounterError(f"the value is {len(value)} bytes; a counter has {BE64_BYTES} bytes (counter is be64)")
    else:
        number = int.from_bytes(value)
    total = number + delta
    if not 0 <= total <= COUNTER_MAX:
        raise CounterError(f"the sum {number} + {delta} is outside the range 0 to {COUNTER_MAX}")
    return total, total.to_bytes(BE64_BYTES)
