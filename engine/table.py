"""A table: the shards of one bucket, and the ring that finds a key's shard.

The ring is a list of 2**bits shards; the top `bits` of a position are its index. A shard of smaller depth stands in the list several times
in a row, so one that has grown too large is split alone, and no write ever waits for more than one shard to be moved:

    bits 2    [ A | B | C | D ]
    split B   [ A | A | A | A | B0 | B1 | B2 | B3 | C | C | C | C | D | D | D | D ]     bits 4

A ring is never changed once it is published: a split publishes a new (shift, shards) tuple, and retires the shard it replaced. Whoever
then takes the retired shard's stripe is told so, and looks again.

Locks, in the order in which they are taken: the store's lock, `_growth`, one stripe (to free a table: all, in the ring's order), the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from threading import Lock

from engine.ledger import Ledger
from engine.options import SHARD_BITS_MAX, StoreOptions
from engine.shard import Shard

__all__ = ["Table"]

Ring = tuple[int, list[Shard]]

#: A shard is split into four: into two, a bucket of a million keys has moved each of them once more (bench/micro/test_engine.py, new keys).
SPLIT_BITS = 2


class Table:
    """Keys and values of one bucket. Once freed (all shards retired, the ring as it was) it takes no write any more."""

    __slots__ = ("_growth", "_ledger", "_shard_keys_max", "_shards_min", "ring")

    def __init__(self, options: StoreOptions, position_of: Callable[[bytes], int], ledger: Ledger) -> None:
        self._growth = Lock()  # protects the publishing of `ring`; reading it needs no lock, it is one attribute
        self._shards_min = options.shards_min
        self._shard_keys_max = options.shard_keys_max
        self._ledger = ledger
        self.ring: Ring = (64, [Shard(0, 0, position_of, ledger)])

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

    def looks_empty(self, position: int) -> bool:
        """Whether no key is left, looking first where the last one was deleted. Without stripes: `free` makes sure."""
        shift, shards = self.ring
        return not shards[position >> shift].entries and not any(shard.entries for shard in shards)

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
            if shard.entries:  # without the stripe: a shard that is empty at this moment has nothing to give
                if len(keys) >= page_keys_max:
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

    def copy_shard(self, position: int) -> tuple[list[tuple[bytes, bytes]], int]:
        """The entries of the shard that holds `position`, as of one moment, and the end of its arc."""
        while True:
            shift, shards = ring = self.ring
            shard = shards[position >> shift]
            with shard.stripe:
                if not shard.retired or ring is self.ring:
                    return list(shard.entries.items()), shard.end

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
