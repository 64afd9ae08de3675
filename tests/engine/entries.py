"""Helpers that show tests a bucket's entries: values and deadlines, expired or not."""

from __future__ import annotations

from keyvalue_engine import Store
from keyvalue_engine.entry import Entry
from keyvalue_engine.shard import Shard


def shards_of(store: Store, name: bytes = b"b") -> list[Shard]:
    """Return a bucket's shards in the ring's order, or nothing for an unknown bucket."""
    table = store._tables.by_name.get(name)
    return [] if table is None else list(table.shards())


def entries_of(store: Store, name: bytes = b"b") -> dict[bytes, Entry]:
    """Return all entries of a bucket that take memory."""
    return {key: entry for shard in shards_of(store, name) for key, entry in shard.entries.items()}


def values_of(store: Store, name: bytes = b"b") -> dict[bytes, bytes]:
    """Return all values of a bucket that take memory."""
    return {key: entry[0] if isinstance(entry, tuple) else entry for key, entry in entries_of(store, name).items()}


def deadlines_of(store: Store, name: bytes = b"b") -> dict[bytes, int]:
    """Return the deadlines of a bucket's keys that have one."""
    return {key: entry[1] for key, entry in entries_of(store, name).items() if isinstance(entry, tuple)}
