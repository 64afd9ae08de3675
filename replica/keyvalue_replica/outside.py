"""The connection, the clock and the follower, as the core uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

__all__ = ["Outside"]


class Outside(Protocol):
    """What the core needs from its surroundings."""

    def write(self, frames: bytes, /) -> bool:
        """Send frames at once. Return False if they were not sent, and never will be."""

    def now_s(self) -> float:
        """Return the local time in seconds. It never goes back."""

    def call_later(self, delay_s: float, act: Callable[[], None], /) -> None:
        """Call `act` once, after the delay."""

    def call_soon(self, act: Callable[[], None], /) -> object:
        """Call `act` once, at the end of the current read or in the next turn of the event loop."""

    def max_payload(self) -> int:
        """Return the NATS server's limit for the headers and the payload of a message in bytes."""

    def read_again(self, why: str, /) -> None:
        """Read the whole bucket again, because what was applied may not be in the stream any more."""

    def follow_again(self, why: str, /) -> None:
        """Follow the stream again from the position, because deliveries were lost."""

    def stop_serving(self, why: str, /) -> None:
        """Stop for good, because the bucket holds what this version cannot read."""
