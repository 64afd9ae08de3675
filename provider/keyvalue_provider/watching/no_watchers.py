"""The watchers of a provider that has none: with `keys = plain`, no component can watch."""

from __future__ import annotations

from collections.abc import Iterable

from keyvalue_provider.host.links import LinkKey, Links
from keyvalue_provider.watching.queue import WatchCounts
from keyvalue_provider.watching.watchers import WatchingLinks

__all__ = ["NoWatchers"]


class NoWatchers:
    """Refuses each link to a watcher. It has the methods of `Watchers`.

    :param lattice: the lattice's name
    """

    queue_length = 0

    def __init__(self, links: Links, lattice: str) -> None:
        self.counts = WatchCounts()
        self._links = links
        self._watching = WatchingLinks(links, lattice)

    def faults(self) -> list[str]:
        """Return nothing. The links say what is wrong."""
        return []

    def links_changed(self, keys: Iterable[LinkKey]) -> None:
        """Record each link to a watcher as unusable."""
        for watching in self._watching.take(keys).values():
            if watching is not None:
                link, _ = watching
                self._links.refuse(
                    link, "nothing is told: the provider has keys=plain, and watching needs keys=encoded"
                )

    async def stop(self, timeout_s: float) -> None:
        """Do nothing."""
