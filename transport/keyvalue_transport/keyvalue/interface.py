"""`wrpc:keyvalue/store`: parameters and results of its functions, both ways.

    store.get        bucket: string, key: string                      -> result<option<list<u8>>, error>
    store.set        bucket: string, key: string, value: list<u8>     -> result<_, error>
    store.delete     bucket: string, key: string                      -> result<_, error>
    store.exists     bucket: string, key: string                      -> result<bool, error>
    store.list-keys  bucket: string, cursor: option<u64>              -> result<key-response, error>

    error            variant { 0 no-such-store, 1 access-denied, 2 other(string) }
    key-response     record { keys: list<string>, cursor: option<u64> }

Strings stay bytes on both sides (their UTF-8 is checked where they come in): a key is bytes in the engine too, and is never decoded.
What all interfaces of `wrpc:keyvalue` share is here too: the error, the limits of parameters, `function_handler`. The handlers are in
transport/keyvalue_transport/keyvalue/store.py, the other interfaces in transport/keyvalue_transport/keyvalue/atomics.py, transport/keyvalue_transport/keyvalue/batch.py and transport/keyvalue_transport/keyvalue/watcher.py.

To add a function: its line in the Protocol, its four codec functions, its handler in `keyvalue_transport.keyvalue.store.store_handlers`, its method in the client, and
in the service. tests/test_wit.py fails until the Protocol, the handlers and `wit/` say the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from keyvalue_transport.wrpc.errors import (
    AccessDeniedError,
    DecodeError,
    InterfaceError,
    LengthLimitError,
    NeedMoreBytes,
    NoSuchStoreError,
    OtherError,
)
from keyvalue_transport.wrpc.handler import (
    ACCESS_DENIED,
    FAILED,
    NO_SUCH_STORE,
    NONE,
    OK,
    OTHER,
    Answer,
    Caller,
    Handler,
    Tally,
    drop_answer,
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
    "BUCKET",
    "KEY",
    "NEVER",
    "OK_NONE",
    "OK_SOME_SHORT",
    "OK_UNIT",
    "STORE",
    "VALUE",
    "KeyResponse",
    "ParameterLimits",
    "StoreInterface",
    "Waited",
    "decode_delete",
    "decode_exists",
    "decode_get",
    "decode_get_result",
    "decode_key_response",
    "decode_list_keys",
    "decode_set",
    "decode_truth_result",
    "decode_unit_result",
    "encode_bucket_key",
    "encode_error",
    "encode_get_result",
    "encode_key_response",
    "encode_list_keys",
    "encode_set",
    "encode_truth_result",
    "encode_unit_result",
    "function_handler",
    "read_bucket_and_key",
    "read_ok",
    "refused",
]

#: The instance that serves `store`.
STORE = "wrpc:keyvalue/store@0.2.0-draft"

T = TypeVar("T")
P = TypeVar("P")

OK_UNIT = b"\x00"
OK_NONE = b"\x00\x00"
OK_SOME = b"\x00\x01"
OK_SOME_SHORT = tuple(OK_SOME + length for length in ONE_BYTE)
OK_FALSE = b"\x00\x00"
OK_TRUE = b"\x00\x01"

BUCKET = "bucket name in bytes"
KEY = "key in bytes"
VALUE = "value in bytes"
#: Of an error's message. A longer one is cut where it is written, and refused where it is read.
MESSAGE_BYTES_MAX = 64 * 1024


class KeyResponse(NamedTuple):
    """A page of keys, and the cursor of the next page (None: no key is left)."""

    keys: Sequence[bytes]
    cursor: int | None


@dataclass(slots=True)
class ParameterLimits:
    """What a reader of parameters accepts. Handlers read it at each call: it may change while a server runs."""

    bucket_bytes_max: int = 1024
    key_bytes_max: int = 64 * 1024
    value_bytes_max: int = 16 * 1024 * 1024
    batch_keys_max: int = 10_000
    answer_bytes_max: int = 32 * 1024 * 1024  # keys and values that get-many answers with


class StoreInterface(Protocol):
    """`wrpc:keyvalue/store`. Each function may be a coroutine function. Errors are raised: InterfaceError and its kinds."""

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bytes | None]: ...

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...

    def delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[None]: ...

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bool]: ...

    def list_keys(self, caller: Caller, bucket: bytes, cursor: int | None, /) -> Answer[KeyResponse]: ...


# Parameters. Decoders return them with the offset behind the last.


def encode_bucket_key(bucket: bytes, key: bytes) -> bytes:
    """Parameters of get, delete and exists."""
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key))


def read_bucket_and_key(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[bytes, bytes, int]:
    """`read_text` twice: what the parameters of most functions begin with. Pays: bench end-to-end get."""
    if at < end:  # the common case first: both below 128 bytes, in ASCII, and there
        length = buffer[at]
        bucket_end = at + 1 + length
        if length < 128 and bucket_end < end and length <= limits.bucket_bytes_max:
            length = buffer[bucket_end]
            key_end = bucket_end + 1 + length
            if length < 128 and key_end <= end and length <= limits.key_bytes_max:
                bucket, key = buffer[at + 1 : bucket_end], buffer[bucket_end + 1 : key_end]
                if bucket.isascii() and key.isascii():
                    return bucket, key, key_end
    bucket, at = read_text(buffer, at, end, limits.bucket_bytes_max, BUCKET)
    key, at = read_text(buffer, at, end, limits.key_bytes_max, KEY)
    return bucket, key, at


def decode_get(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes], int]:
    """Bucket and key."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    return (bucket, key), at


decode_delete = decode_get
decode_exists = decode_get


def encode_set(bucket: bytes, key: bytes, value: bytes) -> bytes:
    """Parameters of set."""
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key, write_length(len(value)), value))


def decode_set(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, bytes, bytes], int]:
    """Bucket, key and value."""
    bucket, key, at = read_bucket_and_key(buffer, at, end, limits)
    value, at = read_bytes(buffer, at, end, limits.value_bytes_max, VALUE)
    return (bucket, key, value), at


def encode_list_keys(bucket: bytes, cursor: int | None) -> bytes:
    """Parameters of list-keys."""
    return write_length(len(bucket)) + bucket + _write_cursor(cursor)


def decode_list_keys(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[tuple[bytes, int | None], int]:
    """Bucket and cursor."""
    bucket, at = read_text(buffer, at, end, limits.bucket_bytes_max, BUCKET)
    cursor, at = _read_cursor(buffer, at, end)
    return (bucket, cursor), at


# Results. Decoders raise the interface's error where the result is one.


def encode_error(error: InterfaceError) -> bytes:
    """A result that is an error; kinds that the variant does not know become `other`."""
    if isinstance(error, NoSuchStoreError):
        return b"\x01\x00"
    if isinstance(error, AccessDeniedError):
        return b"\x01\x01"
    message = str(error).encode(errors="replace")
    if len(message) > MESSAGE_BYTES_MAX:
        message = message[:MESSAGE_BYTES_MAX].decode(errors="ignore").encode()
    return b"".join((b"\x01\x02", write_length(len(message)), message))


def encode_get_result(value: bytes | None) -> bytes:
    """result<option<list<u8>>, error> that is ok."""
    if value is None:
        return OK_NONE
    return b"".join((OK_SOME, write_length(len(value)), value))


def decode_get_result(buffer: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    """result<option<list<u8>>, error>."""
    at = read_ok(buffer, at, end)
    some, at = read_tag(buffer, at, end, 2, "an option")
    if not some:
        return None, at
    return read_bytes(buffer, at, end, 2**32, VALUE)


def encode_unit_result(value: None) -> bytes:
    """result<_, error> that is ok."""
    return OK_UNIT


def decode_unit_result(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """result<_, error>."""
    return None, read_ok(buffer, at, end)


def encode_truth_result(truth: bool) -> bytes:
    """result<bool, error> that is ok."""
    return OK_TRUE if truth else OK_FALSE


def decode_truth_result(buffer: bytes, at: int, end: int) -> tuple[bool, int]:
    """result<bool, error>."""
    return read_bool(buffer, read_ok(buffer, at, end), end)


def encode_key_response(response: KeyResponse) -> bytes:
    """result<key-response, error> that is ok."""
    keys, cursor = response
    parts = [OK_UNIT, write_length(len(keys))]
    append = parts.append
    for key in keys:  # pays: bench end-to-end list-keys
        length = len(key)
        append(ONE_BYTE[length] if length < 128 else write_length(length))
        append(key)
    append(_write_cursor(cursor))
    return b"".join(parts)


def decode_key_response(buffer: bytes, at: int, end: int) -> tuple[KeyResponse, int]:
    """result<key-response, error>."""
    at = read_ok(buffer, at, end)
    count, at = read_unsigned(buffer, at, end, 32)
    if at + count + 1 > end:  # a key takes at least its length, and the cursor its tag
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


def read_ok(buffer: bytes, at: int, end: int) -> int:
    """Where the value of a result begins that is ok.

    :raises InterfaceError: it is none
    """
    failed, at = read_tag(buffer, at, end, 2, "a result")
    if not failed:
        return at
    kind, at = read_tag(buffer, at, end, 3, "an error")
    if kind == 0:
        raise NoSuchStoreError
    if kind == 1:
        raise AccessDeniedError
    try:
        message, at = read_bytes(buffer, at, end, MESSAGE_BYTES_MAX, "error message in bytes")
    except LengthLimitError as error:
        raise DecodeError(str(error)) from None
    raise OtherError(message.decode(errors="replace"))


# Handlers.

#: What no function returns: the `missing` of functions whose answer never says that a key is not there.
NEVER = object()
#: Types of values, for telling them from what must be waited for at the price of a look-up.
VALUES = frozenset({bytes, bool, int, type(None), KeyResponse})


def function_handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[P, ...], int]],
    function: Callable[..., Answer[T]],
    encode: Callable[[T], bytes],
    missing: object,
    limits: ParameterLimits,
    tally: Tally,
) -> Handler:
    """Decode, call, encode. Parameters are decoded before a coroutine function is called, so that what is cut is seen at once."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        try:
            parameters, _ = decode(buffer, start, end, limits)
            answer = function(caller, *parameters)
        except (LengthLimitError, InterfaceError) as error:
            return refused(error, tally)
        except NeedMoreBytes:
            raise
        except Exception:
            tally[FAILED] += 1
            raise
        if type(answer) not in VALUES and isinstance(answer, Awaitable):
            return Waited(answer, encode, missing, tally)
        tally[NONE if answer is missing else OK] += 1
        return encode(answer)  # type: ignore[arg-type] # no Awaitable, so a T

    return handle


class Waited(Generic[T]):
    """An answer that must be waited for, then is what a handler's is. `close` drops it unawaited."""

    __slots__ = ("_answer", "_encode", "_missing", "_tally")

    def __init__(self, answer: Awaitable[T], encode: Callable[[T], bytes], missing: object, tally: Tally) -> None:
        self._answer = answer
        self._encode = encode
        self._missing = missing
        self._tally = tally

    def __await__(self) -> Generator[object, None, bytes]:
        try:
            value = yield from self._answer.__await__()
            result = self._encode(value)
        except InterfaceError as error:
            return refused(error, self._tally)
        except Exception:
            self._tally[FAILED] += 1
            raise
        self._tally[NONE if value is self._missing else OK] += 1
        return result

    def close(self) -> None:
        """Drop the answer."""
        drop_answer(self._answer)


def refused(error: InterfaceError | LengthLimitError, tally: Tally) -> bytes:
    """The result that is an error, counted."""
    if isinstance(error, NoSuchStoreError):
        tally[NO_SUCH_STORE] += 1
    elif isinstance(error, AccessDeniedError):
        tally[ACCESS_DENIED] += 1
    else:
        tally[OTHER] += 1
    return encode_error(error if isinstance(error, InterfaceError) else OtherError(str(error)))
