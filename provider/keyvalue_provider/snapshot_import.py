"""The import of a memory store's snapshot into the KV bucket of the replicated store.

    file ──> every key is checked ──> bucket marked ──> keys, step by step ──> mark removed

The command `import-snapshot` does it, and so does a start with an empty bucket if `snapshot_path` names a file. Lifetimes
that remain are measured by the clock of this machine, as `Store.save` and `Store.load` do it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from time import monotonic, time_ns
from typing import NamedTuple, TypeAlias, TypeVar

from keyvalue_engine import LimitError, SnapshotError
from keyvalue_engine.options import TTL_MS_MAX
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.start_plan import StartPlan
from keyvalue_provider.keyvalue.snapshots import UnusableSnapshotError
from keyvalue_replica.errors import StreamError, UnavailableError, UnfitNameError
from keyvalue_replica.importing import Import, Progress
from keyvalue_replica.outgoing import Outgoing
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = [
    "TELL_S",
    "RefusedError",
    "Tell",
    "check",
    "fill",
    "import_at_start",
    "import_snapshot",
    "importing_of",
    "kv_bucket_of",
    "when_ready",
]

log = logging.getLogger("keyvalue_provider")

T = TypeVar("T")
#: Shows a line about the progress.
Tell = Callable[[str], object]
#: The blocks of a snapshot: the name of a bucket, and keys with values and deadlines.
Blocks: TypeAlias = Iterable[tuple[bytes, list[tuple[bytes, bytes, int | None]]]]

NS_PER_MS = 1_000_000
#: A step ends when it has this many keys, or bytes of keys and values. The server refuses messages if more than 10,000
#: wait for it.
STEP_KEYS = 2_000
STEP_BYTES = 1024 * 1024
#: Seconds between two lines about the progress.
TELL_S = 2.0
RETRY_S = 0.25
#: Number of keys that do not fit which are named, and the characters of a name that are shown.
NAMED_MAX = 20
NAME_CHARACTERS_MAX = 80


class Found(NamedTuple):
    """A key of a snapshot.

    :ivar deadline_ms: in Unix time; None if the key does not expire
    """

    bucket: bytes
    key: bytes
    value: bytes
    deadline_ms: int | None


class RefusedError(Exception):
    """Nothing is done, because the file or the keys in it are not as they must be."""


async def import_at_start(plan: StartPlan, options: ProviderOptions, connection: Connection) -> None:
    """Import the file `snapshot_path` if it exists, and if the KV bucket is empty or holds a part of it.

    A snapshot that was imported earlier is not imported again, although its keys may all have been deleted meanwhile.

    :raises UnusableSnapshotError: the file is damaged or unreadable, or has keys that do not fit
    :raises StreamError: the bucket can't be used
    """
    path = options.snapshot_path
    assert path is not None
    tell = log.info
    try:
        with Reader(path) as reader:
            unnamed = Import(connection, options.replica_options(kv_bucket_of(plan)), "")
            use = await when_ready(unnamed.use, options, tell)
            if not use:
                importing = importing_of(reader, plan, options, connection)
                if not await importing.was_done():
                    await import_snapshot(reader, importing, False, tell, None)
                    return
                use = "it was imported earlier"
            log.info("the snapshot %s is not imported: %s", path, use)
    except FileNotFoundError:
        log.info("there is no snapshot at %s: nothing is imported", path)
    except SnapshotError as error:
        raise UnusableSnapshotError(str(error)) from None
    except RefusedError as error:
        raise UnusableSnapshotError(f"{path}: {error}") from None
    except OSError as error:
        raise UnusableSnapshotError(f"{path}: {error.strerror or error}") from None
    except UnavailableError as error:
        raise StreamError(str(error)) from None


def kv_bucket_of(plan: StartPlan) -> str:
    """Return the name of the KV bucket if no option sets it: the provider key, or the prefix without a host."""
    name = plan.prefix if plan.host_data is None else plan.host_data.provider_key
    return re.sub("[^-_A-Za-z0-9]", "_", name)


def importing_of(reader: Reader, plan: StartPlan, options: ProviderOptions, connection: Connection) -> Import:
    """Return the import of a snapshot. It keeps the order of the keys. This reads the whole file."""
    replica_options = replace(options.replica_options(kv_bucket_of(plan)), secret=reader.secret)
    return Import(connection, replica_options, reader.digest())


async def import_snapshot(reader: Reader, importing: Import, skip: bool, tell: Tell, tell_names: Tell | None) -> None:
    """Fill an empty bucket, or go on with an import that was interrupted.

    :param skip: True to leave out the keys that do not fit
    :param tell_names: shows the names of these keys; None if nobody may see them
    :raises RefusedError: keys do not fit; nothing was imported
    :raises SnapshotError: the file is damaged; nothing was imported
    """
    tell("checking the snapshot")
    keys, misfits = await check(reader, importing, tell_names)
    if misfits and not skip:
        raise RefusedError(
            f"nothing was imported: {misfits} keys do not fit (import-snapshot --skip names them and imports the others)"
        )
    if reader.secret is None:
        tell("the snapshot has format 1 or 2: cursors of the memory store will be invalid")
    progress = await importing.begin()
    if progress.keys:
        tell(f"continuing after {progress.keys:,} of {keys:,} keys")
    try:
        progress = await fill(reader, importing, progress, keys, tell)
        await importing.end()
    except BaseException:
        tell("the import is not finished: do the same again to continue")
        raise
    tell(
        f"imported {keys - misfits - progress.expired:,} of {keys:,} keys into the KV bucket {importing.bucket};"
        f" {progress.expired:,} had expired, {misfits:,} do not fit"
    )


async def when_ready(ask: Callable[[], Awaitable[T]], options: ProviderOptions, tell: Tell) -> T:
    """Return the answer to `ask`. While JetStream is not ready, ask again, within `connect_timeout_ms`.

    :raises UnavailableError: JetStream is still not ready
    :raises DisconnectedError: the connection is lost
    """
    ends_s, is_told = monotonic() + options.connect_timeout_ms / 1000, False
    while True:
        try:
            return await ask()
        except (UnavailableError, DisconnectedError) as error:
            if monotonic() > ends_s:
                raise
            if not is_told:
                tell(f"{error}; trying again for up to {options.connect_timeout_ms:,} ms")
            is_told = True
        await asyncio.sleep(RETRY_S)


async def check(reader: Blocks, importing: Import, tell: Tell | None) -> tuple[int, int]:
    """Read a whole snapshot. Return the number of its keys, and of those that do not fit. Show the names of these."""
    keys = misfits = 0
    async for found in _paced(reader):
        keys += 1
        try:
            importing.message(found.bucket, found.key, found.value, None)
        except (LimitError, UnfitNameError) as error:
            misfits += 1
            if tell is not None and misfits <= NAMED_MAX:
                tell(f"does not fit: bucket {_shown(found.bucket)}, key {_shown(found.key)}: {error}")
    if tell is not None and misfits > NAMED_MAX:
        tell(f"does not fit: {misfits - NAMED_MAX:,} more keys")
    return keys, misfits


async def fill(reader: Blocks, importing: Import, begun: Progress, keys: int, tell: Tell) -> Progress:
    """Publish the keys after `begun`, step by step."""
    told_s, step_bytes = monotonic(), 0
    done, expired = 0, begun.expired
    messages: list[Outgoing] = []
    async for bucket, key, value, deadline_ms in _paced(reader):
        done += 1
        if done <= begun.keys:
            continue
        ttl_ms = None if deadline_ms is None else min(deadline_ms - time_ns() // NS_PER_MS, TTL_MS_MAX)
        if ttl_ms is not None and ttl_ms <= 0:
            expired += 1
            continue
        try:
            messages.append(importing.message(bucket, key, value, ttl_ms))
        except (LimitError, UnfitNameError):  # `check` has counted and named it
            continue
        step_bytes += len(key) + len(value)
        if len(messages) >= STEP_KEYS or step_bytes >= STEP_BYTES:
            await importing.put(messages, Progress(done, expired))
            messages, step_bytes = [], 0
            if monotonic() - told_s > TELL_S:
                told_s = monotonic()
                tell(f"{done:,} of {keys:,} keys")
    progress = Progress(done, expired)
    await importing.put(messages, progress)
    return progress


async def _paced(reader: Blocks) -> AsyncIterator[Found]:
    """Yield all keys, and let other tasks run after each block, so that NATS gets its answers."""
    for bucket, entries in reader:
        for key, value, deadline_ms in entries:
            yield Found(bucket, key, value, deadline_ms)
        await asyncio.sleep(0)


def _shown(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return text if len(text) <= NAME_CHARACTERS_MAX else f"{text[:NAME_CHARACTERS_MAX]}... ({len(name):,} bytes)"
