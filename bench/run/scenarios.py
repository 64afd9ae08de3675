"""The table of the scenarios: what each one measures, for which subjects, and its bars (performance goals).

A scenario is a list of cases, or a function of its name in `bench.run.experiments`. A bar is a limit for one figure of
a case. Reports derive the text of a bar from its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from bench.load.case import Case

__all__ = ["QUICK", "REFERENCE_CASE", "SCENARIOS", "Bar", "Scenario", "redis_cases"]


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit for the median of one figure over all rounds. It is a minimum if more of the figure is better.

    :ivar over: a subject or a case. The figure of each round is divided by the same figure of this subject or case
    :ivar is_worst: True to compare the limit with the worst round, because the figure is itself a maximum
    """

    case: str
    figure: str
    limit: float
    over: str = ""
    subject: str = "direct"
    is_worst: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Cases or an experiment under one name, with their bars.

    :ivar subjects: names of the subjects; empty for those of the command line, which include the peers. The subject
        `before` is measured if --against names a revision
    :ivar rounds_min: the least number of rounds; above 0, each round launches new processes
    :ivar is_optional: True for the scenario that needs --against
    """

    text: str
    cases: Sequence[Case] = ()
    bars: Sequence[Bar] = ()
    subjects: Sequence[str] = ()
    rounds_min: int = 0
    is_optional: bool = False


def cases(**choices: Sequence[Any]) -> tuple[Case, ...]:
    """Return a case for each combination of the choices. The last field varies fastest.

    >>> [case.label for case in cases(in_flight=[1], function=["get", "set"])]
    ['get 64 B, 1 in flight', 'set 64 B, 1 in flight']
    """
    return tuple(Case(**dict(zip(choices, values, strict=True))) for values in product(*choices.values()))


def redis_cases() -> dict[str, tuple[tuple[str, ...], int]]:
    """Return the options of redis-benchmark and the number of its calls for each case of the scenario redis."""
    keys = [f"key:{number:012d}" for number in range(100)]
    return {
        **{f"{name}, 50 connections": (("-t", name, "-c", "50"), 100_000) for name in ("set", "get")},
        **{f"{name}, pipeline of 16": (("-t", name, "-c", "50", "-P", "16"), 500_000) for name in ("set", "get")},
        **{f"{name}, 1 connection": (("-t", name, "-c", "1"), 10_000) for name in ("set", "get")},
        "mget of 100": (("-c", "50", "MGET", *keys), 20_000),
    }


#: The case in which the CPU time of the bare responder shows how fast the machine is, and how steady.
REFERENCE_CASE = Case(function="get")
GET_SET = ("get", "set")
#: The cases of a quick run.
QUICK = (
    *cases(function=["get", "set", "list-keys"]),
    *cases(in_flight=[1, 512]),
    *cases(function=["set"], value_bytes=[2**20], in_flight=[8]),
)
HOST, MILLION = "64 B, 64 in flight", "1,000,000 keys"
CALLS, KEYS, CPU = "calls_per_s", "keys_per_s", "provider_cpu_us"

SCENARIOS: Mapping[str, Scenario] = {
    "functions": Scenario(
        "each function, 64 B values, 64 in flight; pages of 10, 100, 1,000; mixed is 95 % get, 5 % set",
        (
            *cases(function=["get", "set", "exists", "delete", "mixed"]),
            *cases(function=["list-keys"], page_keys=[10, 100, 1_000]),
        ),
        (Bar(f"get {HOST}", CPU, 20, subject="plain"), Bar("list-keys of 1,000, 64 in flight", KEYS, 1e6)),
    ),
    "in-flight": Scenario("get and set, 1 to 512 in flight", cases(function=GET_SET, in_flight=[1, 8, 64, 512])),
    "headers": Scenario(
        "get without headers, with the headers that a host sends, and with trace headers added",
        cases(in_flight=[64, 512], headers=["none", "host", "traced"]),
        tuple(
            Bar(f"get 64 B, {calls} in flight{headers}", *limit)
            for (calls, cpu_us), headers in product(((64, 4.5), (512, 3.5)), ("", ", traced"))
            for limit in ((CALLS, 0.75, "bare"), (CPU, cpu_us))
        ),
    ),
    "values": Scenario(
        "get and set of 64 B, 1 KiB, 64 KiB, 1 MiB, 4 MiB, 8 in flight",
        cases(function=GET_SET, value_bytes=[64, 1024, 64 * 1024, 2**20, 4 * 2**20], in_flight=[8]),
        tuple(
            Bar(f"{name} {size}, 8 in flight", CALLS, 0.7, "bare")
            for name, size in product(GET_SET, ("1 MiB", "4 MiB"))
        ),
    ),
    "idle": Scenario(
        "get and set with one call in flight: latency of an otherwise idle provider",
        cases(function=GET_SET, in_flight=[1]),
        (Bar("get 64 B, 1 in flight", "p50_us", 1.15, "bare"),),
    ),
    "fixed-rate": Scenario(
        "open loop, 10,000 calls/s: latency counts from the time when a call is due, so it includes stalls",
        cases(function=["get", "mixed"], rate=[10_000.0]),
    ),
    "batch": Scenario(
        "get-many and set-many of 100 keys, compared with single get and set, 64 B values, 64 in flight: keys/s",
        cases(function=["get", "get-many", "set", "set-many"]),
        tuple(
            Bar(f"{name}-many of 100 x {HOST}", KEYS, times, f"{name} {HOST}")
            for name, times in (("get", 10), ("set", 6))
        ),
    ),
    "increment": Scenario(
        "increment compared with set, 64 in flight",
        cases(function=["set", "increment"]),
        (Bar("increment, 64 in flight", CPU, 1.5, f"set {HOST}"),),
    ),
    "growth": Scenario(
        "get, set and a page at 10^3, 10^5 and 10^6 keys (10^7 with --large); memory per key",
        bars=(
            # The limit of 2.5 allows logarithmic growth: the logarithm of a million is twice that of a thousand.
            *(
                Bar(f"{call}, {MILLION}", CPU, 2.5, f"{call}, 1,000 keys")
                for call in (f"get {HOST}", f"set {HOST}", "list-keys of 1,000, 4 in flight")
            ),
            Bar(f"memory, {MILLION}", "bytes_a_key", 330),
            Bar(f"memory, {MILLION}", "scrape_us", 5_000),
        ),
        subjects=("bare", "direct"),
    ),
    "memory": Scenario(
        "2,000 simultaneous gets of 1 MiB: memory in addition to the filled store",
        bars=(Bar("get 1 MiB, 2000 in flight, 64 keys", "above_store_bytes", 64 * 2**20, is_worst=True),),
        subjects=("direct",),
    ),
    "metrics": Scenario(
        "get with and without metrics; at least 20 rounds",
        cases(in_flight=[64, 512]),
        tuple(Bar(f"get 64 B, {calls} in flight", CPU, 1.05, "direct-unmetered") for calls in (64, 512)),
        ("direct", "direct-unmetered"),
        rounds_min=20,
    ),
    "pages": Scenario(
        "two walks over a million keys while gets run: longest waits, minus those for the bare responder",
        bars=(
            Bar(f"first walk, {MILLION}", "page_cpu_us", 5_000, is_worst=True),
            Bar(f"first walk, {MILLION}", "max_us", 5_000),
            Bar(f"gets beside the first walk, {MILLION}", "excess_us", 5_000),
        ),
        subjects=("direct",),
    ),
    "snapshot": Scenario(
        "gets while a million keys are saved, minus the bare responder's; start with a snapshot of them",
        bars=(Bar(f"gets beside a save, {MILLION}", "excess_us", 5_000), Bar(f"start, {MILLION}", "start_s", 4)),
        subjects=("direct",),
    ),
    "expiry": Scenario(
        "get and set on a million keys with deadlines, and on a million keys without deadlines; memory per key",
        bars=tuple(Bar(f"{name} {HOST}, {MILLION}", CPU, 1.3, "direct", "direct-expiring") for name in GET_SET),
        subjects=("direct", "direct-expiring"),
    ),
    "start": Scenario(
        "time and CPU time to the first answer, idle memory, get: with host data, as `serve`, as executable; at least "
        "10 rounds",
        cases(function=["get"]),
        (
            Bar("start", "start_s", 0.15, subject="direct-unmetered"),
            Bar("start", "start_s", 0.6, subject="serve"),
            Bar("start", "start_s", 0.23, subject="executable-unmetered"),
            Bar("start", "start_s", 1.5, subject="executable"),
            Bar("start", "idle_bytes", 45 * 2**20),
            Bar(f"get {HOST}", CALLS, 0.97, "direct", "executable"),
        ),
        ("direct", "direct-unmetered", "serve", "executable", "executable-unmetered", "before"),
        rounds_min=10,
    ),
    "watch": Scenario(
        "set without a watcher, with one that answers, with one that never answers; at least 10 rounds",
        cases(function=["set"]),
        (Bar(f"set {HOST}", CALLS, 0.98, "direct", "direct-stuck"),),
        ("direct", "direct-watched", "direct-stuck"),
        rounds_min=10,
    ),
    "replicated": Scenario(
        "get, set, increment, set-many of 10: store=jetstream, one server, file storage, and store=memory",
        (
            *cases(in_flight=[1, 64, 512], function=GET_SET),
            *cases(function=["increment"]),
            *cases(function=["set-many"], batch_keys=[10]),
        ),
        (
            *(Bar(f"{name} 64 B, 1 in flight", "p50_us", 2, "direct", "replicated") for name in GET_SET),
            *(Bar(f"{name} {HOST}", CPU, limit, "", "replicated") for name, limit in (("get", 6), ("set", 14))),
            Bar(f"get {HOST}", CALLS, 0.5, "direct", "replicated"),
            Bar("get 64 B, 512 in flight", CALLS, 0.7, "direct", "replicated"),
            *(Bar(f"set 64 B, {calls} in flight", CALLS, 0.35, "direct", "replicated") for calls in (64, 512)),
            *(Bar(f"get 64 B, {calls} in flight", CALLS, 0.95, "direct", "replicated-local") for calls in (64, 512)),
        ),
        ("direct", "replicated", "replicated-local"),
    ),
    "redis": Scenario(
        "redis-benchmark against redis-server and the provider, in turns; at least 10 rounds",
        bars=tuple(
            Bar(case, "p50_us" if case.endswith("1 connection") else CALLS, limit, "redis-server", "direct-unmetered")
            for case, limit in zip(redis_cases(), (0.85, 0.85, 0.4, 0.4, 1.15, 1.15, 0.3), strict=True)
        ),
        subjects=("redis-server", "direct-unmetered"),
    ),
    "listening": Scenario(
        "get and set, and idle memory, with an idle Redis listener and without one; at least 20 rounds",
        cases(function=GET_SET),
        (
            *(Bar(f"{name} {HOST}", CPU, 1.02, "direct", "direct-listening") for name in GET_SET),
            Bar("start", "idle_bytes", 1.08, "direct", "direct-listening"),  # 3 MiB of 37
        ),
        ("direct", "direct-listening"),
        rounds_min=20,
    ),
    "against": Scenario(
        "get and set beside an earlier revision, which --against names; at least 20 rounds",
        cases(in_flight=[64, 512], function=GET_SET),
        tuple(
            Bar(f"{name} 64 B, {calls} in flight", CPU, 1.08, "before") for calls, name in product((64, 512), GET_SET)
        ),
        ("direct", "before"),
        rounds_min=20,
        is_optional=True,
    ),
}
