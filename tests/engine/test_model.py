"""The store against dicts: any sequence of calls while the clock moves, with walks in between, saves and loads.

Pages are predicted key by key (`predicted_page`), except for the order of keys that share a position. A second model
is built only from what an observer is told. It must hold what the store holds, deadlines included.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from siphashc import siphash

from keyvalue_engine import (
    DEADLINE,
    DELETE,
    EVICT,
    EXPIRE,
    PERSIST,
    SET,
    Bucket,
    BucketOptions,
    Change,
    CounterError,
    Entry,
    LimitError,
    NoSuchBucketError,
    Quota,
    Reach,
    Store,
    StoreOptions,
)
from keyvalue_engine.context import HashFunction
from keyvalue_engine.counter import COUNTER_MAX
from keyvalue_engine.entry import DEADLINE_BYTES, bytes_size, entry_size
from keyvalue_engine.filling import KEY_OVERHEAD_BYTES
from tests.engine.clock import NS_PER_MS, Clock
from tests.engine.entries import deadlines_of, entries_of

SECRET = bytes(16)


def scattered(secret: bytes, key: bytes) -> int:
    """Return positions all over the ring, some of them shared by up to three keys."""
    return siphash(secret, key[-1:])


def adjacent(secret: bytes, key: bytes) -> int:
    """Return positions that no split separates, some of them shared by more keys than fit on any page."""
    return len(key)


SHARD_KEYS_LEAST: dict[HashFunction, int] = {siphash: 1, scattered: 3, adjacent: 100}

BUCKETS = [b"", b"a", b"another"]
KEYS = [b"", b"a", b"b", b"key", *(b"key %d" % number for number in range(30)), b"long" * 20, b"long" * 20 + b"er"]
names = st.sampled_from(BUCKETS)
keys = st.sampled_from(KEYS)
numbers = st.sampled_from([0, 1, 9, 10**9, COUNTER_MAX - 1, COUNTER_MAX])
#: Up to one more than the largest counter.
deltas = numbers | st.just(COUNTER_MAX + 1)
values = st.binary(max_size=40) | numbers.map(lambda number: b"%d" % number) | st.just(b"%d" % (COUNTER_MAX + 1))
#: Short ones may have expired after a load, since a file's deadlines use the system's time.
ttls_ms = st.none() | st.sampled_from([1, 1_000, 3_600_000])
#: Seconds that a save and a load may take.
LOAD_MS = 60_000


@st.composite
def store_options(draw: st.DrawFn) -> StoreOptions:
    return StoreOptions(
        key_bytes_max=draw(st.sampled_from([80, 100])),
        bucket_name_bytes_max=draw(st.sampled_from([1, 7])),
        value_bytes_max=draw(st.sampled_from([30, 100])),
        buckets_max=draw(st.sampled_from([2, 100])),
        keys_max=draw(st.sampled_from([10, 1_000])),
        page_keys_max=draw(st.sampled_from([1, 2, 5, 100])),
        page_bytes_max=draw(st.sampled_from([1, 20, 60, 1_000])),
        shards_min=draw(st.sampled_from([1, 2, 8, 64])),
        shard_keys_max=draw(st.sampled_from([1, 2, 5, 100])),
        strict_buckets=draw(st.booleans()),
    )


@dataclass(frozen=True)
class Prediction:
    """The expected page: its keys by position, and the bounds of its cursor, or None if no key remains."""

    runs: list[tuple[int, set[bytes]]]
    cursor_bounds: tuple[int, int] | None


def predicted_page(
    present: Iterable[bytes], position_of: Callable[[bytes], int], cursor: int, keys_max: int, bytes_max: int
) -> Prediction:
    """Return as many whole runs as fit, and at least one if any remains."""
    after = sorted((key for key in present if position_of(key) >= cursor), key=position_of)
    left = [(position, set(run)) for position, run in groupby(after, position_of)]
    taken: list[tuple[int, set[bytes]]] = []
    count = size_bytes = 0
    while left:
        run = left[0][1]
        run_bytes = sum(len(key) + KEY_OVERHEAD_BYTES for key in run)
        if taken and (count + len(run) > keys_max or size_bytes + run_bytes > bytes_max):
            break
        count += len(run)
        size_bytes += run_bytes
        taken.append(left.pop(0))
    return Prediction(taken, (taken[-1][0] + 1, left[0][0]) if left else None)


@dataclass
class Walk:
    """A walk in progress.

    :ivar stayed: the keys that have existed since it began
    """

    name: bytes
    stayed: set[bytes]
    cursor: int | None = None
    seen: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Stored:
    value: bytes
    deadline_ns: int | None

    @property
    def entry(self) -> Entry:
        return self.value if self.deadline_ns is None else (self.value, self.deadline_ns)


class StoreMachine(RuleBasedStateMachine):
    key_bytes = 0  # besides a key's entry

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.clock = Clock(now_ns=10**18)
        self.model: dict[bytes, dict[bytes, Stored]] = {}
        self.written: set[bytes] = set()
        self.walks: list[Walk] = []
        self.events: list[tuple[Change, bytes, bytes, Entry | None]] = []
        self.told: dict[bytes, dict[bytes, Entry]] = {}
        self.told_of: Counter[Change] = Counter()
        self.set_keys = self.deleted_keys = self.persisted_keys = self.timed_keys = 0
        self.counting: list[Quota] = []

    def teardown(self) -> None:
        self.directory.cleanup()

    @initialize(
        options=store_options(),
        hash_function=st.sampled_from(list(SHARD_KEYS_LEAST)),
        quota_keys_max=st.sampled_from([None, 3, 20]),
        quota_bytes_max=st.sampled_from([None, 1_000, 5_000]),
        has_quota=st.booleans(),
    )
    def make(
        self,
        options: StoreOptions,
        hash_function: HashFunction,
        quota_keys_max: int | None,
        quota_bytes_max: int | None,
        has_quota: bool = True,
    ) -> None:
        clock = self.clock
        self.has_quota = has_quota  # without one, keys are counted ahead

        class StoreUnderTest(Store):
            def __init__(self, options: StoreOptions | None = None, *, secret: bytes | None = None) -> None:
                super().__init__(options, secret=secret, hash_function=hash_function, clock=clock)

        self.kind = StoreUnderTest
        self.hash_function = hash_function
        self.quota = Quota(Reach(prefix=b"a"), quota_keys_max, quota_bytes_max)
        self.options = self.bounded(options)
        self.take_up(StoreUnderTest(self.options, secret=SECRET))

    def take_up(self, store: Store) -> None:
        self.store = store
        self.renewals = list(store.renewals())
        if self.has_quota:
            store.add_quota(self.quota)
        store.observe(lambda name: lambda *event: self.events.append(event))

    def bounded(self, options: StoreOptions) -> StoreOptions:
        """Raise `shard_keys_max` to a size that splits can reach.

        Otherwise they go on to the largest ring, which is slow to check.
        """
        return replace(options, shard_keys_max=max(options.shard_keys_max, SHARD_KEYS_LEAST[self.hash_function]))

    def position_of(self, key: bytes) -> int:
        return self.hash_function(SECRET, key)

    def handle(self, name: bytes, ttl_ms: int | None = None, *, limited: bool = False) -> Bucket:
        """Return a handle. It is held to the quota if the quota covers its bucket."""
        quota = self.quota if limited and self.has_quota and self.quota.reach.covers(name) else None
        return self.store.bucket(name, BucketOptions(ttl_ms=ttl_ms, quota=quota))

    def read(self, bucket: Bucket, key: bytes) -> bytes | None:
        return bucket.get(key)

    def live(self, name: bytes) -> dict[bytes, Stored]:
        """Return the keys that a reader finds."""
        now_ns = self.clock.now_ns
        return {
            key: stored
            for key, stored in self.model.get(name, {}).items()
            if stored.deadline_ns is None or stored.deadline_ns > now_ns
        }

    def is_refused(self, name: bytes) -> bool:
        return self.options.strict_buckets and name not in self.written

    def predicted_refusal(
        self, name: bytes, changes: Mapping[bytes, Stored], limited: bool
    ) -> list[tuple[str, int, int]]:
        """Return the limit that these writes would exceed, if any: option, found, allowed.

        Expired keys take no memory.
        """
        options, live = self.options, self.live(name)
        bucket_names = {known for known in BUCKETS if self.live(known)}
        new_keys = len(changes.keys() - live.keys())
        growth = 0
        for key, stored in changes.items():
            old = live.get(key)
            growth += (stored.deadline_ns is not None) * DEADLINE_BYTES
            if old is None:
                growth += entry_size(key, stored.value) + self.key_bytes
            else:
                growth += bytes_size(len(stored.value)) - bytes_size(len(old.value))
                growth -= (old.deadline_ns is not None) * DEADLINE_BYTES
        limits: list[tuple[str, int, int, int]] = []
        for key, stored in changes.items():
            limits.append(("key_bytes_max", len(key), options.key_bytes_max, True))
            limits.append(("value_bytes_max", len(stored.value), options.value_bytes_max, True))
        limits.append(("bucket_name_bytes_max", len(name), options.bucket_name_bytes_max, True))
        limits.append(("buckets_max", len(bucket_names | {name}), options.buckets_max, name not in bucket_names))
        limits.append(
            ("keys_max", sum(len(self.live(known)) for known in BUCKETS) + new_keys, options.keys_max, new_keys)
        )
        if limited and self.has_quota and self.quota.reach.covers(name):
            covered = [
                entry for known in BUCKETS if self.quota.reach.covers(known) for entry in self.live(known).items()
            ]
            memory_bytes = sum(
                entry_size(key, stored.value) + (stored.deadline_ns is not None) * DEADLINE_BYTES + self.key_bytes
                for key, stored in covered
            )
            limits.append(("quota_keys", len(covered) + new_keys, self.quota.keys_max, new_keys))
            limits.append(("quota_bytes", memory_bytes + growth, self.quota.memory_bytes_max, growth))
        return [(option, found, allowed) for option, found, allowed, grows in limits if found > allowed and grows > 0][
            :1
        ]

    def write(self, name: bytes, changes: Mapping[bytes, Stored], limited: bool, call: Callable[[], object]) -> None:
        """Make a call that writes all of these pairs, or nothing."""
        expected = self.predicted_refusal(name, changes, limited) if changes else []
        try:
            call()
        except LimitError as error:
            assert [(error.option, error.found, error.allowed)] == expected
        else:
            assert not expected
            if changes:
                self.model.setdefault(name, {}).update(changes)
                self.set_keys += len(changes)
                self.written.add(name)

    def deadline_ns(self, ttl_ms: int | None) -> int | None:
        return None if ttl_ms is None else self.clock.now_ns + ttl_ms * NS_PER_MS

    @rule(name=names, key=keys, value=values, ttl_ms=ttls_ms, default_ttl_ms=ttls_ms, limited=st.booleans())
    def set_value(
        self,
        name: bytes,
        key: bytes,
        value: bytes,
        ttl_ms: int | None = None,
        default_ttl_ms: int | None = None,
        limited: bool = False,
    ) -> None:
        stored = Stored(value, self.deadline_ns(default_ttl_ms if ttl_ms is None else ttl_ms))
        bucket = self.handle(name, default_ttl_ms, limited=limited)
        self.write(name, {key: stored}, limited, lambda: bucket.set(key, value, ttl_ms))

    @rule(name=names, value=values, ttl_ms=ttls_ms)
    def set_every_key(self, name: bytes, value: bytes, ttl_ms: int | None) -> None:
        for key in KEYS:
            self.set_value(name, key, value, ttl_ms)

    @rule()
    def renew(self) -> None:
        """End the renewals that began at the last call of this rule, and begin others. Some shards have changed since."""
        for renewal in self.renewals:
            while renewal.copy():
                pass
            renewal.replace()
        self.renewals = list(self.store.renewals())

    @rule(name=names, entries=st.dictionaries(keys, values, max_size=9), ttl_ms=ttls_ms, limited=st.booleans())
    def set_many(self, name: bytes, entries: dict[bytes, bytes], ttl_ms: int | None, limited: bool) -> None:
        changes = {key: Stored(value, self.deadline_ns(ttl_ms)) for key, value in entries.items()}
        self.write(name, changes, limited, lambda: self.handle(name, ttl_ms, limited=limited).set_many(entries))

    @rule(name=names, key=keys, delta=deltas, ttl_ms=ttls_ms, limited=st.booleans())
    def increment(self, name: bytes, key: bytes, delta: int, ttl_ms: int | None, limited: bool) -> None:
        bucket = self.handle(name, ttl_ms, limited=limited)
        old = self.live(name).get(key, Stored(b"0", None))
        if not (old.value.isdigit() and len(old.value) <= 20 and int(old.value) + delta <= COUNTER_MAX):
            with pytest.raises((CounterError, LimitError)) as caught:
                bucket.increment(key, delta)
            if isinstance(
                error := caught.value, LimitError
            ):  # checked first, as far as it is known before the value is
                changes = {key: Stored(b"", None)}
                assert [(error.option, error.found, error.allowed)] == self.predicted_refusal(name, changes, limited)
            return
        total = int(old.value) + delta
        stored = Stored(b"%d" % total, old.deadline_ns if ttl_ms is None else self.deadline_ns(ttl_ms))
        returned: list[int] = []
        self.write(name, {key: stored}, limited, lambda: returned.append(bucket.increment(key, delta)))
        assert returned in ([], [total])

    @rule(
        name=names,
        key=keys,
        choice=st.sampled_from(["nothing", "remove", "keep the value", "set"]),
        only=st.sampled_from([None, True, False]),
        value=values,
        left_ms=st.sampled_from([None, -1, 0, 1, 1_000, 3_600_000]),
        ttl_ms=ttls_ms,
        limited=st.booleans(),
    )
    def update(
        self,
        name: bytes,
        key: bytes,
        choice: str,
        only: bool | None,
        value: bytes,
        left_ms: int | None,
        ttl_ms: int | None,
        limited: bool,
    ) -> None:
        """Revise an entry in any way, perhaps only if the key exists, or is missing."""
        default_ns = self.deadline_ns(ttl_ms)

        def revise(entry: Entry | None, now_ns: int, deadline_ns: int | None) -> Entry | None:
            assert now_ns == self.clock.now_ns
            assert deadline_ns == default_ns
            if choice == "nothing" or only not in (None, entry is not None):
                return entry
            if choice == "remove":
                return None
            new = value
            if choice == "keep the value":
                if entry is None:
                    return None
                new = entry[0] if isinstance(entry, tuple) else entry
            new_ns = deadline_ns if left_ms is None else now_ns + left_ms * NS_PER_MS
            return new if new_ns is None else (new, new_ns)

        before = self.live(name).get(key)
        entry = None if before is None else before.entry
        after = revise(entry, self.clock.now_ns, default_ns)
        if isinstance(after, tuple) and after[1] <= self.clock.now_ns:
            after = None
        bucket = self.handle(name, ttl_ms, limited=limited)
        if len(key) > self.options.key_bytes_max:
            with pytest.raises(LimitError):
                bucket.update(key, revise)
            return
        if after is None or after is entry:
            try:
                assert bucket.update(key, revise) == (entry, after)
            except NoSuchBucketError:
                assert self.is_refused(name)
            else:
                if after is None and entry is not None:
                    self.model[name].pop(key)
                    self.deleted_keys += 1
            return
        stored = Stored(*after) if isinstance(after, tuple) else Stored(after, None)
        if before is None or stored.value is not before.value:
            self.write(name, {key: stored}, limited, lambda: bucket.update(key, revise))
            return
        sets = self.set_keys
        self.write(name, {key: stored}, limited, lambda: bucket.update(key, revise))
        if self.set_keys > sets:  # told as a change of the deadline alone
            self.set_keys = sets
            self.persisted_keys += stored.deadline_ns is None
            self.timed_keys += stored.deadline_ns is not None

    @rule(name=names, entries=st.dictionaries(keys, values, max_size=4), ttl_ms=ttls_ms, limited=st.booleans())
    def set_missing(self, name: bytes, entries: dict[bytes, bytes], ttl_ms: int | None, limited: bool) -> None:
        changes = {key: Stored(value, self.deadline_ns(ttl_ms)) for key, value in entries.items()}
        bucket = self.handle(name, ttl_ms, limited=limited)
        if entries.keys() & self.live(name).keys():
            try:
                assert not bucket.set_missing(entries)
            except LimitError as error:  # a length is checked first
                assert error.option in ("key_bytes_max", "value_bytes_max")
            return
        self.write(name, changes, limited, lambda: bucket.set_missing(entries))

    @rule(name=names, key=keys)
    def delete(self, name: bytes, key: bytes) -> None:
        try:
            removed = self.store.bucket(name).delete(key)
        except NoSuchBucketError:
            assert self.is_refused(name)
            return
        assert not self.is_refused(name)
        assert removed is (key in self.live(name))
        self.model.get(name, {}).pop(key, None)
        self.deleted_keys += removed

    @rule(name=names, count=st.integers(1, len(KEYS)))
    def delete_keys(self, name: bytes, count: int) -> None:
        for key in KEYS[:count]:
            self.delete(name, key)

    @rule(name=names, keys=st.lists(keys, max_size=40))
    def delete_many(self, name: bytes, keys: list[bytes]) -> None:
        try:
            removed = self.store.bucket(name).delete_many(keys)
        except NoSuchBucketError:
            assert self.is_refused(name)
            return
        assert not self.is_refused(name)
        assert removed == len(self.live(name).keys() & set(keys))
        for key in keys:
            self.model.get(name, {}).pop(key, None)
        self.deleted_keys += removed

    @rule(name=names, key=keys)
    def get(self, name: bytes, key: bytes) -> None:
        bucket = self.store.bucket(name)
        stored = self.live(name).get(key)
        deadline_ns = None if stored is None else stored.deadline_ns
        assert bucket.ttl_ms(key) == (
            None if deadline_ns is None else -(-(deadline_ns - self.clock.now_ns) // NS_PER_MS)
        ), "the rest is rounded up"
        try:
            assert bucket.get(key) == (None if stored is None else stored.value)
            assert bucket.exists(key) is (stored is not None)
            assert not self.is_refused(name)
        except NoSuchBucketError:
            assert self.is_refused(name)

    @rule(name=names, keys=st.lists(keys, max_size=40))
    def get_many(self, name: bytes, keys: list[bytes]) -> None:
        live = self.live(name)
        try:
            found = self.store.bucket(name).get_many(keys)
            assert found == [live[key].value if key in live else None for key in keys]
            assert not self.is_refused(name)
        except NoSuchBucketError:
            assert self.is_refused(name)

    @rule(name=names, key=keys)
    def persist(self, name: bytes, key: bytes) -> None:
        stored = self.live(name).get(key)
        persisted = self.store.bucket(name).persist(key)
        assert persisted is (stored is not None and stored.deadline_ns is not None)
        self.persisted_keys += persisted
        if stored is not None:
            self.model[name][key] = replace(stored, deadline_ns=None)

    @rule(ms=st.sampled_from([0, 1, 999, 3_600_000]), ns=st.sampled_from([0, 1, NS_PER_MS - 1]))
    def move_clock(self, ms: int, ns: int) -> None:
        self.clock.now_ns += ms * NS_PER_MS + ns

    @rule(keys_max=st.sampled_from([1, 2, 1_000]))
    def sweep(self, keys_max: int) -> None:
        expired_keys = self.store.expired_keys
        is_more_due = self.store.sweep(keys_max)
        swept = self.store.expired_keys - expired_keys
        assert swept <= keys_max
        assert is_more_due or swept < keys_max
        if keys_max == 1_000:
            assert len(self.store) == sum(len(self.live(name)) for name in BUCKETS)

    @rule(shared=st.booleans())
    def count_quota_anew(self, shared: bool) -> None:
        self.has_quota = True
        other = Quota(self.quota.reach, None, None)
        if shared:
            self.store.add_quota(other)
        self.store.remove_quota(self.quota)
        self.store.add_quota(self.quota)
        assert self.quota.is_counted
        if shared:
            self.store.remove_quota(other)

    @precondition(lambda self: len(self.counting) < 3)
    @rule(
        reach=st.builds(Reach, st.none() | st.frozensets(names), st.sampled_from([b"", b"a", b"anoth", b"\xff"])),
        buckets_max=st.integers(0, 2),
    )
    def begin_to_count(self, reach: Reach, buckets_max: int) -> None:
        """Count another quota's buckets step by step. `Store.check` compares its counts with the counted buckets."""
        quota = Quota(reach, None, None)
        self.store.add_quota(quota, buckets_max)
        self.counting.append(quota)

    @precondition(lambda self: self.counting)
    @rule(which=st.integers(0, 2), buckets_max=st.integers(1, 2))
    def go_on_counting(self, which: int, buckets_max: int) -> None:
        quota = self.counting[which % len(self.counting)]
        self.store.count_quota(quota, buckets_max)
        if quota.is_counted:
            live = [entries_of(self.store, name) for name in BUCKETS if quota.reach.covers(name)]
            assert quota.keys == sum(map(len, live))
            self.store.remove_quota(quota)
            self.counting.remove(quota)

    @rule(name=names, cursor=st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 100))
    def begin_walk(self, name: bytes, cursor: int | None) -> None:
        stayed = {key for key in self.live(name) if self.position_of(key) >= (cursor or 0)}
        self.walks.append(Walk(name, stayed, cursor))

    @precondition(lambda self: self.walks)
    @rule(which=st.integers(0, 2**16), steps=st.integers(1, 5), keys_max=st.sampled_from([None, 1, 3, 50, 200]))
    def go_on(self, which: int, steps: int, keys_max: int | None) -> None:
        walk = self.walks[which % len(self.walks)]
        for _ in range(steps):
            if not self.step(walk, keys_max):
                self.walks.remove(walk)
                return

    def step(self, walk: Walk, keys_max: int | None) -> bool:
        """Read one more page. Return True if the walk goes on."""
        expected = predicted_page(
            self.live(walk.name),
            self.position_of,
            walk.cursor or 0,
            self.options.page_keys_max if keys_max is None else keys_max,
            self.options.page_bytes_max,
        )
        page = self.store.bucket(walk.name).page(walk.cursor, keys_max)
        paged = [(position, list(run)) for position, run in groupby(page.keys, self.position_of)]
        assert [(position, set(run)) for position, run in paged] == expected.runs
        assert len(page.keys) == len(set(page.keys))
        assert walk.seen.isdisjoint(page.keys), "a key comes once"
        walk.seen.update(page.keys)
        walk.cursor = page.cursor
        if page.cursor is None:
            assert expected.cursor_bounds is None
            assert walk.stayed <= walk.seen, "a key that exists during the whole walk comes"
            return False
        assert expected.cursor_bounds is not None, "a cursor comes only if a key remains"
        least, most = expected.cursor_bounds
        assert least <= page.cursor <= most
        return True

    @rule(options=store_options())
    def save_and_load(self, options: StoreOptions) -> None:
        path = Path(self.directory.name, "snapshot")
        self.store.save(path)
        self.store.check()
        limits = (
            "key_bytes_max",
            "value_bytes_max",
            "bucket_name_bytes_max",
            "buckets_max",
            "keys_max",
            "strict_buckets",
        )
        kept = {name: getattr(self.options, name) for name in limits}
        self.options = self.bounded(replace(options, **kept))
        self.store.remove_quota(self.quota)
        self.counting.clear()
        self.take_up(self.kind.load(path, self.options))
        self.events.clear()
        self.told_of.clear()
        self.set_keys = self.deleted_keys = self.persisted_keys = self.timed_keys = 0
        self.told = self.held()
        for name in BUCKETS:
            self.model[name] = dict(self.reloaded(name))

    def reloaded(self, name: bytes) -> Iterable[tuple[bytes, Stored]]:
        """Return the entries after a load.

        A key that was about to expire may have expired. A file's deadlines are in milliseconds.
        """
        deadlines_ns = deadlines_of(self.store, name)
        for key, stored in self.live(name).items():
            deadline_ns = deadlines_ns.get(key)
            left_ns = None if stored.deadline_ns is None else stored.deadline_ns - self.clock.now_ns
            if left_ns is not None and key not in self.told.get(name, {}):
                assert left_ns <= LOAD_MS * NS_PER_MS, "a key that has not expired is missing"
                continue
            assert (deadline_ns is None) is (left_ns is None)
            if left_ns is not None and deadline_ns is not None:
                assert -NS_PER_MS < left_ns - (deadline_ns - self.clock.now_ns) <= LOAD_MS * NS_PER_MS
            yield key, Stored(stored.value, deadline_ns)

    def held(self) -> dict[bytes, dict[bytes, Entry]]:
        """Return all entries that take memory."""
        return {name: entries_of(self.store, name) for name in self.store._tables.by_name}

    @invariant()
    def agrees(self) -> None:
        self.store.check()
        tables = self.store._tables.by_name.values()
        assert {shard for table in tables for shard in table.shards() if shard.deadlines} == {
            place.shard for place in self.store._tables.expiry._schedule
        }
        assert len(self.store) == sum(map(len, self.held().values()))
        assert self.store.bucket_count == len(self.store.bucket_names())
        live = {name: self.live(name) for name in BUCKETS}
        for name in self.store.bucket_names():
            handle = self.store.bucket(name)
            assert len(handle) == len(entries_of(self.store, name))
            assert all(self.read(handle, key) == stored.value for key, stored in live[name].items())
        for walk in self.walks:
            walk.stayed &= live[walk.name].keys()

    @invariant()
    def emptied_buckets_are_remembered_within_a_limit(self) -> None:
        emptied = self.store._tables.emptied
        known = self.store._tables.by_name.keys() | emptied.keys()
        assert known <= self.written
        if self.options.strict_buckets:
            assert known == self.written or len(emptied) == self.options.buckets_max
            self.written = known

    @invariant()
    def the_events_give_the_content_of_the_store(self) -> None:
        for change, name, key, entry in self.events:
            self.told_of[change] += 1
            if entry is None:
                assert change in (DELETE, EXPIRE, EVICT)
                del self.told[name][key]
            elif change == PERSIST:
                assert isinstance(before := self.told[name][key], tuple)
                assert entry == before[0]
                self.told[name][key] = entry
            elif change == DEADLINE:
                assert isinstance(entry, tuple)
                assert entry[0] == (before[0] if isinstance(before := self.told[name][key], tuple) else before)
                self.told[name][key] = entry
            else:
                assert change == SET
                self.told.setdefault(name, {})[key] = entry
        self.events.clear()
        held = self.held()
        assert {name: entries for name, entries in self.told.items() if entries} == {
            name: entries for name, entries in held.items() if entries
        }
        assert held.keys() == {name for name in held if held[name]}
        for name in BUCKETS:
            live = self.live(name)
            entries = held.get(name, {})
            assert {key: entries.get(key) for key in live} == {key: stored.entry for key, stored in live.items()}
            assert entries.keys() - live.keys() <= self.model.get(name, {}).keys()
        assert self.told_of[EXPIRE] == self.store.expired_keys
        assert self.told_of[EVICT] == sum(self.store.evicted_keys.values())
        assert self.told_of[SET] == self.set_keys, "the observer is told of each write once, and of no refused one"
        assert self.told_of[DELETE] == self.deleted_keys
        assert self.told_of[PERSIST] == self.persisted_keys
        assert self.told_of[DEADLINE] == self.timed_keys


StoreMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestStore = pytest.mark.usefixtures("few_keys_count_ahead")(StoreMachine.TestCase)
