"""Flow control for reading. Reading pauses while the protocol or nats-py's reader requests a pause."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

__all__ = ["HIGH_WATER_BYTES", "PARTIAL_BYTES", "SLICE_BYTES", "TURN_S", "ReadFlow", "Writable"]


class Writable(Protocol):
    """The part of an asyncio transport that the protocol uses."""

    def write(self, frames: bytes, /) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def abort(self) -> None: ...
    def get_write_buffer_size(self) -> int: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...


#: Reading and parsing pause until the next turn of the event loop when the calls of earlier reads took this time. An
#: event loop reads from a busy socket many times in one turn, and everything else would have to wait.
TURN_S = 0.01
#: A smaller read has emptied the socket, so it is the last one in its turn. asyncio and uvloop read up to 250 KiB.
PARTIAL_BYTES = 128 * 1024
#: Parsing may pause after each slice of a read. A slice of the shortest keys, in batches, takes about 10 ms.
SLICE_BYTES = 32 * 1024
#: Large results wait from the moment when the socket's buffer is above this, until it is below a quarter of this.
HIGH_WATER_BYTES = 1024 * 1024


class ReadFlow:
    """A switch for reading from a transport, shared by the protocol and nats-py's StreamReader.

    The StreamReader calls `pause_reading` and `resume_reading`. The protocol calls `hold` and `release`, and `worked`.
    Reading resumes when nobody asks for a pause any more.

    :param go_on: called after the pause for the next turn of the event loop
    :ivar began_s: the time at which the handling of the last read began, from `time.perf_counter`
    """

    __slots__ = (
        "_go_on",
        "_held",
        "_loop",
        "_reader_paused",
        "_resting",
        "_transport",
        "_turn_s",
        "_worked_s",
        "began_s",
    )

    def __init__(
        self,
        transport: Writable,
        loop: asyncio.AbstractEventLoop,
        go_on: Callable[[], None] = lambda: None,
        turn_s: float = TURN_S,
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._go_on = go_on
        self.began_s = 0.0
        self._reader_paused = False
        self._held = False
        self._resting = False
        self._turn_s = turn_s
        self._worked_s = 0.0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the transport. asyncio's StreamReaderProtocol needs this method."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Pause reading, because nats-py's reader is full."""
        was_paused, self._reader_paused = self._is_paused(), True
        self._change(was_paused)

    def resume_reading(self) -> None:
        """End the reader's pause, because nats-py's reader has room again."""
        was_paused, self._reader_paused = self._is_paused(), False
        self._change(was_paused)

    def hold(self) -> None:
        """Pause reading, because the socket's output buffer is full."""
        was_paused, self._held = self._is_paused(), True
        self._change(was_paused)

    def release(self) -> None:
        """End the protocol's pause, because the output buffer has room again."""
        was_paused, self._held = self._is_paused(), False
        self._change(was_paused)

    def worked(self, seconds: float, read_bytes: int) -> None:
        """Record the time that a read took. Pause until the next turn of the event loop if there was much to do."""
        self._worked_s += seconds
        if self._worked_s >= self._turn_s and not self._resting:
            was_paused, self._resting = self._is_paused(), True
            self._change(was_paused)
            self._loop.call_soon(self._end_rest)
        elif read_bytes < PARTIAL_BYTES:
            self._worked_s = 0.0

    def is_due(self) -> bool:
        """Return True if `worked` will pause at the end of the read that is being handled."""
        return self._worked_s + perf_counter() - self.began_s >= self._turn_s

    def close(self) -> None:
        """Keep reading paused, because the connection is lost."""
        self._held = self._reader_paused = True

    def _end_rest(self) -> None:
        was_paused, self._resting = self._is_paused(), False
        self._worked_s = 0.0
        self._change(was_paused)
        self._go_on()

    def _is_paused(self) -> bool:
        return self._held or self._reader_paused or self._resting

    def _change(self, was_paused: bool) -> None:
        is_paused = self._is_paused()
        if is_paused and not was_paused:
            self._transport.pause_reading()
        elif was_paused and not is_paused:
            self._transport.resume_reading()
