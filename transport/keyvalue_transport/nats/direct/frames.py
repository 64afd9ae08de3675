"""Frames of the NATS protocol as a server sends them: reading one, by the words of its control line.

MSG  subject sid [reply] size CRLF                    payload CRLF
HMSG subject sid [reply] head_size size CRLF headers  payload CRLF        size is that of headers and payload
INFO {json} CRLF, PING CRLF, +OK CRLF, ...
"""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_transport.nats.headers import CRLF

__all__ = ["HMSG", "INFO", "LINE_BYTES_MAX", "MSG", "Line", "MessageFrame", "NotNatsError", "read_frame"]

HMSG, MSG, INFO = b"HMI"
#: A line of the protocol (INFO is the longest) and the control line and headers of a frame stay below this.
LINE_BYTES_MAX = 1024 * 1024
#: Sizes below this are looked up: `int` of bytes costs as much as the rest of a control line.
SIZES = {b"%d" % size: size for size in range(4096)}


class NotNatsError(Exception):
    """What came is not the protocol, or claims too much."""


class MessageFrame(NamedTuple):
    """A whole MSG or HMSG frame. `buffer[headers_at:payload_at]` are its headers.

    :ivar reply: empty if there is none
    """

    words: list[bytes]
    subscription: bytes
    reply: bytes
    headers_at: int
    payload_at: int
    payload_end: int


class Line(NamedTuple):
    """A whole line that is no MSG or HMSG frame. Its first byte tells which."""

    kind: int
    end: int


def read_frame(buffer: bytes, at: int, end: int, frame_bytes_max: int) -> MessageFrame | Line | int:
    """Return what stands at `at`. If it is not whole, return the least number of bytes that it has, or 0 if that is not known.

    :param frame_bytes_max: headers and payload of a frame
    :raises NotNatsError: it is not the protocol, or claims too much
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
