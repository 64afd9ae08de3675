"""The codec of `watcher` and handlers that have no result: vectors written by hand, both paths, and what the caller is told."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.keyvalue.interface import ParameterLimits, decode_unit_result
from keyvalue_transport.keyvalue.watcher import (
    WATCHER,
    WatcherInterface,
    decode_nothing,
    decode_on_delete,
    decode_on_set,
    encode_on_delete,
    encode_on_set,
    watcher_handlers,
)
from keyvalue_transport.nats.invoker import Invoker
from keyvalue_transport.nats.replies import Send
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.call import Call
from keyvalue_transport.wrpc.errors import (
    DecodeError,
    InvocationEndedError,
    LengthLimitError,
    NeedMoreBytes,
    NoProviderError,
)
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Step
from tests.conftest import DEADLINE_S, NatsServer
from tests.invoking import invoke
from tests.recorded_replies import accept, ended, new_core
from tests.transport.keyvalue.test_atomics import check_written, connected, serving
from tests.transport.keyvalue.test_store import buckets, carried_out, keys, mutated, value_bytes
from tests.transport.nats.direct.scene import INBOX, PIECES, Direct, answer, hmsg, piece
from tests.vectors.by_hand import Written, load

LIMITS = ParameterLimits(bucket_bytes_max=8, key_bytes_max=16, value_bytes_max=32)
CALLER = Caller("provider", "default")
ENCODE: dict[str, Callable[..., bytes]] = {"on-set": encode_on_set, "on-delete": encode_on_delete}
DECODE: dict[str, Callable[[bytes, int, int, ParameterLimits], tuple[tuple[bytes, ...], int]]] = {
    "on-set": decode_on_set,
    "on-delete": decode_on_delete,
}
PARAMETERS: dict[str, st.SearchStrategy[tuple[bytes, ...]]] = {
    "on-set": st.tuples(buckets, keys, value_bytes),
    "on-delete": st.tuples(buckets, keys),
}
#: A valid call of each function.
CALLS: dict[str, tuple[bytes, ...]] = {"on-set": (b"0", b"key", b"value"), "on-delete": (b"0", b"key")}
END = ended("R_c")

functions = st.sampled_from(sorted(CALLS))
each_function = pytest.mark.parametrize("name", sorted(CALLS))


@pytest.mark.parametrize("vector", load("watcher"), ids=str)
def test_what_is_written_by_hand(vector: Written) -> None:
    check_written(
        vector,
        lambda buffer, at, end: DECODE[vector.function](buffer, at, end, LIMITS),
        lambda value: ENCODE[vector.function](*value),
    )


def test_vectors_are_of_all_functions() -> None:
    assert {(vector.function, vector.part) for vector in load("watcher")} == {(name, "parameters") for name in CALLS}


def test_the_instance_is_named_as_on_the_wire() -> None:
    assert WATCHER == "wrpc:keyvalue/watcher@0.2.0-draft"


@settings(deadline=None)
@given(functions, st.data(), st.binary(max_size=5), st.binary(max_size=5))
def test_parameters_come_back(name: str, choice: st.DataObject, before: bytes, behind: bytes) -> None:
    parameters = choice.draw(PARAMETERS[name])
    encoded = ENCODE[name](*parameters)
    end = len(before + encoded)
    assert DECODE[name](before + encoded + behind, len(before), end, LIMITS) == (parameters, end)
    for cut in range(len(encoded)):
        with pytest.raises(NeedMoreBytes) as raised:
            DECODE[name](encoded[:cut] + behind, 0, cut, LIMITS)
        assert cut < raised.value.end_min <= len(encoded)


@settings(deadline=None)
@given(functions, st.data())
def test_any_bytes_have_an_outcome(name: str, choice: st.DataObject) -> None:
    encoded = PARAMETERS[name].map(lambda parameters: ENCODE[name](*parameters))
    buffer = choice.draw(st.binary(max_size=40) | mutated(encoded))
    try:
        parameters, offset = DECODE[name](buffer, 0, len(buffer), LIMITS)
    except NeedMoreBytes as more:
        assert more.end_min > len(buffer)
    except (DecodeError, LengthLimitError) as error:
        assert "found " in str(error)
    else:
        assert offset <= len(buffer)
        again = ENCODE[name](*parameters)
        assert DECODE[name](again, 0, len(again), LIMITS) == (parameters, len(again))


def test_nothing_is_read_of_no_bytes() -> None:
    assert decode_nothing(b"", 0, 0) == (None, 0)
    assert decode_nothing(b"\x01\x02", 1, 1) == (None, 1)


# Who is told


class PlainWatcher:
    """Notes what it is told. `error` is raised by every call."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.error: Exception | None = None

    def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        self._note("on-set", caller, bucket, key, value)

    def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        self._note("on-delete", caller, bucket, key)

    def _note(self, *told: Any) -> None:
        self.told.append(told)
        if self.error is not None:
            raise self.error


class WaitingWatcher:
    """The same with coroutine functions, each of which gives way to others once."""

    def __init__(self, plain: PlainWatcher) -> None:
        self._plain = plain

    async def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        await asyncio.sleep(0)
        self._plain.on_set(caller, bucket, key, value)

    async def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        await asyncio.sleep(0)
        self._plain.on_delete(caller, bucket, key)


def plain(watcher: PlainWatcher) -> WatcherInterface:
    return watcher


def waiting(watcher: PlainWatcher) -> WatcherInterface:
    return WaitingWatcher(watcher)


KINDS = pytest.mark.parametrize("kind", [plain, waiting])
Kind = Callable[[PlainWatcher], WatcherInterface]


def test_there_is_a_handler_for_each_function() -> None:
    assert set(watcher_handlers(PlainWatcher(), LIMITS)) == set(CALLS)


@KINDS
@each_function
def test_handlers_tell_what_the_parameters_say(kind: Kind, name: str) -> None:
    watcher = PlainWatcher()
    handler = watcher_handlers(kind(watcher), LIMITS)[name]
    assert carried_out(handler, ENCODE[name](*CALLS[name]), CALLER) == b""
    assert watcher.told == [(name, CALLER, *CALLS[name])]


@KINDS
@each_function
@pytest.mark.parametrize("error", [RuntimeError("the disk is on fire"), OtherError("no result could say it")])
def test_an_error_is_no_result(kind: Kind, name: str, error: Exception) -> None:
    watcher = PlainWatcher()
    watcher.error = error
    handler = watcher_handlers(kind(watcher), LIMITS)[name]
    with pytest.raises(type(error), match=f"^{error}$"):
        carried_out(handler, ENCODE[name](*CALLS[name]))


@KINDS
@each_function
def test_a_length_over_its_limit_is_damage(kind: Kind, name: str) -> None:
    """And counted as such: the caller can't be told by a result, as by other functions."""
    watcher = PlainWatcher()
    limits = ParameterLimits(key_bytes_max=2)
    handler = watcher_handlers(kind(watcher), limits)[name]
    params = ENCODE[name](*CALLS[name])
    with pytest.raises(DecodeError, match=r"^key in bytes: found 3, allowed 2$"):
        handler(ANONYMOUS, params, 0, len(params))
    invocations = new_core()
    assert invoke(invocations, handler, "R_c", ANONYMOUS, params, 0.0).sends == [accept("R_c"), END]
    assert invocations.counts == InvocationCounts(damaged=1)
    assert watcher.told == []
    limits.key_bytes_max = 3
    assert carried_out(handler, params) == b""


@each_function
def test_a_coroutine_that_is_refused_is_closed(name: str) -> None:
    watcher = PlainWatcher()
    handler = watcher_handlers(waiting(watcher), LIMITS)[name]
    invocations = new_core(InvocationLimits(waiting_max=0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = invoke(invocations, handler, "R_c", ANONYMOUS, ENCODE[name](*CALLS[name]), 0.0)
        gc.collect()
    assert step == Step([accept("R_c"), END])
    assert [str(warning.message) for warning in caught] == []
    assert watcher.told == []


# No result, over both paths and at the client


@each_function
def test_no_result_is_the_end_alone(name: str) -> None:
    """Wherever the parameters are cut."""
    params = ENCODE[name](*CALLS[name])
    for cut in range(len(params) + 1):
        watcher = PlainWatcher()
        handler = watcher_handlers(watcher, LIMITS)[name]
        invocations = new_core()
        step = invoke(invocations, handler, "R_c", CALLER, params[:cut], 0.0)
        if cut == len(params):
            assert step == Step([accept("R_c"), END])
        else:
            assert step == Step([accept("R_c", "0")])
            assert invocations.receive_params("0", params[cut:], 0.0) == Step([END])
        assert invocations.counts == InvocationCounts(answered=1)
        assert watcher.told == [(name, CALLER, *CALLS[name])]


@each_function
async def test_no_result_that_was_waited_for_is_the_end_alone(name: str) -> None:
    watcher = PlainWatcher()
    handler = watcher_handlers(waiting(watcher), LIMITS)[name]
    invocations = new_core()
    step = invoke(invocations, handler, "R_c", CALLER, ENCODE[name](*CALLS[name]), 0.0)
    assert step.sends == [accept("R_c")]
    assert step.waiting is not None
    assert watcher.told == []
    pending = step.waiting.pending
    answer = asyncio.ensure_future(pending.answer)
    await answer
    assert invocations.finish(step.waiting, pending.encode(answer.result)) == Step([END])
    assert invocations.counts == InvocationCounts(answered=1)
    assert watcher.told == [(name, CALLER, *CALLS[name])]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is asked for its time alone."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@each_function
@pytest.mark.parametrize("alike", [True, False])
def test_no_result_is_the_end_alone_on_the_direct_path(loop: asyncio.AbstractEventLoop, name: str, alike: bool) -> None:
    """More than two that are alike, as then a frame is no longer taken apart; and one whose parameters are cut."""
    direct = Direct(loop, alike)
    watcher = PlainWatcher()
    direct.routes.add(PIECES + 1, watcher_handlers(watcher, LIMITS)[name])
    params = ENCODE[name](*CALLS[name])
    whole = b"".join(hmsg(PIECES + 1, params, b"R_%d" % number) for number in range(4))
    sends = direct.read(whole + hmsg(PIECES + 1, params[:-1], b"R_c"), piece("0", params[-1:]))
    assert sends == [
        *(send for number in range(4) for send in answer(f"R_{number}")),
        Send("R_c", b"", f"{INBOX}.0"),
        *answer("R_c", handshake=False),
    ]
    assert [told[0] for told in watcher.told] == [name] * 5
    assert [told[2:] for told in watcher.told] == [CALLS[name]] * 5
    assert direct.invocations.counts.answered == 5
    assert direct.invocations.counts.failed == 0


def called() -> Call[None]:
    call = Call(encode_on_delete(b"0", b"key"), decode_nothing, 1024, 1024)
    call.start()
    return call


@pytest.mark.parametrize("handshake_first", [True, False])
def test_the_end_is_success_at_the_client(handshake_first: bool) -> None:
    call = called()
    if handshake_first:
        assert call.accepted() == [b""]
        assert not call.done
    call.result(b"")
    assert (call.done, call.value, call.error) == (True, None, None)
    assert call.accepted() == ([] if handshake_first else [b""])


def test_nobody_who_is_told_is_no_success() -> None:
    call = called()
    call.fail(NoProviderError("nobody serves this function"))
    call.result(b"")
    assert isinstance(call.error, NoProviderError)


def test_the_end_alone_is_no_success_of_a_function_that_has_a_result() -> None:
    call = Call(b"", decode_unit_result, 1024, 1024)
    call.result(b"")
    assert isinstance(call.error, InvocationEndedError)


# Over NATS


@KINDS
async def test_a_component_is_told_and_the_caller_knows(nats_server: NatsServer, path: str, kind: Kind) -> None:
    watcher = PlainWatcher()
    headers = {"source-id": "provider", "link-name": "default"}
    value = bytes(range(256)) * 5000  # more than one message
    handlers = watcher_handlers(kind(watcher), ParameterLimits())
    async with (
        serving(nats_server, path, WATCHER, handlers) as prefix,
        connected(nats_server, "plain") as connection,
    ):
        invoker = Invoker(connection, headers)

        async def tell(name: str, params: bytes) -> None:
            subject = invocation_subject(prefix, WATCHER, name)
            return await invoker.invoke(subject, params, decode_nothing, DEADLINE_S)

        await tell("on-set", encode_on_set(b"0", b"key", b"v"))
        await tell("on-set", encode_on_set(b"0", b"large", value))
        await tell("on-delete", encode_on_delete(b"0", b"key"))
        assert watcher.told == [
            ("on-set", CALLER, b"0", b"key", b"v"),
            ("on-set", CALLER, b"0", b"large", value),
            ("on-delete", CALLER, b"0", b"key"),
        ]
        watcher.error = RuntimeError("the disk is on fire")
        await tell("on-delete", encode_on_delete(b"0", b"key"))  # the end is all that it knows
        with pytest.raises(NoProviderError, match="nobody serves this function"):
            await tell("on-nothing", b"")
