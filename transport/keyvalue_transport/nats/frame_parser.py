"""A parser for nats-py that no message can stop. It replaces nats-py's own parser, on both paths.

nats-py's parser stops reading for good, or gives the connection up, at some messages that every NATS client may send:
subjects that are not UTF-8 or contain white space, and odd header blocks. nats-py then still claims to be connected.

    socket ──> FrameParser.parse ──┬─ a message ──> the client's _process_msg; if that fails, the message is ignored
                                   ├─ -ERR ───────> the client's _process_err
                                   ├─ other lines ─> nats-py's parser
                                   └─ not NATS ───> ProtocolError: nats-py reconnects

An ignored message is counted in `ReadingFaults`, and logged at a limited rate.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from keyvalue_transport.nats.direct.frames import LINE_BYTES_MAX, Line, MessageFrame, NotNatsError, read_frame
from keyvalue_transport.nats.rate_limit import network_limit

__all__ = ["FrameParser", "ReadingFaults"]

log = logging.getLogger(__name__)

ERR = b"-ERR"


class ReadingFaults:
    """Counts of the faults in reading from NATS, over all clients of a connection.

    :ivar ignored: number of messages that could not be handled
    :ivar ended: number of times that nats-py stopped reading while it was connected
    """

    def __init__(self) -> None:
        self.ignored = 0
        self.ended = 0
        self._limit = network_limit()

    def note_ignored(self, what: str, error: Exception) -> None:
        """Count a message that is ignored, and log it at a limited rate."""
        self.ignored += 1
        if (more := self._limit.admit(monotonic())) is not None:
            log.warning("NATS: %s is ignored: %s: %s%s", what, type(error).__name__, error, more)


class FrameParser(Parser):
    """The parser of a nats-py client.

    :param client: the client, which handles the messages
    :ivar handlers: functions that handle the messages of a subscription id instead, each with its subject, its reply
        subject, its header block and its payload
    """

    def __init__(self, client: Any, faults: ReadingFaults) -> None:
        self.handlers: dict[int, Callable[[bytes, bytes, bytes, bytes], None]] = {}
        self._faults = faults
        self._resets = 0
        super().__init__(client)

    def reset(self) -> None:
        """Drop the unparsed bytes. nats-py calls this for each new connection."""
        super().reset()
        self._resets += 1
        self._pieces: list[bytes] = []
        self._pieces_bytes = self._needed_bytes = 0

    async def parse(self, piece: bytes = b"") -> None:
        """Handle the complete frames and lines. Keep an incomplete one for the next call.

        :raises ProtocolError: the bytes violate the NATS protocol, or announce a frame that is too large
        """
        self._pieces.append(piece)
        self._pieces_bytes += len(piece)
        if self._pieces_bytes < self._needed_bytes:
            return
        buffer = piece if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        self._pieces_bytes = self._needed_bytes = 0
        at, end, resets, frame_bytes_max = 0, len(buffer), self._resets, self.nc.max_payload + LINE_BYTES_MAX
        while at < end:
            try:
                frame = read_frame(buffer, at, end, frame_bytes_max)
            except NotNatsError:
                raise ProtocolError("nats: unknown protocol") from None
            if isinstance(frame, int):
                self._pieces, self._pieces_bytes, self._needed_bytes = [buffer[at:]], end - at, frame
                return
            if isinstance(frame, Line):
                await self._take_line(buffer[at : frame.end])
                at = frame.end
            else:
                await self._take_message(buffer, frame)
                at = frame.payload_end + 2
            if self._resets != resets:
                return  # the rest belongs to a connection that has ended

    async def _take_message(self, buffer: bytes, frame: MessageFrame) -> None:
        headers = buffer[frame.headers_at : frame.payload_at]
        payload = buffer[frame.payload_at : frame.payload_end]
        subject = frame.words[1]
        handle = self.handlers.get(int(frame.subscription))
        try:
            if handle is not None:
                handle(subject, frame.reply, headers, payload)
                return
            await self.nc._process_msg(int(frame.subscription), subject, frame.reply, payload, headers)
        except Exception as error:  # no message may end the reading
            self._faults.note_ignored(f"a message to {shown(subject)} with reply subject {shown(frame.reply)}", error)

    async def _take_line(self, line: bytes) -> None:
        try:
            if line.startswith(ERR):
                await self.nc._process_err(line[len(ERR) :].decode(errors="replace").strip(" '\r\n"))
                return
            await super().parse(line)
        except ProtocolError:
            raise
        except Exception as error:  # an INFO that is not JSON, or a PONG for a cancelled flush
            self._faults.note_ignored(f"the line {shown(line)}", error)
            self.buf.clear()
        if self.buf:
            raise ProtocolError("nats: unknown protocol")


def shown(text: bytes) -> str:
    """Return the first bytes of a text for a log line."""
    return ascii(text[:64].decode(errors="replace").strip())
