"""The commands `import-snapshot` and `export-snapshot`: move data between a memory store and the replicated store.

import   `snapshot_import.py`
export   bucket ──> a copy in memory, as an instance has it ──> file, as of one moment

Standard error shows the progress.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from time import monotonic

from keyvalue_engine import SnapshotError
from keyvalue_engine.snapshot import Reader
from keyvalue_provider.client.streams import key_count
from keyvalue_provider.config.options import PLAIN, ProviderOptions
from keyvalue_provider.config.start_plan import StartPlan, read_standalone_plan
from keyvalue_provider.observe.log import printable, set_up_log
from keyvalue_provider.plain_import import import_buckets
from keyvalue_provider.snapshot_import import (
    TELL_S,
    RefusedError,
    import_snapshot,
    importing_of,
    kv_bucket_of,
    when_ready,
)
from keyvalue_replica.errors import NotStoredError, StreamError, UnavailableError
from keyvalue_replica.follower import Follower
from keyvalue_replica.promise import Promise
from keyvalue_replica.stream import stream_state
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

__all__ = ["move"]

INTERRUPTED = 130


def move(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Run one of the two commands. Return the exit code.

    :raises ValueError: an option is wrong
    """
    plan, configuration = read_standalone_plan(arguments, environment)
    options = configuration.options
    set_up_log(options.log_level or "warn", bool(options.structured_logging))
    try:
        if options.keys == PLAIN and arguments.command == "export-snapshot":
            raise RefusedError(
                "with keys=plain, each KV bucket has its own order of keys, and a snapshot has one for all buckets:"
                " use `wrpc-kv export`, or `nats stream backup`"
            )
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


class Bystander:
    """Serves nothing while the follower follows the bucket. Implements `Serving`."""

    async def join(self) -> None:
        """Do nothing."""

    async def leave(self) -> None:
        """Do nothing."""


async def _import(reader: Reader, skip: bool, plan: StartPlan, options: ProviderOptions) -> None:
    connection = await Connection.open(plan.connection)
    try:
        if options.keys == PLAIN:
            await import_buckets(reader, options, connection, skip, _tell)
            return
        importing = importing_of(reader, plan, options, connection)
        await when_ready(importing.look, options, _tell)
        await import_snapshot(reader, importing, skip, _tell, _tell)
    finally:
        await connection.close()


async def _export(path: str, force: bool, plan: StartPlan, options: ProviderOptions) -> None:
    _check_target(path, force)
    replica_options = replace(options.replica_options(kv_bucket_of(plan)), creates=False)
    timeout_s = options.connect_timeout_ms / 1000
    connection = await Connection.open(plan.connection)
    try:
        follower = Follower(connection, replica_options)
        if await when_ready(partial(stream_state, follower.api, follower.layout), options, _tell) is None:
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
                f"exported {key_count(len(core.store))} of the KV bucket {replica_options.bucket} to {path}"
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
