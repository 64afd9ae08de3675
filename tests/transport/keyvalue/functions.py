"""All functions of `wrpc:keyvalue`: their codecs, sample values, and a service that records its calls.

Rules that every function keeps are tested once, over `FUNCTIONS`. Each interface's own module tests only what is
special to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from hypothesis import strategies as st

from keyvalue_transport.keyvalue import atomics, batch, store, watcher
from keyvalue_transport.keyvalue.atomics import ATOMICS
from keyvalue_transport.keyvalue.batch import BATCH
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import (
    ParameterLimits,
    decode_unit_result,
    encode_bucket_key,
    encode_unit_result,
)
from keyvalue_transport.keyvalue.outcomes import OUTCOMES, Tally
from keyvalue_transport.keyvalue.store import STORE, KeyResponse
from keyvalue_transport.keyvalue.watcher import WATCHER
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Caller, Handler, HandlerResult, LargeResult
from keyvalue_transport.wrpc.values import U64_MAX
from tests.conftest import DEADLINE_S, NatsServer
from tests.recorded_replies import waited

CALLER = Caller("component", "default")
LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16, value_bytes_max=32, batch_keys_max=9)
PREFIXES = (f"default.interface-{number}" for number in count())

Parameters: TypeAlias = tuple[Any, ...]
Pairs: TypeAlias = list[tuple[bytes, bytes] | None]


def utf8(bytes_max: int) -> st.SearchStrategy[bytes]:
    """Return texts whose UTF-8 has at most `bytes_max` bytes."""
    return st.text(max_size=bytes_max).map(str.encode).filter(lambda text: len(text) <= bytes_max)


buckets, keys = utf8(LIMITS.bucket_bytes_max), utf8(LIMITS.key_bytes_max)
value_bytes = st.binary(max_size=LIMITS.value_bytes_max)
numbers = st.integers(0, U64_MAX) | st.sampled_from([0, 127, 128, U64_MAX])
cursors = st.none() | numbers
key_lists = st.lists(keys, max_size=5)
interface_errors: st.SearchStrategy[InterfaceError] = (
    st.builds(NoSuchStoreError) | st.builds(AccessDeniedError) | st.text(max_size=40).map(OtherError)
)


class Function(NamedTuple):
    """The codec of one function, and sample values for it.

    :ivar call: parameters that are valid for `LIMITS`
    :ivar answer: what the service returns for them
    :ivar result: what the client then reads
    :ivar parameters: any parameters that are valid for `LIMITS`, as their decoder returns them
    :ivar results: any results, as their decoder returns them
    """

    instance: str
    encode: Callable[..., bytes]
    decode: Callable[[bytes, int, int, ParameterLimits], tuple[Parameters, int]]
    encode_result: Callable[[Any], bytes]
    decode_result: Callable[[bytes, int, int], tuple[Any, int]]
    call: Parameters
    answer: Any
    result: Any
    parameters: st.SearchStrategy[Parameters]
    results: st.SearchStrategy[Any]


def write_pairs(pairs: Pairs) -> bytes:
    """Return the result of get-many with these pairs."""
    asked = [b"not there" if pair is None else pair[0] for pair in pairs]
    return batch.encode_get_many_result(asked, [pair and pair[1] for pair in pairs], 10_000)


def write_entries(bucket: bytes, entries: Mapping[bytes, bytes]) -> bytes:
    """Return the parameters of set-many. Its decoder returns the entries as a dict."""
    return batch.encode_set_many(bucket, entries.items())


BUCKET_KEY = b"bucket", b"key"
BUCKET_KEYS = b"bucket", [b"a", b"none", b"a"]
GET = (STORE, encode_bucket_key, store.decode_get, store.encode_get_result, store.decode_get_result)
SET = (STORE, store.encode_set, store.decode_set, encode_unit_result, decode_unit_result)
DELETE = (STORE, encode_bucket_key, store.decode_delete, encode_unit_result, decode_unit_result)
EXISTS = (STORE, encode_bucket_key, store.decode_exists, store.encode_truth_result, store.decode_truth_result)
LIST_KEYS = (
    STORE,
    store.encode_list_keys,
    store.decode_list_keys,
    store.encode_key_response,
    store.decode_key_response,
)
INCREMENT = (
    ATOMICS,
    atomics.encode_increment,
    atomics.decode_increment,
    atomics.encode_increment_result,
    atomics.decode_increment_result,
)
GET_MANY = (BATCH, batch.encode_bucket_keys, batch.decode_get_many, write_pairs, batch.decode_get_many_result)
SET_MANY = (BATCH, write_entries, batch.decode_set_many, encode_unit_result, decode_unit_result)
DELETE_MANY = (BATCH, batch.encode_bucket_keys, batch.decode_delete_many, encode_unit_result, decode_unit_result)
ON_SET = (WATCHER, watcher.encode_on_set, watcher.decode_on_set, lambda _: b"", watcher.decode_nothing)
ON_DELETE = (WATCHER, watcher.encode_on_delete, watcher.decode_on_delete, lambda _: b"", watcher.decode_nothing)

FOUND: Pairs = [(b"a", b"1"), None, (b"a", b"1")]
PAGE = KeyResponse([b"a", b"k" * 130], 300)
of_key = st.tuples(buckets, keys)
of_value = st.tuples(buckets, keys, value_bytes)
of_keys = st.tuples(buckets, key_lists)
values = st.none() | st.binary(max_size=300)
pages = st.builds(KeyResponse, key_lists, cursors)
found_pairs = st.lists(st.none() | st.tuples(keys, value_bytes), max_size=5)
entries = st.tuples(buckets, st.dictionaries(keys, value_bytes, max_size=5))

FUNCTIONS = {
    "get": Function(*GET, BUCKET_KEY, b"value", b"value", of_key, values),
    "set": Function(*SET, (*BUCKET_KEY, b"value"), None, None, of_value, st.none()),
    "delete": Function(*DELETE, BUCKET_KEY, None, None, of_key, st.none()),
    "exists": Function(*EXISTS, BUCKET_KEY, True, True, of_key, st.booleans()),
    "list-keys": Function(*LIST_KEYS, (b"bucket", 300), PAGE, PAGE, st.tuples(buckets, cursors), pages),
    "increment": Function(*INCREMENT, (*BUCKET_KEY, 300), 0, 0, st.tuples(buckets, keys, numbers), numbers),
    "get-many": Function(*GET_MANY, BUCKET_KEYS, [b"1", None, b"1"], FOUND, of_keys, found_pairs),
    "set-many": Function(*SET_MANY, (b"bucket", {b"a": b"1", b"b": b"2"}), None, None, entries, st.none()),
    "delete-many": Function(*DELETE_MANY, BUCKET_KEYS, None, None, of_keys, st.none()),
    "on-set": Function(*ON_SET, (b"0", b"key", b"value"), None, None, of_value, st.none()),
    "on-delete": Function(*ON_DELETE, (b"0", b"key"), None, None, of_key, st.none()),
}
#: Functions that have a result. Their calls are counted.
ANSWERED = [name for name, function in FUNCTIONS.items() if function.instance != WATCHER]


def functions_of(*instances: str) -> list[str]:
    """Return the names of the functions of interfaces."""
    return [name for name, function in FUNCTIONS.items() if function.instance in instances]


def params_of(name: str) -> bytes:
    """Return the encoded parameters of the valid call."""
    return FUNCTIONS[name].encode(*FUNCTIONS[name].call)


@st.composite
def mutated(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Return a nearly valid encoding: a byte changed, bytes inserted, or the end cut off."""
    encoded = bytearray(draw(whole))
    at = draw(st.integers(0, len(encoded)))
    match draw(st.sampled_from(["change", "insert", "cut"])):
        case "change" if at < len(encoded):
            encoded[at] = draw(st.integers(0, 255))
        case "insert":
            encoded[at:at] = draw(st.binary(max_size=6))
        case _:
            del encoded[at:]
    return bytes(encoded)


class Noted:
    """A service of every interface that records its calls. It returns or raises `answer`."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.calls: list[Parameters] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def function(caller: Caller, *parameters: Any) -> Any:
            self.calls.append((name.replace("_", "-"), caller, *parameters))
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return function


class Waiting:
    """The same service with coroutine functions, each of which yields to other tasks once."""

    def __init__(self, noted: Noted) -> None:
        self._noted = noted

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def function(caller: Caller, *parameters: Any) -> Any:
            await asyncio.sleep(0)
            return getattr(self._noted, name)(caller, *parameters)

        return function


Kind: TypeAlias = Callable[[Noted], Any]


def plain(noted: Noted) -> Any:
    return noted


#: Services to test with: one of plain functions, one of coroutine functions.
KINDS: tuple[Kind, ...] = (plain, Waiting)


TALLIES = {STORE: store.store_tallies, ATOMICS: atomics.atomics_tallies, BATCH: batch.batch_tallies}
HANDLERS: dict[str, Callable[..., dict[str, Handler]]] = {
    STORE: store.store_handlers,
    ATOMICS: atomics.atomics_handlers,
    BATCH: batch.batch_handlers,
    WATCHER: lambda service, limits, _tallies: watcher.watcher_handlers(service, limits),
}


def handler_of(
    name: str, service: Any, limits: ParameterLimits = LIMITS, tallies: dict[str, Tally] | None = None
) -> Handler:
    """Return the handler of one function."""
    return HANDLERS[FUNCTIONS[name].instance](service, limits, tallies)[name]


def counted(tally: Tally) -> dict[str, int]:
    """Return the counts of a tally that are not 0, by name."""
    return {outcome: count for outcome, count in zip(OUTCOMES, tally, strict=True) if count}


def answered(answer: HandlerResult) -> bytes:
    """Return the result of a handler. Await or encode it if necessary."""
    if isinstance(answer, LargeResult):
        answer = answer.encode()
    assert not isinstance(answer, Again)
    return answer if isinstance(answer, bytes) else waited(answer)


def carried_out(handler: Handler, params: bytes, caller: Caller = ANONYMOUS) -> bytes:
    return answered(handler(caller, params, 0, len(params)))


@asynccontextmanager
async def connected(nats_server: NatsServer, path: str) -> AsyncIterator[Connection]:
    """Open a connection, and close it at the end."""
    connection = await Connection.open(ConnectionOptions((nats_server.url,), path=path))
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def serving(
    nats_server: NatsServer, path: str, handlers: Mapping[str, Mapping[str, Handler]]
) -> AsyncIterator[str]:
    """Serve the handlers of each instance on one of the paths. Yield the prefix."""
    async with connected(nats_server, path) as connection:
        server = Server(connection, next(PREFIXES))
        for instance, functions in handlers.items():
            server.add(instance, functions)
        await server.start()
        try:
            await connection.flush(DEADLINE_S)
            yield server.prefix
        finally:
            await server.stop(DEADLINE_S)
