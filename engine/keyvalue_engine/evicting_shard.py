"""A shard that can give up keys: in the order in which they were created, or those that were not used lately.

With `eviction = oldest`, the first key of `entries` goes: a dict keeps the order in which its keys were added, and an
overwrite does not move a key.

With `eviction = unused`, SIEVE chooses (Zhang et al., NSDI 2024). A *hand* moves over the keys in the order of their
creation. It removes the first key that was not used since the hand passed it, and passes the others:

    entries    oldest ─────────────────────────────────────> newest
               passed, passed, ... │ hand ──> ...              new keys come here, and the hand begins anew at the end
    stamps     has the keys that were not used since they were created or passed

A key that was only created and never used goes after one look. A reader marks a key as used by removing it from
`stamps`. So a read allocates nothing and keeps no object, and most reads only find that the key is not in `stamps`.

`stamps` also says how long the keys have waited, for the turns of the shards (`keyvalue_engine.turns`). With `oldest`,
it need not have all keys. So it takes hardly any memory, and a shard's turn is right within a part of its keys.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import islice

from keyvalue_engine.changes import EVICT, SET, Change
from keyvalue_engine.context import Context
from keyvalue_engine.entry import EVICTING_SHARD_BYTES, SHARD_BYTES, Entry, Timed
from keyvalue_engine.ledger import EvictingAccount
from keyvalue_engine.quota import Quota
from keyvalue_engine.shard import DICT_BYTES_MIN, Shard
from keyvalue_engine.turns import Turn

__all__ = ["CANDIDATES", "LOOKS_MAX", "EvictingShard"]

#: With `oldest`, about this many keys of a shard have a stamp.
STAMPED_KEYS = 16
#: A dict without removed keys takes 27 to 54 bytes for each key.
STAMPS_BYTES_PER_KEY = 110
#: The hand takes this many keys from `entries` at a time, because it takes O(n) to find its position.
CANDIDATES = 32
#: After this many looks without a removal, the next shard gets its turn.
LOOKS_MAX = 64


class EvictingShard(Shard):
    """A shard of a store whose option `eviction` is not `none`. The stripe protects all attributes.

    :ivar stamps: see above; a reader may remove a key without the stripe
    """

    __slots__ = ("_candidates", "_clock", "_hand", "_has_spared", "_place", "_turns", "_unstamped", "_uses", "stamps")

    fixed_bytes = SHARD_BYTES + EVICTING_SHARD_BYTES
    evicts = True

    def __init__(self, start: int, depth: int, context: Context) -> None:
        super().__init__(start, depth, context)
        account = context.account
        assert isinstance(account, EvictingAccount)
        self._turns = account.turns
        self._clock = account.turns.clock
        self._uses = account.notes_use
        self.stamps: dict[bytes, int] = {}
        self._unstamped = 0  # keys that were added since one got a stamp, with `oldest`
        self._hand = 0  # number of the keys before the hand
        self._candidates: list[bytes] = []  # keys after the hand, the next one last
        self._has_spared = False  # since the last `rewind`
        self._place: Turn | None = None

    def put(self, key: bytes, value: bytes, quota: Quota | None, ttl_ns: int) -> int:
        """Store a value, as `Shard.put` does."""
        if self.retired:
            return 0
        if ttl_ns or self.deadlines is not None:
            if self._uses:
                self.stamps.pop(key, None)  # for the copy of `_commit` in `_set_timed`
            return self._set_timed(key, value, quota, ttl_ns)
        self._commit(SET, key, value, self.entries.get(key), quota)
        return len(self.entries)

    def put_many(self, part: Sequence[bytes], entries: Mapping[bytes, bytes], deadline_ns: int | None) -> None:
        """Store the entries of the keys in `part`, as `Shard.put_many` does."""
        for key in part:
            value = entries[key]
            entry = value if deadline_ns is None else (value, deadline_ns)
            self._commit(SET, key, entry, self.entries.get(key), charged=True)

    def _commit(
        self,
        change: Change,
        key: bytes,
        entry: Entry | None,
        old: Entry | None,
        quota: Quota | None = None,
        charged: bool = False,
    ) -> None:
        super()._commit(change, key, entry, old, quota, charged)
        if old is None:
            stamp = self._clock.stamp()
            if self._uses or self._unstamped * STAMPED_KEYS >= len(self.entries) or not self.stamps:
                self.stamps[key] = stamp
                self._unstamped = 0
            self._unstamped += 1
            if self._place is None:
                self._place = self._turns.put(self, stamp, None)
        elif entry is None:
            self.stamps.pop(key, None)
            if change != EVICT:
                self._candidates = []  # the key may come again
        elif self._uses:
            self.stamps.pop(key, None)

    def _remove_due(self, due: Mapping[bytes, Timed]) -> None:
        super()._remove_due(due)
        for key in due:
            self.stamps.pop(key, None)
        self._candidates = []  # the keys may come again

    def use(self, key: bytes) -> None:
        """Mark a key as used. O(1) on average, without waiting for the stripe.

        Removed keys leave marks in a dict's table, and look-ups run into them. So the dict is made anew when most of
        the keys that it has room for are gone.
        """
        stamps = self.stamps
        stamps.pop(key, None)  # another thread may have done so
        if stamps.__sizeof__() > DICT_BYTES_MIN + STAMPS_BYTES_PER_KEY * len(stamps) and self.stripe.acquire(False):
            try:
                self._renew_stamps()
            finally:
                self.stripe.release()

    def _renew_stamps(self) -> None:
        self.stamps = {key: stamp for key, stamp in [*self.stamps.items()]}  # noqa: C416 - a copy keeps the size

    def renew_stamps(self, copies: Mapping[bytes, int]) -> None:
        """Give the stamps the key objects of the entries, and their copies where these are still equal. O(n)."""
        known = self.stamps
        stamps = ((key, known.get(key)) for key in self.entries)
        self.stamps = {
            key: copies[key] if copies.get(key) == stamp else stamp for key, stamp in stamps if stamp is not None
        }
        self._candidates = []

    def evict(self, stamp: int, own: Container[bytes], is_forced: bool) -> tuple[int, bool]:
        """Move the hand until it has removed a key. Return the number of looks, and True if a key was removed.

        Takes the stripe. At most LOOKS_MAX looks. If nothing was removed, the shard's next turn comes after those of
        the others.

        :param stamp: the stamp of the place that gave the shard its turn
        :param own: keys that stay
        :param is_forced: True to remove used keys too
        """
        with self.stripe:
            place = self._place
            if self.retired or place is None:
                return 1, False
            if not self.entries:
                self._leave()
                return 1, False
            for looks in range(1, LOOKS_MAX + 1):
                due = self._due()
                if due > stamp:  # a key of another shard may have waited longer
                    self._place = self._turns.put(self, due, place)
                    return looks, False
                key = self._next_candidates().pop()
                entry = self.entries.get(key)
                if entry is None:
                    continue  # only after an interrupt
                if key in own:
                    self._has_spared = True
                elif due or is_forced:
                    self._commit(EVICT, key, None, entry)
                    if not self.entries:
                        self._leave()
                    return looks, True
                else:
                    self.stamps[key] = self._clock.stamp()
                self._hand += 1
            self._place = self._turns.put(self, self._clock.advance(), place)
            return LOOKS_MAX, False

    def rewind(self) -> None:
        """Let the hand go back to the oldest key, with `oldest`. Takes the stripe.

        A write that makes room spares its own keys, and the hand passes them. They must not stay because of that.
        """
        with self.stripe:
            if self._uses or self.retired or self._place is None or not self._has_spared:
                return
            self._has_spared = False
            self._hand = 0
            self._candidates = []
            if self.entries:
                self._place = self._turns.put(self, self._due(), self._place)

    def _next_candidates(self) -> list[bytes]:
        """Return keys after the hand, the next one last. O(1) on average, and O(n) at most. The shard must have a key."""
        if not self._candidates:
            entries = self.entries
            keys = len(entries)
            if self._hand >= keys:
                self._hand = 0
            after = keys - self._hand
            if after < self._hand:
                self._candidates = list(islice(reversed(entries), after))[-CANDIDATES:]
            else:
                self._candidates = list(islice(entries, self._hand, self._hand + CANDIDATES))[::-1]
        return self._candidates

    def _due(self) -> int:
        """Return the stamp of the key whose turn it is, or 0 if it is not known. The shard must have a key."""
        stamps = self.stamps
        if self._uses:
            return stamps.get(self._next_candidates()[-1], 0)
        if self._hand:  # it has passed the keys of the write
            for key in reversed(self._next_candidates()):
                if key in stamps:
                    return stamps[key]
        return next(iter(stamps.values()), 1)

    def _leave(self) -> None:
        if self._place is not None:
            self._turns.remove(self._place)
            self._place = None

    def _shrink(self) -> None:
        super()._shrink()
        self._renew_stamps()

    def split(self, bits: int) -> list[Shard]:
        """Retire this shard, and return those that replace it, as `Shard.split` does."""
        shards = super().split(bits)
        keys = len(self.entries)
        for shard in shards:
            assert isinstance(shard, EvictingShard)
            shard._take_over(self)
            shard._hand = self._hand * len(shard.entries) // keys  # those before the hand are spread evenly
        return shards

    def join(self, shards: Iterable[Shard]) -> None:
        """Take over the entries of shards, as `Shard.join` does. The keys of the first shard count as the oldest."""
        shards = list(shards)
        super().join(shards)
        for shard in shards:
            assert isinstance(shard, EvictingShard)
            self._take_over(shard)

    def _take_over(self, shard: EvictingShard) -> None:
        """Take over the stamps of this shard's keys from a shard that is retired."""
        entries = self.entries
        self.stamps.update((key, stamp) for key, stamp in [*shard.stamps.items()] if key in entries)
        self._unstamped = len(entries)

    def enter_schedules(self) -> None:
        """Enter the schedule of sweeps, and the turns. Takes the stripe."""
        super().enter_schedules()
        with self.stripe:
            if self.entries and not self.retired and self._place is None:
                self._place = self._turns.put(self, self._due(), None)

    def retire(self) -> None:
        """Mark the shard as replaced."""
        super().retire()
        self._leave()

    def check(self) -> None:
        """Assert every invariant that this class adds. Readers must not run meanwhile. O(n)."""
        assert self.stamps.keys() <= self.entries.keys()
        assert all(stamp > 0 for stamp in self.stamps.values())
        assert self._hand >= 0
        assert not self.entries or self._place is not None
        if not self._uses:
            order = {key: number for number, key in enumerate(self.entries)}
            assert sorted(self.stamps, key=order.__getitem__) == list(self.stamps)
            assert self._hand == 0
        elif self._candidates:
            assert list(islice(self.entries, self._hand, self._hand + len(self._candidates)))[::-1] == self._candidates
