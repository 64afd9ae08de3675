"""Histories of a replicated store under faults: clients call, something breaks, and a checker judges all answers.

    clients ──> instances ──> proxies ──> a cluster of NATS servers with proxies between them, each with the stream

Half of the clients call over NATS, and half over the Redis protocol, with the same keys. Each instance has a prefix
and a socket of its own, so that an instance that hangs holds up only its clients, and the others go on.

Each history has a seed, which chooses the calls, the faults and `jetstream_history`. A call that was not answered, or
whose answer says that it may or may not have been stored, has an unknown outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any, Protocol

from keyvalue_replica.layout import Layout
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from tests.conftest import PROVIDER, launching
from tests.torture.cluster import Cluster
from tests.torture.faults import BUCKET as KV_BUCKET
from tests.torture.faults import INSTANCES, LOCAL, Faults, Happened, Scene
from tests.torture.linearizability import SETS, UNKNOWN, Call, UndecidedError, first_unexplained
from tests.torture.planted import BUGS, UNANSWERED, command
from tests.torture.redis_client import RedisClient, common
from tests.torture.routes import Routes

__all__ = ["History", "NatsClient", "chosen", "is_found", "main", "record"]

CLIENTS = 16
CALLS_OF_CLIENT = 2_000
#: Seconds that a client waits for an answer. The provider gives up earlier.
ANSWER_TIMEOUT_S = 8.0
#: A history ends after this multiple of its time, even if not all calls were made.
PATIENCE = 4
#: Seconds after the last repair within which each instance must serve, and then answer every call of a round.
REPAIR_S = 60
#: After all repairs, each client makes this many calls as fast as it can. Such a round must end without unknown outcomes.
#: Each instance is read locally meanwhile, by this many readers, for at least this time. They have a group of their own.
SETTLED_CALLS, READERS = 12, 4
SETTLED_S = 3.0
#: Its values have this many digits. So a batch is sent in several parts, and calls arrive between them.
LOCAL_GROUP, DIGITS = tuple(f"part{number}" for number in range(20)), 8_000
#: Number of other keys that are written together meanwhile, and seconds between.
OTHERS, OTHERS_S = 30, 0.03
#: The share of its calls that a client makes to the same instance. The first clients, two for each instance, make all calls
#: to it, so they go on while another instance does not answer.
HOME_SHARE = 0.8
FAITHFUL = 2 * INSTANCES
BUCKET = "b"
#: Few keys, so that calls of one key overlap. Those that begin with n are counters. The keys of GROUP are only used
#: together, so they are one key to the checker.
KEYS = ("a", "b", "c", "n1", "n2", "group")
#: One key gets half of the calls, so that its messages are often overwritten before they are delivered.
WEIGHTS = (8, 1, 1, 2, 1, 3)
GROUP = ("g1", "g2", "g3")
#: How the failures begin that are wrong answers.
WRONG = ("WRONG LOCAL READ", "NOT LINEARIZABLE")
#: Keys that are set together with a key of one character, four of them before it, so that an instance publishes a run.
BESIDE = "pqrstuv"


class Asked(Protocol):
    """A client of one instance."""

    async def ask(self, key: str, function: str, argument: Any) -> Any: ...


class History:
    """All calls of a history, by key.

    :ivar hanging: an instance that does not serve after all was repaired, or None
    :ivar unsettled: number of calls of the last round after all repairs that were refused, or whose outcome is unknown
    :ivar wrong: descriptions of wrong answers to local reads
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {key: [] for key in KEYS}
        self.faults: list[Happened] = []
        self.logs: dict[str, str] = {}  # of the instances, by name
        self.seconds = 0.0
        self.hanging: int | None = None
        self.unsettled = 0
        self.wrong: list[str] = []
        self._values = 0

    def __len__(self) -> int:
        return sum(map(len, self.calls.values()))

    @property
    def unknown(self) -> int:
        """The number of calls without a known outcome."""
        return sum(call.result == UNKNOWN for calls in self.calls.values() for call in calls)

    def failure(self) -> str | None:
        """Return a wrong answer, or else the number of missing answers, or an instance that hangs, or None."""
        if self.wrong:
            return f"WRONG LOCAL READ: {self.wrong[0]}"
        for key, calls in self.calls.items():
            try:
                call = first_unexplained(calls)
            except UndecidedError as error:
                return f"NOT DECIDED: key {key}: {error}"
            if call is not None:
                return f"NOT LINEARIZABLE: key {key}: {call}"
        if self.unsettled:
            return f"NOT ANSWERED: {self.unsettled} calls, although nothing was broken"
        return None if self.hanging is None else f"NOT SERVING: instance {self.hanging}"

    def save(self, folder: Path) -> None:
        """Write all calls and faults to files, one JSON object per line, and the logs."""
        folder.mkdir(parents=True, exist_ok=True)
        calls = [{"key": key, **asdict(call)} for key, calls in self.calls.items() for call in calls]
        for name, lines in (("calls", calls), ("faults", [fault._asdict() for fault in self.faults])):
            texts = [json.dumps(line, default=lambda value: value.decode()) for line in lines]
            (folder / f"{name}.jsonl").write_text("\n".join(texts) + "\n")
        for name, log in self.logs.items():
            (folder / f"{name}.log").write_text(log)

    async def call(self, clients: Sequence[Asked], place: int, key: str, function: str) -> bool:
        """Call an instance, and record the call. Return False if it is certain that it had no effect."""
        argument: bytes | int | None = None
        if function in SETS:
            self._values += 1
            argument = b"%d" % self._values
        elif function == "increment":
            argument = 1
        began_s = monotonic()
        try:
            result = await clients[place].ask(key, function, argument)
        except NoProviderError:
            return False
        except (TransportError, InterfaceError) as error:
            if "nothing was" in str(error):
                return False
            self.calls[key].append(Call(function, began_s, argument=argument, result=UNKNOWN, place=place))
        else:
            self.calls[key].append(Call(function, began_s, monotonic(), argument, result, place))
        return True


class NatsClient:
    """A client that calls an instance over NATS.

    :param group: the keys that the key `group` stands for
    """

    def __init__(self, client: KeyValueClient, group: Sequence[str] = GROUP) -> None:
        self._client = client
        self._group = group

    async def ask(self, key: str, function: str, argument: Any) -> Any:
        """Make a call, and return its answer."""
        if key == "group":
            return await self._ask_of_group(function, argument)
        if function == "set" and len(key) == 1:
            keys = (*BESIDE[:4], key, *BESIDE[4:])
            sets = [self._client.set(BUCKET, each, argument) for each in keys]
            answer = (await asyncio.gather(*sets, return_exceptions=True))[4]
            if isinstance(answer, BaseException):
                raise answer
            return answer
        return await getattr(self._client, function)(BUCKET, key, *() if argument is None else (argument,))

    async def _ask_of_group(self, function: str, argument: Any) -> bytes | None:
        """Set, delete or get all keys of the group."""
        if function == "set":
            await self._client.set_many(BUCKET, dict.fromkeys(self._group, argument))
        elif function == "delete":
            await self._client.delete_many(BUCKET, self._group)
        else:
            return common(await self._client.get_many(BUCKET, self._group))
        return None


def chosen(chance: Random, is_redis: bool) -> tuple[str, str]:
    """Return a key and a function."""
    (key,) = chance.choices(KEYS, WEIGHTS)
    if chance.random() < 0.6:
        return key, "get" if key == "group" or chance.random() < 0.7 else "exists"
    if key.startswith("n"):
        return key, chance.choice(("increment", "increment", "increment", "take")) if is_redis else "increment"
    if not is_redis:
        return key, "delete" if chance.random() < 0.2 else "set"
    if key == "group":  # DEL removes each key on its own, so it does not fit to one key
        return key, chance.choice(("set", "set-missing"))
    return key, chance.choice(("set", "set-missing", "replace", "take", "remove"))


async def record(directory: Path, seed: int, calls: int, seconds: float, planted: str | None = None) -> History:
    """Record a history.

    :param calls: number of calls of each client
    :param seconds: time in which the calls are made, if no fault holds them up. Late calls follow as fast as possible
    :param planted: a bug that the instances have
    """
    history = History()
    routes = Routes()
    await routes.open()
    cluster = Cluster(directory, routes.ports, routes.urls)
    try:
        with launching(cluster.urls[0], directory, (PROVIDER,) if planted is None else command(planted)) as launch:
            kept = Random(seed).choice((1, 1, 64))
            scene = Scene(cluster, routes, launch, directory, {"jetstream_history": str(kept)})
            try:
                await scene.open()
                await play(scene, history, seed, calls, seconds)
                if history.hanging is None:
                    await settle(scene, history, seed, kept > 1)
            finally:
                await scene.close()
            numbered = enumerate(scene.started)
            history.logs = {f"{number}-instance-{place}": process.output for number, (place, process) in numbered}
    finally:
        cluster.stop()
        await routes.close()
    return history


async def play(scene: Scene, history: History, seed: int, calls: int, seconds: float) -> None:
    """Let clients call while faults happen, and read all keys when all is repaired."""
    faults = Faults(scene, seed)
    began_s = monotonic()

    async def call_on(number: int) -> None:
        chance, made, home = Random(seed * 1000 + number), 0, number % INSTANCES
        is_redis = number % 2 == 1
        async with calling(scene, is_redis, home) as clients:
            while made < calls and monotonic() - began_s < PATIENCE * seconds:
                await asyncio.sleep(began_s + (made + chance.random()) * seconds / calls - monotonic())
                is_home = chance.random() < HOME_SHARE or number < FAITHFUL
                place = home if is_home else chance.randrange(INSTANCES)
                if await history.call(clients, place, *chosen(chance, is_redis)):
                    made += 1
                else:
                    await asyncio.sleep(0.02)

    breaking = asyncio.create_task(faults.run())
    try:
        await asyncio.gather(*(call_on(number) for number in range(CLIENTS)))
    finally:
        faults.stop()
        await breaking
    history.seconds, history.faults = monotonic() - began_s, faults.happened
    ends_s = asyncio.get_running_loop().time() + REPAIR_S
    for is_redis in (False, True):
        async with calling(scene, is_redis) as clients:
            for place in range(INSTANCES):
                try:
                    async with asyncio.timeout_at(ends_s):
                        await read_all(history, clients, place)
                except TimeoutError:
                    history.hanging = place
                    return


async def read_all(history: History, clients: Sequence[Asked], place: int) -> None:
    """Read all keys at an instance, until each read is answered."""
    for key in KEYS:
        while True:
            if await history.call(clients, place, key, "get") and history.calls[key][-1].result != UNKNOWN:
                break
            await asyncio.sleep(0.02)


async def settle(scene: Scene, history: History, seed: int, has_all: bool) -> None:
    """Let clients call as fast as they can, until every call of a round is answered, or until it is too late.

    :param has_all: True if the stream keeps enough messages of a key that each arrives. Otherwise, a part of a batch may be
        overwritten before it has arrived, and a local read may show the rest
    """

    async def call_on(number: int) -> int:
        """Return the number of calls that were refused until it was too late."""
        chance, is_redis = Random(f"{seed} {number}"), number % 2 == 1
        async with calling(scene, is_redis) as clients:
            left = SETTLED_CALLS
            while left and monotonic() - began_s < REPAIR_S:
                if await history.call(clients, chance.randrange(INSTANCES), *chosen(chance, is_redis)):
                    left -= 1
                else:
                    await asyncio.sleep(0.02)
        return left

    began_s = monotonic()
    beside = [asyncio.create_task(each) for each in (write_others(scene), read_locally(scene, history, has_all))]
    while monotonic() - began_s < REPAIR_S and not history.wrong:
        before = history.unknown
        refused = await asyncio.gather(*(call_on(number) for number in range(CLIENTS)))
        history.unsettled = history.unknown - before + sum(refused)
        if not history.unsettled:
            break
    await asyncio.sleep(began_s + SETTLED_S - monotonic())
    for task in beside:
        task.cancel()
    for ended in await asyncio.gather(*beside, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


async def write_others(scene: Scene) -> None:
    """Write other keys as another NATS client, many at a time, until this is cancelled.

    So the messages of an instance arrive in the middle of others.
    """
    subjects = [Layout(KV_BUCKET).subject(BUCKET.encode(), b"other%d" % number) for number in range(OTHERS)]
    frames = b"".join(b"PUB %b 1\r\nv\r\n" % subject for subject in subjects)
    connection = await Connection.open(ConnectionOptions(tuple(scene.cluster.urls), path="plain"))
    try:
        while True:
            await connection.write(frames)
            await asyncio.sleep(OTHERS_S)
    finally:
        await connection.close()


async def read_locally(scene: Scene, history: History, has_all: bool) -> None:
    """Read at each instance without a barrier, until this is cancelled.

    Each caller has a key of its own, and must find what it has just set. All keys of the group must have the same value.
    """

    async def set_group(client: Asked) -> None:
        for number in count():
            with suppress(TransportError, InterfaceError):
                await client.ask("group", "set", b"%0*d" % (DIGITS, number))
            await asyncio.sleep(0.02)

    async def read_on(place: int, client: Asked, own: str) -> None:
        for number in count():
            value = b"%d" % number
            try:
                await client.ask(own, "set", value)
                found = await client.ask(own, "get", None)
                groups = [await client.ask("group", "get", None) for _ in range(3)]
            except (TransportError, InterfaceError):
                await asyncio.sleep(0.02)
                continue
            if found != value:
                history.wrong.append(f"instance {place} has set {value!r}, and then has {found!r}")
            if has_all and any(group is not None and not group.isdigit() for group in groups):
                history.wrong.append(f"instance {place} has a part of a batch")

    async with calling(scene, False, 0, LOCAL, LOCAL_GROUP) as clients, asyncio.TaskGroup() as tasks:
        for place, client in enumerate(clients):
            tasks.create_task(set_group(client))
            for number in range(READERS):
                tasks.create_task(read_on(place, client, f"own{place}.{number}"))


@asynccontextmanager
async def calling(
    scene: Scene, is_redis: bool, home: int = 0, source_id: str | None = None, group: Sequence[str] = GROUP
) -> AsyncIterator[Sequence[Asked]]:
    """Connect, and yield a client of each instance.

    :param home: the server to connect to over NATS, or the first one after it that runs. If it is cut off from the others,
        the client reaches the instance that is connected to it.
    """
    if is_redis:
        async with AsyncExitStack() as stack:
            yield [stack.enter_context(RedisClient(path, ANSWER_TIMEOUT_S, GROUP)) for path in scene.sockets]
        return
    urls = scene.cluster.urls
    connection = await Connection.open(ConnectionOptions((*urls[home:], *urls[:home]), path="plain"))
    try:
        async with AsyncExitStack() as stack:
            yield [
                NatsClient(
                    await stack.enter_async_context(
                        KeyValueClient(connection, prefix, source_id=source_id, timeout_s=ANSWER_TIMEOUT_S)
                    ),
                    group,
                )
                for prefix in scene.prefixes
            ]
    finally:
        await connection.close()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/torture replicated", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="seed of the first history (default 1)")
    parser.add_argument("--histories", type=int, default=1, metavar="N", help="number of histories (default 1)")
    text = f"calls of each of the {CLIENTS} clients in a history (default {CALLS_OF_CLIENT})"
    parser.add_argument("--calls", type=int, default=CALLS_OF_CLIENT, metavar="N", help=text)
    text = "time in which a client makes its calls, if no fault holds it up (default 60)"
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help=text)
    parser.add_argument("--output", type=Path, default=Path(), metavar="FOLDER", help="folder for failed histories")
    text = "give the instances a bug; stop at the first history that shows it, and fail if none does: "
    parser.add_argument("--planted", choices=BUGS, metavar="BUG", help=text + ", ".join(BUGS))
    return parser


def is_found(failure: str | None, planted: str | None) -> bool:
    """Return True if a history failed, and for a planted bug: if it shows the bug, and not only a busy machine."""
    if failure is None or planted is None or planted in UNANSWERED:
        return failure is not None
    return failure.startswith(WRONG)


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return 1 if a history cannot be explained, or with a planted bug, if none shows it."""
    options = parser().parse_args(arguments)
    failed = 0
    for seed in range(options.seed, options.seed + options.histories):
        with TemporaryDirectory(prefix="torture-") as directory:
            history = asyncio.run(record(Path(directory), seed, options.calls, options.seconds, options.planted))
        began_s = monotonic()
        failure = history.failure()
        numbers = Counter(fault.name for fault in history.faults)
        faults = ", ".join(f"{number} x {name}" for name, number in sorted(numbers.items()))
        print(
            f"seed {seed}: {len(history)} calls in {history.seconds:.0f} s, {history.unknown} unknown; {faults};"
            f" {failure or 'linearizable'}; checked in {monotonic() - began_s:.1f} s",
            flush=True,
        )
        if is_found(failure, options.planted):
            failed += 1
            folder: Path = options.output / f"history-{seed}"
            history.save(folder)
            print(f"  the history is in {folder.resolve()}", flush=True)
            if options.planted is not None:
                break
    return int((failed == 0) if options.planted is not None else (failed > 0))
