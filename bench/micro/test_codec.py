"""Encoding and decoding the parameters and results of every function. Each figure is the time for one message.

Keys are 12 bytes and values are 64 bytes. Pages have 1,000 keys, and batches have 100 keys.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.load.workload import COUNT_FROM, key_of, value_of
from keyvalue_transport.keyvalue import atomics, batch, interface, store

BUCKET = b"default"
KEY = key_of(7)
VALUE = value_of(KEY, 64)
CURSOR = 2**63 + 12345
PAGE = store.KeyResponse([key_of(index) for index in range(1_000)], CURSOR)
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
    "get": alike((BUCKET, KEY), interface.encode_bucket_key, store.decode_get),
    "set": alike((BUCKET, KEY, VALUE), store.encode_set, store.decode_set),
    "delete": alike((BUCKET, KEY), interface.encode_bucket_key, store.decode_delete),
    "exists": alike((BUCKET, KEY), interface.encode_bucket_key, store.decode_exists),
    "list-keys": alike((BUCKET, CURSOR), store.encode_list_keys, store.decode_list_keys),
    "increment": alike((BUCKET, KEY, 1), atomics.encode_increment, atomics.decode_increment),
    "get-many": alike((BUCKET, BATCH), batch.encode_bucket_keys, batch.decode_get_many),
    "set-many": Codec((BUCKET, list(ENTRIES.items())), batch.encode_set_many, batch.decode_set_many, (BUCKET, ENTRIES)),
    "delete-many": alike((BUCKET, BATCH), batch.encode_bucket_keys, batch.decode_delete_many),
}
RESULTS = {
    "get": Codec((VALUE,), store.encode_get_result, store.decode_get_result, VALUE),
    "set": Codec((None,), interface.encode_unit_result, interface.decode_unit_result, None),
    "exists": Codec((True,), store.encode_truth_result, store.decode_truth_result, True),
    "list-keys": Codec((PAGE,), store.encode_key_response, store.decode_key_response, PAGE),
    "increment": Codec((COUNT_FROM,), atomics.encode_increment_result, atomics.decode_increment_result, COUNT_FROM),
    "get-many": Codec(
        (BATCH, list(ENTRIES.values()), ANSWER_BYTES_MAX),
        batch.encode_get_many_result,
        batch.decode_get_many_result,
        list(ENTRIES.items()),
    ),
}
#: The arguments of a decoder after the message.
LIMITS = {"parameters": (interface.ParameterLimits(),), "result": ()}
CODECS = [("parameters", name) for name in PARAMETERS] + [("result", name) for name in RESULTS]


@pytest.mark.parametrize(("part", "function"), CODECS)
def test_encode(benchmark: BenchmarkFixture, part: str, function: str) -> None:
    benchmark.group = f"codec: {function}"
    codec = (PARAMETERS if part == "parameters" else RESULTS)[function]
    encoded = benchmark(codec.encode, *codec.arguments)
    assert codec.decode(encoded, 0, len(encoded), *LIMITS[part]) == (codec.decoded, len(encoded))


@pytest.mark.parametrize(("part", "function"), CODECS)
def test_decode(benchmark: BenchmarkFixture, part: str, function: str) -> None:
    benchmark.group = f"codec: {function}"
    codec = (PARAMETERS if part == "parameters" else RESULTS)[function]
    encoded = codec.encode(*codec.arguments)
    assert benchmark(codec.decode, encoded, 0, len(encoded), *LIMITS[part]) == (codec.decoded, len(encoded))
