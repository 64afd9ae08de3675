"""The scenario redis: redis-benchmark against a redis-server and against the provider, in turns.

On two cores, redis-benchmark takes one of them, and a ratio of calls also shows which process gets a core. So the CPU
time per call of each server is measured as well.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from socket import create_connection, socket

from bench.load.usage import children, cpu_ns
from bench.run.processes import Process
from bench.run.results import Row
from bench.run.scenarios import redis_cases
from bench.run.stage import Extent, NotAvailableError, Stage
from bench.run.subjects import REDIS_SERVER, Subject

__all__ = ["redis"]

ROUNDS = 10
PROGRAMS = (REDIS_SERVER.name, "redis-benchmark")
RUN_TIMEOUT_S = 120
FILL = ("-t", "set", "-c", "50", "-P", "16"), 100_000


def redis(stage: Stage, name: str, subjects: Sequence[Subject], extent: Extent) -> Iterator[Row]:
    """Run redis-benchmark against each subject in turns, with fewer calls if a load of the run takes under a second.

    :raises NotAvailableError: Redis is not installed
    """
    if absent := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise NotAvailableError(f"{', '.join(absent)} is missing: apt-get install redis-server redis-tools")
    with ExitStack() as stack:
        servers = {}
        for subject in subjects:
            port = _free_port()
            if subject is REDIS_SERVER:
                command = (*subject.command, "--port", str(port), "--save", "", "--bind", "127.0.0.1")
                server = stack.enter_context(Process(subject.name, command, stage.directory, {}))
            else:
                server = stage.launch(subject, {"redis_address": f"127.0.0.1:{port}"})
                stack.callback(server.stop)
            server.try_until(partial(create_connection, ("127.0.0.1", port), 1), (OSError,)).close()
            _run(*FILL, server, port)
            servers[subject] = server, port
        for number in range(max(ROUNDS, extent.rounds)):
            for case, (options, calls) in redis_cases().items():
                for subject in subjects if number % 2 else reversed(subjects):
                    figures = _run(options, max(1_000, int(calls * min(1.0, extent.seconds))), *servers[subject])
                    yield Row(scenario=name, case=case, fields={}, subject=subject.name, round=number, figures=figures)


def _run(options: Sequence[str], calls: int, server: Process, port: int) -> dict[str, float]:
    """Run redis-benchmark once. Return calls per second, median latency, and the server's CPU time per call."""
    common = ("-p", str(port), "--csv", "-n", str(calls), "-r", "10000", "-d", "64")
    pids = (server.pid, *children(server.pid))
    before_ns = sum(map(cpu_ns, pids))
    done = subprocess.run(
        (PROGRAMS[1], *common, *options), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
    )
    cpu_us = (sum(map(cpu_ns, pids)) - before_ns) / calls / 1000
    rows = list(csv.reader(io.StringIO(done.stdout)))
    if done.returncode or len(rows) < 2:
        raise server.failure(f"redis-benchmark failed: {done.stdout}{done.stderr}")
    return {"calls_per_s": float(rows[-1][1]), "provider_cpu_us": cpu_us, "p50_us": float(rows[-1][4]) * 1000}


def _free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
