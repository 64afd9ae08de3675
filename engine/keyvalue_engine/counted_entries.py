"""The entries of a shard, and how the ledger counts them: one by one, or some of them ahead of time.

The ledger's lock keeps limits exact, but counting a new key there takes half as long again as storing it. So a shard
with many keys holds some room *ahead*: the ledger has counted its next keys and their memory already.

    the ledger counts    |<------------- counted_keys ------------->|
    keys                 |----- entries -----|- next keys -|
    memory               |----- entries -----|- free_bytes |

A new key in the shard uses this room up, and a removed key adds to it, both without the ledger. Hence:

- No new key exceeds a limit, because the ledger counts at least what there is.
- A write is refused only if the store is full. If the ledger refuses it, the room that all shards hold ahead is taken
  back, and the write is tried again (`Bucket._write`), until no shard held room when it was refused.
- The counts that a store shows leave this room out (`Ledger.counts`).
- Bookkeeping stays simple: there is no room ahead in a shard with few keys, with deadlines or with an order; nor in a
  store that evicts keys, has had a quota, or is a copy.

The memory of deadlines, of changes of an order and of shards is counted even if it exceeds the limit, as without room
ahead. Other shards may then use up the room that they hold, which was counted before.
"""

from __future__ import annotations

from threading import RLock

from keyvalue_engine.entry import Entry
from keyvalue_engine.ledger import Account
from keyvalue_engine.order import LazyOrder
from keyvalue_engine.quota import Quota

__all__ = ["FREE_BYTES_MAX", "SHARD_KEYS_MIN", "CountedEntries"]

#: A shard with fewer keys holds no room ahead. So a bucket without keys holds none, and few shards do in a store with
#: many small buckets, because `Ledger.counts` visits each of them.
SHARD_KEYS_MIN = 64
#: A shard takes room for at most this many keys and bytes from the ledger.
AHEAD_KEYS = 128
AHEAD_BYTES = 64 * 1024
#: If removed keys leave more room than this, a shard gives all of its room back.
FREE_KEYS_MAX = 2 * AHEAD_KEYS
FREE_BYTES_MAX = 2 * AHEAD_BYTES


class CountedEntries:
    """The entries of a shard and their counts. `stripe` protects all attributes.

    :ivar counted_keys: the number of keys that the ledger counts for this shard
    :ivar free_bytes: the memory that the ledger counts for this shard, besides that of the entries
    :ivar is_ahead: True if the ledger knows that the shard may hold room ahead
    :ivar is_plain: True if `Bucket.set` and `Shard.increment` may change the entries themselves: the shard is not retired,
        and no key has a deadline, or a stamp for evictions
    """

    # In few cache lines at the beginning of a shard, because each write needs most of them.
    __slots__ = (
        *("_account", "counted_keys", "entries", "free_bytes", "is_ahead", "is_plain", "order", "retired"),
        "stripe",
    )

    def __init__(self, account: Account, stripe: RLock) -> None:
        self.stripe = stripe
        self.entries: dict[bytes, Entry] = {}
        self.order: LazyOrder | None = None
        self.retired = False
        self._account = account
        self.counted_keys = 0
        self.free_bytes = 0
        self.is_ahead = False
        self.is_plain = True

    @property
    def bucket_name(self) -> bytes:
        """The name of the shard's bucket."""
        return self._account.name

    def charge(self, keys: int, memory_bytes: int, quota: Quota | None = None) -> None:
        """Count a change of the entries, before it is made. A removal passes negative numbers, and is never refused.

        Afterwards, make the change without a call in between. Then an interrupt finds both done, or none (`locks`).

        :raises FullError: the counts would exceed a limit of the store or the quota; nothing is counted
        """
        keys_after = len(self.entries) + keys
        free_bytes = self.free_bytes - memory_bytes
        if (
            self.is_ahead
            and SHARD_KEYS_MIN <= keys_after <= self.counted_keys <= keys_after + FREE_KEYS_MAX
            and 0 <= free_bytes <= FREE_BYTES_MAX
        ):
            self.free_bytes = free_bytes
            return
        ahead_keys = 0
        if keys == 1 and keys_after >= SHARD_KEYS_MIN and self.is_plain and self.order is None:
            ahead_keys = self._ahead_keys(keys_after, memory_bytes)
        ahead_bytes = ahead_keys * memory_bytes
        self._account.charge(keys_after + ahead_keys - self.counted_keys, ahead_bytes - free_bytes, quota)
        self.counted_keys = keys_after + ahead_keys
        self.free_bytes = ahead_bytes

    def _ahead_keys(self, keys: int, size_bytes: int) -> int:
        """Return the number of next keys of this size to count ahead, if the shard has this number of keys."""
        ledger = self._account.ledger
        ahead_keys = min(AHEAD_KEYS, keys, ledger.shard_keys_max - keys, AHEAD_BYTES // size_bytes)
        if (
            ahead_keys <= 0
            or ledger.keys + ahead_keys >= ledger.keys_max
            or ledger.memory_bytes + ahead_keys * size_bytes + size_bytes > ledger.memory_bytes_max
            or not (self.is_ahead or ledger.counts_ahead)
        ):
            return 0
        if not self.is_ahead:
            ledger.ahead.add(self)
            self.is_ahead = True
            if not ledger.counts_ahead:  # after `add`, because `count_exactly` may not have found the shard
                self.is_ahead = False
                ledger.ahead.discard(self)
                return 0
        return ahead_keys

    def give_back(self) -> None:
        """Give the room ahead back to the ledger. Takes the stripe."""
        with self.stripe:
            self.settle()

    def settle(self) -> None:
        """Give the room ahead back. The caller must hold the stripe."""
        if self.is_ahead:
            keys = len(self.entries)
            self._account.charge(keys - self.counted_keys, -self.free_bytes)
            self.counted_keys = keys
            self.free_bytes = 0
            self.is_ahead = False
            self._account.ledger.ahead.discard(self)
