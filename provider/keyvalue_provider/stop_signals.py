"""Handlers for SIGTERM and SIGINT. The first signal stops the process cleanly. A second signal ends it immediately."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from keyvalue_provider.outer_process import OuterProcess

__all__ = ["stop_at_signals"]

log = logging.getLogger("keyvalue_provider")


def stop_at_signals(stop_requested: asyncio.Event, outer: OuterProcess) -> list[int]:
    """Install the signal handlers in the running loop. Return a list to which the handlers append each signal."""
    came: list[int] = []

    def stop(number: int) -> None:
        if outer.is_echo(number):
            return
        if came:
            os._exit(128 + number)
        came.append(number)
        log.info("%s: stopping; send a second signal to exit at once", signal.Signals(number).name)
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return came
