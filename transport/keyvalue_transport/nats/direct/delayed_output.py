"""The output of one connection that waits for room: large results, and the answers to calls that were held.

A client may request much and read nothing. Then the NATS server reads little of our output for some time (window.py). So
while the window is closed, each call is held, and its handler is called when there is room to send the answer. Callers
take turns, so one that reads nothing delays others by about a window.

A large result (`LargeResult` in wrpc/handler.py) is sent only while nothing delays it, one message in each turn of the
event loop. Small answers are written between the messages. Until there is room, the core queues the call without its
result (wrpc/queued_calls.py).

    core ── take_held ──────> answers ────────────────────┬─ pump ──> socket's buffer ──> kernels' buffers ──> NATS server
    core ── answer_queued ──> frames of one large result ─┘                │ above high water: wait                 │
                                                               the window is closed: wait <─────── receipt ─────────┘

A page of keys may also take long to make, up to 0.1 s if its shard must be sorted and has long keys. So the first page
of a turn of the event loop begins a time slice. After it, the calls are queued, and callers take turns.

Invariants:
- At most one large result is kept besides the socket's buffer, smaller ones of up to PART_BYTES_MIN together, and
  REFUSALS_MAX refusals.
- While something is held or queued, something will call `pump`: the next turn of the loop, `resume_writing`, a receipt
  or its timeout, or a new connection.
- Calls of one holder are held and answered in order of arrival.
- Nothing is sent on a connection that nats-py has not finished opening.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter

from keyvalue_transport.nats.direct.alike import InvocationFrame
from keyvalue_transport.nats.direct.answers import ANSWER_BYTES, END, NEXT_PUB, PUB
from keyvalue_transport.nats.direct.frames import traceparent_in
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer
from keyvalue_transport.nats.direct.window import Window
from keyvalue_transport.nats.reply_subjects import connection_of
from keyvalue_transport.wrpc.handler import Caller, Handler, HandlerResult
from keyvalue_transport.wrpc.invocation import Step

__all__ = ["PART_BYTES_MIN", "REFUSALS_MAX", "DelayedOutput"]

#: In each turn of the event loop, large results are sent until they have this size.
PART_BYTES_MIN = 256 * 1024
#: No result is begun later than this after the first one in the same turn of the event loop.
SLICE_S = 0.005
#: The maximum number of refusals that wait to be sent. Others are only counted.
REFUSALS_MAX = 16_384


class DelayedOutput:
    """The large results and the held calls of one connection.

    :ivar is_blocked: True while the socket's buffer is above its high-water mark; call `pump` when this ends
    :ivar may_hold: False if `must_hold` would return False, since no receipt is missing and no call is held
    :ivar window: the output that the NATS server has perhaps not read yet
    :param write: writes frames to the socket
    """

    __slots__ = (
        *("_frames", "_loop", "_pumping", "_routes", "_slice_end_s", "_write"),
        *("is_blocked", "is_open", "may_hold", "window"),
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, routes: DirectRoutes, write: Callable[[list[bytes]], None]
    ) -> None:
        self._loop = loop
        self._routes = routes
        self._write = write
        self.is_open = self.is_blocked = False
        self.may_hold = True
        self.window = Window(loop, self.pump)
        self._frames: deque[bytes] = deque()  # the rest of a result, and refusals
        self._pumping = False  # True while the next turn of the event loop calls `pump`
        self._slice_end_s: float | None = None  # None until a result is begun in this turn of the event loop

    def open(self) -> None:
        """Allow sending, because nats-py has opened the connection."""
        self.is_open = True

    def close(self, unsent: int = 0) -> None:
        """Drop the rest of a result, because the connection is lost. Report it, with `unsent` other frames."""
        self.is_open = False
        self.window.close()
        server = self._routes.server
        unsent += len(self._frames)
        if unsent and server is not None and server.on_lost is not None:
            server.on_lost(unsent)
        self._frames.clear()

    def must_hold(self, server: DirectServer) -> bool:
        """Return True if a call must be held: the window is closed, or earlier calls are held."""
        holds = server.invocations.held > 0
        self.may_hold = holds or self.window.unread_bytes > 0
        return holds or not self.window.is_open()

    def hold(
        self,
        server: DirectServer,
        handler: Handler,
        caller: Caller,
        head: bytes,
        frames: Iterable[InvocationFrame],
        buffer: bytes,
    ) -> None:
        """Hold calls, or refuse those for which there is no room. Then call `pump`.

        If many refusals wait, others are only counted, and their callers wait for their own timeouts.
        """
        invocations, now_s = server.invocations, monotonic()
        for tail, at, start, end in frames:
            reply, trace = head + tail, traceparent_in(buffer, at, start)
            holder = connection_of(reply) if caller.source_id is None else caller.source_id
            if not invocations.hold(handler, reply, caller, buffer[start:end], now_s, trace, holder):
                refusal = invocations.refuse(reply, handler).sends
                if len(self._frames) < REFUSALS_MAX:
                    self._frames.append(b"".join(refusal))

    def has_room(self) -> bool:
        """Return True if nothing delays a large result. Then a time slice begins, unless it has begun already."""
        if self._frames or not self._may_send():
            return False
        now_s = perf_counter()
        if self._slice_end_s is None:
            self._slice_end_s = now_s + SLICE_S
            self._loop.call_soon(self._end_slice)
        return now_s < self._slice_end_s

    def add(self, frames: list[bytes]) -> None:
        """Send the frames of a result. Call `pump` after the small answers of the same read are written."""
        self._frames += frames

    def add_late(self, frames: list[bytes]) -> None:
        """Send the frames of a result that was not made in a read. The first part leaves in the next turn."""
        self._frames += frames
        self._pump_soon()

    def pump(self) -> None:
        """Answer held calls, and then send a part of the large results and answer queued calls. Go on next turn."""
        server = self._routes.server
        if server is None or self._pumping or not self._may_send():
            return
        self._routes.settle()
        if part := self._held_answers(server) + self._large_frames(server):
            self._write(part)
        server.on_step(Step([]))  # calls may have ended
        if self._frames or server.invocations.queued or server.invocations.held:
            self._pump_soon()

    def flush(self) -> None:
        """Write the rest of a result, because the server stops."""
        rest = list(self._frames)
        self._frames.clear()
        if rest:
            self._write(rest)

    def _held_answers(self, server: DirectServer) -> list[bytes]:
        invocations, replies = server.invocations, server.replies
        handshake, size_max = replies.handshake_and_next, replies.max_payload
        part: list[bytes] = []
        part_bytes = 0
        end_s = perf_counter() + SLICE_S
        while part_bytes < self.window.part_bytes and perf_counter() < end_s:
            call = invocations.take_held()
            if call is None:
                break
            handler, reply, caller, params = call[:4]
            result: HandlerResult | Exception
            try:
                result = handler(caller, params, 0, len(params))
            except Exception as error:  # any exception, including NeedMoreBytes
                result = error
            if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                invocations.counts.answered += 1  # this branch copies the result only once
                line = b".results %d\r\n" % size
                part += (PUB, reply, handshake, reply, line, result, NEXT_PUB, reply, END)
                part_bytes += size + ANSWER_BYTES
                continue
            step = invocations.receive(handler, reply, caller, params, result, monotonic(), call.traceparent)
            result = b""  # free the bytes, because an exception's traceback may keep this frame alive
            if step.is_large:
                self._frames += step.sends
            else:
                part += step.sends
            part_bytes += sum(map(len, step.sends))
            server.on_step(step)
        return part

    def _large_frames(self, server: DirectServer) -> list[bytes]:
        part: list[bytes] = []
        part_bytes = 0
        end_s = perf_counter() + SLICE_S
        while part_bytes < PART_BYTES_MIN:
            if self._frames:
                part.append(self._frames.popleft())
                part_bytes += len(part[-1])
            elif perf_counter() < end_s and server.invocations.queued:
                self._answer_queued(server)
            else:
                break
        return part

    def _answer_queued(self, server: DirectServer) -> None:
        step = server.invocations.answer_queued()
        if step is not None:
            self._frames += step.sends
            server.on_step(step)

    def _end_slice(self) -> None:
        self._slice_end_s = None

    def _pump_soon(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump_again)

    def _pump_again(self) -> None:
        self._pumping = False
        self.pump()

    def _may_send(self) -> bool:
        return self.is_open and not self.is_blocked and self.window.is_open()
