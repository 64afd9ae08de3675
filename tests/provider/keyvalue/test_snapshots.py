"""Snapshots of a store in this process: turns and pauses, requests, failures, and a save that outlives its time."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from os import PathLike
from pathlib import Path
from threading import Event
from time import monotonic, sleep

import pytest

from keyvalue_engine import Store, StoreOptions, snapshot_writer
from keyvalue_engine.snapshot_writer import BLOCK_BYTES, CHUNK_BYTES, SnapshotFile
from keyvalue_provider.keyvalue import snapshots as module
from keyvalue_provider.keyvalue.path_lock import PathLock
from keyvalue_provider.keyvalue.snapshots import Snapshots, UnusableSnapshotError
from tests.conftest import DEADLINE_S
from tests.log_lines import LogLines

HOUR_S = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture
async def lines() -> AsyncIterator[LogLines]:
    with LogLines.of("keyvalue_provider.keyvalue.snapshots") as lines:
        yield lines


def filled(keys: int, options: StoreOptions | None = None) -> Store:
    store = Store(options)
    for number in range(keys):
        store.bucket(b"b").set(b"%d" % number, b"value %d" % number)
    return store


async def soon(condition: Callable[[], bool]) -> None:
    """Return once the condition holds."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - files and processes set no event
            await asyncio.sleep(0.001)


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def size_of(path: Path) -> int:
    return path.stat().st_size


def keys_in(path: Path) -> int:
    return len(Store.load(path))


async def loaded(store: Store, path: Path, interval_s: float = HOUR_S) -> Snapshots:
    """Return snapshots of a store that is filled after the load."""
    snapshots = Snapshots(store, str(path), interval_s)
    await snapshots.load(0)
    return snapshots


async def test_other_tasks_run_between_the_steps_of_a_save(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a turn's time, the loop runs at least once for each shard. A final save does the same."""
    monkeypatch.setattr(module, "TURN_S", 0.0)
    store = Store(StoreOptions(shard_keys_max=100))
    snapshots, turns = await loaded(store, path), 0
    for number in range(5_000):
        store.bucket(b"b").set(b"%d" % number, b"v")

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    for save in (snapshots.save_last, lambda: snapshots._save(logging.INFO, 3)):
        turns = 0
        assert await save()
        assert turns >= 5_000 / 100
        assert keys_in(path) == 5_000
    counting.cancel()


async def test_a_pause_follows_each_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses, times = [], iter(range(10**6))
    monkeypatch.setattr(module, "thread_time", lambda: next(times) / 1000)  # each step takes 1 ms
    pause = asyncio.sleep

    async def noted(seconds: float) -> None:
        pauses.append(round(seconds, 6))
        await pause(0)

    store = Store()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"k", b"v")
    monkeypatch.setattr(asyncio, "sleep", noted)
    await snapshots._save(logging.INFO, module.PAUSE_TURNS)
    assert pauses == [0.003] * 4  # header, shard, block, end
    pauses.clear()
    await snapshots.save_last()
    assert pauses == [0] * 4


async def test_it_saves_at_intervals(path: Path, lines: LogLines) -> None:
    store = Store()
    snapshots = await loaded(store, path, interval_s=0.01)
    running = asyncio.create_task(snapshots.run())
    for number in range(1, 4):
        store.bucket(b"b").set(b"%d" % number, b"v")
        await lines.wait_for(f"DEBUG snapshot saved: {number} keys, ")
    running.cancel()
    assert keys_in(path) == 3


async def test_a_save_that_is_wanted_during_a_save_follows_it(
    path: Path, monkeypatch: pytest.MonkeyPatch, lines: LogLines
) -> None:
    store, write, is_writing, gate = Store(), SnapshotFile.write, Event(), Event()

    def slow_write(file: SnapshotFile, syncs: bool = False) -> None:
        is_writing.set()
        assert gate.wait(DEADLINE_S)
        write(file, syncs)

    monkeypatch.setattr(SnapshotFile, "write", slow_write)
    snapshots = await loaded(store, path)
    running = asyncio.create_task(snapshots.run())
    snapshots.want()
    await soon(is_writing.is_set)
    store.bucket(b"b").set(b"later", b"v")
    snapshots.want()
    snapshots.want()
    gate.set()
    await lines.wait_for("INFO snapshot saved: 1 keys, ", times=2)
    assert keys_in(path) == 1
    running.cancel()


async def test_a_failure_is_counted_and_shown_until_a_save_succeeds(
    path: Path, monkeypatch: pytest.MonkeyPatch, lines: LogLines
) -> None:
    store = Store()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"0", b"v")
    assert await snapshots.save_last()
    old, current_s = bytes_of(path), snapshots.counts.current_s
    store.bucket(b"b").set(b"1", b"v")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("write", "commit", "__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(SnapshotFile, name, full)
            assert not await snapshots.save_last()
        fault = f"the snapshot was not saved: {path}: No space left on device (snapshot_path)"
        assert snapshots.faults() == [fault]
        assert bytes_of(path) == old
        assert {*os.listdir(path.parent)} == {"snapshot", "snapshot.lock"}
    assert (snapshots.counts.failures, snapshots.counts.current_s) == (3, current_s)
    assert f"{fault}; the old file stays" in lines.text
    assert await snapshots.save_last()
    assert snapshots.faults() == []
    assert snapshots.counts.size_bytes == size_of(path)
    assert snapshots.counts.current_s > current_s
    assert keys_in(path) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_save_that_is_cancelled_leaves_the_file_of_a_later_save(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread still commits when the stop saves in a fork. It must not replace the file of the fork."""
    store, replace, is_committing, gate = Store(), os.replace, Event(), Event()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"k", b"old")

    def slow_replace(source: str, target: str) -> None:
        if not is_committing.is_set():
            is_committing.set()
            assert gate.wait(DEADLINE_S)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow_replace)
    running = asyncio.create_task(snapshots.run())
    snapshots.want()
    await soon(is_committing.is_set)
    running.cancel()
    store.bucket(b"b").set(b"k", b"new")
    await snapshots.save_apart(monotonic() + DEADLINE_S)
    new = bytes_of(path)
    gate.set()
    await asyncio.wrap_future(snapshots._writer.submit(bool))  # the thread has done everything before
    assert bytes_of(path) == new
    assert Store.load(path).bucket(b"b").get(b"k") == b"new"
    assert {*os.listdir(path.parent)} == {"snapshot", "snapshot.lock"}


def test_the_first_save_imports_nothing(path: Path) -> None:
    """Calls would wait for an import."""
    program = f"""import asyncio, sys
from keyvalue_engine import Store
from keyvalue_provider.keyvalue.snapshots import Snapshots

async def main():
    snapshots = Snapshots(Store(), {str(path)!r}, 1.0)
    await snapshots.load(0)
    before = {{*sys.modules}}
    assert await snapshots._save(20, 3)
    print(*{{*sys.modules}} - before)

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")


async def test_a_store_that_was_not_loaded_is_not_saved(path: Path) -> None:
    """A stop while the file is loaded must not replace it by a part of it."""
    filled(5_000).save(path)
    old = bytes_of(path)
    store = Store()
    snapshots = Snapshots(store, str(path), HOUR_S)
    loading = asyncio.create_task(snapshots.load(0))
    while not len(store):  # noqa: ASYNC110 - the load yields after each block
        await asyncio.sleep(0)
    (fault,) = snapshots.faults()
    assert fault.startswith("loading the snapshot, ")
    loading.cancel()
    await asyncio.wait((loading,))
    assert 0 < len(store) < 5_000
    assert await snapshots.save_last()
    await snapshots.save_apart(monotonic() + DEADLINE_S)
    assert bytes_of(path) == old


async def test_a_file_that_exceeds_a_limit_or_is_no_file_is_refused(path: Path) -> None:
    filled(3).save(path)
    with pytest.raises(UnusableSnapshotError, match=r"the limit is 2 \(keys_max\) \(snapshot_path\)$") as caught:
        await Snapshots(Store(StoreOptions(keys_max=2)), str(path), HOUR_S).load(0)
    assert caught.value.exit_code == 2
    with pytest.raises(UnusableSnapshotError, match=r"missing/snapshot: the directory does not exist"):
        await Snapshots(Store(), str(path.parent / "missing" / "snapshot"), HOUR_S).load(0)
    for name, text in (("directory", "directory: Is a directory"), ("pipe", "is not a regular file")):
        (os.mkdir if name == "directory" else os.mkfifo)(path.parent / name)
        with pytest.raises(UnusableSnapshotError, match=text):
            await Snapshots(Store(), str(path.parent / name), HOUR_S).load(0)


async def test_a_path_in_use_is_waited_for_and_then_refused(path: Path, lines: LogLines) -> None:
    lock, store = PathLock(str(path)), Store()
    assert lock.take()
    with pytest.raises(UnusableSnapshotError, match=f"process {os.getpid()} uses it") as caught:
        await Snapshots(store, str(path), HOUR_S).load(0.01)
    assert caught.value.exit_code == 1
    snapshots = Snapshots(store, str(path), HOUR_S)
    loading = asyncio.create_task(snapshots.load(DEADLINE_S))
    await soon(lambda: "waiting for up to" in "".join(snapshots.faults()))
    filled(2).save(path)  # the holder saves before it ends
    lock.release()
    await loading
    assert (len(store), snapshots.faults()) == (2, [])
    assert lines.text.count(f"uses the snapshot {path}; waiting for up to 30 s") == 1


def slow_save(gate: Path, save: Callable[[Store, str | PathLike[str]], None]) -> Callable[[Store, str], None]:
    """Return a `save` that begins when a file exists."""

    def wait(store: Store, path: str) -> None:
        ends_s = monotonic() + DEADLINE_S
        while not gate.exists() and monotonic() < ends_s:
            sleep(0.002)
        save(store, path)

    return wait


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_a_fork_saves_what_was_stored_when_it_began_and_holds_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch, lines: LogLines
) -> None:
    store = Store()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"0", b"v")
    gate = path.parent / "gate"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", slow_save(gate, Store.save))
        await snapshots.save_apart(monotonic())
    store.bucket(b"b").set(b"1", b"later")
    snapshots._lock.release()  # as at the end of this process
    other = PathLock(str(path))
    assert not other.take(), "the fork holds the lock"
    await soon(lambda: f"{other.holder} goes on saving" in lines.text)
    assert not os.path.lexists(path)  # noqa: ASYNC240
    gate.touch()
    await soon(other.take)
    assert keys_in(path) == 1
    other.release()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
async def test_the_end_of_a_fork_is_noted(path: Path, monkeypatch: pytest.MonkeyPatch, lines: LogLines) -> None:
    store = Store()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"0", b"v")
    assert await snapshots.save_apart(monotonic() + DEADLINE_S)
    assert (snapshots.faults(), snapshots.counts.size_bytes) == ([], size_of(path))
    assert "snapshot saved: 1 keys" in lines.text
    for error, text in (
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (RuntimeError("another thread used the store"), "ended with exit code 255"),
    ):

        def save(_: Store, path: str, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Store, "save", save)
            assert not await snapshots.save_apart(monotonic() + DEADLINE_S)
        assert text in snapshots.faults()[0]
    assert snapshots.counts.failures == 2


async def test_without_room_for_a_fork_it_saves_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch, lines: LogLines
) -> None:
    store = Store()
    snapshots = await loaded(store, path)
    store.bucket(b"b").set(b"0", b"v")

    def fork() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fork)
    await snapshots.save_apart(monotonic())
    assert keys_in(path) == 1
    assert "saved without a fork, in the time that is left: Resource temporarily unavailable" in lines.text


async def test_a_save_needs_memory_for_one_chunk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that wait for the disk are written before more are made. `run` syncs the file bit by bit."""
    store, sizes, synced, write, fsync = Store(), list[int](), list[int](), SnapshotFile.write, os.fsync
    monkeypatch.setattr(snapshot_writer, "SYNC_BYTES", 2 * CHUNK_BYTES)
    snapshots = await loaded(store, path)
    for number in range(500):
        store.bucket(b"b").set(b"%d" % number, bytes(10_000))

    def noted(file: SnapshotFile, syncs: bool = False) -> None:
        before_bytes = file.size_bytes
        write(file, syncs)
        sizes.append(file.size_bytes - before_bytes)

    def noted_fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(SnapshotFile, "write", noted)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    for save, syncs in ((snapshots.save_last, 1), (lambda: snapshots._save(logging.INFO, 3), 3)):
        sizes.clear()
        synced.clear()
        assert await save()
        assert sum(sizes) == size_of(path) > 5_000_000
        assert max(sizes) < CHUNK_BYTES + BLOCK_BYTES + 1_000
        assert len(synced) == syncs + 1, "and the directory"
