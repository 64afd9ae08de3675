"""Fixtures of the direct path, which learns the shapes of frames here.

`test_fuzz.py` compares it with one that does not.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from functools import partial

import pytest

from keyvalue_transport.nats.direct import alike, protocol
from keyvalue_transport.nats.direct.read_flow import ReadFlow
from tests.transport.nats.direct.scene import Direct, NewDirect


@pytest.fixture(scope="package", autouse=True)
def _turns_never_end() -> Iterator[None]:
    """Make the pauses of reading independent of the speed of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "ReadFlow", partial(ReadFlow, turn_s=math.inf))
        yield


@pytest.fixture(scope="package", autouse=True)
def _runs_are_short() -> Iterator[None]:
    """Let the few frames of a case be a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "RUN_FRAMES_MIN", alike.BEGUN_FRAMES_MIN)
        yield


@pytest.fixture(scope="module")
def new_direct(loop: asyncio.AbstractEventLoop) -> NewDirect:
    return partial(Direct, loop)


@pytest.fixture
def direct(new_direct: NewDirect) -> Direct:
    return new_direct()
