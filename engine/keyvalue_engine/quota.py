"""Quotas: limits on the keys and memory that some buckets of a store hold together.

    Quota ── the limits ──> Usage ── the counts of one Reach, shared by all quotas with this reach
                              ^
    bucket's name ── Usages ──┘     by exact name, and by each prefix of the name

`Ledger` keeps the `Usages`, and its lock protects them. A bucket's account looks up its usages again after a reach was
added or removed. So a change of quotas costs nothing for each bucket.

A usage that is added to a store with many buckets counts them in bounded steps, in the order of their names:

    a   b   c   d   e   f   g   h
    counted ──────> │ not counted yet
                  boundary

A write to a bucket before the boundary changes the counts. A later bucket is counted as it is when the boundary
reaches it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from sortedcontainers import SortedList

from keyvalue_engine.arguments import own_bytes, own_int

__all__ = ["UNLIMITED", "Quota", "Reach", "Usage", "Usages", "end_of"]

#: The limit if no limit is set. No count reaches this number.
UNLIMITED = 2**63


class Reach(NamedTuple):
    """The buckets that a quota covers: the buckets in `names`. If `names` is None, all buckets with the prefix.

    >>> Reach(prefix=b"a").covers(b"ab"), Reach(frozenset({b"a"})).covers(b"ab")
    (True, False)
    """

    names: frozenset[bytes] | None = None
    prefix: bytes = b""

    def covers(self, name: bytes) -> bool:
        """Return True if the reach includes the bucket with this name."""
        return name.startswith(self.prefix) if self.names is None else name in self.names


class Usage:
    """The counts of the keys and memory of a reach's buckets.

    :ivar quotas: number of the quotas that share these counts
    :ivar boundary: the name before which all buckets are counted, or None if all buckets are counted
    """

    __slots__ = ("_names", "boundary", "keys", "memory_bytes", "quotas", "reach")

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self._names: list[bytes] | None = None  # those of the reach, in order, once they are counted
        self.keys = 0
        self.memory_bytes = 0
        self.quotas = 0
        self.boundary: bytes | None = b""

    def counts(self, name: bytes) -> bool:
        """Return True if a covered bucket with this name is counted."""
        return self.boundary is None or name < self.boundary

    def copy(self) -> Usage:
        """Return a copy of the counts, which no quota shares."""
        copy = Usage(self.reach)
        copy.keys, copy.memory_bytes, copy.boundary = self.keys, self.memory_bytes, self.boundary
        return copy

    def add(self, keys: int, memory_bytes: int) -> None:
        """Add to the counts."""
        self.keys += keys
        self.memory_bytes += memory_bytes

    def next_names(self, names: SortedList, names_max: int) -> list[bytes]:
        """Return the next names to count, in order, and move the boundary after them. O(names_max + log n).

        Names of the reach that no bucket has may be among them.

        :param names: the names of all buckets
        """
        if self.boundary is None:
            return []
        reach = self.reach
        if reach.names is None:
            least = max(self.boundary, reach.prefix)
            found = list(islice(names.irange(least, end_of(reach.prefix), inclusive=(True, False)), names_max + 1))
        else:
            if self._names is None:
                self._names = sorted(reach.names)
            at = bisect_left(self._names, self.boundary)
            found = self._names[at : at + names_max + 1]
        self.boundary = found.pop() if len(found) > names_max else None
        return found


def end_of(prefix: bytes) -> bytes | None:
    """Return the first name after all names with this prefix, or None if there is none."""
    prefix = prefix.rstrip(b"\xff")
    return prefix[:-1] + bytes((prefix[-1] + 1,)) if prefix else None


class Usages:
    """The usages of a store, found by reach and by the name of a bucket. The ledger's lock protects them.

    :ivar version: changes when a reach is added or removed
    """

    __slots__ = ("_by_name", "_by_prefix", "_by_reach", "_lengths", "version")

    def __init__(self) -> None:
        self.version = 0
        self._by_reach: dict[Reach, Usage] = {}
        self._by_name: dict[bytes, set[Usage]] = {}
        self._by_prefix: dict[bytes, Usage] = {}
        self._lengths: Counter[int] = Counter()

    def __iter__(self) -> Iterator[Usage]:
        return iter(self._by_reach.values())

    def __contains__(self, usage: Usage) -> bool:
        return self._by_reach.get(usage.reach) is usage

    def hold(self, reach: Reach) -> Usage:
        """Return the usage of a reach, for one more quota. A new usage has counted no buckets. O(names of the reach)."""
        usage = self._by_reach.get(reach)
        if usage is None:
            usage = self._by_reach[reach] = Usage(reach)
            self.version += 1
            if reach.names is None:
                self._by_prefix[reach.prefix] = usage
                self._lengths[len(reach.prefix)] += 1
            for name in reach.names or ():
                self._by_name.setdefault(name, set()).add(usage)
        usage.quotas += 1
        return usage

    def release(self, usage: Usage) -> None:
        """Forget the usage, unless another quota shares it. O(names of the reach)."""
        usage.quotas -= 1
        if usage.quotas:
            return
        reach = usage.reach
        del self._by_reach[reach]
        self.version += 1
        if reach.names is None:
            del self._by_prefix[reach.prefix]
            self._lengths -= Counter((len(reach.prefix),))  # drops a length that no prefix has
        for name in reach.names or ():
            sharing = self._by_name[name]
            sharing.discard(usage)
            if not sharing:
                del self._by_name[name]

    def of(self, name: bytes) -> tuple[Usage, ...]:
        """Return the usages of the reaches that cover a bucket. O(lengths of prefixes + result)."""
        prefixes = (name[:length] for length in self._lengths if length <= len(name))
        found = (self._by_prefix.get(prefix) for prefix in prefixes)
        return (*self._by_name.get(name, ()), *(usage for usage in found if usage is not None))


class Quota:
    """A limit on the keys and memory that some buckets hold together.

    A quota counts the writes of every handle, but limits only the handles that were created with the quota.
    `Store.add_quota` starts the counting. Quotas with equal reaches share their counts.

    :param reach: the buckets that the quota covers
    :param keys_max: limit for the number of keys, or None
    :param memory_bytes_max: limit for the memory of entries, as computed in `keyvalue_engine.entry`, or None
    :raises TypeError: a name, the prefix or a limit has another type
    :ivar usage: the counts; they are fixed while the quota belongs to no store
    """

    __slots__ = ("keys_max", "memory_bytes_max", "reach", "usage")

    def __init__(self, reach: Reach, keys_max: int | None, memory_bytes_max: int | None) -> None:
        names = None if reach.names is None else frozenset(own_bytes(name, "name") for name in reach.names)
        self.reach = reach = Reach(names, own_bytes(reach.prefix, "prefix"))
        self.keys_max = UNLIMITED if keys_max is None else own_int(keys_max, "keys_max")
        self.memory_bytes_max = UNLIMITED if memory_bytes_max is None else own_int(memory_bytes_max, "memory_bytes_max")
        self.usage = Usage(reach)

    @property
    def keys(self) -> int:
        """The number of keys in the counted buckets."""
        return self.usage.keys

    @property
    def memory_bytes(self) -> int:
        """The memory of the entries in the counted buckets."""
        return self.usage.memory_bytes

    @property
    def is_counted(self) -> bool:
        """True if all covered buckets are counted. `Store.count_quota` counts more of them."""
        return self.usage.boundary is None
