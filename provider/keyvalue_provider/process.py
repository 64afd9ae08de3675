"""One process of the provider: composes everything once, serves, stops in order.

StartPlan ─> Connection ─┬─ Server ─ handlers ─ Service ─ Accesses ─ Store
                         ├─ Host (health, links, configuration, shutdown), where there is one
                         └─ Watchers <─ changes in the Store
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from threading import Event

from keyvalue_engine import Store
from keyvalue_provider.config.options import LIVE_OPTIONS, ProviderOptions
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import StartPlan, tls_of
from keyvalue_provider.config.values import split_address
from keyvalue_provider.executable import OuterProcess
from keyvalue_provider.host.host import Host
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import Links
from keyvalue_provider.keyvalue.access import Accesses
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.keyvalue.sweep import sweep
from keyvalue_provider.observe.endpoint import Endpoint
from keyvalue_provider.observe.log import set_up_log
from keyvalue_provider.observe.metrics import Durations, Metrics
from keyvalue_provider.watching.watchers import Watchers, WatchLimits
from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, atomics_tallies
from keyvalue_transport.keyvalue.batch import BATCH, batch_handlers, batch_tallies
from keyvalue_transport.keyvalue.interface import STORE
from keyvalue_transport.keyvalue.store import store_handlers, store_tallies
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

__all__ = ["run"]

log = logging.getLogger("keyvalue_provider")

#: The host ends the process 300 ms after its request to stop: 200 ms for all, with the flush and the end of the pieces.
HOST_STOP_TIMEOUT_S = 0.11
FLUSH_TIMEOUT_S = 0.05
#: In which it ends the process then; for `OuterProcess.clean_up`.
HOST_KILL_TIMEOUT_S = 0.5
#: For telling components of the last changes.
WATCH_STOP_TIMEOUT_S = 0.02
#: What /livez waits for the event loop to answer.
ALIVE_TIMEOUT_S = 1.0
#: Few objects here are in cycles, and a full collection over a million keys takes tens of milliseconds.
GC_THRESHOLDS = (50_000, 50, 100)


def run(launch: StartPlan, resolved: Configuration, outer: OuterProcess) -> int:
    """Serve until it is asked to stop; the exit code."""
    set_up_log(*_log_form(launch, resolved.options))
    provider = Provider(launch, resolved, outer)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(provider.run())
    except (ConnectError, DisconnectedError) as error:
        log.error("%s", error)
        return 1
    finally:
        outer.clean_up(HOST_KILL_TIMEOUT_S if provider.stopped_by_host else 0.0)


class Provider:
    """All that one process holds."""

    def __init__(self, launch: StartPlan, resolved: Configuration, outer: OuterProcess) -> None:
        self._launch = launch
        self._options = resolved.options
        self._log_form = _log_form(launch, resolved.options)
        self._outer = outer
        self._provider_key = "" if launch.host_data is None else launch.host_data.provider_key
        self._links = Links(self._provider_key, None if launch.xkeys is None else launch.xkeys.open)
        self._config_error: str | None = None
        self._unknown: Mapping[str, tuple[str, ...]] = {}
        self._deprecated: tuple[str, ...] = ()
        self._warn_of(resolved)
        self._connection: Connection | None = None
        self._server: Server | None = None
        self._endpoint: Endpoint | None = None
        self._host: Host | None = None
        self._accesses: Accesses | None = None
        self._watchers: Watchers | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._serving = False
        self.stopped_by_host = False

    async def run(self) -> int:
        """Serve until the host or a signal asks to stop; the exit code.

        :raises ConnectError: NATS can't be reached
        """
        stop_requested = asyncio.Event()
        signals = _stop_at_signals(stop_requested, self._outer)

        def stop_with_outer() -> None:
            log.info("the process that started this executable has ended: stopping")
            stop_requested.set()

        self._outer.watch(asyncio.get_running_loop(), stop_with_outer)
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
        options, links, host_data = self._options, self._links, self._launch.host_data
        store = Store(options.store_options())
        if host_data is not None:
            xkey = "" if self._launch.xkeys is None else self._launch.xkeys.public_key
            self._host = Host(connection, host_data, links, xkey, self, stop_requested)
            self._put(host_data.link_definitions)
        accesses = self._accesses = Accesses(store, links, options)
        service = Service(store, accesses)
        watchers = self._watchers = Watchers(
            connection,
            "" if host_data is None else host_data.lattice_rpc_prefix,
            self._provider_key,
            store,
            links,
            WatchLimits(options.watch_queue_events, options.watch_queue_bytes, options.watch_timeout_ms / 1000),
        )
        watchers.links_changed()
        tallies = store_tallies() | atomics_tallies() | batch_tallies()
        durations = Durations(tallies) if options.metrics_address else None
        server = self._server = Server(
            connection,
            self._launch.prefix,
            options.invocation_limits(),
            None if durations is None else durations.observe,
        )
        limits = service.parameter_limits
        server.add(STORE, store_handlers(service, limits, tallies))
        server.add(ATOMICS, atomics_handlers(service, limits, tallies))
        server.add(BATCH, batch_handlers(service, limits, tallies))
        if durations is not None:
            self._start_endpoint(Metrics(tallies, durations, store, server, connection, links, watchers))
        self._sweeping = asyncio.create_task(sweep(store))
        if self._host is not None:
            await self._host.start()
        await server.start()
        await connection.flush(self._launch.connection.open_timeout_s)
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        self._serving = True
        log.info("ready: serving %s at %s with %d links", self._launch.prefix, connection.server, len(links))
        await stop_requested.wait()
        self.stopped_by_host = self._host is not None and self._host.asks_to_stop and not signals
        timeout_s = HOST_STOP_TIMEOUT_S if self.stopped_by_host else options.stop_timeout_ms / 1000
        await self._stop(connection, server, timeout_s)

    async def _open(self, stop_requested: asyncio.Event) -> Connection | None:
        """The connection; None when it is asked to stop before there is one."""
        opening = asyncio.create_task(Connection.open(self._launch.connection))
        stopping = asyncio.create_task(stop_requested.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if opening.done():
            return opening.result()
        opening.cancel()
        await asyncio.wait((opening,))
        return None

    async def _stop(self, connection: Connection, server: Server, timeout_s: float) -> None:
        """In this order: what was taken is answered, the answers leave, the host hears of it."""
        self._serving = False
        if self._host is not None:
            self._host.stop()
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
        if self._host is not None:
            await self._host.acknowledge_stop()

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
        failures = [part.failed for part in (self._server, self._connection, self._host) if part is not None]
        if self._sweeping is not None and self._sweeping.done() and not self._sweeping.cancelled():
            failures.append(self._sweeping.exception())
        ailments += [f"a background task died: {type(error).__name__}" for error in failures if error is not None]
        if self._connection is not None and self._connection.refusal is not None:
            ailments.append(self._connection.refusal)
        if self._config_error is not None:
            ailments.append(self._config_error)
        return ailments

    def _put(self, links: Iterable[object]) -> None:
        """The links of the host data."""
        for link in links:
            try:
                self._links.put_value(link)
            except FieldError as error:
                log.warning("a link of the host data can't be used: %s", error)

    def _warn_of(self, configuration: Configuration) -> None:
        """Say once which names are no options, and which are old names."""
        for origin, names in configuration.unknown.items():
            if news := set(names) - set(self._unknown.get(origin, ())):
                log.warning("%s: ignored, since no option has this name: %s", origin, ", ".join(sorted(news)))
        for remark in configuration.deprecated:
            if remark not in self._deprecated:
                log.warning("%s", remark)
        self._unknown, self._deprecated = configuration.unknown, configuration.deprecated

    def links_changed(self) -> None:
        """The host has put or deleted a link: calls that come from now on are carried out by the links as they are."""
        if self._accesses is not None and self._watchers is not None:
            self._accesses.links_changed()
            self._watchers.links_changed()

    def refuse_configuration(self, reason: str) -> None:
        """A configuration that can't be read: what was in force stays."""
        self._config_error = f"config: {reason}"

    def configure(self, config: Mapping[str, str]) -> None:
        """Take what can change while it runs: what callers may do, and the log. Of the rest say that it wants a restart."""
        resolved = self._launch.resolve(config)
        options = resolved.options
        faults = list(resolved.faults)
        if not faults:
            try:
                tls_of(resolved)  # else the next start would find out
            except ValueError as error:
                faults.append(f"config: {error}")
        if faults:
            self._config_error = "; ".join(faults)
            log.error("%s; what was in force stays", self._config_error)
            return
        self._config_error = None
        log_form = _log_form(self._launch, options)
        if log_form != self._log_form:
            self._log_form = log_form
            set_up_log(*log_form)
        self._warn_of(resolved)
        if self._accesses is not None:
            self._accesses.configure(options)
        changed = [name for name in self._options.changed(options) if name not in LIVE_OPTIONS]
        if changed:
            log.warning("config: changed at the next start of the provider: %s", ", ".join(changed))


def _stop_at_signals(stop_requested: asyncio.Event, outer: OuterProcess) -> list[int]:
    """Stop at SIGTERM and SIGINT, end at once at the second; the signals that came."""
    came: list[int] = []

    def stop(number: int) -> None:
        if outer.is_echo(number):
            return
        if came:
            os._exit(128 + number)
        came.append(number)
        log.info("%s: stopping; a second signal ends at once", signal.Signals(number).name)
        stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return came


def _log_form(launch: StartPlan, options: ProviderOptions) -> tuple[str, bool]:
    """Level, and whether it is structured."""
    structured = options.structured_logging
    return options.log_level or launch.log_level, launch.structured_logging if structured is None else structured


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:  # it is not to be had on every platform
        return asyncio.new_event_loop
    return new_event_loop
