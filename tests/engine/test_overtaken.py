"""Calls that overtake each other: each must return what it returns in one of the possible orders, and leave the same store.

One thread is enough to try every place where another thread could run. In the store under test, these places are:
taking a lock, reading the clock, hashing a key, and reading or writing an entry. Each try picks one place and runs
the steps of other calls there (`Places`). Steps that need a lock of the overtaken call cannot run there, so that try
does not count (`Blocked`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, product
from typing import Any

import msgpack
import pytest

from keyvalue_engine import BucketOptions, NoSuchBucketError, Store, StoreOptions, shard, table, tables
from keyvalue_engine.entry import Entry
from keyvalue_engine.shard import Shard
from keyvalue_engine.snapshot import BLOCK
from tests.engine.clock import Clock
from tests.engine.entries import entries_of, shards_of
from tests.engine.races import placed

#: The time to live of every key that has one, in milliseconds.
TTL_MS = 5
#: Far more places than any call on a stage reaches.
PLACES_MAX = 10_000


class Blocked(Exception):
    """A step needs a lock that the overtaken call holds. In one thread it would wait forever."""


class Places:
    """The places that a call reaches, one after another. Other calls get in at one of them.

    :ivar at: how many places remain before that one; None: nothing gets in
    :ivar overtake: makes the other calls
    :ivar left: how many more places may be reached before the call is taken to be endless
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self.overtake: Callable[[], object] = int
        self.left = PLACES_MAX

    def reach(self) -> None:
        """Let the other calls get in if this is the place."""
        self.left -= 1
        assert self.left, "the call never ends"
        if self.at is None:
            return
        self.at -= 1
        if self.at < 0:
            self.at = None
            self.overtake()

    def end(self) -> bool:
        """Let nothing else get in. Return True if the steps did."""
        at, self.at = self.at, None
        return at is None


class PlacedLock:
    """A single thread's lock that is also a place."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.is_held = False
        self.was_refused = False

    def acquire(self) -> bool:
        self.places.reach()
        if self.is_held:
            self.was_refused = True
            raise Blocked
        self.is_held = True
        return True

    def release(self) -> None:
        self.is_held = False

    def _is_owned(self) -> bool:
        was_refused, self.was_refused = self.was_refused, False
        return self.is_held and not was_refused

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class PlacedClock(Clock):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __call__(self) -> int:
        self.places.reach()
        return super().__call__()


class PlacedEntries(dict[bytes, Entry]):
    """The entries of a shard, with a place after each lookup and each write."""

    def __init__(self, shard: Shard, places: Places) -> None:
        super().__init__(shard.entries)
        self.places = places
        shard.entries = self
        if shard.deadlines is not None:
            shard.deadlines.entries = self

    def get(self, key: bytes, default: Any = None) -> Any:
        entry = super().get(key, default)
        self.places.reach()
        return entry

    def __setitem__(self, key: bytes, entry: Entry) -> None:
        super().__setitem__(key, entry)
        self.places.reach()


@dataclass(frozen=True)
class Scene:
    """The store before a call: keys that stay, and keys that expire.

    More than `shard_keys_max` keys are split into four shards.
    """

    keys: Sequence[bytes]
    timed_keys: Sequence[bytes] = ()
    is_over: bool = False
    shard_keys_max: int = 2
    strict: bool = False


SCENES = {
    "empty": Scene([]),
    "the last key": Scene([b"0"]),
    "the last key of a strict store": Scene([b"0"], strict=True),
    "the last key, which expires": Scene([], [b"0"]),
    "the last key, which has expired": Scene([], [b"0"], is_over=True),
    "a full shard": Scene([b"0", b"1"]),
    "a full shard, of which a key expires": Scene([b"1"], [b"0"]),
    "a full shard, of which a key has expired": Scene([b"1"], [b"0"], is_over=True),
    "a batch that expires": Scene([b"1"], [b"0", b"3"], shard_keys_max=9),
    "four shards": Scene([b"0", b"1", b"2", b"3"]),
    "four shards, in which keys expire": Scene([b"1", b"2"], [b"0", b"3"]),
}


class Stage:
    """A store in a scene."""

    def __init__(self, scene: Scene, places: Places) -> None:
        places.left = PLACES_MAX
        self.clock = PlacedClock(places)

        def hash_function(secret: bytes, key: bytes) -> int:
            places.reach()
            return placed(secret, key)

        options = StoreOptions(shard_keys_max=scene.shard_keys_max, shards_min=1, strict_buckets=scene.strict)
        self.store = Store(options, hash_function=hash_function, clock=self.clock)
        self.bucket = self.store.bucket(b"b")
        self.timed = self.store.bucket(b"b", BucketOptions(ttl_ms=TTL_MS))
        self.bucket.set_many(dict.fromkeys(scene.keys, b"6"))
        self.timed.set_many(dict.fromkeys(scene.timed_keys, b"6"))
        for known in shards_of(self.store):
            PlacedEntries(known, places)
        if scene.is_over:
            self.clock.move_ms(TTL_MS)

    def save(self) -> list[bytes]:
        """Return the keys that a snapshot holds."""
        bodies = (msgpack.unpackb(parts[1], strict_map_key=False) for parts in self.store.frames() if parts)
        return sorted(key for kind, _, entries, *_ in bodies if kind == BLOCK for key in entries[::2])

    def renew(self) -> None:
        """Move all keys and values to new objects."""
        for renewal in self.store.renewals():
            while renewal.copy():
                pass
            renewal.replace()

    def sweep(self) -> None:
        """Sweep, but do not return the result of `Store.sweep`, which is an estimate."""
        self.store.sweep()

    def end(self) -> tuple[object, object]:
        """Return what a reader finds now, and the buckets that remain after a sweep."""
        self.store.check()
        now_ns = self.clock.now_ns
        entries = entries_of(self.store).items()
        live = {key: entry for key, entry in entries if not isinstance(entry, tuple) or entry[1] > now_ns}
        for _ in range(len(shards_of(self.store))):
            self.store.sweep()
        self.store.check()
        assert entries_of(self.store) == live
        return sorted(live.items()), self.store.bucket_names()


def pass_time(stage: Stage) -> None:
    stage.clock.move_ms(TTL_MS)


Call = Callable[[Stage], object]
CALLS: dict[str, Call] = {
    "set": lambda stage: stage.bucket.set(b"0", b"5"),
    "set another key": lambda stage: stage.bucket.set(b"3", b"5"),
    "set with a deadline": lambda stage: stage.timed.set(b"0", b"5"),
    "set_many": lambda stage: stage.bucket.set_many({b"0": b"5", b"3": b"5"}),
    "set_many with a deadline": lambda stage: stage.timed.set_many({b"0": b"5", b"3": b"5"}),
    "increment": lambda stage: stage.bucket.increment(b"0", 1),
    "increment another key": lambda stage: stage.bucket.increment(b"3", 1),
    "increment with a deadline": lambda stage: stage.timed.increment(b"0", 1),
    "delete": lambda stage: stage.bucket.delete(b"0"),
    "delete_many": lambda stage: stage.bucket.delete_many([b"0", b"1"]),
    "persist": lambda stage: stage.bucket.persist(b"0"),
    "get": lambda stage: stage.bucket.get(b"0"),
    "get_many": lambda stage: stage.bucket.get_many([b"0", b"1", b"3"]),
    "ttl_ms": lambda stage: stage.bucket.ttl_ms(b"0"),
    "sweep": Stage.sweep,
    "page": lambda stage: stage.bucket.page(),
    "page of one key": lambda stage: stage.bucket.page(keys_max=1),
    "save": Stage.save,
    "renew": Stage.renew,
}
#: These read one shard after another, not all as of one moment.
SHARD_BY_SHARD = ("page", "page of one key", "save")
#: These read the clock before they write or read. If they are held up in between, the earlier time counts.
HELD_UP = ("set with a deadline", "set_many with a deadline", "increment with a deadline", "persist", "ttl_ms")

STEPS: dict[str, Call] = {
    **CALLS,
    "pass time": pass_time,
    "prolong": lambda stage: stage.bucket.set(b"0", b"8", ttl_ms=100),
    "delete all": lambda stage: stage.bucket.delete_many([b"0", b"1", b"2", b"3"]),
    "set all": lambda stage: stage.bucket.set_many({b"0": b"7", b"1": b"7", b"3": b"7"}),
    "split": lambda stage: stage.bucket.set(b"2", b"8"),  # where the shard is full
}
#: The calls that get in. Only a batch changes two keys that a call reads, since single writes may be seen one by one.
OVERTAKING: list[list[str]] = [
    ["set"],
    ["delete"],
    ["increment"],
    ["delete all"],
    ["delete all", "set another key"],
    ["delete all", "set all"],
    ["delete all", "pass time", "set with a deadline"],
    ["set all"],
    ["split"],
    ["split", "set all"],
    ["split", "delete all"],
    ["split", "persist", "pass time"],
    ["split", "persist", "pass time", "delete all"],
    ["split", "prolong", "pass time"],
    ["split", "pass time", "sweep"],
    ["persist", "pass time"],
    ["prolong", "pass time"],
    ["pass time"],
    ["pass time", "set"],
    ["pass time", "sweep"],
    ["pass time", "get", "ttl_ms"],
    ["set with a deadline", "pass time", "get"],
    ["get_many"],
    ["renew"],
    ["split", "renew"],
    ["set with a deadline", "renew", "pass time", "sweep"],
]


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    """Return the places that all locks of a store under test belong to."""
    places = Places()
    for module, kind in ((shard, "RLock"), (table, "Lock"), (tables, "Lock")):
        monkeypatch.setattr(module, kind, lambda: PlacedLock(places))
    return places


def found(call: Call, stage: Stage) -> object:
    try:
        return call(stage)
    except NoSuchBucketError as error:
        return str(error)


def in_turn(steps: Sequence[str], stage: Stage) -> list[object]:
    return [found(STEPS[step], stage) for step in steps]


def orders(name: str, steps: Sequence[str], stage_of: Callable[[], Stage]) -> Iterator[object]:
    """Yield the result if the call is made before, between and after the steps."""
    for index in range(len(steps) + 1):
        for held_up_ms in (0, TTL_MS) if name in HELD_UP else (0,):
            stage = stage_of()
            before = in_turn(steps[:index], stage)
            stage.clock.move_ms(-held_up_ms)
            own = found(CALLS[name], stage)
            stage.clock.move_ms(held_up_ms)
            yield own, before + in_turn(steps[index:], stage), stage.end()


def overtakings(name: str, steps: Sequence[str], stage_of: Callable[[], Stage], places: Places) -> Iterator[object]:
    """Yield the result if the steps get in, for each place that the call reaches."""
    for place in count():
        stage = stage_of()
        others: list[object] = []
        places.overtake = lambda stage=stage, others=others: others.extend(in_turn(steps, stage))  # type: ignore[misc]
        places.at = place
        try:
            own = found(CALLS[name], stage)
        except Blocked:
            continue
        if not places.end():  # the call reaches no more places
            return
        yield own, others, stage.end()


@pytest.mark.parametrize("name", CALLS)
def test_an_overtaken_call_acts_as_in_one_of_the_orders(name: str, places: Places) -> None:
    tries = 0
    for scene, steps in product(SCENES, OVERTAKING):
        if name in SHARD_BY_SHARD and scene.startswith("four shards"):
            continue
        stage_of = partial(Stage, SCENES[scene], places)
        expected = [*orders(name, steps, stage_of)]
        for end in overtakings(name, steps, stage_of, places):
            assert end in expected, f"{scene}: overtaken by {steps}"
            tries += 1
    assert tries > 100
