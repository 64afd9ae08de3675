"""Flow control for reading. Reading pauses while the protocol or nats-py's reader requests a pause."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["ReadFlow", "Writable"]


class Writable(Protocol):
    """The part of an asyncio transport that the protocol uses."""

    def write(self, frames: bytes, /) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class ReadFlow:
    """A switch for reading from a transport, shared by the protocol and nats-py's StreamReader.

    The StreamReader calls `pause_reading` and `resume_reading`. The protocol calls `hold` and `release`. Reading
    resumes when both the StreamReader and the protocol have ended their pauses.
    """

    __slots__ = ("_held", "_reader_paused", "_transport")

    def __init__(self, transport: Writable) -> None:
        self._transport = transport
        self._reader_paused = False
        self._held = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport. asyncio's StreamReaderProtocol needs this method."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Pause reading, because nats-py's reader is full."""
        if not self._held:
            self._transport.pause_reading()
        self._reader_paused = True

    def resume_reading(self) -> None:
        """End the reader's pause, because nats-py's reader has room again."""
        self._reader_paused = False
        if not self._held:
            self._transport.resume_reading()

    def hold(self) -> None:
        """Pause reading, because the socket's output buffer is full."""
        if not self._held:
            self._held = True
            if not self._reader_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        """End the protocol's pause, because the output buffer has room again."""
        if self._held:
            self._held = False
            if not self._reader_paused:
                self._transport.resume_reading()
