"""`wrpc:keyvalue/atomics`: the codec of its function, and the handler that a server calls.

    atomics.increment  bucket: string, key: string, delta: u64  -> result<u64, error>

The module `interface` defines the type `error`, and the code that all interfaces share. For speed, the handler inlines
its decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from keyvalue_transport.keyvalue.interface import (
    NEVER,
    OK_UNIT,
    AwaitedResult,
    ParameterLimits,
    error_result,
    read_bucket_and_key,
    read_ok,
)
from keyvalue_transport.keyvalue.outcomes import OK, Tally, new_tally
from keyvalue_transport.wrpc.handler import Answer, Caller, Handler, HandlerResult
from keyvalue_transport.wrpc.values import U64_MAX, read_unsigned, write_length, write_unsigned

__all__ = [
    "ATOMICS",
    "AtomicsInterface",
    "atomics_handlers",
    "atomics_tallies",
    "decode_increment",
    "decode_increment_result",
    "encode_increment",
    "encode_increment_result",
]

#: The interface's name on the wire.
ATOMICS = "wrpc:keyvalue/atomics@0.2.0-draft"


class AtomicsInterface(Protocol):
    """The functions of `wrpc:keyvalue/atomics`. Each function may be async, and may raise an InterfaceError."""

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> Answer[int]: ...


def encode_increment(bucket: bytes, key: bytes, delta: int) -> bytes:
    """Encode the parameters of increment."""
    if not 0 <= delta <= U64_MAX:
        raise ValueError(f"delta: found {delta}, allowed 0 to 2**64 - 1")
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key, write_unsigned(delta)))


def decode_increment(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes, int], int]:
    """Read the parameters bucket, key and delta."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    if at < end and buffer[at] < 128:  # a delta below 128 is one byte
        return (bucket, key, buffer[at]), at + 1
    delta, at = read_unsigned(buffer, at, end, 64)
    return (bucket, key, delta), at


def encode_increment_result(number: int) -> bytes:
    """Encode a successful result<u64, error>."""
    return OK_UNIT + write_unsigned(number)


def decode_increment_result(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    """Read a result<u64, error>. If the result is an error, raise it."""
    return read_unsigned(buffer, read_ok(buffer, at, end), end, 64)


def atomics_tallies() -> dict[str, Tally]:
    """Return a new tally for each function of `atomics`, keyed by the function's name on the wire."""
    return {"increment": new_tally()}


def atomics_handlers(
    atomics: AtomicsInterface, limits: ParameterLimits, tallies: Mapping[str, Tally] | None = None
) -> dict[str, Handler]:
    """Return a handler for each function of `atomics`, keyed by the function's name on the wire.

    :param tallies: the tallies that count the calls, by function name on the wire
    """
    tally = tallies or atomics_tallies()
    return {"increment": _increment_handler(atomics.increment, limits, tally["increment"])}


def _increment_handler(
    function: Callable[[Caller, bytes, bytes, int], Answer[int]], limits: ParameterLimits, tally: Tally
) -> Handler:
    """Return a handler for increment that inlines `decode_increment` for speed."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        try:
            if (
                start < end
                and (bucket_bytes := buffer[start]) <= limits.short_bucket_bytes_max
                and (key_at := start + bucket_bytes + 2) < end
                and (key_bytes := buffer[key_at - 1]) <= limits.short_key_bytes_max
                and (at := key_at + key_bytes) < end
                and (delta := buffer[at]) < 128
                and (bucket := buffer[start + 1 : key_at - 1]).isascii()
                and (key := buffer[key_at:at]).isascii()
            ):
                answer = function(caller, bucket, key, delta)
            else:
                (bucket, key, delta), _ = decode_increment(buffer, start, end, limits)
                answer = function(caller, bucket, key, delta)
            if type(answer) is not int:
                return AwaitedResult(answer, encode_increment_result, NEVER, tally)  # type: ignore[arg-type]
            result = OK_UNIT + write_unsigned(answer)
        except Exception as error:
            return error_result(error, tally)
        tally[OK] += 1
        return result

    return handle
