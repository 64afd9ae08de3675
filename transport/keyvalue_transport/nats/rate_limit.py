"""A rate limit for log lines that remote clients can trigger."""

from __future__ import annotations

__all__ = ["More", "RateLimit", "network_limit"]

#: The limit for each kind of log line that a message can trigger, and the interval in seconds.
LINES_MAX = 5
INTERVAL_S = 10.0


class More(int):
    """A number of suppressed events. As text, it is the end of a log line; the text of 0 is empty."""

    def __str__(self) -> str:
        return f" ({int(self)} more like it were not logged)" if self else ""


class RateLimit:
    """A limit for the number of events in each interval. It suppresses and counts the events over the limit.

    :param number_max: the maximum number of events per interval
    """

    __slots__ = ("_admitted", "_interval_s", "_number_max", "_suppressed", "_until_s")

    def __init__(self, number_max: int, interval_s: float) -> None:
        self._number_max = number_max
        self._interval_s = interval_s
        self._until_s = 0.0
        self._admitted = 0
        self._suppressed = 0

    def admit(self, now_s: float) -> More | None:
        """Return the number of events suppressed since the last admitted event, or None if this event is suppressed.

        >>> limit = RateLimit(1, 10.0)
        >>> limit.admit(0.0), limit.admit(1.0), limit.admit(2.0), limit.admit(10.0)
        (0, None, None, 2)
        """
        if now_s >= self._until_s:
            self._until_s = now_s + self._interval_s
            self._admitted = 0
        if self._admitted >= self._number_max:
            self._suppressed += 1
            return None
        self._admitted += 1
        suppressed, self._suppressed = self._suppressed, 0
        return More(suppressed)


def network_limit() -> RateLimit:
    """Return a limit for one kind of log line that messages can trigger."""
    return RateLimit(LINES_MAX, INTERVAL_S)
