"""Fixtures of the direct path, which learns the shapes of frames here.

`test_fuzz.py` compares it with one that does not.
"""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from tests.transport.nats.direct.scene import Direct, NewDirect


@pytest.fixture(scope="module")
def new_direct(loop: asyncio.AbstractEventLoop) -> NewDirect:
    return partial(Direct, loop)


@pytest.fixture
def direct(new_direct: NewDirect) -> Direct:
    return new_direct()
