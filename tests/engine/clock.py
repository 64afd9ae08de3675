"""A clock for stores under test."""

from __future__ import annotations

from collections.abc import Callable

NS_PER_MS = 1_000_000


class Clock:
    """Nanoseconds that stand still until they are moved.

    :param tick_ns: each look at the clock moves it on so far, as a real one moves between two
    :ivar looks: how often it was looked at
    """

    def __init__(self, now_ns: int = 0, tick_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.tick_ns = tick_ns
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        now_ns = self.now_ns
        self.now_ns += self.tick_ns
        return now_ns

    def move_ms(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS


class OvertakingClock(Clock):
    """A clock at which other calls get in as somebody looks at it.

    :ivar calls: these, the last first; each once
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], object]] = []

    def __call__(self) -> int:
        while self.calls:
            self.calls.pop()()
        return super().__call__()
