"""The changes that a store reports to observers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from keyvalue_engine.entry import Entry

__all__ = ["DEADLINE", "DELETE", "EVICT", "EXPIRE", "PERSIST", "SET", "Change", "Observer", "ObserverOf"]

#: The kind of a change. Kinds are plain ints, because comparing enums would slow down every watched write.
Change: TypeAlias = int
#: The key was written by set, set_many, increment or update, with or without a deadline.
SET = 0
#: The key's deadline was removed. Its value is unchanged.
PERSIST = 1
#: The key was deleted.
DELETE = 2
#: The key was removed because its deadline had passed.
EXPIRE = 3
#: The key was removed to make room for a write, because the store or a quota was full.
EVICT = 4
#: The key's deadline was set or changed. Its value is unchanged.
DEADLINE = 5

#: A function that the store calls for each change in a bucket: observer(change, bucket, key, entry).
#:
#: `entry` is the key's new entry: its value (bytes), or a tuple of its value and its deadline. The entry is None after
#: DELETE, EXPIRE and EVICT, never a tuple after PERSIST, and always one after DEADLINE. The deadline is in nanoseconds on the store's clock
#: (`Store(clock=...)`). Times from the default clock, `time.monotonic_ns`, have no meaning in another process.
#:
#: The store calls the observer once, after the change. The call runs in the thread that made the change, which still
#: holds the stripe of the key's shard. So changes to one key are reported in order. Changes to different keys may be
#: reported at the same time, from several threads. An observer must not block, raise, or use the store.
#:
#: An expired key is reported when the store removes the key. The removal may come long after the deadline, but always
#: before the key's next change. Refused writes are not reported, and neither are keys that a split moves.
Observer: TypeAlias = Callable[[Change, bytes, bytes, Entry | None], None]

#: A function that returns the observer of the bucket with this name, or None for no observer.
ObserverOf: TypeAlias = Callable[[bytes], Observer | None]
