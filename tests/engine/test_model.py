"""The store against a dict of dicts: any sequence of calls, walks that go on in between, saves and loads.

Pages are predicted key by key (`predicted_page`), apart from the order of keys that stand at one position.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from xxhash import xxh3_64_intdigest

from engine import CrowdedPositionError, LimitError, NoSuchBucketError, Store, StoreOptions
from engine.shard import CROWD_KEYS_MAX, CROWD_PAGES_MAX, KEY_OVERHEAD_BYTES

SEED = 7
HashFunction = Callable[[bytes, int], int]


def scattered(key: bytes, seed: int) -> int:
    """Positions all over the ring, some of them shared by up to three keys."""
    return xxh3_64_intdigest(key[-1:], seed)


def adjacent(key: bytes, seed: int) -> int:
    """Positions that no split tells apart, some of them shared."""
    return len(key)


class ScatteredStore(Store):
    def __init__(self, options: StoreOptions | None = None, *, seed: int | None = None) -> None:
        super().__init__(options, seed=seed, hash_function=scattered)


class AdjacentStore(Store):
    def __init__(self, options: StoreOptions | None = None, *, seed: int | None = None) -> None:
        super().__init__(options, seed=seed, hash_function=adjacent)


KINDS: dict[type[Store], HashFunction] = {Store: xxh3_64_intdigest, ScatteredStore: scattered, AdjacentStore: adjacent}
SHARD_KEYS_LEAST: dict[type[Store], int] = {Store: 1, ScatteredStore: 3, AdjacentStore: 100}

BUCKETS = [b"", b"a", b"another"]
KEYS = [b"", b"a", b"b", b"key", *(b"key %d" % number for number in range(30)), b"long" * 20, b"long" * 20 + b"er"]
names = st.sampled_from(BUCKETS)
keys = st.sampled_from(KEYS)
values = st.binary(max_size=40)


@st.composite
def store_options(draw: st.DrawFn) -> StoreOptions:
    return StoreOptions(
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
    """What a page must be: its keys by position, and the bounds of its cursor (None: no key is left)."""

    runs: list[tuple[int, set[bytes]]]
    cursor_bounds: tuple[int, int] | None


def predicted_page(
    present: Iterable[bytes], position_of: Callable[[bytes], int], cursor: int, keys_max: int, bytes_max: int
) -> Prediction | None:
    """As many whole runs as fit, or one crowded run that is not too crowded; None: it is."""
    behind = sorted((key for key in present if position_of(key) >= cursor), key=position_of)
    left = [(position, set(run)) for position, run in groupby(behind, position_of)]
    taken: list[tuple[int, set[bytes]]] = []
    count = size_bytes = 0
    while left:
        run = left[0][1]
        run_bytes = sum(len(key) + KEY_OVERHEAD_BYTES for key in run)
        if count + len(run) > keys_max or size_bytes + run_bytes > bytes_max:
            if not taken and (
                len(run) == 1 or (len(run) <= CROWD_KEYS_MAX and run_bytes <= bytes_max * CROWD_PAGES_MAX)
            ):
                taken.append(left.pop(0))
            break
        count += len(run)
        size_bytes += run_bytes
        taken.append(left.pop(0))
    if not left:
        return Prediction(taken, None)
    return Prediction(taken, (taken[-1][0] + 1, left[0][0])) if taken else None


@dataclass
class Walk:
    """A walk under way: `stayed` are the keys that were there from its beginning to now."""

    name: bytes
    stayed: set[bytes]
    cursor: int | None = None
    seen: set[bytes] = field(default_factory=set)


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.model: dict[bytes, dict[bytes, bytes]] = {}
        self.walks: list[Walk] = []

    def teardown(self) -> None:
        self.directory.cleanup()

    @initialize(options=store_options(), kind=st.sampled_from(list(KINDS)))
    def make(self, options: StoreOptions, kind: type[Store]) -> None:
        self.kind = kind
        self.options = self.bounded(options)
        self.store = kind(self.options, seed=SEED)

    def bounded(self, options: StoreOptions) -> StoreOptions:
        """Without shards that no split makes smaller: they end in the largest ring, which takes long to check."""
        return replace(options, shard_keys_max=max(options.shard_keys_max, SHARD_KEYS_LEAST[self.kind]))

    def position_of(self, key: bytes) -> int:
        return KINDS[self.kind](key, SEED)

    def is_refused(self, name: bytes) -> bool:
        return self.options.strict_buckets and name not in self.model

    @rule(name=names, key=keys, value=values)
    def set_value(self, name: bytes, key: bytes, value: bytes) -> None:
        options = self.options
        keys_now = sum(map(len, self.model.values()))
        allowed = {
            "value in bytes": (len(value), options.value_bytes_max),
            "buckets": (len(self.model) + (name not in self.model), options.buckets_max),
            "keys limit": (keys_now + (key not in self.model.get(name, {})), options.keys_max),
        }
        expected = [(what, *limit) for what, limit in allowed.items() if limit[0] > limit[1]][:1]
        try:
            self.store.bucket(name).set(key, value)
        except LimitError as error:
            assert [(error.what, error.found, error.allowed)] == expected
        else:
            assert not expected
            self.model.setdefault(name, {})[key] = value

    @rule(name=names, value=values)
    def set_every_key(self, name: bytes, value: bytes) -> None:
        for key in KEYS:
            self.set_value(name, key, value)

    @rule(name=names, key=keys)
    def delete(self, name: bytes, key: bytes) -> None:
        try:
            removed = self.store.bucket(name).delete(key)
        except NoSuchBucketError:
            assert self.is_refused(name)
            return
        assert not self.is_refused(name)
        bucket = self.model.get(name, {})
        assert removed is (bucket.pop(key, None) is not None)
        if not bucket and not self.options.strict_buckets:
            self.model.pop(name, None)
        for walk in self.walks:
            if walk.name == name:
                walk.stayed.discard(key)

    @rule(name=names, count=st.integers(1, len(KEYS)))
    def delete_keys(self, name: bytes, count: int) -> None:
        for key in KEYS[:count]:
            self.delete(name, key)

    @rule(name=names, key=keys)
    def get(self, name: bytes, key: bytes) -> None:
        bucket = self.store.bucket(name)
        expected = self.model.get(name, {}).get(key)
        try:
            assert bucket.get(key) == expected
            assert bucket.exists(key) is (expected is not None)
            assert not self.is_refused(name)
        except NoSuchBucketError:
            assert self.is_refused(name)

    @rule(name=names, cursor=st.none() | st.integers(0, 2**64 - 1) | st.integers(0, 100))
    def begin_walk(self, name: bytes, cursor: int | None) -> None:
        stayed = {key for key in self.model.get(name, {}) if self.position_of(key) >= (cursor or 0)}
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
        """One page more; whether the walk goes on."""
        expected = predicted_page(
            self.model.get(walk.name, {}),
            self.position_of,
            walk.cursor or 0,
            self.options.page_keys_max if keys_max is None else keys_max,
            self.options.page_bytes_max,
        )
        try:
            page = self.store.bucket(walk.name).page(walk.cursor, keys_max)
        except CrowdedPositionError:
            assert expected is None
            return False
        assert expected is not None
        paged = [(position, list(run)) for position, run in groupby(page.keys, self.position_of)]
        assert [(position, set(run)) for position, run in paged] == expected.runs
        assert len(page.keys) == len(set(page.keys))
        assert walk.seen.isdisjoint(page.keys), "a key comes once"
        walk.seen.update(page.keys)
        walk.cursor = page.cursor
        if page.cursor is None:
            assert expected.cursor_bounds is None
            assert walk.stayed <= walk.seen, "a key that is there for the whole walk comes"
            return False
        assert expected.cursor_bounds is not None, "a cursor comes only if a key is left"
        least, most = expected.cursor_bounds
        assert least <= page.cursor <= most
        return True

    @rule(options=store_options())
    def save_and_load(self, options: StoreOptions) -> None:
        path = Path(self.directory.name, "snapshot")
        self.store.save(path)
        limits = ("value_bytes_max", "buckets_max", "keys_max", "strict_buckets")
        kept = {name: getattr(self.options, name) for name in limits}
        self.options = self.bounded(replace(options, **kept))
        self.store = self.kind.load(path, self.options)

    @invariant()
    def agrees(self) -> None:
        self.store.check()
        assert set(self.store.bucket_names()) == set(self.model)
        assert len(self.store) == sum(map(len, self.model.values()))
        for name, bucket in self.model.items():
            handle = self.store.bucket(name)
            assert len(handle) == len(bucket)
            assert all(handle.get(key) == value for key, value in bucket.items())


StoreMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase
