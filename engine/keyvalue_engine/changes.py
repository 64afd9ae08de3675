"""Own the shape of a change, as an observer is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Observer", "ObserverOf"]

#: Told of a change: bucket, key, and the value, or None where the key was deleted or has expired. Called under the stripe, so in the
#: order of writes to a key: it must not block, nor raise, nor use the store.
Observer: TypeAlias = Callable[[bytes, bytes, bytes | None], None]

#: Returns the observer of the bucket of this name, or None for no observer.
ObserverOf: TypeAlias = Callable[[bytes], Observer | None]
