"""The keys and values of a file, as an import reads them.

The reader does not block the event loop while it waits for a pipe, so answers and NATS' pings are still handled.
"""

from __future__ import annotations

import asyncio
import os
from codecs import BOM_UTF8
from collections.abc import AsyncIterator
from itertools import islice
from typing import NamedTuple

from keyvalue_engine.errors import SnapshotError
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.client.records import MalformedFileError, TransferError, read_json_line

__all__ = ["STANDARD_STREAM", "Record", "json_records", "snapshot_records"]

#: The name of standard input and output on the command line.
STANDARD_STREAM = "-"
READ_BYTES = 1024 * 1024
#: Limit for a line. A value of 64 MiB, the limit for a result, fits in base64.
LINE_BYTES_MAX = 128 * 1024 * 1024

#: Limits for the buckets that an error names, and for the characters of each.
NAMES_MAX, NAME_LENGTH_MAX = 5, 80


class Record(NamedTuple):
    """A key and its value.

    :ivar number: the number of the record in the file, from 1 on; for JSON lines, that of the line
    :ivar deadline_ms: the Unix time at which the key expires, or None
    """

    number: int
    bucket: str
    key: bytes
    value: bytes
    deadline_ms: int | None = None


async def json_records(descriptor: int, bucket: str, skipped: int) -> AsyncIterator[list[Record]]:
    """Yield the records of JSON lines in lists, after the first lines (`skipped`). Empty lines are ignored.

    :raises MalformedFileError: a line is malformed
    """
    number = 0
    async for lines in _lines(descriptor):
        records: list[Record] = []
        for line in lines:
            number += 1
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if number <= skipped or not line.strip():
                continue
            try:
                key, value = read_json_line(line)
            except MalformedFileError as error:
                if records:
                    yield records
                raise MalformedFileError(f"line {number}: {error}") from None
            records.append(Record(number, bucket, key, value))
        yield records


async def snapshot_records(path: str, bucket: str | None, skipped: int) -> AsyncIterator[list[Record]]:
    """Yield the records of a snapshot in lists, after the first ones (`skipped`).

    :param bucket: the only bucket to read; None for all
    :raises MalformedFileError: the file is not a snapshot, or is damaged
    :raises TransferError: the snapshot lacks the bucket
    """
    number = 0
    others: dict[str, None] = {}
    is_present = bucket is None
    try:
        with Reader(path) as reader:
            for raw_name, entries in reader:
                name = raw_name.decode()
                first, number = number + 1, number + len(entries)
                if bucket not in (None, name):
                    if len(others) <= NAMES_MAX:
                        others[name] = None
                    continue
                is_present = True
                if number > skipped:
                    numbered = enumerate(entries, first)
                    yield [
                        Record(at, name, *entry) for at, entry in islice(numbered, max(0, skipped - first + 1), None)
                    ]
    except SnapshotError as error:
        raise MalformedFileError(str(error)) from None
    if not is_present:
        names = [repr(name[:NAME_LENGTH_MAX]) for name in others]
        has = ", ".join([*names[:NAMES_MAX], *(["..."] if len(names) > NAMES_MAX else [])]) or "none"
        raise TransferError(f"the snapshot has no bucket {bucket!r}; it has: {has}")


async def _lines(descriptor: int) -> AsyncIterator[list[bytes]]:
    """Yield lines without their line feeds, in lists."""
    begun: list[bytes] = []  # the parts of a line whose end has not been read
    size_bytes = 0
    while chunk := await _read(descriptor):
        first, *lines = chunk.split(b"\n")
        begun.append(first)
        size_bytes += len(first)
        if size_bytes > LINE_BYTES_MAX:
            raise MalformedFileError(f"found a line of more than {LINE_BYTES_MAX} bytes")
        if lines:
            lines.insert(0, b"".join(begun))
            begun = [lines.pop()]
            size_bytes = len(begun[0])
            yield lines
    yield [b"".join(begun)]


async def _read(descriptor: int) -> bytes:
    """Read what is there. Wait for a pipe, a socket or a terminal until something is there."""
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, is_readable.set)
    except PermissionError:  # a regular file is always readable
        await asyncio.sleep(0)
    else:
        try:
            await is_readable.wait()
        finally:
            loop.remove_reader(descriptor)
    return os.read(descriptor, READ_BYTES)
