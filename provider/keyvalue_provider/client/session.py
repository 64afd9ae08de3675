"""The connection of a command to the provider.

    few calls ──> blocking connection ── GiveWayError ──┐
    export, import, watch ──────────────────────────────┴──> lasting connection, on asyncio's event loop

A command is a coroutine function that takes a `Session`. Over a blocking connection, it never suspends.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.blocking import BlockingClient, BlockingConnection, GiveWayError
from keyvalue_transport.nats.calls import KeyValueCalls
from keyvalue_transport.nats.urls import split_urls
from keyvalue_transport.wrpc.errors import NoProviderError

if TYPE_CHECKING:
    from keyvalue_transport.nats.connection import Connection

__all__ = ["Command", "Session", "missing_bucket", "run_blocking", "run_lasting"]

WAIT_INTERVAL_S = 0.05


class Session(NamedTuple):
    """A connected client.

    :ivar request: sends a payload to a subject, and returns the first reply; raises TimeoutError
    :ivar connection: the lasting connection, if there is one
    """

    client: KeyValueCalls
    request: Callable[[str, bytes], Awaitable[bytes]]
    connection: Connection | None


Command = Callable[[Session, argparse.Namespace], Coroutine[Any, Any, None]]


def missing_bucket(bucket: str) -> str:
    """Return the message for a bucket that the provider refuses with the error `no such store`."""
    return (
        f"no such store: the provider has no bucket {bucket!r} for this caller (its options buckets, strict_buckets; "
        "with keys=plain, the KV bucket is missing)"
    )


def run_blocking(command: Command, arguments: argparse.Namespace) -> None:
    """Run a command over a blocking connection.

    :raises GiveWayError: it needs a lasting connection, and has called nothing that changes a key
    """
    urls = split_urls(arguments.nats)
    if len(urls) > 1 or arguments.creds or arguments.nkey or _tls_files(arguments) != ("", "", ""):
        raise GiveWayError("several servers, keys and certificates need a lasting connection")
    with BlockingConnection(urls[0], arguments.timeout) as connection:

        async def request(subject: str, payload: bytes) -> bytes:
            return connection.request(subject, payload, arguments.timeout)

        client = BlockingClient(connection, arguments.prefix, _headers(arguments), arguments.timeout)
        coroutine = command(Session(client, request, None), arguments)
        try:
            if arguments.wait:
                _check_presence(client, arguments.bucket)
            coroutine.send(None)
        except StopIteration:
            return
        finally:
            coroutine.close()
    raise RuntimeError("a command suspended over a blocking connection")


async def run_lasting(command: Command, arguments: argparse.Namespace) -> None:
    """Run a command over a lasting connection."""
    from keyvalue_provider.late_import import import_late

    import_late("nats.js")  # nothing here needs JetStream
    from keyvalue_transport.nats.client import KeyValueClient
    from keyvalue_transport.nats.connection import Connection, ConnectionOptions
    from keyvalue_transport.nats.tls import TlsOptions

    user_jwt, user_seed = _credentials(arguments)
    tls = TlsOptions(*_tls_files(arguments))
    options = ConnectionOptions(
        split_urls(arguments.nats),
        user_jwt=user_jwt,
        user_seed=user_seed,
        open_timeout_s=arguments.timeout,
        path="plain",  # only a server needs the direct path
        tls=None if tls == TlsOptions() else tls,
    )
    connection = await Connection.open(options)

    async def request(subject: str, payload: bytes) -> bytes:
        return await connection.request(subject, payload, arguments.timeout)

    try:
        async with KeyValueClient(
            connection,
            arguments.prefix,
            source_id=arguments.source_id,
            link_name=arguments.link_name,
            timeout_s=arguments.timeout,
        ) as client:
            if arguments.wait:
                await _wait(client, arguments.bucket, arguments.wait)
            await command(Session(client, request, connection), arguments)
    finally:
        await connection.close()


def _check_presence(client: BlockingClient, bucket: str) -> None:
    """Call the provider once.

    :raises GiveWayError: there is no provider yet, so the command must wait
    """
    try:
        client.exists(bucket, "").send(None)
    except (InterfaceError, StopIteration):
        return
    except NoProviderError as error:
        raise GiveWayError("there is no provider yet") from error


async def _wait(client: KeyValueCalls, bucket: str, timeout_s: float) -> None:
    """Wait until a provider answers.

    :raises NoProviderError: no provider answers within `timeout_s`
    """
    import asyncio

    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await client.exists(bucket, "")
            return
        except InterfaceError:
            return
        except NoProviderError:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
        await asyncio.sleep(WAIT_INTERVAL_S)


def _headers(arguments: argparse.Namespace) -> dict[str, str]:
    headers = (("source-id", arguments.source_id), ("link-name", arguments.link_name))
    return {name: value for name, value in headers if value is not None}


def _tls_files(arguments: argparse.Namespace) -> tuple[str, str, str]:
    return arguments.tls_ca, arguments.tls_certificate, arguments.tls_key


def _credentials(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the user's JWT and seed. A missing part is an empty string."""
    from keyvalue_provider.config.user_files import read_credentials, read_nkey

    if arguments.creds is not None:
        return read_credentials(arguments.creds)
    return "", "" if arguments.nkey is None else read_nkey(arguments.nkey)
