"""The engine: a sharded, lock-striped key-value store in memory, with ordered keys and cursors that need no state.

>>> from engine import Store
>>> bucket = Store().bucket(b"b")
>>> bucket.set(b"k", b"v")
>>> bucket.get(b"k")
b'v'

Synchronous and thread-safe; knows nothing of asyncio, NATS, wRPC, metrics or wasmCloud. Start reading at `engine.store`, whose header
explains the order of keys and the cursor, then `table`, `shard`.
"""

from engine.errors import CrowdedPositionError, LimitError, NoSuchBucketError, SnapshotError, StoreError
from engine.options import StoreOptions
from engine.store import Bucket, Page, Store

__all__ = [
    "Bucket",
    "CrowdedPositionError",
    "LimitError",
    "NoSuchBucketError",
    "Page",
    "SnapshotError",
    "Store",
    "StoreError",
    "StoreOptions",
]
