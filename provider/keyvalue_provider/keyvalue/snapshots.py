"""The snapshots of a memory store: loaded at the start, saved while the provider serves, and saved at its end.

    load        file ── block by block ──> store      before the first call
    run         store ── steps on the event loop, with pauses ──> frames ── a thread ──> file
    save_last   the same without pauses, when all calls have been answered
    save_apart  fork ──> a process that saves what this one holds, and may outlive it

The steps run on the event loop, because a thread that packs keys would hold the interpreter's lock, for up to 5 ms at a
time, while calls wait. Writing and syncing a file waits for a disk, so a thread does that. At most one chunk of frames
waits for it. The thread needs the interpreter's lock only for moments, and `run` syncs the file bit by bit, because a sync
of 80 MB takes a core for 20 ms.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import warnings
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic, thread_time

from keyvalue_engine import LimitError, SnapshotError, Store
from keyvalue_provider.keyvalue.path_lock import PathLock

__all__ = ["SnapshotCounts", "Snapshots", "UnusableSnapshotError"]

log = logging.getLogger(__name__)

#: After this time, other tasks run. A step may exceed it by its own time, 0.5 ms at most (bench scenario: snapshot).
TURN_S = 0.0002
#: The pause after a turn, as a multiple of the turn's time. So a save takes at most a quarter of the processor time.
PAUSE_TURNS = 3
LOCK_RETRY_S = 0.05
CHILD_POLL_S = 0.002
#: The exit code of a child that failed without an error number.
FAILED = 255


class UnusableSnapshotError(Exception):
    """The provider can't start with its snapshot. Nothing was changed.

    :ivar exit_code: 1 if another process uses the path, which may end; otherwise 2
    """

    def __init__(self, text: str, exit_code: int = 2) -> None:
        super().__init__(f"{text} (snapshot_path)")
        self.exit_code = exit_code


@dataclass(slots=True)
class SnapshotCounts:
    """Figures for the metrics. Other threads may read them.

    :ivar duration_s: the seconds that the last save took, or 0
    :ivar size_bytes: the size of the file, or 0 if there is none
    :ivar current_s: a moment as of which or after which each shard is in the file, on the monotonic clock
    """

    failures: int = 0
    duration_s: float = 0.0
    size_bytes: int = 0
    current_s: float = 0.0


class Snapshots:
    """The snapshots of one store. Call `load` once, before the store is used.

    :param interval_s: seconds from the end of a save to the next one
    """

    def __init__(self, store: Store, path: str, interval_s: float) -> None:
        from concurrent.futures import ThreadPoolExecutor  # here, because importing it takes 1 ms

        self.counts = SnapshotCounts(current_s=monotonic())
        self.interval_s = interval_s
        self._store = store
        self._path = path
        self._lock = PathLock(path)
        self._doing: str | None = "waiting to load the snapshot"
        self._fault: str | None = None
        self._is_loaded = asyncio.Event()
        self._is_wanted = asyncio.Event()
        self._saving = asyncio.Lock()
        self._writer = ThreadPoolExecutor(1, "snapshot")  # one thread, so that a file is closed after its last write

    def faults(self) -> list[str]:
        """Return why the provider is unhealthy, one line for each reason."""
        return [fault for fault in (self._doing, self._fault) if fault is not None]

    async def load(self, wait_s: float) -> None:
        """Fill the store with the keys of the file, if there is one. Other tasks run between two blocks.

        :param wait_s: seconds to wait while another process uses the path; it may be about to end
        :raises UnusableSnapshotError: the file is damaged, unreadable, or in use, or it exceeds a limit
        """
        # Here, because importing them takes 4 ms, and only a provider with snapshots needs them. The writer, too, because
        # calls would wait while the first save imports it.
        import keyvalue_engine.snapshot_writer  # noqa: F401
        from keyvalue_engine.snapshot import Reader

        began_s = monotonic()
        try:
            await self._take_lock(wait_s)
            with Reader(self._path) as reader:
                for keys in self._store.fill(reader):
                    self._doing = f"loading the snapshot, {keys} keys so far"
                    await asyncio.sleep(0)
            self.counts.size_bytes = os.stat(self._path).st_size
        except FileNotFoundError:
            if self._lock.descriptor < 0:
                raise UnusableSnapshotError(f"{self._path}: the directory does not exist") from None
            log.info("there is no snapshot at %s yet: the store is empty", self._path)
        except (SnapshotError, LimitError) as error:
            reason = str(error) if isinstance(error, SnapshotError) else f"{self._path}: {error}"
            raise UnusableSnapshotError(reason) from None
        except OSError as error:
            raise UnusableSnapshotError(f"{error.filename or self._path}: {error.strerror or error}") from None
        else:
            log.info("snapshot loaded: %d keys in %.2f s", len(self._store), monotonic() - began_s)
        self.counts.current_s = monotonic()
        self._doing = None
        self._is_loaded.set()

    async def _take_lock(self, wait_s: float) -> None:
        ends_s = monotonic() + wait_s
        while not self._lock.take():
            if monotonic() > ends_s:
                raise UnusableSnapshotError(f"{self._path}: {self._lock.holder} uses it ({self._lock.path})", 1)
            doing = f"{self._lock.holder} uses the snapshot {self._path}; waiting for up to {wait_s:g} s"
            if doing != self._doing:
                log.warning("%s", doing)
            self._doing = doing
            await asyncio.sleep(LOCK_RETRY_S)

    def want(self) -> None:
        """Save soon. If a save is running, save again after it, because it may lack the last changes."""
        log.info("a snapshot is requested")
        self._is_wanted.set()

    async def run(self) -> None:
        """Save at each interval and when a save is wanted, until the task is cancelled."""
        await self._is_loaded.wait()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.interval_s):
                    await self._is_wanted.wait()
            level = logging.INFO if self._is_wanted.is_set() else logging.DEBUG
            self._is_wanted.clear()
            await self._save(level, PAUSE_TURNS)

    async def save_last(self) -> bool:
        """Save without pauses, after the last change. Return False if that failed. Cancel `run` first.

        Do nothing if the store was not loaded, because the file holds more.
        """
        return not self._is_loaded.is_set() or await self._save(logging.INFO, 0)

    async def save_apart(self, until_s: float) -> bool:
        """Save in a fork of this process, after the last change. Wait for it until a time on the monotonic clock.

        Return False if it is known that the save failed. The fork goes on if this process is killed. It holds the lock, so
        the next provider waits for its snapshot.
        """
        if not self._is_loaded.is_set():
            return True
        began_s = monotonic()
        try:
            async with self._saving:
                child = self._fork()
        except OSError as error:
            log.warning("the snapshot is saved without a fork, in the time that is left: %s", error.strerror or error)
            return await self.save_last()
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)  # noqa: ASYNC222 - WNOHANG does not wait
            if ended:
                break
            if monotonic() >= until_s:
                log.warning("the time for a stop is over: process %d goes on saving the snapshot", child)
                return True
            await asyncio.sleep(CHILD_POLL_S)
        code = os.waitstatus_to_exitcode(status)
        if code:
            known = 0 < code < FAILED
            self._note_failure(OSError(os.strerror(code) if known else f"process {child} ended with exit code {code}"))
        else:
            self._note_success(logging.INFO, began_s, os.stat(self._path).st_size)
        return not code

    async def _save(self, level: int, pause_turns: float) -> bool:
        async with self._saving:
            began_s = monotonic()
            try:
                size_bytes = await self._write(pause_turns)
            except OSError as error:
                self._note_failure(error)
                return False
            self._note_success(level, began_s, size_bytes)
            return True

    async def _write(self, pause_turns: float) -> int:
        """Write the file step by step. Return its size."""
        from keyvalue_engine.snapshot_writer import SnapshotFile  # `load` has imported it

        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._writer)
        file = await in_thread(SnapshotFile, self._path)
        try:
            turn_s, began_s = 0.0, thread_time()
            for parts in self._store.frames():
                is_due = file.add(parts)
                turn_s += thread_time() - began_s
                if is_due:
                    await in_thread(file.write, pause_turns > 0)
                if turn_s >= TURN_S:
                    await asyncio.sleep(turn_s * pause_turns)
                    turn_s = 0.0
                began_s = thread_time()
            await in_thread(file.commit)
            return file.size_bytes
        finally:
            file.discard()  # at once: after a cancellation, the thread must not replace the file of a later save
            self._writer.submit(file.close)

    def _note_success(self, level: int, began_s: float, size_bytes: int) -> None:
        counts = self.counts
        counts.current_s, counts.duration_s, counts.size_bytes = began_s, monotonic() - began_s, size_bytes
        if self._fault is not None:
            level = logging.INFO
        self._fault = None
        log.log(level, "snapshot saved: %d keys, %d bytes in %.2f s", len(self._store), size_bytes, counts.duration_s)

    def _note_failure(self, error: OSError) -> None:
        self.counts.failures += 1
        self._fault = f"the snapshot was not saved: {self._path}: {error.strerror or error} (snapshot_path)"
        log.error("%s; the old file stays", self._fault)

    def _fork(self) -> int:
        """Return the process id of a fork that saves and ends.

        :raises OSError: the system has no room for another process
        """
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads. The fork uses nothing of theirs: neither the event loop, nor the
            # log, nor a connection. `Store.frames` checks the locks of the store.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            return child
        code = FAILED
        try:
            self._save_as_fork()
            code = 0
        except OSError as error:
            code = error.errno or FAILED
        finally:
            os._exit(code)

    def _save_as_fork(self) -> None:
        gc.disable()  # a collection would copy the memory that this process shares with its parent
        signal.set_wakeup_fd(-1)  # it belongs to the parent's event loop
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # somebody may wait for the end of the output
            os.dup2(null, descriptor)
        for name in os.listdir("/dev/fd"):  # the connection to NATS and the port of the metrics must close
            if (descriptor := int(name)) > 2 and descriptor != self._lock.descriptor:
                with suppress(OSError):
                    os.close(descriptor)
        self._lock.sign()
        self._store.save(self._path)
