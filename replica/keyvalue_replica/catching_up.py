"""Waits until an instance has caught up: everything in the stream is delivered, and then the position is whole.

With one replica, the last delivery makes the position whole. Otherwise only a barrier does (`position.py`). A stream that
is full, or that the user may not publish to, refuses barriers. So the second wait may be long, and reads nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic

from keyvalue_replica.core import Core

__all__ = ["CATCHING_UP", "wait_delivered", "wait_whole"]

log = logging.getLogger(__name__)

#: The beginning of what is told.
CATCHING_UP = "catching up"
POLL_S = 0.01
#: Seconds between two log lines while messages are delivered.
PROGRESS_S = 5.0
#: Seconds between two barriers that find out why the position is not whole.
PROBE_S = 1.0


async def wait_delivered(core: Core, tell: Callable[[str], None]) -> None:
    """Wait until the consumer has nothing more to deliver.

    :param tell: called again and again with what is missing; an error that it raises ends the wait
    """
    position, logged_s = core.position, monotonic()
    while position.pending and not position.is_whole:
        text = f"{CATCHING_UP}, {position.pending} left"
        tell(text)
        if monotonic() - logged_s > PROGRESS_S:
            logged_s = monotonic()
            log.info("replica: %s", text)
        await asyncio.sleep(POLL_S)


async def wait_whole(core: Core, tell: Callable[[str], None]) -> None:
    """Wait until a barrier makes the position whole.

    :param tell: as above
    """
    text, asked_s = f"{CATCHING_UP}, 1 left", monotonic()

    def note(error: Exception | None) -> None:
        nonlocal text
        if error is not None:
            text = f"{CATCHING_UP}, but a barrier failed: {error}"

    while not core.position.is_whole:
        tell(text)
        if monotonic() - asked_s > PROBE_S:
            asked_s = monotonic()
            core.after_barrier(note)
        await asyncio.sleep(POLL_S)
