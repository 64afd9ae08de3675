"""The parts that all interfaces of `wrpc:keyvalue` share: parameter limits, errors in results, and a general handler.

    error  variant { 0 no-such-store, 1 access-denied, 2 other(string) }

Each interface has its own module, with its Protocol, codec and handlers: store.py, atomics.py, batch.py, watcher.py.
Strings stay bytes, because the engine's keys are bytes too. A reader checks that a string is UTF-8, but does not decode
the string.

To add a function, first edit the module of its interface. Extend the Protocol, add encoders and decoders for the
parameters and the result, and add a handler. Then add a method to the client (nats/client.py) and to the service.
tests/test_wit.py fails until the Protocol, the handlers, the client and `wit/` agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from struct import iter_unpack
from typing import Any, Generic, Protocol, TypeVar

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.outcomes import ACCESS_DENIED, FAILED, NO_SUCH_STORE, NONE, OK, OTHER, Tally
from keyvalue_transport.wrpc.errors import DecodeError, Length, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import (
    Answer,
    BegunRun,
    Caller,
    Derived,
    Handler,
    HandlerResult,
    LargeResult,
    Pending,
)
from keyvalue_transport.wrpc.values import read_bytes, read_tag, read_text, write_length

__all__ = [
    "BUCKET",
    "KEY",
    "NEVER",
    "OK_UNIT",
    "VALUE",
    "WRITES",
    "AwaitedResult",
    "AwaitedRun",
    "AwaitedSuccess",
    "ParameterLimits",
    "decode_unit_result",
    "encode_bucket_key",
    "encode_error",
    "encode_refusal",
    "encode_unit_result",
    "error_result",
    "function_handler",
    "large_result",
    "read_bucket_and_key",
    "read_ok",
    "short_names_end",
    "slow_handler",
    "split_run",
]

T = TypeVar("T")
P = TypeVar("P")

OK_UNIT = b"\x00"

BUCKET = Length("bucket name is {} bytes", "bucket_name_bytes_max")
KEY = Length("key is {} bytes", "key_bytes_max")
VALUE = Length("value is {} bytes", "value_bytes_max")
MESSAGE = Length("error message is {} bytes")
#: Limit for the bytes of an error message. `encode_error` shortens a longer message, and `read_ok` rejects it.
MESSAGE_BYTES_MAX = 64 * 1024


@dataclass(slots=True)
class ParameterLimits:
    """Limits for parameters and answers. Handlers read the limits on each call, so you may change them at any time.

    :ivar short_bucket_bytes_max: limit for a bucket name whose length takes one byte, which is the common case
    :ivar short_key_bytes_max: limit for a key whose length takes one byte
    """

    bucket_bytes_max: int = 1024
    key_bytes_max: int = 64 * 1024
    value_bytes_max: int = 16 * 1024 * 1024
    batch_keys_max: int = 10_000
    answer_bytes_max: int = 32 * 1024 * 1024  # keys and values in an answer to get-many, together
    short_bucket_bytes_max: int = field(init=False)
    short_key_bytes_max: int = field(init=False)

    def __setattr__(self, name: str, value: int) -> None:
        object.__setattr__(self, name, value)
        if name in ("bucket_bytes_max", "key_bytes_max"):
            object.__setattr__(self, f"short_{name}", min(value, 127))


# Parameters.


def encode_bucket_key(bucket: bytes, key: bytes) -> bytes:
    """Encode the parameters of get, delete and exists."""
    return b"".join((write_length(len(bucket)), bucket, write_length(len(key)), key))


def read_bucket_and_key(buffer: bytes, at: int, end: int, limits: ParameterLimits) -> tuple[bytes, bytes, int]:
    """Read a bucket and a key. The parameters of most functions begin with these two."""
    if at < end:  # the common case first: bucket and key are complete, ASCII, and shorter than 128 bytes
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


def short_names_end(params: bytes, limits: ParameterLimits) -> tuple[int, int]:
    """Return the offset of a key after a bucket, and the offset after the key. If a name is not short, return (0, 0).

    :raises IndexError: the parameters end before the key
    """
    key_at = params[0] + 2
    at = key_at + params[key_at - 1]
    if key_at - 2 > limits.short_bucket_bytes_max or at - key_at > limits.short_key_bytes_max:
        return 0, 0
    return key_at, at


def split_run(
    params: Sequence[bytes], key_at: int, at: int, layout: str
) -> tuple[bytes, Sequence[bytes], list[tuple[Any, ...]]] | None:
    """Return the bucket, the keys and the columns of further fields of parameters that have one size and short names.

    Return None if their buckets or the sizes of their keys differ, or if a name is not ASCII.

    :param key_at: the offset of the first key, which ends at `at`
    :param layout: the further fields in the notation of `struct`
    """
    heads, keys, *columns = zip(*iter_unpack(f"={key_at}s{at - key_at}s{layout}", b"".join(params)), strict=True)
    head = heads[0]
    if heads.count(head) < len(params) or not head.isascii() or not b"".join(keys).isascii():
        return None
    return head[1:-1], keys, columns


# Results. If the result is an error, the decoder raises it.


def encode_error(error: InterfaceError) -> bytes:
    """Encode a result that is an error. An unknown subclass of InterfaceError is encoded as `other`."""
    if isinstance(error, NoSuchStoreError):
        return b"\x01\x00"
    if isinstance(error, AccessDeniedError):
        return b"\x01\x01"
    message = str(error).encode(errors="replace")
    if len(message) > MESSAGE_BYTES_MAX:
        message = message[:MESSAGE_BYTES_MAX].decode(errors="ignore").encode()
    return b"".join((b"\x01\x02", write_length(len(message)), message))


def encode_unit_result(value: None) -> bytes:
    """Encode a successful result<_, error>."""
    return OK_UNIT


def decode_unit_result(buffer: bytes, at: int, end: int) -> tuple[None, int]:
    """Read a result<_, error>. If the result is an error, raise it."""
    return None, read_ok(buffer, at, end)


def read_ok(buffer: bytes, at: int, end: int) -> int:
    """Read the beginning of a result, and return the offset of its value.

    :raises InterfaceError: the result is an error
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

#: The functions that change something.
WRITES = frozenset({"set", "delete", "increment", "set-many", "delete-many"})

#: The `missing` argument for functions that never report a missing key. No function returns NEVER.
NEVER = object()
#: The types of most answers. A look-up in this set is the fastest way to see that an answer is not awaitable.
VALUES = frozenset({bytes, bool, int, type(None)})


def function_handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[P, ...], int]],
    function: Callable[..., Answer[T]],
    encode: Callable[[T], bytes],
    missing: object,
    limits: ParameterLimits,
    tally: Tally,
) -> Handler:
    """Return a handler that decodes the parameters, calls the function and encodes the answer.

    The handler decodes all parameters before it calls the function. So it raises NeedMoreBytes at once, even if the
    function is a coroutine function.

    :param missing: the answer for a missing key; the tally counts it as `none`
    """

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        try:
            parameters, _ = decode(buffer, start, end, limits)
            answer = function(caller, *parameters)
            if type(answer) not in VALUES and not isinstance(answer, tuple) and isinstance(answer, Awaitable):
                return AwaitedResult(answer, encode, missing, tally)
            result = encode(answer)  # type: ignore[arg-type] # not an Awaitable, so a T
        except Exception as error:
            return error_result(error, tally)
        tally[NONE if answer is missing else OK] += 1
        return result

    return handle


def slow_handler(
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[tuple[P, ...], int]],
    function: Callable[..., Answer[T]],
    encode: Callable[[T], bytes],
    limits: ParameterLimits,
    tally: Tally,
) -> Handler:
    """Return a handler for a function that changes nothing and may take long. The server decides when to call it."""

    def call(caller: Caller, parameters: tuple[P, ...]) -> bytes | AwaitedResult[T]:
        try:
            answer = function(caller, *parameters)
            if not isinstance(answer, tuple) and isinstance(answer, Awaitable):
                return AwaitedResult(answer, encode, NEVER, tally)
            result = encode(answer)
        except Exception as error:
            return error_result(error, tally)
        tally[OK] += 1
        return result

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        try:
            parameters, _ = decode(buffer, start, end, limits)
        except Exception as error:
            return error_result(error, tally)
        return LargeResult(partial(call, caller, parameters))

    return handle


def large_result(encode: Callable[[], bytes], tally: Tally) -> LargeResult:
    """Return a LargeResult that counts its call in the tally when it is encoded."""
    return LargeResult(partial(_encode_and_count, encode, tally))


def _encode_and_count(encode: Callable[[], bytes], tally: Tally) -> bytes:
    try:
        result = encode()
    except Exception as error:
        return error_result(error, tally)
    tally[OK] += 1
    return result


class AwaitedResult(Generic[T]):
    """An answer to wait for. When it is ready, it is encoded and counted like an immediate answer.

    :ivar extra_bytes: as in `Pending`
    """

    __slots__ = ("_derive", "_encode", "_missing", "_tally", "answer", "extra_bytes")

    def __init__(self, answer: Awaitable[T], encode: Callable[[T], bytes], missing: object, tally: Tally) -> None:
        self.answer: Awaitable[object] = answer
        self._derive: Callable[[Callable[[], object]], object] | None = None
        if isinstance(answer, Derived):
            self.answer, self._derive = answer.source, answer.derive
        self._encode = encode
        self._missing = missing
        self._tally = tally
        self.extra_bytes = 0

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return the encoded result, and count it.

        :param read: returns the answer, or raises the function's error
        """
        try:
            value = read() if self._derive is None else self._derive(read)
            result = self._encode(value)  # type: ignore[arg-type] # the value of `answer`
        except Exception as error:
            return error_result(error, self._tally)
        self._tally[NONE if value is self._missing else OK] += 1
        return result


class AwaitedSuccess(Derived[None]):
    """An answer without a value to wait for. It is quicker than `AwaitedResult`, because the function itself returns it.

    :param source: the answer to wait for
    :param derive: only translates the errors of the source
    :ivar tally: counts the call; set by the handler
    """

    __slots__ = ("tally",)

    tally: Tally
    extra_bytes = 0
    answer = Derived.source  # type: ignore[misc] # the same slot

    def encode(self, read: Callable[[], object]) -> bytes:
        """Return the encoded result, and count it.

        :param read: returns the answer, or raises the function's error
        """
        try:
            read()
        except Exception:
            try:
                self.derive(read)
            except Exception as error:
                return error_result(error, self.tally)
        self.tally[OK] += 1
        return OK_UNIT


class Changes(Protocol):
    """Changes that were begun together. They end in order, or one by one."""

    def begin(self, take: Callable[[int], object], part: Callable[[Sequence[Awaitable[None]]], object], /) -> None:
        """Tell the caller when changes end.

        :param take: called with the number of the next changes that have succeeded
        :param part: called once with an answer for each change that has not ended, if they end one by one from now on
        """

    def part(self) -> None:
        """Let the changes that have not ended end one by one."""


class AwaitedRun:
    """The answers of a run of calls without values. It is the `BegunRun` of such calls.

    :param derive: only translates the errors of the changes
    :ivar tally: counts the calls; set by the handler
    """

    __slots__ = ("_changes", "_derive", "_part", "_take", "tally")

    tally: Tally
    _take: Callable[[BegunRun, int, bytes], object]
    _part: Callable[[BegunRun, Sequence[Pending]], object]

    def __init__(self, changes: Changes, derive: Callable[[Callable[[], Any]], None]) -> None:
        self._changes = changes
        self._derive = derive

    def begin(
        self, take: Callable[[BegunRun, int, bytes], object], part: Callable[[BegunRun, Sequence[Pending]], object]
    ) -> None:
        """Tell the caller when answers come."""
        self._take, self._part = take, part
        self._changes.begin(self._succeed, self._end_singly)

    def part(self) -> None:
        """Let the answers that have not come yet come one by one."""
        self._changes.part()

    def _succeed(self, number: int) -> None:
        self.tally[OK] += number
        self._take(self, number, OK_UNIT)

    def _end_singly(self, answers: Sequence[Awaitable[None]]) -> None:
        awaited = [AwaitedSuccess(answer, self._derive) for answer in answers]
        for each in awaited:
            each.tally = self.tally
        self._part(self, awaited)


def encode_refusal(text: str) -> bytes:
    """Encode the error of a call that was refused before its function was called."""
    return encode_error(OtherError(text))


def error_result(error: Exception, tally: Tally) -> bytes:
    """Encode an interface error or a LengthLimitError as a result, and count the error.

    Any other error is raised again. It counts as `failed`, unless it is NeedMoreBytes.

    :raises Exception: `error` itself, unless it is an interface error or a LengthLimitError
    """
    if isinstance(error, NoSuchStoreError):
        tally[NO_SUCH_STORE] += 1
    elif isinstance(error, AccessDeniedError):
        tally[ACCESS_DENIED] += 1
    elif isinstance(error, (InterfaceError, LengthLimitError)):
        tally[OTHER] += 1
    else:
        if not isinstance(error, NeedMoreBytes):
            tally[FAILED] += 1
        try:
            raise error
        finally:
            del error  # the traceback holds this frame, and a reference cycle would keep the caller's buffer alive
    return encode_error(error if isinstance(error, InterfaceError) else OtherError(str(error)))
