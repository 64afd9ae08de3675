"""The direct path answers invocations as soon as their bytes arrive. nats-py never sees the invocations.

    socket ── read ──> DirectProtocol.data_received ──┬─ whole frames of routed subscriptions ──> handlers, core ──┐
                                                      │                                                        one │
                                                      └─ other whole lines and frames ──> nats-py's StreamReader   │
                                                                                                             write │
    socket <───────────────────────────────────────────────────────────────────────────────────────────────────────┘

The methods, in the order of this file:

    data_received   keeps bytes until a frame is complete
    _parse          calls the handler with the first frame of each call, and writes results of 1 byte to max_payload;
                    calls that must wait are kept in repeats.py or begun_calls.py
    _groups         finds the frames, by shape (alike.py) or by parsing (frames.py). It passes calls to _parse, other
                    frames of routed subscriptions to _take, and everything else to nats-py
    _enter_core     passes a call to the core (wrpc/invocation.py) if its parameters are cut, its result is empty or
                    large, its answer is not ready, or its handler raised an exception
    _take           applies a change by the host, counts a call without a reply subject, or passes a piece of cut
                    parameters to the core, which calls the handler again
    send            writes the core's messages outside of reads, for example the answer of a call that had to wait; it
                    belongs to writing_protocol.py, with everything else that writes

The core returns a `Step` with the messages to send, which `FrameReplies` in `direct/answers.py` has built.
A call with a small answer needs no task, no coroutine and no message object. All answers of a read are sent in one
write. `DelayedOutput` sends large results in parts, and holds calls while the NATS server has not read our output.

Invariants:
- A handler reads only buffer[start:end], which is its own frame. Parameters that are incomplete at `end` count as
  incomplete, even if the buffer continues.
- nats-py receives only complete frames and lines.
- Frames take effect in order of arrival. A message of an `InOrder` route takes effect before all later invocations.
- Output is bounded. It is written whenever its size reaches OUTPUT_BYTES. Without receipts, parsing and reading pause
  from the moment when the socket's buffer is above FULL_BYTES until it is below its low-water mark.
- Input is bounded. A frame is kept until it is complete. A frame that announces more than max_payload + LINE_BYTES_MAX
  bytes aborts the connection.
- Reading pauses while the socket's buffer or nats-py's StreamReader is full. Reading and parsing pause when a turn of
  the event loop has taken long. `ReadFlow` handles these cases.
- An exception in a handler ends the invocation, but never the connection.
- A protocol object holds the whole state of one connection. `direct/transport.py` creates a new one at each reconnect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from functools import partial
from time import monotonic, perf_counter

from keyvalue_transport.nats.direct.alike import InvocationGroup
from keyvalue_transport.nats.direct.answers import ANSWER_BYTES, END, PUB, RESULT_LINES, SMALL, message_count
from keyvalue_transport.nats.direct.frames import (
    INFO,
    LINE_BYTES_MAX,
    PONG,
    Line,
    MessageFrame,
    NotNatsError,
    max_payload_of,
    read_frame,
    traceparent_in,
)
from keyvalue_transport.nats.direct.read_flow import SLICE_BYTES, ReadFlow
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer, Frames, Further, InOrder, Route
from keyvalue_transport.nats.direct.runs import FrameRun, answers_of_run
from keyvalue_transport.nats.direct.writing_protocol import WritingProtocol
from keyvalue_transport.nats.reply_subjects import CR, REPLY_BYTES_MAX
from keyvalue_transport.nats.subjects import params_token
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import Again, Begun, Caller, ForRuns, Handler, HandlerResult, LargeResult
from keyvalue_transport.wrpc.in_flight import WAIT_BYTES
from keyvalue_transport.wrpc.invocation import Step, Waiting

__all__ = ["DirectProtocol"]

#: When the output reaches this size, it is written before more input is parsed.
OUTPUT_BYTES = 1024 * 1024


class DirectProtocol(WritingProtocol):
    """The asyncio protocol of one connection. nats-py does not see the frames of routed subscriptions."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, routes, loop)
        # With those of both base classes, an object has 29 attributes. From 30 on, CPython 3.11 takes 0.3 us longer for
        # each read.
        self._greeted = self._speaks_nats = False
        self._max_payload = 1024 * 1024  # until the server's INFO arrives
        self._frame_bytes_max = self._max_payload + LINE_BYTES_MAX
        # Bytes that are not parsed yet: the pieces, their total size, and the size at which parsing can continue.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._needed_bytes = 0
        self._pump_due = False  # True if the read that is being parsed may let delayed output go on

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start with a new connection. asyncio calls this, or `DirectTransport` after a TLS upgrade."""
        self._socket = transport  # type: ignore[assignment]
        self._routes.protocol = self
        self._flow = ReadFlow(transport, self._loop, self._go_on)  # type: ignore[arg-type]
        super().connection_made(self._flow)  # type: ignore[arg-type] # the reader pauses and resumes `_flow`

    def follow(self, info: bytes) -> None:
        """Continue over TLS with the INFO from the unencrypted start, because the server does not repeat the INFO."""
        self._greeted = self._speaks_nats = True
        self._read_info(info)

    def connection_lost(self, error: Exception | None) -> None:
        """Drop the unparsed bytes, because the connection is lost. asyncio calls this."""
        self._socket = None
        if self._flow is not None:
            self._flow.close()
        if self._routes.protocol is self:
            self._routes.protocol = None
        later, self._later = self._later, []
        self._delayed.close(message_count(later))
        self._pieces = []
        self._pieces_bytes = self._needed_bytes = 0
        super().connection_lost(error)

    def pause_writing(self) -> None:
        """Pause, because the socket's buffer is above its high-water mark. asyncio calls this."""
        super().pause_writing()
        self._delayed.is_blocked = True

    def resume_writing(self) -> None:
        """Continue, because the socket's buffer is below its low-water mark. asyncio calls this."""
        super().resume_writing()
        self._full = self._delayed.is_blocked = False
        self._go_on()
        if not self._full and self._flow is not None:
            self._flow.release()
        self._delayed.pump()

    def data_received(self, piece: bytes) -> None:
        """Handle bytes from the server. asyncio calls this."""
        if not self._greeted:
            self._greeted = True
            self._speaks_nats = b"INFO ".startswith(piece[:5])
        if not self._speaks_nats:
            super().data_received(piece)  # nats-py reports the error
        elif self._pieces:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            self._go_on()
        elif self._full:
            self._keep(piece, 0)
        else:
            self._parse_timed(piece)

    def _go_on(self) -> None:
        if self._pieces and self._pieces_bytes >= self._needed_bytes and not self._full:
            self._parse_pieces()

    def _parse_pieces(self) -> None:
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        self._pieces_bytes = self._needed_bytes = 0
        self._parse_timed(buffer)

    def _parse_timed(self, buffer: bytes) -> None:
        routes, flow = self._routes, self._flow
        assert flow is not None
        flow.began_s = began_s = perf_counter()
        self._is_parsing = routes.is_parsing = True
        try:
            self._parse(buffer)
            if routes.ending:
                routes.end_read(self._loop)
        finally:
            self._is_parsing = routes.is_parsing = False
        if self._later:
            self._out += self._later  # in one write, and after the handshakes in `_out`
            self._later = []
        self._write(self._out)
        seconds = perf_counter() - began_s
        server = routes.server
        if server is not None and (on_batch := server.on_batch) is not None:
            on_batch(seconds)
        flow.worked(seconds, len(buffer))
        if self._pump_due:
            self._pump_due = False
            self._delayed.pump()

    def _keep(self, rest: bytes, needed_bytes: int) -> None:
        if rest:
            self._pieces = [rest]
            self._pieces_bytes = len(rest)
            self._needed_bytes = needed_bytes

    def _parse(self, buffer: bytes) -> None:
        """Answer the invocations in a buffer. Keep an incomplete frame for the next read. The benchmark of `get` times it."""
        routes, delayed = self._routes, self._delayed
        server = routes.server
        out = self._out = []
        if server is None:
            assert not [*self._groups(buffer)]  # a route to a handler has a server
            return
        counts, begun_of = server.invocations.counts, server.replies.begun_of
        answered = out_bytes = 0
        holds = self._pump_due = delayed.may_hold and delayed.must_hold(server)
        for handler, caller, head, frames in self._all_groups(buffer):
            if holds:
                delayed.hold(server, handler, caller, head, frames, buffer)
                continue
            if type(handler) is Begun and (begun := routes.begun) is not None:
                out_bytes += begun.begin(handler, caller, head, frames, buffer, partial(self._enter_core, server))
                continue  # this output is small, because most answers come later
            call = handler.handler if type(handler) is ForRuns else handler
            if type(frames) is FrameRun and type(handler) is ForRuns:
                if (added_bytes := self._call_run(server, handler, caller, head, frames, buffer)) is None:
                    continue  # all wait
                out_bytes += added_bytes
                if out_bytes >= OUTPUT_BYTES and not frames:
                    out_bytes, holds = 0, self._write_full(server, buffer, frames.end)
                    if self._full:
                        break
                if not frames:
                    continue
            pub, handshake, next_pub = begun_of.get(head) or server.replies.begun(head)
            size_max = self._max_payload  # an INFO before this group may have changed the limit
            frames = iter(frames)
            for tail, at, start, end in frames:
                result: HandlerResult | Exception
                try:
                    result = call(caller, buffer, start, end)
                except Exception as error:  # any exception, including NeedMoreBytes
                    result = error
                if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                    answered += 1
                    line = RESULT_LINES[size] if size < SMALL else b".results %d\r\n" % size
                    out += (pub, tail, handshake, tail, line, result, next_pub, tail, END)
                    out_bytes += size + ANSWER_BYTES
                elif type(result) is Again and (repeats := routes.repeats) is not None:
                    repeats.add(result, handler, caller, head, (tail, at, start, end), frames, buffer)
                    continue
                else:
                    out_bytes += self._enter_core(server, handler, caller, head + tail, buffer, at, start, end, result)
                    result = b""  # free the bytes, because an exception's traceback may keep this frame alive
                if out_bytes >= OUTPUT_BYTES:
                    out_bytes, holds = 0, self._write_full(server, buffer, end + 2)
                    if holds or self._full:
                        break
            if self._full:
                break
            if holds:
                delayed.hold(server, handler, caller, head, frames, buffer)
        counts.answered += answered
        counts.received_bytes += len(buffer) - self._pieces_bytes

    def _call_run(
        self, server: DirectServer, handler: ForRuns, caller: Caller, head: bytes, run: FrameRun, buffer: bytes
    ) -> int | None:
        """Make the calls of a run, and return the number of bytes added to the output. Leave those that go one by one.

        Return None if all wait, to be made again.
        """
        results = run.results_of(handler, caller) if self._max_payload >= SMALL else None
        if results is None:
            return 0
        if type(results) is Again:
            assert self._routes.repeats is not None
            self._routes.repeats.add_run(results, handler, caller, head, run, buffer)
            return None
        of_all, rests = results
        server.invocations.counts.answered += len(rests)
        self._out += answers_of_run(server.replies.begun(head), run.pass_over(len(rests)), of_all, rests)
        return sum(map(len, rests)) + (len(of_all) + ANSWER_BYTES) * len(rests)

    def _write_full(self, server: DirectServer, buffer: bytes, after: int) -> bool:
        """Write the output of a read before its end, because it is large. Return True if later calls must be held.

        If the socket's buffer is full, keep the bytes after `after`.
        """
        self._write(self._out)
        self._out.clear()
        if self._full:
            self._keep(buffer[after:], 0)
            return False
        holds = self._delayed.must_hold(server)
        self._pump_due = self._pump_due or holds
        return holds

    def _all_groups(self, buffer: bytes) -> Iterable[InvocationGroup]:
        """Return what `_groups` yields, which is often one group of a known shape."""
        shape, end = self._routes.alike.shape, len(buffer)
        if shape is None or end > SLICE_BYTES or not buffer.startswith(shape.prefix):
            return self._groups(buffer)
        group, at = shape.take(buffer, 0, end, end)
        return (group,) if at == end else self._groups(buffer, at, group)

    def _groups(self, buffer: bytes, at: int = 0, first: InvocationGroup | None = None) -> Iterator[InvocationGroup]:
        """Yield groups of consecutive invocations by one caller of one handler: the first group, and those from `at` on.

        Handle other frames of routed subscriptions. Pass the rest to nats-py. Keep an incomplete frame.
        """
        routes, alike, replies = self._routes, self._routes.alike, self._routes.replies
        plain_first, quick, end, slice_end = replies.plain_first, routes.quick, len(buffer), at + SLICE_BYTES
        passed, needed, taken_bytes = at, 0, 0  # buffer[passed:at] holds complete frames and lines for nats-py
        if at and first is not None:
            yield first
        while at < end:
            if at >= slice_end:
                if self._flow is not None and self._flow.is_due():
                    break
                slice_end = at + SLICE_BYTES
            if (shape := alike.shape) is not None and buffer.startswith(shape.prefix, at):
                self._pass_on(buffer, passed, at)
                group, at = shape.take(buffer, at, end, slice_end)
                yield group
                passed = at
                if at >= min(end, slice_end):
                    continue
            if quick and (taken := routes.take_quick(buffer, at, end)) > at:
                self._pass_on(buffer, passed, at)
                passed = at = taken
                continue
            try:
                frame = read_frame(buffer, at, end, self._frame_bytes_max)
            except NotNatsError:
                self._abort()
                return
            if isinstance(frame, int):
                needed = max(frame, end - at + 1)
                break
            if isinstance(frame, Line):
                self._note_line(buffer, at, frame)
                at = frame.end
                continue
            route = routes.routes.get(frame.subscription)
            if route is None:
                at = frame.payload_end + 2
                continue
            self._pass_on(buffer, passed, at)
            reply = frame.reply
            is_plain = reply and reply[0] == plain_first and len(reply) <= REPLY_BYTES_MAX and CR not in reply
            if (is_plain or (reply and replies.allows(reply))) and callable(route):  # `is_plain` saves most calls
                routes.settle()
                yield routes.group_of(buffer, at, frame, route)
            else:
                taken_bytes += self._take(route, frame, buffer)
            passed = at = frame.payload_end + 2
            if taken_bytes >= OUTPUT_BYTES:
                self._write(self._out)
                self._out.clear()
                taken_bytes = 0
                if self._full:
                    break
        self._pass_on(buffer, passed, at)
        if at < end:
            self._keep(buffer[at:], needed)

    def _note_line(self, buffer: bytes, at: int, line: Line) -> None:
        if line.kind == INFO:
            self._read_info(buffer[at : line.end])
        elif buffer.startswith(PONG, at):
            self._delayed.open()  # nats-py opens a connection with CONNECT and PING
            self._pump_due = True

    def _pass_on(self, buffer: bytes, start: int, end: int) -> None:
        if start < end:
            super().data_received(buffer[start:end])

    # The next two methods handle everything except invocations with complete parameters and a small result.

    def _enter_core(
        self,
        server: DirectServer,
        handler: Handler,
        caller: Caller,
        reply: bytes,
        buffer: bytes,
        at: int,
        start: int,
        end: int,
        outcome: HandlerResult | Exception,
    ) -> int:
        """Pass a call to the core. Add the core's messages to the output, and return the number of bytes added.

        :param at: the offset of the frame, whose headers may hold a trace
        :param start: the offset of the parameters, which end at `end`
        :param outcome: the handler's result or exception for these parameters
        """
        traceparent = traceparent_in(buffer, at, start)
        if not isinstance(outcome, (Exception, LargeResult, Again, bytes)):  # let it wait, as the core does, but faster
            invocations, source_id = server.invocations, caller.source_id
            held_bytes = end - start + WAIT_BYTES + getattr(outcome, "extra_bytes", 0)
            if not invocations.may_wait(outcome, source_id, held_bytes):
                result = invocations.no_place(source_id).result
                return self._carry_out(server, invocations.refuse(reply, result=result))
            self._out += (PUB, reply, server.replies.handshake_end)
            # `Waiting(...)` is slower.
            server.on_waiting(tuple.__new__(Waiting, (reply, traceparent, outcome, source_id, held_bytes)))
            return ANSWER_BYTES
        if isinstance(outcome, NeedMoreBytes):
            outcome.end_min -= start
        step = server.invocations.receive(handler, reply, caller, buffer[start:end], outcome, monotonic(), traceparent)
        return self._carry_out(server, step)

    def _carry_out(self, server: DirectServer, step: Step[bytes, bytes]) -> int:
        """Carry out a step of the core during a read. Return the number of bytes added to the output."""
        added_bytes = 0
        self._pump_due = True
        if step.is_large:
            self._delayed.add(step.sends)
        else:
            self._out += step.sends
            added_bytes = sum(map(len, step.sends))
        server.on_step(step)
        return added_bytes

    def _take(self, route: Route, frame: MessageFrame, buffer: bytes) -> int:
        """Handle a routed frame other than a call with a reply subject. Return the bytes added to the output."""
        payload, server = buffer[frame.payload_at : frame.payload_end], self._routes.server
        if isinstance(route, (Frames, InOrder)):
            self._routes.hand_over(route, frame, buffer[frame.headers_at : frame.payload_at], payload)
        elif server is None:
            pass
        elif route is Further.PIECES:
            self._routes.settle()
            token = params_token(frame.words[1].decode(errors="replace"))
            if token == server.replies.receipt_token:
                self._delayed.window.note_receipt(payload)
                self._pump_due = True
                return 0
            return self._carry_out(server, server.invocations.receive_params(token, payload, monotonic()))
        elif frame.reply:  # an invocation with a refused reply subject is only counted
            self._routes.replies.refused += 1
        else:  # so is one without a reply subject
            server.invocations.counts.without_reply += 1
        return 0

    def _read_info(self, line: bytes) -> None:
        """Read the server's limit for the size of messages. Every INFO may change the limit."""
        max_payload = max_payload_of(line)
        if max_payload is None:
            return  # nats-py also parses the line, and reports the error
        self._max_payload = self._routes.max_payload = max_payload
        self._frame_bytes_max = max_payload + LINE_BYTES_MAX
        self._routes.alike.forget()  # the shapes were learned under the old limit
        if self._routes.server is not None:
            self._routes.server.replies.max_payload = max_payload

    def _abort(self) -> None:
        """Abort the connection, because its bytes violate the NATS protocol. nats-py then reconnects."""
        self._routes.violations += 1
        self._delayed.close()
        if self._socket is not None:
            self._socket.abort()
            self._socket = None
