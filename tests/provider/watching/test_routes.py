"""Which watcher receives which change, while links change."""

from __future__ import annotations

import sys
from functools import partial
from itertools import product
from types import FrameType

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import DEADLINE, DELETE, EXPIRE, PERSIST, SET, Observer, Store
from keyvalue_provider.watching.patterns import Pattern
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits, WatchQueue
from keyvalue_provider.watching.routes import WatchRoutes, expiry_observer, queue_observer
from tests.engine.clock import Clock
from tests.provider.watching.test_patterns import watch

Change = tuple[bytes, bytes, bytes | None]


class Told:
    """A watcher, with the changes in its queue."""

    def __init__(self) -> None:
        limits = WatchLimits(queue_events=1000, queue_bytes=1_000_000, timeout_s=1)
        self.queue = WatchQueue(limits, WatchCounts(), lambda: None)

    def changes(self) -> list[Change]:
        """Take the queued changes."""
        changes = []
        while (event := self.queue.take()) is not None:
            changes.append(event)
            self.queue.end(self.queue.in_flight(event))
        return changes


def observer_of(told: dict[Told, str], bucket: bytes) -> Observer | None:
    """Return the bucket's observer, with a watcher for each text."""
    routes = WatchRoutes(Store(), queue_observer)
    for watcher, text in told.items():
        routes.put(watcher.queue, watch(text).patterns)
    return routes._observer_of(bucket)


def changes_told(text: str, *changes: Change) -> list[Change]:
    """Return the changes that one watcher receives."""
    told = Told()
    for bucket, key, value in changes:
        observe = observer_of({told: text}, bucket)
        if observe is not None:
            observe(DELETE if value is None else SET, bucket, key, value)
    return told.changes()


def test_a_bucket_that_is_not_watched_has_no_observer() -> None:
    assert observer_of({Told(): "SET@a/*", Told(): "DEL@b/k"}, b"c") is None
    assert observer_of({Told(): "SET@a/*", Told(): "DEL@k"}, b"c") is not None


def escaped(text: str) -> str:
    """Write a bucket or key for a pattern, with every character escaped."""
    return "".join(f"\\{character}" for character in text)


names = st.text(st.sampled_from(",/*\\@ \taé☕") | st.characters(exclude_categories=["Cs"]), max_size=12)


@given(names, names.filter(bool), names, names, st.booleans())
def test_any_bucket_and_key_can_be_written(bucket: str, key: str, other_bucket: str, other: str, minimal: bool) -> None:
    write = minimally_escaped if minimal else escaped
    bucket_of = {bucket: bucket.encode(), other_bucket: other_bucket.encode()}
    change: Change = (bucket_of[bucket], key.encode(), b"v")
    others: list[Change] = [
        (bucket_of[name], text.encode(), b"v")
        for name, text in product((bucket, other_bucket), (key, other, key + other, other + key))
        if (name, text) != (bucket, key)
    ]
    assert changes_told(f"SET@{write(bucket)}/{write(key)}", change, *others) == [change]
    of_all_buckets = [each for each in (change, *others) if each[1] == change[1]]
    assert changes_told(f"SET@{write(key)}", change, *others) == of_all_buckets
    beginning = [each for each in (change, *others) if each[1].startswith(change[1])]
    assert changes_told(f"DEL@x,SET@{write(key)}*", change, *others) == beginning


def minimally_escaped(text: str) -> str:
    """Write it with only separators and white space escaped."""
    return "".join(f"\\{each}" if each in ",/*\\" or each.isspace() else each for each in text)


few_names = st.sampled_from(["", "a", "ab", "b", "k"])
patterns = st.builds(Pattern, st.booleans(), st.none() | few_names.map(str.encode), few_names.map(str.encode), st.booleans())  # fmt: skip


@given(
    st.lists(st.lists(patterns, min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.tuples(few_names.map(str.encode), few_names.map(str.encode), st.none() | st.just(b"v")), max_size=12),
    st.booleans(),
    st.sampled_from([DELETE, EXPIRE]),
)
def test_each_watcher_receives_a_matching_change_once(
    watched: list[list[Pattern]], changes: list[Change], have_deadlines: bool, gone: int
) -> None:
    """An entry with a deadline is a tuple, and the watcher receives only its value."""

    def fits(pattern: Pattern, change: Change) -> bool:
        bucket, key, value = change
        is_key = key.startswith(pattern.key) if pattern.is_prefix else key == pattern.key
        return is_key and pattern.bucket in (None, bucket) and pattern.deletes is (value is None)

    told = [Told() for _ in watched]
    routes = WatchRoutes(Store(), queue_observer)
    for own, watcher in zip(watched, told, strict=True):
        routes.put(watcher.queue, own)
    for change in changes:
        observe = routes._observer_of(change[0])
        if observe is not None:
            bucket, key, value = change
            entry = (value, 1_000) if have_deadlines and value is not None else value
            observe(gone if value is None else SET, bucket, key, entry)
            observe(PERSIST, bucket, key, b"v")
            observe(DEADLINE, bucket, key, (b"v", 1))
    for own, watcher in zip(watched, told, strict=True):
        assert watcher.changes() == [change for change in changes if any(fits(pattern, change) for pattern in own)]


# The engine's changes.


def test_every_change_is_an_event() -> None:
    told, clock = Told(), Clock()
    store = Store(clock=clock)
    routes = WatchRoutes(store, queue_observer)
    routes.put(told.queue, watch("SET@b/*,DEL@b/*").patterns)
    routes.put(Told().queue, watch("SET@absent*").patterns)
    bucket = store.bucket(b"b")
    store.bucket(b"other").set(b"k", b"v")
    bucket.set(b"k", b"v", ttl_ms=10)
    bucket.set_many({b"x": b"1", b"y": b"2"})
    bucket.increment(b"n", 12)
    assert told.changes() == [(b"b", b"k", b"v"), (b"b", b"x", b"1"), (b"b", b"y", b"2"), (b"b", b"n", b"12")]
    clock.move_ms(10)
    assert bucket.get(b"k") is None
    assert told.changes() == [], "a reader changes nothing"
    store.sweep()
    assert bucket.delete_many([b"x", b"absent"]) == 1
    assert told.changes() == [(b"b", b"k", None), (b"b", b"x", None)]


# Changes of links.


def fits(pattern: Pattern, bucket: bytes, key: bytes, deletes: bool) -> bool:
    is_key = key.startswith(pattern.key) if pattern.is_prefix else key == pattern.key
    return is_key and pattern.bucket in (None, bucket) and pattern.deletes is deletes


link_changes = st.tuples(st.integers(0, 3), st.lists(patterns, max_size=5))
key_changes = st.tuples(few_names.map(str.encode), few_names.map(str.encode), st.booleans())


@given(st.lists(link_changes | key_changes, max_size=40))
def test_every_change_of_a_key_follows_the_latest_patterns(
    steps: list[tuple[int, list[Pattern]] | tuple[bytes, bytes, bool]],
) -> None:
    """Change links and keys in turns, in a store of each kind. Buckets come and go."""
    told = [Told() for _ in range(4)]
    current: list[list[Pattern]] = [[] for _ in told]
    clock = Clock()
    memory, replicated = Store(), Store(clock=clock)
    routes = WatchRoutes(memory, queue_observer)
    expired: list[tuple[bytes, bytes]] = []
    expiries: WatchRoutes[int] = WatchRoutes(
        replicated, partial(expiry_observer, lambda bucket, key: expired.append((bucket, key)))
    )
    for step in steps:
        if len(step) == 2:
            number, own = step
            routes.put(told[number].queue, own)
            expiries.put(number, [pattern for pattern in own if pattern.deletes])
            current[number] = own
            continue
        bucket, key, deletes = step
        memory.bucket(bucket).set(key, b"v")
        changes: list[Change] = [(bucket, key, b"v")]
        if deletes:
            memory.bucket(bucket).delete(key)
            changes.append((bucket, key, None))
        for watcher, own in zip(told, current, strict=True):
            expected = [each for each in changes if any(fits(it, bucket, key, each[2] is None) for it in own)]
            assert watcher.changes() == expected
        replicated.bucket(bucket).set(key, b"v", ttl_ms=1)
        clock.move_ms(1)
        replicated.sweep()
        is_watched = any(fits(pattern, bucket, key, True) for own in current for pattern in own)
        assert expired == [(bucket, key)] * is_watched
        expired.clear()
    for watcher in told:
        routes.put(watcher.queue, [])
    assert not routes
    assert not routes._everywhere
    assert not routes._named


def calls_of_a_change(links: int, buckets: int = 200, text: str = "SET@b0/x*,DEL@other*,SET@same,DEL@new/k") -> int:
    """Return the number of function calls that a change of a link makes, beside this number of links and buckets."""
    store = Store()
    for number in range(buckets):
        store.bucket(b"b%d" % number).set(b"k", b"v")
    routes: WatchRoutes[int] = WatchRoutes(store, partial(expiry_observer, lambda bucket, key: None))
    for number in range(links):
        routes.put(number, watch(f"SET@b{number}/*,DEL@k{number}*,SET@same,DEL@b7/k").patterns)
    return calls_of_put(routes, text)


def calls_of_put(routes: WatchRoutes[int], text: str) -> int:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    new = watch(text).patterns
    sys.setprofile(count)
    try:
        routes.put(1, new)
        routes.put(1, ())
    finally:
        sys.setprofile(None)
    return calls


def test_a_change_of_a_link_costs_the_same_beside_many_links() -> None:
    """It took 90 ms beside 3,000 links with four patterns each, because all observers were made again."""
    assert calls_of_a_change(3_000) <= calls_of_a_change(30) + 10


def test_a_pattern_for_every_bucket_calls_nothing_for_each_bucket() -> None:
    """With 65,536 buckets, a new or removed link took 23 ms, because the observer of each bucket was made again."""
    text = "SET@*,DEL@b1/*"
    assert calls_of_a_change(0, 2_000, text) <= calls_of_a_change(0, 20, text) + 10
