"""The arguments of a client's calls: checked, and turned into the bytes and numbers that the encoders take.

Wrong types raise TypeError before anything is encoded. Otherwise, the wire would carry something else than the caller
meant: an array of 3 numbers has 24 bytes but the length 3, and the text "visits" is also an iterable of 6 keys.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from operator import index
from typing import Protocol

__all__ = ["Buffer", "as_bytes", "as_entries", "as_keys", "as_number", "as_text"]

#: Names of fields in the format of a buffer.
FIELD_NAMES = re.compile(":[^:]*:")
#: The format of a Python object in a buffer.
POINTER = "O"


class Buffer(Protocol):
    """An object whose bytes can be read, such as bytes, bytearray, memoryview or an array (PEP 688)."""

    def __buffer__(self, flags: int, /) -> memoryview: ...


def as_text(what: str, text: str | bytes) -> bytes:
    """Return a bucket name or a key as bytes.

    :raises TypeError: the text is neither str nor bytes
    """
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, bytes):
        return text
    raise TypeError(f"{what} is {_kind(text)}; expected str or bytes")


def as_bytes(what: str, value: Buffer) -> bytes:
    """Return a copy of all bytes of a buffer, in C order. A bytes object is returned as it is.

    >>> as_bytes("value", memoryview(b"abcd").cast("H")[:1])
    b'ab'

    :raises TypeError: the value is not a buffer, or contains Python objects
    """
    if type(value) is bytes:
        return value
    try:
        view = memoryview(value)
    except TypeError:
        hint = "; encode it first" if isinstance(value, str) else ""
        raise TypeError(f"{what} is {_kind(value)}; expected bytes or another buffer{hint}") from None
    with view:
        if POINTER in FIELD_NAMES.sub("", view.format):
            raise TypeError(f"{what} is {_kind(value)} of Python objects; expected bytes or a buffer of plain data")
        return view.tobytes()


def as_keys(keys: Iterable[str | bytes]) -> list[bytes]:
    """Return several keys as bytes.

    :raises TypeError: `keys` is a single text or not iterable, or one of the keys is neither str nor bytes
    """
    if isinstance(keys, str | bytes | bytearray | memoryview) or not isinstance(keys, Iterable):
        raise TypeError(f"keys is {_kind(keys)}; expected a list of keys")
    return [as_text("a key", key) for key in keys]


def as_entries(entries: Mapping[str, Buffer] | Mapping[bytes, Buffer]) -> list[tuple[bytes, bytes]]:
    """Return keys and values as bytes.

    :raises TypeError: `entries` is not a mapping, or a key or a value has a wrong type
    """
    if not isinstance(entries, Mapping):
        raise TypeError(f"entries is {_kind(entries)}; expected a mapping of keys to values")
    return [(as_text("a key", key), as_bytes(f"the value of {key!r}", value)) for key, value in entries.items()]


def as_number(what: str, number: int) -> int:
    """Return an int, also for the integers of other libraries.

    :raises TypeError: the number is not an integer
    """
    try:
        return index(number)
    except TypeError:
        raise TypeError(f"{what} is {_kind(number)}; expected an int") from None


def _kind(found: object) -> str:
    """Name the type of an argument."""
    return "None" if found is None else f"of the type {type(found).__name__}"
