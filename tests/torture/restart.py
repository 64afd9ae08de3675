"""The only instance of a replicated store is killed under load and started again, many times.

    16 writers ──> instance ──> NATS server with JetStream, on file storage

Each key has one writer, which counts up its value. So a key lacks a change if its value is lower than the last one that
was acknowledged before the read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic

from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from tests.conftest import DEADLINE_S, NatsServer, launching

__all__ = ["Figures", "main", "run"]

WRITERS = 16
#: Seconds from the start of the process to its first answer.
SERVES_S = 2.0
#: Seconds that a write may take. Those that a killed instance has taken get no answer.
WRITE_TIMEOUT_S = 0.4
PROBE_TIMEOUT_S = 0.2
#: Seconds between a check and the next kill. All writers write again, after their timeout.
LOAD_S = (0.4, 1.0)
PAGE_KEYS = 500
BUCKET = "b"
OPTIONS = {"store": "jetstream", "stop_timeout_ms": "500"}


@dataclass(slots=True)
class Figures:
    """The results of the tries.

    :ivar starts_s: for each try, the seconds from the start of the process to its first answer
    :ivar missing: descriptions of keys that lack an acknowledged change
    """

    starts_s: list[float] = field(default_factory=list)
    acknowledged: int = 0
    unknown: int = 0
    checked: int = 0
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.starts_s)} tries: serves after {median(self.starts_s):.2f} s (median), {max(self.starts_s):.2f} s"
            f" (longest); {self.acknowledged} writes acknowledged, {self.unknown} unknown; {self.checked} keys checked,"
            f" {len(self.missing)} lack a change"
        )

    @property
    def missed(self) -> list[str]:
        """Return the bars that were missed."""
        longest_s = max(self.starts_s)
        late = [f"it served after {longest_s:.2f} s; the limit is {SERVES_S:g} s"] if longest_s > SERVES_S else []
        return late + self.missing


class Writers:
    """Writes keys, and knows what was acknowledged."""

    def __init__(self, client: KeyValueClient, keys: int, figures: Figures) -> None:
        self._client = client
        self._figures = figures
        self._acknowledged = [0] * keys
        self._sent = [0] * keys
        self._unsure: set[int] = set()

    async def fill(self) -> None:
        """Set each key once."""
        await asyncio.gather(*(self._fill(writer) for writer in range(WRITERS)))

    async def _fill(self, writer: int) -> None:
        for key in range(writer, len(self._sent), WRITERS):
            await self._write(key)

    async def write_on(self, writer: int, chance: Random) -> None:
        """Write keys of one writer without end."""
        while True:
            key = chance.randrange(writer, len(self._sent), WRITERS)
            if key not in self._unsure:
                await self._write(key)

    async def _write(self, key: int) -> None:
        self._sent[key] += 1
        value = self._sent[key]
        try:
            await self._client.set(BUCKET, str(key), b"%d" % value)
        except NoProviderError:
            await asyncio.sleep(0.01)
        except (TransportError, InterfaceError):
            self._figures.unknown += 1
            self._unsure.add(key)  # a later write could be overtaken by this one
        else:
            self._figures.acknowledged += 1
            self._acknowledged[key] = value

    async def check(self, reader: KeyValueClient) -> None:
        """Read all keys, while they are written."""
        for begin in range(0, len(self._sent), PAGE_KEYS):
            keys = range(begin, min(begin + PAGE_KEYS, len(self._sent)))
            acknowledged = [self._acknowledged[key] for key in keys]
            found = await reader.get_many(BUCKET, [str(key) for key in keys])
            self._figures.checked += len(keys)
            self._figures.missing += [
                f"key {key} is {value!r}, acknowledged {known}, sent {self._sent[key]}"
                for key, value, known in zip(keys, found, acknowledged, strict=True)
                if not known <= int(value or b"0") <= self._sent[key]
            ]
        self._unsure.clear()


async def first_answer(client: KeyValueClient) -> None:
    """Return when a get is answered."""
    while True:
        try:
            await client.get(BUCKET, "0")
        except NoProviderError:
            await asyncio.sleep(0.005)
        except (TransportError, InterfaceError):
            pass  # the killed instance took it
        else:
            return


async def run(directory: Path, seed: int, tries: int, keys: int) -> Figures:
    """Fill a store, and kill and start its instance while it is written."""
    server = NatsServer(directory, f"jetstream {{ store_dir: {json.dumps(str(directory / 'streams'))} }}\n")
    figures, chance = Figures(), Random(seed)
    try:
        with launching(server.url, directory) as launch:
            provider = await asyncio.to_thread(launch, OPTIONS)

            def client(timeout_s: float) -> KeyValueClient:
                return KeyValueClient(server.url, provider.prefix, timeout_s=timeout_s)

            async with (
                client(WRITE_TIMEOUT_S) as writer,
                client(PROBE_TIMEOUT_S) as probe,
                client(DEADLINE_S) as reader,
            ):
                writers = Writers(writer, keys, figures)
                await writers.fill()
                async with asyncio.TaskGroup() as group:
                    writing = [group.create_task(writers.write_on(place, chance)) for place in range(WRITERS)]
                    for _ in range(tries):
                        await asyncio.sleep(chance.uniform(*LOAD_S))
                        await asyncio.to_thread(provider.kill)
                        began_s = monotonic()
                        provider = await asyncio.to_thread(launch, OPTIONS, wait=False, provider_key=provider.key)
                        await asyncio.wait_for(first_answer(probe), DEADLINE_S)
                        figures.starts_s.append(monotonic() - began_s)
                        await writers.check(reader)
                        if len(figures.starts_s) % 10 == 0:
                            print(figures, flush=True)
                    for task in writing:
                        task.cancel()
    finally:
        server.stop()
    return figures


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/torture restart", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="decides when the instance is killed (default 1)")
    parser.add_argument("--tries", type=int, default=10, metavar="N", help="number of kills (default 10)")
    parser.add_argument("--keys", type=int, default=10_000, metavar="N", help="number of keys (default 10000)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command. Return 1 if an acknowledged change is missing, or a start takes too long."""
    options = parser().parse_args(arguments)
    with TemporaryDirectory(prefix="torture-") as directory:
        figures = asyncio.run(run(Path(directory), options.seed, options.tries, options.keys))
    print(figures)
    for missed in figures.missed[:10]:
        print(f"  missed: {missed}")
    return 1 if figures.missed else 0
