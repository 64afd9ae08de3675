"""A KV bucket with plain names that a watcher follows, as its `ChangeFeed` sees it.

The KV bucket may be closed and opened again. It may also be deleted, and another one created. So this class looks for
the follower each time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from keyvalue_replica.core import Core
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.follower import Follower
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.stream import Api, Requests

__all__ = ["WatchedBucket"]


class OpenKvBucket(Protocol):
    """A KV bucket that is open or opening, such as `OpenBucket`."""

    follower: Follower | None
    is_served: bool


class WatchedBucket:
    """The KV bucket of one watcher. It implements `WatchedStream`.

    :param opened: returns the open KV bucket, or None if it is not open
    :ivar on_missing: called when it does not exist
    """

    def __init__(self, requests: Requests, layout: PlainLayout, opened: Callable[[], OpenKvBucket | None]) -> None:
        self.api = Api(requests, layout.domain)
        self.layout = layout
        self.on_missing: Callable[[], None] = lambda: None
        self._opened = opened

    @property
    def _follower(self) -> Follower | None:
        opened = self._opened()
        return None if opened is None else opened.follower

    @property
    def is_serving(self) -> bool:
        """Return True while its changes are applied here."""
        opened, follower = self._opened(), self._follower
        return opened is not None and opened.is_served and follower is not None and follower.is_serving

    @property
    def core(self) -> Core:
        """Return the core.

        :raises NotStoredError: it is not open
        """
        follower = self._follower
        if follower is None:
            raise NotStoredError("the KV bucket is not open")
        return follower.core

    @property
    def applied(self) -> int:
        """Return the sequence of the last message that was applied, or 0 if it is not open."""
        follower = self._follower
        return 0 if follower is None else follower.applied

    @property
    def served_from(self) -> int:
        """Return the sequence that was applied when it last began to be served, or 0 if it is not open."""
        follower = self._follower
        return 0 if follower is None else follower.served_from

    @property
    def created(self) -> str | None:
        """Return when the stream was created, as text, or None if it is not open."""
        follower = self._follower
        return None if follower is None else follower.created
