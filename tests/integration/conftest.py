"""Fixtures that several tests of connections in this process share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.log_lines import LogLines


@pytest.fixture
async def log_lines() -> AsyncIterator[LogLines]:
    """Collect the lines that the transport logs."""
    with LogLines.of("keyvalue_transport") as lines:
        yield lines
