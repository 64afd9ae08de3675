"""The calls of the direct path that wait for something that many calls share, and are made again then.

A handler returns `Again` for such a call (wrpc/handler.py). The rest of its group (alike.py) then waits too, and is not
made before. Until then, a call is only its tuple of alike.py, so it costs little, and its group keeps the whole read, unless
that is large. Its handshake leaves together with its result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import monotonic
from typing import TypeAlias

from keyvalue_transport.nats.direct.alike import InvocationFrame
from keyvalue_transport.nats.direct.answers import END, RESULT_LINES, FrameReplies
from keyvalue_transport.nats.direct.frames import traceparent_in
from keyvalue_transport.nats.direct.runs import FrameRun, answers_of_run
from keyvalue_transport.wrpc.handler import SMALL_BYTES, Again, Caller, ForRuns, Handler, HandlerResult
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import Invocations, Step
from keyvalue_transport.wrpc.repeated import WAITS_AGAIN

__all__ = ["Repeats"]

#: The step of calls that have ended, and whose results were sent.
NOTHING: Step[bytes, bytes] = Step([])
#: A group keeps a read of at most this size for each of its calls. If a read is larger, a run keeps a copy of its frames, if
#: they are not larger. Otherwise, a group keeps copies of the parameters.
KEPT_BYTES = 512

#: The tail of a call's reply subject, the offset of its frame or its `traceparent`, and the start and end of its parameters.
Repeat: TypeAlias = tuple[bytes, int | str | None, int, int]
#: A handler, a caller, the head of the reply subjects, the bytes that hold the parameters, calls, and the memory that counts.
Group: TypeAlias = tuple[Handler, Caller, bytes, bytes, Sequence[Repeat] | FrameRun, int]


class Repeats:
    """The calls that are made again.

    :param on_step: called with each step that the core returns, and with an empty one when calls have ended
    :param send: sends the frames of a step; large results may be sent in parts
    """

    def __init__(
        self,
        invocations: Invocations[bytes, bytes],
        replies: FrameReplies,
        on_step: Callable[[Step[bytes, bytes]], None],
        send: Callable[[list[bytes], bool], None],
    ) -> None:
        self._invocations = invocations
        self._replies = replies
        self._on_step = on_step
        self._send = send
        self._waiting: dict[Again, list[Group]] = {}

    def add(
        self,
        again: Again,
        handler: Handler,
        caller: Caller,
        head: bytes,
        first: InvocationFrame,
        rest: Iterator[InvocationFrame],
        buffer: bytes,
    ) -> None:
        """Let a call wait whose handler has returned `again`, with the rest of its group. Refuse those that are too many.

        The rest is not called before, because the handler would most likely return the same. Each of them takes as much
        memory as the first one, because they have its shape.
        """
        calls = [first, *rest]
        if len(buffer) <= KEPT_BYTES * len(calls):
            self._add(again, handler, caller, head, buffer, calls)
        else:
            self._add(again, handler, caller, head, *copies(buffer, calls))

    def add_run(
        self, again: Again, handler: ForRuns, caller: Caller, head: bytes, run: FrameRun, buffer: bytes
    ) -> None:
        """Let the calls of a run wait, like `add`."""
        number = len(run)
        if len(buffer) > KEPT_BYTES * number:
            buffer = run.cut_out(buffer)
        if len(buffer) <= KEPT_BYTES * number:
            self._add(again, handler, caller, head, buffer, run)
        else:
            self._add(again, handler, caller, head, *copies(buffer, [*run]))

    def _add(
        self,
        again: Again,
        handler: Handler,
        caller: Caller,
        head: bytes,
        buffer: bytes,
        calls: Sequence[Repeat] | FrameRun,
    ) -> None:
        invocations, source_id, number = self._invocations, caller.source_id, len(calls)
        room = invocations.room(source_id)
        if room < number:
            result, number = invocations.no_place(source_id).result, max(0, room)
            calls = [*calls]
            for tail, _, _, _ in calls[number:]:
                step = invocations.refuse(head + tail, handler, result)
                self._send(step.sends, False)
                self._on_step(step)
            calls = calls[:number]
            if not calls:
                return
        held_bytes = WAIT_BYTES * number
        if len(buffer) > KEPT_BYTES * number:
            held_bytes += len(buffer)
        invocations.begin_waits(source_id, number, held_bytes)
        group = handler, caller, head, buffer, calls, held_bytes
        groups = self._waiting.get(again)
        if groups is None:
            self._waiting[again] = [group]
            again.source.add_done_callback(partial(self._repeat, again))
        else:
            groups.append(group)

    def close(self) -> list[bytes]:
        """Give up the calls that wait, because the server stops. Return the frames that end them."""
        groups = [group for groups in self._waiting.values() for group in groups]
        self._waiting.clear()
        frames = []
        for handler, caller, head, _, calls, held_bytes in groups:
            self._invocations.end_waits(caller.source_id, len(calls), held_bytes)
            for tail, _, _, _ in calls:
                frames += self._invocations.refuse(head + tail, handler).sends
        return frames

    def _repeat(self, again: Again, _: object) -> None:
        """Make the calls that have waited for `again`, and send their results together."""
        invocations, replies = self._invocations, self._replies
        size_max = min(replies.max_payload, SMALL_BYTES)
        out: list[bytes] = []
        answered = 0
        for handler, caller, head, buffer, calls, held_bytes in self._waiting.pop(again, ()):
            invocations.end_waits(caller.source_id, len(calls), held_bytes)
            begun = pub, handshake, next_pub = replies.begun(head)
            call = handler
            if isinstance(handler, ForRuns):
                call = handler.handler
                if isinstance(calls, FrameRun) and size_max == SMALL_BYTES:
                    results = calls.results_of(handler, caller)
                    if results is not None and not isinstance(results, Again):
                        number = len(results[1])
                        answered += number
                        out += answers_of_run(begun, calls.pass_over(number), *results)
                        if not calls.tails:
                            continue
            for tail, at, start, end in calls:
                result: HandlerResult | Exception
                try:
                    result = call(caller, buffer, start, end)
                except Exception as error:  # any exception ends only its call
                    result = error
                if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                    answered += 1
                    out += (pub, tail, handshake, tail, RESULT_LINES[size], result, next_pub, tail, END)
                    continue
                trace = traceparent_in(buffer, at, start) if isinstance(at, int) else at
                params = buffer[start:end]
                if isinstance(result, Again):
                    if result is not again:  # for something else: the policy has changed, or only the group waited
                        self._add(result, handler, caller, head, params, [(tail, trace, 0, len(params))])
                        continue
                    result = TypeError(WAITS_AGAIN)
                step = invocations.receive(handler, head + tail, caller, params, result, monotonic(), trace)
                result = b""  # free the bytes, because an exception's traceback may keep this frame alive
                self._send(step.sends, True)  # it is not small, and many calls may be made again at once
                self._on_step(step)
        invocations.counts.answered += answered
        if out:
            self._send([b"".join(out)], False)
        self._on_step(NOTHING)


def copies(buffer: bytes, calls: Sequence[InvocationFrame]) -> tuple[bytes, list[Repeat]]:
    """Return the parameters of calls, joined, and the calls with their offsets in these bytes."""
    repeats: list[Repeat] = []
    size = 0
    for tail, at, start, end in calls:
        repeats.append((tail, traceparent_in(buffer, at, start), size, size + end - start))
        size += end - start
    return b"".join([buffer[start:end] for _, _, start, end in calls]), repeats
