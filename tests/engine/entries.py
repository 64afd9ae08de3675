"""What tests see of a bucket's entries: values and deadlines, expired or not."""

from __future__ import annotations

from keyvalue_engine import Store
from keyvalue_engine.entry import Entry
from keyvalue_engine.shard import Shard


def shards_of(store: Store, name: bytes = b"b") -> list[Shard]:
    """Shards of a bucket in the ring's order; none where there is no such bucket."""
    table = store._tables.by_name.get(name)
    return [] if table is None else list(table.shards())


def entries_of(store: Store, name: bytes = b"b") -> dict[bytes, Entry]:
    """All entries of a bucket that take memory."""
    return {key: entry for shard in shards_of(store, name) for key, entry in shard.entries.items()}


def values_of(store: Store, name: bytes = b"b") -> dict[bytes, bytes]:
    """All values of a bucket that take memory."""
    return {key: entry[0] if isinstance(entry, tuple) else entry for key, entry in entries_of(store, name).items()}


def deadlines_of(store: Store, name: bytes = b"b") -> dict[bytes, int]:
    """Deadlines of a bucket's keys, of those that have one."""
    return {key: entry[1] for key, entry in entries_of(store, name).items() if isinstance(entry, tuple)}
