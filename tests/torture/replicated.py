"""Histories of a replicated store under faults: clients call, something breaks, and a checker judges all answers.

    clients ──> providers, which share one prefix ──> a cluster of NATS servers, each with the stream

Each history has a seed, which chooses the calls, the faults and `jetstream_history`. A call that was not answered, or
whose answer says that it may or may not have been stored, has an unknown outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from tests.conftest import Launch, Provider, launching
from tests.torture.cluster import Cluster
from tests.torture.linearizability import UNKNOWN, Call, first_unexplained

__all__ = ["History", "main", "record"]

INSTANCES = 3
CLIENTS = 16
#: Seconds that a client waits for an answer. The provider gives up earlier.
ANSWER_TIMEOUT_S = 8.0
OPTIONS = {
    "store": "jetstream",
    "jetstream_replicas": "3",
    "jetstream_timeout_ms": "2000",
    "jetstream_bucket": "torture",
    "stop_timeout_ms": "500",
}
BUCKET = "b"
#: Few keys, so that calls of one key overlap. Those that begin with n are counters.
KEYS = ("a", "b", "c", "n1", "n2")


class History:
    """All calls of a history, by key."""

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {key: [] for key in KEYS}
        self.faults: Counter[str] = Counter()
        self._values = 0

    def __len__(self) -> int:
        return sum(map(len, self.calls.values()))

    @property
    def unknown(self) -> int:
        """The number of calls without a known outcome."""
        return sum(call.result == UNKNOWN for calls in self.calls.values() for call in calls)

    def unexplained(self) -> tuple[str, Call] | None:
        """Return a key, and a call of it whose answer cannot be explained, or None."""
        for key, calls in self.calls.items():
            call = first_unexplained(calls)
            if call is not None:
                return key, call
        return None

    def save(self, path: Path) -> None:
        """Write all calls to a file, one JSON object per line."""
        lines = [
            json.dumps({"key": key, **asdict(call)}, default=lambda value: value.decode())
            for key, calls in self.calls.items()
            for call in calls
        ]
        path.write_text("\n".join(lines) + "\n")

    async def call(self, client: KeyValueClient, chance: Random) -> None:
        """Make one call, and record it."""
        key = chance.choice(KEYS)
        asked: Awaitable[Any]
        argument: bytes | int | None = None
        began_s = monotonic()
        match chance.choice(("get", "get", "change", "exists")):
            case "get":
                function, asked = "get", client.get(BUCKET, key)
            case "exists":
                function, asked = "exists", client.exists(BUCKET, key)
            case _ if key.startswith("n"):
                argument = chance.randint(1, 3)
                function, asked = "increment", client.increment(BUCKET, key, argument)
            case _ if chance.random() < 0.2:
                function, asked = "delete", client.delete(BUCKET, key)
            case _:
                self._values += 1
                argument = b"%d" % self._values
                function, asked = "set", client.set(BUCKET, key, argument)
        try:
            result = await asked
        except NoProviderError:
            await asyncio.sleep(0.02)  # nobody has received it
        except (TransportError, InterfaceError) as error:
            if "nothing was" in str(error):
                return
            self.calls[key].append(Call(function, began_s, argument=argument, result=UNKNOWN))
        else:
            self.calls[key].append(Call(function, began_s, monotonic(), argument, result))


class Scene:
    """A cluster, the providers on it, and the faults that can happen to them."""

    def __init__(self, cluster: Cluster, launch: Launch, history: History, chance: Random, key_history: int) -> None:
        self._cluster = cluster
        self._launch = launch
        self._history = history
        self._chance = chance
        self._options = OPTIONS | {"jetstream_history": str(key_history)}
        self.providers = [self._start(0, None)]
        self.providers += [self._start(place, self.providers[0].key) for place in range(1, INSTANCES)]

    def _start(self, place: int, key: str | None) -> Provider:
        fields: dict[str, Any] = {} if key is None else {"provider_key": key}
        return self._launch(self._options, lattice_rpc_url=self._cluster.servers[place].url, **fields)

    async def break_something(self) -> None:
        """Let one fault happen, and repair it after a while."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "instance killed": self.kill_an_instance,
            "instance stopped": self.stop_an_instance,
            "leader killed": lambda: self.kill_a_server(True),
            "follower killed": lambda: self.kill_a_server(False),
            "leader stopped": lambda: self.stop_a_server(True),
            "follower stopped": lambda: self.stop_a_server(False),
            "leader steps down": self.step_down,
        }
        name = self._chance.choice(list(faults))
        with suppress(LookupError, TimeoutError, OSError, Exception if name == "leader steps down" else LookupError):
            await faults[name]()
            self._history.faults[name] += 1

    async def kill_an_instance(self) -> None:
        place = self._chance.randrange(INSTANCES)
        provider = self.providers[place]
        await asyncio.to_thread(provider.kill)
        await asyncio.sleep(self._chance.uniform(0, 0.5))
        self.providers[place] = await asyncio.to_thread(self._start, place, provider.key)

    async def stop_an_instance(self) -> None:
        provider = self._chance.choice(self.providers)
        provider.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.3, 1.5))
        provider.signal(signal.SIGCONT)

    async def _server(self, is_leader: bool) -> int:
        leader = await self._cluster.leader("KV_torture")
        return leader if is_leader else (leader + self._chance.randint(1, 2)) % 3

    async def kill_a_server(self, is_leader: bool) -> None:
        server = self._cluster.servers[await self._server(is_leader)]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self._chance.uniform(0.2, 1))
        await asyncio.to_thread(server.start)

    async def stop_a_server(self, is_leader: bool) -> None:
        server = self._cluster.servers[await self._server(is_leader)]
        server._process.signal(signal.SIGSTOP)
        await asyncio.sleep(self._chance.uniform(0.5, 3))
        server._process.signal(signal.SIGCONT)

    async def step_down(self) -> None:
        await self._cluster.ask("STREAM.LEADER.STEPDOWN.KV_torture")


async def record(directory: Path, seed: int, calls: int, seconds: float) -> History:
    """Record a history. It ends after a number of calls and this time, whichever is later, and at twice the time.

    :param calls: number of calls that all clients make together
    """
    chance = Random(seed)
    history = History()
    cluster = Cluster(directory)
    try:
        with launching(cluster.urls[0], directory) as launch:
            scene = await asyncio.to_thread(Scene, cluster, launch, history, chance, chance.choice((1, 1, 64)))
            prefix = scene.providers[0].prefix
            began_s = monotonic()

            async def call_on(number: int) -> None:
                own = Random(seed * 1000 + number)
                url = ",".join(cluster.urls)
                async with KeyValueClient(url, prefix, timeout_s=ANSWER_TIMEOUT_S) as client:
                    while (spent_s := monotonic() - began_s) < 2 * seconds:
                        if len(history) >= calls and spent_s > seconds:
                            return
                        await history.call(client, own)
                        await asyncio.sleep(own.uniform(0, 2 * seconds * CLIENTS / calls))

            async def break_on() -> None:
                while True:
                    await asyncio.sleep(chance.uniform(0.2, 1))
                    await scene.break_something()

            breaking = asyncio.create_task(break_on())
            await asyncio.gather(*(call_on(number) for number in range(CLIENTS)))
            breaking.cancel()
            await asyncio.gather(breaking, return_exceptions=True)
            for server in cluster.servers:
                if server._process.running:
                    server._process.signal(signal.SIGCONT)
            for provider in scene.providers:
                provider.signal(signal.SIGCONT)
                provider.process.kill()
                provider.wait()
    finally:
        cluster.stop()
    return history


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/torture replicated", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the first history (default 1)")
    parser.add_argument("--histories", type=int, default=1, metavar="N", help="number of histories (default 1)")
    parser.add_argument("--calls", type=int, default=32_000, metavar="N", help="calls in a history (default 32000)")
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="duration of a history (default 60)")
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="folder for failed histories")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return 1 if a history cannot be explained."""
    options = parser().parse_args(arguments)
    logging.getLogger("keyvalue_transport").setLevel(logging.ERROR)  # faults end many connections
    failed = 0
    for seed in range(options.seed, options.seed + options.histories):
        with TemporaryDirectory(prefix="torture-") as directory:
            history = asyncio.run(record(Path(directory), seed, options.calls, options.seconds))
        began_s = monotonic()
        found = history.unexplained()
        verdict = "linearizable" if found is None else f"NOT LINEARIZABLE: key {found[0]}: {found[1]}"
        faults = ", ".join(f"{number} x {name}" for name, number in sorted(history.faults.items()))
        print(
            f"seed {seed}: {len(history)} calls, {history.unknown} unknown; {faults}; {verdict};"
            f" checked in {monotonic() - began_s:.1f} s",
            flush=True,
        )
        if found is not None:
            failed += 1
            path = options.output / f"history-{seed}.jsonl"
            history.save(path)
            print(f"  the history is in {path}", flush=True)
    return 1 if failed else 0
