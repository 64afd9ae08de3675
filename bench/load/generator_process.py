"""The load generator: a process that calls a provider as wRPC clients do. It must use less CPU than the provider.

    fire ──> first messages of calls ──> provider       closed loop: one new call for each ended call
                                                        open loop: bursts at fixed times
    receive <── handshakes, results, ends               then one write: closing messages, more pieces, next calls

A call is done when its end message arrives. The size of every answer is checked, and so are the bytes of sampled
answers. A wrong or missing answer ends the load with a `LoadError`, because the figures would mean nothing.

In an open loop, a burst of calls is due every millisecond. The latency of a call is measured from the time at which
its burst was due. So if the provider stalls, the latencies include the whole stall.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import inspect
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

import uvloop

from bench.load.answers import SMALL_RESULT_BYTES, FrameGenerator, SmallGenerator
from bench.load.case import Case, Function, Headers, Load
from bench.load.outcome import LoadError, Outcome
from bench.load.usage import has_ended
from bench.load.wire import split_address
from bench.load.workload import result_sizes

__all__ = ["generate", "main", "run"]

STALL_CHECK_S = 0.5
#: A load with the default of every option.
LOAD = Load(url="nats://127.0.0.1:4222", prefix="default.keyvalue-inmemory")


def is_small(load: Load) -> bool:
    """Return True if parameters and results each fit in one message, and results are small."""
    if load.function == "list-keys":
        return False
    written_bytes = load.value_bytes if load.function in ("set", "mixed") else 0
    return max(written_bytes, *result_sizes(load).values()) <= SMALL_RESULT_BYTES


async def generate(load: Load) -> Outcome:
    """Run a load.

    :raises LoadError: an answer is wrong or missing, or the connection was lost, so the load is not valid
    """
    host, port = split_address(load.url)
    kind = SmallGenerator if is_small(load) else FrameGenerator
    loop = asyncio.get_running_loop()
    transport, generator = await loop.create_connection(lambda: kind(load), host, port)
    answered = -1
    since = time.monotonic()
    try:
        while not (await asyncio.wait((generator.ended,), timeout=STALL_CHECK_S))[0]:
            if gone := [name for name, pid in load.watched.items() if has_ended(pid)]:
                raise LoadError(f"the process {gone[0]} ended after {generator.progress}")
            if generator.answered != answered:
                answered, since = generator.answered, time.monotonic()
            elif time.monotonic() - since > load.timeout_s:
                raise LoadError(f"no answer for {load.timeout_s:g} s (timeout_s), after {generator.progress}")
        generator.ended.result()
        return generator.outcome()
    finally:
        generator.ended.cancel()
        transport.close()


def run(load: Load) -> Outcome:
    """Run a load on its own event loop."""
    gc.collect()
    gc.disable()  # a garbage collection would count as latency
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(generate(load))
    finally:
        gc.enable()


def serve(lines: Iterable[str]) -> None:
    """Run the loads that arrive on standard input, one JSON object per line.

    Print one line for each load: an `Outcome`, or {"error": text}.
    """
    for line in lines:
        try:
            answer = asdict(run(Load(**json.loads(line))))
        except (LoadError, OSError) as error:
            answer = {"error": str(error)}
        except Exception as error:  # the caller is another process, so report every error to it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Print an error and return 1 if the load is not valid."""
    options = vars(parser().parse_args(arguments))
    try:
        print(json.dumps(asdict(run(Load(**options))), indent=2))
    except (LoadError, OSError, ValueError) as error:
        print(f"scripts/bench load: {error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """Return a parser with an option for each field of a load."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench load",
        description="Call a running provider, and print the figures as JSON.",
        epilog="To set the keys that a load reads, run it first with --function set --each-once --calls KEYS.\n\n"
        f"{inspect.getdoc(Case)}\n\n{inspect.getdoc(Load)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for name, kind in get_type_hints(Load).items():
        default = getattr(LOAD, name)
        options: dict[Any, dict[str, Any]] = {
            bool: {"action": argparse.BooleanOptionalAction},
            Function: {"choices": get_args(Function)},
            Headers: {"choices": get_args(Headers)},
        }
        option = options.get(kind, {"type": kind, "metavar": getattr(kind, "__name__", "").upper()})
        if name != "watched":
            parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"(default {default!r})", **option)
    return parser


if __name__ == "__main__":
    serve(sys.stdin)
