"""The direct path's tests run twice: with what is learnt about frames that are alike, and with each frame taken apart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial

import pytest

from tests.transport.nats.direct.scene import Direct, NewDirect


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that is asked for its time alone."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module", params=[True, False], ids=["alike", "apart"])
def new_direct(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop) -> NewDirect:
    return partial(Direct, loop, request.param)


@pytest.fixture
def direct(new_direct: NewDirect) -> Direct:
    return new_direct()
