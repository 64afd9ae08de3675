"""Frames of the direct path: what a control line says, what frames have in common, and the frames of answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, TypeAlias

from keyvalue_transport.nats.direct.callers import CRLF, TRACEPARENT
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller, Handler, Narrowed
from keyvalue_transport.wrpc.invocation import Send

__all__ = ["NO_SHAPE", "Cut", "FrameRun", "NotNatsError", "Other", "Shape", "shape_of", "write_frames"]

#: An invocation with a reply subject, cut out of a buffer: its handler, reply subject and caller, where its parameters begin and end.
Cut: TypeAlias = tuple[Handler, bytes, Caller, int, int]


class Other(NamedTuple):
    """What stands in a buffer and is no invocation that can be answered; `words` is None where it goes on to nats-py."""

    end: int
    words: Sequence[bytes] | None = None
    payload: bytes = b""


class NotNatsError(Exception):
    """What came is not the protocol, or claims too much."""


class Shape(NamedTuple):
    """What the frames of one function and one caller have in common while their sizes are the same.

        prefix             reply     suffix                                            trace     rest         payload
        HMSG subject 1 SP  _INBOX.x  SP 91 112 CRLF NATS/1.0 CRLF ... traceparent:     SP 00-... CRLF CRLF    ...
        MSG subject 1 SP   _INBOX.x  SP 21 CRLF                                                               ...

    Of a frame that is alike only the reply subject is cut out; the trace may be any that ends where the rest begins.

    Where the handler is a narrowed one, the head of the parameters stands behind the rest, or without a trace behind the suffix.

    :ivar suffix_bytes: without the head, as rest_bytes and head_bytes are
    :ivar rest_bytes: 0 without a trace: the suffix ends where the payload begins; -1 also without headers: there may be no reply subject
    :ivar head_bytes: of suffix, trace and rest
    """

    prefix: bytes
    prefix_bytes: int
    suffix: bytes
    suffix_bytes: int
    rest: bytes
    rest_bytes: int
    head_bytes: int
    payload_bytes: int
    handler: Handler
    caller: Caller


def shape_of(
    words: Sequence[bytes],
    block: bytes,
    payload_bytes: int,
    handler: Handler,
    caller: Caller,
    narrowed: Narrowed | None = None,
) -> Shape | None:
    """The shape of an invocation, from the words of its control line and its headers; None where the trace does not end as one."""
    prefix = b"%b %b %b " % (words[0], words[1], words[2])
    suffix, rest, rest_bytes = b" %b\r\n%b" % (b" ".join(words[4:]), block), b"", 0 if block else -1
    head_bytes = len(suffix)
    traced_at = suffix.find(TRACEPARENT)
    if traced_at >= 0:
        trace_at = traced_at + len(TRACEPARENT)
        rest_at = suffix.find(CRLF, trace_at)
        suffix, rest = suffix[:trace_at], suffix[rest_at:]
        if rest_at < 0 or TRACEPARENT in rest:
            return None
        rest_bytes = len(rest)
    suffix_bytes = len(suffix)
    if narrowed is not None:
        handler = narrowed.handler
        if rest:
            rest += narrowed.head
        else:
            suffix += narrowed.head
    return Shape(
        prefix, len(prefix), suffix, suffix_bytes, rest, rest_bytes, head_bytes, payload_bytes, handler, caller
    )


class FrameRun(NamedTuple):
    """How to cut frames that follow each other and have one shape and one size: all their reply subjects and traces are as long as the first's.

    :ivar frames: of a frame: prefix, reply, suffix, trace, rest; the last two are empty without a trace
    """

    frames: Struct
    frame_bytes: int
    payload_ahead: int
    payload_bytes: int
    shape: Shape

    @classmethod
    def of(cls, shape: Shape, at: int, reply_end: int, payload_end: int) -> FrameRun:
        """A run that begins at `at` with a frame of this shape."""
        frame_bytes = payload_end + 2 - at
        reply_bytes = reply_end - at - shape.prefix_bytes
        trace_bytes = shape.head_bytes - shape.suffix_bytes - shape.rest_bytes if shape.rest else 0
        sizes = (shape.prefix_bytes, reply_bytes, len(shape.suffix), trace_bytes, len(shape.rest))
        payload_ahead = frame_bytes - 2 - shape.payload_bytes
        return cls(frames_of(sizes, frame_bytes), frame_bytes, payload_ahead, shape.payload_bytes, shape)


@lru_cache(256)
def frames_of(sizes: tuple[int, ...], frame_bytes: int) -> Struct:
    """Frames that begin with fields of these sizes."""
    fields = "".join(f"{size}s" for size in sizes)
    return Struct(f"{fields}{frame_bytes - sum(sizes)}x")


def no_handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
    """Of `NO_SHAPE`, which no frame has."""
    raise AssertionError


#: Its suffix begins with no space, which what is searched for does, and is too long for the last byte, where a search that failed points.
NO_SHAPE = Shape(b"\n", 1, b"\n\n", 2, b"", 0, 0, 0, no_handler, ANONYMOUS)


def write_frames(sends: list[Send]) -> bytes:
    """The PUB frames of messages.

    >>> write_frames([Send("a", b"hi"), Send("b", b"", "c")])
    b'PUB a 2\\r\\nhi\\r\\nPUB b c 0\\r\\n\\r\\n'
    """
    parts: list[bytes] = []
    for subject, payload, reply in sends:
        to = f"{subject} {reply}" if reply else subject
        parts += (b"PUB %b %d\r\n" % (to.encode(), len(payload)), payload, b"\r\n")
    return b"".join(parts)
