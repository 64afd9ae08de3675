"""Calls that wait for room: whose turn it is, how much may wait, and how the core answers them."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.keyvalue.interface import NEVER, AwaitedResult
from keyvalue_transport.keyvalue.outcomes import new_tally
from keyvalue_transport.keyvalue.store import encode_truth_result
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.half_open import SHARES
from keyvalue_transport.wrpc.handler import ANONYMOUS, LARGE_BYTES, Caller, Derived, HandlerResult, LargeResult, Pending
from keyvalue_transport.wrpc.invocation import InvocationCounts, InvocationLimits, Invocations, Step
from keyvalue_transport.wrpc.queued_calls import CALL_BYTES, HOLDER_BYTES, QueuedCall, QueuedCalls, size_of
from tests.invoking import invoke
from tests.recorded_replies import RecordedReplies, Reply, accept, ended, result

BYTES_MAX = 4 * (HOLDER_BYTES + 4 * CALL_BYTES)


def never(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
    raise AssertionError("the queue calls no handler")


CALL = st.builds(
    QueuedCall,
    st.just(never),
    st.text(max_size=5),
    st.builds(Caller, st.sampled_from([None, "a", "b", "c" * 1000]), st.sampled_from([None, "default"])),
    st.binary(max_size=2 * CALL_BYTES),
    st.none() | st.just("00-trace"),
    st.just(0.0),
    st.none(),
).map(lambda call: call._replace(holder=call.caller.source_id))


def held_of(calls: list[QueuedCall[str]]) -> Counter[str | bytes | None]:
    """Return the bytes that each holder counts."""
    held = Counter[str | bytes | None]()
    for call in calls:
        held[call.holder] += size_of(call) if call.holder in held else HOLDER_BYTES + size_of(call)
    return held


@given(st.lists(CALL | st.sampled_from(["take", "expire"]), max_size=60))
def test_callers_take_turns_and_have_a_share_each(actions: list[QueuedCall[str] | str]) -> None:
    calls, waiting, turns = QueuedCalls[str](BYTES_MAX), list[QueuedCall[str]](), list[str | bytes | None]()
    for now, action in enumerate(actions):
        if isinstance(action, QueuedCall):
            call = action._replace(deadline_s=float(now))
            held = held_of([*waiting, call])
            source_id = call.holder
            fits = held.total() <= BYTES_MAX and held[source_id] <= BYTES_MAX // SHARES
            assert calls.add(call) is fits
            if fits:
                waiting.append(call)
                turns += [source_id] if source_id not in turns else []
        elif action == "take":
            expected = next((call for call in waiting if call.caller.source_id == turns[0]), None) if turns else None
            assert calls.take() == expected
            if expected is not None:
                waiting.remove(expected)
                turns.append(turns.pop(0))
        else:
            late = [call for call in waiting if call.deadline_s <= now / 2]
            assert Counter(calls.expire(now / 2)) == Counter(late)
            waiting = [call for call in waiting if call not in late]
        turns = [turn for turn in turns if any(call.caller.source_id == turn for call in waiting)]
        assert (len(calls), calls.held_bytes) == (len(waiting), held_of(waiting).total())
    assert Counter(calls.clear()) == Counter(waiting)
    assert (len(calls), calls.held_bytes, calls.take()) == (0, 0, None)


# The core


class Scene:
    """A core and a large value. `room` says whether there is room for a large result."""

    def __init__(self) -> None:
        self.room = False
        self.value: bytes | Pending | Exception = b"large"
        self.called = self.encoded = 0
        limits = InvocationLimits(queued_timeout_s=5.0)
        self.core = Invocations[str, Reply](RecordedReplies(), lambda: "token", limits, lambda: self.room)

    def handle(self, caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        if end - start < 2:
            raise NeedMoreBytes(start + 2)
        self.called += 1
        return LargeResult(self._encode)

    def _encode(self) -> bytes | Pending:
        self.encoded += 1
        if isinstance(self.value, Exception):
            raise self.value
        return self.value

    def begin(self, cut: bool = False, reply: str = "R") -> Step[str, Reply]:
        return invoke(self.core, self.handle, reply, ANONYMOUS, b"p" if cut else b"pp", 0.0, "00-trace")

    def invoke(self, cut: bool = False, reply: str = "R") -> list[Reply]:
        step = self.begin(cut, reply)
        sends = step.sends + (self.core.receive_params("token", b"p", 0.0).sends if cut else [])
        assert sends.pop(0) == accept(reply, "token" if cut else None)
        return sends


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.mark.parametrize("cut", [False, True])
def test_a_large_result_is_encoded_once_there_is_room(scene: Scene, cut: bool) -> None:
    scene.room = True
    assert scene.invoke(cut) == [result("R", b"large"), ended("R")]
    assert (scene.called, scene.encoded) == (1, 1)
    scene.room = False
    assert scene.invoke(cut) == []
    assert (scene.called, scene.encoded, scene.core.queued, scene.core.counts.answered) == (2, 1, 1, 1)
    scene.room = True
    assert scene.invoke(cut, "R2") == [], "it overtook a queued call"
    scene.value = b"new"
    assert scene.core.answer_queued() == Step([result("R", b"new"), ended("R")])
    assert scene.core.answer_queued() == Step([result("R2", b"new"), ended("R2")])
    assert scene.core.answer_queued() is None
    assert scene.core.counts == InvocationCounts(answered=3)
    assert (scene.core.queued, scene.core.queued_bytes, scene.encoded) == (0, 0, 3)


@pytest.mark.parametrize("size", [LARGE_BYTES, LARGE_BYTES + 1])
def test_a_result_is_large_if_its_encoding_is(scene: Scene, size: int) -> None:
    scene.invoke()
    scene.value = bytes(size)
    step = scene.core.answer_queued()
    assert step is not None
    assert step.is_large is (size > LARGE_BYTES)


@pytest.mark.parametrize("room", [False, True])
def test_a_slow_function_may_answer_later(scene: Scene, room: bool) -> None:
    """A page of keys may need several steps."""
    answer = Derived[bool](asyncio.sleep(0), lambda _: True)
    scene.room, scene.value = room, AwaitedResult(answer, encode_truth_result, NEVER, new_tally())
    step = scene.begin()
    if not room:
        queued = scene.core.answer_queued()
        assert queued is not None
        step = queued
    assert step.waiting is not None
    assert (scene.core.waiting, scene.core.queued, scene.core.counts.answered) == (1, 0, 0)
    answer.close()
    assert scene.core.finish(step.waiting, step.waiting.pending.encode(lambda: None)).sends[-1] == ended("R")


@pytest.mark.parametrize("room", [False, True])
def test_a_large_result_may_fail(scene: Scene, room: bool) -> None:
    scene.room, scene.value = room, RuntimeError("the disk is on fire")
    sends = scene.invoke()
    if not room:
        step = scene.core.answer_queued()
        assert step is not None
        assert step.failure == (scene.value, "00-trace")
        sends += step.sends
    assert sends == [ended("R")]
    assert scene.core.counts == InvocationCounts(failed=1)


def test_queued_calls_expire_and_end_at_a_stop(scene: Scene) -> None:
    assert scene.invoke() == []
    assert scene.core.expire(4.9) == Step([])
    assert scene.core.expire(5.0) == Step([ended("R")])
    assert scene.invoke() == []
    assert scene.core.close() == Step([ended("R")])
    assert scene.invoke() == [ended("R")]
    assert scene.core.counts == InvocationCounts(expired=1, refused=2)
    assert (scene.core.queued, scene.core.queued_bytes) == (0, 0)


# Held calls


def hold(scene: Scene, params: bytes, holder: str = "a", now_s: float = 0.0) -> bool:
    return scene.core.hold(scene.handle, holder + params.decode(), ANONYMOUS, params, now_s, "00-trace", holder)


def answer_held(scene: Scene) -> Step[str, Reply] | None:
    call = scene.core.take_held()
    if call is None:
        return None
    return invoke(scene.core, call.handler, call.reply, call.caller, call.params, 1.0, call.traceparent)


def test_a_held_call_is_processed_as_if_it_arrived_later(scene: Scene) -> None:
    scene.room = True
    for params, holder in ((b"pp", "a"), (b"qq", "a"), (b"r", "b"), (b"ss", "c")):
        assert hold(scene, params, holder)
    assert (scene.called, scene.core.held) == (0, 4), "a handler was called"
    assert answer_held(scene) == Step([accept("app"), result("app", b"large"), ended("app")])
    assert answer_held(scene) == Step([accept("br", "token")]), "its parameters are cut"
    scene.value = RuntimeError("the disk is on fire")
    failed = answer_held(scene)
    assert failed is not None
    assert failed.failure == (scene.value, "00-trace")
    assert failed.sends == [accept("css"), ended("css")]
    scene.room = False
    assert answer_held(scene) == Step([accept("aqq")])
    assert (answer_held(scene), scene.core.held, scene.core.queued, scene.core.half_open) == (None, 0, 1, 1)


def test_held_calls_expire_and_end_at_a_stop(scene: Scene) -> None:
    assert hold(scene, b"pp")
    assert hold(scene, b"qq", now_s=1.0)
    assert scene.core.expire(5.5) == Step([accept("app"), ended("app")])
    assert scene.core.close() == Step([accept("aqq"), ended("aqq")])
    assert not hold(scene, b"rr")
    assert scene.core.counts == InvocationCounts(expired=1, refused=1)
    assert (scene.called, scene.core.held) == (0, 0)
