"""The half of the direct path's protocol that writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from keyvalue_transport.nats.direct.delayed_output import DelayedOutput
from keyvalue_transport.nats.direct.read_flow import ReadFlow, Writable
from keyvalue_transport.nats.direct.routes import DirectRoutes

__all__ = ["UNREAD_BYTES_MAX", "WritingProtocol"]

#: Parsing and reading pause when the socket's buffer holds more bytes than this. Small answers may fill it.
FULL_BYTES = 4 * 1024 * 1024
#: The writes of Redis clients do not come from the socket, so `FULL_BYTES` does not stop them. Above this, they are refused.
UNREAD_BYTES_MAX = 64 * 1024 * 1024


class WritingProtocol(asyncio.StreamReaderProtocol):
    """The base class of `DirectProtocol`, which reads. All output of a read leaves in one write."""

    def __init__(self, reader: asyncio.StreamReader, routes: DirectRoutes, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._loop = loop  # asyncio's name for it, so this adds no attribute
        self._routes = routes
        self._socket: Writable | None = None
        self._flow: ReadFlow | None = None
        self._full = False  # True from FULL_BYTES to the low-water mark
        self._out: list[bytes] = []  # the output for the read that is being parsed
        self._later: list[bytes] = []  # frames from `send`, until the next turn of the event loop
        self._delayed = DelayedOutput(loop, routes, self._write)
        self._is_parsing = False  # True while frames of a read are handled

    def write_now(self, frames: bytes) -> bool:
        """Write frames at once, or at the end of the read that is being parsed.

        Return False if the connection is lost, nats-py has not finished opening it, or the server does not read.
        """
        if self._socket is None or not self._delayed.is_open:
            return False
        if self._delayed.is_blocked and self._socket.get_write_buffer_size() > UNREAD_BYTES_MAX:
            return False
        if self._is_parsing:
            self._later.append(frames)
        else:
            self._write([frames])
        return True

    def send(self, frames: list[bytes], is_large: bool = False) -> bool:
        """Write frames together in the next turn of the event loop, or at the end of the read that is being parsed.

        The frames of a large result are written in parts.

        Return False if the connection is lost, or if nats-py has not finished opening it. If it is lost before the
        frames are written, `on_lost` of the server is called.
        """
        if self._socket is None or not self._delayed.is_open:
            return False
        if is_large:
            self._delayed.add_late(frames)
            return True
        if not (self._later or self._is_parsing):
            self._loop.call_soon(self._write_later)
        self._later += frames
        return True

    def call_soon(self, act: Callable[[], None]) -> None:
        """Call `act` in the next turn of the event loop."""
        self._loop.call_soon(act)

    def flush(self) -> None:
        """Write everything given to `send`, and the rest of a large result. The server calls this when it stops."""
        self._write_later()
        self._delayed.flush()

    def has_room(self) -> bool:
        """Return True if nothing delays a large result."""
        return self._delayed.has_room()

    def _write_later(self) -> None:
        if self._socket is None:
            return  # `connection_lost` reports the frames
        later, self._later = self._later, []
        self._write(later)

    def _write(self, out: list[bytes]) -> None:
        if not out:
            return
        server, delayed, socket = self._routes.server, self._delayed, self._socket
        window = delayed.window
        if window.written_bytes >= window.due_bytes and server is not None and delayed.is_open:
            # In the same write, because a second write costs much.
            out = [*out, server.replies.receipt(window.note_request())]
            delayed.may_hold = True
        frames = b"".join(out)
        frames_bytes = len(frames)
        if server is not None:
            server.invocations.counts.sent_bytes += frames_bytes
        if socket is not None:
            socket.write(frames)
            window.written_bytes += frames_bytes
            if delayed.is_blocked and not self._full and socket.get_write_buffer_size() > FULL_BYTES:
                self._full = True
                assert self._flow is not None
                self._flow.hold()
