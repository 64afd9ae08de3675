"""The signals that the provider handles.

    SIGTERM, SIGINT    stop the provider in order; a second one ends the process immediately
    SIGHUP             stops the provider in order, for example when the terminal is closed
    SIGUSR1            saves a snapshot
    SIGUSR2            logs a status line
    SIGRTMIN           reads the configuration of `serve` again; SIGHUP has another use

A terminal that is closed can send several SIGHUPs: the system sends one, and the shell another. So a SIGHUP never ends
the process immediately. It is ignored if it was ignored at the start, as with `nohup`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from keyvalue_provider.observe.log import flush_log, log_always
from keyvalue_provider.outer_process import OuterProcess

__all__ = ["Signals", "ignore_requests", "unless_stopped"]

log = logging.getLogger("keyvalue_provider")

T = TypeVar("T")

#: Asks to read the configuration again. Only Linux has this signal.
RELOAD: signal.Signals | None = getattr(signal, "SIGRTMIN", None)
#: Time limit for writing the last lines of the log before the process ends immediately.
FLUSH_TIMEOUT_S = 0.1


class Signals:
    """The handlers of the signals, in the running loop.

    :ivar came: the signals that asked the provider to stop
    :ivar save: saves a snapshot
    :ivar status: returns the status line, without the name of the signal
    :ivar read_again: reads the configuration again
    """

    def __init__(self, stop_requested: asyncio.Event, outer: OuterProcess) -> None:
        self.came: list[int] = []
        self.save: Callable[[], object] = _refuse_to_save
        self.status: Callable[[], str] = lambda: "starting"
        self.read_again: Callable[[], object] = lambda: log.warning("SIGRTMIN: ignored while starting")
        self._stop_requested = stop_requested
        self._outer = outer
        handlers: dict[signal.Signals, Callable[[signal.Signals], object]] = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._hang_up,
            signal.SIGUSR1: lambda _: self.save(),
            signal.SIGUSR2: lambda _: log_always(log, f"SIGUSR2: {self.status()}"),
        }
        if RELOAD is not None:
            handlers[RELOAD] = lambda _: self.read_again()
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del handlers[signal.SIGHUP]
        for number, handle in handlers.items():
            asyncio.get_running_loop().add_signal_handler(number, self._handle, number, handle)

    def _handle(self, number: signal.Signals, handle: Callable[[signal.Signals], object]) -> None:
        if not self._outer.is_echo(number):
            handle(number)

    def _stop(self, number: signal.Signals) -> None:
        if any(before is not signal.SIGHUP for before in self.came):
            flush_log(FLUSH_TIMEOUT_S)
            os._exit(128 + number)
        self.came.append(number)
        log.info("%s: stopping; send a second signal to exit at once", number.name)
        self._stop_requested.set()

    def _hang_up(self, number: signal.Signals) -> None:
        if not self.came:
            log.info("%s: stopping", number.name)
        self.came.append(number)
        self._stop_requested.set()


def ignore_requests(*more: signal.Signals) -> None:
    """Ignore SIGUSR1, SIGUSR2, SIGRTMIN and `more` while no loop handles them. By default, they end the process."""
    for number in (signal.SIGUSR1, signal.SIGUSR2, *(() if RELOAD is None else (RELOAD,)), *more):
        signal.signal(number, signal.SIG_IGN)


def _refuse_to_save() -> None:
    log.warning("SIGUSR1: no snapshot is saved, because that needs store=memory and the option snapshot_path")


async def unless_stopped(starting: Coroutine[Any, Any, T], stop_requested: asyncio.Event) -> T | None:
    """Return the result of a step of the start. Return None if a stop is requested before the step is done."""
    step = asyncio.create_task(starting)
    stopping = asyncio.create_task(stop_requested.wait())
    await asyncio.wait((step, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if step.done():
        return step.result()
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)  # an error does not matter any more
    return None
