"""The direct path: invocations are answered where their bytes arrive, before nats-py sees them.

    socket ── read ──> DirectProtocol.data_received ──┬─ whole MSG and HMSG frames of routed subscriptions ──> handlers ─┐
                              ^                       │                                                              │ one
                              │                       └─ all other whole lines and frames ──> nats-py's StreamReader │ write
    socket <── write ─────────┴──────────────────────────────────────────────────────────────────────────────────────┘

A call costs no task, no coroutine and no message object: one read holds many frames, each is a few slices of the same bytes, and their
answers leave in one write. Frames are much alike (`keyvalue_transport.nats.direct.frames.Shape`): one that is like a frame before it is compared and not taken apart,
and a run of frames that have one size too is cut by one call of `struct`. nats-py is never in the middle of a frame.

Invariants:
- A handler sees buffer[start:end] of its own frame alone; what is cut there is cut, though the buffer goes on.
- Output is bounded: after OUTPUT_BYTES it is written, and while the socket's buffer is above its high-water mark nothing more is parsed
  and reading is paused. Input is bounded: a frame is held until it is whole, and one that claims more than max_payload aborts the connection.
- Reading is paused while the socket wants it (`DirectProtocol`) or nats-py's StreamReader does; `ReadFlow` owns the pausing.
- An exception of a handler ends its invocation, never the connection.
- What belongs to one connection lives in its protocol; `keyvalue_transport.nats.direct.transport` makes a new one at each reconnect.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from time import monotonic, perf_counter

from keyvalue_transport.nats.direct.callers import CRLF, traceparent_of
from keyvalue_transport.nats.direct.frames import Cut, FrameRun, NotNatsError, Other, write_frames
from keyvalue_transport.nats.direct.read_flow import ReadFlow, Writable
from keyvalue_transport.nats.direct.routes import DirectRoutes
from keyvalue_transport.wrpc.errors import NeedMoreBytes
from keyvalue_transport.wrpc.handler import ANONYMOUS, Answer, Caller, Handler
from keyvalue_transport.wrpc.invocation import Invocations
from keyvalue_transport.wrpc.subjects import params_token

__all__ = ["DirectProtocol"]

#: Output that is written before more input is parsed.
OUTPUT_BYTES = 1024 * 1024
#: Bytes in the socket's buffer above which reading is paused.
HIGH_WATER_BYTES = 1024 * 1024
#: About what the lines of an answer take beside its result.
LINES_BYTES = 256
#: A line of the protocol (INFO is the longest) and the control line and headers of a frame stay below this.
LINE_BYTES_MAX = 1024 * 1024

#: Frames alike that are worth being answered as a run.
RUN_FRAMES_MIN = 4

HMSG, MSG, INFO = b"HMI"
SPACE, CR = b" \r"
#: Sizes below this are looked up: `int` of bytes costs as much as the rest of a control line.
SMALL = 4096
SIZES = {b"%d" % size: size for size in range(SMALL)}
PUB, NEXT_PUB, END = b"PUB ", b"\r\nPUB ", b".results 0\r\n\r\n"
RESULTS = tuple(b".results %d\r\n" % size for size in range(SMALL))


class DirectProtocol(asyncio.StreamReaderProtocol):
    """The protocol of one connection: takes frames of routed subscriptions out of the stream, and answers them."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._routes = routes
        self._socket: Writable | None = None
        self._flow: ReadFlow | None = None
        self._greeted = self._speaks_nats = False
        self._blocked = False  # the socket's buffer is above its high-water mark
        self._max_payload = 1024 * 1024  # until the server's INFO says what it is
        self._frame_bytes_max = self._max_payload + LINE_BYTES_MAX
        # Of the last invocation that was taken apart: where they repeat, the next one may be alike.
        self._size = self._subscription = b""
        self._caller = ANONYMOUS
        # What was read and not parsed: pieces, their size, and the size at which parsing can go on.
        self._pieces: list[bytes] = []
        self._pieces_bytes = 0
        self._needed_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's word that the connection is there; after a TLS upgrade the one who upgrades calls it."""
        self._socket = transport  # type: ignore[assignment]
        self._flow = ReadFlow(transport)  # type: ignore[arg-type]
        super().connection_made(self._flow)  # type: ignore[arg-type] # it hands it to the reader, which pauses

    def follow(self, info: bytes) -> None:
        """Go on with TLS where the connection in clear ended, with the server's INFO: it does not repeat it."""
        self._greeted = self._speaks_nats = True
        self._read_info(info)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's word that the connection is gone: what was not parsed is gone with it."""
        self._socket = None
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
        on_batch = self._routes.on_batch
        if on_batch is None:
            self._parse(buffer)
        else:
            began_s = perf_counter()
            self._parse(buffer)
            on_batch(perf_counter() - began_s)

    def _keep(self, rest: bytes, needed_bytes: int) -> None:
        if rest:
            self._pieces = [rest]
            self._pieces_bytes = len(rest)
            self._needed_bytes = needed_bytes

    def _parse(self, buffer: bytes) -> None:
        """Answer the whole frames that are routed, pass on what else is whole, keep the rest. Pays: bench end-to-end get."""
        routes, invocations = self._routes, self._routes.invocations
        handshake = b"" if invocations is None else b" %b 0\r\n\r\nPUB " % invocations.nobody.encode()
        find, startswith, end = buffer.find, buffer.startswith, len(buffer)
        at = passed = answered = out_bytes = needed = 0  # buffer[passed:at] is whole and goes on to nats-py
        out: list[bytes] = []
        shape, may_run = None, True
        while at < end:
            if shape is not routes.shape:
                shape = routes.shape
                prefix, prefix_bytes, suffix, suffix_bytes, rest, rest_bytes, ahead, payload_bytes, usual, whose = shape
            if out_bytes >= OUTPUT_BYTES:
                self._write(out)
                out, out_bytes = [], 0
                if self._blocked:
                    break
            if (
                startswith(prefix, at)
                and startswith(suffix, reply_end := find(b" ", at + prefix_bytes))
                and (payload_end := (payload_at := reply_end + ahead) + payload_bytes) + 2 <= end
                and (
                    not rest_bytes
                    or (rest_bytes < 0 and find(CRLF, at, reply_end) < 0)
                    or (
                        0 < rest_bytes == payload_at - find(CRLF, reply_end + suffix_bytes)
                        and startswith(rest, payload_at - rest_bytes)
                    )
                )
            ):
                if may_run and end - at >= RUN_FRAMES_MIN * (payload_end + 2 - at):
                    if passed < at:
                        super().data_received(buffer[passed:at])
                    run = FrameRun.of(shape, at, reply_end, payload_end)
                    passed, count, out_bytes = self._answer_run(run, handshake, buffer, at, out, out_bytes)
                    may_run = passed - at >= RUN_FRAMES_MIN * run.frame_bytes
                    at = passed
                    answered += count
                    continue
                handler, reply, caller = usual, buffer[at + prefix_bytes : reply_end], whose
            else:
                try:
                    taken = self._take_apart(buffer, at, end)
                except NotNatsError:
                    return self._abort()
                if isinstance(taken, Other):
                    if taken.words is not None:
                        if passed < at:
                            super().data_received(buffer[passed:at])
                        passed = taken.end
                        out.append(self._other(taken.words, taken.payload))
                        out_bytes += len(out[-1])
                    at = taken.end
                    continue
                if isinstance(taken, int):
                    needed = taken
                    break
                handler, reply, caller, payload_at, payload_end = taken
            if passed < at:
                super().data_received(buffer[passed:at])
            passed = payload_end + 2
            result: Answer[bytes] | Exception
            try:
                result = handler(caller, buffer, payload_at, payload_end)
            except Exception as error:  # of all kinds, NeedMoreBytes too
                result = error
            if type(result) is bytes and 0 < (size := len(result)) <= self._max_payload:
                answered += 1
                line = RESULTS[size] if size < SMALL else b".results %d\r\n" % size
                out += (PUB, reply, handshake, reply, line, result, NEXT_PUB, reply, END)
                out_bytes += size + LINES_BYTES
            else:
                out.append(self._outcome(handler, reply, caller, buffer, at, payload_at, payload_end, result))
                out_bytes += len(out[-1])
                result = b""  # a traceback of an exception holds this frame, and so the buffer
            at = passed
        if out:
            self._write(out)
        if invocations is not None:
            counts = invocations.counts
            counts.answered += answered
            counts.received_bytes += at
        if passed < at:
            super().data_received(buffer[passed:at])
        if at < end:
            self._keep(buffer[at:], needed)

    def _answer_run(
        self, run: FrameRun, handshake: bytes, buffer: bytes, at: int, out: list[bytes], out_bytes: int
    ) -> tuple[int, int, int]:
        """Answer the frames of a run that begins at `at`, as `_parse` answers one. Pays: bench end-to-end get.

        Returns where the first frame begins that is not of the run, how many were answered whole, and how many bytes `out` has now, about.
        """
        frames, frame_bytes, payload_ahead, payload_bytes, shape = run
        prefix, suffix, rest, handler, caller = shape.prefix, shape.suffix, shape.rest, shape.handler, shape.caller
        answered, size_max = 0, self._max_payload
        whole_bytes = (len(buffer) - at) // frame_bytes * frame_bytes
        for its_prefix, reply, its_suffix, trace, its_rest in frames.iter_unpack(
            memoryview(buffer)[at : at + whole_bytes]
        ):
            if (
                its_prefix != prefix
                or its_suffix != suffix
                or SPACE in reply
                or CR in reply
                or (its_rest and (its_rest != rest or CR in trace))
                or out_bytes >= OUTPUT_BYTES
            ):
                break
            payload_at = at + payload_ahead
            payload_end = payload_at + payload_bytes
            result: Answer[bytes] | Exception
            try:
                result = handler(caller, buffer, payload_at, payload_end)
            except Exception as error:  # of all kinds, NeedMoreBytes too
                result = error
            if type(result) is bytes and 0 < (size := len(result)) <= size_max:
                answered += 1
                line = RESULTS[size] if size < SMALL else b".results %d\r\n" % size
                out += (PUB, reply, handshake, reply, line, result, NEXT_PUB, reply, END)
                out_bytes += size + LINES_BYTES
            else:
                out.append(self._outcome(handler, reply, caller, buffer, at, payload_at, payload_end, result))
                out_bytes += len(out[-1])
                result = b""  # a traceback of an exception holds this frame, and so the buffer
            at += frame_bytes
        return at, answered, out_bytes

    def _take_apart(self, buffer: bytes, at: int, end: int) -> Cut | Other | int:
        """What stands there, by the words of its control line; where it is not whole, how many bytes it has at least.

        :raises NotNatsError: it is not the protocol, or claims too much
        """
        line_end = buffer.find(CRLF, at)
        if line_end < 0:
            if end - at > LINE_BYTES_MAX:
                raise NotNatsError
            return 0
        kind = buffer[at]
        if kind != HMSG and kind != MSG:
            if kind == INFO:
                self._read_info(buffer[at:line_end])
            return Other(line_end + 2)
        words = buffer[at:line_end].split(b" ")
        head_at = payload_at = line_end + 2
        try:
            size = words[-1]
            payload_end = payload_at + (SIZES.get(size) or int(size))
            if kind == HMSG:
                payload_at += SIZES.get(words[-2]) or int(words[-2])
            subscription = words[2]
        except (ValueError, IndexError):
            raise NotNatsError from None
        if not head_at <= payload_at <= payload_end <= line_end + self._frame_bytes_max:
            raise NotNatsError
        if payload_end + 2 > end:
            return payload_end + 2 - at
        routes = self._routes
        handler = routes.handlers.get(subscription)
        if handler is None or len(words) != (6 if kind == HMSG else 5):
            if len(words) - (kind == HMSG) not in (4, 5):
                raise NotNatsError
            if handler is None and subscription not in routes.params and _is_text(buffer[at:line_end]):
                return Other(payload_end + 2)
            return Other(payload_end + 2, words, buffer[payload_at:payload_end])
        block = buffer[head_at:payload_at]
        caller = ANONYMOUS if kind == MSG else routes.callers.callers.get(block) or routes.callers.find(block)
        cut = handler, words[3], caller, payload_at, payload_end
        if size == self._size and caller is self._caller and subscription == self._subscription:
            routes.learn_shape(words, block, buffer, cut)
        self._size, self._subscription, self._caller = size, subscription, caller
        return cut

    # What is not an invocation with whole parameters and a small result.

    def _outcome(
        self,
        handler: Handler,
        reply_to: bytes,
        caller: Caller,
        buffer: bytes,
        at: int,
        start: int,
        end: int,
        outcome: Answer[bytes] | Exception,
    ) -> bytes:
        """The frames for what a handler returned or raised for the parameters buffer[start:end] of the frame that begins at `at`."""
        reply = reply_to.decode(errors="replace")  # NATS takes a subject that is no text: nobody gets the answer
        traceparent = traceparent_of(buffer[buffer.find(CRLF, at) + 2 : start])
        if isinstance(outcome, NeedMoreBytes):
            outcome.end_min -= start
        step = self._invocations.receive(handler, reply, caller, buffer[start:end], outcome, monotonic(), traceparent)
        self._routes.on_step(step)
        return write_frames(step.sends)

    def _other(self, words: Sequence[bytes], payload: bytes) -> bytes:
        """The frames for what is no invocation that can be answered, and not nats-py's."""
        if words[2] in self._routes.params:  # a further piece of parameters
            token = params_token(words[1].decode(errors="replace"))
            step = self._invocations.receive_params(token, payload, monotonic())
            self._routes.on_step(step)
            return write_frames(step.sends)
        if words[2] in self._routes.handlers:  # an invocation without a reply subject: not carried out
            self._invocations.counts.without_reply += 1
        return b""  # or a line that is no text, at which nats-py's reading would end for good

    @property
    def _invocations(self) -> Invocations:
        invocations = self._routes.invocations
        assert invocations is not None, "there are routes"
        return invocations

    def _write(self, out: list[bytes]) -> None:
        frames = out[0] if len(out) == 1 else b"".join(out)
        self._invocations.counts.sent_bytes += len(frames)
        if self._socket is not None:
            self._socket.write(frames)

    def _read_info(self, line: bytes) -> None:
        """The server's limits may change at any INFO."""
        try:
            max_payload = int(json.loads(line[4:])["max_payload"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return  # nats-py reads the line too, and says what is wrong with it
        if max_payload < 1:
            return
        self._max_payload = max_payload
        self._frame_bytes_max = max_payload + LINE_BYTES_MAX
        self._routes.forget_shapes()  # they claim what was allowed before
        if self._routes.invocations is not None:
            self._routes.invocations.max_payload = max_payload

    def _abort(self) -> None:
        """What comes is not the protocol: nats-py sees the end of the stream, and reconnects."""
        self._routes.violations += 1
        if self._socket is not None:
            self._socket.abort()


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True
