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

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict

import uvloop

from bench.load.answers import SMALL_RESULT_BYTES, FrameGenerator, SmallGenerator
from bench.load.case import Load
from bench.load.outcome import LoadError, Outcome
from bench.load.usage import has_ended
from bench.load.wire import split_address
from bench.load.workload import Script, result_sizes

__all__ = ["generate", "run"]

STALL_CHECK_S = 0.5


def is_small(load: Load) -> bool:
    """Return True if parameters and results each fit in one message, and results are small."""
    if load.function == "list-keys":
        return False
    written_bytes = load.value_bytes if load.function in ("set", "mixed") else 0
    return max(written_bytes, *result_sizes(load).values()) <= SMALL_RESULT_BYTES


async def generate(load: Load, before: Script | None = None) -> tuple[Outcome, Script]:
    """Run a load. Return its outcome and its script, which makes a load like it start faster.

    :raises LoadError: an answer is wrong or missing, or the connection was lost, so the load is not valid
    """
    kind = SmallGenerator if is_small(load) else FrameGenerator
    loop = asyncio.get_running_loop()
    transport, generator = await loop.create_connection(lambda: kind(load, before), *split_address(load.url))
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
        return generator.outcome(), generator.script
    finally:
        generator.ended.cancel()
        transport.close()


def run(load: Load, before: Script | None = None) -> tuple[Outcome, Script]:
    """Run a load on its own event loop, as `generate` does."""
    gc.collect()
    gc.disable()  # a garbage collection would count as latency
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(generate(load, before))
    finally:
        gc.enable()


def serve(lines: Iterable[str]) -> None:
    """Run the loads that arrive on standard input, one JSON object per line.

    Print one line for each load: an `Outcome`, or {"error": text}.
    """
    script: Script | None = None
    for line in lines:
        try:
            outcome, script = run(Load(**json.loads(line)), script)
            answer = asdict(outcome)
        except (LoadError, OSError) as error:
            answer = {"error": str(error)}
        except Exception as error:  # the caller is another process, so report every error to it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.stdin)
