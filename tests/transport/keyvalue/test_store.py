"""The handlers of get, set and increment against the decoders of these functions, for single calls and for runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, cast
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, encode_increment
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import (
    NEVER,
    AwaitedRun,
    ParameterLimits,
    encode_bucket_key,
    function_handler,
)
from keyvalue_transport.keyvalue.outcomes import Tally
from keyvalue_transport.keyvalue.store import (
    STORE,
    StoreInterface,
    encode_set,
    store_handlers,
)
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import SMALL_BYTES, Caller, ForBegunRuns, ForRuns, Handler
from tests.transport.keyvalue.functions import (
    CALLER,
    FUNCTIONS,
    HANDLERS,
    KINDS,
    TALLIES,
    Kind,
    Noted,
    Parameters,
    answered,
    interface_errors,
    mutated,
    numbers,
)

#: Lengths next to those at which the result changes: a length of one byte, and the limits below.
lengths = st.sampled_from([0, 1, 2, 7, 8, 9, 126, 127, 128, 129, 200])
texts = st.builds(lambda size, unit: (unit * size)[:size], lengths, st.sampled_from([b"k", "é".encode(), b"\xff"]))
COMPARED = ["get", "set", "increment"]
#: Parameters after the bucket and the key.
MORE: dict[str, list[st.SearchStrategy[object]]] = {"get": [], "set": [texts], "increment": [numbers]}
#: Answers of the service. For get, values whose length takes one byte and two bytes.
failures = interface_errors | st.builds(RuntimeError, st.just("the disk is on fire"))
ANSWERS: dict[str, st.SearchStrategy[object]] = {
    "get": st.none() | texts | failures,
    "set": st.none() | failures,
    "increment": numbers | st.just(-1) | failures,
}


def decoded_handler(name: str, service: Any, limits: ParameterLimits, tally: Tally) -> Handler:
    """Return the handler that a function would have if it were not inlined."""
    function, missing = FUNCTIONS[name], None if name == "get" else NEVER
    return function_handler(function.decode, getattr(service, name), function.encode_result, missing, limits, tally)


def outcomes(
    name: str, kind: Kind, answer: object, limits: ParameterLimits, buffer: bytes, start: int, end: int
) -> list[tuple[object, list[Parameters], dict[str, Tally]]]:
    """Return the outcomes of both handlers: result or error, calls and counts.

    The limits change after the handlers are made.
    """
    seen = []
    for is_written_out in (True, False):
        instance, service, in_force = FUNCTIONS[name].instance, Noted(answer), ParameterLimits()
        tallies = TALLIES[instance]()
        if is_written_out:
            handler = HANDLERS[instance](kind(service), in_force, tallies)[name]
        else:
            handler = decoded_handler(name, kind(service), in_force, tallies[name])
        in_force.bucket_bytes_max, in_force.key_bytes_max = limits.bucket_bytes_max, limits.key_bytes_max
        in_force.value_bytes_max = limits.value_bytes_max
        seen.append((outcome_at(handler, buffer, start, end), service.calls, tallies))
    return seen


def outcome_at(handler: Handler, buffer: bytes, start: int, end: int) -> object:
    """Return the outcome of a handler, in a form that can be compared."""
    try:
        return answered(handler(CALLER, buffer, start, end))
    except NeedMoreBytes as error:
        return error.end_min
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize("name", COMPARED)
@settings(max_examples=200)
@given(
    kind=st.sampled_from(KINDS),
    limits=st.builds(ParameterLimits, lengths, lengths, lengths),
    before=st.binary(max_size=3),
    trailing=st.binary(max_size=3),
    choice=st.data(),
)
def test_the_handlers_agree_with_their_decoders(
    name: str, kind: Kind, limits: ParameterLimits, before: bytes, trailing: bytes, choice: st.DataObject
) -> None:
    """Try any bytes and any limits, with the parameters anywhere in a buffer."""
    encoded = st.builds(FUNCTIONS[name].encode, texts, texts, *MORE[name])
    params = choice.draw(encoded | mutated(encoded) | st.binary(max_size=12))
    start, end = len(before), len(before + params)
    written, decoded = outcomes(name, kind, choice.draw(ANSWERS[name]), limits, before + params + trailing, start, end)
    assert written == decoded


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize(
    ("bucket", "key"),
    [
        *((b"k" * size, b"k" * 106) for size in (128, 200, 255)),
        *((b"k", b"k" * size) for size in (128, 200, 255)),
        (b"b", b"\x04kkkk"),
        (b"b\x06", b"kkkkk"),
    ],
)
def test_the_bytes_of_a_text_are_never_read_as_a_length(name: str, bucket: bytes, key: bytes) -> None:
    """Cut the parameters anywhere.

    The second byte of a length, "k" (107), 4 and 6 would be lengths that reach exactly to the end.
    """
    parameters = bucket, key, *{"get": (), "set": (b"k" * 20,), "increment": (300,)}[name]
    params = FUNCTIONS[name].encode(*parameters)
    for cut in range(len(params) + 1):
        written, decoded = outcomes(name, KINDS[0], FUNCTIONS[name].answer, ParameterLimits(), params, 0, cut)
        assert written == decoded
    assert written[1] == [(name, CALLER, *parameters)]


class Values(Noted):
    """A service whose value for a key depends on the bucket and the key."""

    def __init__(self, values: Sequence[bytes | None]) -> None:
        super().__init__()
        self._values = values

    def get(self, caller: Caller, bucket: bytes, key: bytes) -> bytes | None:
        if bucket == b"z":
            raise RuntimeError
        return self._values[crc32(bucket + b"." + key) % len(self._values)]

    def get_each(self, caller: Caller, bucket: bytes, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self.get(caller, bucket, key) for key in keys]


#: Values next to the lengths at which a result gets another form, or is too long for a run.
values_of_runs = st.none() | st.sampled_from(
    [b"", b"v", *(bytes(size) for size in (127, 128, 4_000, 4_087, 4_088, 4_095))]
)


def blocks(size: int) -> st.SearchStrategy[bytes]:
    """Return bytes that are mostly a text, and often small lengths."""
    if size > 9:
        return st.sampled_from([b"a" * size, b"b" * size, b"\xff" * size])
    return st.lists(st.sampled_from(b"\x00\x01\x02\x03ab\xff"), min_size=size, max_size=size).map(bytes)


def whole(results: Any) -> list[bytes]:
    """Return the results of a run. If calls must be made one by one, there are none."""
    if results is None:
        return []
    of_all, rests = results
    assert not of_all or len(set(map(len, rests))) == 1
    return [of_all + rest for rest in rests]


@settings(max_examples=200)
@given(
    bucket=st.sampled_from([b"", b"b", b"z", b"bucket", b"\xc3\xa9", bytes(127), bytes(128)]),
    key_bytes=st.sampled_from([0, 1, 2, 127, 128]),
    values=st.lists(values_of_runs, min_size=1, max_size=3),
    limits=st.builds(ParameterLimits, st.sampled_from([1, 6, 1024]), st.sampled_from([1, 127, 1024])),
    choice=st.data(),
)
def test_the_gets_of_a_run_have_the_results_of_single_gets(
    bucket: bytes, key_bytes: int, values: list[bytes | None], limits: ParameterLimits, choice: st.DataObject
) -> None:
    usual = blocks(key_bytes).map(lambda key: encode_bucket_key(bucket, key))
    size = len(encode_bucket_key(bucket, bytes(key_bytes)))
    shifted = usual.map(lambda params: encode_bucket_key((bucket + b"b")[: size - 2], bytes(size))[:size])
    others = blocks(size)
    run = choice.draw(st.lists(usual, min_size=1) | st.lists(usual | shifted | others, min_size=1))
    tallies = TALLIES[STORE](), TALLIES[STORE]()
    handler, single = (store_handlers(cast(StoreInterface, Values(values)), limits, each)["get"] for each in tallies)
    assert isinstance(handler, ForRuns)
    arguments = handler.split(run)
    results = None if arguments is None else handler.call_run(CALLER, arguments)
    texts = [params[len(bucket) + 2 :] for params in run]
    if (
        [encode_bucket_key(bucket, text) for text in texts] == run
        and b"".join(run).isascii()
        and len(bucket) <= min(limits.bucket_bytes_max, 127)
        and key_bytes <= min(limits.key_bytes_max, 127)
        and bucket != b"z"
        and all(len(value or b"") < 4_088 for value in values)
    ):
        assert results is not None
    if results is None:
        assert tallies[0] == TALLIES[STORE]()
    else:
        assert whole(results) == [single(CALLER, params, 0, len(params)) for params in run]
        assert tallies[0] == tallies[1]
        assert all(0 < len(result) <= SMALL_BYTES for result in whole(results))


def test_the_gets_of_a_run_may_have_values_of_several_sizes() -> None:
    handlers = store_handlers(cast(StoreInterface, Values([b"", b"v", b"value"])), ParameterLimits(), TALLIES[STORE]())
    get = cast(ForRuns, handlers["get"])
    run = [encode_bucket_key(b"b", b"%d" % number) for number in range(10)]
    singles = [get(CALLER, params, 0, len(params)) for params in run]
    assert len(set(singles)) == 3
    assert whole(get.call_run(CALLER, get.split(run))) == singles


class Together(Noted):
    """A service that makes sets together, or begins them, and notes them. It refuses some keys."""

    def __init__(self, begins: bool) -> None:
        super().__init__()
        self.begin_sets = self._begin if begins else None

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes) -> None:
        self.calls.append(("set", caller, bucket, key, value))
        if key.endswith(b"r"):
            raise OtherError("it is full")

    def set_each(self, caller: Caller, bucket: bytes, keys: Sequence[bytes], values: Sequence[bytes]) -> int:
        for number, (key, value) in enumerate(zip(keys, values, strict=True)):
            if key.endswith(b"r"):
                return number
            self.set(caller, bucket, key, value)
        return len(keys)

    def _begin(self, caller: Caller, bucket: bytes, keys: Sequence[bytes], values: Sequence[bytes]) -> AwaitedRun:
        self.calls += [("set", caller, bucket, key, value) for key, value in zip(keys, values, strict=True)]
        return AwaitedRun(None, lambda read: None)  # type: ignore[arg-type] # it is not begun


@pytest.mark.parametrize("begins", [True, False])
@settings(max_examples=300)
@example([(b"b", b"k%d" % number, b"v%d" % number) for number in range(9)], False, b"", ParameterLimits())
@example([(b"b", b"kr", b"1"), (b"b", b"kk", b"2")], False, b"", ParameterLimits())
@example([(b"b", b"kv", b"2"), (b"b", b"k", b"v2")], False, b"", ParameterLimits())
@example([(b"b", b"k", bytes(129))], False, b"", ParameterLimits())
@example([(b"b", b"k", bytes(129))], False, b"", ParameterLimits(value_bytes_max=128))
@example([(b"b", b"k", b"value")], True, b"", ParameterLimits())
@given(
    st.lists(st.tuples(texts, texts | st.just(b"r"), texts), min_size=1, max_size=4),
    st.booleans(),
    st.binary(max_size=2),
    st.builds(ParameterLimits, *[st.sampled_from([1, 127, 128, 1000])] * 3),
)
def test_sets_that_are_made_or_begun_together_are_those_that_would_be_one_by_one(
    begins: bool, sets: list[tuple[bytes, bytes, bytes]], is_odd: bool, extra: bytes, limits: ParameterLimits
) -> None:
    params = [encode_set(*each) + extra for each in sets]
    bucket, key, value = sets[0]
    is_odd = is_odd and 0 < len(value) < 127
    if is_odd:  # the last bytes do not belong to the value
        params.append(encode_set(bucket, key, value[:-1]) + value[-1:] + extra)
    sizes = len(params[0])
    params = [each for each in params if len(each) == sizes]  # those of a run have one size
    tallies = TALLIES[STORE](), TALLIES[STORE]()
    together, singly = Together(begins), Together(True)
    handler: Any = store_handlers(together, limits, tallies[0])["set"]
    one_by_one = store_handlers(singly, limits, tallies[1])["set"]
    outcomes = [outcome_at(one_by_one, each, 0, sizes) for each in params]
    if begins:
        assert type(handler) is ForBegunRuns
        is_together = handler.begin_run(CALLER, params) is not None
    else:
        assert type(handler) is ForRuns
        arguments = handler.split(params)
        if is_together := arguments is not None:
            results = whole(handler.call_run(CALLER, arguments))
            rest = [outcome_at(handler, each, 0, sizes) for each in params[len(results) :]]
            assert results + rest == outcomes
            assert tallies[0] == tallies[1]
    assert together.calls == (singly.calls if is_together else [])
    are_alike = len({(bucket, len(key), len(value)) for bucket, key, value in sets[: len(params)]}) == 1
    if are_alike and len(singly.calls) == len(sets) == len(params) and not extra and not is_odd:
        is_short = all(name.isascii() and len(name) < 128 for each in sets for name in each[:2])
        assert is_together == is_short


class Adding(Noted):
    """A service that makes increments, also together. It refuses some keys, and the sums have one byte or several."""

    def increment(self, caller: Caller, bucket: bytes, key: bytes, delta: int) -> int:
        self.calls.append(("increment", caller, bucket, key, delta))
        if key.endswith(b"r"):
            raise OtherError("no counter")
        return len(self.calls) * (delta + 1) ** 3

    def increment_each(
        self, caller: Caller, bucket: bytes, keys: Sequence[bytes], deltas: Sequence[int]
    ) -> Sequence[int]:
        calls = zip(keys, deltas, strict=True)
        usual = takewhile(lambda call: not call[0].endswith(b"r"), calls)
        return [self.increment(caller, bucket, *call) for call in usual]


@settings(max_examples=300)
@example([(b"b", b"k%d" % number, number) for number in range(9)], False, b"", ParameterLimits())
@example([(b"b", b"kr", 1), (b"b", b"kk", 127)], False, b"", ParameterLimits())
@example([(b"bb", b"k", 1), (b"b", b"kk", 1)], False, b"", ParameterLimits())
@example([(b"b", b"k", 128)], False, b"", ParameterLimits())
@example([(b"b", b"k", 1)], True, b"", ParameterLimits())
@given(
    st.lists(st.tuples(texts, texts | st.just(b"r"), st.integers(0, 127) | numbers), min_size=1, max_size=4),
    st.booleans(),
    st.binary(max_size=1),
    st.builds(ParameterLimits, *[st.sampled_from([1, 127, 1000])] * 2),
)
def test_increments_that_are_made_together_are_those_one_by_one(
    increments: list[tuple[bytes, bytes, int]], is_cut: bool, extra: bytes, limits: ParameterLimits
) -> None:
    params = [encode_increment(*each) + extra for each in increments]
    if is_cut:  # the last delta has another byte
        params.append(encode_increment(*increments[0][:2], 0)[:-1] + b"\x80" + extra)
    sizes = len(params[0])
    params = [each for each in params if len(each) == sizes]
    tallies = TALLIES[ATOMICS](), TALLIES[ATOMICS]()
    together, singly = Adding(), Adding()
    handler: Any = atomics_handlers(together, limits, tallies[0])["increment"]
    one_by_one = atomics_handlers(singly, limits, tallies[1])["increment"]
    outcomes = [outcome_at(one_by_one, each, 0, sizes) for each in params]
    assert type(handler) is ForRuns
    arguments = handler.split(params)
    if arguments is None:
        assert (together.calls, tallies[0]) == ([], TALLIES[ATOMICS]())
    else:
        results = whole(handler.call_run(CALLER, arguments))
        rest = [outcome_at(handler, each, 0, sizes) for each in params[len(results) :]]
        assert results + rest == outcomes
        assert (together.calls, tallies[0]) == (singly.calls, tallies[1])
    are_alike = len({(bucket, len(key)) for bucket, key, _ in increments[: len(params)]}) == 1
    if are_alike and len(singly.calls) == len(increments) == len(params) and not extra and not is_cut:
        is_short = all(name.isascii() and len(name) < 128 for each in increments for name in each[:2])
        assert (arguments is not None) == (is_short and all(delta < 128 for _, _, delta in increments))
