"""`wrpc:keyvalue/watcher`: the codec of its functions, and the handlers of a watching component.

    watcher.on-set     bucket: string, key: string, value: list<u8>
    watcher.on-delete  bucket: string, key: string

For this interface, the provider is the caller, and a component is the server. The functions have no result. The
component answers only with the empty message that ends the invocation. The answer is the same for success and
failure.
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

#: The interface's name on the wire.
WATCHER = "wrpc:keyvalue/watcher@0.2.0-draft"

#: The encoded result of a function without a result.
NOTHING = b""


class WatcherInterface(Protocol):
    """The functions of `wrpc:keyvalue/watcher`. Each function may be async, but cannot return an error."""

    def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...

    def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]: ...


#: on-set has the same parameters as `store.set`.
encode_on_set = encode_set
decode_on_set = decode_set

#: on-delete has the same parameters as `store.delete`.
encode_on_delete = encode_bucket_key
decode_on_delete = decode_delete


def decode_nothing(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """Return None and the unchanged offset, because the function has no result."""
    return None, at


def watcher_handlers(watcher: WatcherInterface, limits: ParameterLimits) -> dict[str, Handler]:
    """Return a handler for each function of `watcher`, keyed by the function's name on the wire."""
    return {
        "on-set": _handler(decode_on_set, watcher.on_set, limits),
        "on-delete": _handler(decode_on_delete, watcher.on_delete, limits),
    }


def _handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[bytes, ...], int]],
    function: Callable[..., Answer[None]],
    limits: ParameterLimits,
) -> Handler:
    """Return a handler that decodes the parameters and calls the function."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        try:
            parameters, _ = decode(buffer, start, end, limits)
        except LengthLimitError as error:
            raise DecodeError(str(error)) from None  # the function has no result that could hold the error
        answer = function(caller, *parameters)
        return NOTHING if answer is None else _WaitedForNothing(answer)

    return handle


class _WaitedForNothing(NamedTuple):
    """The pending answer of a function without a result."""

    answer: Awaitable[object]

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return no bytes, or raise the function's error."""
        read()
        return NOTHING
