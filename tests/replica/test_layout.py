"""Subjects and headers: any names fit, and no two keys share a subject."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import LimitError
from keyvalue_replica.layout import TTL_S_MAX, Layout, delete_headers, headers_of, lifetime_ns, ttl_headers

names = st.binary(max_size=40)


@given(names, names)
def test_every_name_comes_back_and_fits_into_a_subject(bucket: bytes, key: bytes) -> None:
    layout = Layout("kv")
    subject = layout.subject(bucket, key)
    assert Layout("kv").names(subject) == (bucket, key)
    assert not layout.is_internal(subject)
    allowed = b"$-_.0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert not subject.strip(allowed)
    assert b".." not in subject


@given(st.binary(max_size=60))
def test_other_subjects_are_no_keys(rest: bytes) -> None:
    layout = Layout("kv")
    names = layout.names(b"$KV.kv." + rest)
    assert names is None or len(names) == 2
    assert layout.names(layout.barrier("a1")) is None
    assert layout.is_internal(layout.barrier("a1"))
    assert layout.barrier("a1").count(b".") == 4, "`*.*` matches only keys"


def test_long_names_are_refused_with_the_limit() -> None:
    layout = Layout("kv")
    layout.subject(b"b" * 100, b"k" * 2_800)
    with pytest.raises(LimitError, match=r"bucket and key are \d+ bytes in a NATS subject; the limit is 4000"):
        layout.subject(b"b" * 100, b"k" * 2_900)


@pytest.mark.parametrize(
    ("ttl_ms", "seconds"), [(1, b"1s"), (1000, b"1s"), (1001, b"2s"), (2**63 // 10**6, b"4928404740s")]
)
def test_a_time_to_live_is_exact_for_us_and_rounded_up_for_the_server(ttl_ms: int, seconds: bytes) -> None:
    found = headers_of(b"NATS/1.0\r\n" + ttl_headers(ttl_ms) + b"\r\n")
    assert found == {b"kv-ttl-ms": b"%d" % ttl_ms, b"nats-ttl": seconds, b"nats-rollup": b"sub"}


@given(st.binary(max_size=100))
def test_any_block_is_read(block: bytes) -> None:
    assert all(isinstance(value, bytes) for value in headers_of(b"NATS/1.0" + block).values())
    assert headers_of(b"NATS/1.0\r\n" + delete_headers(5) + b"\r\n")[b"kv-operation"] == b"DEL"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"5s", 5),
        (b"5", 5),
        (b"1h", 3600),
        (b"2m3s", 123),
        (b"1h0m0s", 3600),
        (b"1500ms", 1),
        (b"1.5s", 1),
        (b"0.5m500ms1.50s", 32),
        (b"+.5h", 1800),
        (b"1.h", 3600),
        ("1999999µs".encode(), 1),
        (b"3000000000ns", 3),
        (b"999ms", None),
        (b"9" * 18, TTL_S_MAX),
        (b"9" * 18 + b"h", TTL_S_MAX),
        (b"9" * 19, None),
        (b"9" * 5_000 + b"s", None),
        (b"1." + b"9" * 5_000 + b"s", 1),
        (b"1ms" * 20_000 + b"x", None),
        (b"never", None),
        (b"", None),
        (b"-1s", None),
        (b".s", None),
        (b"s", None),
        (b"1.5", None),
        (b"1x", None),
    ],
)
def test_the_time_to_live_of_other_clients_is_read(text: bytes, seconds: int | None) -> None:
    assert lifetime_ns({b"nats-ttl": text}) == (None if seconds is None else seconds * 10**9)
    assert lifetime_ns({b"nats-ttl": text, b"kv-ttl-ms": b"1500"}) == 1_500_000_000
    assert lifetime_ns({b"nats-ttl": text, b"kv-ttl-ms": b"9" * 5_000}) == lifetime_ns({b"nats-ttl": text})


def test_every_deadline_fits_into_64_bits() -> None:
    lifetimes = [lifetime_ns({name: b"9" * 18}) for name in (b"nats-ttl", b"kv-ttl-ms")]
    assert lifetimes == [TTL_S_MAX * 10**9] * 2
    assert 2_000_000_000 * 10**9 + TTL_S_MAX * 10**9 < 2**63, "the timestamp is before 2033"


@pytest.mark.parametrize("text", [b"never", b"Never", b"NEVER"])
def test_a_message_may_outlive_the_age_of_its_stream(text: bytes) -> None:
    assert lifetime_ns({b"nats-ttl": text}, 7 * 10**9) is None
