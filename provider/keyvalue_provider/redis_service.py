"""The surroundings of Redis sessions: the service, the accounts, and what INFO and CONFIG GET show."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from resource import RUSAGE_SELF, getrusage
from time import monotonic, time_ns

from keyvalue_engine import Store
from keyvalue_provider.config.redis_plan import RedisPlan, caller_of
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.keyvalue.memory_return import resident_bytes
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.keyvalue.service import Service
from keyvalue_replica.kv_stores import StoreSum
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.keyvalue.outcomes import NONE, OK, Tally
from keyvalue_transport.redis.durations import CommandDurations
from keyvalue_transport.redis.listener import RedisListener
from keyvalue_transport.redis.server_commands import command_table, command_tallies
from keyvalue_transport.redis.session import UNKNOWN
from keyvalue_transport.redis.surroundings import Client, User
from keyvalue_transport.wrpc.handler import ANONYMOUS
from keyvalue_transport.wrpc.in_flight import BytesInFlight

__all__ = ["RedisService"]

log = logging.getLogger(__name__)

#: The version of Redis whose commands and answers we follow.
REDIS_VERSION = "7.0.0"
DEFAULT_USER = "default"
#: The name in Redis of each `eviction`; the nearest one, if there is no such policy.
EVICTION_POLICIES = {"none": "noeviction", "oldest": "allkeys-lru", "unused": "allkeys-lru"}
#: The offset between the clocks is kept until it is wrong by more than this. So EXPIRETIME returns what was set.
OFFSET_ERROR_NS = 10_000_000


class RedisService:
    """The listener and the surroundings of its sessions.

    :param is_ready: returns False while keys are loaded again; None if that never happens
    :param in_flight: counts the requests that wait for the store, with the calls over NATS
    :ivar is_open: False until the provider serves; most commands then get LOADING
    :ivar tallies: the numbers of calls by command and result
    """

    def __init__(
        self,
        plan: RedisPlan,
        service: Service,
        policy: Policy,
        store: Store | StoreSum,
        is_ready: Callable[[], bool] | None,
        in_flight: BytesInFlight,
    ) -> None:
        self.calls = service
        self.in_flight = in_flight
        self.may_flush = plan.may_flush
        self.tallies: Mapping[str, Tally] = command_tallies()
        self._plan = plan
        self._store = store
        self._is_ready = is_ready
        self.loads_again = is_ready is not None
        self.is_open = False
        self._offset_ns = 0
        self._began_s = monotonic()
        for user, (_, own) in plan.users.items():
            policy.add_user(caller_of(user), own)
        service.policy_changed(map(caller_of, plan.users))
        self._anonymous = None if plan.password is not None else User(DEFAULT_USER, ANONYMOUS)
        self.listener = RedisListener(self, command_table(self.tallies), plan.limits)

    async def start(self) -> None:
        """Listen. Call `stop` after an error too.

        :raises ListenError: an address is not available
        """
        await self.listener.start(list(self._plan.addresses), self._plan.context, self._plan.socket_mode)
        log.info("Redis clients can connect to %s", ", ".join(map(str, self.listener.addresses)))

    def measure(self, bounds_s: Sequence[float]) -> CommandDurations:
        """Measure how long commands take from now on. Return the durations."""
        self.listener.durations = durations = CommandDurations(self.tallies, UNKNOWN, bounds_s)
        return durations

    @property
    def is_loading(self) -> bool:
        """True while most commands get LOADING."""
        return not (self.is_open and (self._is_ready is None or self._is_ready()))

    def account(self, user: str, password: bytes) -> User | None:
        """Return the account with this name and password."""
        if user == DEFAULT_USER:
            expected, account = self._plan.password, User(DEFAULT_USER, ANONYMOUS)
            if expected is None:
                return account  # as in Redis, any password opens a user without one
        else:
            expected, _ = self._plan.users.get(user, (Secret(""), {}))
            account = User(user, caller_of(user), True)
        known = expected.reveal().encode()
        return account if hmac.compare_digest(known, password) and known else None

    def anonymous(self) -> User | None:
        """Return the account of a client that gives no password, or None if it must give one."""
        return self._anonymous

    def bucket(self, database: int) -> bytes | None:
        """Return the bucket of a database, or None."""
        return self._plan.databases[database] if 0 <= database < len(self._plan.databases) else None

    def clients(self) -> list[Client]:
        """Return all connections."""
        return self.listener.clients()

    def unix_offset_ns(self) -> int:
        """Return the Unix time at which the store's clock was 0."""
        offset_ns = time_ns() - self._store.now_ns()
        if abs(offset_ns - self._offset_ns) > OFFSET_ERROR_NS:
            self._offset_ns = offset_ns
        return self._offset_ns

    async def pause(self) -> None:
        """Let other connections have a turn."""
        await asyncio.sleep(0)

    def start_task(self, work: Awaitable[object]) -> asyncio.Future[object]:
        """Start a coroutine. Return its task."""
        return asyncio.ensure_future(work)

    def count_foreign(self) -> None:
        """Count a connection that was closed because it speaks HTTP."""
        self.listener.counts.foreign += 1
        log.warning("a Redis connection sent an HTTP request: closed")

    def failed(self, error: Exception) -> None:
        """Log an internal error."""
        log.error("a Redis command failed: %s", type(error).__name__, exc_info=error)

    def settings(self) -> Mapping[str, str]:
        """Return the parameters of CONFIG GET."""
        options, limits = self._store.options, self._plan.limits
        return {
            "maxmemory": str(options.memory_bytes_max or 0),
            "maxmemory-policy": EVICTION_POLICIES[options.eviction],
            "maxclients": str(limits.connections_max),
            "timeout": str(round(limits.idle_timeout_s)),
            "databases": str(len(self._plan.databases)),
            "proto-max-bulk-len": str(options.value_bytes_max),
            "client-query-buffer-limit": str(limits.request_bytes_max),
            "appendonly": "no",
            "save": "",
        }

    def information(self, account: User | None) -> Mapping[str, Mapping[str, object]]:
        """Return the sections of INFO. Only the default user sees how many keys there are."""
        listener, counts, store = self.listener, self.listener.counts, self._store
        usage = getrusage(RUSAGE_SELF)
        uptime_s = int(monotonic() - self._began_s)
        memory_bytes, memory_bytes_max = store.memory_bytes, store.options.memory_bytes_max or 0
        reads = [self.tallies[name] for name in ("get", "exists", "strlen", "getex", "getdel")]
        is_default = account is not None and not account.is_restricted
        ports = [address.port for address in listener.addresses if not address.path]
        return {
            "Server": {
                "redis_version": REDIS_VERSION,
                "redis_mode": "standalone",
                "os": f"{platform.system()} {platform.release()} {platform.machine()}",
                "arch_bits": 64 if sys.maxsize > 2**32 else 32,
                "multiplexing_api": "uvloop",
                "process_id": os.getpid(),
                "tcp_port": ports[0] if ports else 0,
                "uptime_in_seconds": uptime_s,
                "uptime_in_days": uptime_s // 86_400,
            },
            "Clients": {
                "connected_clients": len(listener),
                "maxclients": self._plan.limits.connections_max,
                "blocked_clients": 0,
            },
            "Memory": {
                "used_memory": memory_bytes,
                "used_memory_human": f"{memory_bytes / 2**20:.2f}M",
                "used_memory_rss": _resident_bytes(usage.ru_maxrss),
                "maxmemory": memory_bytes_max,
                "maxmemory_human": f"{memory_bytes_max / 2**20:.2f}M",
                "maxmemory_policy": EVICTION_POLICIES[store.options.eviction],
            },
            "Persistence": {"loading": int(self.is_loading)},
            "Stats": {
                "total_connections_received": counts.accepted,
                "total_commands_processed": sum(map(sum, self.tallies.values())),
                "total_net_input_bytes": counts.received_bytes,
                "total_net_output_bytes": counts.sent_bytes,
                "rejected_connections": counts.rejected,
                "expired_keys": store.expired_keys,
                "evicted_keys": sum(store.evicted_keys.values()),
                "keyspace_hits": sum(tally[OK] for tally in reads),
                "keyspace_misses": sum(tally[NONE] for tally in reads),
            },
            "Replication": {"role": "master", "connected_slaves": 0},
            "CPU": {"used_cpu_sys": f"{usage.ru_stime:.6f}", "used_cpu_user": f"{usage.ru_utime:.6f}"},
            "Commandstats": {
                f"cmdstat_{name}": self._command_stats(name, tally)
                for name, tally in self.tallies.items()
                if any(tally)
            },
            "Keyspace": self._keyspace() if is_default else {},
        }

    def _command_stats(self, name: str, tally: Tally) -> str:
        """Return the facts about a command. Without metrics, no times are measured."""
        durations, calls = self.listener.durations, sum(tally)
        usec = 0 if durations is None else durations.sums_s[name][0] * 1e6
        failed = calls - tally[OK] - tally[NONE]
        return f"calls={calls},usec={usec:.0f},usec_per_call={usec / calls:.2f},rejected_calls=0,failed_calls={failed}"

    def _keyspace(self) -> dict[str, str]:
        found = {}
        for number, name in enumerate(self._plan.databases):
            try:
                keys = self.calls.count_keys(ANONYMOUS, name)
            except InterfaceError:  # the default user may not use this bucket
                continue
            if keys:
                found[f"db{number}"] = f"keys={keys},expires=0,avg_ttl=0"
        return found

    async def stop(self, timeout_s: float) -> None:
        """Answer what has arrived, and close all connections."""
        await self.listener.stop(timeout_s)


def _resident_bytes(peak_kib: int) -> int:
    """Return the memory of the process, or its peak if the system does not tell."""
    try:
        return resident_bytes()
    except OSError:
        return peak_kib * 1024
