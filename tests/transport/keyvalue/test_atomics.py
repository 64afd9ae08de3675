"""The codec of `atomics` and its handler: vectors written by hand, round trips, damage, limits, errors of the interface."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.atomics import (
    ATOMICS,
    AtomicsInterface,
    atomics_handlers,
    atomics_tallies,
    decode_increment,
    decode_increment_result,
    encode_increment,
    encode_increment_result,
)
from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_error
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler
from keyvalue_transport.wrpc.invocation import InvocationLimits, Step
from keyvalue_transport.wrpc.values import U64_MAX, write_length
from tests.conftest import DEADLINE_S, NatsServer
from tests.invoking import invoke
from tests.recorded_replies import accept, ended, new_core
from tests.transport.keyvalue.test_interface import QuotaError
from tests.transport.keyvalue.test_store import (
    buckets,
    carried_out,
    counted,
    interface_errors,
    keys,
    mutated,
)
from tests.vectors.by_hand import Failure, Written, load

LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16)
CALLER = Caller("component", "default")
PARAMS = encode_increment(b"bucket", b"key", 3)
PREFIXES = (f"default.interface-{number}" for number in count())

numbers = st.integers(0, U64_MAX) | st.sampled_from([0, 127, 128, U64_MAX])
parameters = st.tuples(buckets, keys, numbers)


# What is written by hand


def check_written(
    vector: Written, read: Callable[[bytes, int, int], tuple[Any, int]], write: Callable[[Any], bytes]
) -> None:
    """It is read whole and between other bytes, needs more wherever it is cut, and is written again."""
    for before, behind in ((b"", b""), (b"\xff\x80", b"\x01\x00")):
        buffer = before + vector.encoded + behind
        start, end = len(before), len(before + vector.encoded)
        assert outcome(read, buffer, start, end) == vector.value
        for cut in range(start, end):
            for cut_buffer in (buffer, buffer[:cut]):
                with pytest.raises(NeedMoreBytes) as raised:
                    read(cut_buffer, start, cut)
                assert cut < raised.value.end_min <= end
    if not vector.read_only:
        value = vector.value
        assert (encode_error(error_of(value)) if isinstance(value, Failure) else write(value)) == vector.encoded


def outcome(read: Callable[[bytes, int, int], tuple[Any, int]], buffer: bytes, start: int, end: int) -> Any:
    """What is read, which ends at `end`; or the error that the result is."""
    try:
        value, at = read(buffer, start, end)
    except NoSuchStoreError:
        return Failure("no-such-store")
    except AccessDeniedError:
        return Failure("access-denied")
    except OtherError as error:
        return Failure("other", error.message)
    assert at == end
    return value


def error_of(failure: Failure) -> InterfaceError:
    """The error that a vector names."""
    match failure:
        case Failure("no-such-store"):
            return NoSuchStoreError()
        case Failure("access-denied"):
            return AccessDeniedError()
    assert failure.message is not None
    return OtherError(failure.message)


@pytest.mark.parametrize("vector", load("atomics"), ids=str)
def test_what_is_written_by_hand(vector: Written) -> None:
    assert vector.function == "increment"
    if vector.part == "result":
        check_written(vector, decode_increment_result, encode_increment_result)
    else:
        check_written(
            vector,
            lambda buffer, at, end: decode_increment(buffer, at, end, LIMITS),
            lambda value: encode_increment(*value),
        )


def test_the_instance_is_named_as_on_the_wire() -> None:
    assert ATOMICS == "wrpc:keyvalue/atomics@0.2.0-draft"


# Any values, and any bytes


@settings(deadline=None)
@given(parameters, numbers, st.binary(max_size=5), st.binary(max_size=5))
def test_values_come_back(values: tuple[bytes, bytes, int], number: int, before: bytes, behind: bytes) -> None:
    encoded = encode_increment(*values)
    end = len(before + encoded)
    assert decode_increment(before + encoded + behind, len(before), end, LIMITS) == (values, end)
    encoded = encode_increment_result(number)
    end = len(before + encoded)
    assert decode_increment_result(before + encoded + behind, len(before), end) == (number, end)


@settings(deadline=None)
@given(parameters)
def test_every_prefix_needs_more(values: tuple[bytes, bytes, int]) -> None:
    encoded = encode_increment(*values)
    for cut in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            decode_increment(encoded, 0, cut, LIMITS)
        assert cut < raised.value.end_min <= len(encoded)


@settings(deadline=None)
@given(st.binary(max_size=40) | mutated(parameters.map(lambda values: encode_increment(*values))))
def test_any_bytes_have_an_outcome_as_parameters(buffer: bytes) -> None:
    try:
        values, offset = decode_increment(buffer, 0, len(buffer), LIMITS)
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except (LengthLimitError, DecodeError) as error:
        assert "found " in str(error)
    else:
        assert offset <= len(buffer)
        again = encode_increment(*values)
        assert decode_increment(again, 0, len(again), LIMITS) == (values, len(again))


@settings(deadline=None)
@given(
    st.binary(max_size=20) | mutated(numbers.map(encode_increment_result)) | mutated(interface_errors.map(encode_error))
)
def test_any_bytes_have_an_outcome_as_a_result(buffer: bytes) -> None:
    try:
        number, offset = decode_increment_result(buffer, 0, len(buffer))
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except InterfaceError as error:
        assert isinstance(error, (NoSuchStoreError, AccessDeniedError, OtherError))
    except DecodeError as error:
        assert "found " in str(error)
    else:
        assert offset <= len(buffer)
        assert 0 <= number <= U64_MAX


@pytest.mark.parametrize("delta", [-1, 2**64])
def test_a_delta_that_is_no_u64_is_not_written(delta: int) -> None:
    with pytest.raises(ValueError, match=rf"^delta: found {delta}, allowed 0 to 2\*\*64 - 1$"):
        encode_increment(b"b", b"k", delta)


# The handler


class PlainAtomics:
    """`atomics` over a dict. `error` is raised by every call."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[bytes, bytes], int] = {}
        self.error: Exception | None = None
        self.callers: list[Caller] = []

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> int:
        self.callers.append(caller)
        if self.error is not None:
            raise self.error
        self.numbers[bucket, key] = number = self.numbers.get((bucket, key), 0) + delta
        return number


class WaitingAtomics:
    """The same with a coroutine function, which gives way to others once."""

    def __init__(self, plain: PlainAtomics) -> None:
        self._plain = plain

    async def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int, /) -> int:
        await asyncio.sleep(0)
        return self._plain.increment(caller, bucket, key, delta)


def plain(atomics: PlainAtomics) -> AtomicsInterface:
    return atomics


def waiting(atomics: PlainAtomics) -> AtomicsInterface:
    return WaitingAtomics(atomics)


KINDS = pytest.mark.parametrize("kind", [plain, waiting])
Kind = Callable[[PlainAtomics], AtomicsInterface]


@KINDS
def test_the_handler_carries_out_what_the_parameters_say(kind: Kind) -> None:
    atomics = PlainAtomics()
    handlers = atomics_handlers(kind(atomics), LIMITS)
    assert list(handlers) == ["increment"]
    assert carried_out(handlers["increment"], PARAMS, CALLER) == b"\x00\x03"
    assert carried_out(handlers["increment"], PARAMS, CALLER) == b"\x00\x06"
    assert carried_out(handlers["increment"], encode_increment(b"other", b"", U64_MAX), ANONYMOUS)[0] == 0
    assert atomics.numbers == {(b"bucket", b"key"): 6, (b"other", b""): U64_MAX}
    assert atomics.callers == [CALLER, CALLER, ANONYMOUS]


@KINDS
def test_calls_are_counted_by_their_outcome(kind: Kind) -> None:
    atomics = PlainAtomics()
    tallies = atomics_tallies()
    assert list(tallies) == ["increment"]
    handler = atomics_handlers(kind(atomics), LIMITS, tallies)["increment"]
    assert carried_out(handler, encode_increment(b"bucket", b"key", 0)) == b"\x00\x00"
    assert counted(tallies["increment"]) == {"ok": 1}, "a sum of 0 is one"
    for cut in range(len(PARAMS)):
        with pytest.raises(NeedMoreBytes):
            handler(ANONYMOUS, PARAMS, 0, cut)
    assert counted(tallies["increment"]) == {"ok": 1}, "what is cut is no call yet"
    for error in (NoSuchStoreError(), AccessDeniedError(), OtherError("no number"), QuotaError("full")):
        atomics.error = error
        assert carried_out(handler, PARAMS) == encode_error(error)
    assert carried_out(handler, write_length(9)) == encode_error(OtherError("bucket name in bytes: found 9, allowed 8"))
    atomics.error = RuntimeError("the disk is on fire")
    with pytest.raises(RuntimeError, match=r"^the disk is on fire$"):
        carried_out(handler, PARAMS)
    with pytest.raises(DecodeError, match=r"^found a string that is not UTF-8 at its byte 0$"):
        carried_out(handler, b"\x01\xff\x00")
    found = {"ok": 1, "no_such_store": 1, "access_denied": 1, "other": 3, "failed": 2}
    assert counted(tallies["increment"]) == found
    assert atomics.numbers == {(b"bucket", b"key"): 0}


@KINDS
@pytest.mark.parametrize(
    ("params", "message"),
    [
        (b"\x01\xff\x01k\x01", "found a string that is not UTF-8 at its byte 0"),
        (b"\x01b\x02a\xff\x01", "found a string that is not UTF-8 at its byte 1"),
        (b"\x01b\x01k" + b"\xff" * 10, "found a number that does not fit in 64 bits"),
        (b"\x01b\x01k" + b"\xff" * 9 + b"\x02", "found a number that does not fit in 64 bits"),
    ],
)
def test_damaged_parameters_call_nothing(kind: Kind, params: bytes, message: str) -> None:
    atomics = PlainAtomics()
    handler = atomics_handlers(kind(atomics), LIMITS)["increment"]
    with pytest.raises(DecodeError, match=f"^{message}$"):
        handler(ANONYMOUS, params, 0, len(params))
    assert atomics.callers == []


def test_limits_are_read_at_each_call() -> None:
    limits = ParameterLimits(key_bytes_max=2)
    handler = atomics_handlers(PlainAtomics(), limits)["increment"]
    refused = encode_error(OtherError("key in bytes: found 3, allowed 2"))
    assert carried_out(handler, PARAMS) == refused
    limits.key_bytes_max = 3
    assert carried_out(handler, PARAMS) == b"\x00\x03"
    limits.key_bytes_max = 2
    assert carried_out(handler, PARAMS) == refused


def test_a_coroutine_that_is_refused_is_closed() -> None:
    atomics = PlainAtomics()
    handler = atomics_handlers(waiting(atomics), LIMITS)["increment"]
    invocations = new_core(InvocationLimits(waiting_max=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = invoke(invocations, handler, "R_c", ANONYMOUS, PARAMS, 0.0)
        gc.collect()
    assert step == Step([accept("R_c"), ended("R_c")])
    assert [str(warning.message) for warning in caught] == []
    assert atomics.callers == []


# Over NATS


@asynccontextmanager
async def connected(nats_server: NatsServer, path: str) -> AsyncIterator[Connection]:
    """A connection that is closed in the end."""
    connection = await Connection.open(ConnectionOptions((nats_server.url,), path=path))
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def serving(
    nats_server: NatsServer, path: str, instance: str, handlers: Mapping[str, Handler]
) -> AsyncIterator[str]:
    """A server of one interface on one of the paths: its prefix."""
    async with connected(nats_server, path) as connection:
        server = Server(connection, next(PREFIXES))
        server.add(instance, handlers)
        await server.start()
        try:
            await connection.flush(DEADLINE_S)
            yield server.prefix
        finally:
            await server.stop(DEADLINE_S)


@KINDS
async def test_the_client_increments(nats_server: NatsServer, path: str, kind: Kind) -> None:
    atomics = PlainAtomics()
    async with (
        serving(nats_server, path, ATOMICS, atomics_handlers(kind(atomics), LIMITS)) as prefix,
        KeyValueClient(nats_server.url, prefix, source_id="component", link_name="default") as client,
    ):
        assert await client.increment("bucket", "key") == 1
        assert await client.increment(b"bucket", b"key", 299) == 300
        assert await client.increment("bucket", "key", 0) == 300
        assert await client.increment("bucket", "ключ", U64_MAX) == U64_MAX
        atomics.error = OtherError("no number")
        with pytest.raises(OtherError, match=r"^no number$"):
            await client.increment("bucket", "key")
        with pytest.raises(ValueError, match=r"^delta: found -1, allowed 0 to "):
            await client.increment("bucket", "key", -1)
    assert atomics.numbers == {(b"bucket", b"key"): 300, (b"bucket", "ключ".encode()): U64_MAX}
    assert set(atomics.callers) == {Caller("component", "default")}
