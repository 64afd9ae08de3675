"""Frames of the direct path: what a control line says, what frames have in common, and the frames of answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from transport.callers import TRACEPARENT
from transport.handler import ANONYMOUS, Caller, Handler
from transport.invocation import Send

__all__ = ["NO_SHAPE", "Cut", "NotNatsError", "Other", "Shape", "shape_of", "write_frames"]

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

        prefix             reply     suffix                                             trace    rest         payload
        HMSG subject 1 SP  _INBOX.x  SP 91 112 CRLF NATS/1.0 CRLF ... traceparent: SP   00-...   CRLF CRLF    ...

    Of a frame that is alike only the reply subject and the trace are cut out; a trace of letters, digits and hyphens: others are taken
    apart. Without a trace the suffix ends where the payload begins.
    """

    prefix: bytes
    prefix_bytes: int
    suffix: bytes
    head_bytes: int  # suffix, trace and rest
    payload_bytes: int
    trace_bytes: int
    rest: bytes
    handler: Handler
    caller: Caller


def shape_of(
    words: Sequence[bytes], block: bytes, payload_bytes: int, handler: Handler, caller: Caller
) -> Shape | None:
    """The shape of an invocation with headers, from the words of its control line; None where its trace is not a plain one."""
    prefix = b"%b %b %b " % (words[0], words[1], words[2])
    suffix, rest = b" %b %b\r\n%b" % (words[4], words[5], block), b""
    trace_bytes = 0
    if caller.traceparent is not None:
        at = suffix.find(TRACEPARENT + b" ")
        if at < 0:
            return None
        at += len(TRACEPARENT) + 1
        trace_bytes = len(caller.traceparent)
        suffix, trace, rest = suffix[:at], suffix[at : at + trace_bytes], suffix[at + trace_bytes :]
        if trace != caller.traceparent.encode() or not rest.startswith(b"\r\n") or TRACEPARENT in rest:
            return None
    head_bytes = len(suffix) + trace_bytes + len(rest)
    return Shape(prefix, len(prefix), suffix, head_bytes, payload_bytes, trace_bytes, rest, handler, caller)


def no_handler(caller: Caller, buffer: bytes, start: int, end: int) -> bytes:
    """Of `NO_SHAPE`, which no frame has."""
    raise AssertionError


#: Its suffix begins with no space, which what is searched for does, and is too long for the last byte, where a search that failed points.
NO_SHAPE = Shape(b"\n", 1, b"\n\n", 0, 0, 0, b"", no_handler, ANONYMOUS)


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
