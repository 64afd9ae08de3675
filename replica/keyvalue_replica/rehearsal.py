"""The rehearsal of a write that would create its KV bucket: whether a limit refuses it. Nothing is sent.

A refused write must leave everything unchanged, so it must not create a KV bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keyvalue_engine import BucketOptions
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.promise import Promise

__all__ = ["Nowhere", "rehearse"]


class Nowhere:
    """The surroundings of a core that sends nothing and follows nothing. Implements `Outside`.

    :param max_payload: returns the limit of the NATS server for a message
    """

    def __init__(self, max_payload: Callable[[], int]) -> None:
        self._max_payload = max_payload

    def write(self, frames: bytes) -> bool:
        """Send nothing."""
        return True

    def now_s(self) -> float:
        """Return 0."""
        return 0.0

    def call_later(self, delay_s: float, act: Callable[[], None]) -> None:
        """Do nothing."""

    def call_soon(self, act: Callable[[], None]) -> None:
        """Do nothing."""

    def max_payload(self) -> int:
        """Return the limit for the headers and the payload of a message in bytes."""
        return self._max_payload()

    def read_again(self, why: str) -> None:
        """Do nothing."""

    follow_again = stop_serving = read_again


def rehearse(store: ReplicaStore, name: bytes, options: BucketOptions, write: Callable[[ReplicaBucket], Any]) -> None:
    """Make a write to a bucket without keys, and give it up.

    :param store: a store of its own, whose core has `Nowhere` as its surroundings
    :raises StoreError: it is refused
    """
    core = store.core
    try:
        answer = write(store.bucket(name, options))
        core.flush()
        if isinstance(answer, Promise) and answer.done():
            answer.result()
    finally:
        core.give_up()
