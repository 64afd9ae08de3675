"""Reads the kinds of frames that come most often: acknowledgements, plain deliveries, and barriers.

    MSG _INBOX.abc.<number> <sid> 28 CRLF {"stream":"KV_b","seq":<sequence>} CRLF
    MSG $KV.b.<bucket>.<key> <sid> $JS.ACK.KV_b.<consumer>.1.<sequence>.<consumer's>.<time>.<pending> 5 CRLF value CRLF
    HMSG $KV.b.i.b.<instance> <sid> $JS.ACK... 74 75 CRLF <the headers of a barrier> <number> CRLF

A regular expression reads such a frame in a third of the time that parsing takes. All others are parsed as usual.
"""

from __future__ import annotations

import logging
import re

from keyvalue_replica.core import Core
from keyvalue_replica.layout import BARRIER_BLOCK

__all__ = ["Acknowledgements", "Barriers", "Deliveries"]

log = logging.getLogger(__name__)

#: What follows the number in an acknowledgement's subject.
STORED = rb' (\d+) \d+\r\n\{"stream":"[^"]*",(?:"domain":"[^"]*",)?"seq":(\d{1,18})\}\r\n'
#: The numbers in a delivery's reply subject. Their groups are those of `Delivery`. They do not match the first delivery of a
#: consumer, with which the core checks where the stream goes on.
NUMBERS = rb"(\d{1,18})\.((?!1\.)\d{1,18})\.(\d{1,19})\.(\d{1,18})"


class Acknowledgements:
    """Reads the acknowledgements of one instance.

    :param inbox: the prefix of their subjects, without the last point
    """

    def __init__(self, core: Core, inbox: str) -> None:
        self.prefix = f"MSG {inbox}.".encode()
        self._core = core
        self._match = re.compile(re.escape(self.prefix) + rb"(\d{1,18})" + STORED).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the acknowledgements at `at`. Return the offset after the last one."""
        stored: list[tuple[int, int]] = []
        match = self._match
        while (found := match(buffer, at)) is not None:
            token, sid, sequence = found.groups()
            if sid != subscription:
                break
            stored.append((int(token), int(sequence)))
            at = found.end()
        if stored:
            acknowledge(self._core, stored)
        return at


def acknowledge(core: Core, stored: list[tuple[int, int]]) -> None:
    """Tell a core the sequences of its messages, by their numbers."""
    try:
        core.acknowledge_all(stored)
    except Exception:  # it must not end the connection
        log.exception("acknowledgements were not handled")


def place_pattern(stream: str, consumer: str) -> bytes:
    """Return the pattern of the reply subject of one consumer's deliveries. Its groups are those of NUMBERS."""
    return re.escape(f"$JS.ACK.{stream}.{consumer}.1.".encode()) + NUMBERS


class Barriers:
    """Reads the deliveries of barriers of one consumer."""

    def __init__(self, core: Core, consumer: str) -> None:
        layout = core.layout
        self.prefix = b"HMSG " + layout.barriers
        self._core = core
        self._match = re.compile(
            rb"HMSG ("
            + re.escape(layout.barriers)
            + rb"[0-9a-f]+) (\d+) "
            + place_pattern(layout.stream, consumer)
            + rb" \d+ \d+\r\n"
            + re.escape(BARRIER_BLOCK)
            + rb"(\d{1,18})\r\n"
        ).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the barriers at `at`. Return the offset after the last one."""
        core, match, began = self._core, self._match, at
        while (found := match(buffer, at)) is not None:
            subject, sid, sequence, consumed, timestamp, pending, token = found.groups()
            if sid != subscription:
                break
            place = int(sequence), int(consumed), int(timestamp), int(pending)
            try:
                core.deliver_barrier(subject, int(token), place)
            except Exception:  # it must not end the connection
                log.exception("a barrier was not handled")
            at = found.end()
        if at > began:
            core.heard()
            core.release()
        return at


class Deliveries:
    """Reads the deliveries without headers of one consumer."""

    def __init__(self, core: Core, consumer: str) -> None:
        layout = core.layout
        self.prefix = b"MSG " + layout.prefix
        self._core = core
        self._match = re.compile(
            rb"MSG ("
            + re.escape(layout.prefix)
            + rb"(b[-_0-9A-Za-z]*)\.(k[-_0-9A-Za-z]*)) (\d+) "
            + place_pattern(layout.stream, consumer)
            + rb" (\d{1,9})\r\n"
        ).match

    def take(self, buffer: bytes, at: int, end: int, subscription: bytes) -> int:
        """Take the deliveries at `at`. Return the offset after the last one."""
        core, match, began = self._core, self._match, at
        position = core.position
        known: re.Match[bytes] | None = None  # the last of the deliveries that were applied when they were acknowledged
        known_count = 0
        while (found := match(buffer, at)) is not None:
            sid, sequence, size = found.group(4, 5, 9)
            payload_at = found.end()
            payload_end = payload_at + int(size)
            if payload_end + 2 > end or sid != subscription:
                break
            at = payload_end + 2
            if int(sequence) <= position.applied:
                known = found
                known_count += 1
                continue
            try:
                if known is not None:
                    core.deliver_known(known_count, place_in(known))
                    known, known_count = None, 0
                core.deliver_plain(found[1], (found[2], found[3]), buffer[payload_at:payload_end], place_in(found))
            except Exception:  # it must not end the connection
                log.exception("a delivery was not applied")
        if known is not None:
            core.deliver_known(known_count, place_in(known))
        if at > began:
            core.heard()
            core.release()
        return at


def place_in(found: re.Match[bytes]) -> tuple[int, int, int, int]:
    """Return the numbers in the reply subject of a delivery."""
    sequence, consumed, timestamp, pending = found.group(5, 6, 7, 8)
    return int(sequence), int(consumed), int(timestamp), int(pending)
