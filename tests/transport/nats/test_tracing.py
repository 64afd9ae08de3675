"""Sampled calls: which calls are noted, and that tracing changes nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.tracing import FinishedCall, Function, OutgoingCall, Tracer
from keyvalue_transport.wrpc.errors import DecodeError, NeedMoreBytes, NoPlaceError
from keyvalue_transport.wrpc.handler import EXPIRED, REFUSED, Again, Caller, Handler, HandlerResult, LargeResult
from keyvalue_transport.wrpc.invocation import InvocationLimits, Invocations, Step
from tests.invoking import invoke
from tests.recorded_replies import RecordedReplies
from tests.transport.nats.direct.scene import (
    DELETE,
    EXISTS,
    GET,
    HEADERS,
    SET,
    UNIT,
    Direct,
    cut,
    get_params,
    hmsg,
    set_params,
)

IDS = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
#: The traces of calls, and True if a call with this trace is sampled.
TRACES = {
    f"00-{IDS[0]}-{IDS[1]}-01": True,
    f"00-{IDS[0][::-1]}-{IDS[1][::-1]}-01": True,
    f"00-{IDS[0]}-{IDS[1]}-03": True,
    f"00-{IDS[0]}-{IDS[1]}-00": False,
    f"00-{IDS[0]}-{IDS[1]}-02": False,
    f"00-{'0' * 32}-{IDS[1]}-01": False,
    f"00-{IDS[0]}-{'0' * 16}-01": False,
    f"00-{IDS[0].upper()}-{IDS[1]}-01": False,
    f"ff-{IDS[0]}-{IDS[1]}-01": False,
    f"00-{IDS[0]}-{IDS[1]}-ff": True,
    f"cc-{IDS[0]}-{IDS[1]}-09": True,
    f"00-{IDS[0]}-{IDS[1]}-g1": False,
    f"00-{IDS[0]}-{IDS[1]}-01-more1": False,
    "00-1-2-01": False,
    "1": False,
    "": False,
}
FUNCTIONS = {GET: get_params(b"k"), SET: set_params(b"k", b"v"), DELETE: get_params(b"k"), EXISTS: get_params(b"k")}


def traced(trace: str | None, is_last: bool) -> bytes:
    """Return headers with a trace, before or after the other headers."""
    if trace is None:
        return HEADERS
    line = f"traceparent: {trace}\r\n".encode()
    return HEADERS[:-2] + line + b"\r\n" if is_last else HEADERS[:10] + line + HEADERS[10:]


@given(
    runs=st.lists(
        st.tuples(
            st.sampled_from(sorted(FUNCTIONS)),
            st.sampled_from([None, *TRACES]),
            st.booleans(),
            st.integers(1, 9),
            st.booleans(),
        ),
        max_size=12,
    ),
    data=st.data(),
)
def test_each_sampled_call_is_noted_once_and_no_other(
    runs: list[tuple[int, str | None, bool, int, bool]], data: st.DataObject
) -> None:
    """With shapes and without, however the stream is cut, and with the answers of a server that does not trace."""

    async def check() -> None:
        frames, sampled = [], []
        for function, trace, is_last, times, alternates in runs:
            for number in range(times):
                # Alternate with a trace of the same length that is not sampled.
                own = f"{trace[:-1]}0" if trace and alternates and number % 2 else trace
                frames.append(hmsg(function, FUNCTIONS[function], b"r%d" % (number % 3), traced(own, is_last)))
                if own is not None and TRACES.get(own, False):
                    sampled.append((own, function))
        stream = b"".join(frames)
        loop = asyncio.get_running_loop()
        expected = Direct(loop).read(stream) if stream else []
        pieces = cut(stream, data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
        for alike in (True, False):
            noted: list[FinishedCall] = []
            tracer = Tracer(noted.append)
            direct = Direct(loop, alike=alike, tracer=tracer)
            for function in FUNCTIONS:
                tracer.add(direct.route(function), "store", str(function))
            assert direct.read(*pieces if stream else ()) == expected
            assert [(call.traceparent, call.function) for call in noted] == [
                (trace, ("store", str(function))) for trace, function in sampled
            ]
            assert all(call.peer == "component" and call.began_ns <= call.ended_ns for call in noted)
            assert all(call.outcome[:1] == UNIT for call in noted)

    asyncio.run(check())


async def test_calls_that_are_not_sampled_keep_their_shape_beside_sampled_ones() -> None:
    """A sampled call in a run is parsed. The shape of the others stays, and calls the handler itself."""
    tracer = Tracer(lambda call: None)
    direct = Direct(asyncio.get_running_loop(), tracer=tracer)
    tracer.add(direct.route(GET), "store", "get")
    usual, sampled = (hmsg(GET, FUNCTIONS[GET], headers=traced(f"00-{'-'.join(IDS)}-0{flag}", True)) for flag in (0, 1))
    direct.read(usual * 3)
    shape = direct.routes.alike.shape
    assert shape is not None
    assert shape.rest.startswith(b"0\r\n")
    assert shape.handler is direct.route(GET)
    direct.read(usual * 5 + sampled + usual * 5 + sampled * 3 + usual)
    assert direct.routes.alike.shape is shape
    assert shape.take(sampled, 0, len(sampled), len(sampled))[1] == 0
    assert shape.take(usual, 0, len(usual), len(usual))[1] == len(usual)


# Calls that are not answered at once

TRACE = next(iter(TRACES))
CALLER = Caller("component", None)


class Now:
    """An answer that is done."""

    def __init__(self, value: bytes | BaseException) -> None:
        self.answer: Any = None
        self._value = value

    def encode(self, read: Callable[[], object]) -> bytes:
        if isinstance(self._value, BaseException):
            raise self._value
        return self._value


def failing() -> bytes:
    raise RuntimeError


def steps_of(*results: HandlerResult | Exception) -> Handler:
    """Return a handler that gives one result after the other."""
    rest: Iterator[HandlerResult | Exception] = iter(results)

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        result = next(rest)
        if isinstance(result, Exception):
            raise result
        return result

    return handler


@pytest.mark.parametrize(
    ("handler", "has_room", "outcome"),
    [
        (steps_of(b"\x00value"), True, b"\x00v"),
        (steps_of(b""), True, b""),
        (steps_of(DecodeError("malformed")), True, "DecodeError"),
        (steps_of(RuntimeError()), True, "RuntimeError"),
        (steps_of(NoPlaceError()), True, REFUSED),
        (steps_of(NeedMoreBytes(2), b"\x01\x02"), True, b"\x01\x02"),
        (steps_of(NeedMoreBytes(2), ValueError()), True, "ValueError"),
        (steps_of(Now(b"\x00")), True, b"\x00"),
        (steps_of(Now(ValueError())), True, "ValueError"),
        (steps_of(Now(asyncio.CancelledError())), True, REFUSED),
        (steps_of(Again(None), b"\x00"), True, b"\x00"),
        (steps_of(Again(None), LargeResult(lambda: b"\x00large")), True, b"\x00l"),
        (steps_of(LargeResult(lambda: b"\x00large")), True, b"\x00l"),
        (steps_of(LargeResult(failing)), True, "RuntimeError"),
        (steps_of(LargeResult(lambda: Now(b"\x00late"))), True, b"\x00l"),
        (steps_of(LargeResult(failing), LargeResult(lambda: b"\x00large")), False, b"\x00l"),
        (steps_of(NeedMoreBytes(2), LargeResult(failing), Again(None), b"\x00"), False, b"\x00"),
    ],
)
def test_a_call_is_noted_once_whatever_way_its_answer_takes(
    handler: Handler, has_room: bool, outcome: bytes | str
) -> None:
    """It is not noted before its answer is known: not while parts of its parameters or its answer are missing."""
    noted: list[FinishedCall] = []
    invocations: Invocations[str, Any] = Invocations(RecordedReplies(), lambda: "token", None, lambda: has_room)
    tracer = Tracer(noted.append)
    tracer.add(handler, "store", "get")
    own = tracer.of(handler, TRACE, CALLER)
    step: Step[str, Any] | None = invoke(invocations, own, "reply", CALLER, b"p", 0.0, TRACE)
    if invocations.half_open:
        assert noted == []
        step = invocations.receive_params("token", b"p", 0.0)
    if invocations.queued:
        assert noted == []
        step = invocations.answer_queued()
    assert step is not None
    if step.waiting is not None:
        assert noted == []
        try:
            invocations.answer(step.waiting, step.waiting.pending.encode(lambda: None))
        except BaseException as error:
            invocations.finish(step.waiting, error if isinstance(error, Exception) else TimeoutError())
    assert [(call.traceparent, call.function, call.peer, call.outcome) for call in noted] == [
        (TRACE, ("store", "get"), "component", outcome)
    ]
    assert (invocations.half_open, invocations.queued, invocations.waiting) == (0, 0, 0)


def pending() -> Now:
    """Return an answer that the core may drop."""
    answer = Now(b"\x00")
    answer.answer = SimpleNamespace(cancel=lambda: None)
    return answer


def test_a_call_that_a_limit_or_a_stop_ends_is_noted_once() -> None:
    """It is noted with the reason. So is the end of parameters that are incomplete."""
    limits = InvocationLimits(half_open_max=8, waiting_max=1, half_open_timeout_s=1.0, queued_timeout_s=2.0)
    noted: list[FinishedCall] = []
    invocations: Invocations[str, Any] = Invocations(RecordedReplies(), iter("abcdef").__next__, limits, lambda: False)
    tracer = Tracer(noted.append)

    def begin(*results: HandlerResult | Exception) -> None:
        handler = steps_of(*results)
        tracer.add(handler, "store", f"call {len(tracer._functions)}")
        invoke(invocations, tracer.of(handler, TRACE, CALLER), "reply", CALLER, b"p", 0.0, TRACE)

    def ended() -> list[tuple[str, bytes | str]]:
        found = [(call.function.name, call.outcome) for call in noted]
        assert {call.peer for call in noted} == {"component"}
        noted.clear()
        return found

    begin(NeedMoreBytes(2))
    begin(NeedMoreBytes(2))
    begin(NeedMoreBytes(2))  # one caller may have a quarter of the places
    assert ended() == [("call 2", REFUSED)]
    invocations.receive_params("a", b"", 0.5)
    assert ended() == [("call 0", "DecodeError")]
    begin(LargeResult(failing))
    handler = steps_of()
    tracer.add(handler, "store", "held")
    assert invocations.hold(tracer.of(handler, TRACE, CALLER), "reply", CALLER, b"p", 0.0, TRACE, "component")
    begin(pending())
    begin(pending())
    assert ended() == [("call 6", REFUSED)]
    invocations.expire(1.5)
    assert ended() == [("call 1", EXPIRED)]
    invocations.expire(2.5)
    assert ended() == [("call 3", EXPIRED), ("held", EXPIRED)]
    begin(NeedMoreBytes(2))
    begin(LargeResult(failing))
    assert noted == []
    invocations.close()
    assert ended() == [("call 7", REFUSED), ("call 8", REFUSED)]
    begin(NeedMoreBytes(2))
    assert ended() == [("call 9", REFUSED)]


def test_what_a_call_causes_belongs_to_its_own_span() -> None:
    """The call is current only while its handler runs, also if the handler fails."""
    noted: list[FinishedCall] = []
    tracer = Tracer(noted.append)
    causes: list[str] = []

    def handler(caller: Caller, buffer: bytes, start: int, end: int) -> HandlerResult:
        assert tracer.current is not None
        causes.extend(tracer.current.cause() for _ in range(2))
        raise RuntimeError

    tracer.add(handler, "store", "set")
    assert tracer.current is None
    with pytest.raises(RuntimeError):
        tracer.of(handler, TRACE, CALLER)(CALLER, b"", 0, 0)
    assert tracer.current is None
    outgoing = OutgoingCall(tracer, causes[0], Function("watcher", "on-set"), "watcher")
    outgoing.end(None)
    OutgoingCall(tracer, causes[1], Function("watcher", "on-set"), "watcher").end(TimeoutError())
    call, first, second = noted
    assert causes == [f"00-{IDS[0]}-{call.span_id:016x}-01"] * 2
    assert first.traceparent == second.traceparent == causes[0]
    assert outgoing.traceparent == f"00-{IDS[0]}-{first.span_id:016x}-01"
    assert len({call.span_id, first.span_id, second.span_id, 0}) == 4
    assert [(each.peer, each.outcome, each.is_outgoing) for each in noted] == [
        ("component", "RuntimeError", False),
        ("watcher", b"", True),
        ("watcher", "TimeoutError", True),
    ]


def test_only_sampled_calls_get_a_handler_of_their_own() -> None:
    handler = steps_of()
    tracer = Tracer(lambda call: None)
    tracer.add(handler, "store", "get")
    assert tracer.of(handler, None, CALLER) is handler
    for trace, is_sampled in TRACES.items():
        assert (tracer.of(handler, trace, CALLER) is not handler) is is_sampled
