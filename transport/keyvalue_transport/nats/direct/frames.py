"""A parser for the frames that a NATS server sends.

MSG  subject sid [reply] size CRLF                    payload CRLF
HMSG subject sid [reply] head_size size CRLF headers  payload CRLF        size includes the headers
INFO {json} CRLF, PING CRLF, +OK CRLF, ...
"""

from __future__ import annotations

import json
from typing import NamedTuple

from keyvalue_transport.nats.headers import CRLF, read_headers

__all__ = [
    "HMSG",
    "INFO",
    "LINE_BYTES_MAX",
    "MSG",
    "PONG",
    "Line",
    "MessageFrame",
    "NotNatsError",
    "max_payload_of",
    "read_frame",
    "traceparent_in",
]

HMSG, MSG, INFO = b"HMI"
PONG = b"PONG"
#: The name of the trace header.
TRACEPARENT = b"traceparent"
#: Maximum size of a protocol line. INFO is the longest line. A frame may exceed max_payload by the same size.
LINE_BYTES_MAX = 1024 * 1024
#: Small sizes are looked up, because `int(bytes)` takes as long as parsing the rest of a control line.
SIZES = {b"%d" % size: size for size in range(4096)}


class NotNatsError(Exception):
    """An error for bytes that violate the NATS protocol, or announce a frame that is too large."""


class MessageFrame(NamedTuple):
    """A complete MSG or HMSG frame. `buffer[headers_at:payload_at]` holds its headers.

    :ivar reply: the reply subject; empty if it is missing
    """

    words: list[bytes]
    subscription: bytes
    reply: bytes
    headers_at: int
    payload_at: int
    payload_end: int


class Line(NamedTuple):
    """A complete line that is not part of a MSG or HMSG frame. `kind` is its first byte."""

    kind: int
    end: int


def read_frame(buffer: bytes, at: int, end: int, frame_bytes_max: int) -> MessageFrame | Line | int:
    """Return the frame or line at `at`, or the size of an incomplete frame. If the size is not known yet, return 0.

    :param frame_bytes_max: the maximum size of a frame's headers and payload together
    :raises NotNatsError: the bytes violate the NATS protocol, or announce a frame that is too large
    """
    line_end = buffer.find(CRLF, at)
    if line_end < 0:
        if end - at > LINE_BYTES_MAX:
            raise NotNatsError
        return 0
    kind = buffer[at]
    if kind != HMSG and kind != MSG:
        return Line(kind, line_end + 2)
    words = buffer[at:line_end].split(b" ")
    count = len(words) - (kind == HMSG)
    headers_at = payload_at = line_end + 2
    try:
        payload_end = payload_at + (SIZES.get(words[-1]) or int(words[-1]))
        if kind == HMSG:
            payload_at += SIZES.get(words[-2]) or int(words[-2])
    except (ValueError, IndexError):
        raise NotNatsError from None
    if not (4 <= count <= 5 and headers_at <= payload_at <= payload_end <= line_end + frame_bytes_max):
        raise NotNatsError
    if payload_end + 2 > end:
        return payload_end + 2 - at
    return MessageFrame(words, words[2], words[3] if count == 5 else b"", headers_at, payload_at, payload_end)


def max_payload_of(line: bytes) -> int | None:
    """Return the server's limit for the size of messages in an INFO line. Return None if the line is malformed."""
    try:
        max_payload = int(json.loads(line[4:])["max_payload"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return max_payload if max_payload >= 1 else None


def traceparent_in(buffer: bytes, at: int, payload_at: int) -> str | None:
    """Return the trace header of the frame at `at`, or None."""
    # Parse the headers only if there is a trace, because parsing takes as long as the rest of a call that is not simple.
    if buffer.find(TRACEPARENT, at, payload_at) < 0:
        return None
    return read_headers(buffer[buffer.find(CRLF, at) + 2 : payload_at]).traceparent
