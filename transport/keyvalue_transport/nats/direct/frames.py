"""A parser for one frame of the NATS protocol, as a server sends it.

MSG  subject sid [reply] size CRLF                    payload CRLF
HMSG subject sid [reply] head_size size CRLF headers  payload CRLF        size includes the headers
INFO {json} CRLF, PING CRLF, +OK CRLF, ...
"""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_transport.nats.headers import CRLF

__all__ = ["HMSG", "INFO", "LINE_BYTES_MAX", "MSG", "Line", "MessageFrame", "NotNatsError", "read_frame"]

HMSG, MSG, INFO = b"HMI"
#: The limit for a protocol line (INFO is the longest), and for a frame's control line and headers.
LINE_BYTES_MAX = 1024 * 1024
#: Small sizes are looked up, because `int(bytes)` takes as long as the rest of a control line.
SIZES = {b"%d" % size: size for size in range(4096)}


class NotNatsError(Exception):
    """The bytes are not the NATS protocol, or announce a frame that is too large."""


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
    """Return the frame or line at `at`. If it is incomplete, return its size in bytes, or 0 if the size is not known.

    :param frame_bytes_max: the limit for headers and payload of a frame
    :raises NotNatsError: the bytes are not the NATS protocol, or announce a frame that is too large
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
