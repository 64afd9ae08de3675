"""Patterns as they are written, and which watcher receives which change."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import (
    DELETE,
    EXPIRE,
    PERSIST,
    SET,
    Observer,
    Store,
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
        (" SET@k ,\tDEL@k\n", [sets(b"k"), deletes(b"k")]),
        ("SET@ a b ", [sets(b" a b")]),
        ("SET@a\\ ,DEL@\\ ", [sets(b"a "), deletes(b" ")]),
        ("SET@b/*,DEL@b/k*,DEL@*", [sets_from(b"", b"b"), deletes_from(b"k", b"b"), deletes_from(b"")]),
        ("SET@/k", [sets(b"k", b"")]),
        ("SET@a\\@b,SET@\\a", [sets(b"a@b"), sets(b"a")]),
        ("SET@k\\\\*", [sets_from(b"k\\")]),
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
        (" ", f"watch[0]: found '', allowed {VERB}"),
        ("SET@k,,DEL@k", f"watch[1]: found '', allowed {VERB}"),
        ("SET@k, GET@k ", f"watch[1]: found 'GET@k', allowed {VERB}"),
        ("set@k", f"watch[0]: found 'set@k', allowed {VERB}"),
        ("SET @k", f"watch[0]: found 'SET @k', allowed {VERB}"),
        ("SET\\@k", f"watch[0]: found 'SET\\\\@k', allowed {VERB}"),
        ("SET@", f"watch[0]: found 'SET@', allowed {KEY}"),
        ("DEL@b/", f"watch[0]: found 'DEL@b/', allowed {KEY}"),
        ("SET@k\\", f"watch[0]: found 'SET@k\\\\', allowed {BACKSLASH}"),
        ("SET@**", f"watch[0]: found 'SET@**', allowed {STAR}"),
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
def test_malformed_patterns(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        watch(text)
    assert str(caught.value) == message


@given(st.text(max_size=40) | st.text("SETDL@,/*\\ ab", max_size=40))
def test_any_text_is_patterns_or_an_error_that_shows_little(text: str) -> None:
    try:
        found = watch(text)
    except OptionError as error:
        assert str(error).startswith("watch")
        assert len(str(error)) < 64 * 10 + 100  # at worst, each character is shown as an escape
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


def test_keys_and_buckets_are_not_shown() -> None:
    shown = repr(watch("SET@hush/hush*,DEL@hush", watch_bucket="hush"))
    assert "hush" not in shown
    assert "is_prefix=True" in shown


# Watchers that receive a change.


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
            self.queue.end(event)
        return changes


def observer_of(told: dict[Told, str], bucket: bytes) -> Observer | None:
    """Return the bucket's observer, with a watcher for each text."""
    of = observers((watch(text), watcher.queue) for watcher, text in told.items())
    return None if of is None else of(bucket)


def changes_told(text: str, *changes: Change) -> list[Change]:
    """Return the changes that one watcher receives."""
    told = Told()
    for bucket, key, value in changes:
        observe = observer_of({told: text}, bucket)
        if observe is not None:
            observe(DELETE if value is None else SET, bucket, key, value)
    return told.changes()


def test_without_watchers_nothing_is_computed() -> None:
    assert observers([]) is None
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
    of = observers((Watch(tuple(own), b"0"), watcher.queue) for own, watcher in zip(watched, told, strict=True))
    assert of is not None
    for change in changes:
        observe = of(change[0])
        if observe is not None:
            bucket, key, value = change
            entry = (value, 1_000) if have_deadlines and value is not None else value
            observe(gone if value is None else SET, bucket, key, entry)
            observe(PERSIST, bucket, key, b"v")
    for own, watcher in zip(watched, told, strict=True):
        assert watcher.changes() == [change for change in changes if any(fits(pattern, change) for pattern in own)]


# The engine's changes.


@pytest.mark.parametrize("others", [0, 1])
def test_every_change_is_an_event(others: int) -> None:
    """There is one kind of observer for one watcher, and another for several. Both must report the same."""
    told = Told()
    observer_of = observers([(watch("SET@b/*,DEL@b/*"), told.queue), *[(watch("SET@absent*"), Told().queue)] * others])
    clock = Clock()
    store = Store(clock=clock)
    store.observe(observer_of)
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
