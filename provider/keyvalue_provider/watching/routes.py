"""The routes from a change to the watchers that are told of it: the patterns of all watching links, by bucket and key.

    change ── bucket ──┬─> Routes of the bucket ──┬─ sets, deletes ──> KeyRoutes ── key, or its start ──> watchers
                       └─> Routes of every bucket ┘

A change of a link changes only the routes of its own patterns, at once. So its cost does not depend on the number of
other links, and no change of a key sees half of the new patterns. A change of a key costs one look-up for the key, and
one for each length of a prefix that is watched in its bucket.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeAlias, TypeVar

from keyvalue_engine import DEADLINE, EXPIRE, PERSIST, SET, Change, Entry, Observer, Store
from keyvalue_provider.watching.patterns import Pattern
from keyvalue_provider.watching.queue import WatchQueue

__all__ = ["KeyRoutes", "Routes", "WatchRoutes", "expiry_observer", "queue_observer"]

#: Changes of a deadline alone.
DEADLINE_CHANGES = (PERSIST, DEADLINE)

W = TypeVar("W", bound=Hashable)


class KeyRoutes(Generic[W]):
    """The watchers of keys, for writes or for deletions, in one bucket or in every bucket.

    No watcher occurs twice for a key. The tuples are replaced, so a thread that reads them sees no change in between.

    :ivar keys: the watchers of single keys
    :ivar prefixes: the watchers of all keys with a prefix
    :ivar lengths: the lengths of the prefixes, ascending
    :ivar of_all: the watchers of every key, if no others need to be looked for; otherwise None
    """

    __slots__ = ("_counts", "keys", "lengths", "of_all", "prefixes")

    def __init__(self) -> None:
        self.keys: dict[bytes, tuple[W, ...]] = {}
        self.prefixes: dict[bytes, tuple[W, ...]] = {}
        self.lengths: tuple[int, ...] = ()
        self.of_all: tuple[W, ...] | None = ()
        self._counts: Counter[int] = Counter()  # number of prefixes by length

    def __bool__(self) -> bool:
        return bool(self.keys or self.prefixes)

    def find(self, key: bytes) -> tuple[W, ...]:
        """Return the watchers of a key. O(lengths)."""
        found = self.keys.get(key, ())
        for length in self.lengths:
            if length > len(key):
                break
            found += self.prefixes.get(key[:length], ())
        return found

    def add(self, pattern: Pattern, watcher: W) -> None:
        """Add a watcher of a pattern. O(watchers of the pattern + lengths)."""
        table = self.prefixes if pattern.is_prefix else self.keys
        if pattern.is_prefix and pattern.key not in table:
            self._count(pattern.key, 1)
        table[pattern.key] = (*table.get(pattern.key, ()), watcher)
        self._note_all()

    def remove(self, pattern: Pattern, watcher: W) -> None:
        """Remove a watcher of a pattern. O(watchers of the pattern + lengths)."""
        table = self.prefixes if pattern.is_prefix else self.keys
        watchers = table[pattern.key]
        at = watchers.index(watcher)
        if len(watchers) > 1:
            table[pattern.key] = watchers[:at] + watchers[at + 1 :]
        else:
            del table[pattern.key]
            if pattern.is_prefix:
                self._count(pattern.key, -1)
        self._note_all()

    def _note_all(self) -> None:
        needs_search = self.keys or self.lengths not in ((), (0,))
        self.of_all = None if needs_search else self.prefixes.get(b"", ())

    def _count(self, prefix: bytes, change: int) -> None:
        self._counts[len(prefix)] += change
        self.lengths = tuple(sorted(length for length, count in self._counts.items() if count))


class Routes(Generic[W]):
    """The watchers of one bucket, or of every bucket."""

    __slots__ = ("deletes", "sets")

    def __init__(self) -> None:
        self.sets: KeyRoutes[W] = KeyRoutes()
        self.deletes: KeyRoutes[W] = KeyRoutes()

    def __bool__(self) -> bool:
        return bool(self.sets or self.deletes)

    def of(self, pattern: Pattern) -> KeyRoutes[W]:
        """Return the part for the kind of change that a pattern reports."""
        return self.deletes if pattern.deletes else self.sets


#: Makes the observer of a bucket from its own routes and those of every bucket.
NewObserver: TypeAlias = Callable[[Routes[W], Routes[W]], Observer]


class WatchRoutes(Generic[W]):
    """The routes of all watching links, and the observers of a store that follow them. One thread changes them.

    :param new_observer: `queue_observer`, or another function like it
    """

    def __init__(self, store: Store, new_observer: NewObserver[W]) -> None:
        self._store = store
        self._new_observer = new_observer
        self._patterns: dict[W, list[Pattern]] = {}
        self._everywhere: Routes[W] = Routes()
        self._named: dict[bytes, Routes[W]] = {}
        self._of_others = new_observer(Routes(), self._everywhere)
        store.observe(self._observer_of)

    def __bool__(self) -> bool:
        """Return True if anything is watched."""
        return bool(self._patterns)

    def put(self, watcher: W, patterns: Iterable[Pattern]) -> None:
        """Replace the patterns of a watcher. Without patterns, it is told nothing.

        O(patterns), plus O(buckets) if this watcher is the first or was the last one with a pattern for every bucket.
        """
        before = self._patterns.pop(watcher, [])
        after = [*_needed(patterns)]
        if after:
            self._patterns[watcher] = after
        was_everywhere = bool(self._everywhere)
        names = {pattern.bucket for pattern in (*before, *after) if pattern.bucket is not None}
        new = {name for name in names if name not in self._named}
        for name in new:
            self._named[name] = Routes()
        for pattern in before:
            self._routes_of(pattern).remove(pattern, watcher)
        for pattern in after:
            self._routes_of(pattern).add(pattern, watcher)
        old = {name for name in names if not self._named[name]}
        for name in old:
            del self._named[name]
        if self._everywhere and not was_everywhere:
            self._store.replace_observer(None, self._of_others)
        elif was_everywhere and not self._everywhere:
            self._store.replace_observer(self._of_others, None)
        for name in new ^ old:
            self._store.observe_bucket(name)

    def _routes_of(self, pattern: Pattern) -> KeyRoutes[W]:
        routes = self._everywhere if pattern.bucket is None else self._named[pattern.bucket]
        return routes.of(pattern)

    def _observer_of(self, bucket: bytes) -> Observer | None:
        routes = self._named.get(bucket)
        if routes is not None:
            return self._new_observer(routes, self._everywhere)
        return self._of_others if self._everywhere else None


def _needed(patterns: Iterable[Pattern]) -> Iterator[Pattern]:
    """Leave out each pattern that another pattern's prefix covers in the same bucket. So each key fits at most one."""
    kinds: dict[tuple[bytes | None, bool], set[Pattern]] = defaultdict(set)
    for pattern in patterns:
        kinds[pattern.bucket, pattern.deletes].add(pattern)
    for own in kinds.values():
        prefixes: tuple[bytes, ...] = ()
        for pattern in sorted(own, key=lambda pattern: (not pattern.is_prefix, pattern.key)):
            if not pattern.key.startswith(prefixes):
                if pattern.is_prefix:
                    prefixes += (pattern.key,)
                yield pattern


def queue_observer(own: Routes[WatchQueue], everywhere: Routes[WatchQueue]) -> Observer:
    """Return an observer that adds each change of a bucket to the queues of its watchers.

    Watchers see values, not deadlines. So a change of a deadline alone is not reported, and expiry is reported as a deletion.
    Writes are optimized for watchers of every key (`scripts/bench endtoend --scenario watch`).
    """
    own_sets, every_sets = own.sets, everywhere.sets

    def observe(change: Change, bucket: bytes, key: bytes, entry: Entry | None) -> None:
        value: bytes | None
        if change == SET:
            # `isinstance` would take 40 ns more. SET always has an entry, but mypy does not know that.
            value = entry[0] if entry.__class__ is tuple else entry  # type: ignore[assignment]
            queues, more = own_sets.of_all, every_sets.of_all
            if queues is None:
                queues = own_sets.find(key)
            if more is None:
                more = every_sets.find(key)
        elif change in DEADLINE_CHANGES:
            return
        else:
            value, queues, more = None, own.deletes.find(key), everywhere.deletes.find(key)
        for queue in queues or more if not (queues and more) else dict.fromkeys(queues + more):
            queue.push((bucket, key, value))

    return observe


def expiry_observer(
    add: Callable[[bytes, bytes], None], own: Routes[Hashable], everywhere: Routes[Hashable]
) -> Observer:
    """Return an observer that calls `add` with each bucket and key that expired and whose deletion is watched."""

    def observe(change: Change, bucket: bytes, key: bytes, entry: Entry | None) -> None:
        if change == EXPIRE and (own.deletes.find(key) or everywhere.deletes.find(key)):
            add(bucket, key)

    return observe
