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
frames, and the parts of all frames are compared together. Comparing a frame alone takes a third as long as parsing it.
bench/micro/test_frames.py measures the time per frame.

Invariant: shapes never change a result. With shapes or without, the direct path finds the same frames, and the same
handler, caller, reply subject and parameters for each frame. A property test checks this invariant.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct
from typing import TypeAlias

from keyvalue_transport.nats.direct.frames import MessageFrame
from keyvalue_transport.nats.direct.runs import FrameRun
from keyvalue_transport.nats.headers import BLOCK_BYTES_MAX, CRLF, TRACEPARENT_LINE
from keyvalue_transport.nats.reply_subjects import REPLY_BYTES_MAX, ReplySubjects
from keyvalue_transport.wrpc.handler import ANONYMOUS, Begun, Caller, ForBegunRuns, ForRuns, Handler

__all__ = ["RUN_FRAMES_MAX", "SHAPES_MAX", "Alike", "InvocationFrame", "InvocationGroup", "Shape"]

#: An invocation in a buffer: the tail of the reply subject, the frame's offset, and the start and end of the
#: parameters. It is a plain tuple for speed, because each call creates one.
InvocationFrame: TypeAlias = tuple[bytes, int, int, int]
#: A handler, a caller, the head of the reply subjects, and the caller's consecutive invocations of the handler: an
#: iterator, or a `FrameRun`.
InvocationGroup: TypeAlias = tuple[Handler, Caller, bytes, Iterable[InvocationFrame]]

#: The maximum number of shapes. When the maximum is reached, all shapes are forgotten.
SHAPES_MAX = 256
#: The minimum number of frames in a run, and in one whose calls begin changes together. Splitting a shorter run does not
#: save time, because this touches more memory than comparing each frame does.
RUN_FRAMES_MIN = 12
BEGUN_FRAMES_MIN = 4
#: The maximum number of frames that are split at once. A longer run is split in parts.
RUN_FRAMES_MAX = 16
#: The maximum number of Structs that a shape keeps.
RUNS_MAX = 32
#: Calls with larger parameters are not made together, because to copy the parameters takes longer than it saves.
RUN_PARAMS_BYTES_MAX = 1024
SPACE, CR = b" \r"


class Shape:
    """The common part of one caller's frames for one function, if the frames have the same size.

    :ivar head: the start of the reply subject, which all reply subjects of this shape have
    :ivar prefix: the bytes before the reply subject, and the head
    :ivar suffix: the bytes from the reply subject to the trace, or to the payload if there is no trace
    :ivar rest: the bytes from the trace to the payload; empty if there is no trace
    """

    __slots__ = (
        *("caller", "handler", "head", "prefix", "rest", "suffix"),
        *("_digits", "_has_params", "_layout", "_rest_bytes", "_runs"),
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
        called = handler.handler if type(handler) is Begun else handler
        params_bytes, begins = frame.payload_end - frame.payload_at, type(called) is ForBegunRuns
        self._has_params = begins or (type(called) is ForRuns and params_bytes <= RUN_PARAMS_BYTES_MAX)
        self._rest_bytes = len(rest)
        self._layout = (
            *(self.prefix, len(self.prefix), self.suffix, len(self.suffix), self.rest, len(rest)),
            *(params_bytes, REPLY_BYTES_MAX - len(head), BEGUN_FRAMES_MIN if begins else RUN_FRAMES_MIN),
        )
        self._runs: dict[int, Struct] = {}

    def take(self, buffer: bytes, at: int, end: int, until: int) -> tuple[InvocationGroup, int]:
        """Return invocations of this shape that follow each other from `at` on, and the offset after the last one.

        The last one begins before `until`. There is none if the frame at `at` has another shape, or is incomplete.

        This method is optimized for speed, which the end-to-end benchmark of `get` measures.
        """
        prefix, prefix_bytes, suffix, suffix_bytes, rest, rest_bytes, payload_bytes, tail_bytes_max, frames_min = (
            self._layout
        )
        frames: list[InvocationFrame] = []
        may_run = True
        while buffer.startswith(prefix, at) and at < until:
            reply_at = at + prefix_bytes
            reply_end = buffer.find(b" ", reply_at, reply_at + tail_bytes_max)  # -1 is no place for the suffix
            start = reply_end + rest_bytes
            stop = start + payload_bytes
            after = stop + 2
            if not buffer.startswith(suffix, reply_end) or after > end:
                break
            if rest:
                rest_at = start - len(rest)
                if not buffer.startswith(rest, rest_at):
                    break
                if buffer.find(CRLF, reply_end + suffix_bytes) != rest_at + self._digits:
                    break
            tail = buffer[reply_at:reply_end]
            if CR in tail:
                break
            if after == end and not frames:
                return (self.handler, self.caller, self.head, iter(((tail, at, start, stop),))), end
            frame_bytes = after - at
            if (
                may_run
                and at + frames_min * frame_bytes <= end
                and buffer.startswith(prefix, after)
                and buffer.startswith(suffix, reply_end + frame_bytes)
            ):
                if frames:
                    break  # the run has a group of its own
                number = (min(end, until + frame_bytes - 1) - at) // frame_bytes
                tails, params = self._run_at(buffer, at, number, frame_bytes, len(tail))
                if tails:
                    run = FrameRun(tails, params, at, frame_bytes, start, stop)
                    return (self.handler, self.caller, self.head, run), at + len(tails) * frame_bytes
                may_run = False
            frames.append((tail, at, start, stop))
            at = after
        return (self.handler, self.caller, self.head, iter(frames)), at

    def _run_at(
        self, buffer: bytes, at: int, remaining: int, frame_bytes: int, tail_bytes: int
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
        """Return the tails of the reply subjects of a run that starts at `at`, and the parameters if the handler wants them.

        The run may end before its last frame.

        A part of the run is compared as a whole. If its last frame does not fit, a smaller part is tried. If any other
        frame does not fit, the whole part is left out.
        """
        prefix, suffix, rest, startswith = self.prefix, self.suffix, self.rest, buffer.startswith
        step = 3 + 2 * bool(rest) + self._has_params  # the number of fields of a frame
        found: tuple[bytes, ...] = ()
        params: tuple[bytes, ...] = ()
        number = RUN_FRAMES_MAX
        while remaining:
            if number > remaining:
                number = remaining
            while number > 1 and not startswith(prefix, at + (number - 1) * frame_bytes):
                number //= 2
            key = tail_bytes * (RUN_FRAMES_MAX + 1) + number
            run = self._runs.get(key) or self._run(key, number, frame_bytes, tail_bytes)
            fields = run.unpack_from(buffer, at)
            tails = fields[1::step]
            text = b"".join(tails)
            if fields[::step].count(prefix) + fields[2::step].count(suffix) < 2 * number or SPACE in text or CR in text:
                break
            if rest and (fields[4::step].count(rest) < number or CR in b"".join(fields[3::step])):
                break
            found += tails
            if self._has_params:
                params += fields[step - 1 :: step]
            at += number * frame_bytes
            remaining -= number
        return found, params

    def _run(self, key: int, number: int, frame_bytes: int, tail_bytes: int) -> Struct:
        """Return a Struct that splits frames into prefix, tail, suffix, trace, rest and parameters.

        If the shape has no trace, there are no fields trace and rest. If nobody needs the parameters, they are left out.
        """
        sizes = [len(self.prefix), tail_bytes, len(self.suffix)]
        if self.rest:
            sizes += self._rest_bytes - len(self.suffix) - len(self.rest), len(self.rest)
        if self._has_params:
            sizes.append(frame_bytes - sum(sizes) - len(CRLF))
        fields = "".join(f"{size}s" for size in sizes) + f"{frame_bytes - sum(sizes)}x"
        if len(self._runs) >= RUNS_MAX:
            self._runs.clear()
        run = self._runs[key] = Struct(fields * number)
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
