"""Plain names: exactly the keys that NATS clients allow fit, and the messages are those that other programs write."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import LimitError
from keyvalue_replica.errors import UnfitNameError
from keyvalue_replica.layout import headers_of
from keyvalue_replica.plain_layout import PlainLayout, check_bucket_name

#: The rule of NATS clients, and that no two dots are side by side, which servers refuse.
ALLOWED = re.compile(rb"(?!.*\.\.)(?!\.)[-/_=.a-zA-Z0-9]+(?<!\.)", re.DOTALL)
keys = st.text("ab.-/_=\0 *>\xe9", max_size=6).map(str.encode) | st.binary(max_size=6)


@given(keys)
def test_a_key_that_nats_allows_is_unchanged_and_any_other_is_refused(key: bytes) -> None:
    layout = PlainLayout("kv", b"hub/kv")
    if ALLOWED.fullmatch(key):
        subject = layout.subject(b"hub/kv", key)
        assert subject == b"$KV.kv." + key
        assert layout.names(subject) == (b"hub/kv", key) == (layout.bucket_of(b"any"), layout.key_of(key))
    else:
        with pytest.raises(UnfitNameError, match=r"\(keys=plain\)$"):
            layout.subject(b"hub/kv", key)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (b"", "the key is empty"),
        (b"a b", "the key has the character ' ' at byte 1; NATS allows letters, digits and - / _ = ."),
        ("aé".encode(), "the character 'é' at byte 1"),
        (b"a.*", r"the character '\*' at byte 2"),
        (b"a..b", "the key begins or ends with a dot, or has two dots side by side"),
        (b"_kv.wrpc.00", "the key begins with _kv.wrpc., which the provider uses itself"),
    ],
)
def test_an_error_names_what_is_not_allowed(key: bytes, text: str) -> None:
    with pytest.raises(UnfitNameError, match=text):
        PlainLayout("kv", b"kv").subject(b"kv", key)


def test_a_long_key_is_refused_with_the_limit() -> None:
    layout = PlainLayout("kv", b"kv")
    assert len(layout.subject(b"kv", b"k" * 3_993)) == 4_000
    with pytest.raises(LimitError, match="are 4001 bytes in a NATS subject; the limit is 4000"):
        layout.subject(b"kv", b"k" * 3_994)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a.b", "'.' at byte 1"),
        (b"", "is 0 bytes"),
        (b"a" * 201, "is 201 b"),
        (b"LATTICEDATA_default", "the state of wasmCloud itself"),
    ],
)
def test_the_name_of_a_kv_bucket_is_checked(name: bytes, text: str) -> None:
    assert check_bucket_name(b"A_-9") == "A_-9"
    with pytest.raises(UnfitNameError, match=text):
        check_bucket_name(name)


def test_barriers_are_no_keys() -> None:
    layout = PlainLayout("kv", b"kv")
    barrier = layout.barrier("a1")
    assert layout.is_internal(barrier)
    assert layout.names(barrier) is None
    with pytest.raises(ValueError, match=r"^$"):
        layout.key_of(barrier.removeprefix(b"$KV.kv."))


def test_a_delete_is_a_purge_as_keyvalue_nats_makes_it() -> None:
    """async-nats' `purge`, which keyvalue-nats calls, writes these two headers."""
    layout = PlainLayout("kv", b"kv")
    purge = {b"kv-operation": b"PURGE", b"nats-rollup": b"sub"}
    assert headers_of(b"NATS/1.0\r\n" + layout.delete_headers + b"\r\n") == purge | {
        b"nats-ttl": b"3600s",
        b"nats-marker-reason": b"Remove",
    }
    layout.allow(ttl=False, batches=False)
    assert headers_of(b"NATS/1.0\r\n" + layout.delete_headers + b"\r\n") == purge
    assert b"TTL" not in layout.barrier_block
