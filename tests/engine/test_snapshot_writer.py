"""Saves in steps: a model says what each shard holds when it is copied, and a writer may die at each system call."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keyvalue_engine import Store, StoreOptions
from keyvalue_engine.context import Copy
from keyvalue_engine.snapshot_writer import BLOCK_BYTES, CHUNK_BYTES, PARTS_MAX, SnapshotFile
from keyvalue_engine.table import Table
from tests.engine.clock import Clock

HOUR_MS = 3_600_000
NAMES = [b"a", b"b"]
KEYS = [b"%d" % number for number in range(60)]

#: The value of each key by bucket, and the time when it expires on the store's clock.
Model = dict[bytes, dict[bytes, tuple[bytes, int | None]]]


def change(store: Store, model: Model, clock: Clock, rng: Random) -> None:
    """Make a random change of the store and of the model."""
    name = rng.choice(NAMES)
    bucket, entries = store.bucket(name), model.setdefault(name, {})
    deadline_ns = None
    ttl_ms = rng.choice([None, None, HOUR_MS])
    if ttl_ms is not None:
        deadline_ns = clock.now_ns + ttl_ms * 1_000_000
    match rng.randrange(10):
        case 0:
            clock.move_ms(rng.choice([1, HOUR_MS // 2]))
        case 1:
            store.sweep(5)
        case 2:  # empty the bucket, which frees its table
            bucket.delete_many(list(entries))
            entries.clear()
        case 3:
            key = rng.choice(KEYS)
            bucket.delete(key)
            entries.pop(key, None)
        case 4:
            keys = rng.sample(KEYS, 20)
            bucket.set_many(dict.fromkeys(keys, b"batch"))
            entries.update(dict.fromkeys(keys, (b"batch", None)))
        case 5:  # merges shards
            keys = rng.sample(KEYS, 50)
            bucket.delete_many(keys)
            for key in keys:
                entries.pop(key, None)
        case _:
            key, value = rng.choice(KEYS), rng.randbytes(rng.choice([0, 3, 3, BLOCK_BYTES + 1]))
            bucket.set(key, value, ttl_ms)
            entries[key] = value, deadline_ns


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), changes=st.integers(0, 3))
def test_each_shard_is_saved_as_of_the_moment_of_its_copy(
    seed: int, changes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Change the store between the steps. The file has the keys that each arc of the ring held when it was copied."""
    rng, clock, model = Random(seed), Clock(), Model()
    options = StoreOptions(shards_min=1, shard_keys_max=4)
    store, expected, ends = Store(options, clock=clock), dict[tuple[bytes, bytes], bytes](), dict[bytes, int]()
    position_of = store._tables._position_of
    for _ in range(rng.randrange(60)):
        change(store, model, clock, rng)
    copy_shard = Table.copy_shard

    def noted_copy(table: Table, position: int) -> Copy:
        copy, name = copy_shard(table, position), table.account.name
        assert ends.get(name, 0) == position, "no arc is left out or copied twice"
        ends[name] = copy.end
        if store._tables.by_name.get(name) is table:  # otherwise the bucket was emptied after the save began
            for key, (value, deadline_ns) in model.get(name, {}).items():
                if position <= position_of(key) < copy.end and (deadline_ns is None or deadline_ns > clock.now_ns):
                    expected[name, key] = value
        return copy

    with monkeypatch.context() as patch, SnapshotFile(tmp_path / "snapshot") as file:
        patch.setattr(Table, "copy_shard", noted_copy)
        for parts in store.frames():
            file.add(parts)
            file.write()
            for _ in range(changes):
                change(store, model, clock, rng)
        file.commit()
    assert all(end == 2**64 for end in ends.values())
    loaded = Store.load(tmp_path / "snapshot", options)
    loaded.check()
    assert {(name, key): value for name in NAMES for key, value in loaded.bucket(name).items()} == expected
    assert loaded._tables.secret == store._tables.secret
    store.check()
    assert os.listdir(tmp_path) == ["snapshot"]


def test_the_work_of_a_step_is_bounded_and_large_values_are_not_copied() -> None:
    store, large = Store(), [bytes(10 * BLOCK_BYTES), bytes(BLOCK_BYTES + 1)]
    for number in range(20_000):
        store.bucket(b"many").set(b"%d" % number, bytes(64))
        store.bucket(b"%d" % number).set(b"k", b"v", HOUR_MS if number % 2 else None)
    for number, value in enumerate(large):
        store.bucket(b"large").set(b"%d" % number, value)
    found = []
    for parts in store.frames():
        found += [part for part in parts if len(part) > BLOCK_BYTES]
        assert sum(map(len, parts)) - sum(map(len, parts[2:])) < BLOCK_BYTES + 100_000
    assert len(found) == 2
    assert all(any(part is value for part in found) for value in large)


def test_the_blocks_that_wait_for_the_disk_use_the_same_memory(tmp_path: Path) -> None:
    """Otherwise, the C library returns memory to the system and gets it again, which takes long."""
    store, growth_bytes = Store(), list[int]()
    for number in range(30_000):
        store.bucket(b"b").set(b"%d" % number, bytes(64))
    with SnapshotFile(tmp_path / "snapshot") as file:
        tracemalloc.start()
        try:
            before_bytes = tracemalloc.get_traced_memory()[0]
            for parts in store.frames():
                is_due = file.add(parts)
                parts.clear()
                growth_bytes.append(tracemalloc.get_traced_memory()[0] - before_bytes)
                if is_due:
                    file.write()
        finally:
            tracemalloc.stop()
        file.commit()
        assert file.size_bytes > 2 * CHUNK_BYTES
    assert max(growth_bytes) < CHUNK_BYTES // 2


@given(seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_parts_are_written_whole_and_in_order_by_few_calls(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the system write less than it was asked to. Otherwise, one call writes PARTS_MAX parts."""
    rng, path = Random(seed), tmp_path / "snapshot"
    parts = [
        rng.randbytes(rng.choice([1, 1, 5, 10_000])) for _ in range(rng.choice([0, 1, 9, PARTS_MAX, 3 * PARTS_MAX]))
    ]
    is_cut, calls, writev = rng.random() < 0.5, 0, os.writev

    def cut(descriptor: int, parts: list[bytes]) -> int:
        nonlocal calls
        calls += 1
        if is_cut:
            whole = b"".join(parts)
            return os.write(descriptor, whole[: rng.choice([1, len(parts[0]), len(whole) // 2, len(whole)]) or 1])
        return writev(descriptor, parts)

    with monkeypatch.context() as patch, SnapshotFile(path) as file:
        patch.setattr(os, "writev", cut)
        file.add(parts)
        file.write()
        assert is_cut or calls == -(-len(parts) // PARTS_MAX)
        file.commit()
        assert file.size_bytes == sum(map(len, parts))
    assert path.read_bytes() == b"".join(parts)


class DeathError(BaseException):
    """The process ends here. Nothing may clean up after it."""


#: The system calls of a save, by module and name.
CALLS: list[tuple[Any, str]] = [(os, "fsync"), (os, "replace"), (os, "listdir"), (os, "open")]


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(6))
def test_a_writer_that_dies_leaves_the_old_file_or_the_new_one(
    number: int, is_done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let it die at each of its system calls, before or after the call is carried out."""
    path = tmp_path / "snapshot"
    old, new = Store(), Store()
    old.bucket(b"b").set(b"k", b"old")
    new.bucket(b"b").set(b"k", b"new")
    old.save(path)
    left, steps = number, list[str]()

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **keywords: Any) -> Any:
            nonlocal left
            steps.append(name)
            left -= 1
            if left >= 0:
                return call(*arguments, **keywords)
            if is_done and not left + 1:
                call(*arguments, **keywords)
            raise DeathError

        return act

    def dead(*_: object) -> NoReturn:
        raise FileNotFoundError  # the clean-up of a process that is dead

    with monkeypatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, dying(name, getattr(module, name)))
        patch.setattr(os, "unlink", dead)
        with pytest.raises(DeathError):
            new.save(path)
    is_new = "replace" in steps and (is_done or len(steps) > steps.index("replace") + 1)
    assert Store.load(path).bucket(b"b").get(b"k") == (b"new" if is_new else b"old"), steps
    new.save(path)
    assert Store.load(path).bucket(b"b").get(b"k") == b"new"
    assert os.listdir(tmp_path) == ["snapshot"], "the temporary file of the dead writer is removed"
