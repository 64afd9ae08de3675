"""The direct path: invocations are answered where their bytes arrive, before nats-py sees them.

    socket ── read ──> DirectProtocol.data_received ──┬─ whole MSG and HMSG frames of routed subscriptions ──> handlers ─┐
                              ^                       │                                                              │ one
                              │                       └─ all other whole lines and frames ──> nats-py's StreamReader │ write
    socket <── write ─────────┴──────────────────────────────────────────────────────────────────────────────────────┘

What happens to a frame, in the order of this file:

    data_received   a piece of the stream is parsed, or kept until the frame that it ends in is whole
    _parse          each invocation in it: its handler is called, and its answer written. The only place that does either
    _groups         finds them: frames like one before them (alike.py), or taken apart (frames.py). Everything else leaves the stream here
    _enter_core     an invocation that is not answered by a whole small result goes to wrpc/invocation.py: cut parameters, large results,
                    answers that must be waited for, handlers that raised
    send            messages of the core that belong to no read: expired invocations, answers that were waited for

A call costs no task, no coroutine and no message object: one read holds many frames, each is a few slices of the same bytes, and their
answers leave in one write.

Invariants:
- A handler sees buffer[start:end] of its own frame alone; parameters that are cut there are cut, although the buffer goes on.
- nats-py is never in the middle of a frame.
- What arrives on the connection takes effect in its order: messages of `InOrder` routes before every invocation behind them.
- Output is bounded: after OUTPUT_BYTES it is written, and while the socket's buffer is above its high-water mark nothing more is parsed
  and reading is paused. Input is bounded: a frame is held until it is whole, and one that claims more than max_payload aborts the connection.
- Reading is paused while the socket wants it (`DirectProtocol`) or nats-py's StreamReader does; `ReadFlow` owns the pausing.
- An exception of a handler ends its invocation, never the connection.
- What belongs to one connection lives in its protocol; `direct/transport.py` makes a new one at each reconnect.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from time import monotonic, perf_counter

from keyvalue_transport.nats.direct.alike import InvocationGroup
from keyvalue_transport.nats.direct.answers import ANSWER_BYTES, END, NEXT_PUB, PUB, RESULT_LINES, SMALL
from keyvalue_transport.nats.direct.frames import (
    HMSG,
    INFO,
    LINE_BYTES_MAX,
    Line,
    MessageFrame,
    NotNatsError,
    read_frame,
)
from keyvalue_transport.nats.direct.read_flow import ReadFlow, Writable
from keyvalue_transport.nats.direct.routes import DirectRoutes, DirectServer, Further, InOrder
from keyvalue_transport.nats.headers import CRLF, read_headers
from keyvalue_transport.nats.subjects import params_token
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Pending

__all__ = ["DirectProtocol"]

log = logging.getLogger(__name__)

#: Output that is written before more input is parsed.
OUTPUT_BYTES = 1024 * 1024
#: What a block has that names a trace.
TRACEPARENT = b"traceparent"
#: Bytes in the socket's buffer above which reading is paused.
HIGH_WATER_BYTES = 1024 * 1024


class DirectProtocol(asyncio.StreamReaderProtocol):
    """The protocol of one connection: takes frames of routed subscriptions out of the stream, and answers them."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._loop_of_writes = loop
        self._routes = routes
        self._socket: Writable | None = None
        self._flow: ReadFlow | None = None
        self._greeted = self._speaks_nats = False
        self._blocked = False  # the socket's buffer is above its high-water mark
        self._max_payload = 1024 * 1024  # until the server's INFO says what it is
        self._frame_bytes_max = self._max_payload + LINE_BYTES_MAX
        # What was read and not parsed: pieces, their size, and the size at which parsing can go on.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._needed_bytes = 0
        self._out: list[bytes] = []  # of the read that is parsed
        self._later: list[bytes] = []  # of `send`, until the end of this turn of the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's word that the connection is there; after a TLS upgrade the one who upgrades calls it."""
        self._socket = transport  # type: ignore[assignment]
        self._routes.protocol = self
        self._flow = ReadFlow(transport)  # type: ignore[arg-type]
        super().connection_made(self._flow)  # type: ignore[arg-type] # it hands it to the reader, which pauses

    def follow(self, info: bytes) -> None:
        """Go on with TLS where the connection in clear ended, with the server's INFO: it does not repeat it."""
        self._greeted = self._speaks_nats = True
        self._read_info(info)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's word that the connection is gone: what was not parsed is gone with it."""
        self._socket = None
        if self._routes.protocol is self:
            self._routes.protocol = None
        self._pieces = []
        self._pieces_bytes = self._needed_bytes = 0
        super().connection_lost(error)

    def pause_writing(self) -> None:
        """The socket's buffer is above its high-water mark."""
        super().pause_writing()
        self._blocked = True
        assert self._flow is not None
        self._flow.hold()

    def resume_writing(self) -> None:
        """The socket's buffer is below its low-water mark: go on with what was not parsed."""
        super().resume_writing()
        self._blocked = False
        if self._pieces and self._pieces_bytes >= self._needed_bytes:
            self._parse_pieces()
        if not self._blocked and self._flow is not None:
            self._flow.release()

    def data_received(self, piece: bytes) -> None:
        """Bytes from the server."""
        if not self._greeted:
            self._greeted = True
            self._speaks_nats = b"INFO ".startswith(piece[:5])
        if not self._speaks_nats:
            super().data_received(piece)  # nats-py says what it is
        elif self._pieces:
            self._pieces.append(piece)
            self._pieces_bytes += len(piece)
            if self._pieces_bytes >= self._needed_bytes and not self._blocked:
                self._parse_pieces()
        elif self._blocked:
            self._keep(piece, 0)
        else:
            self._parse_timed(piece)

    def _parse_pieces(self) -> None:
        buffer = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        self._pieces_bytes = self._needed_bytes = 0
        self._parse_timed(buffer)

    def _parse_timed(self, buffer: bytes) -> None:
        server = self._routes.server
        if server is None or server.on_batch is None:
            self._parse(buffer)
        else:
            began_s = perf_counter()
            self._parse(buffer)
            server.on_batch(perf_counter() - began_s)

    def _keep(self, rest: bytes, needed_bytes: int) -> None:
        if rest:
            self._pieces = [rest]
            self._pieces_bytes = len(rest)
            self._needed_bytes = needed_bytes

    def _parse(self, buffer: bytes) -> None:
        """Answer the invocations in a buffer, pass on what else is whole, keep the rest. Pays: bench end-to-end get."""
        server = self._routes.server
        if server is None:
            for _ in self._groups(buffer):
                raise AssertionError("there is a route to a handler, and no server")
            return
        counts, handshake = server.invocations.counts, server.replies.handshake
        answered = out_bytes = 0
        out = self._out = []
        for handler, caller, frames in self._groups(buffer):
            size_max = self._max_payload  # which an INFO before this group may have changed
            for reply, at, start, end in frames:
                result: bytes | Pending | Exception
                try:
                    result = handler(caller, buffer, start, end)
                except Exception as error:  # of every kind, NeedMoreBytes too
                    result = error
                if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                    answered += 1
                    line = RESULT_LINES[size] if size < SMALL else b".results %d\r\n" % size
                    out += (PUB, reply, handshake, reply, line, result, NEXT_PUB, reply, END)
                    out_bytes += size + ANSWER_BYTES
                else:
                    out_bytes += self._enter_core(server, handler, caller, reply, buffer, at, start, end, result)
                    result = b""  # a traceback of an exception holds this frame, and so the buffer
                if out_bytes >= OUTPUT_BYTES:
                    self._write(out)
                    out.clear()
                    out_bytes = 0
                    if self._blocked:
                        self._keep(buffer[end + 2 :], 0)
                        counts.received_bytes += end + 2
                        counts.answered += answered
                        return
        counts.answered += answered
        if out:
            self._write(out)

    def _groups(self, buffer: bytes) -> Iterator[InvocationGroup]:
        """Yield invocations that follow each other and have one handler and one caller. In between pass on other frames and lines, and at the end keep what is not whole."""
        routes, alike = self._routes, self._routes.alike
        at = passed = needed = taken_bytes = 0  # buffer[passed:at] is whole and goes on to nats-py
        end = len(buffer)
        while at < end:
            shape = alike.shape
            if shape is not None and buffer.startswith(shape.prefix, at):
                self._pass_on(buffer, passed, at)
                yield shape.handler, shape.caller, shape.frames(buffer, at, end)
                passed = at = shape.stopped_at
                if at == end:
                    break
            try:
                frame = read_frame(buffer, at, end, self._frame_bytes_max)
            except NotNatsError:
                self._abort()
                return
            if isinstance(frame, int):
                needed = frame
                break
            if isinstance(frame, Line):
                if frame.kind == INFO:
                    self._read_info(buffer[at : frame.end])
                at = frame.end
                continue
            route = routes.routes.get(frame.subscription)
            if route is None and _is_text(buffer[at : frame.headers_at]):
                at = frame.payload_end + 2
                continue
            self._pass_on(buffer, passed, at)
            if callable(route) and frame.reply:
                routes.settle()
                caller = self._caller_of(buffer, at, frame, route)
                yield route, caller, ((frame.reply, at, frame.payload_at, frame.payload_end),)
            elif route is not None:
                taken_bytes += self._take(route, frame, buffer)
            # Else a line that is no text, at which nats-py's reading would end for good.
            passed = at = frame.payload_end + 2
            if taken_bytes >= OUTPUT_BYTES:
                self._write(self._out)
                self._out.clear()
                taken_bytes = 0
                if self._blocked:
                    break
        self._pass_on(buffer, passed, at)
        if routes.server is not None:
            routes.server.invocations.counts.received_bytes += at
        if at < end:
            self._keep(buffer[at:], needed)

    def _caller_of(self, buffer: bytes, at: int, frame: MessageFrame, handler: Handler) -> Caller:
        block, caller = b"", ANONYMOUS
        if buffer[at] == HMSG:
            block = buffer[frame.headers_at : frame.payload_at]
            callers = self._routes.callers
            caller = callers.callers.get(block) or callers.find(block)
        self._routes.alike.learn(frame, block, handler, caller)
        return caller

    def _pass_on(self, buffer: bytes, start: int, end: int) -> None:
        if start < end:
            super().data_received(buffer[start:end])

    # What is not an invocation with whole parameters and a small result.

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
        outcome: bytes | Pending | Exception,
    ) -> int:
        """Write what the core says to what a handler returned or raised for buffer[start:end], and return the number of bytes.

        :param at: where the frame begins, whose headers name the trace
        """
        traceparent = None
        if (
            buffer.find(TRACEPARENT, at, start) >= 0
        ):  # reading the headers costs as much as the rest of this. Pays: bench/micro/test_waiting.py
            traceparent = read_headers(buffer[buffer.find(CRLF, at) + 2 : start]).traceparent
        if isinstance(outcome, NeedMoreBytes):
            outcome.end_min -= start
        step = server.invocations.receive(handler, reply, caller, buffer[start:end], outcome, monotonic(), traceparent)
        self._out += step.sends
        server.on_step(step)
        return sum(map(len, step.sends))

    def _take(self, route: Handler | InOrder | Further, frame: MessageFrame, buffer: bytes) -> int:
        """Take a frame of ours that is no invocation which can be answered, and return the number of bytes that it was answered with."""
        payload, server = buffer[frame.payload_at : frame.payload_end], self._routes.server
        if isinstance(route, InOrder):
            try:
                route.handle(payload)
            except Exception:  # the connection and its calls go on
                log.exception("a message to %s was not handled", frame.words[1][:128].decode(errors="replace"))
        elif server is None:
            pass
        elif route is Further.PIECES:
            self._routes.settle()
            token = params_token(frame.words[1].decode(errors="replace"))
            step = server.invocations.receive_params(token, payload, monotonic())
            self._out += step.sends
            server.on_step(step)
            return sum(map(len, step.sends))
        else:  # an invocation without a reply subject is not carried out
            server.invocations.counts.without_reply += 1
        return 0

    def send(self, frames: list[bytes]) -> bool:
        """Write frames at the end of this turn of the loop, with all others of it. Return False if the connection is gone."""
        if self._socket is None:
            return False
        if not self._later:
            self._loop_of_writes.call_soon(self.flush)
        self._later += frames
        return True

    def flush(self) -> None:
        """Write what `send` was given."""
        later, self._later = self._later, []
        if later:
            self._write(later)

    def _write(self, out: list[bytes]) -> None:
        frames = out[0] if len(out) == 1 else b"".join(out)
        if self._routes.server is not None:
            self._routes.server.invocations.counts.sent_bytes += len(frames)
        if self._socket is not None:
            self._socket.write(frames)

    def _read_info(self, line: bytes) -> None:
        """Read the server's limits, which may change at any INFO."""
        try:
            max_payload = int(json.loads(line[4:])["max_payload"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return  # nats-py reads the line too, and says what is wrong with it
        if max_payload < 1:
            return
        self._max_payload = max_payload
        self._frame_bytes_max = max_payload + LINE_BYTES_MAX
        self._routes.alike.forget()  # the shapes claim what was allowed before
        if self._routes.server is not None:
            self._routes.server.replies.max_payload = max_payload

    def _abort(self) -> None:
        """End the connection: what comes is not the protocol. nats-py sees the end of the stream, and reconnects."""
        self._routes.violations += 1
        if self._socket is not None:
            self._socket.abort()
            self._socket = None


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
