"""Own the shape of a change, as an observer is told of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from keyvalue_engine.entry import Entry

__all__ = ["DELETE", "EXPIRE", "PERSIST", "SET", "Change", "Observer", "ObserverOf"]

#: The kind of a change. Plain ints: an enum's members cost more to compare, and every watched write compares one.
Change: TypeAlias = int
#: The key got a value, and the deadline that comes with it or none: by set, set_many or increment.
SET = 0
#: The key's deadline was taken away; its value is as before.
PERSIST = 1
#: The key was deleted.
DELETE = 2
#: The key was removed because its deadline had passed.
EXPIRE = 3

#: Told of a change in a bucket: observer(change, bucket, key, entry).
#:
#: `entry` is what the key now holds: its value (bytes), or a tuple of its value and its deadline. It is None after DELETE and EXPIRE, and
#: never a tuple after PERSIST. The deadline is in nanoseconds of the store's clock (`Store(clock=...)`; by default
#: `time.monotonic_ns`, which means nothing in another process).
#:
#: Called once for each change, after the change, in the thread that made it, under the stripe of the key's shard. So changes of one key come
#: in their order; those of different keys may come at the same time, from several threads. It must not block, raise, or use the store.
#: An expired key is told of when it is removed, which may be long after its deadline, but before the key's next change.
#: Nothing is told of what a split moves, or of a write that was refused.
Observer: TypeAlias = Callable[[Change, bytes, bytes, Entry | None], None]

#: Returns the observer of the bucket of this name, or None for no observer.
ObserverOf: TypeAlias = Callable[[bytes], Observer | None]
