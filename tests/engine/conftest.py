"""Fixtures of the engine's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.engine.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Make threads take turns as often as the interpreter allows."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
