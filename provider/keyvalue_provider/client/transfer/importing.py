"""`wrpc-kv import`: the keys of a file or of standard input to the provider.

    records ──> batches ──> set-many, several in flight ──> position noted after the batches that are stored

A key that is in flight is not sent again until it is stored, so the last value of a key in the file is the last one
that is stored. Storing a key again does no harm. So an interrupted import continues after the last noted record.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import stat
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import time_ns

from keyvalue_provider.client.records import MalformedFileError, TransferError
from keyvalue_provider.client.session import Session, missing_bucket
from keyvalue_provider.client.streams import Output, StandardStreamError, key_count, say, shown
from keyvalue_provider.client.transfer.exporting import is_special
from keyvalue_provider.client.transfer.formats import SNAPSHOT, format_of
from keyvalue_provider.client.transfer.position import PositionFile
from keyvalue_provider.client.transfer.progress import ProgressLine
from keyvalue_provider.client.transfer.sources import STANDARD_STREAM, Record, json_records, snapshot_records
from keyvalue_transport.keyvalue.errors import InterfaceError, NoSuchStoreError, OtherError
from keyvalue_transport.nats.calls import KeyValueCalls
from keyvalue_transport.wrpc.errors import TransportError

__all__ = ["import_file"]

IN_FLIGHT_MAX = 8
#: A batch ends at this many keys or bytes. The bytes fit into one message of NATS.
BATCH_KEYS, BATCH_BYTES = 1000, 512 * 1024
#: Limit for the bytes in flight. A provider holds only a share of its memory for the calls of one caller.
BYTES_IN_FLIGHT_MAX = 16 * 1024 * 1024


@dataclass
class Batch:
    """Keys of one bucket that are stored together.

    :ivar last: the number of the last record
    """

    bucket: str
    entries: dict[bytes, bytes] = field(default_factory=dict)
    size_bytes: int = 0
    last: int = 0

    def add(self, record: Record) -> None:
        """Add a key, or replace its value."""
        self.entries[record.key] = record.value
        self.size_bytes += len(record.key) + len(record.value)
        self.last = record.number

    def takes(self, record: Record) -> bool:
        """Return True if the key belongs into this batch."""
        size_bytes = self.size_bytes + len(record.key) + len(record.value)
        return record.bucket == self.bucket and len(self.entries) < BATCH_KEYS and size_bytes <= BATCH_BYTES


class Importing:
    """The batches in flight, and the counts.

    :ivar stored: the keys that are stored
    :ivar done: the number of the last record up to which everything is stored
    :ivar expired: the keys that were left out, because they have expired
    :ivar lasting: the keys that do not expire any more
    """

    def __init__(self, client: KeyValueCalls, progress: ProgressLine, position: PositionFile | None, done: int) -> None:
        self.stored = self.expired = self.lasting = 0
        self.done = done
        self._client = client
        self._progress = progress
        self._position = position
        self._in_flight: deque[tuple[asyncio.Task[None], Batch]] = deque()
        self._keys: set[tuple[str, bytes]] = set()
        self._bytes = 0

    async def run(self, records: AsyncIterator[list[Record]]) -> None:
        """Store all records. If this fails, note how far everything is stored.

        :raises TransferError: the provider refuses a key
        """
        try:
            async for some in records:
                batch = Batch("")
                for record in some:
                    if not self._is_alive(record):
                        continue
                    if not batch.takes(record):
                        await self._send(batch)
                        batch = Batch(record.bucket)
                    batch.add(record)
                await self._send(batch)
            while self._in_flight:
                await self._settle()
        except BaseException as error:
            await self._give_up(waits=isinstance(error, TransferError))
            raise

    def _is_alive(self, record: Record) -> bool:
        if record.deadline_ms is None:
            return True
        if record.deadline_ms <= time_ns() // 1_000_000:
            self.expired += 1
            return False
        self.lasting += 1
        return True

    async def _send(self, batch: Batch) -> None:
        """Send a batch, when there is room for it and none of its keys is in flight."""
        if not batch.entries:
            return
        keys = {(batch.bucket, key) for key in batch.entries}
        while self._in_flight and (
            len(self._in_flight) >= IN_FLIGHT_MAX
            or self._bytes + batch.size_bytes > BYTES_IN_FLIGHT_MAX
            or not self._keys.isdisjoint(keys)
        ):
            await self._settle()
        self._keys |= keys
        self._bytes += batch.size_bytes
        self._in_flight.append((asyncio.create_task(_store(self._client, batch.bucket, batch.entries)), batch))

    async def _settle(self) -> None:
        """Wait until the oldest batch is stored."""
        task, batch = self._in_flight[0]
        await task
        self._in_flight.popleft()
        self._keys.difference_update((batch.bucket, key) for key in batch.entries)
        self._bytes -= batch.size_bytes
        self.stored += len(batch.entries)
        self.done = batch.last
        self._progress.add(len(batch.entries))
        if self._position is not None and self._position.is_due():
            self._position.note({"records": self.done})

    async def _give_up(self, waits: bool) -> None:
        """Wait for what is in flight, or cancel it. Note how far everything is stored, unless it is nothing."""
        with suppress(TransferError, TransportError, InterfaceError):  # the first error is reported
            while waits and self._in_flight:
                await self._settle()
        tasks = [task for task, _ in self._in_flight]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._position is not None and self.done:
            self._position.note({"records": self.done})


async def import_file(session: Session, arguments: argparse.Namespace) -> None:
    """Run the command.

    :raises TransferError: the file is malformed, or the provider refuses a key
    :raises IsADirectoryError: the file is a directory
    """
    name = format_of(arguments.format, arguments.file)
    position = None
    if arguments.file == STANDARD_STREAM:
        if name == SNAPSHOT:
            raise TransferError("a snapshot must be a file, because its checksums depend on offsets")
        if sys.stdin is None:
            raise StandardStreamError("standard input is closed")
        if sys.stdin.isatty():
            say("wrpc-kv: reading JSON lines from standard input; end them with Ctrl-D")
        descriptor = os.dup(0)
    else:
        descriptor = os.open(arguments.file, os.O_RDONLY)
    try:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), arguments.file)
        skipped = 0
        if arguments.file != STANDARD_STREAM and not is_special(arguments.file):
            position = _position_of(arguments, name, descriptor)
            skipped = _noted(position, arguments)
        bucket = None if arguments.every_bucket else arguments.bucket
        records = (
            snapshot_records(arguments.file, bucket, skipped)
            if name == SNAPSHOT
            else json_records(descriptor, arguments.bucket, skipped)
        )
        await _run(session.client, records, position, skipped, arguments)
    finally:
        os.close(descriptor)


async def _run(
    client: KeyValueCalls,
    records: AsyncIterator[list[Record]],
    position: PositionFile | None,
    skipped: int,
    arguments: argparse.Namespace,
) -> None:
    progress = ProgressLine()
    importing = Importing(client, progress, position, skipped)
    try:
        await importing.run(records)
    except BaseException as error:
        progress.end()
        if importing.done:
            how = f"record {importing.done} is the last one"
            if position is not None:
                is_malformed = isinstance(error, MalformedFileError)
                how = "correct the file, then use --restart" if is_malformed else "repeat the command to continue"
            say(f"wrpc-kv: {key_count(importing.stored)} stored; {how}")
        raise
    progress.end()
    if position is not None:
        position.remove()
    if arguments.json:
        counts = {"keys": importing.stored, "expired": importing.expired, "lasting": importing.lasting}
        Output().json(counts)
        return
    say(f"wrpc-kv: {key_count(importing.stored)} imported from {shown(arguments.file)}")
    if importing.expired or importing.lasting:
        say(
            f"wrpc-kv: {key_count(importing.expired)} left out as expired; {key_count(importing.lasting)} stored "
            "without a deadline, because a call cannot set one"
        )


def _position_of(arguments: argparse.Namespace, name: str, descriptor: int) -> PositionFile:
    status = os.fstat(descriptor)
    about = {
        "prefix": arguments.prefix,
        "bucket": None if name == SNAPSHOT and arguments.every_bucket else arguments.bucket,
        "format": name,
        "size": status.st_size,
        "time of change": status.st_mtime_ns,
    }
    return PositionFile(f"{os.path.realpath(arguments.file)}.importing", about)


def _noted(position: PositionFile, arguments: argparse.Namespace) -> int:
    """Return the number of records that an interrupted import has stored."""
    if arguments.restart:
        position.remove()
    noted = position.read()
    if noted is None:
        return 0
    records = noted.get("records")
    if type(records) is not int or records < 0:
        raise TransferError(f"{position.path}: the noted position is malformed; --restart begins again")
    say(f"wrpc-kv: continuing after record {records:,}")
    return records


async def _store(client: KeyValueCalls, bucket: str, entries: dict[bytes, bytes]) -> None:
    """Store keys. If the provider refuses them together, store them in parts.

    :raises TransferError: the provider refuses a key or the bucket
    """
    try:
        await client.set_many(bucket, entries)
    except NoSuchStoreError as error:  # a snapshot may have several buckets
        raise TransferError(missing_bucket(bucket)) from error
    except OtherError as error:
        if len(entries) == 1:
            (key,) = entries
            raise TransferError(f"key {shown(key.decode()[:80])!r}: {error}") from error
        pairs = list(entries.items())
        half = len(pairs) // 2
        await _store(client, bucket, dict(pairs[:half]))
        await _store(client, bucket, dict(pairs[half:]))
