"""`wrpc:keyvalue/atomics`: the codec of its function, and the handler that a server calls.

    atomics.increment  bucket: string, key: string, delta: u64  -> result<u64, error>

The module `interface` defines the type `error`, and the code that all interfaces share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from keyvalue_transport.keyvalue.interface import (
    NEVER,
    OK_UNIT,
    ParameterLimits,
    function_handler,
    read_bucket_and_key,
    read_ok,
)
from keyvalue_transport.keyvalue.outcomes import Tally, new_tally
from keyvalue_transport.wrpc.handler import Answer, Caller, Handler
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
    return {
        "increment": function_handler(
            decode_increment, atomics.increment, encode_increment_result, NEVER, limits, tally["increment"]
        )
    }
