"""Own the shards of one bucket, and the ring that finds a key's shard.

The ring is a list of 2**bits shards; the top `bits` of a position are its index. A shard of smaller depth stands in the list several times
in a row. So a shard that has grown too large is split alone, and no write ever waits for more than one shard to be moved:

    bits 2    [ A | B | C | D ]
    split B   [ A | A | A | A | B0 | B1 | B2 | B3 | C | C | C | C | D | D | D | D ]     bits 4

A ring is never changed once it is published: a split publishes a new (shift, shards) tuple, and retires the shard it replaced. Whoever
then takes the retired shard's stripe is told so, and looks again.

A batch takes the stripes of its keys in the ring's order, each once, and holds them until its last write. `get_many` takes none: it reads, and
if a batch was at work meanwhile it reads again while none is (`_batches`).

Locks, in the order in which they are taken: that of `Tables`; `_growth` or `_batch`; one stripe (a batch, and the freeing of a table: several,
in the ring's order); the ledger's or the expiry's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import Any

from keyvalue_engine.context import Context, Copy
from keyvalue_engine.ledger import Account
from keyvalue_engine.options import SHARD_BITS_MAX, StoreOptions
from keyvalue_engine.quota import Quota
from keyvalue_engine.shard import Shard

__all__ = ["Table"]

Ring = tuple[int, list[Shard]]

#: A shard is split into four: into two, a bucket of a million keys has moved each of them once more (bench/micro/test_engine.py, fill).
#: Into more, keys are moved less often, but shards are smaller on the way: with sixteen, a get among 200,000 keys takes 1.2 times as long.
SPLIT_BITS = 2


class Table:
    """Keys and values of one bucket. Once freed (all shards retired, the ring as it was) it takes no write any more."""

    __slots__ = ("_batch", "_batches", "_context", "_growth", "_shard_keys_max", "_shards_min", "ring")

    def __init__(self, options: StoreOptions, context: Context) -> None:
        self._growth = Lock()  # protects the publishing of `ring`; reading it needs no lock, it is one attribute
        self._batch = Lock()  # held by the batch that is at work
        self._batches = 0  # odd while one is; changed under `_batch`, and read without
        self._shards_min = options.shards_min
        self._shard_keys_max = options.shard_keys_max
        self._context = context
        self.ring: Ring = (64, [Shard(0, 0, context)])

    @property
    def account(self) -> Account:
        """What the bucket's entries are counted in."""
        return self._context.account

    def __len__(self) -> int:
        """Keys of the bucket: exact when no write is under way."""
        return sum(len(shard.entries) for shard in self.shards())

    def shards(self) -> Iterator[Shard]:
        """Each shard of the ring as it is now, once, in the ring's order."""
        last = None
        for shard in self.ring[1]:
            if shard is not last:
                last = shard
                yield shard

    def shard_of(self, key: bytes) -> Shard:
        """The shard that holds a key, if any does. It may be retired meanwhile."""
        shift, shards = self.ring
        _, hash_function, seed, _, _ = self._context
        return shards[hash_function(key, seed) >> shift]

    def looks_empty(self) -> bool:
        """Whether no key is left. Without stripes: `free` makes sure."""
        return not any(shard.entries for shard in self.ring[1])

    def page(self, position: int, page_keys_max: int, page_bytes_max: int) -> tuple[list[bytes], int | None]:
        """Keys at and behind `position`, and the position at which the next page begins. One stripe at a time.

        :raises CrowdedPositionError: more keys stand at the first position than any page may hold
        """
        keys: list[bytes] = []
        size_bytes = 0
        next_position: int | None
        while True:
            shift, shards = ring = self.ring
            shard = shards[position >> shift]
            may_expire = shard.deadlines is not None  # then only the stripe tells whether a key is left
            if shard.entries:  # without the stripe: a shard that is empty at this moment has nothing to give
                if len(keys) >= page_keys_max and not may_expire:
                    return keys, position
                with shard.stripe:
                    if shard.retired:
                        if ring is self.ring:
                            return keys, None
                        continue
                    next_position, size_bytes = shard.take(position, keys, page_keys_max, size_bytes, page_bytes_max)
                if next_position is not None:
                    return keys, next_position
            position = shard.end
            if position >> 64:
                return keys, None

    def read(self, key: bytes, now_ns: int) -> bytes | None:
        """The value of a key whose time is not over. O(1), without a stripe.

        A reader looks up the entry and then, only if that has a deadline, looks at the clock. If the deadline is still to come, the value was
        there at the look-up, and is given: it is shown too long by no more than the way from the clock to the return. If not, the
        key may have been written again meanwhile, perhaps in a shard that replaced the one that was read. So it is looked up once more, here,
        from the ring on: what is found after a look at the clock, and was over at that look, is over.

        :param now_ns: the clock's time, looked at before
        """
        entry = self.shard_of(key).entries.get(key)
        if isinstance(entry, tuple):
            return entry[0] if entry[1] > now_ns else None
        return entry

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of the keys, as of a moment at which no batch was at work."""
        batches = self._batches
        if not batches & 1:
            values = self._read_many(keys)
            if batches == self._batches:
                return values
        with self._batch:
            return self._read_many(keys)

    def _read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `read`, with one time for all, so that what has one deadline is there whole, or not at all. Pays: bench end-to-end batch."""
        _, hash_function, seed, _, expiry = self._context
        shift, shards = self.ring
        entries: list[Any] = [shards[hash_function(key, seed) >> shift].entries.get(key) for key in keys]
        if not expiry.was_used or tuple not in map(type, entries):
            return entries
        now_ns = expiry.clock()
        for index, entry in enumerate(entries):
            if entry.__class__ is tuple:
                value, deadline_ns = entry
                entries[index] = value if deadline_ns > now_ns else self.read(keys[index], now_ns)
        return entries

    def set_many(self, entries: Mapping[bytes, bytes], quota: Quota | None, ttl_ns: int) -> bool:
        """Store all, or nothing; False when the table is freed and took nothing.

        :raises LimitError: before the first write
        """
        with self._stripes_of(entries) as parts:
            if parts is None:
                return False
            keys = memory_bytes = 0
            deadline_ns = self._context.expiry.deadline_ns(ttl_ns)
            for shard, part in parts.items():
                shard.expire(part)
                new_keys, growth = shard.growth(part, entries, deadline_ns)
                keys += new_keys
                memory_bytes += growth
            self.account.charge(keys, memory_bytes, quota)
            for shard, part in parts.items():
                shard.put_many(part, entries, deadline_ns)
        for shard in parts:
            if len(shard.entries) > self._shard_keys_max:
                self.split(shard)
        return True

    def delete_many(self, keys: Iterable[bytes]) -> int | None:
        """Remove all of these that are there; how many were, or None when the table is freed."""
        with self._stripes_of(dict.fromkeys(keys)) as parts:
            if parts is None:
                return None
            return sum(shard.remove(key) for shard, part in parts.items() for key in part)

    @contextmanager
    def _stripes_of(self, keys: Iterable[bytes]) -> Iterator[dict[Shard, list[bytes]] | None]:
        """Be at work as a batch: all shards of the keys, each with its keys, and its stripe held. None when the table is freed."""
        with self._batch:
            self._batches += 1
            taken: list[Shard] = []
            try:
                while True:
                    shift, shards = ring = self.ring
                    _, hash_function, seed, _, _ = self._context
                    indexes: dict[int, list[bytes]] = {}
                    for key in keys:
                        index = hash_function(key, seed) >> shift
                        if index in indexes:
                            indexes[index].append(key)
                        else:
                            indexes[index] = [key]
                    parts: dict[Shard, list[bytes]] = {}
                    for index in sorted(indexes):
                        shard = shards[index]
                        if shard in parts:  # it stands in the ring several times
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
        """What the shard that holds `position` has, as of one moment. A freed table's shards have nothing."""
        while True:
            shift, shards = ring = self.ring
            shard = shards[position >> shift]
            with shard.stripe:
                if not shard.retired or ring is self.ring:
                    return shard.copy()

    def split(self, shard: Shard) -> None:
        """Replace a shard that has grown too large by several; nothing if that was done already."""
        for piece in self._replace(shard):
            if len(piece.entries) > self._shard_keys_max:
                self.split(piece)  # its positions are close together

    def _replace(self, shard: Shard) -> list[Shard]:
        with self._growth:
            shift, shards = self.ring
            with shard.stripe:
                if shard.retired or len(shard.entries) <= self._shard_keys_max or shard.depth == SHARD_BITS_MAX:
                    return []
                bits = SPLIT_BITS if shard.depth else max(SPLIT_BITS, self._shards_min.bit_length() - 1)
                bits = min(bits, SHARD_BITS_MAX - shard.depth)
                pieces = shard.split(bits)
                deepest = max(64 - shift, shard.depth + bits)
                copies = 1 << (deepest - (64 - shift))
                ring = [known for known in shards for _ in range(copies)] if copies > 1 else shards.copy()
                copies = 1 << (deepest - shard.depth - bits)
                first = shard.start >> (64 - deepest)
                ring[first : first + copies * len(pieces)] = [piece for piece in pieces for _ in range(copies)]
                self.ring = (64 - deepest, ring)
            for piece in pieces:
                piece.enter_expiry()
            self._context.expiry.remove(shard)
            return pieces

    def free(self) -> bool:
        """Retire all shards if no key is left, at one moment; whether it was so."""
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
        """Assert every invariant of the table and its shards. Takes one stripe at a time. O(n)."""
        assert not self._batches & 1
        assert self.account.keys == len(self)
        assert self.account.memory_bytes == sum(shard.entries_bytes for shard in self.shards())
        shift, shards = self.ring
        assert len(shards) == 1 << (64 - shift)
        assert 64 - shift <= SHARD_BITS_MAX
        end = 0
        for shard in self.shards():
            assert shard.start == end, "an arc begins where the one before it ends"
            end = shard.end
            assert all(shards[index] is shard for index in range(shard.start >> shift, end >> shift))
            with shard.stripe:
                shard.check()
                assert len(shard.entries) <= self._shard_keys_max or shard.depth == SHARD_BITS_MAX
        assert end == 1 << 64
