"""A check by other threads that the event loop still runs. Load makes the loop late, but does not make the check fail."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable
from threading import Event, Lock
from time import monotonic

__all__ = ["LoopProbe"]

#: A check waits this long for the loop. Health probes usually give up after a second.
ANSWER_TIMEOUT_S = 0.5
#: The loop is stuck if it has not run a callback for this long.
STUCK_S = 30.0


class LoopProbe:
    """Checks that a loop runs callbacks. At most one callback is pending, and later checks wait for the same one.

    :param clock: returns the time in seconds
    """

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float] = monotonic) -> None:
        self._loop = loop
        self._clock = clock
        self._lock = Lock()  # protects the next two fields
        self._answered = Event()
        self._answered.set()
        self._asked_s = 0.0

    def alive(self) -> bool:
        """Return False if the loop is closed, or has not run a callback that an earlier check scheduled `STUCK_S` ago.

        Any thread may call this. It takes at most `ANSWER_TIMEOUT_S`.
        """
        with self._lock:
            if self._answered.is_set():
                if self._loop.is_closed():
                    return False
                self._answered, self._asked_s = Event(), self._clock()
                self._loop.call_soon_threadsafe(self._answered.set)
            answered, asked_s = self._answered, self._asked_s
        return answered.wait(ANSWER_TIMEOUT_S) or self._clock() - asked_s < STUCK_S
