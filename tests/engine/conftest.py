"""Fixtures of the engine's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from keyvalue_engine import bucket, counted_entries
from tests.engine.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def few_keys_count_ahead() -> Iterator[None]:
    """Let each shard of two keys hold room ahead, but little of it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AHEAD_KEYS", 2), ("AHEAD_BYTES", 400), ("FREE_KEYS_MAX", 3)):
            patch.setattr(counted_entries, name, value)
        for module in (counted_entries, bucket):
            patch.setattr(module, "FREE_BYTES_MAX", 500)
            patch.setattr(module, "SHARD_KEYS_MIN", 2)
        yield


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Make threads take turns as often as the interpreter allows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
