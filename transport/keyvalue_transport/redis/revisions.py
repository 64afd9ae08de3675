"""Revisions: what a command makes of a key's entry. They are functions of the entry and the time, without I/O.

The store calls a revision with the entry, its time, and the deadline that it gives to a written key by default, or
None. A revision returns the new entry: the value, or the value and its deadline, or None to remove the key. To change
nothing, it returns the same object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeAlias

from keyvalue_transport.redis.answers import CommandError

__all__ = [
    "I64_MAX",
    "I64_MIN",
    "Deadline",
    "Entry",
    "Revise",
    "add",
    "append",
    "deadline_of",
    "default_deadline",
    "expire",
    "keep_deadline",
    "parse_integer",
    "persist",
    "read_and_time",
    "refuse",
    "remove",
    "revision_bytes",
    "same_deadline",
    "set_value",
    "value_of",
]

Entry: TypeAlias = bytes | tuple[bytes, int]
Revise: TypeAlias = Callable[[Entry | None, int, int | None], Entry | None]
#: A function that returns a new deadline, or None for none: deadline(entry, now_ns, default_ns).
Deadline: TypeAlias = Callable[[Entry | None, int, int | None], int | None]

I64_MAX, I64_MIN = 2**63 - 1, -(2**63)
INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
NOT_AN_INTEGER = "ERR value is not an integer or out of range"


def value_of(entry: Entry | None) -> bytes | None:
    """Return the value of an entry."""
    return entry[0] if isinstance(entry, tuple) else entry


def deadline_of(entry: Entry | None) -> int | None:
    """Return the deadline of an entry."""
    return entry[1] if isinstance(entry, tuple) else None


def revision_bytes(answer: Any) -> int:
    """Return the size of the values in an answer that has come: those before and after an update, or none."""
    try:
        result = answer.result()
    except Exception:
        return 0
    return sum(len(value_of(entry) or b"") for entry in result) if isinstance(result, tuple) else 0


def parse_integer(text: bytes, refusal: str = NOT_AN_INTEGER) -> int:
    """Return a signed 64-bit number, in the only form that Redis accepts.

    :raises CommandError: the text has another form, or the number is out of range
    """
    if INTEGER.fullmatch(text) and I64_MIN <= (number := int(text)) <= I64_MAX:
        return number
    raise CommandError(refusal)


def keep_deadline(entry: Entry | None, now_ns: int, default_ns: int | None) -> int | None:
    """Return the default deadline, or else the present one, as an increment over NATS does."""
    return deadline_of(entry) if default_ns is None else default_ns


def same_deadline(entry: Entry | None, now_ns: int, default_ns: int | None) -> int | None:
    """Return the present deadline."""
    return deadline_of(entry)


def default_deadline(entry: Entry | None, now_ns: int, default_ns: int | None) -> int | None:
    """Return the default deadline."""
    return default_ns


def set_value(value: bytes, is_present: bool | None, deadline: Deadline) -> Revise:
    """Return a revision that stores a value.

    :param is_present: True if the key must exist, False if it must be missing, None for neither
    """

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        if is_present is not None and is_present is (entry is None):
            return entry
        new_ns = deadline(entry, now_ns, default_ns)
        return value if new_ns is None else (value, new_ns)

    return revise


def append(suffix: bytes) -> Revise:
    """Return a revision that appends to a value."""

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        value = (value_of(entry) or b"") + suffix
        new_ns = keep_deadline(entry, now_ns, default_ns)
        return value if new_ns is None else (value, new_ns)

    return revise


def add(delta: int) -> Revise:
    """Return a revision that adds to a counter. It raises CommandError if the value or the sum is no signed 64-bit number."""

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        value = value_of(entry)
        total = parse_integer(b"0" if value is None else value) + delta
        if not I64_MIN <= total <= I64_MAX:
            raise CommandError("ERR increment or decrement would overflow")
        new_ns = keep_deadline(entry, now_ns, default_ns)
        return b"%d" % total if new_ns is None else (b"%d" % total, new_ns)

    return revise


def remove(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
    """Remove the key."""
    return None


def refuse(failure: CommandError) -> Revise:
    """Return a revision that raises an error if the key exists."""

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        if entry is not None:
            raise failure
        return None

    return revise


def persist(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
    """Remove the deadline."""
    return value_of(entry)


def read_and_time(deadline: Deadline) -> Revise:
    """Return a revision that gives an existing key a deadline, or none."""

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        value = value_of(entry)
        if value is None:
            return None
        new_ns = deadline(entry, now_ns, default_ns)
        return value if new_ns is None else (value, new_ns)

    return revise


def expire(deadline: Deadline, conditions: frozenset[bytes]) -> Revise:
    """Return a revision that gives an existing key a deadline, on some of the conditions NX, XX, GT and LT."""

    def revise(entry: Entry | None, now_ns: int, default_ns: int | None) -> Entry | None:
        value, old_ns = value_of(entry), deadline_of(entry)
        if value is None:
            return None
        new_ns = deadline(entry, now_ns, default_ns)
        assert new_ns is not None
        if (
            (b"NX" in conditions and old_ns is not None)
            or (b"XX" in conditions and old_ns is None)
            or (b"GT" in conditions and (old_ns is None or new_ns <= old_ns))
            or (b"LT" in conditions and old_ns is not None and new_ns >= old_ns)
        ):
            return entry
        return value, new_ns

    return revise
