"""`wrpc-kv export`: all keys of a bucket to a file or to standard output.

    list-keys ──> page of keys ──> get-many, several in flight ──> the file, in order ──> position noted at each page

A file gets the suffix `.part` until it is complete. So an old file stays until the new one replaces it, which needs
`--force`. After an interruption, the export cuts the part off after the last noted page, and continues at the next page. It refuses to
continue if the order of the keys has changed, as in a memory store that was restarted, because it could miss keys.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, BinaryIO, NamedTuple

from keyvalue_provider.client.records import TransferError
from keyvalue_provider.client.session import Session
from keyvalue_provider.client.streams import Output, key_count, say, shown
from keyvalue_provider.client.transfer.formats import Entry, ExportWriter, Written, format_of
from keyvalue_provider.client.transfer.position import PositionFile
from keyvalue_provider.client.transfer.progress import ProgressLine
from keyvalue_provider.client.transfer.sources import STANDARD_STREAM
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.calls import KeyValueCalls

__all__ = ["export_bucket"]

#: The batches in flight, including the one that is being written.
IN_FLIGHT_MAX = 8
#: A batch has at most this many keys. It has fewer if the values of the last batch were large.
BATCH_KEYS, FIRST_BATCH_KEYS = 1000, 16
BATCH_BYTES = 1024 * 1024
#: The keys of a page that are noted to recognize the order, and the part of them that must still be there.
NOTED_KEYS, NOTED_PART = 32, 2


class WrittenPage(NamedTuple):
    """A page of keys that was written as a whole.

    :ivar begin: its cursor; None for the first page
    :ivar keys: its first keys
    :ivar next: the cursor of the next page; None for the last page
    """

    begin: int | None
    keys: list[str]
    next: int | None


class Fetched(NamedTuple):
    """A batch of keys, whose values are on their way.

    :ivar page: the page, if this is its last batch
    """

    values: asyncio.Task[list[Entry]]
    page: WrittenPage | None


async def export_bucket(session: Session, arguments: argparse.Namespace) -> None:
    """Run the command.

    :raises TransferError: the file exists, or the export cannot continue where it was interrupted
    """
    progress = ProgressLine()
    try:
        if arguments.file == STANDARD_STREAM:
            output = Output()
            await _to_stream(session.client, arguments, output.write, ProgressLine(not output.is_terminal))
            return
        if is_special(arguments.file):
            with _opened(arguments.file, os.O_WRONLY) as file:
                written = await _to_stream(session.client, arguments, file.write, progress)
        else:
            written = await _to_file(session.client, arguments, progress)
    finally:
        progress.end()
    if arguments.json:
        Output().json({"keys": written.keys, "bytes": written.offset})
    else:
        say(f"wrpc-kv: {key_count(written.keys)} exported to {shown(arguments.file)}")


def is_special(path: str) -> bool:
    """Return True for a pipe or a device, which has no position."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _target(path: str) -> str:
    """Return the path of the file itself. A symbolic link stays.

    :raises IsADirectoryError: the path is a directory
    """
    real = os.path.realpath(path)
    if os.path.isdir(real):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    return real


def _check_free(path: str, arguments: argparse.Namespace) -> None:
    """Check that the export may write this file.

    :raises TransferError: the file exists, and `--force` is missing
    """
    if not arguments.force and os.path.lexists(path):
        raise TransferError(f"{arguments.file} exists (--force replaces it)")


def _opened(path: str, flags: int) -> BinaryIO:
    """Open a file. Nobody else can read a new file, because values may be secret."""
    descriptor = os.open(path, flags, 0o600)
    return os.fdopen(descriptor, "wb" if flags == os.O_WRONLY else "r+b")


async def _to_stream(
    client: KeyValueCalls, arguments: argparse.Namespace, write: Callable[[bytes], object], progress: ProgressLine
) -> Written:
    """Export to standard output or to a pipe. Nothing can continue later."""
    name = format_of(arguments.format, arguments.file)
    writer = ExportWriter(name, arguments.bucket, Written(), write, progress)
    writer.begin()
    async with aclosing(_fetch(client, arguments.bucket, None)) as batches:
        async for fetched in batches:
            writer.block(await fetched.values)
    writer.end()
    return writer.written


async def _to_file(client: KeyValueCalls, arguments: argparse.Namespace, progress: ProgressLine) -> Written:
    """Export to a file, and continue an interrupted export."""
    path, name = _target(arguments.file), format_of(arguments.format, arguments.file)
    about = {"prefix": arguments.prefix, "bucket": arguments.bucket, "format": name}
    position = PositionFile(f"{path}.exporting", about)
    part = f"{path}.part"
    _check_free(path, arguments)
    try:
        file = _opened(part, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        error.filename = arguments.file  # the user did not name the part
        raise
    with file:
        lock(file, part)
        if arguments.restart:
            position.remove()
        try:
            written, page = await _begin(client, arguments.bucket, position.read(), file, part)
            writer = ExportWriter(name, arguments.bucket, written, file.write, progress)
            if page is None:
                writer.begin()
            if page is None or page.next is not None:
                cursor = None if page is None else page.next
                async with aclosing(_fetch(client, arguments.bucket, cursor)) as batches:
                    await _write_pages(batches, writer, file, position)
            writer.end()
            file.flush()
            os.fsync(file.fileno())
            _check_free(path, arguments)
            os.replace(part, path)
        except BaseException:
            if not position.exists():
                os.unlink(part)
            raise
    position.remove()
    return written


async def _write_pages(
    batches: AsyncIterator[Fetched], writer: ExportWriter, file: BinaryIO, position: PositionFile
) -> None:
    """Write all pages. Note the position now and then, and if the command is interrupted."""
    noted: dict[str, Any] | None = None

    def note() -> None:
        if noted is not None:
            file.flush()
            position.note(noted)

    try:
        async for fetched in batches:
            writer.block(await fetched.values)
            if fetched.page is not None:
                noted = {"page": fetched.page._asdict(), "written": asdict(writer.written)}
                if position.is_due():
                    note()
    except BaseException:
        note()
        raise


async def _begin(
    client: KeyValueCalls, bucket: str, noted: dict[str, Any] | None, file: BinaryIO, part: str
) -> tuple[Written, WrittenPage | None]:
    """Go to the position of an interrupted export, or to the start. Cut off the rest of the file.

    :raises TransferError: the part or the order of the keys is another one
    """
    written, page = Written(), None
    if noted is not None:
        try:
            written, page = Written(**noted["written"]), WrittenPage(**noted["page"])
        except (KeyError, TypeError):
            raise TransferError(f"{part}: the noted position is malformed; --restart begins again") from None
        if os.fstat(file.fileno()).st_size < written.offset:
            raise TransferError(f"{part}: the file is shorter than the noted position; --restart begins again")
        present = [key.decode() for key in (await client.list_keys(bucket, page.begin)).keys]
        if not is_same_order(page.keys, present):
            raise TransferError(
                f"{part}: the provider lists the keys in another order than before, or many are gone; "
                "--restart begins again"
            )
        say(f"wrpc-kv: continuing after {key_count(written.keys)}")
    file.seek(written.offset)
    file.truncate()
    return written, page


def is_same_order(noted: Sequence[str], present: Sequence[str]) -> bool:
    """Return True if most of the noted keys are still present, in the same order.

    >>> is_same_order(["a", "b", "c", "d"], ["a", "new", "c"]), is_same_order(["a", "b"], ["b", "a"])
    (True, False)
    """
    common = set(noted) & set(present)
    kept = [key for key in noted if key in common]
    return kept == [key for key in present if key in common] and len(kept) * NOTED_PART >= len(noted)


async def _fetch(client: KeyValueCalls, bucket: str, cursor: int | None) -> AsyncGenerator[Fetched, None]:
    """Yield batches in the provider's order, from a page on. Several are in flight."""
    in_flight: deque[Fetched] = deque()
    batch_keys = FIRST_BATCH_KEYS
    try:
        while True:
            page = await client.list_keys(bucket, cursor)
            keys = list(page.keys)
            whole = WrittenPage(cursor, [key.decode() for key in keys[:NOTED_KEYS]], page.cursor)
            begin = 0
            while begin < len(keys) or begin == 0:
                batch = keys[begin : begin + batch_keys]
                begin += batch_keys
                values = asyncio.create_task(_values(client, bucket, batch))
                in_flight.append(Fetched(values, whole if begin >= len(keys) else None))
                if len(in_flight) >= IN_FLIGHT_MAX:
                    fetched = in_flight.popleft()
                    batch_keys = _batch_keys(await fetched.values)
                    yield fetched
            cursor = page.cursor
            if cursor is None:
                break
        while in_flight:
            yield in_flight.popleft()
    finally:
        for fetched in in_flight:
            fetched.values.cancel()
        await asyncio.gather(*(fetched.values for fetched in in_flight), return_exceptions=True)


def _batch_keys(last: Sequence[Entry]) -> int:
    """Return the number of keys whose values are about BATCH_BYTES, if they are as large as the last ones."""
    size = sum(len(value) for _, value in last)
    return max(1, min(BATCH_KEYS, BATCH_BYTES * len(last) // size if size else BATCH_KEYS))


async def _values(client: KeyValueCalls, bucket: str, keys: list[bytes]) -> list[Entry]:
    """Return the keys that exist, with their values. If an answer would be too large, ask in parts."""
    if not keys:
        return []
    if len(keys) == 1:
        value = await client.get(bucket, keys[0])
        return [] if value is None else [(keys[0], value)]
    try:
        values = await client.get_many(bucket, keys)
    except OtherError:
        half = len(keys) // 2
        return [*await _values(client, bucket, keys[:half]), *await _values(client, bucket, keys[half:])]
    return [(key, value) for key, value in zip(keys, values, strict=True) if value is not None]


def lock(file: BinaryIO, path: str) -> None:
    """Lock the file until it is closed.

    :raises TransferError: another process has locked it, or has just completed it
    """
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        is_same = False
    except OSError:
        return  # a file system without locks
    if not is_same:
        raise TransferError(f"{path}: another export writes this file")
