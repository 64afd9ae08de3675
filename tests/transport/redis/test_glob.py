"""Patterns. tests/integration/test_redis_beside_redis.py compares them with a real server's."""

from __future__ import annotations

from time import process_time

import pytest

from keyvalue_transport.redis.glob import matcher


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        (b"app:*", [b"app:", b"app:1\n"], [b"app", b"xapp:"]),
        (b"*", [b"", b"a"], []),
        (b"", [b""], [b"a"]),
        (b"a*b*c", [b"abc", b"a-b-b-c"], [b"ab", b"acb"]),
        (b"\\*", [b"*"], [b"a"]),
        (b"[]", [], [b"]", b""]),
        (b"[^]", [b"a"], [b""]),
    ],
)
def test_patterns(pattern: bytes, matching: list[bytes], others: list[bytes]) -> None:
    matches = matcher(pattern) or (lambda key: True)
    assert all(matches(key) for key in matching)
    assert not any(matches(key) for key in others)


def test_no_pattern_takes_long() -> None:
    """Each star would multiply the time if matching went back."""
    began_s = process_time()
    matches = matcher(b"a*" * 100 + b"b")
    assert matches is not None
    assert not matches(b"a" * 10_000)
    assert process_time() - began_s < 2
