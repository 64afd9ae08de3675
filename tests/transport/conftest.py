"""Fixtures that the tests of the interfaces and of the direct path share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Yield an event loop that never runs. Only its clock is used."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
