"""`wrpc:keyvalue/atomics`: the codec of its function, and the handler that a server calls.

    atomics.increment  bucket: string, key: string, delta: u64  -> result<u64, error>

The module `interface` defines the type `error`, and the code that all interfaces share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol, TypeAlias, runtime_checkable

from keyvalue_transport.keyvalue.interface import (
    NEVER,
    OK_UNIT,
    ParameterLimits,
    function_handler,
    read_bucket_and_key,
    read_ok,
    short_names_end,
    split_run,
)
from keyvalue_transport.keyvalue.outcomes import OK, Tally, new_tally
from keyvalue_transport.wrpc.handler import Answer, Caller, ForRuns, Handler, RunResults
from keyvalue_transport.wrpc.values import U64_MAX, read_unsigned, write_length, write_unsigned

__all__ = [
    "ATOMICS",
    "AtomicsInterface",
    "IncrementEach",
    "IncrementsTogether",
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


#: Adds to counters of one bucket, in order, as one `increment` for each does: increment_each(caller, bucket, keys,
#: deltas). It returns the sums. If it stops before the last, the other increments must be made one by one.
IncrementEach: TypeAlias = Callable[[Caller, bytes, Sequence[bytes], Sequence[int]], Sequence[int]]


@runtime_checkable
class IncrementsTogether(Protocol):
    """A store that can make many increments at once, which costs less than making them one by one."""

    @property
    def increment_each(self) -> IncrementEach | None:
        """Return a function that makes increments, or None if increments do not end at once."""
        ...


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
    tally = (tallies or atomics_tallies())["increment"]
    handler = function_handler(decode_increment, atomics.increment, encode_increment_result, NEVER, limits, tally)
    increment_each = atomics.increment_each if isinstance(atomics, IncrementsTogether) else None
    return {"increment": handler if increment_each is None else _increments(increment_each, handler, limits, tally)}


def _increments(increment_each: IncrementEach, handler: Handler, limits: ParameterLimits, tally: Tally) -> ForRuns:
    """Return a handler that makes increments together if their buckets and sizes are the same, and names and deltas short."""

    def call_run(caller: Caller, split: tuple[bytes, Sequence[bytes], Sequence[int]]) -> RunResults | None:
        try:
            sums = increment_each(caller, *split)
        except Exception:  # each `increment` raises it again
            return None
        tally[OK] += len(sums)
        return (b"", [OK_UNIT + write_unsigned(each) for each in sums]) if sums else None

    return ForRuns(handler, partial(_split_increments, limits=limits), call_run)


def _split_increments(
    params: Sequence[bytes], limits: ParameterLimits
) -> tuple[bytes, Sequence[bytes], Sequence[int]] | None:
    """Return the bucket, the keys and the deltas of increments whose parameters have one size, or None."""
    try:
        key_at, at = short_names_end(params[0], limits)
    except IndexError:
        return None
    if not key_at or at + 1 != len(params[0]):  # a delta below 128 is one byte
        return None
    split = split_run(params, key_at, at, "B")
    if split is None:
        return None
    bucket, keys, (deltas,) = split
    return (bucket, keys, deltas) if max(deltas) < 128 else None
