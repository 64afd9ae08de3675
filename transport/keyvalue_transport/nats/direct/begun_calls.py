"""The calls of the direct path that have begun a change, and wait for its end (`Begun` in wrpc/handler.py).

Most of them change the replicated store. Many end in one read, and their answers leave together. So each costs little:
a tuple while it waits, and no handshake of its own, because the handshake leaves together with the result.

The calls of a run (runs.py) begin together, and mostly end together. They cost a place in a tuple each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from time import monotonic
from typing import Any, TypeAlias

from keyvalue_transport.nats.direct.alike import InvocationFrame
from keyvalue_transport.nats.direct.answers import END, RESULT_LINES, SMALL, FrameReplies
from keyvalue_transport.nats.direct.frames import traceparent_in
from keyvalue_transport.nats.direct.runs import FrameRun, answers_of_run
from keyvalue_transport.wrpc.handler import Begun, BegunRun, Caller, ForBegunRuns, HandlerResult, Pending
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import Invocations, Step

__all__ = ["BegunCalls"]

#: Passes a call that does not wait here to the core: `DirectProtocol._enter_core` for one server.
Enter: TypeAlias = Callable[[Begun, Caller, bytes, bytes, int, int, int, HandlerResult | Exception], int]
#: The bytes before each tail in an answer, the head of the reply subjects, the handler and the caller.
Group: TypeAlias = tuple[tuple[bytes, bytes, bytes], bytes, Begun, Caller]
#: A group, the tail of the reply subject, the Pending answer, the `traceparent` and the memory that counts.
Call: TypeAlias = tuple[Group, bytes, Pending, str | None, int]
#: A group, the tails of the reply subjects of the calls that wait, their `traceparent`s if they have any, and the memory
#: that each counts.
Run: TypeAlias = tuple[Group, tuple[bytes, ...], Sequence[str | None] | None, int]


class BegunCalls:
    """The calls that wait, by their answers.

    :param on_step: called with each step that the core returns, and with an empty one when calls have ended
    :param send: sends the frames of a step
    :param call_soon: calls a function at the end of the read that is being parsed, or in the next turn of the event loop
    """

    def __init__(
        self,
        invocations: Invocations[bytes, bytes],
        replies: FrameReplies,
        on_step: Callable[[Step[bytes, bytes]], None],
        send: Callable[[list[bytes], bool], None],
        call_soon: Callable[[Callable[[], None]], None],
    ) -> None:
        self._invocations = invocations
        self._replies = replies
        self._on_step = on_step
        self._send = send
        self._call_soon = call_soon
        self._calls: dict[Any, Call] = {}
        self._runs: dict[BegunRun, Run] = {}
        self._out: list[bytes] = []  # the answers that leave at the next `_flush`
        self._is_due = False
        self._answered = 0  # number of these answers that are not counted yet
        #: The number of calls that have ended, and count as waiting until the next flush, and the memory that they count.
        #: They have one source id.
        self._ended = self._ended_bytes = 0
        self._source_id: str | None = None

    def begin(
        self, begun: Begun, caller: Caller, head: bytes, frames: Iterable[InvocationFrame], buffer: bytes, enter: Enter
    ) -> int:
        """Call the handler for a group of calls, and let them wait for their answers. Enter those that do not.

        No more calls begin than may wait. Return the number of bytes that `enter` has added to the output.
        """
        invocations, calls, handler, done = self._invocations, self._calls, begun.handler, self._done
        group = self._replies.begun(head), head, begun, caller
        source_id = caller.source_id
        room = invocations.room(source_id)
        if type(handler) is ForBegunRuns:
            if type(frames) is FrameRun and len(frames) <= room and self._begin_run(handler, group, frames, buffer):
                return 0
            handler = handler.handler
        number, held_bytes, out_bytes, is_traced = 0, 0, 0, True
        for tail, at, start, end in frames:
            result: HandlerResult | Exception
            try:
                result = handler(caller, buffer, start, end) if number < room else invocations.no_place(source_id)
            except Exception as error:  # any exception, including NeedMoreBytes
                result = error
            answer: Any = None
            try:
                answer = result.answer  # type: ignore[union-attr] # only a Pending has one
                add = answer.add_done_callback
            except AttributeError:
                add = None
            if add is None or answer in calls:
                out_bytes += enter(begun, caller, head + tail, buffer, at, start, end, result)
                if answer is not None:
                    room = invocations.room(source_id)
                result = b""  # free the bytes, because an exception's traceback may keep this frame alive
                continue
            trace = traceparent_in(buffer, at, start) if is_traced else None
            is_traced = trace is not None  # if one frame of a shape has no trace, no other has one
            size = end - start + WAIT_BYTES + getattr(result, "extra_bytes", 0)
            calls[answer] = group, tail, result, trace, size  # type: ignore[assignment] # a Pending
            number += 1
            held_bytes += size
            add(done)
        if number:
            invocations.begin_waits(source_id, number, held_bytes)
        return out_bytes

    def _begin_run(self, handler: ForBegunRuns, group: Group, frames: FrameRun, buffer: bytes) -> bool:
        """Call the handler for a run. Return False if the calls must begin one by one."""
        caller = group[3]
        run = handler.begin_run(caller, frames.params)
        if run is None:
            return False
        traces = None
        _, at, start, _ = next(iter(frames))
        if traceparent_in(buffer, at, start) is not None:
            traces = [traceparent_in(buffer, at, start) for _, at, start, _ in frames]
        size = len(frames.params[0]) + WAIT_BYTES
        self._runs[run] = group, frames.tails, traces, size
        self._invocations.begin_waits(caller.source_id, len(frames), len(frames) * size)
        run.begin(self._take, self._part)
        return True

    def _take(self, run: BegunRun, number: int, result: bytes) -> None:
        """Take the result of the next calls of a run."""
        group, tails, traces, size = self._runs.pop(run)
        if number < len(tails):
            self._runs[run] = group, tails[number:], traces and traces[number:], size
            tails = tails[:number]
        self._out += answers_of_run(group[0], tails, result, [b""] * number)
        self._answered += number
        self._note_end(group[3].source_id, number, number * size)

    def _part(self, run: BegunRun, answers: Sequence[Pending]) -> None:
        """Let the remaining calls of a run wait one by one."""
        group, tails, traces, size = self._runs.pop(run)
        for tail, pending, trace in zip(tails, answers, traces or [None] * len(tails), strict=True):
            self._calls[pending.answer] = group, tail, pending, trace, size
            pending.answer.add_done_callback(self._done)  # type: ignore[attr-defined] # a future or the like

    def _done(self, answer: Any) -> None:
        """Take an answer that is ready."""
        call = self._calls.pop(answer, None)
        if call is None:
            return  # it was given up
        group, tail, pending, _, held_bytes = call
        try:
            result = pending.encode(answer.result)
        except asyncio.CancelledError:
            self._end(call, TimeoutError("the answer was cancelled"))
        except Exception as error:  # any exception ends only its call
            self._end(call, error)
        else:
            size_max = self._replies.max_payload
            if not (0 < (size := len(result)) < SMALL and size <= size_max):
                self._end(call, result)
                return
            pub, handshake, next_pub = group[0]
            self._out += (pub, tail, handshake, tail, RESULT_LINES[size], result, next_pub, tail, END)
            self._answered += 1
            source_id = group[3].source_id
            if source_id is self._source_id and self._ended:
                self._ended += 1
                self._ended_bytes += held_bytes
            else:
                self._note_end(source_id, 1, held_bytes)

    def _end(self, call: Call, outcome: bytes | Exception) -> None:
        """End a call with a large or an empty result, or with an error."""
        (_, head, begun, caller), tail, _, trace, held_bytes = call
        step = self._invocations.receive(begun, head + tail, caller, b"", outcome, monotonic(), trace)
        self._out += step.sends
        self._on_step(step)
        self._note_end(caller.source_id, 1, held_bytes)

    def _note_end(self, source_id: str | None, number: int, held_bytes: int) -> None:
        """Count calls that have ended, and let `_flush` be called."""
        if self._ended and source_id != self._source_id:
            self._invocations.end_waits(self._source_id, self._ended, self._ended_bytes)
            self._ended = self._ended_bytes = 0
        self._source_id = source_id
        self._ended += number
        self._ended_bytes += held_bytes
        if not self._is_due:
            self._is_due = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        """Send the answers, and count their calls."""
        self._is_due = False
        if self._ended:
            self._invocations.end_waits(self._source_id, self._ended, self._ended_bytes)
            self._invocations.counts.answered += self._answered
            self._ended = self._ended_bytes = self._answered = 0
            out, self._out = self._out, []
            self._send([b"".join(out)], False)
            self._on_step(Step([]))

    def close(self) -> None:
        """Give up the calls that wait, because the server stops."""
        for run in list(self._runs):
            run.part()
        for answer in list(self._calls):
            answer.cancel()
        while self._calls:  # those whose answer can't be cancelled, or calls back later
            _, call = self._calls.popitem()
            self._end(call, TimeoutError("the server stops"))
        self._flush()
