"""The command `scripts/bench redis`: redis-benchmark against a redis-server and against the provider, in turns.

Each round measures each case once with both servers, one after the other, so that other load on the machine affects
both. The result of a case is the median of the rounds' ratios. On two cores, redis-benchmark takes one of them, and the
ratio also shows which process gets a core. So the CPU time per call of each server is printed as well.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.load.usage import children, cpu_ns
from bench.run.processes import START_TIMEOUT_S, NatsProcess, Process, ProcessError, host_data
from bench.run.subjects import UNMETERED

__all__ = ["CASES", "RedisCase", "Sample", "main", "summary"]

THEIRS, OURS = "redis-server", "provider"
KEYS = 10_000
VALUE_BYTES = 64
RUN_TIMEOUT_S = 120
MANY = ["MGET", *(f"key:{number:012d}" for number in range(100))]


@dataclass(frozen=True, slots=True)
class RedisCase:
    """One way to run redis-benchmark.

    :ivar goal: the least ratio of calls, or with `is_latency` the largest ratio of median latencies
    """

    name: str
    arguments: tuple[str, ...]
    requests: int
    goal: float
    is_latency: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one run: calls per second, median latency, and CPU time per call."""

    calls_s: float
    p50_ms: float
    cpu_us: float


CASES = (
    *(RedisCase(f"{name}, 50 connections", ("-t", name, "-c", "50"), 100_000, 0.85) for name in ("set", "get")),
    *(
        RedisCase(f"{name}, pipeline of 16", ("-t", name, "-c", "50", "-P", "16"), 500_000, 0.40)
        for name in ("set", "get")
    ),
    *(RedisCase(f"{name}, 1 connection", ("-t", name, "-c", "1"), 20_000, 1.15, True) for name in ("set", "get")),
    RedisCase("mget of 100", ("-c", "50", *MANY), 20_000, 0.3),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench redis", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=int, default=10, help="rounds; default: 10")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of calls; default: 1")
    options = parser.parse_args(arguments)
    missing = [name for name in ("redis-server", "redis-benchmark") if shutil.which(name) is None]
    if missing:
        print(f"scripts/bench redis: {', '.join(missing)} is not installed: apt-get install redis-server redis-tools")
        return 1
    load_before = os.getloadavg()[0]
    try:
        samples = _measure(options.rounds, options.scale)
    except ProcessError as error:
        print(f"scripts/bench redis: {error}")
        return 1
    print(summary(samples))
    print(f"load average before and after: {load_before:.1f}, {os.getloadavg()[0]:.1f}")
    return 0


def _measure(rounds: int, scale: float) -> dict[str, dict[str, list[Sample]]]:
    samples: dict[str, dict[str, list[Sample]]] = {case.name: {THEIRS: [], OURS: []} for case in CASES}
    with TemporaryDirectory(prefix="bench-") as folder:
        directory = Path(folder)
        with NatsProcess(directory) as nats:
            ports = {THEIRS: _free_port(), OURS: _free_port()}
            data = host_data(OURS, nats.url, dict(UNMETERED.config) | {"redis_address": f"127.0.0.1:{ports[OURS]}"})
            text = base64.b64encode(json.dumps(data).encode()) + b"\r\n"
            command = ("redis-server", "--port", str(ports[THEIRS]), "--save", "", "--bind", "127.0.0.1")
            with (
                Process(THEIRS, command, directory, {}) as theirs,
                Process(OURS, UNMETERED.command, directory, {}, text) as ours,
            ):
                servers = {THEIRS: theirs, OURS: ours}
                for name, server in servers.items():
                    _wait(server, ports[name])
                    _run(
                        RedisCase("fill", ("-t", "set", "-c", "50", "-P", "16"), 10 * KEYS, 0), server, ports[name], 1.0
                    )
                for number in range(rounds):
                    for case in CASES:
                        for name in (THEIRS, OURS) if number % 2 else (OURS, THEIRS):
                            samples[case.name][name].append(_run(case, servers[name], ports[name], scale))
    return samples


def _run(case: RedisCase, server: Process, port: int, scale: float) -> Sample:
    requests = max(1_000, int(case.requests * scale))
    options = ("-p", str(port), "--csv", "-n", str(requests), "-r", str(KEYS), "-d", str(VALUE_BYTES))
    before_ns = _cpu_ns(server)
    done = subprocess.run(
        ("redis-benchmark", *options, *case.arguments),
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    cpu_us = (_cpu_ns(server) - before_ns) / requests / 1000
    rows = list(csv.reader(io.StringIO(done.stdout)))
    if done.returncode or len(rows) < 2:
        raise server.failure(f"redis-benchmark failed: {done.stdout}{done.stderr}")
    return Sample(float(rows[-1][1]), float(rows[-1][4]), cpu_us)


def summary(samples: Mapping[str, Mapping[str, Sequence[Sample]]]) -> str:
    """Return a table with a row for each case: the medians, the ratio with its spread, and the goal."""
    rows = [
        f"{'case':<24} {'redis-server':>13} {'provider':>10} {'ratio (least to most)':>24} {'goal':>8} {'CPU us':>12}"
    ]
    for case in CASES:
        theirs, ours = samples[case.name][THEIRS], samples[case.name][OURS]
        values = [
            (one.p50_ms, two.p50_ms) if case.is_latency else (one.calls_s, two.calls_s)
            for one, two in zip(theirs, ours, strict=True)
        ]
        ratios = sorted(two / one for one, two in values)
        shown = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        goal = f"{'<=' if case.is_latency else '>='} {case.goal:.2f}"
        middle = [median(column) for column in zip(*values, strict=True)]
        numbers = [f"{number:.3f} ms" if case.is_latency else f"{number:.0f}/s" for number in middle]
        cpu = " ".join(f"{median(one.cpu_us for one in found):.1f}" for found in (theirs, ours))
        rows.append(f"{case.name:<24} {numbers[0]:>13} {numbers[1]:>10} {shown:>24} {goal:>8} {cpu:>12}")
    return "\n".join(rows)


def _cpu_ns(process: Process) -> int:
    return sum(map(cpu_ns, (process.pid, *children(process.pid))))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(server: Process, port: int) -> None:
    ends_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_s:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise server.failure(f"nobody listens on port {port}")
