"""The writer of snapshots: the frames of a store, and the file that takes them.

    Tables ── shard by shard, each as of one moment ──> frames ── parts of bytes ──> SnapshotFile

`frames` does no I/O, and `SnapshotFile` does not know the store. So a program can make the frames in one thread, step by
step between other work, and write them in another thread. That thread should seldom need the interpreter's lock: if the
system runs another process while the thread holds the lock, the first thread waits for both. So parts are collected, and
one system call writes many of them. `keyvalue_engine.snapshot` describes the format.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import IO, Any, Self

import msgpack
from xxhash import xxh3_64, xxh3_64_hexdigest

from keyvalue_engine.context import Copy
from keyvalue_engine.snapshot import ARRAY2, BIN32, BLOCK, END, FORMAT, HEAD, HEADER, UINT64, VERSION
from keyvalue_engine.table import Table

__all__ = ["SnapshotFile", "frame_at", "frames"]

#: A block ends before its keys and values exceed this size. A larger value is not copied. So making a frame takes 0.1 to
#: 0.2 ms with keys and values of 64 bytes, and extra memory only for one block, and for the values of one shard that are
#: overwritten.
BLOCK_BYTES = 32 * 1024
#: Parts are collected in a buffer until they have this size. A save uses one buffer: with new memory for each MiB, the C
#: library returned memory to the system and got it again, which caused 180 page faults for each MiB.
CHUNK_BYTES = 1024 * 1024
#: A larger part is not copied.
COPY_BYTES_MAX = 2 * BLOCK_BYTES
#: A sync of this much takes a core for about 2 ms.
SYNC_BYTES = 8 * 1024 * 1024
#: The most parts that Linux, macOS and the BSDs take in one system call.
PARTS_MAX = 1024
SUFFIX = ".tmp"


def frame_at(offset: int, *body: bytes) -> list[bytes]:
    """Return the parts of a frame: its head, and those of its body.

    :param offset: the offset of the frame in the file, on which its checksum depends
    """
    checksum = xxh3_64(seed=offset)
    for part in body:
        checksum.update(part)
    return [HEAD.pack(ARRAY2, UINT64, checksum.intdigest(), BIN32, sum(map(len, body))), *body]


def frames(
    secret: bytes,
    tables: Mapping[bytes, Table],
    emptied: Iterable[bytes],
    clock: Callable[[], int],
    unix_ms_of: Callable[[int], int],
) -> Iterator[list[bytes]]:
    """Yield the frames of a snapshot, each as a list of parts.

    The work of a step is bounded: it copies one shard, which gives an empty list, or packs one block. Each shard is saved
    as of the moment when it is copied. Expired keys are left out.

    :param emptied: the names of buckets without keys; each gets a block without keys
    :param clock: returns the time on the store's clock
    :param unix_ms_of: converts a time on the store's clock to Unix time in milliseconds
    """
    offset = blocks = keys = 0
    packer = msgpack.Packer()  # one, because each gets 256 KiB of memory

    def frame(*body: bytes) -> list[bytes]:
        nonlocal offset
        parts = frame_at(offset, *body)
        offset += sum(map(len, parts))
        return parts

    yield frame(packer.pack([HEADER, FORMAT, VERSION, secret]))
    for name, table in tables.items():
        blocks_before, position = blocks, 0
        while not position >> 64:
            now_ns = clock()  # before the copy, because the deadline of a key may be moved after it
            shard = table.copy_shard(position)
            position = shard.end
            yield []
            for entries, deadlines in _blocks(shard, now_ns, unix_ms_of):
                yield frame(*_packed_block(packer, name, entries, deadlines))
                keys += len(entries) // 2
                blocks += 1
        if blocks == blocks_before:
            yield frame(*_packed_block(packer, name, [], {}))
            blocks += 1
    for name in emptied:
        yield frame(*_packed_block(packer, name, [], {}))
        blocks += 1
    yield frame(packer.pack([END, blocks, keys]))


def _blocks(shard: Copy, now_ns: int, unix_ms_of: Callable[[int], int]) -> Iterator[tuple[list[bytes], dict[int, int]]]:
    """Yield a shard's entries in blocks: a list [key, value, key, value, ...], and a dict of deadlines."""
    entries: list[bytes] = []
    deadlines: dict[int, int] = {}
    size_bytes = 0
    for key, entry in zip(shard.keys, shard.entries, strict=True):
        deadline_ns = None
        if isinstance(entry, bytes):
            value = entry
        else:
            value, deadline_ns = entry
            if deadline_ns <= now_ns:
                continue
        size_bytes += len(key) + len(value)
        if size_bytes > BLOCK_BYTES and entries:
            yield entries, deadlines
            entries, deadlines, size_bytes = [], {}, len(key) + len(value)
        if deadline_ns is not None:
            deadlines[len(entries) // 2] = unix_ms_of(deadline_ns)
        entries += (key, value)
    if entries:
        yield entries, deadlines


def _packed_block(packer: Any, name: bytes, entries: list[bytes], deadlines: dict[int, int]) -> list[bytes]:
    """Return the parts of a block's body. A large value stands alone in its block, and becomes a part of its own."""
    if len(entries) == 2 and len(entries[1]) > BLOCK_BYTES:
        key, value = entries
        head = (packer.pack_array_header(4), packer.pack(BLOCK), packer.pack(name), packer.pack_array_header(2))
        return [b"".join((*head, packer.pack(key), b"\xc6", len(value).to_bytes(4))), value, packer.pack(deadlines)]
    return [packer.pack([BLOCK, name, entries, deadlines])]


class SnapshotFile:
    """A snapshot that is being written, for use as a context manager. Another process sees the old file until `commit`.

    The frames go to a temporary file in the same directory. `commit` syncs it, renames it, and then syncs the directory.
    So a crash leaves either the old file or the new one. The file's mode is 0600, because values may be secret. If the
    path is a symbolic link, the file that the link names is replaced, and the link is kept.

    The temporary file is locked (flock). A killed writer leaves its file without a lock, and the next writer to the same
    path removes the file.

    Any thread may call the methods, but only one at a time. Only `add` and `discard` may be called by a thread that must
    not wait for a disk. `discard` may be called at any time.

    :ivar size_bytes: the number of bytes written so far
    :raises OSError: the temporary file could not be created, or `path` is not a regular file
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = os.path.realpath(path)  # a symbolic link stays
        self._directory, name = os.path.split(self._path)
        with suppress(FileNotFoundError):
            mode = os.stat(self._path).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `os.replace` refuses a directory
                raise OSError(errno.EINVAL, "Not a regular file", self._path)
        prefix = f".snapshot-{xxh3_64_hexdigest(os.fsencode(name))}-"
        _remove_abandoned(self._directory, prefix)
        self.size_bytes = self._synced_bytes = 0
        self._parts: list[bytes | memoryview] = []
        self._parts_bytes = self._copied_bytes = 0
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._file = _create(self._directory, prefix)

    def add(self, parts: Iterable[bytes]) -> bool:
        """Append parts of frames in memory. Return True if it is time to call `write`. Large parts are not copied."""
        for part in parts:
            size_bytes, at = len(part), self._copied_bytes
            self._parts_bytes += size_bytes
            if size_bytes <= COPY_BYTES_MAX and at + size_bytes <= CHUNK_BYTES:
                self._copied_bytes += size_bytes
                self._buffer[at : self._copied_bytes] = part
                self._parts.append(self._buffer[at : self._copied_bytes])
            else:
                self._parts.append(part)
        return self._parts_bytes >= CHUNK_BYTES

    def write(self, syncs: bool = False) -> None:
        """Write the parts that were added to the file.

        :param syncs: wait for the disk after each SYNC_BYTES, so that `commit` has little left to sync
        :raises OSError: the file could not be written
        """
        parts, self._parts, self._parts_bytes, self._copied_bytes = self._parts, [], 0, 0
        descriptor = self._file.fileno()
        for at in range(0, len(parts), PARTS_MAX):
            self.size_bytes += _write_all(descriptor, parts[at : at + PARTS_MAX])
        if syncs and self.size_bytes >= self._synced_bytes + SYNC_BYTES:
            os.fsync(descriptor)
            self._synced_bytes = self.size_bytes

    def commit(self) -> None:
        """Replace the old file.

        :raises OSError: the file could not be written, and the path is unchanged. If only the sync of the directory
            failed, the path is the new file, but the new file may not survive a crash.
        """
        self.write()
        os.fsync(self._file.fileno())
        os.replace(self._file.name, self._path)
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()
        self.close()

    def discard(self) -> None:
        """Remove the temporary file, unless `commit` has renamed it. A later `commit` fails."""
        with suppress(FileNotFoundError):
            os.unlink(self._file.name)

    def close(self) -> None:
        """Close the file. If it was discarded, the system may take some time to free it."""
        with suppress(OSError):  # what `commit` needs is on the disk already
            self._file.close()


def _write_all(descriptor: int, parts: list[bytes | memoryview]) -> int:
    """Write at most PARTS_MAX parts. Return the number of bytes."""
    size_bytes = 0
    left: Sequence[bytes | memoryview] = parts
    while left:
        written_bytes = os.writev(descriptor, left)
        size_bytes += written_bytes
        at = 0
        while at < len(left) and written_bytes >= len(left[at]):
            written_bytes -= len(left[at])
            at += 1
        # Some are left after a signal, if the disk is almost full, or above the most that the system writes in one call.
        left = [memoryview(left[at])[written_bytes:], *left[at + 1 :]] if at < len(left) else []
    return size_bytes


def _create(directory: str, prefix: str) -> IO[bytes]:
    """Create a temporary file, and lock it."""
    while True:
        file = NamedTemporaryFile(  # noqa: SIM115 - `SnapshotFile` closes it
            dir=directory, prefix=prefix, suffix=SUFFIX, delete=False, buffering=0
        )
        _lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another writer removed the file before it was locked


def _remove_abandoned(directory: str, prefix: str) -> None:
    """Remove the temporary files of killed writers. A running writer holds a lock on its file."""
    for name in os.listdir(directory):
        if name.startswith(prefix) and name.endswith(SUFFIX):
            path = os.path.join(directory, name)
            with suppress(OSError):  # a file that cannot be removed does not prevent the save
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    if _lock(descriptor):
                        os.unlink(path)
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed. Return False if another writer holds the lock, or if the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
