"""The commands `import-snapshot` and `export-snapshot`: move data between a memory store and the replicated store.

import   file ──> every key is checked ──> bucket marked ──> keys, step by step ──> mark removed
export   bucket ──> a copy in memory, as an instance has it ──> file, as of one moment

Standard error shows the progress. Lifetimes that remain are measured by the clock of this machine, as `Store.save` and
`Store.load` do it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from time import monotonic, time_ns
from typing import NamedTuple, TypeVar

from keyvalue_engine import LimitError, SnapshotError
from keyvalue_engine.options import TTL_MS_MAX
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.start_plan import StartPlan, read_standalone_plan
from keyvalue_provider.observe.log import printable, set_up_log
from keyvalue_provider.process import kv_bucket_of
from keyvalue_replica.core import Outgoing
from keyvalue_replica.errors import NotStoredError, StreamError, UnavailableError
from keyvalue_replica.follower import Follower
from keyvalue_replica.importing import Import, Progress
from keyvalue_replica.promise import Promise
from keyvalue_replica.stream import stream_state
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

__all__ = ["move"]

T = TypeVar("T")

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
INTERRUPTED = 130


class Found(NamedTuple):
    """A key of a snapshot.

    :ivar deadline_ms: in Unix time; None if the key does not expire
    """

    bucket: bytes
    key: bytes
    value: bytes
    deadline_ms: int | None


class RefusedError(Exception):
    """The command does nothing, because the file or the keys in it are not as they must be."""


def move(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run one of the two commands. Return the exit code.

    :raises ValueError: an option is wrong
    """
    plan, configuration = read_standalone_plan(arguments, environment)
    options = configuration.options
    set_up_log(options.log_level or "warn", bool(options.structured_logging))
    try:
        if arguments.command == "import-snapshot":
            with Reader(arguments.file) as reader:
                asyncio.run(_import(reader, arguments.skip, plan, options))
        else:
            asyncio.run(_export(arguments.file, arguments.force, plan, options))
    except (SnapshotError, RefusedError) as error:
        _tell(str(error))
        return 2
    except OSError as error:
        _tell(f"{arguments.file}: {error.strerror or error}")
        return 2
    except (ConnectError, DisconnectedError, StreamError, UnavailableError, NotStoredError) as error:
        _tell(str(error))
        return 1
    except KeyboardInterrupt:
        _tell("interrupted")
        return INTERRUPTED
    return 0


def _tell(text: str) -> None:
    sys.stderr.write(f"keyvalue-inmemory: {printable(text)}\n")
    sys.stderr.flush()


async def _when_ready(ask: Callable[[], Awaitable[T]], options: ProviderOptions) -> T:
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
                _tell(f"{error}; trying again for up to {options.connect_timeout_ms:,} ms")
            is_told = True
        await asyncio.sleep(RETRY_S)


async def _import(reader: Reader, skip: bool, plan: StartPlan, options: ProviderOptions) -> None:
    replica_options = replace(options.replica_options(kv_bucket_of(plan)), secret=reader.secret)
    digest = reader.digest()
    connection = await Connection.open(plan.connection)
    try:
        importing = Import(connection, replica_options, digest)
        await _when_ready(importing.look, options)
        _tell("checking the snapshot")
        keys, misfits = await _check(reader, importing)
        if misfits and not skip:
            raise RefusedError(f"nothing was imported: {misfits} keys do not fit (--skip imports the others)")
        if reader.secret is None:
            _tell("the snapshot has format 1 or 2: cursors of the memory store will be invalid")
        progress = await importing.begin()
        if progress.keys:
            _tell(f"continuing after {progress.keys:,} of {keys:,} keys")
        try:
            progress = await _fill(reader, importing, progress, keys)
            await importing.end()
        except BaseException:
            _tell("not finished: run the same command again to continue")
            raise
    finally:
        await connection.close()
    _tell(
        f"imported {keys - misfits - progress.expired:,} of {keys:,} keys into the KV bucket {replica_options.bucket};"
        f" {progress.expired:,} had expired, {misfits:,} do not fit"
    )


async def _check(reader: Reader, importing: Import) -> tuple[int, int]:
    """Read the whole snapshot. Return the number of its keys, and of those that do not fit. Name these."""
    keys = misfits = 0
    async for found in _paced(reader):
        keys += 1
        try:
            importing.message(found.bucket, found.key, found.value, None)
        except LimitError as error:
            misfits += 1
            if misfits <= NAMED_MAX:
                _tell(f"does not fit: bucket {_shown(found.bucket)}, key {_shown(found.key)}: {error}")
    if misfits > NAMED_MAX:
        _tell(f"does not fit: {misfits - NAMED_MAX:,} more keys")
    return keys, misfits


async def _fill(reader: Reader, importing: Import, begun: Progress, keys: int) -> Progress:
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
        except LimitError:  # `_check` has counted and named it
            continue
        step_bytes += len(key) + len(value)
        if len(messages) >= STEP_KEYS or step_bytes >= STEP_BYTES:
            await importing.put(messages, Progress(done, expired))
            messages, step_bytes = [], 0
            if monotonic() - told_s > TELL_S:
                told_s = monotonic()
                _tell(f"{done:,} of {keys:,} keys")
    progress = Progress(done, expired)
    await importing.put(messages, progress)
    return progress


async def _paced(reader: Reader) -> AsyncIterator[Found]:
    """Yield all keys, and let other tasks run after each block, so that NATS gets its answers."""
    for bucket, entries in reader:
        for key, value, deadline_ms in entries:
            yield Found(bucket, key, value, deadline_ms)
        await asyncio.sleep(0)


class Bystander:
    """Serves nothing while the follower follows the bucket. Implements `Serving`."""

    async def join(self) -> None:
        """Do nothing."""

    async def leave(self) -> None:
        """Do nothing."""


async def _export(path: str, force: bool, plan: StartPlan, options: ProviderOptions) -> None:
    _check_target(path, force)
    replica_options = replace(options.replica_options(kv_bucket_of(plan)), creates=False)
    timeout_s = options.connect_timeout_ms / 1000
    connection = await Connection.open(plan.connection)
    try:
        follower = Follower(connection, replica_options)
        if await _when_ready(partial(stream_state, follower.api, follower.layout), options) is None:
            raise StreamError(f"the KV bucket {replica_options.bucket} does not exist (jetstream_bucket)")
        core = await follower.open(options.store_options(), timeout_s)
        follower.start(Bystander())
        try:
            await _caught_up(follower, timeout_s)
            saved = asyncio.get_running_loop().create_future()

            def save(barrier: Promise) -> None:
                """Save the store while it is whole: the event loop, and so the next change, waits."""
                try:
                    barrier.result()
                    _check_target(path, force)
                    while core.store.sweep():
                        pass
                    core.store.save(path)
                except (NotStoredError, RefusedError, OSError) as error:
                    saved.set_exception(error)
                else:
                    saved.set_result(None)

            core.barrier().add_done_callback(save)
            await saved
            foreign = follower.counts.foreign
            _tell(
                f"exported {len(core.store):,} keys of the KV bucket {replica_options.bucket} to {path}"
                + (f"; {foreign:,} messages of other clients are no keys of this store" if foreign else "")
            )
        finally:
            await follower.stop()
    finally:
        await connection.close()


def _check_target(path: str, force: bool) -> None:
    """Check that a snapshot may be written to a path.

    :raises RefusedError: the file exists, or its directory does not
    """
    if os.path.lexists(path) and not force:
        raise RefusedError(f"{path} exists (--force replaces it)")
    if not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise RefusedError(f"{path}: the directory does not exist")


async def _caught_up(follower: Follower, timeout_s: float) -> None:
    """Wait until the copy is complete.

    :raises StreamError: nothing has arrived for a time
    """
    applied, ends_s = 0, monotonic() + timeout_s
    while True:
        try:
            async with asyncio.timeout(TELL_S):
                return await follower.wait_caught_up()
        except TimeoutError:
            if follower.applied != applied:
                applied, ends_s = follower.applied, monotonic() + timeout_s
            elif monotonic() > ends_s:
                raise StreamError(follower.fault or "the bucket can't be read") from None
            _tell(follower.fault or "reading")


def _shown(name: bytes) -> str:
    text = name.decode(errors="backslashreplace")
    return text if len(text) <= NAME_CHARACTERS_MAX else f"{text[:NAME_CHARACTERS_MAX]}... ({len(name):,} bytes)"
