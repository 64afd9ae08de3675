"""The rehearsal of a write that would create its KV bucket: whether a limit refuses it. Nothing is sent.

A write that is refused, or that changes nothing, must not create a KV bucket. Some writes first wait for a barrier, so
the rehearsal delivers the barriers. It confirms no change, so an answer that comes needs no KV bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keyvalue_engine import BucketOptions
from keyvalue_replica.bucket import ReplicaBucket, ReplicaStore
from keyvalue_replica.promise import Promise

__all__ = ["Nowhere", "rehearse"]

#: A write waits for one barrier before it looks at its keys, and for another one if it changes nothing.
BARRIERS = 2
#: No barrier of a rehearsal has a higher number.
LAST_TOKEN = 2**62


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


def rehearse(
    store: ReplicaStore, name: bytes, options: BucketOptions, write: Callable[[ReplicaBucket], Any]
) -> Promise | None:
    """Make a write to a bucket without keys, and give it up. Return the answer if the write changes nothing.

    :param store: a store of its own, whose core has `Nowhere` as its surroundings
    :raises StoreError: it is refused
    """
    core = store.core
    core.position.is_whole = True
    try:
        answer = write(store.bucket(name, options))
        if not isinstance(answer, Promise):
            value, answer = answer, Promise()
            answer.set_result(value)
        for sequence in range(1, BARRIERS + 1):
            core.flush()
            # It has a successor, so that nobody takes its time for that of a server.
            core.deliver_barrier(core.layout.barrier(""), LAST_TOKEN, (sequence, sequence, 0, 1))
        core.flush()
        if not answer.done():
            return None
        answer.result()
        return answer
    finally:
        core.give_up()
