"""The load generator: a process of its own that calls a provider as wRPC clients do, and must cost less than what it measures.

    fire ──> calls' first messages ──> provider          closed loop: a call for each that ended; open loop: bursts at their time
    receive <── handshakes, results, ends                 ──> closing messages and further pieces, with the next calls, in one write

A call is done at its end message. Every answer's size is checked, and the bytes of a sample; one that is wrong or missing ends the load
with a `LoadError`, for a figure of wrong answers is none.

Open loop: calls come in a burst each millisecond, and a call's latency counts from when its burst was due, so that a stall is seen in full.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, asdict, fields
from typing import get_args

import uvloop

from bench.load.answers import SMALL_RESULT_BYTES, FrameGenerator, SmallGenerator
from bench.load.outcome import LoadError, Outcome, WrongAnswerError
from bench.load.usage import UsageError, has_ended
from bench.load.wire import WireError, split_address
from bench.load.workload import Function, Headers, Load, result_sizes

__all__ = ["generate", "main", "run"]

STALL_CHECK_S = 0.5
#: Functions whose answers hold what a load before them has set.
READING = frozenset({"get", "exists", "mixed", "list-keys", "get-many"})


def is_small(load: Load) -> bool:
    """Whether parameters and results fit into one message each, and results are small."""
    if load.function == "list-keys":
        return False
    written_bytes = load.value_bytes if load.function in ("set", "mixed") else 0
    return max(written_bytes, *result_sizes(load).values()) <= SMALL_RESULT_BYTES


async def generate(load: Load) -> Outcome:
    """Carry out a load.

    :raises LoadError: it measures nothing
    :raises WireError: the NATS server refused something, or went away
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
                raise LoadError(
                    f"found {generator.answered} answers to {generator.sent} calls, and then the end of the process {gone[0]}"
                )
            if generator.answered != answered:
                answered, since = generator.answered, time.monotonic()
            elif time.monotonic() - since > load.timeout_s:
                raise LoadError(
                    f"found {answered} answers to {generator.sent} calls, and no further one in {load.timeout_s:g} s"
                )
        generator.ended.result()
        return generator.outcome()
    finally:
        generator.stop()
        transport.close()


def run(load: Load) -> Outcome:
    """Carry out a load on an event loop of its own."""
    gc.collect()
    gc.disable()  # a collection would count as a wait of some call
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(generate(load))
    finally:
        gc.enable()


def serve(lines: Iterable[str]) -> None:
    """Carry out the loads of standard input, a JSON object a line; each is answered by one line, an `Outcome` or {"error": text}."""
    for line in lines:
        try:
            answer = asdict(run(Load(**json.loads(line))))
        except (LoadError, WireError, UsageError) as error:
            answer = {"error": str(error)}
        except Exception as error:  # the boundary: who asked is told
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Exit status 1 after a line on standard error where the load measured nothing."""
    options = vars(parser().parse_args(arguments))
    if options.pop("stdin"):
        serve(sys.stdin)
        return 0
    try:
        print(json.dumps(asdict(run(Load(**options))), indent=2))
    except (LoadError, WireError, OSError, ValueError) as error:
        print(f"bench.load.generator_process: {error}", file=sys.stderr)
        if isinstance(error, WrongAnswerError) and options["function"] in READING:
            print(
                f"are the keys there? --function set --each-once --calls {options['keys']} sets them, the other options the same",
                file=sys.stderr,
            )
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench load",
        description="Call a provider that runs, and print what was measured as JSON.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--stdin", action="store_true", help="carry out loads that come as JSON objects, one a line")
    add("--url", default="nats://127.0.0.1:4222", help="NATS server")
    add("--prefix", default="default.keyvalue-inmemory", help="{lattice}.{provider key}")
    add("--function", choices=get_args(Function), help="mixed: 95 %% get, 5 %% set")
    add("--bucket", help="bucket name")
    add("--value-bytes", type=int, metavar="BYTES", help="size of a value")
    add("--in-flight", type=int, metavar="N", help="closed loop: calls at any time")
    add(
        "--rate", type=float, metavar="CALLS", help="open loop: calls a second; latency counts from when a call was due"
    )
    add("--calls", type=int, metavar="N", help="end after so many calls; 0: after --seconds")
    add("--seconds", type=float, help="how long")
    add("--warm-calls", type=int, metavar="N", help="closed loop: calls before the measurement")
    add("--headers", choices=get_args(Headers), help="as a host sends them; traced: each call is a trace of its own")
    add("--keys", type=int, metavar="N", help="key space")
    add("--first-key", type=int, metavar="N", help="where the key space begins")
    add("--each-once", action="store_true", help="keys in order, each once; with set this fills a bucket")
    add("--page-keys", type=int, metavar="N", help="list-keys: keys of a page at the most")
    add("--batch-keys", type=int, metavar="N", help="get-many, set-many: keys of a call")
    add("--counted", type=int, metavar="N", help="increment: what each counter of the key space holds before")
    add("--delta", type=int, metavar="N", help="increment: what a call adds")
    add("--beside", metavar="PREFIX", help="another provider, which gets every second call, for comparison: excess_us")
    add("--closing", action=argparse.BooleanOptionalAction, help="end parameters with an empty message, as clients do")
    add(
        "--exact",
        action=argparse.BooleanOptionalAction,
        help="answers are a store's; else only their shape is looked at",
    )
    add("--timeout-s", type=float, metavar="SECONDS", help="give up after so long without an answer")
    parser.set_defaults(**{known.name: known.default for known in fields(Load) if known.default is not MISSING})
    return parser


if __name__ == "__main__":
    sys.exit(main())
