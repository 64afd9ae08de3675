"""Handlers of `wrpc:keyvalue/store`: its functions, called with parameters as they come, and answered with results as they leave.

`keyvalue_transport.keyvalue.interface` has the codec and the general handler. Those of get and set are written out, since they are called most, and can be
narrowed to parameters that name the same bucket.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from keyvalue_transport.keyvalue.interface import (
    NEVER,
    OK_NONE,
    OK_SOME_SHORT,
    OK_UNIT,
    VALUE,
    ParameterLimits,
    StoreInterface,
    Waited,
    decode_delete,
    decode_exists,
    decode_list_keys,
    encode_get_result,
    encode_key_response,
    encode_truth_result,
    encode_unit_result,
    function_handler,
    read_bucket_and_key,
    refused,
)
from keyvalue_transport.wrpc.errors import DecodeError, InterfaceError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import (
    FAILED,
    NONE,
    OK,
    Answer,
    Caller,
    Handler,
    Narrowed,
    Tally,
    narrowable,
    new_tally,
)
from keyvalue_transport.wrpc.values import read_bytes

__all__ = ["store_handlers", "store_tallies"]


def store_tallies() -> dict[str, Tally]:
    """A tally for each function of `store`, by its name on the wire."""
    return {name: new_tally() for name in ("get", "set", "delete", "exists", "list-keys")}


def store_handlers(
    store: StoreInterface, limits: ParameterLimits, tallies: Mapping[str, Tally] | None = None
) -> dict[str, Handler]:
    """A handler for each function of `store`, by its name on the wire.

    :param tallies: by the same names; each call is counted, `none` where get or exists found no key
    """
    tally = tallies or store_tallies()
    return {
        "get": _get_handler(store.get, limits, tally["get"]),
        "set": _set_handler(store.set, limits, tally["set"]),
        "delete": function_handler(decode_delete, store.delete, encode_unit_result, NEVER, limits, tally["delete"]),
        "exists": function_handler(decode_exists, store.exists, encode_truth_result, False, limits, tally["exists"]),
        "list-keys": function_handler(
            decode_list_keys, store.list_keys, encode_key_response, NEVER, limits, tally["list-keys"]
        ),
    }


class Known(NamedTuple):
    """What parameters that begin alike have in common: the bucket, and where the key stands."""

    bucket: bytes
    key_at: int
    key_end: int


def _narrow(parameters: bytes, limits: ParameterLimits, handler_of: Callable[[Known], Handler]) -> Narrowed | None:
    """A handler for parameters with the same bucket and a key as long as in these."""
    try:
        bucket, key, key_end = read_bucket_and_key(parameters, 0, len(parameters), limits)
    except (DecodeError, LengthLimitError, NeedMoreBytes):
        return None
    key_at = key_end - len(key)
    return Narrowed(parameters[:key_at], handler_of(Known(bucket, key_at, key_end)))


#: Of parameters of which nothing is known: there is no key so long.
UNKNOWN = Known(b"", 0, 2**63)


def _get_handler(
    function: Callable[[Caller, bytes, bytes], Answer[bytes | None]],
    limits: ParameterLimits,
    tally: Tally,
    known: Known = UNKNOWN,
) -> Handler:
    """`function_handler` of `decode_get` and `encode_get_result`, with these written out; pays: bench end-to-end get."""
    known_bucket, key_at, key_end = known
    bucket_bytes, key_bytes = len(known_bucket), key_end - key_at

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        try:
            if (
                key_bytes <= limits.key_bytes_max
                and bucket_bytes <= limits.bucket_bytes_max
                and (key := buffer[start + key_at : start + key_end]).isascii()
            ):
                bucket = known_bucket
            else:
                bucket, key, _ = read_bucket_and_key(buffer, start, end, limits)
            value = function(caller, bucket, key)
        except (LengthLimitError, InterfaceError) as error:
            return refused(error, tally)
        except NeedMoreBytes:
            raise
        except Exception:
            tally[FAILED] += 1
            raise
        if isinstance(value, bytes):
            tally[OK] += 1
            length = len(value)
            return OK_SOME_SHORT[length] + value if length < 128 else encode_get_result(value)
        if value is None:
            tally[NONE] += 1
            return OK_NONE
        return Waited(value, encode_get_result, None, tally)

    return narrowable(
        handle,
        lambda parameters: _narrow(parameters, limits, lambda known: _get_handler(function, limits, tally, known)),
    )


def _set_handler(
    function: Callable[[Caller, bytes, bytes, bytes], Answer[None]],
    limits: ParameterLimits,
    tally: Tally,
    known: Known = UNKNOWN,
) -> Handler:
    """`function_handler` of `decode_set`, with that written out; pays: bench end-to-end set."""
    known_bucket, key_at, key_end = known
    bucket_bytes, key_bytes = len(known_bucket), key_end - key_at

    def handle(caller: Caller, buffer: bytes, start: int, end: int) -> Answer[bytes]:
        try:
            if (
                key_bytes <= limits.key_bytes_max
                and bucket_bytes <= limits.bucket_bytes_max
                and (key := buffer[start + key_at : start + key_end]).isascii()
            ):
                bucket, at = known_bucket, start + key_end
            else:
                bucket, key, at = read_bucket_and_key(buffer, start, end, limits)
            if at < end and (length := buffer[at]) < 128 and length < end - at and length <= limits.value_bytes_max:
                value = buffer[at + 1 : at + 1 + length]
            else:
                value, _ = read_bytes(buffer, at, end, limits.value_bytes_max, VALUE)
            answer = function(caller, bucket, key, value)
        except (LengthLimitError, InterfaceError) as error:
            return refused(error, tally)
        except NeedMoreBytes:
            raise
        except Exception:
            tally[FAILED] += 1
            raise
        if answer is not None:
            return Waited(answer, encode_unit_result, NEVER, tally)
        tally[OK] += 1
        return OK_UNIT

    return narrowable(
        handle,
        lambda parameters: _narrow(parameters, limits, lambda known: _set_handler(function, limits, tally, known)),
    )
