"""The server's time, as an instance estimates it. It is the clock of the instance's engine.

A deadline is a message's timestamp plus its time to live. Both are the server's, so the clocks of the instances do not
matter. A delivery shows that the server's time was at least its timestamp. The estimate is the latest time that the
deliveries of the last seconds prove. So it is late by about the shortest time that a delivery took.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic_ns

__all__ = ["ServerClock"]

#: Deliveries of this time, in nanoseconds, decide. Longer, and a change of the server's clock shows late.
WINDOW_NS = 10 * 10**9


class ServerClock:
    """A clock in nanoseconds of Unix time that never goes back.

    :param local: returns a local time in nanoseconds that never goes back
    """

    __slots__ = ("_began_ns", "_last_ns", "_lead_before_ns", "_lead_ns", "_local")

    def __init__(self, local: Callable[[], int] = monotonic_ns) -> None:
        self._local = local
        self._began_ns = local()
        self._lead_ns: int | None = None  # the most by which a server's time led the local one in this window
        self._lead_before_ns: int | None = None  # and in the window before
        self._last_ns = 0

    def __call__(self) -> int:
        """Return the time. It is 0 until the first `note`."""
        lead_ns, before_ns = self._lead_ns, self._lead_before_ns
        if lead_ns is None or (before_ns is not None and before_ns > lead_ns):
            lead_ns = before_ns
        if lead_ns is not None:
            now_ns = self._local() + lead_ns
            if now_ns > self._last_ns:
                self._last_ns = now_ns
        return self._last_ns

    def note(self, timestamp_ns: int) -> None:
        """Note that the server's time was this, or later."""
        local_ns = self._local()
        if local_ns - self._began_ns > WINDOW_NS:
            self._lead_before_ns, self._lead_ns, self._began_ns = self._lead_ns, None, local_ns
        lead_ns = timestamp_ns - local_ns
        if self._lead_ns is None or lead_ns > self._lead_ns:
            self._lead_ns = lead_ns
