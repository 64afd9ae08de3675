"""`wrpc:keyvalue/batch`: the codec of its functions, and the handlers that a server calls.

    batch.get-many     bucket: string, keys: list<string>
                       -> result<list<option<tuple<string, list<u8>>>>, error>
    batch.set-many     bucket: string, key-values: list<tuple<string, list<u8>>>
                       -> result<_, error>
    batch.delete-many  bucket: string, keys: list<string>
                       -> result<_, error>

The module `interface` defines the type `error`, and the code that all interfaces share.
Decoders check each count and length before they allocate memory for it. The handler for get-many checks the size of the
answer before it joins the parts. Otherwise, a small request that repeats a few keys could cause a huge answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Protocol

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import (
    BUCKET,
    KEY,
    NEVER,
    OK_UNIT,
    VALUE,
    AwaitedResult,
    ParameterLimits,
    encode_unit_result,
    error_result,
    function_handler,
    large_result,
    read_ok,
)
from keyvalue_transport.keyvalue.outcomes import OK, Tally, new_tally
from keyvalue_transport.wrpc.errors import DecodeError, Length, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import LARGE_BYTES, Answer, Caller, Handler, HandlerResult, NeedMoreElements
from keyvalue_transport.wrpc.values import (
    ONE_BYTE,
    check_text,
    read_bytes,
    read_tag,
    read_text,
    read_unsigned,
    write_length,
)

__all__ = [
    "BATCH",
    "READ_KEY_BYTES",
    "WRITTEN_KEY_BYTES",
    "BatchInterface",
    "batch_handlers",
    "batch_tallies",
    "decode_delete_many",
    "decode_get_many",
    "decode_get_many_result",
    "decode_set_many",
    "encode_bucket_keys",
    "encode_get_many_result",
    "encode_set_many",
]

#: The interface's name on the wire.
BATCH = "wrpc:keyvalue/batch@0.2.0-draft"

KEYS = Length("the batch has {} keys", "batch_keys_max")
#: The memory of a key while its call waits, besides its bytes. Measured with 1,000 keys, by the growth of the process: 60 bytes
#: for get-many; 150 for an atomic set-many or delete-many, and 240 and 360 if they are pipelined.
READ_KEY_BYTES, WRITTEN_KEY_BYTES = 64, 384
ABSENT = b"\x00"
SOME_SHORT = tuple(b"\x01" + length for length in ONE_BYTE)


class BatchInterface(Protocol):
    """The functions of `wrpc:keyvalue/batch`. Each function may be async, and may raise an InterfaceError."""

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[list[bytes | None]]:
        """Return the values in the order of `keys`, with None for each missing key."""

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[None]:
        """Store all entries. If a key occurs several times on the wire, `entries` has its last value."""

    def delete_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[None]: ...


# Parameters. A decoder returns the parameters, and the offset after the last parameter.


def encode_bucket_keys(bucket: bytes, keys: Collection[bytes]) -> bytes:
    """Encode the parameters of get-many and delete-many."""
    parts = [write_length(len(bucket)), bucket, write_length(len(keys))]
    for key in keys:
        parts += (write_length(len(key)), key)
    return b"".join(parts)


def decode_get_many(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, list[bytes]], int]:
    """Read the parameters bucket and keys."""
    start = at
    bucket, at = read_text(buffer, at, end, limits.bucket_bytes_max, BUCKET)
    count, at = _read_count(buffer, at, end, limits.batch_keys_max)
    key_bytes_max = limits.key_bytes_max
    short_max = min(127, key_bytes_max)
    keys: list[bytes] = []
    append, began = keys.append, at
    try:
        for _ in range(count):  # inlined for short keys (benchmark scenario: batch)
            if at < end and (length := buffer[at]) <= short_max and (stop := at + 1 + length) <= end:
                append(buffer[at + 1 : stop])
                at = stop
            else:
                key, at = read_bytes(buffer, at, end, key_bytes_max, KEY)
                append(key)
    except NeedMoreBytes as more:
        _check_texts(keys)
        raise _cut(more, at - start, count - len(keys), key_bytes_max, key_bytes_max) from None
    if not buffer[began:at].isascii():  # one-byte lengths are below 128, so short ASCII keys need no check
        _check_texts(keys)
    return (bucket, keys), at


decode_delete_many = decode_get_many


def encode_set_many(bucket: bytes, entries: Collection[tuple[bytes, bytes]]) -> bytes:
    """Encode the parameters of set-many."""
    parts = [write_length(len(bucket)), bucket, write_length(len(entries))]
    for key, value in entries:
        parts += (write_length(len(key)), key, write_length(len(value)), value)
    return b"".join(parts)


def decode_set_many(
    buffer: bytes, at: int, end: int, limits: ParameterLimits
) -> tuple[tuple[bytes, dict[bytes, bytes]], int]:
    """Read the bucket, and the values by key. If a key occurs several times, the last value is used."""
    start = at
    bucket, at = read_text(buffer, at, end, limits.bucket_bytes_max, BUCKET)
    count, at = _read_count(buffer, at, end, limits.batch_keys_max)
    key_bytes_max, value_bytes_max = limits.key_bytes_max, limits.value_bytes_max
    short_key_max, short_value_max = min(127, key_bytes_max), min(127, value_bytes_max)
    entries: dict[bytes, bytes] = {}
    unread = 2 * count  # keys and values
    try:
        while unread:  # inlined for short keys and values (benchmark scenario: batch)
            if at < end and (length := buffer[at]) <= short_key_max and (stop := at + 1 + length) <= end:
                key = buffer[at + 1 : stop]
                at = stop
            else:
                key, at = read_bytes(buffer, at, end, key_bytes_max, KEY)
            unread -= 1
            if at < end and (length := buffer[at]) <= short_value_max and (stop := at + 1 + length) <= end:
                entries[key] = buffer[at + 1 : stop]
                at = stop
            else:
                entries[key], at = read_bytes(buffer, at, end, value_bytes_max, VALUE)
            unread -= 1
    except NeedMoreBytes as more:
        _check_texts(entries)
        raise _cut(more, at - start, unread, key_bytes_max, value_bytes_max) from None
    if not b"".join(entries).isascii():
        _check_texts(entries)
    return (bucket, entries), at


def _read_count(buffer: bytes, at: int, end: int, keys_max: int) -> tuple[int, int]:
    count, at = read_unsigned(buffer, at, end, 32)
    if count > keys_max:
        raise LengthLimitError(KEYS, count, keys_max)
    return count, at


def _cut(more: NeedMoreBytes, at: int, unread: int, even_max: int, odd_max: int) -> NeedMoreElements:
    """Return the error for a list that is cut inside the string at `at`. Each unread string takes at least one byte."""
    return NeedMoreElements(more.end_min + unread - 1, _Measure(at, unread, even_max, odd_max))


class _Measure:
    """A measure that finds the end of a list of strings, or of pairs of a string and bytes.

    Invariant: the parameters have at least `at + unread` bytes.

    :param at: offset in the parameters of the next string's length, or of the end of the list
    :param unread: the number of strings and bytes values that have not been read yet
    :param even_max: limit for the length of the next string if `unread` is even
    :param odd_max: limit for the length of the next string if `unread` is odd
    """

    __slots__ = ("_at", "_bytes_max", "_unread")

    def __init__(self, at: int, unread: int, even_max: int, odd_max: int) -> None:
        self._at = at
        self._unread = unread
        self._bytes_max = even_max, odd_max

    def __call__(self, params: bytearray) -> int:
        at, unread, end = self._at, self._unread, len(params)
        try:
            while unread and at < end:
                length, behind = read_unsigned(params, at, end, 32)  # type: ignore[arg-type] # it only indexes single bytes
                if length > self._bytes_max[unread & 1]:
                    return end  # the decoder will raise the error
                at = behind + length
                unread -= 1
        except NeedMoreBytes:
            return end + unread
        except DecodeError:
            return end
        finally:
            self._at, self._unread = at, unread
        return at + unread


def _check_texts(texts: Iterable[bytes]) -> None:
    for text in texts:
        check_text(text)


# Results. If the result is an error, the decoder raises it.


def encode_get_many_result(keys: Sequence[bytes], values: Sequence[bytes | None], bytes_max: int) -> bytes:
    """Encode a successful result<list<option<tuple<string, list<u8>>>>, error>.

    :param values: the values in the order of the keys, with None for each missing key
    :param bytes_max: limit for the total size of the existing keys and their values in bytes
    :raises OtherError: the keys and values are above the limit
    """
    parts, _ = _get_many_result_parts(keys, values, bytes_max)
    return b"".join(parts)


def _get_many_result_parts(
    keys: Sequence[bytes], values: Sequence[bytes | None], bytes_max: int
) -> tuple[list[bytes], int]:
    """Return the parts of the encoded result, which share the values' memory, and the bytes of keys and values."""
    parts = [OK_UNIT, write_length(len(keys))]
    answer_bytes = 0
    for key, value in zip(keys, values, strict=True):  # inlines short lengths for speed
        if value is None:
            parts.append(ABSENT)
            continue
        key_bytes, value_bytes = len(key), len(value)
        answer_bytes += key_bytes + value_bytes
        parts += (
            SOME_SHORT[key_bytes] if key_bytes < 128 else b"\x01" + write_length(key_bytes),
            key,
            ONE_BYTE[value_bytes] if value_bytes < 128 else write_length(value_bytes),
            value,
        )
    if answer_bytes > bytes_max:
        raise OtherError(f"the answer is at least {answer_bytes} bytes; the limit is {bytes_max} (answer_bytes_max)")
    return parts, answer_bytes


def decode_get_many_result(buffer: bytes, at: int, end: int) -> tuple[list[tuple[bytes, bytes] | None], int]:
    """Read a result<list<option<tuple<string, list<u8>>>>, error>. If the result is an error, raise it."""
    at = read_ok(buffer, at, end)
    count, at = read_unsigned(buffer, at, end, 32)
    if count > end - at:  # an option takes at least one byte
        raise NeedMoreBytes(at + count)
    pairs: list[tuple[bytes, bytes] | None] = []
    for _ in range(count):
        some, at = read_tag(buffer, at, end, 2, "an option")
        if some:
            key, at = read_text(buffer, at, end, 2**32, KEY)
            value, at = read_bytes(buffer, at, end, 2**32, VALUE)
            pairs.append((key, value))
        else:
            pairs.append(None)
    return pairs, at


# Handlers.


def batch_tallies() -> dict[str, Tally]:
    """Return a new tally for each function of `batch`, keyed by the function's name on the wire."""
    return {name: new_tally() for name in ("get-many", "set-many", "delete-many")}


def batch_handlers(
    batch: BatchInterface, limits: ParameterLimits, tallies: Mapping[str, Tally] | None = None
) -> dict[str, Handler]:
    """Return a handler for each function of `batch`, keyed by the function's name on the wire.

    :param tallies: the tallies that count the calls, by function name on the wire; the outcome `none` never occurs
    """
    tally = tallies or batch_tallies()
    set_many = function_handler(decode_set_many, batch.set_many, encode_unit_result, NEVER, limits, tally["set-many"])
    delete_many = function_handler(
        decode_delete_many, batch.delete_many, encode_unit_result, NEVER, limits, tally["delete-many"]
    )
    return {
        "get-many": _counting_keys(_get_many_handler(batch, limits, tally["get-many"]), READ_KEY_BYTES),
        "set-many": _counting_keys(set_many, WRITTEN_KEY_BYTES),
        "delete-many": _counting_keys(delete_many, WRITTEN_KEY_BYTES),
    }


def _counting_keys(handler: Handler, key_bytes: int) -> Handler:
    """Return a handler whose answers to wait for count `key_bytes` for each key."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        result = handler(caller, buffer, start, end)
        if type(result) is AwaitedResult:
            bucket_bytes, at = read_unsigned(buffer, start, end, 32)
            result.extra_bytes = key_bytes * read_unsigned(buffer, at + bucket_bytes, end, 32)[0]
        return result

    return handle


def _get_many_handler(batch: BatchInterface, limits: ParameterLimits, tally: Tally) -> Handler:
    """Return a handler for get-many. It works like a `function_handler`, but its result also contains the keys."""
    get_many = batch.get_many

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        try:
            (bucket, keys), _ = decode_get_many(buffer, start, end, limits)
            answer = get_many(caller, bucket, keys)
            if isinstance(answer, Awaitable):
                encode = partial(encode_get_many_result, keys, bytes_max=limits.answer_bytes_max)
                return AwaitedResult(answer, encode, NEVER, tally)
            parts, answer_bytes = _get_many_result_parts(keys, answer, limits.answer_bytes_max)
        except Exception as error:
            return error_result(error, tally)
        if answer_bytes > LARGE_BYTES:
            return large_result(partial(b"".join, parts), tally)
        tally[OK] += 1
        return b"".join(parts)

    return handle
