"""`wrpc:keyvalue/watcher`: parameters of its functions, both ways, and the handlers of one who is told of changes.

    watcher.on-set     bucket: string, key: string, value: list<u8>
    watcher.on-delete  bucket: string, key: string

The provider is the caller here, and a component the server. The functions have no result: the empty message that closes the result stream
is all that comes, from one who was told as from one who failed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_bucket_key
from keyvalue_transport.keyvalue.store import decode_delete, decode_set, encode_set
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError
from keyvalue_transport.wrpc.handler import Answer, Caller, Handler, Pending

__all__ = [
    "WATCHER",
    "WatcherInterface",
    "decode_nothing",
    "decode_on_delete",
    "decode_on_set",
    "encode_on_delete",
    "encode_on_set",
    "watcher_handlers",
]

#: The instance that a component serves `watcher` under.
WATCHER = "wrpc:keyvalue/watcher@0.2.0-draft"

#: The result of a function that has none.
NOTHING = b""


class WatcherInterface(Protocol):
    """`wrpc:keyvalue/watcher`. Each function may be a coroutine function. There is no error that the caller could be told."""

    def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...

    def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]: ...


#: Parameters of on-set: those of `store.set`.
encode_on_set = encode_set
decode_on_set = decode_set

#: Parameters of on-delete: those of `store.delete`.
encode_on_delete = encode_bucket_key
decode_on_delete = decode_delete


def decode_nothing(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """The result of a function that has none."""
    return None, at


def watcher_handlers(watcher: WatcherInterface, limits: ParameterLimits) -> dict[str, Handler]:
    """A handler for each function of `watcher`, by its name on the wire."""
    return {
        "on-set": _handler(decode_on_set, watcher.on_set, limits),
        "on-delete": _handler(decode_on_delete, watcher.on_delete, limits),
    }


def _handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[bytes, ...], int]],
    function: Callable[..., Answer[None]],
    limits: ParameterLimits,
) -> Handler:
    """Decode and call."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        try:
            parameters, _ = decode(buffer, start, end, limits)
        except LengthLimitError as error:
            raise DecodeError(str(error)) from None  # no result could say it
        answer = function(caller, *parameters)
        return NOTHING if answer is None else _WaitedForNothing(answer)

    return handle


class _WaitedForNothing(NamedTuple):
    """An answer that must be waited for, and then is no result."""

    answer: Awaitable[object]

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return no bytes. Raise what the function raised."""
        read()
        return NOTHING
