"""The tables of a store, by bucket name. The store and the handles of its buckets share one `Tables` object.

    Store ──┐
            ├──> Tables ── name ──> Table ── position ──> Shard ── key ──> Entry
    Bucket ─┘      ├── Ledger: counts of keys and memory, with an Account for each bucket, and Quotas
                   ├── Expiry: the shards that have keys with deadlines, sorted by the earliest deadline
                   └── KeptOrders: the shards that keep the order of their keys

Writing the first key of a bucket creates the bucket's table. Removing the last key frees the table. With
`strict_buckets`, the names of the last `buckets_max` emptied buckets are remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from itertools import chain
from random import sample
from threading import Lock, RLock
from typing import TypeVar

from sortedcontainers import SortedList

from keyvalue_engine.changes import Observer, ObserverOf
from keyvalue_engine.context import Context, HashFunction
from keyvalue_engine.entry import BUCKET_BYTES, EMPTIED_BYTES, bytes_size
from keyvalue_engine.errors import BUCKET_NAME_BYTES, BUCKETS, MEMORY_BYTES, FullError, LimitError
from keyvalue_engine.evicting_shard import EvictingShard
from keyvalue_engine.eviction import EVICTIONS_MAX, Evictor
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.invariants import memory_bytes as shard_bytes
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import Account, EvictingAccount, Ledger
from keyvalue_engine.options import NONE, StoreOptions
from keyvalue_engine.quota import Quota, Reach, Usage, end_of
from keyvalue_engine.room import Growth, lack_of_room
from keyvalue_engine.shard import Shard
from keyvalue_engine.table import Table
from keyvalue_engine.turns import Turns

__all__ = ["ROOM_WORK_MAX", "Tables"]

T = TypeVar("T")

#: The number of expired keys and orders that a write removes, at most, to make room in a full store.
ROOM_WORK_MAX = 1_000
#: Forgetting this many names of emptied buckets counts as removing one key.
NAMES_OF_WORK = 16
#: Adding up the memory of more names would take too long.
NAMES_ADDED_MAX = 1_000
#: The seconds after which a lock counts as held for ever.
LOCK_S = 1.0
#: The number of buckets to count when there is no limit.
ALL = 2**32


class Tables:
    """The tables of a store, by bucket name. Any thread may call any method.

    :param secret: the first argument for `hash_function`
    :param hash_function: returns the 64-bit position for (secret, key)
    :param clock: returns a time in nanoseconds that never goes back
    :param is_limited: False if no name is too long, and no number of buckets or keys too large
    :ivar own_secrets: the secrets of buckets that have their own, by name
    :ivar by_name: the tables; only this class adds or removes tables; a look-up is atomic and needs no lock
    :ivar emptied: the names of emptied buckets, oldest first; always empty without `strict_buckets`
    :ivar evictor: evicts keys from the full store, or None if the option `eviction` is `none`
    """

    __slots__ = (
        "_is_limited",
        "_lock",
        "_names",
        "_observer_of",
        "_position_of",
        "by_name",
        "emptied",
        "evictor",
        "expiry",
        "hash_function",
        "ledger",
        "options",
        "orders",
        "own_secrets",
        "secret",
    )

    def __init__(
        self,
        options: StoreOptions,
        secret: bytes,
        hash_function: HashFunction,
        clock: Callable[[], int],
        is_limited: bool = True,
    ) -> None:
        self.options = options
        self._is_limited = is_limited
        self.secret = secret
        self.own_secrets: dict[bytes, bytes] = {}
        self._position_of: Callable[[bytes], int] = partial(hash_function, secret)
        self.hash_function = hash_function
        self.ledger = Ledger(options, is_limited)
        self.expiry = Expiry(clock)
        self.orders = KeptOrders()
        self.by_name: dict[bytes, Table] = {}
        self.evictor = None if options.eviction == NONE else Evictor(self)
        self.emptied: OrderedDict[bytes, None] = OrderedDict()  # drops its oldest name in O(1), unlike a dict
        self._names = SortedList()  # the names in by_name, in the order in which quotas count them
        self._observer_of: ObserverOf | None = None
        #: Protects changes of by_name, emptied, _names, _observer_of, the observers of accounts, and the usages.
        self._lock = Lock()

    def use_secret(self, secret: bytes) -> None:
        """Use another secret. No bucket may exist, and no other thread may write."""
        assert not self.by_name
        self.secret = secret
        self._position_of = partial(self.hash_function, secret)

    def write_first(self, name: bytes, write: Callable[[Table], T]) -> tuple[Table, T | None]:
        """Create a bucket's table, call `write` with it, and publish it. Return the table and the result of `write`.

        If the table already exists, return the table and None.

        :raises StoreError: the name is too long, there are too many buckets, or `write` raised the error; no table is
            created
        """
        with self._lock:
            known = self.by_name.get(name)
            if known is not None:
                return known, None
            table = self._new_table(name)
            try:
                written = write(table)
            except BaseException:
                self._drop_table(name, table)
                raise
            self.by_name[name] = table
            self._names.add(name)
            self.emptied.pop(name, None)  # its memory is subtracted already
            return table, written

    def was_written(self, name: bytes) -> bool:
        """Return True if the bucket with this name exists, or is remembered as emptied."""
        with self._lock:  # without it, the bucket might be written between the two look-ups
            return name in self.by_name or name in self.emptied

    def remember_emptied(self, name: bytes) -> None:
        """Remember that a bucket without keys was written earlier. The oldest such name may be forgotten.

        :raises LimitError: the name is too long, or there is no memory for it
        """
        if len(name) > self.options.bucket_name_bytes_max:
            raise LimitError(BUCKET_NAME_BYTES, len(name), self.options.bucket_name_bytes_max)
        while True:
            try:
                with self._lock:
                    if name not in self.by_name and name not in self.emptied:
                        self.ledger.hold(_name_bytes(name))
                        self.emptied[name] = None
                        self._forget_oldest()
                return
            except FullError as error:
                if error.is_exact:
                    raise
            self.ledger.recall()

    def _forget_oldest(self) -> None:
        if len(self.emptied) > self.options.buckets_max:
            self._forget(1, 1)

    def _forget(self, needed_bytes: int, names_max: int) -> int:
        """Forget the oldest names of emptied buckets until they have freed this memory. Return their number.

        If there are few names, forget none of them in vain.
        """
        names = freed_bytes = 0
        if len(self.emptied) <= NAMES_ADDED_MAX and needed_bytes > sum(map(_name_bytes, self.emptied)):
            return 0
        while self.emptied and freed_bytes < needed_bytes and names < names_max:
            name, _ = self.emptied.popitem(last=False)
            freed_bytes += _name_bytes(name)
            names += 1
        self.ledger.hold(-freed_bytes)
        return names

    def new_bucket_bytes(self, name: bytes) -> int:
        """Return the memory that a bucket's table adds. The table takes the place of a remembered name."""
        return BUCKET_BYTES - EMPTIED_BYTES if name in self.emptied else BUCKET_BYTES + bytes_size(len(name))

    def _new_table(self, name: bytes) -> Table:
        if self._is_limited:
            self.check_name(name, 0)
        observer = None if self._observer_of is None else self._observer_of(name)
        account: Account
        shard_class: type[Shard]
        if self.evictor is None:
            self.ledger.hold(self.new_bucket_bytes(name))
            account, shard_class = Account(name, self.ledger, observer), Shard
        else:
            turns = Turns(self.evictor.turns.clock, self.evictor.turns)
            account, shard_class = (
                EvictingAccount(name, self.ledger, observer, self.options.eviction, turns),
                EvictingShard,
            )
            account.adjust(self.new_bucket_bytes(name))  # the first write is refused if this is too much
        secret = self.secret_of(name)
        position_of = self._position_of if secret is self.secret else partial(self.hash_function, secret)
        context = Context(position_of, self.hash_function, secret, account, self.expiry, self.orders)
        return Table(self.options, context, shard_class)

    def secret_of(self, name: bytes) -> bytes:
        """Return the secret that determines the order of a bucket's keys."""
        return self.own_secrets.get(name, self.secret)

    def set_secret(self, name: bytes, secret: bytes | None) -> None:
        """Give a bucket without keys its own secret, or take it away.

        :raises ValueError: the bucket holds keys
        """
        with self._lock:
            if name in self.by_name:
                raise ValueError("the bucket holds keys, whose order depends on the secret")
            if secret is None:
                self.own_secrets.pop(name, None)
            else:
                self.own_secrets[name] = secret

    def check_name(self, name: bytes, pending_buckets: int) -> None:
        """Check that a bucket of this name may be created.

        :param pending_buckets: number of other buckets that will be created before
        :raises LimitError: the name is too long, or there are too many buckets
        """
        options = self.options
        if len(name) > options.bucket_name_bytes_max:
            raise LimitError(BUCKET_NAME_BYTES, len(name), options.bucket_name_bytes_max)
        buckets = len(self.by_name) + pending_buckets
        if buckets >= options.buckets_max:
            raise FullError(BUCKETS, buckets + 1, options.buckets_max)

    def _drop_table(self, name: bytes, table: Table) -> bool:
        """Free a table, and subtract its memory from the ledger. Return False if the table holds a key."""
        if not table.free():
            return False
        self.ledger.hold(-self.new_bucket_bytes(name))
        return True

    def settled(self, name: bytes) -> Table | None:
        """Return the table of the bucket with this name, or None. Wait for any table that is being created or freed."""
        with self._lock:
            return self.by_name.get(name)

    def copy(self) -> tuple[dict[bytes, Table], list[bytes]]:
        """Return copies of `by_name` and of the names in `emptied`, as of a single moment. O(buckets)."""
        with self._lock:
            return self.by_name.copy(), [*self.emptied]

    def free_if_empty(self, name: bytes) -> None:
        """Free the table of the bucket with this name if the table is empty. With `strict_buckets`, keep the name."""
        with self._lock:
            table = self.by_name.get(name)
            if table is None or not table.looks_empty():
                return
            if self.options.strict_buckets:
                self.emptied[name] = None  # first, so that a reader finds the name here if the table is gone
            if self._drop_table(name, table):
                del self.by_name[name]
                self._names.remove(name)
                self._forget_oldest()
            else:
                self.emptied.pop(name, None)

    def tidy(self, name: bytes) -> None:
        """Free the table of a bucket if it is empty, or merge its shards if few keys are left."""
        table = self.by_name.get(name)
        if table is not None:
            if table.looks_empty():
                self.free_if_empty(name)
            if table.looks_sparse():
                table.merge()

    def sweep(self, keys_max: int) -> int:
        """Remove expired keys, in the order of their deadlines. Examine at most `keys_max` deadlines.

        Return `keys_max` minus the number of deadlines examined.
        """
        left = keys_max
        while left > 0 and (shard := self.expiry.next_due(self.expiry.clock())) is not None:
            left -= max(1, shard.sweep(left))  # a shard that another thread has just swept counts too
            if not shard.entries:
                self.tidy(shard.bucket_name)
        return left

    def names_of(self, reach: Reach, names_max: int) -> list[bytes]:
        """Return the names of the reach's buckets, or a random choice of them if there are more than `names_max`.

        O(names_max * log n), or O(names of the reach).
        """
        if reach.names is not None:
            known = [name for name in reach.names if name in self.by_name]
            return known if len(known) <= names_max else sample(known, names_max)
        with self._lock:
            names, end = self._names, end_of(reach.prefix)
            numbers = range(names.bisect_left(reach.prefix), len(names) if end is None else names.bisect_left(end))
            return [names[number] for number in (numbers if len(numbers) <= names_max else sample(numbers, names_max))]

    def make_room(
        self, name: bytes, error: FullError, quota: Quota | None, own: Collection[bytes], work_before: int
    ) -> int:
        """Make room for a write that raised `error`. Return the amount of work, or 0 if no room can be made.

        Remove what `find_room` removes. If that is nothing, evict keys.

        :param own: the keys that the write changes, which are not evicted
        :param work_before: the work that was done for the same write before
        :raises FullError: the write would need too many evictions
        """
        evictor = self.evictor
        left = (ROOM_WORK_MAX if evictor is None else 2 * EVICTIONS_MAX) + error.needed_keys - work_before
        if left <= 0:
            return 0
        done = self.find_room(name, error, left)
        if done or evictor is None:
            return done
        try:
            return evictor.make_room(name, error, quota, own)
        except FullError:
            self.free_if_empty(name)
            raise

    def find_room(self, name: bytes, error: FullError, work_max: int) -> int:
        """Remove what no reader misses. Return the amount of work, or 0 if there was nothing. The work is bounded.

        Remove expired keys first, then drop the orders that were not used for the longest time, then forget names of
        emptied buckets.

        :param name: the bucket to write to; if a quota is full, its own expired keys are removed first
        """
        work = 0
        if error.quota is not None and (table := self.by_name.get(name)) is not None:
            work = table.sweep(work_max)
        if not work:
            work = work_max - self.sweep(work_max)
        if error.option == MEMORY_BYTES.option:
            needed_bytes = error.found - error.allowed
            while needed_bytes > 0 and work < work_max and (shard := self.orders.oldest()) is not None:
                needed_bytes -= shard.drop_order()
                work += 1
            if needed_bytes > 0 and self.emptied and work < work_max:
                with self._lock:
                    names = self._forget(needed_bytes, (work_max - work) * NAMES_OF_WORK)
                work += -(-names // NAMES_OF_WORK)
        return work

    def check_room(self, name: bytes, growth: Growth, pending: Growth, quota: Quota | None, in_quota: Growth) -> None:
        """Check that a write would exceed no limit. Remove a limited number of expired keys and orders if it would.

        :raises LimitError: the bucket's name is too long, or the store or the quota is full
        """
        if name not in self.by_name:
            self.check_name(name, pending.buckets)
        left = ROOM_WORK_MAX
        while (error := lack_of_room(self.ledger, self.options, growth, pending, quota, in_quota)) is not None:
            if self.ledger.ahead:
                self.ledger.recall()
                continue
            done = self.find_room(name, error, left + error.needed_keys) if left > 0 else 0
            if not done:
                raise error
            left -= done

    def add_quota(self, quota: Quota, buckets_max: int | None = None) -> None:
        """Start counting for a quota, and count at most `buckets_max` existing buckets now; None means all.

        O(counted buckets). If another quota has the same reach, O(1) with a limit, so that many quotas stay cheap.

        :raises ValueError: the quota was already added
        """
        self.ledger.count_exactly()
        with self._lock, self.ledger.lock:
            if quota.usage in self.ledger.usages:
                raise ValueError("the quota was already added")
            quota.usage = self.ledger.usages.hold(quota.reach)
            if quota.usage.quotas == 1 or buckets_max is None:
                self._count(quota.usage, ALL if buckets_max is None else buckets_max)

    def count_quota(self, quota: Quota, buckets_max: int) -> None:
        """Count at most `buckets_max` more buckets. O(buckets_max + log n)."""
        with self._lock, self.ledger.lock:
            self._count(quota.usage, buckets_max)

    def _count(self, usage: Usage, buckets_max: int) -> None:
        for name in usage.next_names(self._names, buckets_max):
            table = self.by_name.get(name)
            if table is not None:
                usage.add(table.account.keys, table.account.memory_bytes)

    def remove_quota(self, quota: Quota) -> None:
        """Stop counting for a quota. O(1), or O(names) if the quota's reach is a set of names."""
        with self._lock, self.ledger.lock:
            usage = quota.usage
            if usage in self.ledger.usages:
                self.ledger.usages.release(usage)
                quota.usage = usage.copy()

    def check_locks(self) -> None:
        """Raise RuntimeError if a lock stays held, because its thread does not exist in this forked process."""
        leaves: list[Lock | RLock] = [self.ledger.lock, self.expiry.lock, self.orders.lock]
        if self.evictor is not None:
            leaves.append(self.evictor.turns.lock)
        for lock in chain((self._lock, *leaves), *(table.locks() for table in self.by_name.values())):
            if not lock.acquire(timeout=LOCK_S):
                raise RuntimeError("another thread of the parent process used the store during the fork")
            lock.release()

    def observe(self, observer_of: ObserverOf | None) -> None:
        """Set each bucket's observer to the result of `observer_of`, now and for each new bucket. O(buckets)."""
        with self._lock:
            self._observer_of = observer_of
            for name, table in self.by_name.items():
                table.account.observer = None if observer_of is None else observer_of(name)

    def replace_observer(self, before: Observer | None, after: Observer | None) -> None:
        """Give the observer `after` to each bucket that has the observer `before`. O(buckets), 0.07 us for each."""
        with self._lock:
            for table in self.by_name.values():
                account = table.account
                if account.observer is before:
                    account.observer = after

    def observe_bucket(self, name: bytes) -> None:
        """Ask the function that `observe` registered for the observer of one bucket again. O(1)."""
        with self._lock:
            table = self.by_name.get(name)
            if table is not None and self._observer_of is not None:
                table.account.observer = self._observer_of(name)

    def check(self) -> None:
        """Assert every invariant, and recount all keys and memory. Only tests call this method."""
        keys = 0
        memory_bytes = 0
        for name, table in self.by_name.items():
            table.check()
            keys += sum(shard.counted_keys for shard in table.shards())
            assert len(table), "an emptied bucket is freed"
            memory_bytes += BUCKET_BYTES + bytes_size(len(name)) + sum(map(shard_bytes, table.shards()))
            for shard in table.shards():
                if isinstance(shard, EvictingShard):
                    shard.check()
        assert list(self._names) == sorted(self.by_name)
        assert not self.by_name.keys() & self.emptied.keys()
        assert len(self.emptied) <= (self.options.buckets_max if self.options.strict_buckets else 0)
        memory_bytes += sum(map(_name_bytes, self.emptied))
        assert self.ledger.keys == keys
        assert self.ledger.memory_bytes == memory_bytes
        assert not self.ledger.ahead or self.ledger.counts_ahead
        assert self.ledger.counts()[0] == sum(map(len, self.by_name.values()))
        for usage in self.ledger.usages:
            counted = [
                table.account for name, table in self.by_name.items() if usage.reach.covers(name) and usage.counts(name)
            ]
            assert usage.keys == sum(account.keys for account in counted)
            assert usage.memory_bytes == sum(account.memory_bytes for account in counted)
        for name in self.by_name:
            assert {*self.ledger.usages.of(name)} == {u for u in self.ledger.usages if u.reach.covers(name)}
        if self._is_limited:
            assert keys <= self.options.keys_max
            assert len(self.by_name) <= self.options.buckets_max


def _name_bytes(name: bytes) -> int:
    """Return the memory of the name of an emptied bucket."""
    return EMPTIED_BYTES + bytes_size(len(name))
