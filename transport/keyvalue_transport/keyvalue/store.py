"""`wrpc:keyvalue/store`: the codec of its functions, and the handlers that a server calls.

    store.get        bucket: string, key: string                      -> result<option<list<u8>>, error>
    store.set        bucket: string, key: string, value: list<u8>     -> result<_, error>
    store.delete     bucket: string, key: string                      -> result<_, error>
    store.exists     bucket: string, key: string                      -> result<bool, error>
    store.list-keys  bucket: string, cursor: option<u64>              -> result<key-response, error>

    key-response     record { keys: list<string>, cursor: option<u64> }

The module `interface` defines the type `error`, and the code that all interfaces share. For speed, the handlers for get
and set inline their decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

from keyvalue_transport.keyvalue.interface import (
    BUCKET,
    KEY,
    NEVER,
    OK_UNIT,
    VALUE,
    AwaitedResult,
    AwaitedRun,
    AwaitedSuccess,
    ParameterLimits,
    encode_unit_result,
    error_result,
    function_handler,
    large_result,
    read_bucket_and_key,
    read_ok,
    short_names_end,
    slow_handler,
    split_run,
)
from keyvalue_transport.keyvalue.outcomes import NONE, OK, Tally, new_tally
from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import (
    LARGE_BYTES,
    SMALL_BYTES,
    Again,
    Answer,
    Caller,
    ForBegunRuns,
    ForRuns,
    Handler,
    HandlerResult,
    Pending,
    RunResults,
)
from keyvalue_transport.wrpc.values import (
    ONE_BYTE,
    U64_MAX,
    read_bool,
    read_bytes,
    read_tag,
    read_text,
    read_unsigned,
    write_length,
    write_unsigned,
)

__all__ = [
    "KEY_RESPONSE_BYTES",
    "STORE",
    "KeyResponse",
    "ReadsTogether",
    "SetsTogether",
    "StoreInterface",
    "decode_delete",
    "decode_exists",
    "decode_get",
    "decode_get_result",
    "decode_key_response",
    "decode_list_keys",
    "decode_set",
    "decode_truth_result",
    "encode_get_result",
    "encode_key_response",
    "encode_list_keys",
    "encode_set",
    "encode_truth_result",
    "store_handlers",
    "store_tallies",
]

#: The interface's name on the wire.
STORE = "wrpc:keyvalue/store@0.2.0-draft"

#: Maximum bytes of an encoded page of keys, without the keys and their lengths.
KEY_RESPONSE_BYTES = 17

OK_NONE = b"\x00\x00"
OK_SOME = b"\x00\x01"
OK_SOME_SHORT = tuple(OK_SOME + length for length in ONE_BYTE)
#: Gets of longer values are not made together.
RUN_VALUE_BYTES_MAX = SMALL_BYTES - 8
OK_FALSE = b"\x00\x00"
OK_TRUE = b"\x00\x01"


class KeyResponse(NamedTuple):
    """A page of keys, and the cursor of the next page. After the last page, the cursor is None."""

    keys: Sequence[bytes]
    cursor: int | None


class StoreInterface(Protocol):
    """The functions of `wrpc:keyvalue/store`. Each function may be async, and may raise an InterfaceError."""

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bytes | None]: ...

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]: ...

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bool]: ...

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Answer[KeyResponse]: ...


@runtime_checkable
class ReadsTogether(Protocol):
    """A store that can make many gets at once, which costs less than making them one by one."""

    def get_each(
        self, caller: Caller, bucket: bytes, keys: Sequence[bytes], /
    ) -> Sequence[bytes | None] | Again | None:
        """Return the values of keys, as one `get` for each does. Return None if they must be read one by one.

        Return Again if all of them must wait, and be read again.
        """
        ...


@runtime_checkable
class SetsTogether(Protocol):
    """A store that can make or begin many sets at once, which costs less than making or beginning them one by one.

    The keys of a call have one size, and so do the values.
    """

    def set_each(self, caller: Caller, bucket: bytes, keys: Sequence[bytes], values: Sequence[bytes], /) -> int:
        """Store values under keys of one bucket, in order, as one `set` for each does. Return the number of those stored.

        If it stops before the last, the others must be stored one by one.
        """
        ...

    @property
    def begin_sets(self) -> Callable[[Caller, bytes, Sequence[bytes], Sequence[bytes]], AwaitedRun | None] | None:
        """Return a function that begins to store values under keys of one bucket, in order.

        The function returns None if they must be stored one by one. If sets end at once, there is no function, and
        `set_each` makes them.
        """


# Parameters. A decoder returns the parameters, and the offset after the last parameter.


def decode_get(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes], int]:
    """Read the parameters bucket and key."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    return (bucket, key), at


decode_delete = decode_get
decode_exists = decode_get


def encode_set(bucket: bytes, key: bytes, value: bytes) -> bytes:
    """Encode the parameters of set."""
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key, write_length(len(value)), value))


def decode_set(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes, bytes], int]:
    """Read the parameters bucket, key and value."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    value, at = read_bytes(buffer, at, end, limits.value_bytes_max, VALUE)
    return (bucket, key, value), at


def encode_list_keys(bucket: bytes, cursor: int | None) -> bytes:
    """Encode the parameters of list-keys."""
    return write_length(len(bucket)) + bucket + _write_cursor(cursor)


def decode_list_keys(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, int | None], int]:
    """Read the parameters bucket and cursor."""
    bucket, at = read_text(buffer, at, end, limits.bucket_bytes_max, BUCKET)
    cursor, at = _read_cursor(buffer, at, end)
    return (bucket, cursor), at


# Results. If the result is an error, the decoder raises it.


def encode_get_result(value: bytes | None) -> bytes:
    """Encode a successful result<option<list<u8>>, error>."""
    if value is None:
        return OK_NONE
    return b"".join((OK_SOME, write_length(len(value)), value))


def decode_get_result(buffer: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    """Read a result<option<list<u8>>, error>. If the result is an error, raise it."""
    at = read_ok(buffer, at, end)
    some, at = read_tag(buffer, at, end, 2, "an option")
    if not some:
        return None, at
    return read_bytes(buffer, at, end, 2**32, VALUE)


def encode_truth_result(truth: bool) -> bytes:
    """Encode a successful result<bool, error>."""
    return OK_TRUE if truth else OK_FALSE


def decode_truth_result(buffer: bytes, at: int, end: int) -> tuple[bool, int]:
    """Read a result<bool, error>. If the result is an error, raise it."""
    return read_bool(buffer, read_ok(buffer, at, end), end)


def encode_key_response(response: KeyResponse) -> bytes:
    """Encode a successful result<key-response, error>."""
    keys, cursor = response
    parts = [OK_UNIT, write_length(len(keys))]
    append = parts.append
    for key in keys:  # short lengths are inlined for speed
        length = len(key)
        append(ONE_BYTE[length] if length < 128 else write_length(length))
        append(key)
    append(_write_cursor(cursor))
    return b"".join(parts)


def decode_key_response(buffer: bytes, at: int, end: int) -> tuple[KeyResponse, int]:
    """Read a result<key-response, error>. If the result is an error, raise it."""
    at = read_ok(buffer, at, end)
    count, at = read_unsigned(buffer, at, end, 32)
    if at + count + 1 > end:  # each key takes at least one byte for its length, and the cursor one byte for its tag
        raise NeedMoreBytes(at + count + 1)
    keys = []
    for _ in range(count):
        key, at = read_text(buffer, at, end, 2**32, KEY)
        keys.append(key)
    cursor, at = _read_cursor(buffer, at, end)
    return KeyResponse(keys, cursor), at


def _write_cursor(cursor: int | None) -> bytes:
    if cursor is None:
        return b"\x00"
    if not 0 <= cursor <= U64_MAX:
        raise ValueError(f"cursor: found {cursor}, allowed 0 to 2**64 - 1")
    return b"\x01" + write_unsigned(cursor)


def _read_cursor(buffer: bytes, at: int, end: int) -> tuple[int | None, int]:
    some, at = read_tag(buffer, at, end, 2, "an option")
    if not some:
        return None, at
    return read_unsigned(buffer, at, end, 64)


# Handlers.


def store_tallies() -> dict[str, Tally]:
    """Return a new tally for each function of `store`, keyed by the function's name on the wire."""
    return {name: new_tally() for name in ("get", "set", "delete", "exists", "list-keys")}


def store_handlers(
    store: StoreInterface, limits: ParameterLimits, tallies: Mapping[str, Tally] | None = None
) -> dict[str, Handler]:
    """Return a handler for each function of `store`, keyed by the function's name on the wire.

    :param tallies: the tallies that count the calls, by function name on the wire; a get or exists of a missing key
        counts as `none`
    """
    tally = tallies or store_tallies()
    get, set_ = _get_handler(store.get, limits, tally["get"]), _set_handler(store.set, limits, tally["set"])
    return {
        "get": _gets(store, get, limits, tally["get"]) if isinstance(store, ReadsTogether) else get,
        "set": _sets(store, set_, limits, tally["set"]) if isinstance(store, SetsTogether) else set_,
        "delete": function_handler(decode_delete, store.delete, encode_unit_result, NEVER, limits, tally["delete"]),
        "exists": function_handler(decode_exists, store.exists, encode_truth_result, False, limits, tally["exists"]),
        "list-keys": slow_handler(decode_list_keys, store.list_keys, encode_key_response, limits, tally["list-keys"]),
    }


def _get_handler(
    function: Callable[[Caller, bytes, bytes], Answer[bytes | None]], limits: ParameterLimits, tally: Tally
) -> Handler:
    """Return a handler for get that inlines `decode_get` and `encode_get_result` for speed."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        try:
            if (
                start < end
                and (bucket_bytes := buffer[start]) <= limits.short_bucket_bytes_max
                and (key_at := start + bucket_bytes + 2) <= end
                and (key_bytes := buffer[key_at - 1]) <= limits.short_key_bytes_max
                and key_at + key_bytes == end
                and (bucket := buffer[start + 1 : key_at - 1]).isascii()
                and (key := buffer[key_at:end]).isascii()
            ):
                value = function(caller, bucket, key)
            else:
                bucket, key, _ = read_bucket_and_key(buffer, start, end, limits)
                value = function(caller, bucket, key)
        except Exception as error:
            return error_result(error, tally)
        if type(value) is bytes:
            length = len(value)
            if length < 128:
                tally[OK] += 1
                return OK_SOME_SHORT[length] + value
            if length > LARGE_BYTES:
                return large_result(partial(encode_get_result, value), tally)
            tally[OK] += 1
            return encode_get_result(value)
        if value is None:
            tally[NONE] += 1
            return OK_NONE
        if type(value) is Again:
            return value
        return AwaitedResult(value, encode_get_result, None, tally)  # type: ignore[arg-type] # not bytes, so an Awaitable

    return handle


def _gets(store: ReadsTogether, handler: Handler, limits: ParameterLimits, tally: Tally) -> ForRuns:
    """Return a handler that makes gets together if they have the same bucket, and if keys and values are short."""

    def split(params: Sequence[bytes]) -> tuple[bytes, list[bytes]] | None:
        first, text = params[0], b"".join(params)
        try:
            key_at, at = short_names_end(first, limits)
        except IndexError:
            return None
        if not key_at or at != len(first) or not text.isascii():
            return None
        head = first[:key_at]  # with `split_run` in place of the next lines, a get takes 5 % more instructions
        keys = [each[key_at:] for each in params]
        return (head[1:-1], keys) if head + head.join(keys) == text else None

    def call_run(caller: Caller, split: tuple[bytes, list[bytes]]) -> RunResults | Again | None:
        try:
            values = store.get_each(caller, *split)
        except Exception:  # each `get` raises it again
            return None
        return values if values is None or type(values) is Again else _short_results(values, tally)

    return ForRuns(handler, split, call_run)


def _short_results(values: Sequence[bytes | None], tally: Tally) -> RunResults | None:
    """Return the encoded results of gets, and count them. Return None if one is too long for a run."""
    try:
        lengths = set(map(len, values))  # type: ignore[arg-type] # None raises the error
    except TypeError:
        lengths = {len(value) for value in values if value is not None}
    if lengths and max(lengths) > RUN_VALUE_BYTES_MAX:
        return None
    missing = values.count(None)
    tally[NONE] += missing
    tally[OK] += len(values) - missing
    if missing or len(lengths) > 1:
        return b"", [encode_get_result(value) for value in values]
    return OK_SOME + write_length(lengths.pop()), values  # type: ignore[return-value] # none is None


def _set_handler(
    function: Callable[[Caller, bytes, bytes, bytes], Answer[None]], limits: ParameterLimits, tally: Tally
) -> Handler:
    """Return a handler for set that inlines `decode_set` for speed."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        try:
            if (
                start < end
                and (bucket_bytes := buffer[start]) <= limits.short_bucket_bytes_max
                and (key_at := start + bucket_bytes + 2) < end
                and (key_bytes := buffer[key_at - 1]) <= limits.short_key_bytes_max
                and (at := key_at + key_bytes) < end
                and (bucket := buffer[start + 1 : key_at - 1]).isascii()
                and (key := buffer[key_at:at]).isascii()
            ):
                pass
            else:
                bucket, key, at = read_bucket_and_key(buffer, start, end, limits)
            if at < end and (length := buffer[at]) < 128 and length < end - at and length <= limits.value_bytes_max:
                value = buffer[at + 1 : at + 1 + length]
            else:
                value, _ = read_bytes(buffer, at, end, limits.value_bytes_max, VALUE)
            answer = function(caller, bucket, key, value)
        except Exception as error:
            return error_result(error, tally)
        if type(answer) is AwaitedSuccess:
            answer.tally = tally
            return answer
        if answer is not None:
            return AwaitedResult(answer, encode_unit_result, NEVER, tally)
        tally[OK] += 1
        return OK_UNIT

    return handle


def _sets(store: SetsTogether, handler: Handler, limits: ParameterLimits, tally: Tally) -> ForRuns | ForBegunRuns:
    """Return a handler that makes or begins sets together if their buckets and all sizes are the same, and names short."""
    begin_sets = store.begin_sets

    def begin_run(caller: Caller, params: Sequence[bytes]) -> AwaitedRun | None:
        split = _split_sets(params, limits)
        try:
            run = None if split is None or begin_sets is None else begin_sets(caller, *split)
        except Exception:  # each `set` raises it again
            return None
        if run is not None:
            run.tally = tally
        return run

    def call_run(caller: Caller, split: tuple[bytes, Sequence[bytes], Sequence[bytes]]) -> RunResults | None:
        try:
            stored = store.set_each(caller, *split)
        except Exception:  # each `set` raises it again
            return None
        tally[OK] += stored
        return (OK_UNIT, [b""] * stored) if stored else None

    if begin_sets is None:
        return ForRuns(handler, partial(_split_sets, limits=limits), call_run)
    return ForBegunRuns(handler, begin_run)


def _split_sets(
    params: Sequence[bytes], limits: ParameterLimits
) -> tuple[bytes, Sequence[bytes], Sequence[bytes]] | None:
    """Return the bucket, the keys and the values of sets whose parameters have one size, or None."""
    first = params[0]
    try:
        key_at, at = short_names_end(first, limits)
        value_bytes, value_at = read_unsigned(first, at, len(first), 32)
    except (IndexError, NeedMoreBytes, DecodeError):
        return None
    if not key_at or value_bytes > limits.value_bytes_max or value_at + value_bytes != len(first):
        return None
    split = split_run(params, key_at, at, f"{value_at - at}s{value_bytes}s")
    if split is None:
        return None
    bucket, keys, (sizes, values) = split
    return (bucket, keys, values) if sizes.count(sizes[0]) == len(params) else None
