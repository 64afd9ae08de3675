"""Locks that an interrupt does not leave held.

A signal handler may raise an exception, such as KeyboardInterrupt, when a function begins and after a call of a C
function. If it raises one between `acquire` and a following `try`, the lock stays held for ever. So hot code acquires the
lock inside `try`:

    try:
        lock.acquire()
        ...
    except BaseException:
        if owns(lock):
            lock.release()
        raise
    lock.release()

`acquire` also fails if the signal came while the thread waited. Then the thread does not own the lock. Only an RLock
knows its owner. A `with` statement is as safe and shorter, but costs 70 ns more, so other code uses it.
"""

from __future__ import annotations

from threading import RLock

__all__ = ["owns"]


def owns(lock: RLock) -> bool:
    """Return True if this thread holds the lock."""
    is_owned: bool = lock._is_owned()  # type: ignore[attr-defined]  # the stubs lack the method
    return is_owned
