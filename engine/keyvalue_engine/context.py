"""The context that all shards of a bucket share, and a copy of a shard."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from keyvalue_engine.entry import Entry
from keyvalue_engine.expiry import Expiry
from keyvalue_engine.kept_orders import KeptOrders
from keyvalue_engine.ledger import Account

__all__ = ["SECRET_BYTES", "Context", "Copy", "HashFunction"]

#: The length of a store's secret, which is a SipHash key.
SECRET_BYTES = 16
#: A function that returns the 64-bit position for (secret, key).
HashFunction = Callable[[bytes, bytes], int]


class Context(NamedTuple):
    """The objects that all shards of a bucket share.

    :ivar position_of: `hash_function` with the secret applied; batches call `hash_function` directly, which is faster
    """

    position_of: Callable[[bytes], int]
    hash_function: HashFunction
    secret: bytes
    account: Account
    expiry: Expiry
    orders: KeptOrders


class Copy(NamedTuple):
    """A shard's keys and their entries as of a single moment, and the end of the shard's arc."""

    keys: list[bytes]
    entries: list[Entry]
    end: int
