"""Pauses reading from a connection while the protocol or nats-py's reader asks for it."""

from __future__ import annotations

from typing import Any, Protocol

__all__ = ["ReadFlow", "Writable"]


class Writable(Protocol):
    """The part of an asyncio transport that the protocol uses."""

    def write(self, frames: bytes, /) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


class ReadFlow:
    """Pauses and resumes a transport's reading for both.

    The StreamReader calls the methods that asyncio names. The protocol calls `hold` and `release`. Reading resumes
    when neither of them pauses it.
    """

    __slots__ = ("_held", "_reader_paused", "_transport")

    def __init__(self, transport: Writable) -> None:
        self._transport = transport
        self._reader_paused = False
        self._held = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the transport's information, for asyncio's StreamReaderProtocol."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Pause reading, because nats-py's reader is full."""
        if not self._held:
            self._transport.pause_reading()
        self._reader_paused = True

    def resume_reading(self) -> None:
        """Stop pausing for nats-py's reader, which has room again."""
        self._reader_paused = False
        if not self._held:
            self._transport.resume_reading()

    def hold(self) -> None:
        """Pause reading, because the protocol's output does not leave."""
        if not self._held:
            self._held = True
            if not self._reader_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        """Stop pausing for the protocol, whose output has left."""
        if self._held:
            self._held = False
            if not self._reader_paused:
                self._transport.resume_reading()
