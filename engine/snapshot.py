"""A snapshot: a store in a file.

A stream of msgpack objects, each a frame whose head has a fixed size:

    0        1        2                 10       11             15
    +--------+--------+-----------------+--------+--------------+---------- - -
    | 0x92   | 0xcf   | checksum u64 BE | 0xc6   | size u32 BE  | body
    +--------+--------+-----------------+--------+--------------+---------- - -
     array(2) uint64                     bin32

checksum = xxh3_64(body, seed = the frame's offset), so that a frame that was moved, lost or doubled is found too. A body is a msgpack array:

    [0, "keyvalue-inmemory snapshot", version, seed]     the first frame
    [1, bucket name, [key, value, key, value, ...]]      any number; a bucket's keys may be spread over several
    [2, blocks, keys]                                    the last frame; nothing follows

The file is written beside its place under another name, fsynced, renamed, and the directory fsynced: a crash leaves the old file or the
new one. The mode is 0600, since values may be secret.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os import PathLike
from struct import Struct
from tempfile import NamedTemporaryFile
from types import TracebackType
from typing import IO, Any

import msgpack
from xxhash import xxh3_64_intdigest

from engine.errors import SnapshotError
from engine.table import Table

__all__ = ["FORMAT", "VERSION", "Reader", "save"]

FORMAT = "keyvalue-inmemory snapshot"
VERSION = 1
HEADER, BLOCK, END = 0, 1, 2
HEAD = Struct(">BBQBI")
ARRAY2, UINT64, BIN32 = 0x92, 0xCF, 0xC6
#: A block is written once it holds so many bytes of keys and values, so memory stays at a block, a shard and the largest value.
BLOCK_BYTES = 1024 * 1024


def save(path: str | PathLike[str], seed: int, tables: Mapping[bytes, Table]) -> None:
    """Write the tables to `path` at one stroke.

    :raises OSError: the file could not be written; `path` is as it was, and the unfinished file is removed. Where only the directory
        could not be fsynced, `path` is the new file, and it is not sure that it outlives a crash.
    """
    path = os.path.abspath(path)
    directory = os.path.dirname(path)
    with NamedTemporaryFile(dir=directory, prefix=".snapshot-", suffix=".tmp", delete=False) as file:
        try:
            _write(file, seed, tables)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(file.name)
            raise
    _fsync_directory(directory)


def _write(file: IO[bytes], seed: int, tables: Mapping[bytes, Table]) -> None:
    offset = _write_frame(file, 0, [HEADER, FORMAT, VERSION, seed])
    blocks = keys = 0
    for name, table in tables.items():
        for entries in _blocks(table):
            offset = _write_frame(file, offset, [BLOCK, name, entries])
            blocks += 1
            keys += len(entries) // 2
    _write_frame(file, offset, [END, blocks, keys])


def _blocks(table: Table) -> Iterator[list[bytes]]:
    """The table's entries as [key, value, key, value, ...] of about BLOCK_BYTES, at least one block."""
    entries: list[bytes] = []
    size_bytes = blocks = position = 0
    while not position >> 64:
        copied, position = table.copy_shard(position)
        for key, value in copied:
            entries += (key, value)
            size_bytes += len(key) + len(value)
            if size_bytes >= BLOCK_BYTES:
                yield entries
                blocks += 1
                entries = []
                size_bytes = 0
    if entries or not blocks:
        yield entries


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
    """Reads a snapshot: `seed`, then by iteration (bucket name, [(key, value), ...]). A context manager.

    Everything is checked before it is believed; a length never allocates more than the file holds.

    :raises SnapshotError: from the constructor or the iteration, with the offset of the damaged frame
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._file = open(path, "rb")  # noqa: SIM115 - closed by __exit__, or below
        self._offset = 0
        try:
            self._left = os.fstat(self._file.fileno()).st_size
            self.seed = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[tuple[bytes, list[tuple[bytes, bytes]]]]:
        blocks = keys = 0
        while True:
            at = self._offset
            match self._read_frame():
                case [1, bytes(name), list(entries)] if len(entries) % 2 == 0 and all(
                    type(e) is bytes for e in entries
                ):
                    blocks += 1
                    keys += len(entries) // 2
                    yield name, list(zip(entries[::2], entries[1::2], strict=True))
                case [2, int(blocks_written), int(keys_written)]:
                    if (blocks, keys) != (blocks_written, keys_written):
                        raise self._error(
                            at,
                            f"found {blocks} blocks and {keys} keys, written were {blocks_written} and {keys_written}",
                        )
                    if self._left:
                        raise self._error(self._offset, f"found {self._left} bytes behind the end")
                    return
                case _:
                    raise self._error(at, "found a frame that is neither a block nor the end")

    def _read_header(self) -> int:
        match self._read_frame():
            case [0, str(name), int(version), int(seed)] if name == FORMAT:
                if version != VERSION:
                    raise self._error(0, f"found version {version}, known is {VERSION}")
                if 0 <= seed < 1 << 64:
                    return seed
        raise self._error(0, f"found no header of a {FORMAT}")

    def _read_frame(self) -> list[Any]:
        at = self._offset
        if self._left < HEAD.size:
            raise self._error(at, f"found {self._left} bytes where a frame should begin: the file was cut")
        array, number, checksum, binary, size = HEAD.unpack(self._file.read(HEAD.size))
        if (array, number, binary) != (ARRAY2, UINT64, BIN32):
            raise self._error(at, "found no head of a frame")
        if size > self._left - HEAD.size:
            raise self._error(at, f"found {self._left - HEAD.size} bytes of a frame of {size}: the file was cut")
        body = self._file.read(size)
        if xxh3_64_intdigest(body, at) != checksum:
            raise self._error(at, "found a frame whose checksum does not match")
        self._offset += HEAD.size + size
        self._left -= HEAD.size + size
        try:
            frame = msgpack.unpackb(body)
        except (ValueError, msgpack.exceptions.UnpackException) as error:
            raise self._error(at, f"found a frame that is not msgpack: {error}") from error
        if not isinstance(frame, list):
            raise self._error(at, "found a frame that is not an array")
        return frame

    def _error(self, offset: int, reason: str) -> SnapshotError:
        return SnapshotError(self._path, offset, reason)
