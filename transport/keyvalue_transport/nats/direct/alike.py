"""Frame shapes, which the direct path learns because one caller's frames for one function are very similar.

A shape is the common part of such frames, if the frames have the same size. The direct path compares a frame with a
known shape instead of parsing the frame:

    prefix             tail      suffix                                            trace     rest         payload
    HMSG subject 1 _   INBOX.x   SP 91 112 CRLF NATS/1.0 CRLF ... traceparent:     SP 00-... CRLF CRLF    ...
    MSG subject 1 _    INBOX.x   SP 21 CRLF                                                               ...

The reply subject is a *head* and a *tail*. No refused reply subject begins with the head (reply_subjects.py), so the
prefix also shows that the reply subject is allowed.

If calls are traced, the last digit of the trace belongs to `rest`. A frame whose last digit says that it is sampled gets
no shape, so no shape fits such a frame (tracing.py). Other frames then need no further test.

A run is a sequence of frames with one shape and with reply subjects of the same length. `struct` splits a run into its
frames. Comparing a frame takes a third as long as parsing it. bench/micro/test_frames.py measures the time per frame.

Invariant: shapes never change a result. With shapes or without, the direct path finds the same frames, and the same
handler, caller, reply subject and parameters for each frame. A property test checks this invariant.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import TypeAlias

from keyvalue_transport.nats.direct.frames import MessageFrame
from keyvalue_transport.nats.headers import BLOCK_BYTES_MAX, CRLF, TRACEPARENT_LINE
from keyvalue_transport.nats.reply_subjects import REPLY_BYTES_MAX, ReplySubjects
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler

__all__ = ["RUN_FRAMES_MIN", "SHAPES_MAX", "Alike", "InvocationFrame", "InvocationGroup", "Shape"]

#: An invocation in a buffer: the tail of the reply subject, the frame's offset, and the start and end of the
#: parameters. It is a plain tuple for speed, because each call creates one.
InvocationFrame: TypeAlias = tuple[bytes, int, int, int]
#: A handler, a caller, the head of the reply subjects, and the caller's consecutive invocations of the handler.
InvocationGroup: TypeAlias = tuple[Handler, Caller, bytes, Iterator[InvocationFrame]]

#: The maximum number of shapes. When the maximum is reached, all shapes are forgotten.
SHAPES_MAX = 256
#: The minimum number of frames in a run. Splitting a shorter run does not save time.
RUN_FRAMES_MIN = 4
SPACE, CR = b" \r"


class Shape:
    """The common part of one caller's frames for one function, if the frames have the same size.

    :ivar head: the start of the reply subject, which all reply subjects of this shape have
    :ivar prefix: the bytes before the reply subject, and the head
    :ivar suffix: the bytes from the reply subject to the trace, or to the payload if there is no trace
    :ivar rest: the bytes from the trace to the payload; empty if there is no trace
    :ivar stopped_at: the offset at which the last call of `frames` stopped
    """

    __slots__ = (
        *("caller", "handler", "head", "prefix", "rest", "stopped_at", "suffix"),
        *("_digits", "_payload_bytes", "_rest_bytes", "_runs"),
    )

    def __init__(
        self, frame: MessageFrame, block: bytes, handler: Handler, caller: Caller, head: bytes, is_traced: bool = False
    ) -> None:
        words = frame.words
        rest = b" %b\r\n%b" % (b" ".join(words[4:]), block)
        trace_at, rest_at = _trace_of(rest)
        self._digits = min(int(is_traced), rest_at - trace_at)  # the number of characters of the trace in `rest`
        rest_at -= self._digits
        self.head, self.prefix = head, b"%b %b %b %b" % (words[0], words[1], words[2], head)
        self.suffix, self.rest = rest[:trace_at], rest[rest_at:]
        self.handler, self.caller = handler, caller
        self.stopped_at = 0
        self._rest_bytes = len(rest)
        self._payload_bytes = frame.payload_end - frame.payload_at
        self._runs: dict[int, Struct] = {}

    def frames(self, buffer: bytes, at: int, end: int, until: int) -> Iterator[InvocationFrame]:
        """Yield consecutive invocations of this shape, starting at `at`. The last one begins before `until`.

        This method is optimized for speed, which the end-to-end benchmark of `get` measures.
        """
        find, startswith = buffer.find, buffer.startswith
        prefix, suffix, rest, payload_bytes = self.prefix, self.suffix, self.rest, self._payload_bytes
        digits, tail_bytes_max = self._digits, REPLY_BYTES_MAX - len(self.head)
        may_run = True
        while at < until and startswith(prefix, at):
            reply_at = at + len(prefix)
            reply_end = find(b" ", reply_at, reply_at + tail_bytes_max)  # -1 is no place for the suffix
            start = reply_end + self._rest_bytes
            stop = start + payload_bytes
            if not startswith(suffix, reply_end) or stop + 2 > end:
                break
            if rest:
                rest_at = start - len(rest)
                if not startswith(rest, rest_at) or find(CRLF, reply_end + len(suffix)) != rest_at + digits:
                    break
            reply = buffer[reply_at:reply_end]
            if CR in reply:
                break
            frame_bytes = stop + 2 - at
            run_bytes = min(end, until + frame_bytes - 1) - at
            if not may_run or run_bytes < RUN_FRAMES_MIN * frame_bytes:
                yield reply, at, start, stop
                at += frame_bytes
                continue
            began = at
            whole = memoryview(buffer)[at : at + run_bytes - run_bytes % frame_bytes]
            for its_prefix, its_reply, its_suffix, trace, its_rest in self._run(len(reply), frame_bytes).iter_unpack(
                whole
            ):
                if (
                    its_prefix != prefix
                    or its_suffix != suffix
                    or SPACE in its_reply
                    or CR in its_reply
                    or (rest and (its_rest != rest or CR in trace))
                ):
                    break
                yield its_reply, at, start, start + payload_bytes
                at += frame_bytes
                start += frame_bytes
            may_run = at - began >= RUN_FRAMES_MIN * frame_bytes
        self.stopped_at = at

    def _run(self, reply_bytes: int, frame_bytes: int) -> Struct:
        """Return a Struct that splits frames of this size into prefix, tail, suffix, trace and rest.

        If the shape has no trace, the fields trace and rest are empty.
        """
        run = self._runs.get(reply_bytes)
        if run is None:
            suffix_bytes, rest_bytes = len(self.suffix), len(self.rest)
            trace_bytes = self._rest_bytes - suffix_bytes - rest_bytes
            sizes = (len(self.prefix), reply_bytes, suffix_bytes, trace_bytes, rest_bytes)
            fields = "".join(f"{size}s" for size in sizes)
            if len(self._runs) >= SHAPES_MAX:
                self._runs.clear()
            run = self._runs[reply_bytes] = Struct(f"{fields}{frame_bytes - sum(sizes)}x")
        return run


class Alike:
    """The shapes that were learned from parsed frames. A shape is learned from two similar frames in a row.

    :ivar shape: the shape to compare the next frame with, or None
    :ivar is_on: False to learn nothing, so that every frame is parsed
    :ivar is_traced: True if no shape may fit a sampled call; such calls must not be learned
    """

    __slots__ = ("_caller", "_replies", "_shapes", "_size", "_subscription", "is_on", "is_traced", "shape")

    def __init__(self, replies: ReplySubjects, is_on: bool = True) -> None:
        self.is_on = is_on
        self.is_traced = False
        self._replies = replies
        self.shape: Shape | None = None
        self._shapes: dict[tuple[bytes, bytes, Caller], Shape] = {}
        # Values of the previous parsed frame:
        self._size = self._subscription = b""
        self._caller = ANONYMOUS

    def learn(self, frame: MessageFrame, block: bytes, handler: Handler, caller: Caller) -> None:
        """Learn from an invocation that had to be parsed, because it did not match the current shape."""
        size, subscription = frame.words[-1], frame.subscription
        if size == self._size and caller is self._caller and subscription == self._subscription and self.is_on:
            kind = (subscription, size, caller)
            known = self._shapes.get(kind)
            if known is None or known is self.shape:
                head = self._replies.head(frame.reply)
                if head and len(block) <= BLOCK_BYTES_MAX and _is_untraced_or_traced_once(block):
                    if len(self._shapes) >= SHAPES_MAX:
                        self._shapes.clear()
                    known = self._shapes[kind] = Shape(frame, block, handler, caller, head, self.is_traced)
                else:
                    return
            self.shape = known
        self._size, self._subscription, self._caller = size, subscription, caller

    def pause(self) -> None:
        """Force the next frame to be parsed, but keep the shapes."""
        self.shape = None

    def forget(self) -> None:
        """Forget every shape."""
        self.shape = None
        self._shapes.clear()


def _trace_of(rest: bytes) -> tuple[int, int]:
    """Return the offsets where the trace begins and ends. If there is no trace, return the end of `rest` twice."""
    traced_at = rest.find(TRACEPARENT_LINE)
    if traced_at < 0:
        return len(rest), len(rest)
    trace_at = traced_at + len(TRACEPARENT_LINE)
    return trace_at, rest.find(CRLF, trace_at)


def _is_untraced_or_traced_once(block: bytes) -> bool:
    """Return True if a block has no trace, or one trace with a line end. A shape can't describe other blocks."""
    traced_at = block.find(TRACEPARENT_LINE)
    if traced_at < 0:
        return True
    rest_at = block.find(CRLF, traced_at + len(TRACEPARENT_LINE))
    return rest_at >= 0 and TRACEPARENT_LINE not in block[rest_at:]
