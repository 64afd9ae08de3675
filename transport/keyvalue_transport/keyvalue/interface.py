"""What the interfaces of `wrpc:keyvalue` share: the limits of parameters, the error in a result, and the general handler.

    error  variant { 0 no-such-store, 1 access-denied, 2 other(string) }

Each interface has a module of its own beside this one, with its Protocol, its codec and its handlers: store.py, atomics.py, batch.py, watcher.py.
Strings stay bytes on both sides (their UTF-8 is checked where they come in): a key is bytes in the engine too, and is never decoded.

To add a function, edit the module of its interface: a line in the Protocol, the codec of parameters and result in both directions, and the handler.
Then add the client's method (nats/client.py) and the service's. tests/test_wit.py fails until Protocol, handlers, client and `wit/` agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.outcomes import ACCESS_DENIED, FAILED, NO_SUCH_STORE, NONE, OK, OTHER, Tally
from keyvalue_transport.wrpc.errors import DecodeError, Length, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import Answer, Caller, Derived, Handler, Pending
from keyvalue_transport.wrpc.values import read_bytes, read_tag, read_text, write_length

__all__ = [
    "BUCKET",
    "KEY",
    "NEVER",
    "OK_UNIT",
    "VALUE",
    "AwaitedResult",
    "ParameterLimits",
    "decode_unit_result",
    "encode_bucket_key",
    "encode_error",
    "encode_unit_result",
    "error_result",
    "function_handler",
    "read_bucket_and_key",
    "read_ok",
]

T = TypeVar("T")
P = TypeVar("P")

OK_UNIT = b"\x00"

BUCKET = Length("bucket name is {} bytes", "bucket_name_bytes_max")
KEY = Length("key is {} bytes", "key_bytes_max")
VALUE = Length("value is {} bytes", "value_bytes_max")
MESSAGE = Length("error message is {} bytes")
#: Of an error's message. A longer one is cut where it is written, and refused where it is read.
MESSAGE_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class ParameterLimits:
    """What a reader of parameters accepts. Handlers read it at each call: it may change while a server runs.

    :ivar short_bucket_bytes_max: the longest name whose length takes one byte, for handlers that try the common case first; so `short_key_bytes_max`
    """

    bucket_bytes_max: int = 1024
    key_bytes_max: int = 64 * 1024
    value_bytes_max: int = 16 * 1024 * 1024
    batch_keys_max: int = 10_000
    answer_bytes_max: int = 32 * 1024 * 1024  # keys and values that get-many answers with
    short_bucket_bytes_max: int = field(init=False)
    short_key_bytes_max: int = field(init=False)

    def __setattr__(self, name: str, value: int) -> None:
        object.__setattr__(self, name, value)
        if name in ("bucket_bytes_max", "key_bytes_max"):
            object.__setattr__(self, f"short_{name}", min(value, 127))


# Parameters.


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


def encode_unit_result(value: None) -> bytes:
    """result<_, error> that is ok."""
    return OK_UNIT


def decode_unit_result(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """result<_, error>."""
    return None, read_ok(buffer, at, end)


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
        message, at = read_bytes(buffer, at, end, MESSAGE_BYTES_MAX, MESSAGE)
    except LengthLimitError as error:
        raise DecodeError(str(error)) from None
    raise OtherError(message.decode(errors="replace"))


# Handlers.

#: What no function returns: the `missing` of functions whose answer never says that a key is not there.
NEVER = object()
#: Types of values, for telling them from what must be waited for at the price of a look-up. A record is a tuple.
VALUES = frozenset({bytes, bool, int, type(None)})


def function_handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[P, ...], int]],
    function: Callable[..., Answer[T]],
    encode: Callable[[T], bytes],
    missing: object,
    limits: ParameterLimits,
    tally: Tally,
) -> Handler:
    """Return a handler that decodes, calls and encodes. Parameters are decoded before a coroutine function is called, so that cut ones are seen at once."""

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> bytes | Pending:
        try:
            parameters, _ = decode(buffer, start, end, limits)
            answer = function(caller, *parameters)
            if type(answer) not in VALUES and not isinstance(answer, tuple) and isinstance(answer, Awaitable):
                return AwaitedResult(answer, encode, missing, tally)
            result = encode(answer)  # type: ignore[arg-type] # no Awaitable, so a T
        except Exception as error:
            return error_result(error, tally)
        tally[NONE if answer is missing else OK] += 1
        return result

    return handle


class AwaitedResult(Generic[T]):
    """An answer that must be waited for, and then is encoded and counted as one that was there at once."""

    __slots__ = ("_derive", "_encode", "_missing", "_tally", "answer")

    def __init__(self, answer: Awaitable[T], encode: Callable[[T], bytes], missing: object, tally: Tally) -> None:
        self.answer: Awaitable[object] = answer
        self._derive: Callable[[Callable[[], object]], object] | None = None
        if isinstance(answer, Derived):
            self.answer, self._derive = answer.source, answer.derive
        self._encode = encode
        self._missing = missing
        self._tally = tally

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return the result, and count it.

        :param read: returns the answer, or raises what the function raised
        """
        try:
            value = read() if self._derive is None else self._derive(read)
            result = self._encode(value)  # type: ignore[arg-type] # what `answer` gave
        except Exception as error:
            return error_result(error, self._tally)
        self._tally[NONE if value is self._missing else OK] += 1
        return result


def error_result(error: Exception, tally: Tally) -> bytes:
    """Return the result that is an error of the interface, counted. Raise every other error, counted if it is a failure.

    :raises NeedMoreBytes: `error` is one
    """
    if isinstance(error, NoSuchStoreError):
        tally[NO_SUCH_STORE] += 1
    elif isinstance(error, AccessDeniedError):
        tally[ACCESS_DENIED] += 1
    elif isinstance(error, InterfaceError | LengthLimitError):
        tally[OTHER] += 1
    else:
        if not isinstance(error, NeedMoreBytes):
            tally[FAILED] += 1
        try:
            raise error
        finally:
            del error  # a traceback holds this frame: the two would hold each other, and the caller's buffer
    return encode_error(error if isinstance(error, InterfaceError) else OtherError(str(error)))
