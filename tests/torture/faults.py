"""The parts of a replicated store: a cluster of NATS servers, and instances. And the faults that can happen to them.

    clients ──> NATS servers ──> proxy ──> instance          one proxy for each instance
                └─ proxies ─┘                                two proxies for each pair of servers

Everything that is random follows the seed. The order in which processes notice it does not.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

import nats
import nats.errors

from keyvalue_replica.layout import Layout
from keyvalue_transport.wrpc.errors import TransportError
from tests.conftest import HOST_CAPTURE, Launch, Process, Provider
from tests.torture.cluster import Cluster
from tests.torture.proxy import DIRECTIONS, Proxy
from tests.torture.routes import Routes

__all__ = ["BUCKET", "INSTANCES", "LOCAL", "Faults", "Happened", "Scene"]

INSTANCES = 3
#: The KV bucket of the instances.
BUCKET = "torture"
#: The caller that reads what an instance has.
LOCAL = "local"
LINK: dict[str, Any] = HOST_CAPTURE["host_data"]["link_definitions"][0]
OPTIONS = {
    "store": "jetstream",
    "jetstream_replicas": "3",
    "jetstream_timeout_ms": "2000",
    "jetstream_bucket": BUCKET,
    "stop_timeout_ms": "500",
    "connect_timeout_ms": "30000",  # an instance may start while there is no leader
    "redis_buckets": "b",
}
#: Seconds of a fault. Another leader is elected after 4 to 9 s, so only a long one lets that happen.
SHORT_S, LONG_S = (0.2, 2.0), (5.0, 11.0)
LONG_SHARE = 0.25
DELAY_S = (0.05, 0.5)
#: Faults that come more often, because they are short.
FREQUENT = ("answers lost",)
#: Seconds for which a leader is cut off. After 4 to 9 s, another one is elected. After 10 to 20 s, the former one notices.
CUT_OFF_S = (10.0, 13.0)
#: Number of times that an instance connects again, until its server has its consumer.
GATHERING = 10
#: Seconds for which deliveries are held up. Calls that began before have reached `jetstream_timeout_ms`, and others wait.
#: After 5 s, the instance would read the stream again.
HELD_UP_S = (3.0, 4.2)
#: Large values of other keys, their number, and seconds in which they are written. JetStream begins with a window of 2 MiB.
LARGE, FILLING, FILLING_S = bytes(800_000), 4, 2.0
#: How a message begins that sets a key, and seconds in which it is stored. Few other changes are sent in this form.
SET, STORING_S = b"PUB $KV.", (0.02, 0.2)
#: Breaks something, and repairs it after a while. Returns its place.
Fault: TypeAlias = Callable[[Random], Awaitable[int]]


class Happened(NamedTuple):
    """A fault that has happened."""

    began_s: float
    ended_s: float
    name: str
    place: int


class Scene:
    """A cluster, and the instances on it.

    :ivar sockets: the paths for Redis clients of each instance
    :ivar providers: the processes of the instances; a killed one is replaced by the next
    :ivar started: all processes of instances so far, with their places
    """

    def __init__(
        self, cluster: Cluster, routes: Routes, launch: Launch, directory: Path, options: Mapping[str, str]
    ) -> None:
        self.cluster = cluster
        self.routes = routes
        self.providers: list[Provider] = []
        self.started: list[tuple[int, Process]] = []
        self.proxies: list[Proxy] = []
        self.sockets = [str(directory / f"redis{place}.sock") for place in range(INSTANCES)]
        self._launch = launch
        self._options = {**OPTIONS, **options}
        self._urls: list[str] = []

    async def open(self) -> None:
        """Start the instances. Each has a server of its own, and goes to the next one if that is down."""
        ports = [server.port for server in self.cluster.servers]
        for place in range(INSTANCES):
            proxy = Proxy(ports[place:] + ports[:place])
            self.proxies.append(proxy)
            self._urls.append(await proxy.open())
            self.providers.append(await self.start(place))

    async def start(self, place: int) -> Provider:
        """Start an instance, and wait until it serves."""
        key = f"torture-{place}"
        link = LINK | {"source_id": LOCAL, "target": key, "target_config": {"reads": "local"}}
        fields: dict[str, Any] = {"provider_key": key, "link_definitions": [link], "lattice_rpc_url": self._urls[place]}
        options = {**self._options, "redis_address": self.sockets[place]}
        provider = await asyncio.to_thread(self._launch, options, **fields)
        self.started.append((place, provider))
        return provider

    async def consumer(self, place: int) -> dict[str, Any]:
        """Return what JetStream says about the consumer of an instance."""
        return await self.cluster.ask(f"CONSUMER.INFO.KV_{BUCKET}.{self.proxies[place].consumer}")

    async def is_at_its_consumer(self, place: int) -> bool:
        """Return True if an instance is connected to the server that has its consumer."""
        consumer = await self.consumer(place)
        ports = {f"n{number}": server.port for number, server in enumerate(self.cluster.servers)}
        is_there = ports.get(consumer.get("cluster", {}).get("leader")) == self.proxies[place].target
        return is_there and bool(consumer.get("push_bound"))

    @property
    def prefixes(self) -> list[str]:
        """Return the prefix of each instance."""
        return [provider.prefix for provider in self.providers]

    async def close(self) -> None:
        """End the instances."""
        for provider in self.providers:
            provider.signal(signal.SIGCONT)
            await asyncio.to_thread(provider.kill)
        for proxy in self.proxies:
            await proxy.close()


class Faults:
    """Breaks and repairs the parts of a scene, one of the servers and one of the instances at a time.

    :ivar happened: the faults: when each began and ended, its name, and the place of the server or instance
    """

    def __init__(self, scene: Scene, seed: int) -> None:
        self.happened: list[Happened] = []
        self._scene = scene
        self._seed = seed
        self._is_over = asyncio.Event()

    async def run(self) -> None:
        """Let faults happen until `stop`. Then all are repaired."""
        of_servers: dict[str, Fault] = {
            "leader killed": lambda chance: self._kill_a_server(chance, True),
            "follower killed": lambda chance: self._kill_a_server(chance, False),
            "leader stopped": lambda chance: self._stop_a_server(chance, True),
            "follower stopped": lambda chance: self._stop_a_server(chance, False),
            "leader steps down": self._step_down,
            "leader cut off": self._cut_off_a_leader,
            "follower cut off": self._cut_off_a_follower,
            "deliveries held up": self._hold_deliveries_up,  # while the servers are well
        }
        of_instances: dict[str, Fault] = {
            "instance killed": self._kill_an_instance,
            "instance stopped": self._stop_an_instance,
            "connection cut": self._cut,
            "connection held": self._hold,
            "connection delayed": self._delay,
            "answers lost": self._lose_answers,
        }
        async with asyncio.TaskGroup() as group:
            for name, faults in (("servers", of_servers), ("instances", of_instances)):
                group.create_task(self._break(Random(f"{self._seed} {name}"), faults))

    def stop(self) -> None:
        """Begin no further fault, and end those that last."""
        self._is_over.set()

    async def _break(self, chance: Random, faults: Mapping[str, Fault]) -> None:
        while not self._is_over.is_set():
            await self._last(chance.uniform(0.2, 3))
            name = chance.choice([*faults, *(each for each in FREQUENT if each in faults)])
            began_s = monotonic()
            unable = LookupError, OSError, TimeoutError, TransportError, nats.errors.Error
            with suppress(*unable):  # for example, there is no leader
                place = await faults[name](chance)
                self.happened.append(Happened(began_s, monotonic(), name, place))

    async def _last(self, seconds: float) -> None:
        """Return after a time, or when the faults are over."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._is_over.wait(), seconds)

    async def _last_some_time(self, chance: Random) -> None:
        await self._last(chance.uniform(*(LONG_S if chance.random() < LONG_SHARE else SHORT_S)))

    async def _server(self, chance: Random, is_leader: bool) -> int:
        leader, other = await self._scene.cluster.leader(f"KV_{BUCKET}"), chance.randint(1, 2)
        return leader if is_leader else (leader + other) % len(self._scene.cluster.servers)

    async def _kill_a_server(self, chance: Random, is_leader: bool) -> int:
        place = await self._server(chance, is_leader)
        server = self._scene.cluster.servers[place]
        await asyncio.to_thread(server.kill)
        try:
            await self._last_some_time(chance)
        finally:
            await asyncio.to_thread(server.start)
        return place

    async def _stop_a_server(self, chance: Random, is_leader: bool) -> int:
        place = await self._server(chance, is_leader)
        with self._scene.cluster.servers[place].silence():
            await self._last_some_time(chance)
        return place

    async def _cut_off_a_leader(self, chance: Random) -> int:
        """Cut off a leader, with an instance that does not notice it, because its consumer is there as well."""
        place = await self._gather(chance)
        self._scene.routes.part(place)
        try:
            await self._last(chance.uniform(*CUT_OFF_S))
        finally:
            self._scene.routes.join(place, chance.random() < 0.5)
        return place

    async def _gather(self, chance: Random) -> int:
        """Make the server of an instance and of its consumer the leader. Return its place."""
        scene, places = self._scene, chance.sample(range(INSTANCES), INSTANCES)
        for number in range(GATHERING):
            for place in places:
                if await scene.is_at_its_consumer(place):
                    ports = [server.port for server in scene.cluster.servers]
                    leader = ports.index(scene.proxies[place].target)
                    await scene.cluster.lead(f"KV_{BUCKET}", leader)
                    if await scene.is_at_its_consumer(place):
                        return leader
            if self._is_over.is_set():
                break
            scene.proxies[places[number % INSTANCES]].cut()
            await self._last(1.0)
        raise LookupError("no instance is at its consumer")

    async def _cut_off_a_follower(self, chance: Random) -> int:
        place = await self._server(chance, False)
        self._scene.routes.part(place)
        try:
            await self._last_some_time(chance)
        finally:
            self._scene.routes.join(place, chance.random() < 0.5)
        return place

    async def _step_down(self, chance: Random) -> int:
        place = await self._server(chance, True)
        await self._scene.cluster.ask(f"STREAM.LEADER.STEPDOWN.KV_{BUCKET}")
        return place

    async def _kill_an_instance(self, chance: Random) -> int:
        place = chance.randrange(INSTANCES)
        await asyncio.to_thread(self._scene.providers[place].kill)
        await self._last(chance.uniform(0, 0.5))
        self._scene.providers[place] = await self._scene.start(place)
        return place

    async def _stop_an_instance(self, chance: Random) -> int:
        place = chance.randrange(INSTANCES)
        provider = self._scene.providers[place]
        provider.signal(signal.SIGSTOP)
        try:
            await self._last_some_time(chance)
        finally:
            provider.signal(signal.SIGCONT)
        return place

    async def _cut(self, chance: Random) -> int:
        place = chance.randrange(INSTANCES)
        self._scene.proxies[place].cut()
        return place

    async def _hold(self, chance: Random) -> int:
        place = chance.randrange(INSTANCES)
        proxy, directions = self._scene.proxies[place], chance.choice((DIRECTIONS, *zip(DIRECTIONS)))
        for direction in directions:
            proxy.hold(direction)
        try:
            await self._last_some_time(chance)
        finally:
            for direction in directions:
                proxy.release(direction)
        return place

    async def _hold_deliveries_up(self, chance: Random) -> int:
        """Hold what an instance gets, and let large values fill the window of its consumer.

        So the server delivers later what is written meanwhile, unless it is overwritten.
        """
        place = chance.randrange(INSTANCES)
        scene, proxy = self._scene, self._scene.proxies[place]
        subjects = [Layout(BUCKET).subject(b"large", b"%d" % number).decode() for number in range(FILLING)]
        client = await nats.connect(scene.cluster.urls, max_reconnect_attempts=2, connect_timeout=1)
        try:
            await client.request(subjects[0], timeout=FILLING_S)  # the stream has a leader
            proxy.hold("down")
            ends_s = monotonic() + chance.uniform(*HELD_UP_S)
            with suppress(TimeoutError):  # a part of them may fill it, too
                async with asyncio.timeout(FILLING_S):
                    pending = 0
                    while pending < FILLING // 2:
                        await asyncio.gather(*(client.request(each, LARGE, timeout=FILLING_S) for each in subjects))
                        pending = (await scene.consumer(place)).get("num_pending", 0)
            await self._last(ends_s - monotonic())
        finally:
            proxy.release("down")
            await client.close()
        return place

    async def _delay(self, chance: Random) -> int:
        place = chance.randrange(INSTANCES)
        proxy = self._scene.proxies[place]
        for direction in DIRECTIONS:
            proxy.delays_s[direction] = chance.choice((0.0, chance.uniform(*DELAY_S)))
        try:
            await self._last_some_time(chance)
        finally:
            proxy.delays_s = dict.fromkeys(DIRECTIONS, 0.0)
        return place

    async def _lose_answers(self, chance: Random) -> int:
        """Cut a connection after a value was sent, so that it is stored, but the instance does not know that."""
        place = chance.randrange(INSTANCES)
        async with asyncio.timeout(SHORT_S[1]):
            await self._scene.proxies[place].lose_answers(SET, chance.uniform(*STORING_S))
        return place
