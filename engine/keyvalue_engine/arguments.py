"""Values of callers, converted to types that the store can keep. Other types raise TypeError.

Hot code tests for the usual type before it calls these functions, because the call takes longer than the test.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

__all__ = ["own_bytes", "own_int", "own_keys"]


def own_bytes(value: object, name: str) -> bytes:
    """Return a bytes object with the content of `value`. The caller cannot change the result later.

    >>> own_bytes(bytearray(b"abc"), "key")
    b'abc'
    >>> own_bytes("abc", "key")
    Traceback (most recent call last):
    TypeError: key: found str, allowed bytes or a buffer

    :param value: bytes, or an object that supports the buffer protocol, whose bytes are copied in C order
    :param name: the name of the value in the error message
    :raises TypeError: `value` has another type
    """
    if type(value) is bytes:
        return value
    try:
        view = memoryview(value)  # type: ignore[arg-type]  # the buffer protocol has no type before Python 3.12
    except TypeError:
        raise TypeError(f"{name}: found {type(value).__name__}, allowed bytes or a buffer") from None
    with view:
        return view.tobytes()


def own_int(value: object, name: str) -> int:
    """Return an int object equal to `value`.

    >>> own_int(True, "delta"), own_int(0.5, "delta")
    Traceback (most recent call last):
    TypeError: delta: found float, allowed int

    :param value: an int, or an object with `__index__`, such as a NumPy integer
    :param name: the name of the value in the error message
    :raises TypeError: `value` has another type
    """
    if type(value) is int:
        return value
    try:
        return int.__index__(index(value))  # type: ignore[arg-type]  # `index` refuses other types
    except TypeError:
        raise TypeError(f"{name}: found {type(value).__name__}, allowed int") from None


def own_keys(keys: Iterable[bytes]) -> list[bytes]:
    """Return the keys as a list of bytes objects, which the caller cannot change later."""
    return [key if type(key) is bytes else own_bytes(key, "key") for key in keys]
