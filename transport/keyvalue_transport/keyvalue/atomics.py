"""`wrpc:keyvalue/atomics`: parameters and results of its function, both ways, and the handler a server calls.

    atomics.increment  bucket: string, key: string, delta: u64  -> result<u64, error>

The error, and what else all interfaces share, is in transport/keyvalue_transport/keyvalue/interface.py.
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

#: The instance that serves `atomics`.
ATOMICS = "wrpc:keyvalue/atomics@0.2.0-draft"


class AtomicsInterface(Protocol):
    """`wrpc:keyvalue/atomics`. Each function may be a coroutine function. Errors are raised: InterfaceError and its kinds."""

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> Answer[int]: ...


def encode_increment(bucket: bytes, key: bytes, delta: int) -> bytes:
    """Parameters of increment."""
    if not 0 <= delta <= U64_MAX:
        raise ValueError(f"delta: found {delta}, allowed 0 to 2**64 - 1")
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key, write_unsigned(delta)))


def decode_increment(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes, int], int]:
    """Bucket, key and delta."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    if at < end and buffer[at] < 128:  # a step of one is one byte
        return (bucket, key, buffer[at]), at + 1
    delta, at = read_unsigned(buffer, at, end, 64)
    return (bucket, key, delta), at


def encode_increment_result(number: int) -> bytes:
    """result<u64, error> that is ok."""
    return OK_UNIT + write_unsigned(number)


def decode_increment_result(buffer: bytes, at: int, end: int) -> tuple[int, int]:
    """result<u64, error>."""
    return read_unsigned(buffer, read_ok(buffer, at, end), end, 64)


def atomics_tallies() -> dict[str, Tally]:
    """A tally for each function of `atomics`, by its name on the wire."""
    return {"increment": new_tally()}


def atomics_handlers(
    atomics: AtomicsInterface, limits: ParameterLimits, tallies: Mapping[str, Tally] | None = None
) -> dict[str, Handler]:
    """A handler for each function of `atomics`, by its name on the wire.

    :param tallies: by the same names; each call is counted
    """
    tally = tallies or atomics_tallies()
    return {
        "increment": function_handler(
            decode_increment, atomics.increment, encode_increment_result, NEVER, limits, tally["increment"]
        )
    }
