"""Fixtures that several tests of the provider share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Yield the root logger, and restore the log afterwards."""
    root, asyncio_log = logging.getLogger(), logging.getLogger("asyncio")
    handlers, level, asyncio_level = root.handlers[:], root.level, asyncio_log.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    asyncio_log.setLevel(asyncio_level)
