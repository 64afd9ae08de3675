"""Lists that arrive in pieces, and answers that are measured before they are built."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.batch import (
    BATCH,
    READ_KEY_BYTES,
    WRITTEN_KEY_BYTES,
    encode_bucket_keys,
    encode_get_many_result,
    encode_set_many,
)
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, encode_error
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import DecodeError, LengthLimitError, NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, HandlerResult, drop_answer
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import InvocationCounts
from tests.conftest import NatsServer
from tests.invoking import invoke
from tests.recorded_replies import Reply, ended, new_core, result
from tests.transport.keyvalue.functions import (
    FUNCTIONS,
    HANDLERS,
    KINDS,
    TALLIES,
    Kind,
    Noted,
    Waiting,
    buckets,
    carried_out,
    counted,
    functions_of,
    handler_of,
    keys,
    params_of,
    serving,
    value_bytes,
)
from tests.transport.nats.direct.scene import PIECES, Direct, cut, hmsg, piece

LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=200, value_bytes_max=300, batch_keys_max=200)

#: Lengths that are encoded in one byte and in two.
key_lists = st.lists(keys | st.integers(120, 200).map(lambda size: b"k" * size), max_size=8)
pairs = st.lists(st.tuples(keys, value_bytes | st.integers(120, 300).map(lambda size: b"\xff" * size)), max_size=8)
ENCODED = {
    "get-many": st.builds(encode_bucket_keys, buckets, key_lists),
    "set-many": st.builds(encode_set_many, buckets, pairs),
    "delete-many": st.builds(encode_bucket_keys, buckets, key_lists),
}
functions = st.sampled_from(functions_of(BATCH))
each_function = pytest.mark.parametrize("name", functions_of(BATCH))
each_kind = pytest.mark.parametrize("kind", KINDS)


# The measure of a cut list


@settings(max_examples=60)
@given(functions, st.data(), st.binary(max_size=5), st.binary(max_size=300))
def test_every_prefix_needs_more(name: str, choice: st.DataObject, before: bytes, trailing: bytes) -> None:
    """Ask the error's measure about longer prefixes: they need more, too."""
    encoded, decode = choice.draw(ENCODED[name]), FUNCTIONS[name].decode
    start = len(before)
    for cut_at in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            decode(before + encoded[:cut_at] + trailing, start, start + cut_at, LIMITS)
        assert start + cut_at < raised.value.end_min <= start + len(encoded)
        measure = getattr(raised.value, "measure", None)
        if measure is not None:
            for longer in sorted({cut_at + 1, (cut_at + len(encoded)) // 2, len(encoded) - 1}):
                if cut_at < longer < len(encoded):
                    assert longer < measure(bytearray(encoded[:longer])) <= len(encoded)
            assert measure(bytearray(encoded)) <= len(encoded)


@given(functions, st.data(), st.data())
def test_any_bytes_are_measured(name: str, choice: st.DataObject, further: st.DataObject) -> None:
    """Append any bytes to a cut list. The measure ends, and never asks for more than the decoder does."""
    encoded, decode = bytearray(choice.draw(ENCODED[name])), FUNCTIONS[name].decode
    params = encoded[: choice.draw(st.integers(0, len(encoded)))]
    try:
        decode(bytes(params), 0, len(params), LIMITS)
    except NeedMoreBytes as more:
        measure = getattr(more, "measure", None)
    else:
        return
    for trailing in further.draw(st.lists(st.binary(min_size=1, max_size=20), max_size=6)):
        params += trailing
        if measure is None:
            break
        needed = measure(params)
        try:
            decode(bytes(params), 0, len(params), LIMITS)
        except NeedMoreBytes as more:
            assert needed == more.end_min
        except DecodeError as error:  # the measure need not find a key that is not UTF-8
            assert needed <= len(params) or "UTF-8" in str(error)
        except LengthLimitError:
            assert needed <= len(params)
        else:
            assert needed <= len(params)


# The answer of get-many


@each_kind
def test_an_answer_over_its_limit_is_an_error_of_the_interface(kind: Kind) -> None:
    limits, tallies = ParameterLimits(answer_bytes_max=3), TALLIES[BATCH]()
    handler = handler_of("get-many", kind(Noted([b"1", None, b"1"])), limits, tallies)
    refused = encode_error(OtherError("the answer is at least 4 bytes; the limit is 3 (answer_bytes_max)"))
    assert carried_out(handler, params_of("get-many")) == refused
    assert counted(tallies["get-many"]) == {"other": 1}
    limits.answer_bytes_max = 4
    assert carried_out(handler, params_of("get-many"))[0] == 0
    assert counted(tallies["get-many"]) == {"other": 1, "ok": 1}


def test_an_answer_over_its_limit_is_never_built() -> None:
    """Ask for one key very often: 10,000 references to a value of 16 MiB would be 156 GiB on the wire."""
    value = bytes(16 * 1024 * 1024)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        refused = r"^the answer is at least 167772170000 bytes; the limit is 33554432 \(answer_bytes_max\)$"
        with pytest.raises(OtherError, match=refused):
            encode_get_many_result([b"k"] * 10_000, [value] * 10_000, ParameterLimits().answer_bytes_max)
        assert tracemalloc.get_traced_memory()[1] - before < 4 * 1024 * 1024
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("number", [0, 1, 200])
@each_function
def test_a_call_that_waits_counts_the_memory_of_its_keys(name: str, number: int) -> None:
    """It is many times the size of short keys in the parameters."""
    texts = [b"%d" % key for key in range(number)]
    params = (
        encode_set_many(b"b", [(key, b"") for key in texts]) if name == "set-many" else encode_bucket_keys(b"b", texts)
    )
    waiting = invoke(new_core(), handler_of(name, Waiting(Noted()), LIMITS), "R_c", ANONYMOUS, params, 0.0).waiting
    assert waiting is not None
    drop_answer(waiting.pending.answer)
    key_bytes = READ_KEY_BYTES if name == "get-many" else WRITTEN_KEY_BYTES
    assert waiting.held_bytes == WAIT_BYTES + len(params) + key_bytes * number


# Lists that arrive in pieces


class Attempts:
    """A handler that counts its calls."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self.count = 0

    def __call__(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        self.count += 1
        return self._handler(caller, buffer, start, end)


class OfKeys(Noted):
    """A service of `batch` over a dict that never changes."""

    def __init__(self, held: Mapping[bytes, bytes] | None = None) -> None:
        super().__init__()
        self._held = held or {}

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> list[bytes | None]:
        self.calls.append(("get-many", caller, bucket, keys))
        return list(map(self._held.get, keys))


class Core:
    """Invocations of one function. They record the parameters and how often the handler is called."""

    def __init__(self, name: str, limits: ParameterLimits = LIMITS) -> None:
        self.service = OfKeys()
        self.handler = Attempts(handler_of(name, self.service, limits))
        self.invocations = new_core()

    def take(self, pieces: list[bytes]) -> Iterator[list[Reply]]:
        """Yield what is sent after each piece, except the handshake."""
        first, *rest = pieces
        step = invoke(self.invocations, self.handler, "R_c", ANONYMOUS, first, 0.0)
        yield step.sends[1:]
        for further in rest:
            yield self.invocations.receive_params("0", further, 0.0).sends


@given(functions, st.data(), st.lists(st.integers(0, 2000), max_size=12))
def test_a_list_is_answered_with_its_last_byte_wherever_it_is_cut(
    name: str, choice: st.DataObject, cuts: list[int]
) -> None:
    encoded = choice.draw(ENCODED[name])
    core, expected = Core(name), Core(name)
    pieces = cut(encoded, (at % len(encoded) for at in cuts))
    *before, last = core.take(pieces)
    assert before == [[]] * (len(pieces) - 1)
    assert [last] == list(expected.take([encoded]))
    assert core.service.calls == expected.service.calls
    assert core.invocations.counts == InvocationCounts(answered=1)
    assert core.invocations.half_open_bytes == 0


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(("first", "reads"), [(40, 2), (1, 4)], ids=["cut in the list", "cut before it"])
@each_function
def test_a_list_is_not_read_again_for_each_piece(name: str, first: int, reads: int, size: int) -> None:
    """A list of 156 MiB in pieces of 1 MiB would take 9 s."""
    entries = {b"key %d" % number: b"v" * 130 for number in range(40)}
    encoded = FUNCTIONS[name].encode(b"b", entries if name == "set-many" else list(entries))
    core = Core(name)
    *_, last = core.take([encoded[:first], *(encoded[at : at + size] for at in range(first, len(encoded), size))])
    assert last[-1] == ended("R_c")
    assert core.handler.count <= reads
    assert core.service.calls == [(name, ANONYMOUS, b"b", entries if name == "set-many" else list(entries))]


@pytest.mark.parametrize(
    ("name", "pieces", "message"),
    [
        ("get-many", [b"\x01b\x03\x01k", b"\x01k", b"\x03"], "key is 3 bytes; the limit is 2 (key_bytes_max)"),
        ("set-many", [b"\x01b\x02\x01k\x01v", b"\x03k"], "key is 3 bytes; the limit is 2 (key_bytes_max)"),
        (
            "set-many",
            [b"\x01b\x02\x01k", b"\x01v", b"\x01k", b"\x05"],
            "value is 5 bytes; the limit is 4 (value_bytes_max)",
        ),
        (
            "set-many",
            [b"\x01b\x02\x01k", b"\x01v\x01", b"k", b"\x80", b"\x02"],
            "value is 256 bytes; the limit is 4 (value_bytes_max)",
        ),
    ],
)
def test_a_length_over_its_limit_is_answered_with_the_piece_that_holds_it(
    name: str, pieces: list[bytes], message: str
) -> None:
    core = Core(name, ParameterLimits(key_bytes_max=2, value_bytes_max=4))
    *before, last = core.take(pieces)
    assert before == [[]] * (len(pieces) - 1)
    assert last == [result("R_c", encode_error(OtherError(message))), ended("R_c")]
    assert core.service.calls == []


def test_a_malformed_length_ends_the_invocation_with_the_piece_that_holds_it() -> None:
    core = Core("get-many")
    *before, last = core.take([b"\x01b\x02", b"\x01k\xff\xff", b"\xff\xff", b"\x10"])
    assert before == [[]] * 3
    assert last == [ended("R_c")]
    assert core.invocations.counts == InvocationCounts(damaged=1)


def test_limits_may_be_raised_while_a_list_arrives() -> None:
    limits = ParameterLimits(key_bytes_max=2)
    core = Core("get-many", limits)
    coming = core.take([b"\x01b\x03\x01k", b"\x02kk", b"\x03kk", b"k"])
    assert [next(coming), next(coming)] == [[], []]
    limits.key_bytes_max = 3
    assert next(coming) == []
    assert next(coming)[-1] == ended("R_c")
    assert core.service.calls == [("get-many", ANONYMOUS, b"b", [b"k", b"kk", b"kkk"])]


@each_function
@pytest.mark.parametrize("alike", [True, False])
def test_a_list_that_is_cut_between_other_frames(loop: asyncio.AbstractEventLoop, name: str, alike: bool) -> None:
    """Count the measure from the start of the parameters, not from the start of the read."""
    function, params = FUNCTIONS[name], params_of(name)
    for edges in pairwise(range(1, len(params))):
        direct, service = Direct(loop, alike), Noted(function.answer)
        direct.routes.add(PIECES + 1, handler_of(name, service))
        first, second, third = cut(params, edges)
        sends = direct.read(
            hmsg(1, b"\x01b\x01k", b"R_before") + hmsg(PIECES + 1, first, b"R_c") + hmsg(1, b"\x01b\x01k", b"R_behind"),
            piece("0", second),
            piece("0", third) + piece("0", b""),
        )
        answers = [send.payload for send in sends if send.subject == "R_c.results"]
        assert answers == [function.encode_result(function.result), b""]
        assert [call[2:] for call in service.calls] == [function.call]
        assert direct.invocations.counts.answered == 3


# Over NATS


async def test_a_batch_larger_than_a_message(nats_server: NatsServer, path: str) -> None:
    entries = {b"key %d" % number: b"%d" % number * 2000 for number in range(1000)}
    service = OfKeys(entries)
    async with (
        serving(nats_server, path, {BATCH: HANDLERS[BATCH](service, ParameterLimits(), None)}) as prefix,
        KeyValueClient(nats_server.url, prefix) as client,
    ):
        await client.set_many("bucket", entries)
        assert service.calls == [("set-many", ANONYMOUS, b"bucket", entries)]
        assert await client.get_many("bucket", entries) == list(entries.values())


async def test_the_client_matches_the_answer_by_its_keys(nats_server: NatsServer, path: str) -> None:
    """Some providers change the order, or leave out keys that are missing."""

    def disordered(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
        return encode_get_many_result([b"b", b"gone", b"a"], [b"2", None, b"1"], 100)

    async with (
        serving(nats_server, path, {BATCH: {"get-many": disordered}}) as prefix,
        KeyValueClient(nats_server.url, prefix) as client,
    ):
        assert await client.get_many("bucket", ["a", "none", "b", "a"]) == [b"1", None, b"2", b"1"]
