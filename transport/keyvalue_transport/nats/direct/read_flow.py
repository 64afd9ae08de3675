"""Pausing the reading of a connection, which two want to do."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["ReadFlow", "Writable"]


class Writable(Protocol):
    """What the protocol needs of an asyncio transport."""

    def write(self, frames: bytes, /) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class ReadFlow:
    """Owns the pausing of one transport's reading, which two want: the StreamReader (its names) and the protocol (`hold`, `release`)."""

    __slots__ = ("_held", "_reader_paused", "_transport")

    def __init__(self, transport: Writable) -> None:
        self._transport = transport
        self._reader_paused = False
        self._held = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """The transport's, for asyncio's StreamReaderProtocol."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """nats-py's reader is full."""
        if not self._held:
            self._transport.pause_reading()
        self._reader_paused = True

    def resume_reading(self) -> None:
        """nats-py's reader has room."""
        self._reader_paused = False
        if not self._held:
            self._transport.resume_reading()

    def hold(self) -> None:
        """The protocol has output that does not leave."""
        if not self._held:
            self._held = True
            if not self._reader_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        """The protocol's output has left."""
        if self._held:
            self._held = False
            if not self._reader_paused:
                self._transport.resume_reading()
