"""The formats of an export. Each turns keys and values into the next bytes of the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from keyvalue_provider.client.records import json_line
from keyvalue_provider.client.transfer.progress import ProgressLine

__all__ = ["JSONL", "SNAPSHOT", "Entry", "ExportWriter", "Written", "format_of"]

Entry = tuple[bytes, bytes]
JSONL, SNAPSHOT = "jsonl", "snapshot"


@dataclass
class Written:
    """The size and the contents of the file so far."""

    offset: int = 0
    blocks: int = 0
    keys: int = 0


class _Format(Protocol):
    """A format. Each method returns the bytes that follow what is written."""

    def begin(self) -> bytes: ...

    def block(self, entries: Sequence[Entry]) -> bytes: ...

    def end(self) -> bytes: ...


def format_of(name: str | None, path: str) -> str:
    """Return the name of the format: the chosen one, or that of the path."""
    return name or (SNAPSHOT if path.endswith(".snapshot") else JSONL)


class _JsonLines:
    """One line of JSON for each key."""

    def begin(self) -> bytes:
        """Return nothing."""
        return b""

    def block(self, entries: Iterable[Entry]) -> bytes:
        """Return the lines of keys."""
        return b"".join([json_line(key, value) for key, value in entries])

    def end(self) -> bytes:
        """Return nothing."""
        return b""


class _SnapshotFrames:
    """The frames of a snapshot, as in `keyvalue_engine.snapshot`. A frame's checksum depends on its offset."""

    def __init__(self, bucket: str, written: Written) -> None:
        self._bucket = bucket.encode()
        self._written = written

    def begin(self) -> bytes:
        """Return the header. Its secret is random, because calls do not show that of the store."""
        from keyvalue_engine.context import SECRET_BYTES
        from keyvalue_engine.snapshot import FORMAT, HEADER, VERSION

        return self._frame([HEADER, FORMAT, VERSION, os.urandom(SECRET_BYTES)])

    def block(self, entries: Iterable[Entry]) -> bytes:
        """Return a block of keys, without deadlines."""
        from keyvalue_engine.snapshot import BLOCK

        return self._frame([BLOCK, self._bucket, [part for entry in entries for part in entry], {}])

    def end(self) -> bytes:
        """Return the frame with the counts."""
        from keyvalue_engine.snapshot import END

        return self._frame([END, self._written.blocks, self._written.keys])

    def _frame(self, body: list[Any]) -> bytes:
        import msgpack

        from keyvalue_engine.snapshot_writer import frame_at

        return b"".join(frame_at(self._written.offset, msgpack.packb(body)))


class ExportWriter:
    """The writer of an export.

    :param name: the name of the format
    :param written: what was written before; the writer updates it
    :param write: takes the next bytes
    """

    def __init__(
        self, name: str, bucket: str, written: Written, write: Callable[[bytes], object], progress: ProgressLine
    ) -> None:
        self.written = written
        self._format: _Format = _SnapshotFrames(bucket, written) if name == SNAPSHOT else _JsonLines()
        self._write = write
        self._progress = progress

    def begin(self) -> None:
        """Write the bytes before the first key."""
        self._append(self._format.begin())

    def block(self, entries: Sequence[Entry]) -> None:
        """Write keys and their values."""
        self._append(self._format.block(entries))
        self.written.blocks += 1
        self.written.keys += len(entries)
        self._progress.add(len(entries))

    def end(self) -> None:
        """Write the bytes after the last key."""
        self._append(self._format.end())

    def _append(self, content: bytes) -> None:
        self._write(content)
        self.written.offset += len(content)
