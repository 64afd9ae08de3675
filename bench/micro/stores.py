"""Stores of so many keys, each beside a dict of the same, and the turns of calls to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bench.engine import VALUE_BYTES, LockedDict, Subject, fresh, shuffled_keys, tune_collector
from bench.micro.turns import ROUNDS
from engine import Bucket, Store

__all__ = [
    "KEY_COUNTS",
    "TURN_KEYS",
    "Filled",
    "LargerDict",
    "delete_all",
    "entries_of_turn",
    "fill",
    "get_all",
    "keys_of_turn",
    "set_all",
    "value",
]

KEY_COUNTS = (10_000, 100_000, 1_000_000)
#: Calls of a round at any number of keys, so that their times can be compared. A round of deletes leaves four fifths of the smallest store.
#: Caches are cold when a round begins: at a million keys a get took 1.40 times a dict's, 1.27 in rounds of 20,000.
TURN_KEYS = 2_000

Entries = list[tuple[bytes, bytes]]


class Deletable(Protocol):
    def delete(self, key: bytes, /) -> bool: ...


class LargerDict(LockedDict):
    """With what the micro benchmarks need besides."""

    def delete(self, key: bytes) -> bool:
        with self._lock:
            return self._entries.pop(key, None) is not None


@dataclass(frozen=True)
class Filled:
    """`keys` are in both. `absent` are in neither: enough for all rounds."""

    keys: list[bytes]
    absent: list[bytes]
    store: Store
    bucket: Bucket
    plain: LargerDict

    def put(self, keys: list[bytes]) -> None:
        for key in keys:
            self.bucket.set(fresh(key), value())
            self.plain.set(fresh(key), value())

    def remove(self, keys: list[bytes]) -> None:
        for key in keys:
            self.bucket.delete(key)
            self.plain.delete(key)


def fill(count: int) -> Filled:
    """A store and a dict of so many keys. Nobody has listed them yet."""
    keys = shuffled_keys(count + ROUNDS * TURN_KEYS)
    store = Store()
    filled = Filled(keys[:count], keys[count:], store, store.bucket(b"bench"), LargerDict())
    filled.put(filled.keys)
    tune_collector()
    return filled


def value() -> bytes:
    return bytes(bytearray(VALUE_BYTES))


def keys_of_turn(keys: list[bytes], turn_keys: int = TURN_KEYS) -> Callable[[int], list[bytes]]:
    """The keys of each turn, as a decoder makes them. They begin again when there are no more."""
    turns = len(keys) // turn_keys
    return lambda turn: [fresh(key) for key in keys[turn % turns * turn_keys : (turn % turns + 1) * turn_keys]]


def entries_of_turn(keys: list[bytes], turn_keys: int = TURN_KEYS) -> Callable[[int], Entries]:
    of_turn = keys_of_turn(keys, turn_keys)
    return lambda turn: [(key, value()) for key in of_turn(turn)]


def get_all(subject: Subject) -> Callable[[list[bytes]], None]:
    get = subject.get

    def act(keys: list[bytes]) -> None:
        for key in keys:
            get(key)

    return act


def set_all(subject: Subject) -> Callable[[Entries], None]:
    set_value = subject.set

    def act(entries: Entries) -> None:
        for key, value in entries:
            set_value(key, value)

    return act


def delete_all(subject: Deletable) -> Callable[[list[bytes]], None]:
    delete = subject.delete

    def act(keys: list[bytes]) -> None:
        for key in keys:
            delete(key)

    return act
