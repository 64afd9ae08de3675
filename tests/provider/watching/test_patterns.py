"""Patterns as they are written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.watching.patterns import PATTERNS_MAX, Pattern, Watch
from tests.conftest import HOST_CAPTURE


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


def test_the_option_bucket_and_the_part_of_one_bucket() -> None:
    found = watch("SET@a,DEL@b/k*", bucket="c", watch_bucket="{bucket}", keys="plain", js_domain="hub")
    assert found.patterns == (sets(b"a", b"c"), deletes_from(b"k", b"b"))
    assert (found.keys, found.domain) == ("plain", "hub")
    assert found.at(b"b") == Watch((deletes_from(b"k"),), b"b", "plain", "hub")
    assert watch("SET@a,DEL@b/k*").at(b"c") == Watch((sets(b"a"),), b"0")


def test_a_link_of_the_capture() -> None:
    link = json.loads(HOST_CAPTURE["watch_link_put"]["payload"])
    found = Watch.of(WatchingLinkOptions.from_config(link["source_config"])[0])
    assert found == Watch((sets(b"wkey"), deletes(b"wkey")), b"0")


def test_keys_and_buckets_are_not_shown() -> None:
    shown = repr(watch("SET@hush/hush*,DEL@hush", watch_bucket="hush"))
    assert "hush" not in shown
    assert "is_prefix=True" in shown
