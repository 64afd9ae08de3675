"""One KV bucket with plain names that is opening, open or closing, and its place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from keyvalue_replica.bucket import ReplicaStore
from keyvalue_replica.follower import Follower
from keyvalue_replica.options import plain_name

__all__ = ["KvPlace", "OpenBucket"]


class KvPlace(NamedTuple):
    """Where a KV bucket is.

    :ivar domain: its JetStream domain, or "" for that of the provider
    """

    domain: str
    kv_bucket: str

    @property
    def name(self) -> bytes:
        """Return the name that the engine has for it."""
        return plain_name(self.domain, self.kv_bucket.encode())


class OpenBucket:
    """One KV bucket that is opening, open or closing. It is served while its follower follows the stream.

    :ivar changed: set whenever anything about it changes; a waiting call then looks again
    :ivar refusal: why it could not be opened
    :ivar store: opens handles; None until the follower has caught up
    :ivar is_served: True while calls may be answered
    :ivar was_served: True once it was served
    :ivar is_called: True once a call waited for it, so that it may displace one that is unused
    :ivar has_room: True if it counts for the limit of open KV buckets
    """

    def __init__(self, place: KvPlace, on_change: Callable[[], None]) -> None:
        self.place = place
        self.used_s = self.faulty_s = monotonic()
        self.changed = asyncio.Event()
        self.refusal: Exception | None = None
        self.follower: Follower | None = None
        self.store: ReplicaStore | None = None
        self.is_served = self.was_served = self.is_closing = False
        self.is_called = self.has_room = False
        self.task: asyncio.Task[None] | None = None
        self._on_change = on_change

    async def join(self) -> None:
        """Answer calls, because the copy is complete."""
        self.is_served = self.was_served = True
        self.wake()
        self._on_change()

    async def leave(self) -> None:
        """Let calls wait."""
        if self.is_served:
            self.faulty_s = monotonic()
            self.hide()

    def hide(self) -> None:
        """Let no call find the copy."""
        was_served, self.is_served = self.is_served, False
        self.wake()
        if was_served:  # otherwise, calls to missing buckets would make all other calls slower
            self._on_change()

    def wake(self) -> None:
        """Wake the calls that wait."""
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def fault(self) -> str:
        """Return why it is not served."""
        return (self.follower.fault if self.follower is not None else None) or "it is being opened"

    @property
    def is_idle(self) -> bool:
        """Return True if no change is in flight. Before it was served, only barriers are."""
        return self.follower is None or not self.was_served or not len(self.follower.core.publications)
