"""The invariants of a shard, and its memory, recalculated from the entries. Only checks and tests use them."""

from __future__ import annotations

from keyvalue_engine import counted_entries
from keyvalue_engine.entry import entry_size
from keyvalue_engine.long_keys import long_bytes
from keyvalue_engine.shard import Shard

__all__ = ["check_shard", "entries_bytes", "memory_bytes"]


def check_shard(shard: Shard) -> None:
    """Assert every invariant of a shard that is not retired. O(n)."""
    assert not shard.retired
    assert 0 <= shard.start < shard.end <= 1 << 64
    assert shard.start % (1 << (64 - shard.depth)) == 0
    for key, entry in shard.entries.items():
        assert type(key) is bytes
        assert type(entry[0] if isinstance(entry, tuple) else entry) is bytes
        assert type(entry) is bytes or shard.deadlines is not None
        assert shard.start <= shard.context.position_of(key) < shard.end
    assert long_bytes(shard.entries) <= shard.long_bytes
    ahead = shard.counted_keys - len(shard.entries), shard.free_bytes
    assert min(ahead) >= 0
    assert shard.is_ahead is (shard in shard.context.account.ledger.ahead)
    if any(ahead):
        assert shard.is_ahead
        assert shard.order is None
        assert shard.deadlines is None
        assert len(shard.entries) >= counted_entries.SHARD_KEYS_MIN
    if shard.deadlines is not None:
        shard.deadlines.check()
        assert shard.deadlines.count, "`deadlines` is None if no key has a deadline"
    if shard.order is not None:
        shard.order.check()


def entries_bytes(shard: Shard) -> int:
    """Return the memory that the account should count for a shard. O(n)."""
    key_bytes = shard.context.account.key_bytes
    return shard.free_bytes + sum(key_bytes + entry_size(*entry) for entry in shard.entries.items())


def memory_bytes(shard: Shard) -> int:
    """Return the memory that the ledger should count for a shard. O(n)."""
    order_bytes = 0 if shard.order is None else shard.order.counted_bytes
    deadlines_bytes = 0 if shard.deadlines is None else shard.deadlines.counted_bytes
    return shard.fixed_bytes + order_bytes + deadlines_bytes + entries_bytes(shard)
