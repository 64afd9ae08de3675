"""The shards of one bucket, and the ring that maps a key to its shard.

The ring is a list of 2**bits shards, indexed by the top `bits` bits of a position. A shard of smaller depth occurs
several times in a row. So one large shard can be split while the other shards stay as they are. A write waits for the
split of one shard at most:

    bits 2    [ A | B | C | D ]
    split B   [ A | A | A | A | B0 | B1 | B2 | B3 | C | C | C | C | D | D | D | D ]     bits 4

A shard is split if it has too many keys, or too many bytes of long keys (`long_keys.py`).

A published ring never changes. A split publishes a new (shift, shards) tuple, and retires the shard that it replaces.
A writer that finds its shard retired looks up the key's shard again.

A batch takes the stripes for all its keys, in the ring's order, and holds them until its last write. `get_many` takes
no stripe. If a batch runs during the read, `get_many` waits for the batch, and reads the values again while it blocks
other batches (`_batches`).

Threads take locks in this order:

1. the lock of `Tables`;
2. `_growth` or `_batch`;
3. one stripe, or several stripes in the ring's order (for a batch, or to free a table);
4. the lock of the ledger, of the expiry, or of the kept orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from threading import Lock, RLock
from typing import Any

from keyvalue_engine.arguments import own_bytes
from keyvalue_engine.context import Context, Copy
from keyvalue_engine.filling import Filling
from keyvalue_engine.invariants import check_shard, entries_bytes
from keyvalue_engine.ledger import Account
from keyvalue_engine.long_keys import LONG_BYTES_MAX, LONG_KEY_BYTES, long_bytes
from keyvalue_engine.options import SHARD_BITS_MAX, StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.shard import Shard

__all__ = ["Table"]

Ring = tuple[int, list[Shard]]

#: A shard is split into four new shards. With two, a bucket that grows to a million keys would move each key one more
#: time (`scripts/bench engine`, new key). With more than four, keys move less often, but the new shards are smaller.
#: With sixteen, a get among 200,000 keys takes 1.2 times as long.
SPLIT_BITS = 2
#: A table is merged into one shard when one in MERGE_SHARE of the keys that fit into a shard is left. So most of the
#: shard must be filled again before the next split.
MERGE_SHARE = 8
#: A page ends after this number of visited shards, removed expired keys, and keys sorted into a new order. A full page
#: of keys without deadlines needs less.
PAGE_WORK_MAX = 4096
SWEEP_SHARDS_MAX = 256


class Table:
    """The keys and values of one bucket. A freed table accepts no writes, because all its shards are retired."""

    __slots__ = (
        "_batch",
        "_batches",
        "_context",
        "_growth",
        "_shard_class",
        "_shard_keys_max",
        "_shards_min",
        "account",
        "merge_keys",
        "ring",
    )

    def __init__(self, options: StoreOptions, context: Context, shard_class: type[Shard] = Shard) -> None:
        self._growth = Lock()  # protects changes of `ring`; reading `ring` needs no lock
        self._batch = Lock()  # held by the running batch
        self._batches = 0  # odd while a batch runs; changed only under `_batch`, read without it
        self._shards_min = options.shards_min
        self._shard_keys_max = options.shard_keys_max
        self._context = context
        #: The account that counts the bucket's entries.
        self.account: Account = context.account
        self._shard_class = shard_class
        self.ring: Ring = (64, [shard_class(0, 0, context)])
        #: The number of keys at which `merge` should replace the shards by one; -1 if there is only one shard.
        self.merge_keys = -1

    def __len__(self) -> int:
        """Return the number of keys. The number is exact if no write is in progress."""
        return sum(len(shard.entries) for shard in self.shards())

    def shards(self) -> Iterator[Shard]:
        """Yield each shard of the current ring once, in the ring's order."""
        last = None
        for shard in self.ring[1]:
            if shard is not last:
                last = shard
                yield shard

    def locks(self) -> Iterator[Lock | RLock]:
        """Yield all locks of the table."""
        yield self._growth
        yield self._batch
        for shard in self.shards():
            yield shard.stripe

    def shard_of(self, key: bytes) -> Shard:
        """Return the shard for a key. The shard may be retired by the time you use it."""
        shift, shards = self.ring
        _, hash_function, secret, _, _, _ = self._context
        return shards[hash_function(secret, key) >> shift]

    def looks_empty(self) -> bool:
        """Return True if no key seems to be left. O(1). This method takes no stripe, so `free` checks again."""
        return not self.account.keys

    def looks_sparse(self) -> bool:
        """Return True if the keys seem to be so few that `merge` should replace the shards by one. O(1)."""
        return self.account.keys <= self.merge_keys

    def page(self, position: int, keys_max: int, bytes_max: int) -> tuple[list[bytes], int | None]:
        """Return a page of keys that starts at `position`, and the position of the next page, or None if there is none.

        The page also ends if it has taken much work: see PAGE_WORK_MAX. It may then be empty although more keys follow,
        or have a next position although no key follows. This method takes one stripe at a time.
        """
        page = Filling(keys_max, bytes_max)
        while True:
            shift, shards = ring = self.ring
            shard = shards[position >> shift]
            may_expire = shard.deadlines is not None  # if so, only `take` finds out whether a key is left
            page.work += 1
            if shard.entries:  # needs no stripe: a shard without entries adds no keys
                if len(page.keys) >= keys_max and not may_expire:
                    return page.keys, position
                with shard.stripe:
                    if shard.retired:
                        if ring is self.ring:
                            return page.keys, None
                        continue
                    next_position = shard.take(position, page)
                if shard.order is None and shard.entries:
                    self.account.ledger.recall()  # there was no room for an order
                if next_position is not None:
                    return page.keys, next_position
            position = shard.end
            if position >> 64:
                return page.keys, None
            if page.work >= PAGE_WORK_MAX:
                return page.keys, position

    def read(self, key: bytes, now_ns: int) -> bytes | None:
        """Return the value of a key, or None if the key is missing or has expired. O(1), without a stripe.

        `Bucket.get` and `_read_many` look up the entry first, and then read the clock if the entry has a deadline. If
        the deadline is in the future, the value was valid at the look-up, and they return the value.

        If the deadline has passed, they call this method. The key may have been written again since the first look-up,
        perhaps in a new shard after a split. So this method looks up the key again, starting from the ring. The clock
        was read before this second look-up. So if the second entry's deadline is not after `now_ns`, the key has
        expired.

        :param now_ns: the clock's time, read before this call
        """
        entry = self.shard_of(key).entries.get(key)
        if isinstance(entry, tuple):
            return entry[0] if entry[1] > now_ns else None
        return entry

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values in the order of the keys. No batch runs while the values are read."""
        batches = self._batches
        if not batches & 1:
            values = self._read_many(keys)
            if batches == self._batches:
                return values
        with self._batch:
            return self._read_many(keys)

    def _read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of several keys, with None for each key that is missing or has expired.

        All deadlines are compared with the same time, so keys with the same deadline expire together.
        """
        _, hash_function, secret, _, expiry, _ = self._context
        shift, shards = self.ring
        entries: list[Any] = [
            shards[hash_function(secret, key) >> shift].entries.get(key) for key in keys if type(key) is bytes
        ]
        if len(entries) != len(keys):
            return self._read_many([own_bytes(key, "key") for key in keys])
        if not expiry.was_used or tuple not in map(type, entries):
            return entries
        now_ns = expiry.clock()
        for index, entry in enumerate(entries):
            if entry.__class__ is tuple:
                value, deadline_ns = entry
                entries[index] = value if deadline_ns > now_ns else self.read(keys[index], now_ns)
        return entries

    def set_many(
        self,
        entries: Mapping[bytes, bytes],
        quota: Quota | None,
        ttl_ns: int,
        has_long: bool,
        only_missing: bool = False,
    ) -> bool | None:
        """Store all entries or none. Return True if they were stored, or None if the table is freed.

        With `only_missing`, return False if one of the keys exists.

        :param has_long: True if any key is longer than LONG_KEY_BYTES
        :raises LimitError: the keys or memory would exceed a limit; nothing was stored
        """
        with self._stripes_of(entries) as parts:
            if parts is None:
                return None
            memory_bytes = 0
            new_keys: list[int] = []
            deadline_ns = self._context.expiry.deadline_ns(ttl_ns)
            for shard, part in parts.items():
                shard.expire(part)
                if deadline_ns is not None:
                    shard.settle()  # not among the writes, while the counts are ahead because of the batch
                if only_missing and any(key in shard.entries for key in part):
                    return False
                shard_keys, growth = shard.growth(part, entries, deadline_ns)
                new_keys.append(shard_keys)
                memory_bytes += growth
            self.account.charge(sum(new_keys), memory_bytes, quota)
            for (shard, part), shard_keys in zip(parts.items(), new_keys, strict=True):
                shard.counted_keys += shard_keys
                shard.put_many(part, entries, deadline_ns)
                if has_long:
                    shard.long_bytes += long_bytes(part)
        for shard in parts:
            if self._is_large(shard):
                self.split(shard)
        return True

    def delete_many(self, keys: Iterable[bytes]) -> int | None:
        """Remove keys. Return the number of keys that existed, or None if the table is freed."""
        with self._stripes_of(dict.fromkeys(keys)) as parts:
            if parts is None:
                return None
            return sum(shard.remove(key) for shard, part in parts.items() for key in part)

    @contextmanager
    def _stripes_of(self, keys: Iterable[bytes]) -> Iterator[dict[Shard, list[bytes]] | None]:
        """Run a batch: hold the stripes of all shards that the keys belong to, and yield the keys by shard.

        Yield None if the table is freed.
        """
        with self._batch:
            self._batches += 1
            taken: list[Shard] = []
            try:
                while True:
                    shift, shards = ring = self.ring
                    _, hash_function, secret, _, _, _ = self._context
                    indexes: dict[int, list[bytes]] = {}
                    for key in keys:
                        index = hash_function(secret, key) >> shift
                        if index in indexes:
                            indexes[index].append(key)
                        else:
                            indexes[index] = [key]
                    parts: dict[Shard, list[bytes]] = {}
                    for index in sorted(indexes):
                        shard = shards[index]
                        if shard in parts:  # the shard occurs several times in the ring
                            parts[shard] += indexes[index]
                        else:
                            parts[shard] = indexes[index]
                    for shard in parts:
                        shard.stripe.acquire()
                        taken.append(shard)
                    if not any(shard.retired for shard in taken):
                        yield parts
                        return
                    if ring is self.ring:
                        yield None
                        return
                    while taken:
                        taken.pop().stripe.release()
            finally:
                for shard in taken:
                    shard.stripe.release()
                self._batches += 1

    def copy_shard(self, position: int) -> Copy:
        """Return a copy of the shard at `position` as of a single moment. A freed table gives an empty copy.

        Expired keys are part of the copy.
        """
        while True:
            shift, shards = ring = self.ring
            shard = shards[position >> shift]
            with shard.stripe:
                if not shard.retired or ring is self.ring:
                    return shard.copy(position)

    def sweep(self, looks_max: int) -> int:
        """Remove expired keys. Examine at most `looks_max` deadlines, and return the number examined.

        The call visits at most SWEEP_SHARDS_MAX shards.
        """
        looks = 0
        for shard in islice(self.shards(), SWEEP_SHARDS_MAX):
            if shard.deadlines is not None and looks < looks_max:
                looks += shard.sweep(looks_max - looks)
        return looks

    def note_key(self, shard: Shard, key: bytes) -> None:
        """Split a shard if it has grown too large, after this key was stored."""
        if len(key) > LONG_KEY_BYTES:
            with shard.stripe:
                shard.long_bytes += len(key)
        if self._is_large(shard):
            self.split(shard)

    def _is_large(self, shard: Shard) -> bool:
        """Return True if a shard seems to be so large that it must be split. O(1)."""
        return len(shard.entries) > self._shard_keys_max or shard.long_bytes > LONG_BYTES_MAX

    def split(self, shard: Shard) -> None:
        """Split a shard that has grown too large, unless another thread has already split it."""
        for piece in self._replace(shard):
            if self._is_large(piece):
                self.split(piece)  # most keys went to one new shard

    def _replace(self, shard: Shard) -> list[Shard]:
        with self._growth:
            shift, shards = self.ring
            with shard.stripe:
                if shard.retired or shard.depth == SHARD_BITS_MAX:
                    return []
                if shard.long_bytes:
                    shard.long_bytes = long_bytes(shard.entries)
                if not self._is_large(shard):
                    return []
                bits = SPLIT_BITS if shard.depth else max(SPLIT_BITS, self._shards_min.bit_length() - 1)
                bits = min(bits, SHARD_BITS_MAX - shard.depth)
                pieces = shard.split(bits)
                if shard.long_bytes:
                    for piece in pieces:
                        piece.long_bytes = long_bytes(piece.entries)
                deepest = max(64 - shift, shard.depth + bits)
                copies = 1 << (deepest - (64 - shift))
                ring = [known for known in shards for _ in range(copies)] if copies > 1 else shards.copy()
                copies = 1 << (deepest - shard.depth - bits)
                first = shard.start >> (64 - deepest)
                ring[first : first + copies * len(pieces)] = [piece for piece in pieces for _ in range(copies)]
                self.ring = (64 - deepest, ring)
                self.merge_keys = self._shard_keys_max // MERGE_SHARE
            for piece in pieces:
                piece.enter_schedules()
            return pieces

    def merge(self) -> None:
        """Replace the shards by one if few keys are left, so that the memory of the shards is freed. O(shards).

        If the keys are so long that the next one could split the merged shard, only merge when half of them are left.
        """
        with self._growth, ExitStack() as stripes:
            if not self.looks_sparse():
                return
            shards = list(self.shards())
            for shard in shards:
                stripes.enter_context(shard.stripe)
            if any(shard.retired for shard in shards):
                return
            size_bytes = sum(long_bytes(shard.entries) for shard in shards if shard.long_bytes)
            if size_bytes > LONG_BYTES_MAX // 2:
                self.merge_keys = self.account.keys // 2
                return
            merged = self._shard_class(0, 0, self._context)
            merged.long_bytes = size_bytes
            merged.join(shards)
            self.ring = (64, [merged])
            self.merge_keys = -1
        merged.enter_schedules()

    def free(self) -> bool:
        """Retire all shards at once if no key is left. Return True if the shards were retired."""
        with self._growth, ExitStack() as stripes:
            shards = list(self.shards())
            for shard in shards:
                stripes.enter_context(shard.stripe)
                if shard.entries:
                    return False
            for shard in shards:
                shard.retire()
            return True

    def check(self) -> None:
        """Assert every invariant of the table and its shards. This method takes one stripe at a time. O(n)."""
        assert not self._batches & 1
        assert self.account.keys == sum(shard.counted_keys for shard in self.shards())
        assert self.account.memory_bytes == sum(map(entries_bytes, self.shards()))
        shift, shards = self.ring
        assert len(shards) == 1 << (64 - shift)
        assert 64 - shift <= SHARD_BITS_MAX
        end = 0
        for shard in self.shards():
            assert shard.start == end, "an arc begins where the one before it ends"
            end = shard.end
            assert all(shards[index] is shard for index in range(shard.start >> shift, end >> shift))
            with shard.stripe:
                check_shard(shard)
                assert not self._is_large(shard) or shard.depth == SHARD_BITS_MAX
        assert end == 1 << 64
