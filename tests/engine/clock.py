"""A clock for stores under test."""

from __future__ import annotations

NS_PER_MS = 1_000_000


class Clock:
    """A clock that stands still until it is moved, in nanoseconds.

    :ivar looks: how often it was read
    """

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.looks = 0

    def __call__(self) -> int:
        self.looks += 1
        return self.now_ns

    def move_ms(self, ms: int) -> None:
        self.now_ns += ms * NS_PER_MS
