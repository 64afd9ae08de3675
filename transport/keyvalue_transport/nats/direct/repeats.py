"""The calls of the direct path that wait for something that many calls share, and are made again then.

A handler returns `Again` for such a call (wrpc/handler.py). Until then, a call is only a tuple, so it costs little. Its
handshake leaves together with its result.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TypeAlias

from keyvalue_transport.nats.direct.answers import END, NEXT_PUB, PUB, RESULT_LINES, SMALL, FrameReplies
from keyvalue_transport.wrpc.handler import Again, Caller, Handler, HandlerResult
from keyvalue_transport.wrpc.invocation import Invocations, Step

__all__ = ["Repeat", "Repeats"]


#: A call that is made again: its handler, caller, reply subject, parameters and `traceparent`.
Repeat: TypeAlias = tuple[Handler, Caller, bytes, bytes, str | None]


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
        self._waiting: dict[Again, list[Repeat]] = {}

    def add(self, again: Again, repeat: Repeat) -> bool:
        """Let a call wait. Return False if too many wait."""
        if not self._invocations.begin_wait(repeat[1].source_id):
            return False
        calls = self._waiting.get(again)
        if calls is None:
            self._waiting[again] = [repeat]
            again.source.add_done_callback(partial(self._repeat, again))
        else:
            calls.append(repeat)
        return True

    def close(self) -> list[bytes]:
        """Give up the calls that wait, because the server stops. Return the frames that end them."""
        calls = [call for calls in self._waiting.values() for call in calls]
        self._waiting.clear()
        frames = []
        for _, caller, reply, _, _ in calls:
            self._invocations.end_wait(caller.source_id)
            frames += self._invocations.refuse(reply).sends
        return frames

    def _repeat(self, again: Again, _: object) -> None:
        """Make the calls again that have waited for `again`, and send their results together."""
        invocations, replies = self._invocations, self._replies
        handshake, size_max = replies.handshake_and_next, min(replies.max_payload, SMALL - 1)
        out = []
        answered = 0
        for handler, caller, reply, params, traceparent in self._waiting.pop(again, ()):
            invocations.end_wait(caller.source_id)
            result: HandlerResult | Exception
            try:
                result = handler(caller, params, 0, len(params))
            except Exception as error:  # any exception ends only its call
                result = error
            if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                answered += 1
                out.append(b"".join((PUB, reply, handshake, reply, RESULT_LINES[size], result, NEXT_PUB, reply, END)))
                continue
            if isinstance(result, Again):
                result = TypeError("a call that was made again must wait again")
            step = invocations.receive(handler, reply, caller, params, result, monotonic(), traceparent)
            result = b""  # free the bytes, because an exception's traceback may keep this frame alive
            self._send(step.sends, True)  # it is not small, and many calls may be made again at once
            self._on_step(step)
        invocations.counts.answered += answered
        self._send(out, False)
        self._on_step(Step([]))
