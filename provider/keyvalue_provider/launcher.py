"""The process that launched the provider: a host, or a script that writes host data.

    installed command    launcher ── starts ──> this process
    executable           launcher ── starts ──> outer process ── starts ──> this process

A host that is killed does not stop its providers. A new host then starts another provider with the same key. NATS would
distribute the calls to both, and each has its own data. So a provider stops when its launcher ends.

The launcher may end before this process looks. Then another process has adopted the launched process, usually the
process with id 1. That process may also be a real launcher, as in a container whose only program is the host. The
sessions tell them apart: a process inherits the session of the process that starts it, unless it begins its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from keyvalue_provider.ancestor import Ancestor
from keyvalue_provider.outer_process import OuterProcess

if TYPE_CHECKING:
    import asyncio  # only for type checkers, so that `--help` does not wait for this import

__all__ = ["Launcher"]

#: The id of a parent that is outside this container, which cannot be watched. It is also our sign for an unknown parent.
OUTSIDE_PID = 0


class Launcher:
    """The process that launched the provider. Create this object first, because the launcher may end at any time."""

    def __init__(self, outer: OuterProcess) -> None:
        launched = os.getpid() if outer.pid is None else outer.pid
        self._process = Ancestor(lambda: _parent_of(outer.pid))
        self._ended_before = self._process.pid != OUTSIDE_PID and _is_adopted(launched, self._process.pid)

    def watch(self, loop: asyncio.AbstractEventLoop, on_end: Callable[[], object]) -> None:
        """Call `on_end` once in the loop when the launcher ends. If it has ended already, call `on_end` soon.

        If the launcher is unknown, or is outside this container, do nothing.
        """
        if self._ended_before:
            loop.call_soon(on_end)
        elif self._process.pid != OUTSIDE_PID:
            self._process.watch(loop, on_end)


def _parent_of(outer_pid: int | None) -> int:
    """Return the id of the parent of the outer process, or of this process if there is no outer process."""
    if outer_pid is None:
        return os.getppid()
    try:
        stat = Path(f"/proc/{outer_pid}/stat").read_text(errors="replace")
    except OSError:  # the outer process has ended, or there is no /proc
        return OUTSIDE_PID
    return int(stat.rpartition(")")[2].split()[1])  # the fields after the program's name are the state and the parent


def _is_adopted(launched: int, parent: int) -> bool:
    """Return True if the parent of the launched process has adopted it, and did not start it."""
    try:
        session = os.getsid(launched)
        return session not in (launched, os.getsid(parent))
    except OSError:  # a process has ended, or belongs to another user
        return False
