"""The provider's process: reads host data, composes everything once, serves, stops in order.

    standard input ─> HostData ─> Connection ─┬─ Server ─ handlers ─ Service ─ Accesses ─ Store
                                              ├─ Host (health, links, configuration, shutdown)
                                              └─ Watchers <─ changes in the Store

Exit codes: 0 stopped in order; 1 NATS could not be reached, or a failure of ours; 2 the host data or its configuration can't be used.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from importlib.metadata import version
from threading import Event
from typing import Any

from engine import Store
from provider.access import Accesses
from provider.endpoint import Endpoint
from provider.host import Host
from provider.host_data import HostData, HostDataError, read_host_data
from provider.log import set_up_log
from provider.metrics import Durations, Metrics
from provider.options import LIVE_OPTIONS, OPTIONS, OptionError, ProviderOptions, split_address
from provider.service import Service
from provider.sweep import sweep
from provider.watch import Watchers, WatchLimits
from transport.atomics import ATOMICS, atomics_handlers, atomics_tallies
from transport.batch import BATCH, batch_handlers, batch_tallies
from transport.connection import Connection, ConnectionOptions, split_urls
from transport.errors import ConnectError, DisconnectedError
from transport.keyvalue import STORE, store_handlers, store_tallies
from transport.server import Server

__all__ = ["main"]

log = logging.getLogger("provider")

STANDARD_INPUT = 0
#: The host ends the process 300 ms after its request to stop: 200 ms for all, with the flush and the end of the pieces.
HOST_STOP_TIMEOUT_S = 0.11
FLUSH_TIMEOUT_S = 0.05
#: For telling components of the last changes.
WATCH_STOP_TIMEOUT_S = 0.02
#: What /livez waits for the event loop to answer.
ALIVE_TIMEOUT_S = 1.0
#: Few objects here are in cycles, and a full collection over a million keys takes tens of milliseconds.
GC_THRESHOLDS = (50_000, 50, 100)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `keyvalue-inmemory`. Returns the exit code."""
    _parser().parse_args(argv)
    try:
        host_data = read_host_data(STANDARD_INPUT)
        urls = split_urls(host_data.lattice_rpc_url)
    except HostDataError as error:
        return _refuse(str(error))
    except ValueError as error:
        return _refuse(f"host data: lattice_rpc_url: {error}")
    set_up_log(host_data.log_level, host_data.structured_logging)
    try:
        options, unknown = ProviderOptions.from_config(_from_environment() | dict(host_data.config))
    except OptionError as error:
        return _refuse(f"config: {error}")
    provider = Provider(host_data, options, urls)
    provider.warn_of(unknown)
    try:
        return _run(provider.run())
    except (ConnectError, DisconnectedError) as error:
        log.error("%s", error)
        return 1


class Provider:
    """All that one process holds."""

    def __init__(self, host_data: HostData, options: ProviderOptions, urls: Sequence[str]) -> None:
        self._host_data = host_data
        self._options = options
        self._connection_options = ConnectionOptions(
            urls=tuple(urls),
            name=host_data.provider_key,
            user_jwt=host_data.lattice_rpc_user_jwt.reveal(),
            user_seed=host_data.lattice_rpc_user_seed.reveal(),
            open_timeout_s=options.connect_timeout_ms / 1000,
            path=options.transport,
        )
        self.prefix = f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}"
        self._config_error: str | None = None
        self._unknown: set[str] = set()
        self._connection: Connection | None = None
        self._server: Server | None = None
        self._endpoint: Endpoint | None = None
        self._accesses: Accesses | None = None
        self._watchers: Watchers | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._serving = False

    async def run(self) -> int:
        """Serve until the host or a signal asks to stop; the exit code.

        :raises ConnectError: NATS can't be reached
        """
        stop_requested = asyncio.Event()
        signals = _stop_at_signals(stop_requested)
        connection = await self._open(stop_requested)
        if connection is None:
            return 0
        self._connection = connection
        try:
            await self._serve(connection, stop_requested, signals)
        finally:
            await connection.close()
            if self._endpoint is not None:
                self._endpoint.stop()
        return 0

    async def _serve(self, connection: Connection, stop_requested: asyncio.Event, signals: list[int]) -> None:
        options = self._options
        store = Store(options.store_options())
        host = Host(connection, self._host_data, self, stop_requested)
        accesses = self._accesses = Accesses(store, host.links, options)
        service = Service(store, accesses)
        watchers = self._watchers = Watchers(
            connection,
            self._host_data.lattice_rpc_prefix,
            self._host_data.provider_key,
            store,
            host.links,
            WatchLimits(options.watch_queue_events, options.watch_queue_bytes, options.watch_timeout_ms / 1000),
        )
        watchers.links_changed()
        tallies = store_tallies() | atomics_tallies() | batch_tallies()
        durations = Durations(tallies) if options.metrics_address else None
        server = self._server = Server(
            connection, self.prefix, options.invocation_limits(), None if durations is None else durations.observe
        )
        limits = service.parameter_limits
        server.add(STORE, store_handlers(service, limits, tallies))
        server.add(ATOMICS, atomics_handlers(service, limits, tallies))
        server.add(BATCH, batch_handlers(service, limits, tallies))
        if durations is not None:
            self._start_endpoint(Metrics(tallies, durations, store, server, connection, host.links, watchers))
        self._sweeping = asyncio.create_task(sweep(store))
        await host.start()
        await server.start()
        await connection.flush(self._connection_options.open_timeout_s)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._serving = True
        log.info("ready: serving %s at %s with %d links", self.prefix, connection.server, len(host.links))
        await stop_requested.wait()
        await self._stop(server, host, options.stop_timeout_ms / 1000 if signals else HOST_STOP_TIMEOUT_S)

    async def _open(self, stop_requested: asyncio.Event) -> Connection | None:
        """The connection; None when it is asked to stop before there is one."""
        opening = asyncio.create_task(Connection.open(self._connection_options))
        stopping = asyncio.create_task(stop_requested.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if opening.done():
            return opening.result()
        opening.cancel()
        await asyncio.wait((opening,))
        return None

    async def _stop(self, server: Server, host: Host, timeout_s: float) -> None:
        """In this order: what was taken is answered, the answers leave, the host hears of it."""
        self._serving = False
        connection = host.connection
        await server.stop(timeout_s)
        if self._watchers is not None:
            await self._watchers.stop(WATCH_STOP_TIMEOUT_S)
        if self._sweeping is not None:
            self._sweeping.cancel()
        try:
            await connection.flush(FLUSH_TIMEOUT_S)
        except DisconnectedError as error:
            log.warning("the last answers may be lost: %s", error)
        log.info("stopped: %d invocations answered", server.counts.answered)
        await host.acknowledge_stop()

    def _start_endpoint(self, metrics: Metrics) -> None:
        """Serve metrics; where that can't be, say so once and go on serving keys."""
        assert self._options.metrics_address is not None
        host, port = split_address(self._options.metrics_address)
        loop = asyncio.get_running_loop()

        def alive() -> bool:
            answered = Event()
            loop.call_soon_threadsafe(answered.set)
            return answered.wait(ALIVE_TIMEOUT_S)

        def unready() -> list[str]:
            return self.ailments() if self._serving else ["not serving: it starts, or stops"]

        endpoint = Endpoint(metrics, unready, alive)
        try:
            endpoint.start(host, port)
        except OSError as error:
            log.error(
                "metrics_address %s: %s; no metrics are served", self._options.metrics_address, error.strerror or error
            )
            return
        self._endpoint = endpoint
        log.info("metrics at http://%s:%d/metrics", f"[{host}]" if ":" in host else host, endpoint.port)

    def ailments(self) -> list[str]:
        """What keeps the provider from serving well."""
        ailments = []
        if self._connection is None or not self._connection.connected:
            ailments.append("NATS is not connected")
        failures = [part.failed for part in (self._server, self._connection) if part is not None]
        if self._sweeping is not None and self._sweeping.done() and not self._sweeping.cancelled():
            failures.append(self._sweeping.exception())
        ailments += [f"a background task died: {type(error).__name__}" for error in failures if error is not None]
        if self._connection is not None and self._connection.refusal is not None:
            ailments.append(self._connection.refusal)
        if self._config_error is not None:
            ailments.append(f"config: {self._config_error}")
        return ailments

    def warn_of(self, unknown: Iterable[str]) -> None:
        """Say once which names of a configuration are no options."""
        news = set(unknown) - self._unknown
        self._unknown = set(unknown)
        if news:
            log.warning("config: ignored, since no option has this name: %s", ", ".join(sorted(news)))

    def links_changed(self) -> None:
        """The host has put or deleted a link: calls that come from now on are carried out by the links as they are."""
        if self._accesses is not None and self._watchers is not None:
            self._accesses.links_changed()
            self._watchers.links_changed()

    def refuse_configuration(self, reason: str) -> None:
        """A configuration that can't be read: what was in force stays."""
        self._config_error = reason

    def configure(self, config: Mapping[str, str]) -> None:
        """Take what can change while it runs, which is what callers may do; of the rest say that it wants a restart."""
        try:
            options, unknown = ProviderOptions.from_config(_from_environment() | dict(config))
        except OptionError as error:
            self._config_error = str(error)
            log.error("config: %s; what was in force stays", error)
            return
        self._config_error = None
        self.warn_of(unknown)
        if self._accesses is not None:
            self._accesses.configure(options)
        changed = [name for name in self._options.changed(options) if name not in LIVE_OPTIONS]
        if changed:
            log.warning("config: changed at the next start of the provider: %s", ", ".join(changed))


def _stop_at_signals(stop_requested: asyncio.Event) -> list[int]:
    """Stop at SIGTERM and SIGINT, end at once at the second; the signals that came."""
    came: list[int] = []

    def stop(number: int) -> None:
        if came:
            os._exit(128 + number)
        came.append(number)
        log.info("%s: stopping; a second signal ends at once", signal.Signals(number).name)
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return came


def _run(main: Coroutine[Any, Any, int]) -> int:
    new_event_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop
    except ImportError:  # it is not to be had on every platform
        new_event_loop = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def _from_environment() -> dict[str, str]:
    """Options that the environment sets, under those of the host data: KEYVALUE_ and the name in capitals. A host passes none."""
    names = {f"KEYVALUE_{name.upper()}": name for name in OPTIONS}
    return {name: os.environ[variable] for variable, name in names.items() if variable in os.environ}


def _refuse(message: str) -> int:
    sys.stderr.write(f"keyvalue-inmemory: {message}\n")
    return 2


def _parser() -> argparse.ArgumentParser:
    options = "\n".join(f"  {name:<22} {option.what}" for name, option in OPTIONS.items())
    parser = argparse.ArgumentParser(
        prog="keyvalue-inmemory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A wasmCloud capability provider that serves wrpc:keyvalue from memory, over NATS.\n\n"
        "A wasmCloud host starts it, and writes host data to its standard input. By hand:\n\n"
        '  echo \'{"lattice_rpc_url": "127.0.0.1:4222", "provider_key": "keyvalue-inmemory"}\' | base64 | keyvalue-inmemory\n'
        "  wrpc-kv --prefix default.keyvalue-inmemory set hello world",
        epilog=f"options, as strings in the host data's object `config`, or as KEYVALUE_NAME in the environment:\n{options}\n\n"
        "exit codes: 0 stopped in order (by the host, SIGTERM or SIGINT); 1 NATS can't be reached; 2 the host data can't be used",
    )
    parser.add_argument("--version", action="version", version=f"keyvalue-inmemory {version('keyvalue-inmemory')}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
