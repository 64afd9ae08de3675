"""Encoding and decoding the parameters and results of every function. Each figure is the time for one message.

Keys are 12 bytes and values are 64 bytes. Pages have 1,000 keys, and batches have 100 keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.workload import COUNT_FROM, key_of, value_of
from keyvalue_transport.keyvalue.atomics import (
    decode_increment,
    decode_increment_result,
    encode_increment,
    encode_increment_result,
)
from keyvalue_transport.keyvalue.batch import (
    decode_delete_many,
    decode_get_many,
    decode_get_many_result,
    decode_set_many,
    encode_bucket_keys,
    encode_get_many_result,
    encode_set_many,
)
from keyvalue_transport.keyvalue.interface import (
    ParameterLimits,
    decode_unit_result,
    encode_bucket_key,
    encode_unit_result,
)
from keyvalue_transport.keyvalue.store import (
    KeyResponse,
    decode_delete,
    decode_exists,
    decode_get,
    decode_get_result,
    decode_key_response,
    decode_list_keys,
    decode_set,
    decode_truth_result,
    encode_get_result,
    encode_key_response,
    encode_list_keys,
    encode_set,
    encode_truth_result,
)

BUCKET = b"default"
KEY = key_of(7)
VALUE = value_of(KEY, 64)
CURSOR = 2**63 + 12345
PAGE = KeyResponse([key_of(index) for index in range(1_000)], CURSOR)
BATCH = [key_of(index) for index in range(100)]
ENTRIES = {key: value_of(key, 64) for key in BATCH}
ANSWER_BYTES_MAX = 2**20


class Codec(NamedTuple):
    """An encoder and its decoder, with the arguments for the encoder and the value that the decoder must return."""

    arguments: tuple[Any, ...]
    encode: Callable[..., bytes]
    decode: Callable[..., tuple[Any, int]]
    decoded: Any


def alike(arguments: tuple[Any, ...], encode: Callable[..., bytes], decode: Callable[..., tuple[Any, int]]) -> Codec:
    """Return a codec whose decoder returns the encoder's arguments."""
    return Codec(arguments, encode, decode, arguments)


PARAMETERS = {
    "get": alike((BUCKET, KEY), encode_bucket_key, decode_get),
    "set": alike((BUCKET, KEY, VALUE), encode_set, decode_set),
    "delete": alike((BUCKET, KEY), encode_bucket_key, decode_delete),
    "exists": alike((BUCKET, KEY), encode_bucket_key, decode_exists),
    "list-keys": alike((BUCKET, CURSOR), encode_list_keys, decode_list_keys),
    "increment": alike((BUCKET, KEY, 1), encode_increment, decode_increment),
    "get-many": alike((BUCKET, BATCH), encode_bucket_keys, decode_get_many),
    "set-many": Codec((BUCKET, list(ENTRIES.items())), encode_set_many, decode_set_many, (BUCKET, ENTRIES)),
    "delete-many": alike((BUCKET, BATCH), encode_bucket_keys, decode_delete_many),
}
RESULTS = {
    "get": Codec((VALUE,), encode_get_result, decode_get_result, VALUE),
    "set": Codec((None,), encode_unit_result, decode_unit_result, None),
    "delete": Codec((None,), encode_unit_result, decode_unit_result, None),
    "exists": Codec((True,), encode_truth_result, decode_truth_result, True),
    "list-keys": Codec((PAGE,), encode_key_response, decode_key_response, PAGE),
    "increment": Codec((COUNT_FROM,), encode_increment_result, decode_increment_result, COUNT_FROM),
    "get-many": Codec(
        (BATCH, list(ENTRIES.values()), ANSWER_BYTES_MAX),
        encode_get_many_result,
        decode_get_many_result,
        list(ENTRIES.items()),
    ),
    "set-many": Codec((None,), encode_unit_result, decode_unit_result, None),
    "delete-many": Codec((None,), encode_unit_result, decode_unit_result, None),
}


@pytest.mark.parametrize("function", PARAMETERS)
def test_encode_parameters(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    arguments, encode, decode, decoded = PARAMETERS[function]
    encoded = benchmark(encode, *arguments)
    assert decode(encoded, 0, len(encoded), ParameterLimits()) == (decoded, len(encoded))


@pytest.mark.parametrize("function", PARAMETERS)
def test_decode_parameters(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    arguments, encode, decode, decoded = PARAMETERS[function]
    encoded = encode(*arguments)
    assert benchmark(decode, encoded, 0, len(encoded), ParameterLimits()) == (decoded, len(encoded))


@pytest.mark.parametrize("function", RESULTS)
def test_encode_result(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    arguments, encode, decode, decoded = RESULTS[function]
    encoded = benchmark(encode, *arguments)
    assert decode(encoded, 0, len(encoded)) == (decoded, len(encoded))


@pytest.mark.parametrize("function", RESULTS)
def test_decode_result(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    arguments, encode, decode, decoded = RESULTS[function]
    encoded = encode(*arguments)
    assert benchmark(decode, encoded, 0, len(encoded)) == (decoded, len(encoded))
