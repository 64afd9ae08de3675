"""The table of the scenarios: what each one measures, for which subjects, and its bars (performance goals).

A scenario is a list of cases, or a function of its name in `bench.run.experiments`. A case holds the parameters of one
load. A bar is a limit for one figure of a case. Reports derive the text of a bar from its fields.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from bench.load.workload import BATCHES, Function, Headers
from bench.run.rows import REFERENCE
from bench.run.subjects import (
    BARE,
    BEFORE,
    DIRECT,
    EXECUTABLE,
    EXPIRING,
    LOCAL,
    PLAIN,
    REDIS_SERVER,
    REPLICATED,
    STANDALONE,
    STUCK,
    UNMETERED,
    UNPACKED,
    WATCHED,
    Subject,
)

__all__ = ["QUICK", "REFERENCE_CASE", "SCENARIOS", "Bar", "Case", "Scenario", "redis_cases", "size_text"]

#: Maximum total size of the values in one bucket. It limits the memory that cases with large values use.
BUCKET_BYTES = 64 * 1024 * 1024
KEYS_MAX = 10_000
LARGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The parameters of one load. `bench.load.workload.Load` explains them.

    :ivar keys: number of keys; 0 for as many as `KEYS_MAX` and `BUCKET_BYTES` allow
    """

    function: Function
    value_bytes: int = 64
    in_flight: int = 64
    headers: Headers = "host"
    page_keys: int = 1_000
    batch_keys: int = 100
    rate: float = 0.0
    keys: int = 0

    @property
    def label(self) -> str:
        """The case's name in tables.

        >>> Case(function="list-keys", page_keys=100).label, Case(function="get-many").label
        ('list-keys of 100, 64 in flight', 'get-many of 100 x 64 B, 64 in flight')
        """
        what = f"list-keys of {self.page_keys:,}" if self.function == "list-keys" else self.function
        if self.function in BATCHES:
            what += f" of {self.batch_keys:,} x {size_text(self.value_bytes)}"
        elif self.function in ("get", "set", "mixed"):
            what += f" {size_text(self.value_bytes)}"
        what += f" at {self.rate:,.0f}/s" if self.rate else f", {self.in_flight} in flight"
        if self.headers != "host":
            what += ", traced" if self.headers == "traced" else ", no headers"
        return what + (f", {self.keys:,} keys" if self.keys else "")

    @property
    def key_space(self) -> int:
        """The number of keys that the load uses."""
        return self.keys or max(1, min(KEYS_MAX, BUCKET_BYTES // self.value_bytes))

    @property
    def warm_calls(self) -> int:
        """The number of calls that warm up the provider before the measurement."""
        if self.rate:
            return 0
        return self.in_flight if self.value_bytes >= LARGE_BYTES else max(200, 4 * self.in_flight)


def size_text(size: int) -> str:
    """Return a number of bytes as text with a unit.

    >>> size_text(64), size_text(65536), size_text(4194304)
    ('64 B', '64 KiB', '4 MiB')
    """
    for unit, bytes_each in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_each:
            return f"{size / bytes_each:g} {unit}"
    return f"{size} B"


@dataclass(frozen=True, slots=True)
class Bar:
    """A limit for the median of one figure over all rounds.

    :ivar over: a subject or a case. The figure of each round is divided by the same figure of this subject or case
    :ivar is_least: True if the limit is a minimum; otherwise it is a maximum
    :ivar is_worst: True to compare the limit with the worst round, because the figure is itself a maximum
    """

    case: str
    figure: str
    limit: float
    over: str = ""
    subject: str = DIRECT.name
    is_least: bool = False
    is_worst: bool = False


def least(case: str, figure: str, limit: float, over: str = "", subject: str = DIRECT.name) -> Bar:
    """Return a bar whose limit is a minimum."""
    return Bar(case, figure, limit, over, subject, is_least=True)


@dataclass(frozen=True, slots=True)
class Scenario:
    """Cases or an experiment under one name, with their bars.

    :ivar subjects: the subjects; empty for those of the command line, which include the peers
    :ivar is_optional: True to run the scenario only if the command line names it
    """

    text: str
    cases: Sequence[Case] = ()
    bars: Sequence[Bar] = ()
    subjects: Sequence[Subject] = ()
    is_optional: bool = False


def cases(*functions: Function, **fields: object) -> tuple[Case, ...]:
    """Return a case for each function, all with the same fields."""
    return tuple(Case(function=function, **fields) for function in functions)  # type: ignore[arg-type]


def redis_cases() -> dict[str, tuple[tuple[str, ...], int]]:
    """Return the options of redis-benchmark and the number of its calls for each case of the scenario redis."""
    keys = [f"key:{number:012d}" for number in range(100)]
    return {
        **{f"{name}, 50 connections": (("-t", name, "-c", "50"), 100_000) for name in ("set", "get")},
        **{f"{name}, pipeline of 16": (("-t", name, "-c", "50", "-P", "16"), 500_000) for name in ("set", "get")},
        **{f"{name}, 1 connection": (("-t", name, "-c", "1"), 20_000) for name in ("set", "get")},
        "mget of 100": (("-c", "50", "MGET", *keys), 20_000),
    }


#: The case that shows if the machine was busy. If the bare responder uses too much CPU in this case, the run is void.
REFERENCE_CASE = Case(function="get")
#: The cases of a quick run.
QUICK = (
    *cases("get", "set", "list-keys"),
    *cases("get", in_flight=1),
    *cases("get", in_flight=512),
    *cases("set", value_bytes=2**20, in_flight=8),
)
HOST, MILLION = "64 B, 64 in flight", "1,000,000 keys"
CALLS, KEYS, CPU = "calls_per_s", "keys_per_s", "provider_cpu_us"
BESIDE_BARE = (BARE, DIRECT)
VALUE_SIZES = (64, 1024, 64 * 1024, 2**20, 4 * 2**20)
IN_FLIGHT = (1, 8, 64, 512)

SCENARIOS: Mapping[str, Scenario] = {
    "functions": Scenario(
        "each function, 64 B values, 64 in flight; pages of 10, 100, 1,000; mixed is 95 % get, 5 % set",
        (
            *cases("get", "set", "exists", "delete", "mixed"),
            *(Case(function="list-keys", page_keys=keys) for keys in (10, 100, 1_000)),
        ),
        (
            Bar(f"get {HOST}", CPU, 20, subject=PLAIN.name),
            least("list-keys of 1,000, 64 in flight", KEYS, 1e6),
        ),
    ),
    "in-flight": Scenario(
        "get and set of 64 B with 1, 8, 64, 512 in flight",
        tuple(Case(function=function, in_flight=calls) for function in ("get", "set") for calls in IN_FLIGHT),
    ),
    "headers": Scenario(
        "get without headers, with the headers that a host sends, and with trace headers added",
        tuple(
            Case(function="get", in_flight=calls, headers=headers)
            for calls in (64, 512)
            for headers in ("none", "host", "traced")
        ),
        tuple(
            bar
            for (calls, cpu_us), suffix in product(((64, 4.5), (512, 3.5)), ("", ", traced"))
            for bar in (
                least(f"get 64 B, {calls} in flight{suffix}", CALLS, 0.75, REFERENCE),
                Bar(f"get 64 B, {calls} in flight{suffix}", CPU, cpu_us),
            )
        ),
    ),
    "values": Scenario(
        "get and set of 64 B, 1 KiB, 64 KiB, 1 MiB, 4 MiB, 8 in flight",
        tuple(
            Case(function=function, value_bytes=size, in_flight=8)
            for function in ("get", "set")
            for size in VALUE_SIZES
        ),
        tuple(
            least(f"{function} {size}, 8 in flight", CALLS, 0.7, REFERENCE)
            for function, size in product(("get", "set"), ("1 MiB", "4 MiB"))
        ),
    ),
    "idle": Scenario(
        "get and set with one call in flight: latency of an otherwise idle provider",
        cases("get", "set", in_flight=1),
        (Bar("get 64 B, 1 in flight", "p50_us", 1.15, REFERENCE),),
    ),
    "fixed-rate": Scenario(
        "open loop, 10,000 calls/s: latency counts from the time when a call is due, so it includes stalls",
        cases("get", "mixed", rate=10_000.0),
    ),
    "batch": Scenario(
        "get-many and set-many of 100 keys, compared with single get and set, 64 B values, 64 in flight: keys/s",
        cases("get", "get-many", "set", "set-many"),
        tuple(
            least(f"{one}-many of 100 x {HOST}", KEYS, times, f"{one} {HOST}")
            for one, times in (("get", 10), ("set", 6))
        ),
    ),
    "increment": Scenario(
        "increment compared with set, 64 in flight",
        cases("set", "increment"),
        (Bar("increment, 64 in flight", CPU, 1.5, f"set {HOST}"),),
    ),
    "growth": Scenario(
        "get, set and a page at 10^3 to 10^6 keys (10^7 with --large); memory per key",
        (),
        (
            # The limit of 2.5 allows logarithmic growth: the logarithm of a million is twice that of a thousand.
            *(
                Bar(f"{call}, {MILLION}", CPU, 2.5, f"{call}, 1,000 keys")
                for call in (f"get {HOST}", f"set {HOST}", "list-keys of 1,000, 4 in flight")
            ),
            Bar(f"memory, {MILLION}", "bytes_a_key", 330),
            Bar(f"memory, {MILLION}", "scrape_us", 5_000),
        ),
        BESIDE_BARE,
    ),
    "memory": Scenario(
        "2,000 simultaneous gets of 1 MiB: memory in addition to the filled store",
        (),
        (Bar("get 1 MiB, 2000 in flight, 64 keys", "above_store_bytes", 64 * 2**20, is_worst=True),),
        (DIRECT, PLAIN),
    ),
    "metrics": Scenario(
        "get and set with and without metrics; at least 20 rounds",
        (Case(function="get"), Case(function="get", in_flight=512), Case(function="set")),
        tuple(Bar(f"get 64 B, {calls} in flight", CPU, 1.05, UNMETERED.name) for calls in (64, 512)),
        (DIRECT, UNMETERED),
    ),
    "pages": Scenario(
        "two walks over a million keys while gets run: longest waits, minus those for the bare responder",
        (),
        (
            Bar(f"first walk, {MILLION}", "page_cpu_us", 5_000, is_worst=True),
            Bar(f"first walk, {MILLION}", "max_us", 5_000),
            Bar(f"gets beside the first walk, {MILLION}", "excess_us", 5_000),
        ),
        (DIRECT,),
    ),
    "snapshot": Scenario(
        "gets while a million keys are saved, minus the bare responder's; start with a snapshot of them",
        (),
        (
            Bar(f"gets beside a save, {MILLION}", "excess_us", 5_000),
            Bar(f"start, {MILLION}", "start_s", 4),
        ),
        (DIRECT,),
    ),
    "expiry": Scenario(
        "get and set on a million keys with deadlines, and on a million keys without deadlines; memory per key",
        (),
        tuple(Bar(f"{name} {HOST}, {MILLION}", CPU, 1.3, DIRECT.name, EXPIRING.name) for name in ("get", "set")),
        (DIRECT, EXPIRING),
    ),
    "start": Scenario(
        "time and CPU time to the first answer, idle memory, get: with host data, as `serve`, as executable; at least "
        "10 rounds",
        cases("get"),
        (
            Bar("start", "start_s", 0.15, subject=UNMETERED.name),
            Bar("start", "start_s", 0.6, subject=STANDALONE.name),
            Bar("start", "start_s", 0.23, subject=UNPACKED.name),
            Bar("start", "start_s", 1.5, subject=EXECUTABLE.name),
            Bar("start", "idle_bytes", 45 * 2**20),
            least(f"get {HOST}", CALLS, 0.97, DIRECT.name, EXECUTABLE.name),
        ),
        (DIRECT, UNMETERED, STANDALONE, EXECUTABLE, UNPACKED),
    ),
    "watch": Scenario(
        "set without a watcher, with one that answers, with one that never answers; at least 10 rounds",
        cases("set"),
        (least(f"set {HOST}", CALLS, 0.98, DIRECT.name, STUCK.name),),
        (DIRECT, WATCHED, STUCK),
    ),
    "replicated": Scenario(
        "get, set, increment, set-many of 10: store=jetstream, one server, file storage, and store=memory",
        (
            *(Case(function=function, in_flight=calls) for calls in (1, 64, 512) for function in ("get", "set")),
            Case(function="increment"),
            Case(function="set-many", batch_keys=10),
        ),
        (),
        (DIRECT, REPLICATED, LOCAL),
    ),
    "redis": Scenario(
        "redis-benchmark against redis-server and the provider, in turns; at least 10 rounds",
        (),
        tuple(
            Bar(case, "p50_us", limit, REDIS_SERVER.name, UNMETERED.name)
            if case.endswith("1 connection")
            else least(case, CALLS, limit, REDIS_SERVER.name, UNMETERED.name)
            for case, limit in zip(redis_cases(), (0.85, 0.85, 0.4, 0.4, 1.15, 1.15, 0.3), strict=True)
        ),
        (REDIS_SERVER, UNMETERED),
    ),
    "against": Scenario(
        "get and set beside an earlier revision, which --against names; at least 20 rounds",
        tuple(Case(function=function, in_flight=calls) for calls in (64, 512) for function in ("get", "set")),
        tuple(
            Bar(f"{name} 64 B, {calls} in flight", CPU, 1.08, BEFORE)
            for calls, name in product((64, 512), ("get", "set"))
        ),
        (DIRECT,),
        is_optional=True,
    ),
}
