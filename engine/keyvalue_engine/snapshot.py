"""Snapshots: the file format of a saved store, its writer and its reader.

The file is a stream of msgpack objects. Each object is a frame with a fixed-size head:

    0        1        2                 10       11             15
    +--------+--------+-----------------+--------+--------------+---------- - -
    | 0x92   | 0xcf   | checksum u64 BE | 0xc6   | size u32 BE  | body
    +--------+--------+-----------------+--------+--------------+---------- - -
     array(2) uint64                     bin32

The checksum is xxh3_64(body), with the frame's offset as the seed. So it also detects frames that were moved, lost or
repeated. A body is a msgpack array:

    [0, "keyvalue-inmemory snapshot", version, secret]   header: the first frame; the secret has 16 bytes; up to
                                                         version 2, an integer (an XXH3 seed) stood in its place
    [1, bucket name, [key, value, key, value, ...],      block: any number of frames, several for a large bucket
        {index of a key in this block: its deadline}]    milliseconds of Unix time; version 1 has no deadlines
    [2, blocks, keys]                                    end: the last frame, with the counts

The writer creates a temporary file in the same directory, syncs it and renames it. Then the writer syncs the
directory. So a crash leaves either the old file or the new one. The file's mode is 0600, because values may be
secret. If the path is a symbolic link, the writer replaces the file that the link names, and keeps the link.

A writer holds a lock (flock) on its temporary file. A killed writer leaves its file without a lock, and the next save
to the same path removes the file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import file_digest
from os import PathLike
from struct import Struct
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import IO, Any, TypeVar

import msgpack
from xxhash import xxh3_64_hexdigest, xxh3_64_intdigest

from keyvalue_engine.context import SECRET_BYTES
from keyvalue_engine.errors import SnapshotError
from keyvalue_engine.table import Table

__all__ = ["FORMAT", "VERSION", "Reader", "save"]

T = TypeVar("T")

FORMAT = "keyvalue-inmemory snapshot"
VERSION = 3
VERSIONS = (1, 2, 3)
#: Up to this version, the header holds an XXH3 seed instead of a secret.
SEED_VERSION_MAX = 2
HEADER, BLOCK, END = 0, 1, 2
HEAD = Struct(">BBQBI")
SUFFIX = ".tmp"
ARRAY2, UINT64, BIN32 = 0x92, 0xCF, 0xC6
#: A block is written once its keys and values reach this size. So saving needs extra memory only for one block, one
#: shard and the largest value.
BLOCK_BYTES = 1024 * 1024
#: Limit for the keys and values in a block. The keys of a block differ, and the block ends at BLOCK_BYTES, so even the
#: shortest keys give fewer than 371,000 keys. Together with the limits of `Reader`, this bounds the memory for a frame.
PARTS_MAX = BLOCK_BYTES
#: A block has the most arrays and maps: itself, its entries and its deadlines.
ARRAYS_MAX, MAPS_MAX = 2, 1


def save(
    path: str | PathLike[str],
    secret: bytes,
    tables: Mapping[bytes, Table],
    emptied: Iterable[bytes],
    unix_ms_of: Callable[[int], int],
) -> None:
    """Write the tables to `path`. Another process sees either the complete old file or the complete new one.

    :param emptied: the names of buckets without keys; each gets a block without keys
    :param unix_ms_of: converts a time on the store's clock to Unix time in milliseconds
    :raises OSError: the file could not be written, or `path` is not a regular file. `path` is unchanged, and the
        temporary file is removed. If only the sync of the directory failed, `path` is the new file, but the new file
        may not survive a crash.
    """
    path = os.path.realpath(path)  # a symbolic link stays
    directory, name = os.path.split(path)
    with suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `os.replace` refuses a directory
            raise OSError(errno.EINVAL, "Not a regular file", path)
    prefix = f".snapshot-{xxh3_64_hexdigest(os.fsencode(name))}-"
    _remove_abandoned(directory, prefix)
    with _create(directory, prefix) as file:
        try:
            _write(file, secret, tables, emptied, unix_ms_of)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(file.name)
            raise
    _fsync_directory(directory)


def _create(directory: str, prefix: str) -> IO[bytes]:
    """Create a temporary file, and lock it."""
    while True:
        file = NamedTemporaryFile(dir=directory, prefix=prefix, suffix=SUFFIX, delete=False)  # noqa: SIM115 - `save` closes it
        _lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # another save removed the file before it was locked


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


def _write(
    file: IO[bytes],
    secret: bytes,
    tables: Mapping[bytes, Table],
    emptied: Iterable[bytes],
    unix_ms_of: Callable[[int], int],
) -> None:
    offset = _write_frame(file, 0, [HEADER, FORMAT, VERSION, secret])
    blocks = keys = 0
    for name, table in tables.items():
        for entries, deadlines in _blocks(table, unix_ms_of):
            offset = _write_frame(file, offset, [BLOCK, name, entries, deadlines])
            blocks += 1
            keys += len(entries) // 2
    for name in emptied:
        offset = _write_frame(file, offset, [BLOCK, name, [], {}])
        blocks += 1
    _write_frame(file, offset, [END, blocks, keys])


def _blocks(table: Table, unix_ms_of: Callable[[int], int]) -> Iterator[tuple[list[bytes], dict[int, int]]]:
    """Yield the table's entries in blocks of about BLOCK_BYTES. Yield one empty block for an empty table.

    A block is a list [key, value, key, value, ...], and a dict of deadlines.
    """
    entries: list[bytes] = []
    deadlines: dict[int, int] = {}
    size_bytes = blocks = position = 0
    while not position >> 64:
        shard = table.copy_shard(position)
        position = shard.end
        for key, entry in shard.entries:
            if isinstance(entry, bytes):
                value = entry
            else:
                value, deadline_ns = entry
                deadlines[len(entries) // 2] = unix_ms_of(deadline_ns)
            entries += (key, value)
            size_bytes += len(key) + len(value)
            if size_bytes >= BLOCK_BYTES:
                yield entries, deadlines
                blocks += 1
                entries = []
                deadlines = {}
                size_bytes = 0
    if entries or not blocks:
        yield entries, deadlines


def _write_frame(file: IO[bytes], offset: int, body: list[Any]) -> int:
    packed: bytes = msgpack.packb(body)
    file.write(HEAD.pack(ARRAY2, UINT64, xxh3_64_intdigest(packed, offset), BIN32, len(packed)))
    file.write(packed)
    return offset + HEAD.size + len(packed)


def _fsync_directory(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Reader:
    """A snapshot reader, for use as a context manager.

    The constructor reads the header, which contains the `secret`; it is None up to version 2. Iteration yields (bucket
    name, [(key, value, deadline or None), ...]), and each iteration begins with the first block. All data is checked
    before use. Even if a length is damaged, the reader never reads more than the file's size. A frame with more arrays,
    maps or parts than a block can have is refused before they are created.

    :raises SnapshotError: a frame is damaged, or the path is not a regular file; both the constructor and the iteration
        can raise this error
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._file = open(path, "rb", opener=_open_now)  # noqa: SIM115 - closed by __exit__, or below
        self._offset = 0
        try:
            status = os.fstat(self._file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise self._error(0, "the file is not a regular file")
            self._left = self._size_bytes = status.st_size
            self.secret = self._read_header()
            self._begin = self._offset
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[bytes, list[tuple[bytes, bytes, int | None]]]]:
        self._file.seek(self._begin)
        self._offset, self._left = self._begin, self._size_bytes - self._begin
        blocks = keys = 0
        while True:
            at = self._offset
            match self._read_frame():
                case [1, bytes(name), list(entries), *rest] if _is_block(entries, rest):
                    deadlines = rest[0] if rest else {}
                    blocks += 1
                    keys += len(entries) // 2
                    pairs = zip(entries[::2], entries[1::2], strict=True)
                    yield name, [(key, value, deadlines.get(number)) for number, (key, value) in enumerate(pairs)]
                case [2, int(blocks_written), int(keys_written)]:
                    if (blocks, keys) != (blocks_written, keys_written):
                        raise self._error(
                            at,
                            f"the file has {blocks} blocks and {keys} keys; "
                            f"its end says {blocks_written} blocks and {keys_written} keys",
                        )
                    if self._left:
                        raise self._error(self._offset, f"the file has {self._left} bytes after its end")
                    return
                case _:
                    raise self._error(at, "the frame is neither a block nor the end")

    def digest(self) -> str:
        """Return the SHA-256 of the file in hexadecimal."""
        self._file.seek(0)
        return file_digest(self._file, "sha256").hexdigest()

    def _read_header(self) -> bytes | None:
        match self._read_frame():
            case [0, str(name), int(version), secret] if name == FORMAT:
                if version not in VERSIONS:
                    raise self._error(0, f"format version is {version}; supported: {VERSIONS[0]} to {VERSIONS[-1]}")
                match secret:
                    case bytes() if version > SEED_VERSION_MAX and len(secret) == SECRET_BYTES:
                        return secret
                    case int() if version <= SEED_VERSION_MAX:
                        return None
        raise self._error(0, f"the file is not a {FORMAT}")

    def _read_frame(self) -> list[Any]:
        at = self._offset
        if self._left < HEAD.size:
            raise self._error(
                at, f"the file is cut short: {self._left} bytes left for a frame's head of {HEAD.size} bytes"
            )
        array, number, checksum, binary, size = HEAD.unpack(self._file.read(HEAD.size))
        if (array, number, binary) != (ARRAY2, UINT64, BIN32):
            raise self._error(at, "the frame's head is malformed")
        if size > self._left - HEAD.size:
            raise self._error(
                at, f"the file is cut short: {self._left - HEAD.size} bytes left for a frame's body of {size} bytes"
            )
        body = self._file.read(size)
        if xxh3_64_intdigest(body, at) != checksum:
            raise self._error(at, "the frame's checksum does not match")
        self._offset += HEAD.size + size
        self._left -= HEAD.size + size
        try:
            frame = msgpack.unpackb(
                body,
                strict_map_key=False,  # the map of deadlines has integer keys
                list_hook=_at_most(ARRAYS_MAX, "arrays"),
                object_hook=_at_most(MAPS_MAX, "maps"),
                max_array_len=PARTS_MAX,
                max_map_len=PARTS_MAX // 2,
                timestamp=1,  # a float; objects would take much more time and memory
                ext_hook=_refuse_extension,
            )
        except (TypeError, ValueError, msgpack.exceptions.UnpackException) as error:  # TypeError: an array as a key
            raise self._error(at, f"the frame cannot be decoded: {error}") from error
        if not isinstance(frame, list):
            raise self._error(at, "the frame is not an array")
        return frame

    def _error(self, offset: int, reason: str) -> SnapshotError:
        return SnapshotError(self._path, offset, reason)


def _open_now(path: str, flags: int) -> int:
    """Open a file without waiting. To open a FIFO would otherwise wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def _at_most(objects_max: int, kind: str) -> Callable[[T], T]:
    """Return a hook for msgpack that refuses an array or a map too many."""
    left = objects_max

    def take(created: T) -> T:
        nonlocal left
        if not left:
            raise ValueError(f"it has more than {objects_max} {kind}")
        left -= 1
        return created

    return take


def _refuse_extension(code: int, _: bytes) -> None:
    raise ValueError(f"it has an extension type ({code})")


def _is_block(entries: list[Any], rest: list[Any]) -> bool:
    """Return True if `entries` and `rest` form a valid block. Since version 2, `rest` holds the deadlines."""
    if len(entries) % 2 or not all(type(part) is bytes for part in entries):
        return False
    match rest:
        case []:
            return True
        case [dict(deadlines)]:
            return all(type(part) is int for pair in deadlines.items() for part in pair)
    return False
