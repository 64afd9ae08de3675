"""The move of keys and values to new memory, so that the gaps between them can go back to the system.

After most keys are deleted, the others may be spread over all the memory that the keys once took, so that no page of it
can be returned. A renewal puts copies in their place, which lie close together:

    Renewal ──> copy(), again and again, in one thread ──> replace(), in another thread

`copy` only creates objects, and `replace` frees those that they replace. The C library gives memory to each thread from
an area of its own, and puts freed memory back to where it came from. It also keeps some freed objects for the thread
that freed them. So no copy fills a gap, if a thread only copies. Other threads may use the store meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import is_

from keyvalue_engine.entry import Entry
from keyvalue_engine.evicting_shard import EvictingShard
from keyvalue_engine.shard import Shard
from keyvalue_engine.table import Table

__all__ = ["Renewal", "renewals"]

#: A renewal is for successive shards that have together about this number of keys.
RENEWAL_KEYS = 400
#: `copy` ends after this number of keys, or of bytes.
STEP_KEYS = 500
STEP_BYTES = 256 * 1024
#: A longer key or value is not copied, because hardly a part of its pages can belong to others.
COPIED_BYTES_MAX = 16 * 1024
#: CPython keeps this number of freed pairs, and uses them again before it takes memory.
FREED_PAIRS = 2_000


class Part:
    """The entries of one shard, and their copies."""

    __slots__ = ("copies", "entries", "keys", "pairs", "shard", "stamps")

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        with shard.stripe:
            self.keys, self.entries, _ = shard.copy(shard.start)
        self.copies: dict[bytes, Entry] = {}
        #: The deadlines, as `Deadlines.renew` takes them.
        self.pairs: list[tuple[int, bytes]] = []
        #: The stamps of a store that evicts.
        self.stamps: dict[bytes, int] = {}

    def replace(self) -> bool:
        """Put the copies in the place of the entries. Return False if the shard is retired. Takes the stripe."""
        shard = self.shard
        with shard.stripe:
            if shard.retired:
                return False
            if not self._is_current():
                self._merge()
            shard.forget_order()  # it has the old keys
            shard.entries = self.copies
            if shard.deadlines is not None:
                shard.deadlines.renew(self.copies, self.pairs)
            if isinstance(shard, EvictingShard):
                shard.renew_stamps(self.stamps)
            return True

    def _is_current(self) -> bool:
        entries = self.shard.entries
        return (
            len(entries) == len(self.keys)
            and all(map(is_, entries, self.keys))
            and all(map(is_, entries.values(), self.entries))
        )

    def _merge(self) -> None:
        """Bring the copies up to date. An entry that has changed since they were made is a new object itself."""
        copies, new_keys = self.copies, dict(zip(self.copies, self.copies, strict=True))
        copied = dict(zip(self.keys, self.entries, strict=True))
        self.copies = {
            new_keys.get(key, key): copies[key] if copied.get(key) is entry else entry
            for key, entry in self.shard.entries.items()
        }
        self.pairs = [(entry[1], key) for key, entry in self.copies.items() if isinstance(entry, tuple)]


class Renewal:
    """The renewal of some shards. The shards are locked during `replace` only, and may change before."""

    __slots__ = ("_parts", "_steps")

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._parts = [Part(shard) for shard in shards]
        self._steps = self._copy()

    def copy(self) -> bool:
        """Copy some of the entries, for about 0.4 ms. Return False if nothing is left to copy."""
        return next(self._steps, None) is not None

    def _copy(self) -> Iterator[int]:
        keys = size_bytes = 0
        used: list[object] = []
        for part in self._parts:
            stamps = part.shard.stamps if isinstance(part.shard, EvictingShard) else None
            for key, entry in zip(part.keys, part.entries, strict=True):
                if keys >= STEP_KEYS or size_bytes >= STEP_BYTES:
                    yield keys
                    keys = size_bytes = 0
                    used = []
                new = _copied(key)
                if isinstance(entry, tuple):
                    if not used:
                        used = list(zip(range(FREED_PAIRS), range(FREED_PAIRS), strict=True))
                    value, deadline_ns = entry[0], entry[1] + 0
                    part.copies[new] = _copied(value), deadline_ns
                    part.pairs.append((deadline_ns, new))
                else:
                    value = entry
                    part.copies[new] = _copied(value)
                if stamps and (stamp := stamps.get(key)):
                    part.stamps[new] = stamp + 0
                keys += 1
                size_bytes += len(key) + len(value)

    def replace(self) -> int:
        """Put the copies in the place of the entries, and free these. Return the number of keys that were renewed.

        Call it once, when `copy` has returned False.
        """
        parts, self._parts = self._parts, []  # so that this thread frees them
        return sum(len(part.keys) for part in parts if part.replace())


def renewals(tables: Iterable[Table]) -> Iterator[Renewal]:
    """Yield renewals for all shards of the tables. Each is for the shards as they are when it is yielded."""
    shards: list[Shard] = []
    keys = 0
    for table in tables:
        position = 0
        while not position >> 64:
            shift, ring = table.ring
            shard = ring[position >> shift]
            position = shard.end
            shards.append(shard)
            keys += len(shard.entries)
            if keys >= RENEWAL_KEYS:
                yield Renewal(shards)
                shards, keys = [], 0
    if shards:
        yield Renewal(shards)


def _copied(text: bytes) -> bytes:
    """Return a new object with the same bytes."""
    return b"%b" % text if len(text) <= COPIED_BYTES_MAX else text
