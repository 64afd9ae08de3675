"""The changes that a store reports to observers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from keyvalue_engine.entry import Entry

__all__ = ["DELETE", "EXPIRE", "PERSIST", "SET", "Change", "Observer", "ObserverOf"]

#: The kind of a change. These are plain ints, because every watched write compares one, and an enum is slower.
Change: TypeAlias = int
#: The key was written by set, set_many or increment, with or without a deadline.
SET = 0
#: The key's deadline was removed. Its value is unchanged.
PERSIST = 1
#: The key was deleted.
DELETE = 2
#: The key was removed because its deadline had passed.
EXPIRE = 3

#: A function that the store calls for each change in a bucket: observer(change, bucket, key, entry).
#:
#: `entry` is what the key now holds: its value (bytes), or a tuple of its value and its deadline. It is None after
#: DELETE and EXPIRE, and never a tuple after PERSIST. The deadline is in nanoseconds of the store's clock
#: (`Store(clock=...)`). The default clock, `time.monotonic_ns`, has no meaning in another process.
#:
#: The call comes once, after the change, in the thread that made the change, under the stripe of the key's shard. So
#: changes of one key come in order. Changes of different keys may come at the same time from several threads. An
#: observer must not block, raise, or use the store.
#:
#: An expired key is reported when it is removed. That may be long after its deadline, but before the key's next
#: change. Keys that a split moves and writes that were refused are not reported.
Observer: TypeAlias = Callable[[Change, bytes, bytes, Entry | None], None]

#: Returns the observer of the bucket of this name, or None for no observer.
ObserverOf: TypeAlias = Callable[[bytes], Observer | None]
