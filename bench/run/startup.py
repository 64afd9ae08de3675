"""The command `scripts/bench start`: measures the time and the CPU time from the launch of a provider to its first answer.

Each round launches every subject once, in turns, so that other load on the machine affects all of them equally. A client
that is already connected calls until a call is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory

from bench.load.usage import children, cpu_ns
from bench.load.workload import LINK_NAME, SOURCE_ID
from bench.run.processes import LATTICE, START_TIMEOUT_S, NatsProcess, Process, ProcessError, host_data
from bench.run.subjects import EXECUTABLE, UNMETERED, Subject, peer
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import TransportError

__all__ = ["Start", "main", "measure", "summary"]

POLL_INTERVAL_S = 0.002
#: Seconds until the client calls again. The bare responder loses a call that arrives while it subscribes.
CALL_TIMEOUT_S = 0.25
#: Every host passes xkeys, and loading the library for them takes time. No secret was ever sealed with these.
XKEYS = {
    "host_xkey_public_key": "XCBU4AMJXKTG7XYNRR7UFKLNZQ2V6FIOWBATIHSFPA7WWPLHF7OXDXFH",
    "provider_xkey_private_key": "SXAFXLBJO27A2ZPHSYGL5VMFVJKJRIUHZ4IAPAJLTCLSIE5E76DNLY5XRY",
}
#: Our subjects, without metrics, and the goals for their median on a machine that does nothing else.
INSTALLED = replace(UNMETERED, name="installed")
UNPACKED = replace(EXECUTABLE, config=UNMETERED.config)
GOALS_MS = {INSTALLED.name: 150, UNPACKED.name: 230}
#: The first round fills the page cache and writes the bytecode of an editable installation. It is not counted.
WARM_UP_ROUNDS = 1


@dataclass(frozen=True, slots=True)
class Start:
    """One start, in milliseconds: to the first answer, and the CPU time of all processes of the provider until then."""

    wall_ms: float
    cpu_ms: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench start", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=int, default=20, help="starts of each subject; default: 20")
    parser.add_argument(
        "--peer",
        type=peer,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="another provider that reads host data, for example an older executable; repeatable",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error(f"--rounds: found {options.rounds}, allowed 2 or more")
    subjects = [subject for subject in (INSTALLED, UNPACKED) if Path(subject.command[0]).exists()] + options.peer
    if len({subject.name for subject in subjects}) < len(subjects):
        parser.error("--peer: found a name that another subject has")
    try:
        print(summary(measure(subjects, options.rounds)))
    except ProcessError as error:
        print(f"scripts/bench start: {error}")
        return 1
    return 0


def measure(subjects: Sequence[Subject], rounds: int) -> dict[str, list[Start]]:
    """Start each subject once in each round. Return the starts by the subject's name.

    :raises ProcessError: a provider ended or did not answer
    """
    return asyncio.run(_measure(subjects, rounds))


async def _measure(subjects: Sequence[Subject], rounds: int) -> dict[str, list[Start]]:
    starts: dict[str, list[Start]] = {subject.name: [] for subject in subjects}
    with TemporaryDirectory(prefix="bench-") as directory, NatsProcess(Path(directory)) as nats:
        for number in range(WARM_UP_ROUNDS + rounds):
            for subject in subjects if number % 2 else reversed(subjects):
                start = await _start(subject, nats, Path(directory))
                if number >= WARM_UP_ROUNDS:
                    starts[subject.name].append(start)
    return starts


async def _start(subject: Subject, nats: NatsProcess, directory: Path) -> Start:
    data = host_data(subject.name, nats.url, {} if subject.is_peer else subject.config) | XKEYS
    text = base64.b64encode(json.dumps(data).encode()) + b"\r\n"
    prefix = f"{LATTICE}.{subject.name}"
    async with KeyValueClient(
        nats.url, prefix, source_id=SOURCE_ID, link_name=LINK_NAME, timeout_s=CALL_TIMEOUT_S
    ) as client:
        began_s = time.perf_counter()
        with Process(subject.name, subject.command, directory, {}, text) as process:
            while True:
                try:
                    await client.exists("default", "ready")
                    break
                except TransportError:
                    if process.popen.poll() is not None:
                        raise process.failure(f"the process ended with {process.popen.returncode}") from None
                    if time.perf_counter() - began_s > START_TIMEOUT_S:
                        raise process.failure(f"no answer within {START_TIMEOUT_S:g} s") from None
                await asyncio.sleep(POLL_INTERVAL_S)
            wall_s = time.perf_counter() - began_s
            cpu = sum(map(cpu_ns, (process.pid, *children(process.pid))))
    return Start(wall_s * 1000, cpu / 1e6)


def summary(starts: Mapping[str, Sequence[Start]]) -> str:
    """Return a table: for each subject, the median and quartiles of both times, and the ratio to the first subject.

    A ratio is the median of the ratios of CPU times in the same round.
    """
    first = next(iter(starts.values()))
    rows = [f"{'subject':<18} {'wall ms (quartiles)':<25} {'CPU ms (quartiles)':<25} {'CPU ratio':<10} wall goal"]
    for name, own in starts.items():
        ratio = median(a.cpu_ms / b.cpu_ms for a, b in zip(own, first, strict=True))
        walls, cpus = _shown([start.wall_ms for start in own]), _shown([start.cpu_ms for start in own])
        goal = f"{GOALS_MS[name]} ms" if name in GOALS_MS else ""
        rows.append(f"{name:<18} {walls:<25} {cpus:<25} {ratio:<10.2f} {goal}".rstrip())
    return "\n".join(rows)


def _shown(times_ms: Sequence[float]) -> str:
    low, middle, high = quantiles(times_ms, n=4, method="inclusive")
    return f"{middle:.0f} ({low:.0f} to {high:.0f})"
