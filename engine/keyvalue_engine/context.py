"""Own the types between a table and its shards: what shards share, and a copy of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from keyvalue_engine.entry import Entry
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.ledger import Account

__all__ = ["Context", "Copy"]


class Context(NamedTuple):
    """What all shards of a bucket share. It is never changed.

    :ivar position_of: `hash_function` with the seed; batches call that itself, which is cheaper
    """

    position_of: Callable[[bytes], int]
    hash_function: Callable[[bytes, int], int]
    seed: int
    account: Account
    expiry: Expiry


class Copy(NamedTuple):
    """Keys of a shard with what they hold, as of one moment, and the end of its arc."""

    entries: list[tuple[bytes, Entry]]
    end: int
