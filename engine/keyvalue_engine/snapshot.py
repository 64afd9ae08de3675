"""Snapshots: the file format of a saved store, and its reader. `keyvalue_engine.snapshot_writer` has the writer.

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
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from hashlib import file_digest
from os import PathLike
from struct import Struct
from types import TracebackType
from typing import Any, TypeVar

import msgpack
from xxhash import xxh3_64_intdigest

from keyvalue_engine.context import SECRET_BYTES
from keyvalue_engine.errors import SnapshotError

__all__ = ["ARRAY2", "BIN32", "BLOCK", "END", "FORMAT", "HEAD", "HEADER", "UINT64", "VERSION", "Reader"]

T = TypeVar("T")

FORMAT = "keyvalue-inmemory snapshot"
VERSION = 3
VERSIONS = (1, 2, 3)
#: Up to this version, the header holds an XXH3 seed instead of a secret.
SEED_VERSION_MAX = 2
HEADER, BLOCK, END = 0, 1, 2
HEAD = Struct(">BBQBI")
ARRAY2, UINT64, BIN32 = 0x92, 0xCF, 0xC6
#: Limit for the keys and values in a block. Older versions ended a block when its keys and values reached 1 MiB. The keys
#: of a block differ, so even the shortest keys gave fewer than 371,000 keys. Together with the limits of `Reader`, this
#: bounds the memory for a frame.
PARTS_MAX = 1024 * 1024
#: A block has the most arrays and maps: itself, its entries and its deadlines.
ARRAYS_MAX, MAPS_MAX = 2, 1


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
