"""What is watched: patterns as they are written, and who is told of which change."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import (
    DELETE,
    SET,
    BucketOptions,
    CounterError,
    LimitError,
    Observer,
    ObserverOf,
    Store,
    StoreOptions,
)
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.watching.patterns import PATTERNS_MAX, Pattern, Watch, observers
from keyvalue_provider.watching.queue import WatchCounts, WatchLimits, WatchQueue
from tests.conftest import HOST_CAPTURE
from tests.engine.clock import Clock

Change = tuple[bytes, bytes, bytes | None]


def watch(text: str, **config: str) -> Watch:
    found = Watch.of(WatchingLinkOptions.from_config({"watch": text, **config})[0])
    assert found is not None
    return found


def sets(key: bytes, bucket: bytes | None = None) -> Pattern:
    return Pattern(False, bucket, key, False)


def sets_from(text: bytes, bucket: bytes | None = None) -> Pattern:
    return Pattern(False, bucket, text, True)


def deletes(key: bytes, bucket: bytes | None = None) -> Pattern:
    return Pattern(True, bucket, key, False)


def deletes_from(text: bytes, bucket: bytes | None = None) -> Pattern:
    return Pattern(True, bucket, text, True)


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("SET@k", [sets(b"k")]),
        ("SET@k,DEL@k", [sets(b"k"), deletes(b"k")]),
        (" SET@k ,\tDEL@k\n", [sets(b"k"), deletes(b"k")]),
        ("SET@ a b ", [sets(b" a b")]),
        ("SET@a\\ ,DEL@\\ ", [sets(b"a "), deletes(b" ")]),
        ("SET@user*", [sets_from(b"user")]),
        ("DEL@*", [deletes_from(b"")]),
        ("SET@b/k", [sets(b"k", b"b")]),
        ("SET@b/*,DEL@b/k*", [sets_from(b"", b"b"), deletes_from(b"k", b"b")]),
        ("SET@/k", [sets(b"k", b"")]),
        ("SET@a@b", [sets(b"a@b")]),
        ("SET@a\\@b,SET@\\a", [sets(b"a@b"), sets(b"a")]),
        ("SET@a\\,b\\/c\\*\\\\", [sets(b"a,b/c*\\")]),
        ("SET@a\\,\\*/b", [sets(b"b", b"a,*")]),
        ("SET@k\\**", [sets_from(b"k*")]),
        ("SET@k\\\\", [sets(b"k\\")]),
        ("SET@k\\\\*", [sets_from(b"k\\")]),
        ("SET@café ☕", [sets("café ☕".encode())]),
        ("SET@SET@k", [sets(b"SET@k")]),
    ],
)
def test_patterns(text: str, patterns: list[Pattern]) -> None:
    assert watch(text).patterns == tuple(patterns)


VERB = "SET@ or DEL@, followed by a key"
STAR = r"* only at the end; \* for the character"
SLASH = r"only one /, between bucket and key; \/ for the character"
KEY = "a key at the end, or *"
BACKSLASH = "a character after the last backslash"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"watch[0]: found '', allowed {VERB}"),
        (" ", f"watch[0]: found '', allowed {VERB}"),
        ("SET@k,", f"watch[1]: found '', allowed {VERB}"),
        ("SET@k,,DEL@k", f"watch[1]: found '', allowed {VERB}"),
        ("k", f"watch[0]: found 'k', allowed {VERB}"),
        ("SET@k, GET@k ", f"watch[1]: found 'GET@k', allowed {VERB}"),
        ("set@k", f"watch[0]: found 'set@k', allowed {VERB}"),
        ("SET @k", f"watch[0]: found 'SET @k', allowed {VERB}"),
        ("SETS@k", f"watch[0]: found 'SETS@k', allowed {VERB}"),
        ("\\SET@k", f"watch[0]: found '\\\\SET@k', allowed {VERB}"),
        ("SET\\@k", f"watch[0]: found 'SET\\\\@k', allowed {VERB}"),
        ("SET@", f"watch[0]: found 'SET@', allowed {KEY}"),
        ("DEL@b/", f"watch[0]: found 'DEL@b/', allowed {KEY}"),
        ("SET@k\\", f"watch[0]: found 'SET@k\\\\', allowed {BACKSLASH}"),
        ("SET@b\\", f"watch[0]: found 'SET@b\\\\', allowed {BACKSLASH}"),
        ("SET@a*b", f"watch[0]: found 'SET@a*b', allowed {STAR}"),
        ("SET@**", f"watch[0]: found 'SET@**', allowed {STAR}"),
        ("SET@b*/k", f"watch[0]: found 'SET@b*/k', allowed {STAR}"),
        ("SET@*/k*", f"watch[0]: found 'SET@*/k*', allowed {STAR}"),
        ("SET@a/b/c", f"watch[0]: found 'SET@a/b/c', allowed {SLASH}"),
        ("SET@a//", f"watch[0]: found 'SET@a//', allowed {SLASH}"),
        ("SET@k,GET@" + "x" * 100, f"watch[1]: found 'GET@{'x' * 60}', allowed {VERB}"),
        ("SET@\ud800", "watch: found 'SET@\\ud800', allowed text that can be encoded in UTF-8"),
        (
            ",".join(["SET@k"] * (PATTERNS_MAX + 1)),
            f"watch: found {PATTERNS_MAX + 1} patterns; the limit is {PATTERNS_MAX}",
        ),
    ],
)
def test_patterns_that_are_malformed(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        watch(text)
    assert str(caught.value) == message


@given(st.text(max_size=40) | st.text("SETDL@,/*\\ ab", max_size=40))
def test_any_text_is_patterns_or_an_error_that_shows_little(text: str) -> None:
    try:
        found = watch(text)
    except OptionError as error:
        assert str(error).startswith("watch")
        assert len(str(error)) < 64 * 10 + 100  # each character shown as an escape, at the worst
    else:
        assert len(found.patterns) >= 1
        assert all(pattern.key or pattern.is_prefix for pattern in found.patterns)


def test_the_bucket_argument() -> None:
    assert watch("SET@k").bucket_argument == b"0"
    assert watch("SET@k", watch_bucket="7").bucket_argument == b"7"
    assert watch("SET@k", watch_bucket="{bucket}").bucket_argument is None
    assert watch("SET@k", watch_bucket="a{bucket}").bucket_argument == b"a{bucket}"
    assert watch("SET@k", watch_bucket="").bucket_argument == b""
    with pytest.raises(OptionError, match=r"watch_bucket: found '.udfff', allowed text that can be encoded in UTF-8"):
        watch("SET@k", watch_bucket="\udfff")


def test_a_link_without_patterns_watches_nothing() -> None:
    assert Watch.of(WatchingLinkOptions(watch_bucket=b"7")) is None


def test_a_link_of_the_capture() -> None:
    link = json.loads(HOST_CAPTURE["watch_link_put"]["payload"])
    found = Watch.of(WatchingLinkOptions.from_config(link["source_config"])[0])
    assert found == Watch((sets(b"wkey"), deletes(b"wkey")), b"0")


def test_keys_and_buckets_do_not_show() -> None:
    shown = repr(watch("SET@hush/hush*,DEL@hush", watch_bucket="hush"))
    assert "hush" not in shown
    assert "is_prefix=True" in shown


# Who is told.


class Told:
    """One watcher, with the changes in its queue."""

    def __init__(self) -> None:
        limits = WatchLimits(queue_events=1000, queue_bytes=1_000_000, timeout_s=1)
        self.queue = WatchQueue(limits, WatchCounts(), lambda: None)

    def changes(self) -> list[Change]:
        """What it was told since this was asked last."""
        changes = []
        while (event := self.queue.take()) is not None:
            changes.append(event)
            self.queue.end(event)
        return changes


def observer_of(told: dict[Told, str], bucket: bytes) -> Observer | None:
    """The bucket's observer, with a watcher for each text."""
    of = observers((watch(text), watcher.queue) for watcher, text in told.items())
    return None if of is None else of(bucket)


def changes_told(text: str, *changes: Change) -> list[Change]:
    """Of these changes, those that one watcher is told of."""
    told = Told()
    for bucket, key, value in changes:
        observe = observer_of({told: text}, bucket)
        if observe is not None:
            observe(DELETE if value is None else SET, bucket, key, value)
    return told.changes()


CHANGES = [
    (bucket, key, value)
    for bucket, key, value in product((b"a", b"b"), (b"k", b"k1", b"other", b""), (b"value", b"", None))
]


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("SET@k", lambda bucket, key, value: key == b"k" and value is not None),
        ("DEL@k", lambda bucket, key, value: key == b"k" and value is None),
        ("SET@k*", lambda bucket, key, value: key[:1] == b"k" and value is not None),
        ("DEL@*", lambda bucket, key, value: value is None),
        ("SET@*,DEL@*", lambda bucket, key, value: True),
        ("SET@a/*", lambda bucket, key, value: bucket == b"a" and value is not None),
        ("DEL@b/k", lambda bucket, key, value: (bucket, key, value) == (b"b", b"k", None)),
        ("SET@a/k,SET@k1", lambda bucket, key, value: (key == b"k1" or (bucket, key) == (b"a", b"k")) and value is not None),
        ("SET@k,SET@k*,SET@a/*,SET@a/k", lambda bucket, key, value: (key[:1] == b"k" or bucket == b"a") and value is not None),
        ("SET@absent", lambda bucket, key, value: False),
    ],
)  # fmt: skip
def test_what_a_watcher_is_told_of(text: str, fits: Callable[[bytes, bytes, bytes | None], bool]) -> None:
    assert changes_told(text, *CHANGES) == [change for change in CHANGES if fits(*change)]


def test_nothing_is_computed_where_nobody_watches() -> None:
    assert observers([]) is None
    assert observer_of({Told(): "SET@a/*", Told(): "DEL@b/k"}, b"c") is None
    assert observer_of({Told(): "SET@a/*", Told(): "DEL@k"}, b"c") is not None


def escaped(text: str) -> str:
    """A bucket or key as it is written in a pattern, whatever it is."""
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
    """What separates, and white space."""
    return "".join(f"\\{each}" if each in ",/*\\" or each.isspace() else each for each in text)


few_names = st.sampled_from(["", "a", "ab", "b", "k"])
patterns = st.builds(Pattern, st.booleans(), st.none() | few_names.map(str.encode), few_names.map(str.encode), st.booleans())  # fmt: skip


@given(
    st.lists(st.lists(patterns, min_size=1, max_size=4), min_size=1, max_size=4),
    st.lists(st.tuples(few_names.map(str.encode), few_names.map(str.encode), st.none() | st.just(b"v")), max_size=12),
)
def test_each_watcher_is_told_once_of_what_fits(watched: list[list[Pattern]], changes: list[Change]) -> None:
    def fits(pattern: Pattern, change: Change) -> bool:
        bucket, key, value = change
        is_key = key.startswith(pattern.key) if pattern.is_prefix else key == pattern.key
        return is_key and pattern.bucket in (None, bucket) and pattern.deletes is (value is None)

    told = [Told() for _ in watched]
    of = observers((Watch(tuple(own), b"0"), watcher.queue) for own, watcher in zip(watched, told, strict=True))
    assert of is not None
    for change in changes:
        observe = of(change[0])
        if observe is not None:
            observe(DELETE if change[2] is None else SET, *change)
    for own, watcher in zip(watched, told, strict=True):
        assert watcher.changes() == [change for change in changes if any(fits(pattern, change) for pattern in own)]


# The engine's changes.


@pytest.fixture(params=[1, 2], ids=["one watcher", "two"])
def watched(request: pytest.FixtureRequest) -> tuple[Told, ObserverOf]:
    """A watcher of bucket b, alone or beside another: which of the two kinds of observer is asked must not matter."""
    told = Told()
    told_too = [] if request.param == 1 else [(watch("SET@absent*"), Told().queue)]
    observer_of = observers([(watch("SET@b/*,DEL@b/*"), told.queue), *told_too])
    assert observer_of is not None
    return told, observer_of


def test_every_change_is_an_event(watched: tuple[Told, ObserverOf]) -> None:
    told, observer_of = watched
    clock = Clock()
    store = Store(StoreOptions(value_bytes_max=20), clock=clock)
    store.observe(observer_of)
    bucket = store.bucket(b"b")
    bucket.set(b"k", b"v")
    bucket.set(b"k", b"v")
    store.bucket(b"other").set(b"k", b"v")
    bucket.increment(b"n", 5)
    bucket.increment(b"n", 7)
    bucket.set_many({b"x": b"1", b"y": b"2"})
    assert told.changes() == [
        *[(b"b", b"k", b"v")] * 2,
        *[(b"b", b"n", b"5"), (b"b", b"n", b"12")],
        *[(b"b", b"x", b"1"), (b"b", b"y", b"2")],
    ]
    bucket.delete(b"k")
    bucket.delete(b"k")
    assert bucket.delete_many([b"x", b"absent", b"y"]) == 2
    assert sorted(told.changes()) == [(b"b", b"k", None), (b"b", b"x", None), (b"b", b"y", None)]
    with pytest.raises(CounterError):
        bucket.increment(b"n", 2**64 - 1)
    with pytest.raises(LimitError):
        bucket.set_many({b"fits": b"", b"too long": bytes(21)})
    assert told.changes() == []


def test_expiry_is_a_deletion_and_to_persist_is_no_event(watched: tuple[Told, ObserverOf]) -> None:
    told, observer_of = watched
    clock = Clock()
    store = Store(clock=clock)
    store.observe(observer_of)
    bucket = store.bucket(b"b", BucketOptions(ttl_ms=10))
    bucket.set(b"swept", b"v")
    bucket.set(b"written", b"v")
    bucket.set(b"kept", b"v", ttl_ms=1000)
    assert told.changes() == [(b"b", key, b"v") for key in (b"swept", b"written", b"kept")]
    assert bucket.persist(b"kept")
    assert told.changes() == []  # a watcher is told of no deadlines
    clock.move_ms(10)
    assert bucket.get(b"swept") is None
    assert told.changes() == []  # a reader changes nothing
    bucket.set(b"written", b"again")
    assert told.changes() == [(b"b", b"written", None), (b"b", b"written", b"again")]
    store.sweep()
    assert told.changes() == [(b"b", b"swept", None)]


def test_who_watches_no_more_is_told_no_more(watched: tuple[Told, ObserverOf]) -> None:
    told, observer_of = watched
    store = Store()
    bucket = store.bucket(b"b")
    bucket.set(b"before", b"")
    store.observe(observer_of)
    bucket.set(b"k", b"")
    store.observe(None)
    bucket.set(b"after", b"")
    assert told.changes() == [(b"b", b"k", b"")]
