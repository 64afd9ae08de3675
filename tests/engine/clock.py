"""A clock for stores under test."""

from __future__ import annotations

NS_PER_MS = 1_000_000


class Clock:
    """Nanoseconds that stand still until they are moved.

    :ivar looks: the number of looks at it
    """

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.now_ns

    def move_ms(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS
