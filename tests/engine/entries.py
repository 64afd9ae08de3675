"""What tests see of a bucket's entries: values and deadlines, expired or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


class OvertakenEntries(dict[bytes, Entry]):
    """Entries of a shard behind whose look-ups, or writes, other calls get in: one behind each, as long as there are any."""

    def __init__(self, shard: Shard) -> None:
        super().__init__(shard.entries)
        self.behind_gets: list[Callable[[], object]] = []
        self.behind_writes: list[Callable[[], object]] = []
        shard.entries = self
        if shard.deadlines is not None:
            shard.deadlines._entries = self

    def get(self, key: bytes, default: Any = None) -> Any:
        entry = super().get(key, default)
        if self.behind_gets:
            self.behind_gets.pop(0)()
        return entry

    def __setitem__(self, key: bytes, entry: Entry) -> None:
        super().__setitem__(key, entry)
        if self.behind_writes:
            self.behind_writes.pop(0)()
