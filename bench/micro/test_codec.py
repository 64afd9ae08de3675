"""Encode and decode of every function, parameters and results: 12-byte keys, 64-byte values, pages of 1,000 keys. One call a figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.workload import key_of, value_of
from transport.keyvalue import (
    KeyResponse,
    ParameterLimits,
    decode_delete,
    decode_exists,
    decode_get,
    decode_get_result,
    decode_key_response,
    decode_list_keys,
    decode_set,
    decode_truth_result,
    decode_unit_result,
    encode_bucket_key,
    encode_get_result,
    encode_key_response,
    encode_list_keys,
    encode_set,
    encode_truth_result,
    encode_unit_result,
)

BUCKET = b"default"
KEY = key_of(7)
VALUE = value_of(KEY, 64)
CURSOR = 2**63 + 12345
PAGE = KeyResponse([key_of(index) for index in range(1_000)], CURSOR)

#: Function: parameters, their encoder and decoder.
PARAMETERS: dict[str, tuple[tuple[Any, ...], Callable[..., bytes], Callable[..., tuple[Any, int]]]] = {
    "get": ((BUCKET, KEY), encode_bucket_key, decode_get),
    "set": ((BUCKET, KEY, VALUE), encode_set, decode_set),
    "delete": ((BUCKET, KEY), encode_bucket_key, decode_delete),
    "exists": ((BUCKET, KEY), encode_bucket_key, decode_exists),
    "list-keys": ((BUCKET, CURSOR), encode_list_keys, decode_list_keys),
}
#: Function: result, its encoder and decoder.
RESULTS: dict[str, tuple[Any, Callable[..., bytes], Callable[..., tuple[Any, int]]]] = {
    "get": (VALUE, encode_get_result, decode_get_result),
    "set": (None, encode_unit_result, decode_unit_result),
    "delete": (None, encode_unit_result, decode_unit_result),
    "exists": (True, encode_truth_result, decode_truth_result),
    "list-keys": (PAGE, encode_key_response, decode_key_response),
}


@pytest.mark.parametrize("function", PARAMETERS)
def test_encode_parameters(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    parameters, encode, decode = PARAMETERS[function]
    encoded = benchmark(encode, *parameters)
    assert decode(encoded, 0, len(encoded), ParameterLimits()) == (parameters, len(encoded))


@pytest.mark.parametrize("function", PARAMETERS)
def test_decode_parameters(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    parameters, encode, decode = PARAMETERS[function]
    encoded = encode(*parameters)
    assert benchmark(decode, encoded, 0, len(encoded), ParameterLimits()) == (parameters, len(encoded))


@pytest.mark.parametrize("function", RESULTS)
def test_encode_result(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    result, encode, decode = RESULTS[function]
    encoded = benchmark(encode, result)
    assert decode(encoded, 0, len(encoded)) == (result, len(encoded))


@pytest.mark.parametrize("function", RESULTS)
def test_decode_result(benchmark: BenchmarkFixture, function: str) -> None:
    benchmark.group = f"codec: {function}"
    result, encode, decode = RESULTS[function]
    encoded = encode(result)
    assert benchmark(decode, encoded, 0, len(encoded)) == (result, len(encoded))
