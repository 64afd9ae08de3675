"""The provider's process. It creates and connects the parts once, serves, and stops cleanly.

StartPlan ─> Connection ─┬─ Server ─ handlers ─ Service ─ handles ─ Store
                         ├─ HostSession (health, links, configuration, shutdown), if there is a host
                         └─ Watchers <─ changes in the Store

`run` runs the whole process. `Parts` holds the parts of the provider. `RunningProvider` acts on the host's messages.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from signal import SIGHUP
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from keyvalue_engine import Store
from keyvalue_provider.config.options import ATOMIC, MEMORY, ProviderOptions
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import StartPlan
from keyvalue_provider.config.values import split_address
from keyvalue_provider.health import Health
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import Links
from keyvalue_provider.host.restart_mark import EXIT_RESTART, RestartMark
from keyvalue_provider.host.session import HostSession
from keyvalue_provider.keyvalue.expiry_sweep import Sweep
from keyvalue_provider.keyvalue.handles import BucketStore
from keyvalue_provider.keyvalue.memory_return import MemoryReturn
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_provider.launcher import Launcher
from keyvalue_provider.live_configuration import LiveConfiguration
from keyvalue_provider.observe.loop_probe import LoopProbe
from keyvalue_provider.observe.other_instances import OtherInstances, SplitError, place_of_process
from keyvalue_provider.outer_process import OuterProcess
from keyvalue_provider.signals import Signals, ignore_requests
from keyvalue_provider.systemd import READY, STOPPING, tell_systemd
from keyvalue_provider.watching.queue import WatchLimits
from keyvalue_provider.watching.watchers import Watchers
from keyvalue_replica.errors import StreamError
from keyvalue_transport.keyvalue.atomics import ATOMICS, atomics_handlers, atomics_tallies
from keyvalue_transport.keyvalue.batch import BATCH, batch_handlers, batch_tallies
from keyvalue_transport.keyvalue.store import STORE, store_handlers, store_tallies
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.nats.server import Server
from keyvalue_transport.wrpc.errors import ConnectError, DisconnectedError
from keyvalue_transport.wrpc.handler import Again

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    # Imported by functions if metrics are on, because these imports take 15 ms.
    from keyvalue_provider.observe.endpoint import Endpoint
    from keyvalue_provider.observe.metrics import Durations, Metrics
    from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers
    from keyvalue_replica.follower import Follower

__all__ = ["run"]

log = logging.getLogger("keyvalue_provider")

T = TypeVar("T")

#: A host kills the process 300 ms after the shutdown request. The whole stop, with the flush, takes less than 200 ms.
HOST_STOP_TIMEOUT_S = 0.11
FLUSH_TIMEOUT_S = 0.05
#: After a shutdown request is answered, a host kills the outer process within this time. See `OuterProcess.clean_up`.
HOST_KILL_TIMEOUT_S = 0.5
#: Time limit for reporting the last changes to watching components.
WATCH_STOP_TIMEOUT_S = 0.02
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
    end = End(1)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            end = runner.run(_run(plan, configuration.options, live_configuration, outer, launcher))
    except (ConnectError, DisconnectedError, StreamError, SplitError) as error:
        log.error("%s", error)
    finally:
        ignore_requests(SIGHUP)  # the loop has removed its handlers
        outer.clean_up(HOST_KILL_TIMEOUT_S if end.by_host else 0.0)
    return end.exit_code


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running provider, except the host session.

    :param store: the engine; with the replicated store, the copy of what is stored
    :param follower: follows the KV bucket of the replicated store; None for a store in memory
    :param metrics: None if metrics are off
    """

    connection: Connection
    links: Links
    store: Store
    follower: Follower | None
    policy: Policy
    service: Service
    watchers: Watchers | ReplicatedWatchers
    others: OtherInstances
    server: Server
    metrics: Metrics | None
    background: tuple[asyncio.Task[None], ...]

    def stop_background(self) -> None:
        """Cancel the background tasks."""
        for task in self.background:
            task.cancel()


class RunningProvider:
    """A running provider as its host sees it. This class implements the protocol `Capability`.

    :ivar is_serving: True from the end of startup until the stop begins
    :ivar host: the session with the host; None if there is no host
    """

    def __init__(self, parts: Parts, live_configuration: LiveConfiguration) -> None:
        self.is_serving = False
        self.host: HostSession | None = None
        self._parts = parts
        self._live_configuration = live_configuration
        self._started_s = monotonic()

    def set_serving(self, is_serving: bool) -> None:
        """Begin to serve, or begin to stop."""
        self.is_serving = is_serving
        tell_systemd(READY if is_serving else STOPPING)

    def health(self) -> Health:
        """Return what is wrong with the provider, its links and the session with the host."""
        links, follower = self._parts.links, self._parts.follower
        remarks = [*self._parts.others.remarks(), *(follower.remarks() if follower is not None else ())]
        remarks += [*links.remarks, *self._parts.connection.denials.remarks()]
        return Health(self._ailments(), links.unusable, remarks)

    def _ailments(self) -> list[str]:
        connection, server = self._parts.connection, self._parts.server
        ailments = [] if connection.connected else ["NATS is not connected"]
        failures = [server.failed, connection.failed]
        failures += [task.exception() for task in self._parts.background if task.done() and not task.cancelled()]
        follower = self._parts.follower
        if follower is not None:
            failures.append(follower.failed)
            ailments += filter(None, (follower.fault,))
        ailments += [f"a background task died: {type(error).__name__}" for error in failures if error is not None]
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
        if options is not None and self._parts.policy.configure(options):
            self._parts.service.policy_changed()

    def refuse_configuration(self, reason: str) -> None:
        """Record that a configuration is unreadable."""
        self._live_configuration.refuse(reason)

    def links_changed(self) -> None:
        """Apply the changed links to all later calls. O(changed links)."""
        changed = self._parts.links.take_changed()
        self._parts.service.policy_changed(self._parts.policy.links_changed(changed))
        self._parts.watchers.links_changed(changed)


async def _run(
    plan: StartPlan,
    options: ProviderOptions,
    live_configuration: LiveConfiguration,
    outer: OuterProcess,
    launcher: Launcher | None,
) -> End:
    """Serve until the provider is stopped.

    :raises ConnectError: NATS cannot be reached
    :raises SplitError: another instance serves the prefix with other keys, and that is not allowed
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
        connection = await _unless_stopped(Connection.open(plan.connection), stop_requested)
        if connection is None:
            return End()
        stack.push_async_callback(connection.close)
        links = _links_of(plan)
        follower = await _unless_stopped(_follower_of(plan, options, connection), stop_requested)
        if stop_requested.is_set():
            return End()
        if follower is not None:
            stack.push_async_callback(follower.stop)
        parts = _compose(plan, options, connection, links, follower)
        stack.callback(parts.stop_background)
        provider = RunningProvider(parts, live_configuration)
        signals.status = provider.status
        host = provider.host = _host_of(plan, options, connection, links, provider, stop_requested)
        if parts.metrics is not None:
            parts.metrics.health = provider.health
            endpoint = _start_endpoint(options, parts.metrics, provider)
            after_connection.callback(endpoint.stop)
        if host is not None:
            await host.start()
        await _meet_others(plan, parts.others)
        await parts.server.start(joins=follower is None)
        if follower is not None:
            follower.start(parts.server)
            await _unless_stopped(follower.wait_caught_up(), stop_requested)
        await connection.flush(plan.connection.open_timeout_s)
        # Do not collect first: that takes 6 ms, and the modules leave only a few hundred objects of garbage.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        provider.set_serving(True)
        log.info("ready: serving %s at %s with %d links", plan.prefix, connection.server, len(links))
        Thread(target=outer.remove_unfinished, daemon=True).start()
        await stop_requested.wait()
        provider.set_serving(False)
        by_host = host is not None and host.asks_to_stop and not signals.came
        restarts = host is not None and host.asks_to_restart and not signals.came
        await _stop(parts, host, HOST_STOP_TIMEOUT_S if by_host or restarts else options.stop_timeout_ms / 1000)
    return End(EXIT_RESTART if restarts and not by_host else 0, by_host)


async def _follower_of(plan: StartPlan, options: ProviderOptions, connection: Connection) -> Follower | None:
    """Open the KV bucket of the replicated store. Return None for a store in memory.

    :raises StreamError: the bucket can't be used
    """
    if options.store == MEMORY:
        return None
    from keyvalue_replica.follower import Follower  # here, because a store in memory does not need it

    follower = Follower(connection, options.replica_options(kv_bucket_of(plan)))
    await follower.open(options.store_options(), options.connect_timeout_ms / 1000)
    return follower


def kv_bucket_of(plan: StartPlan) -> str:
    """Return the name of the KV bucket if no option sets it: the provider key, or the prefix without a host."""
    name = plan.prefix if plan.host_data is None else plan.host_data.provider_key
    return re.sub("[^-_A-Za-z0-9]", "_", name)


async def _meet_others(plan: StartPlan, others: OtherInstances) -> None:
    """Look for other instances that serve the prefix with other keys, before this one takes calls from them.

    Do not wait for them if a host has started this instance: calls are lost meanwhile, and it must start in any case.

    :raises SplitError: there is one, and that is not allowed
    """
    await others.listen()
    if plan.host_data is None:
        await others.find()
        if not plan.allows_split and (found := others.remarks()):
            raise SplitError(
                f"not started: {found[0]}; stop the others, choose another prefix, let all instances share their keys "
                "(store=jetstream), or set allow_split=true"
            )
    await others.join()


async def _unless_stopped(starting: Coroutine[Any, Any, T], stop_requested: asyncio.Event) -> T | None:
    """Return the result of a step of the start. Return None if a stop is requested before the step is done."""
    step = asyncio.create_task(starting)
    stopping = asyncio.create_task(stop_requested.wait())
    await asyncio.wait((step, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if step.done():
        return step.result()
    step.cancel()
    await asyncio.wait((step,))
    return None


def _links_of(plan: StartPlan) -> Links:
    """Return the links from the host data. Log a warning for each unusable link."""
    host_data = plan.host_data
    if host_data is None:
        return Links("")
    links = Links(host_data.provider_key, None if plan.xkeys is None else plan.xkeys.open)
    for value in host_data.link_definitions:
        try:
            links.put_value(value)
        except FieldError as error:
            log.warning("a link of the host data is unusable: %s", error)
    return links


def _compose(
    plan: StartPlan, options: ProviderOptions, connection: Connection, links: Links, follower: Follower | None
) -> Parts:
    host_data = plan.host_data
    store_options = options.store_options()
    served: BucketStore
    if follower is None:
        served = store = Store(store_options)
    else:
        from keyvalue_replica.bucket import ReplicaStore

        store = follower.core.store
        served = ReplicaStore(follower.core, store_options, Again, options.batch == ATOMIC)
    policy = Policy(store_options, links, options)
    service = Service(served, policy, lambda: connection.max_payload)
    lattice = "" if host_data is None else host_data.lattice_rpc_prefix
    limits = WatchLimits(options.watch_queue_events, options.watch_queue_bytes, options.watch_timeout_ms / 1000)
    watchers: Watchers | ReplicatedWatchers
    if follower is None:
        watchers = Watchers(connection, lattice, store, links, limits)
    else:
        from keyvalue_provider.watching.replicated_watchers import ReplicatedWatchers

        watchers = ReplicatedWatchers(connection, lattice, follower, links, limits)
    watchers.links_changed(links.keys())
    others = OtherInstances(
        connection,
        plan.prefix,
        place_of_process("" if host_data is None else host_data.host_id),
        None if follower is None else lambda: follower.identity,
    )
    tallies = store_tallies() | atomics_tallies() | batch_tallies()
    durations: Durations | None = None
    if options.metrics_address:
        from keyvalue_provider.observe.metrics import Durations, Metrics

        durations = Durations(tallies)
    on_batch = None if durations is None else durations.observe
    server = Server(connection, plan.prefix, options.invocation_limits(), on_batch)
    of_parameters = service.parameter_limits
    server.add(STORE, store_handlers(service, of_parameters, tallies))
    server.add(ATOMICS, atomics_handlers(service, of_parameters, tallies))
    server.add(BATCH, batch_handlers(service, of_parameters, tallies))
    metrics = None
    if durations is not None:
        more = None if follower is None else _replica_metrics(follower)
        metrics = Metrics(tallies, durations, store, server, connection, links, watchers, others, more)

    def drop_caches() -> None:
        service.drop_handles()
        if connection.direct is not None:
            connection.direct.drop_caches()

    work = Sweep(store).run(), others.run(), MemoryReturn(store, drop_caches).run()
    background = tuple(asyncio.create_task(coroutine) for coroutine in work)
    return Parts(connection, links, store, follower, policy, service, watchers, others, server, metrics, background)


def _replica_metrics(follower: Follower) -> Callable[[], Iterable[Metric]]:
    """Return a function that returns the metrics of the replicated store."""
    from keyvalue_provider.observe.replica_metrics import Confirmations, replica_metrics

    confirmations = Confirmations()
    follower.core.publications.observe = confirmations.observe
    return partial(replica_metrics, follower, confirmations)


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


def _start_endpoint(options: ProviderOptions, metrics: Metrics, provider: RunningProvider) -> Endpoint:
    """Start the HTTP endpoint. If the address is not available, log an error and continue without the endpoint."""
    from keyvalue_provider.observe.endpoint import Endpoint

    assert options.metrics_address is not None
    address, port = split_address(options.metrics_address)

    def health() -> Health:
        health = provider.health()
        return health if provider.is_serving else health._replace(ailments=["not serving: starting or stopping"])

    endpoint = Endpoint(metrics, health, LoopProbe(asyncio.get_running_loop()).alive)
    try:
        endpoint.start(address, port)
    except OSError as error:
        log.error("metrics_address %s: %s; metrics are off", options.metrics_address, error.strerror or error)
    else:
        shown = f"[{address}]" if ":" in address else address
        log.info("metrics at http://%s:%d/metrics", shown, endpoint.port)
    return endpoint


async def _stop(parts: Parts, host: HostSession | None, timeout_s: float) -> None:
    """Stop cleanly: answer the calls in flight, flush, and acknowledge the host's request."""
    if host is not None:
        host.stop()
    parts.others.leave()
    if parts.follower is not None:
        parts.follower.give_up_after(timeout_s)
    await parts.server.stop(timeout_s)
    await parts.watchers.stop(WATCH_STOP_TIMEOUT_S)
    parts.stop_background()
    try:
        await parts.connection.flush(FLUSH_TIMEOUT_S)
    except DisconnectedError as error:
        log.warning("the last answers may be lost: %s", error)
    log.info("stopped: %d invocations answered", parts.server.counts.answered)
    if host is not None:
        await host.acknowledge_stop()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        from uvloop import new_event_loop
    except ImportError:  # uvloop is not available on every platform
        return asyncio.new_event_loop
    return new_event_loop
