"""Filled stores, each with a dict of the same keys, and functions that make the calls of a round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bench.micro.locked_dict import KeyedStore, LockedDict, fresh, fresh_value, shuffled_keys, tune_collector
from bench.micro.turns import ROUNDS
from keyvalue_engine import Bucket, Store

__all__ = [
    "KEY_COUNTS",
    "TURN_KEYS",
    "Filled",
    "call_all",
    "entries_of_turn",
    "fill",
    "keys_of_turn",
    "set_all",
]

KEY_COUNTS = (10_000, 100_000, 1_000_000)
#: Calls per round. The number is the same for every store size, so that times can be compared. A round of deletes
#: leaves four fifths of the smallest store. Caches are cold when a round begins, which raises the ratios: with a
#: million keys, the ratio for get was 1.40, but only 1.27 in rounds of 20,000 calls.
TURN_KEYS = 2_000

Entries = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Filled:
    """A store and a dict with the same keys. `absent` has enough other keys to add new keys in every round."""

    keys: list[bytes]
    absent: list[bytes]
    store: Store
    bucket: Bucket
    plain: LockedDict

    def put(self, keys: list[bytes]) -> None:
        for key in keys:
            self.bucket.set(fresh(key), fresh_value())
            self.plain.set(fresh(key), fresh_value())

    def remove(self, keys: list[bytes]) -> None:
        for key in keys:
            self.bucket.delete(key)
            self.plain.delete(key)


def fill(count: int) -> Filled:
    """Return a store and a dict with `count` keys. No key order exists yet, because the keys were never listed."""
    keys = shuffled_keys(count + ROUNDS * TURN_KEYS)
    store = Store()
    filled = Filled(keys[:count], keys[count:], store, store.bucket(b"bench"), LockedDict())
    filled.put(filled.keys)
    tune_collector()
    return filled


def keys_of_turn(keys: list[bytes], turn_keys: int = TURN_KEYS) -> Callable[[int], list[bytes]]:
    """Return a function that returns the keys of a turn, as new objects. After the last turn, the keys repeat."""
    turns = len(keys) // turn_keys
    return lambda turn: [fresh(key) for key in keys[turn % turns * turn_keys : (turn % turns + 1) * turn_keys]]


def entries_of_turn(keys: list[bytes], turn_keys: int = TURN_KEYS) -> Callable[[int], Entries]:
    of_turn = keys_of_turn(keys, turn_keys)
    return lambda turn: [(key, fresh_value()) for key in of_turn(turn)]


def call_all(call: Callable[[bytes], object]) -> Callable[[list[bytes]], None]:
    def act(keys: list[bytes]) -> None:
        for key in keys:
            call(key)

    return act


def set_all(subject: KeyedStore) -> Callable[[Entries], None]:
    set_value = subject.set

    def act(entries: Entries) -> None:
        for key, value in entries:
            set_value(key, value)

    return act
