"""`wrpc-kv watch`: prints changes of keys, as a component that the provider calls.

connection ──> serves `watcher` as a component ──> link from the provider to the component (watch_link.py)
           ──> on-set, on-delete ──> lines, until a signal, or until nobody reads them ──> the link is removed
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Mapping

from keyvalue_provider.client.records import json_value
from keyvalue_provider.client.session import Session
from keyvalue_provider.client.streams import Output, ReaderGoneError, StandardStreamError, say, shown
from keyvalue_provider.client.watch_link import WatchError, WatchLink, watch_option
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.watcher import WATCHER, watcher_handlers
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import TransportError
from keyvalue_transport.wrpc.handler import Caller

__all__ = ["watch"]

#: The signals that end the command in order.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_TIMEOUT_S = 0.2


class Printer:
    """The watcher. It prints each change on a line.

    :ivar ended: set when the command must end
    :ivar failure: why nothing can be printed any more, or None
    """

    def __init__(self, is_json: bool) -> None:
        self.ended = asyncio.Event()
        self.failure: ReaderGoneError | StandardStreamError | None = None
        self._output = Output()
        self._is_json = is_json

    def on_set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> None:
        """Print a write."""
        change = {"change": "set", "bucket": bucket.decode(), "key": key.decode(), **json_value(value)}
        self._print(change, value.decode(errors="backslashreplace"))

    def on_delete(self, caller: Caller, bucket: bytes, key: bytes, /) -> None:
        """Print a deletion."""
        self._print({"change": "delete", "bucket": bucket.decode(), "key": key.decode()})

    def _print(self, change: Mapping[str, str | None], *shown_value: str) -> None:
        if self.failure is not None:
            return
        try:
            if self._is_json:
                self._output.json(change)
            else:
                words = change["change"], change["key"], *shown_value
                self._output.line(" ".join(shown(word or "") for word in words))
            self._output.flush()
        except (ReaderGoneError, StandardStreamError) as error:
            self.failure = error
            self.ended.set()


async def watch(session: Session, arguments: argparse.Namespace) -> None:
    """Run the command.

    :raises WatchError: no link can be added, or NATS does not allow the subscriptions
    :raises ReaderGoneError: nobody reads the output any more
    """
    assert session.connection is not None
    name = f"wrpc-kv-{os.urandom(8).hex()}"
    lattice, _, provider = arguments.prefix.rpartition(".")
    option = watch_option(arguments.bucket, arguments.pattern)
    link = WatchLink(lattice, provider, arguments.component or name, name, option)
    printer = Printer(arguments.json)
    loop = asyncio.get_running_loop()
    for number in ENDING:
        loop.add_signal_handler(number, printer.ended.set)
    server = Server(session.connection, f"{lattice}.{link.component}")
    server.add(WATCHER, watcher_handlers(printer, ParameterLimits()))
    await server.start()
    try:
        await session.connection.flush(arguments.timeout)
        if session.connection.refusal is not None:
            raise WatchError(session.connection.refusal)
        await _until_ended(session, link, printer, has_own_link=arguments.component is not None)
    finally:
        await server.stop(STOP_TIMEOUT_S)
    if printer.failure is not None:
        raise printer.failure


async def _until_ended(session: Session, link: WatchLink, printer: Printer, has_own_link: bool) -> None:
    """Keep the link while the command runs."""
    if has_own_link:
        options = " ".join(f"{name}={value}" for name, value in link.options.items())
        say(
            f"wrpc-kv: serving as the component {link.component}; needed: a link from {link.provider} to it with the "
            f"interface watcher, and with these options in source_config: {shown(options)}"
        )
        await printer.ended.wait()
        return
    remove = await link.add(session)
    say(f"wrpc-kv: watching over the link {link.name} from {link.provider}; Ctrl-C removes it")
    try:
        await printer.ended.wait()
    finally:
        try:
            await remove()
        except (TransportError, TimeoutError) as error:
            say(f"wrpc-kv: the link {link.name} may still be there: {error}")
