"""The engine: an in-memory key-value store with shards, lock striping, ordered keys and stateless cursors.

>>> from keyvalue_engine import Store
>>> bucket = Store().bucket(b"b")
>>> bucket.set(b"k", b"v")
>>> bucket.get(b"k")
b'v'

The engine is synchronous and thread-safe. It does not depend on asyncio, NATS, wRPC, metrics or wasmCloud. Start
reading at `keyvalue_engine.store`, which explains the order of keys and the cursor. Then read `tables`, `table` and
`shard`. `changes` describes the changes that the store reports to an observer.
"""

from keyvalue_engine.bucket import Bucket, Page
from keyvalue_engine.changes import DEADLINE, DELETE, EVICT, EXPIRE, PERSIST, SET, Change, Observer, ObserverOf
from keyvalue_engine.entry import Entry
from keyvalue_engine.errors import (
    CounterError,
    FullError,
    LimitError,
    NoSuchBucketError,
    SnapshotError,
    StoreError,
)
from keyvalue_engine.options import BucketOptions, StoreOptions
from keyvalue_engine.quota import Quota, Reach
from keyvalue_engine.store import Store
from keyvalue_engine.updates import Revise, Revision

__all__ = [
    "DEADLINE",
    "DELETE",
    "EVICT",
    "EXPIRE",
    "PERSIST",
    "SET",
    "Bucket",
    "BucketOptions",
    "Change",
    "CounterError",
    "Entry",
    "FullError",
    "LimitError",
    "NoSuchBucketError",
    "Observer",
    "ObserverOf",
    "Page",
    "Quota",
    "Reach",
    "Revise",
    "Revision",
    "SnapshotError",
    "Store",
    "StoreError",
    "StoreOptions",
]
