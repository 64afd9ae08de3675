"""The memory of the calls that wait for the store. One object counts the calls of all protocols.

    begin ──> counted ── the answer has come, or the call has ended otherwise ──> end

A call is refused while the limit is reached. So the calls may exceed the limit by the last one that began. The direct path
asks once for the calls of one caller in a slice of a read (`SLICE_BYTES`), so there it may be these.

Invariant: `held_bytes` is 0 when no call waits. Each call of `begin` must be followed by one call of `end` with the same
size. A write goes on when its caller has disconnected, and counts until its answer has come.
"""

from __future__ import annotations

from collections.abc import Hashable

from keyvalue_transport.wrpc.half_open import SHARES

__all__ = ["WAIT_BYTES", "BytesInFlight"]

#: The memory of a waiting call besides its parameters. Measured with 3,000 calls, by the growth of the process: 1.0 to 1.1 kB
#: for a set, 1.2 for a get, 1.3 for a delete, and 3.4 for an increment.
WAIT_BYTES = 1024


class BytesInFlight:
    """The memory of waiting calls, in total and by caller: a source id, or a Redis user.

    :ivar held_bytes: memory that all waiting calls hold
    """

    def __init__(self, bytes_max: int) -> None:
        self.held_bytes = 0
        self._bytes_max = bytes_max
        self._share = bytes_max - bytes_max // SHARES
        self._held: dict[Hashable, int] = {}

    def is_full(self, holder: Hashable) -> bool:
        """Return True if no further call of a caller may wait. A caller leaves a quarter of the memory to others."""
        held_bytes = self.held_bytes
        if held_bytes < self._share:  # the usual case
            return False
        return held_bytes >= self._bytes_max or self._held.get(holder, 0) >= self._share

    def begin(self, holder: Hashable, held_bytes: int) -> None:
        """Count the memory of calls that begin to wait."""
        self.held_bytes += held_bytes
        self._held[holder] = self._held.get(holder, 0) + held_bytes

    def end(self, holder: Hashable, held_bytes: int) -> None:
        """End the count of memory that `begin` began."""
        self.held_bytes -= held_bytes
        own_bytes = self._held[holder] - held_bytes
        if own_bytes:
            self._held[holder] = own_bytes
        else:
            del self._held[holder]

    @property
    def why_full(self) -> str:
        """Return the text of the error for a call that is refused."""
        return (
            f"calls that wait for the store hold {self.held_bytes} bytes; the limit is {self._bytes_max}, and"
            f" {self._share} for one caller (in_flight_bytes_max): try again"
        )
