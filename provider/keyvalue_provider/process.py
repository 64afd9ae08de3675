"""The provider's process. It creates and connects the parts once, serves, and stops cleanly.

StartPlan ─> Connection ─┬─ Server ─ handlers ─ Service ─ handles ─ Store
                         ├─ HostSession (health, links, configuration, shutdown), if there is a host
                         └─ Watchers <─ changes in the Store

`run` runs the whole process. `RunningProvider` acts on the host's messages.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from signal import SIGHUP
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from keyvalue_engine import Store
from keyvalue_provider.config.options import MEMORY, ProviderOptions
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import StartPlan
from keyvalue_provider.health import Health
from keyvalue_provider.host.links import Links
from keyvalue_provider.host.restart_mark import EXIT_RESTART, RestartMark
from keyvalue_provider.host.session import HostSession, links_of
from keyvalue_provider.keyvalue.expiry_sweep import Sweep
from keyvalue_provider.keyvalue.handles import BucketStore
from keyvalue_provider.keyvalue.memory_return import MemoryReturn
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.keyvalue.snapshots import Snapshots, UnusableSnapshotError
from keyvalue_provider.launcher import Launcher
from keyvalue_provider.live_configuration import LiveConfiguration
from keyvalue_provider.observe.exports import Exports, exports_of
from keyvalue_provider.observe.other_instances import OtherInstances, SplitError, place_of_process
from keyvalue_provider.optional_parts import more_metrics, redis_of, serve_redis, start_endpoint, watchers_of
from keyvalue_provider.outer_process import OuterProcess
from keyvalue_provider.parts import EXPORT_STOP_TIMEOUT_S, HOST_STOP_TIMEOUT_S, Parts
from keyvalue_provider.signals import Signals, ignore_requests, unless_stopped
from keyvalue_provider.systemd import READY, STOPPING, tell_systemd
from keyvalue_replica.errors import StreamError
from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, atomics_tallies
from keyvalue_transport.keyvalue.batch import BATCH, batch_handlers, batch_tallies
from keyvalue_transport.keyvalue.interface import WRITES, encode_refusal
from keyvalue_transport.keyvalue.store import STORE, store_handlers, store_tallies
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.server import Server
from keyvalue_transport.redis.errors import ListenError
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError

if TYPE_CHECKING:
    # Imported by functions if metrics are on, because these imports take 15 ms.
    from keyvalue_provider.observe.metrics import Durations
    from keyvalue_provider.replicated import Replicated
    from keyvalue_replica.kv_stores import StoreSum

__all__ = ["run"]

log = logging.getLogger("keyvalue_provider")

#: After a shutdown request is answered, a host kills the outer process within this time. See `OuterProcess.clean_up`.
HOST_KILL_TIMEOUT_S = 0.5
#: Thresholds that make garbage collections rare. With a million keys in memory, a full collection takes tens of
#: milliseconds, and it finds almost no garbage.
GC_THRESHOLDS = (50_000, 50, 100)


class End(NamedTuple):
    """The end of a provider that stopped cleanly.

    :param by_host: True if the host asked the provider to stop
    """

    exit_code: int = 0
    by_host: bool = False


def run(plan: StartPlan, configuration: Configuration, outer: OuterProcess, launcher: Launcher | None) -> int:
    """Serve until the provider is stopped. Return the exit code.

    :param launcher: the process whose end stops the provider; None for no such process
    """
    live_configuration = LiveConfiguration(plan, configuration)
    exports = exports_of(plan.host_data, os.environ)
    end = End(1)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            end = runner.run(_run(plan, configuration.options, live_configuration, exports, outer, launcher))
    except (ConnectError, DisconnectedError, ListenError, StreamError, SplitError) as error:
        log.error("%s", error)
    except UnusableSnapshotError as error:
        log.error("%s", error)
        end = End(error.exit_code)
    finally:
        ignore_requests(SIGHUP)  # the loop has removed its handlers
        exports.close(EXPORT_STOP_TIMEOUT_S)
        outer.clean_up(HOST_KILL_TIMEOUT_S if end.by_host else 0.0)
    return end.exit_code


class RunningProvider:
    """A running provider as its host sees it. This class implements the protocol `Capability`.

    :ivar is_serving: True from the end of startup until the stop begins
    :ivar host: the session with the host; None if there is no host
    """

    def __init__(self, parts: Parts, live_configuration: LiveConfiguration) -> None:
        self.is_serving = False
        self.host: HostSession | None = None
        self._is_loaded = False
        self._parts = parts
        self._live_configuration = live_configuration
        self._started_s = monotonic()

    def set_serving(self, is_serving: bool) -> None:
        """Begin to serve, or begin to stop."""
        self.is_serving = is_serving
        if is_serving and self._parts.redis is not None:
            self._parts.redis.is_open = True
        tell_systemd(READY if is_serving else STOPPING)

    def health(self) -> Health:
        """Return what is wrong with the provider, its links and the session with the host."""
        links, replicated = self._parts.links, self._parts.replicated
        unusable, remarks = links.unusable, self._parts.others.remarks()
        if replicated is not None:
            unusable = [*unusable, *replicated.unusable()]
            remarks = [*remarks, *replicated.remarks()]
        remarks += [*links.remarks, *self._parts.connection.denials.remarks()]
        return Health(self._ailments(), unusable, remarks)

    def _ailments(self) -> list[str]:
        connection, server = self._parts.connection, self._parts.server
        ailments = [] if connection.connected else ["NATS is not connected"]
        failures = [server.failed, connection.failed]
        failures += [task.exception() for task in self._parts.background if task.done() and not task.cancelled()]
        replicated = self._parts.replicated
        if replicated is not None:
            failures += replicated.failures
            ailments += replicated.faults()
        ailments += [f"a background task died: {type(error).__name__}" for error in failures if error is not None]
        if self._parts.snapshots is not None:
            ailments += self._parts.snapshots.faults()
        ailments += filter(None, (connection.refusal, self._live_configuration.fault))
        ailments += self._parts.watchers.faults()
        return ailments + ([] if self.host is None else self.host.ailments())

    def status(self) -> str:
        """Return the status line for an operator."""
        parts = self._parts
        return (
            f"{len(parts.store)} keys, {parts.store.memory_bytes} bytes of memory, "
            f"NATS server: {parts.connection.server}, {len(parts.links)} links, "
            f"{parts.server.counts.answered} invocations answered, up {monotonic() - self._started_s:.0f} s"
        )

    def is_empty(self) -> bool:
        """Return True if the store holds no keys."""
        return not len(self._parts.store)

    def configure(self, config: Mapping[str, str]) -> None:
        """Apply the options in LIVE_OPTIONS from a new configuration. Other options need a restart."""
        options = self._live_configuration.take(config)
        parts = self._parts
        if options is not None and parts.policy.configure(options):
            parts.service.policy_changed()
            if parts.replicated is not None:
                parts.replicated.links_changed(parts.policy)
                if self._is_loaded:
                    parts.watchers.links_changed(())

    def read_again(self) -> None:
        """Read the configuration of `serve` again, because a signal asks for it."""
        if self.host is not None:
            log.warning("SIGRTMIN: ignored, because the host sends each new configuration")
        else:
            log.info("SIGRTMIN: reading the configuration again")
            self.configure({})

    def refuse_configuration(self, reason: str) -> None:
        """Record that a configuration is unreadable."""
        self._live_configuration.refuse(reason)

    def links_changed(self) -> None:
        """Apply the changed links to all later calls. O(changed links), and with keys=plain O(links that name a bucket)."""
        parts = self._parts
        changed, deleted = parts.links.take_changed(), parts.links.take_deleted()
        parts.service.policy_changed(parts.policy.links_changed(changed))
        if parts.replicated is not None:
            parts.replicated.links_changed(parts.policy)
        if self._is_loaded:
            parts.watchers.links_changed(changed, deleted)

    def store_loaded(self) -> None:
        """Begin to tell watchers about changes. They are not told of the keys of a snapshot."""
        self._is_loaded = True
        self._parts.watchers.links_changed(self._parts.links.keys())


async def _run(
    plan: StartPlan,
    options: ProviderOptions,
    live_configuration: LiveConfiguration,
    exports: Exports,
    outer: OuterProcess,
    launcher: Launcher | None,
) -> End:
    """Serve until the provider is stopped.

    :raises ConnectError: NATS cannot be reached
    :raises SplitError: another instance serves the prefix with other keys, and that is not allowed
    :raises UnusableSnapshotError: the snapshot can't be used
    """
    stop_requested = asyncio.Event()
    signals = Signals(stop_requested, outer)

    def stop_when_ended(event: str) -> None:
        if not stop_requested.is_set():  # a host kills the outer process at the end of the stop that it requested
            log.info("%s", event)
            stop_requested.set()

    loop = asyncio.get_running_loop()
    outer.watch(loop, partial(stop_when_ended, "the outer process of this executable has ended: stopping"))
    if launcher is not None and not options.outlive_host:
        event = "the process that launched this provider has ended: stopping (outlive_host is false)"
        launcher.watch(loop, partial(stop_when_ended, event))
    async with AsyncExitStack() as stack:
        after_connection = stack.enter_context(ExitStack())  # exits last: health probes may arrive until the end
        connection = await unless_stopped(Connection.open(plan.connection), stop_requested)
        if connection is None:
            return End()
        stack.push_async_callback(connection.close)
        links = links_of(plan.host_data, plan.xkeys)
        replicated = await unless_stopped(_replicated_of(plan, options, connection), stop_requested)
        if stop_requested.is_set():
            return End()
        if replicated is not None:
            stack.push_async_callback(replicated.stop)
        parts = _compose(plan, options, connection, links, replicated, exports)
        stack.callback(parts.stop_background)
        if parts.snapshots is not None:
            signals.save = parts.snapshots.want
        provider = RunningProvider(parts, live_configuration)
        signals.status, signals.read_again = provider.status, provider.read_again
        host = provider.host = _host_of(plan, options, connection, links, provider, stop_requested)
        if host is None:
            await parts.others.look(plan.allows_split)  # before any client can connect
        if parts.metrics is not None:
            parts.metrics.health = provider.health
            after_connection.callback(start_endpoint(options, parts.metrics, provider).stop)
        if host is not None:
            await host.start()
        await serve_redis(parts.redis, stack)  # before the keys are loaded: clients wait for its first answers
        await _load(plan, options, parts, stop_requested)
        if not stop_requested.is_set():
            provider.store_loaded()
            await _join(plan, parts, stop_requested)
        # Do not collect first: that takes 6 ms, and the modules leave only a few hundred objects of garbage.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        if not stop_requested.is_set():
            provider.set_serving(True)
            log.info("ready: serving %s at %s with %d links", plan.prefix, connection.server, len(links))
            Thread(target=outer.remove_unfinished, daemon=True).start()
            parts.exports.start()
        await stop_requested.wait()
        provider.set_serving(False)
        return await _end(parts, options, host, bool(signals.came))


async def _load(plan: StartPlan, options: ProviderOptions, parts: Parts, stop_requested: asyncio.Event) -> None:
    """Load the snapshot, if the store is saved. Then look again for a split, which may have begun meanwhile."""
    if parts.snapshots is not None:
        await unless_stopped(parts.snapshots.load(options.connect_timeout_ms / 1000), stop_requested)
        if plan.host_data is None and not stop_requested.is_set():
            await parts.others.look(plan.allows_split)


async def _join(plan: StartPlan, parts: Parts, stop_requested: asyncio.Event) -> None:
    """Begin to take calls."""
    await parts.others.join()
    await parts.server.start(joins=parts.replicated is None)
    if parts.replicated is not None:
        await unless_stopped(parts.replicated.start(parts.server), stop_requested)
    connection = parts.connection
    while not stop_requested.is_set():
        losses = connection.reconnects
        try:
            return await connection.flush(plan.connection.open_timeout_s)
        except DisconnectedError:
            if connection.connected and connection.reconnects == losses:
                raise
        await unless_stopped(connection.wait_connected(), stop_requested)  # all is subscribed once more


async def _replicated_of(plan: StartPlan, options: ProviderOptions, connection: Connection) -> Replicated | None:
    """Open the replicated store. Return None for a store in memory.

    :raises StreamError: its KV bucket can't be used
    :raises UnusableSnapshotError: the bucket is empty, and the snapshot can't be imported
    """
    if options.store == MEMORY:
        return None
    from keyvalue_provider.replicated import Replicated  # here, because a store in memory does not need it

    return await Replicated.open(plan, options, connection)


def _compose(
    plan: StartPlan,
    options: ProviderOptions,
    connection: Connection,
    links: Links,
    replicated: Replicated | None,
    exports: Exports,
) -> Parts:
    host_data = plan.host_data
    store_options = options.store_options()
    served: BucketStore
    store: Store | StoreSum
    snapshots = in_memory = None
    if replicated is None:
        served = store = in_memory = Store(store_options)
        if options.snapshot_path is not None:
            snapshots = Snapshots(in_memory, options.snapshot_path, options.snapshot_interval_ms / 1000)
    else:
        served, store = replicated.store, replicated.engine
    policy = Policy(store_options, links, options)
    service = Service(served, policy, lambda: connection.max_payload)
    lattice = "" if host_data is None else host_data.lattice_rpc_prefix
    watchers = watchers_of(connection, lattice, in_memory, replicated, links, options, exports.tracer)
    if replicated is not None:
        replicated.plain.on_change = service.drop_handles
        replicated.links_changed(policy)
    others = OtherInstances(
        connection,
        plan.prefix,
        place_of_process("" if host_data is None else host_data.host_id),
        None if replicated is None else lambda: replicated.identity,
    )
    tallies = store_tallies() | atomics_tallies() | batch_tallies()
    durations: Durations | None = None
    if options.metrics_address:
        from keyvalue_provider.observe.metrics import DURATION_BOUNDS_S, Durations, Metrics

        durations = Durations(tallies)
    on_batch = None if durations is None else durations.observe
    server = Server(connection, plan.prefix, options.invocation_limits(), on_batch, exports.tracer, encode_refusal)
    of_parameters = service.parameter_limits
    begun = () if replicated is None else WRITES  # a replicated write is published before its answer is ready
    server.add(STORE, store_handlers(service, of_parameters, tallies), begun)
    server.add(ATOMICS, atomics_handlers(service, of_parameters, tallies), begun)
    server.add(BATCH, batch_handlers(service, of_parameters, tallies), begun)
    redis = redis_of(plan.redis, service, policy, store, replicated, server.invocations.in_flight)
    metrics = None
    if durations is not None:
        metrics = Metrics(
            *(tallies, durations, store, server, connection, links, watchers, others),
            more=more_metrics(replicated, snapshots, redis, exports),
            redis_tallies=None if redis is None else redis.tallies,
            redis_durations=None if redis is None else redis.measure(DURATION_BOUNDS_S),
            left_out_keys=lambda: service.left_out_keys,
        )

    def drop_caches() -> None:
        service.drop_handles()
        if connection.direct is not None:
            connection.direct.drop_caches()

    work = [Sweep(store).run(), others.run(), MemoryReturn(store, drop_caches).run()]
    if snapshots is not None:
        work.append(snapshots.run())
    background = tuple(asyncio.create_task(coroutine) for coroutine in work)
    return Parts(
        *(connection, links, store, replicated, snapshots, policy, service, watchers, others, server, metrics, exports),
        redis,
        background,
    )


def _host_of(
    plan: StartPlan,
    options: ProviderOptions,
    connection: Connection,
    links: Links,
    provider: RunningProvider,
    stop_requested: asyncio.Event,
) -> HostSession | None:
    host_data = plan.host_data
    if host_data is None:
        return None
    if plan.xkeys is None:  # secrets cannot be opened
        return HostSession(connection, host_data, links, "", provider, stop_requested)
    mark = None
    if options.restart_for_secrets:
        mark = RestartMark(host_data.host_id, host_data.lattice_rpc_prefix, host_data.provider_key)
    return HostSession(connection, host_data, links, plan.xkeys.public_key, provider, stop_requested, mark)


async def _end(parts: Parts, options: ProviderOptions, host: HostSession | None, by_signal: bool) -> End:
    """Stop cleanly, in the time that there is."""
    restarts = host is not None and host.asks_to_restart and not by_signal
    saved = await parts.stop(host, HOST_STOP_TIMEOUT_S if restarts else options.stop_timeout_ms / 1000)
    by_host = host is not None and host.asks_to_stop
    if restarts and not by_host:
        return End(EXIT_RESTART)
    return End(0 if saved else 1, by_host)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:  # uvloop is not available on every platform
        return asyncio.new_event_loop
    return new_event_loop
