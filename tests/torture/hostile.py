"""The command `scripts/torture hostile`.

    this process    NATS server, provider, watching component: started and stopped
                    careful caller, health probe, half-open and unread callers (neighbours.py)
                    one sample per second: RSS, /metrics, answers of the flood (figures.py judges them)
    flood process   the calls of the phases (calls.py), as fast as one connection can (flood.py)

The flood and the watcher have their own processes, so that the careful caller measures the provider and not them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import urllib.error
from collections.abc import Sequence
from pathlib import Path
from random import Random
from subprocess import PIPE
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import nats
from nats.aio.client import Client

from bench.load.usage import resident_bytes
from bench.run import SCRIPTS
from bench.run.processes import (
    LATTICE,
    NatsProcess,
    Process,
    ProcessError,
    ProviderProcess,
    link_of,
    one_line,
)
from bench.run.subjects import ANSWERING
from keyvalue_transport.wrpc.errors import TransportError
from tests.torture.calls import BACKLOG, BRIEF, LIMITED, TTL, TTL_MS, Phase, phases
from tests.torture.figures import MIB, Bars, Figures, Sample
from tests.torture.metrics import read_metrics
from tests.torture.neighbours import ask_health, call_carefully, leave_half_open, leave_unread

__all__ = ["main"]

SAMPLE_INTERVAL_S = 1.0
LINE_INTERVAL_S = 10.0
WATCHER = "watcher"
EPILOG = """\
phases, in this order, each for --phase-seconds:
  grow tiny, mixed, large   writes to all buckets, with some reads, counters, deletions and pages.
                            The largest key is 32, 512 or 65,536 bytes; the largest value 64, 4,096 or 262,144 bytes
  delete                    deletes all buckets, in batches or key by key
  ttl                       sets of new keys that expire after 500 ms
  backlog                   one bucket with many expired keys, which is also listed
In every second phase, a component watches all changes.

bars:
  RSS growth is at most 1.5 x the counted memory + 16 MiB, at each minute and at the end
  RSS growth is smaller after a phase of deletions than before it
  in a ttl phase, the keys held are at most 1.5 x rate x ttl
  all calls of the careful caller are answered, and its gets return what it has set
  the provider never loses its NATS connection, and it answers each health request
  the flood never waits 30 s for an answer

The memory of keys and values is counted as docs/operating.md says. Without --survivors, a phase of deletions leaves
no key, if the machine is fast enough. Otherwise, scattered keys survive, and the memory around them is kept. This can
miss the bar for the growth.
The seed and the phase decide the sequence of calls. The speed of the machine decides how many of them are sent.
"""


class FloodProcess(Process):
    """The process of flood.py."""

    def __init__(self, options: argparse.Namespace, nats_url: str, prefix: str, directory: Path) -> None:
        numbers = ("--seed", options.seed, "--buckets", options.buckets, "--survivors", options.survivors / 100)
        command = (sys.executable, "-m", "tests.torture.flood", nats_url, prefix, *map(str, numbers))
        super().__init__("flood", command, directory, standard_input=None, standard_output=PIPE)

    def answered(self, line: str = "") -> int:
        """Return the number of answered calls. With a line, begin the phase that it names."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(f"{line}\n".encode())
            self.popen.stdin.flush()
            return int(self.popen.stdout.readline())
        except (ValueError, BrokenPipeError):
            raise self.failure("the process ended") from None


class Run:
    """A run of the command."""

    def __init__(
        self, options: argparse.Namespace, url: str, provider: ProviderProcess, flood: FloodProcess, bars: Bars
    ) -> None:
        self._options = options
        self._url = url
        self._provider = provider
        self._flood = flood
        self.figures = Figures(bars, resident_bytes(provider.pid))
        self._shown: Sample | None = None

    async def go(self) -> None:
        """Run until the time has passed, or until SIGINT or SIGTERM."""
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        client = await nats.connect(self._url)
        await self._put_links(client)
        url, prefix, figures = self._url, self._provider.prefix, self.figures
        without = self._options.without
        neighbours = [
            asyncio.create_task(call_carefully(url, prefix, figures.careful)),
            asyncio.create_task(ask_health(url, f"wasmbus.rpc.{LATTICE}.{self._key}.health", figures.health)),
        ]
        if "half-open" not in without:
            rng = Random(f"{self._options.seed}/half-open")
            neighbours.append(asyncio.create_task(leave_half_open(url, prefix, rng)))
        if "unread" not in without:
            neighbours.append(asyncio.create_task(leave_unread(url, prefix)))
        try:
            async with asyncio.timeout(self._options.seconds):
                work = [asyncio.create_task(stopped.wait()), asyncio.create_task(self._phases(client))]
                try:
                    done, _ = await asyncio.wait([*work, *neighbours], return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # raise the error of a task that ended
                finally:
                    for task in work:
                        task.cancel()
                    await asyncio.wait(work)
        except TimeoutError:
            pass
        finally:
            for task in neighbours:
                task.cancel()
            await asyncio.wait(neighbours)
            await client.close()

    async def _phases(self, client: Client) -> None:
        began_s = monotonic()
        line_s = LINE_INTERVAL_S
        for number, phase in enumerate(phases()):
            await self._watch(client, number % 2 == 1 and "watcher" not in self._options.without)
            await asyncio.to_thread(self._flood.answered, f"{number} {phase.kind} {phase.profile}")
            end_s = began_s + (number + 1) * self._options.phase_seconds
            while monotonic() < end_s:
                await asyncio.sleep(SAMPLE_INTERVAL_S)
                sample = await self._sample(monotonic() - began_s, phase, number)
                if sample is not None:
                    self.figures.add(sample)
                    if sample.at_s >= line_s:
                        line_s += LINE_INTERVAL_S
                        self._print_line(sample)

    async def _sample(self, at_s: float, phase: Phase, number: int) -> Sample | None:
        """Return the present state, or None if the metrics do not arrive in time."""
        answered = await asyncio.to_thread(self._flood.answered)
        try:
            metrics = await asyncio.to_thread(read_metrics, self._provider.log)
        except (OSError, urllib.error.URLError) as error:
            if self._provider.popen.poll() is not None:
                raise self._provider.failure("the process ended") from None
            print(f"at {at_s:.0f} s: no metrics: {error}", flush=True)
            return None
        return Sample(
            at_s,
            phase,
            number,
            answered,
            resident_bytes(self._provider.pid),
            metrics["wrpc_keyvalue_memory_bytes"],
            metrics["wrpc_keyvalue_keys"],
            metrics["wrpc_keyvalue_nats_reconnects_total"],
            bool(metrics["wrpc_keyvalue_nats_connected"]),
        )

    async def _put_links(self, client: Client) -> None:
        """Put the links of the flood's callers."""
        quota = str(self._options.memory_mb * MIB // 2)
        for source, config in {
            LIMITED: {"bucket_prefix": "limited-", "quota_bytes": quota},
            BRIEF: {"ttl_ms": "2000"},
            TTL: {"ttl_ms": str(TTL_MS)},
            BACKLOG: {"ttl_ms": "1000"},
        }.items():
            link = link_of(source, self._key, ["store", "atomics", "batch"])
            await self._tell(client, "put", link | {"target_config": config})

    async def _watch(self, client: Client, is_watched: bool) -> None:
        link = link_of(self._key, WATCHER, ["watcher"], {"watch": "SET@*,DEL@*"})
        await self._tell(client, "put" if is_watched else "del", link)

    async def _tell(self, client: Client, verb: str, link: dict[str, Any]) -> None:
        await client.publish(f"wasmbus.rpc.{LATTICE}.{self._key}.linkdefs.{verb}", json.dumps(link).encode())
        await client.flush()

    @property
    def _key(self) -> str:
        return self._provider.prefix.removeprefix(f"{LATTICE}.")

    def _print_line(self, sample: Sample) -> None:
        before, self._shown = self._shown, sample
        calls, seconds = sample.answered, sample.at_s
        if before is not None:
            calls, seconds = calls - before.answered, seconds - before.at_s
        growth, counted = self.figures.growth_bytes(sample), sample.counted_bytes
        careful_ms, health_ms = (waits.take_worst_s() * 1000 for waits in (self.figures.careful, self.figures.health))
        print(
            f"{sample.at_s:6.0f} s  {sample.phase!s:11} {calls / seconds:8.0f} calls/s  {sample.keys:9.0f} keys  "
            f"counted {counted / MIB:6.1f} MiB  RSS growth {growth / MIB:6.1f} MiB  "
            f"ratio {growth / counted if counted else float('inf'):6.2f}  "
            f"waited: careful caller {careful_ms:5.0f} ms, health probe {health_ms:5.0f} ms",
            flush=True,
        )


def say_figures(figures: Figures) -> None:
    """Print the figures of a run and the missed bars."""
    careful, health, last = figures.careful, figures.health, figures.last
    print("\nfigures")
    if last is not None:
        print(f"  flood: {last.answered} calls answered in {last.at_s:.0f} s, {last.answered / last.at_s:.0f} a second")
        print(
            f"  memory: counted {last.counted_bytes / MIB:.1f} MiB, RSS growth {figures.growth_bytes(last) / MIB:.1f} MiB"
        )
        print(f"  RSS growth above its bar at the worst mark: {figures.worst_excess_bytes / MIB:.1f} MiB")
        print(f"  reconnects to NATS: {last.reconnects:.0f}")
    for fall in figures.falls:
        print(f"  {fall}")
    if figures.ttl_ratios:
        print(f"  ttl: keys held / (rate x ttl): {', '.join(f'{ratio:.2f}' for ratio in figures.ttl_ratios)}")
    print(
        f"  careful caller: {careful.calls} calls, {careful.refused} refused, worst wait {careful.worst_s * 1000:.0f} ms"
    )
    print(f"  health probe: {health.calls} requests, worst wait {health.worst_s * 1000:.0f} ms")
    print("missed bars" if figures.missed else "all bars are kept")
    for line in figures.missed:
        print(f"  {line}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(
        prog="scripts/torture hostile",
        description="Run a real provider at a real NATS server on loopback under hostile load, and check its memory.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=600, help="length of the run (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the sequence of calls (default 1)")
    parser.add_argument("--phase-seconds", type=float, default=20, help="length of a phase (default 20)")
    parser.add_argument("--buckets", type=int, default=2000, help="number of buckets (default 2000)")
    parser.add_argument("--memory-mb", type=int, default=256, help="memory_bytes_max in MiB (default 256)")
    parser.add_argument(
        "--survivors",
        type=float,
        default=0,
        metavar="PERCENT",
        help="percentage of the buckets in which a random tenth of the keys survives (default 0)",
    )
    parser.add_argument(
        "--without",
        action="append",
        default=[],
        choices=("half-open", "unread", "watcher"),
        help="leave out a hostile caller, to find the cause of a missed bar; may be repeated",
    )
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="option of the provider")
    options = parser.parse_args(arguments)
    for name in ("seconds", "phase_seconds", "buckets", "memory_mb"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} is {getattr(options, name)}; it must be above 0")
    if not 0 <= options.survivors <= 100:
        parser.error(f"--survivors is {options.survivors}; allowed 0 to 100")
    if any("=" not in each for each in options.option):
        parser.error("--option must have the form NAME=VALUE")
    return options


def main(arguments: Sequence[str] | None = None, bars: Bars | None = None) -> int:
    """Run the command. Return 0 if all bars are kept, or 1."""
    options = parse(arguments)
    # These buffers are not counted memory. They are small here, so that the bar for the growth can be strict.
    config = {"watch_queue_bytes": str(2 * MIB), "half_open_bytes_max": str(4 * MIB), "metrics_address": "127.0.0.1:0"}
    config |= {"memory_bytes_max": str(options.memory_mb * MIB)}
    config |= dict(each.split("=", 1) for each in options.option)
    print(f"seed {options.seed}, {options.seconds:g} s, phases of {options.phase_seconds:g} s", flush=True)
    figures: Figures | None = None
    try:
        with (
            TemporaryDirectory(prefix="torture-") as name,
            NatsProcess(directory := Path(name), settings="") as server,
            ProviderProcess("torture", (SCRIPTS / "keyvalue-inmemory",), config, server, directory) as provider,
            ProviderProcess(WATCHER, ANSWERING.command, {}, server, directory),
            FloodProcess(options, server.url, provider.prefix, directory) as flood,
        ):
            run = Run(options, server.url, provider, flood, bars or Bars())
            figures = run.figures
            asyncio.run(run.go())
    except (ProcessError, TransportError, nats.errors.Error, OSError) as error:
        print(f"scripts/torture: {error}", file=sys.stderr)
        if figures is None:
            return 1
        figures.missed.append(f"the run ended early: {one_line(str(error))}")
    except KeyboardInterrupt:  # Ctrl-C before the run began, or a second one while it ends
        if figures is None:
            print("scripts/torture: interrupted before the provider was ready", file=sys.stderr)
            return 1
    figures.end()
    say_figures(figures)
    return 1 if figures.missed else 0
