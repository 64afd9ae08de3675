"""Counters: numbers below 2**64 that are stored as decimal text."""

from __future__ import annotations

from keyvalue_engine.errors import CounterError

__all__ = ["COUNTER_MAX", "counter_sum"]

COUNTER_MAX = 2**64 - 1
DIGITS_MAX = 20
#: The error for a value that is not a counter shows at most SHOWN_MAX bytes of the value.
SHOWN_MAX = 32


def counter_sum(value: bytes, delta: int) -> int:
    """Return the counter in `value` plus `delta`.

    >>> counter_sum(b"41", 1)
    42

    :raises CounterError: the value is not a counter, or the sum is below 0 or at least 2**64
    """
    if not (len(value) <= DIGITS_MAX and value.isdigit()):
        shown = repr(value[:SHOWN_MAX])[1:] + ("..." if len(value) > SHOWN_MAX else "")
        raise CounterError(f"the value {shown} is not a decimal number from 0 to {COUNTER_MAX}")
    number = int(value)
    total = number + delta
    if not 0 <= total <= COUNTER_MAX:
        raise CounterError(f"the sum {number} + {delta} is outside the range 0 to {COUNTER_MAX}")
    return total
