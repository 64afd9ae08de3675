"""The scenarios: their descriptions, and the cases of each scenario that is a list of cases.

A case holds the parameters of one load. `bench.run.plan` reads the cases from `CASES`, or from `QUICK_CASES` for a
quick run, and `bench.run.stage` measures each case for each subject. The remaining scenarios are functions in
`bench.run.experiments`. `--help` and the report show the descriptions in `SCENARIOS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from bench.load.workload import BATCHES, Function, Headers

__all__ = ["CASES", "QUICK_CASES", "REFERENCE_CASE", "SCENARIOS", "Case", "size_text"]

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


#: The case that shows if the machine was busy. If the bare responder uses too much CPU in this case, the run is void.
REFERENCE_CASE = Case(function="get")

VALUE_SIZES = (64, 1024, 64 * 1024, 1024 * 1024, 4 * 1024 * 1024)

CASES: Mapping[str, Sequence[Case]] = {
    "functions": (
        *(Case(function=function) for function in ("get", "set", "exists", "delete", "mixed")),
        *(Case(function="list-keys", page_keys=keys) for keys in (10, 100, 1_000)),
    ),
    "in-flight": tuple(
        Case(function=function, in_flight=in_flight) for function in ("get", "set") for in_flight in (1, 8, 64, 512)
    ),
    "headers": tuple(
        Case(function="get", in_flight=in_flight, headers=headers)
        for in_flight in (64, 512)
        for headers in ("none", "host", "traced")
    ),
    "values": tuple(
        Case(function=function, value_bytes=size, in_flight=8) for function in ("get", "set") for size in VALUE_SIZES
    ),
    "idle": tuple(Case(function=function, in_flight=1) for function in ("get", "set")),
    "fixed-rate": tuple(Case(function=function, rate=10_000.0) for function in ("get", "mixed")),
    "batch": tuple(Case(function=function) for function in ("get", "get-many", "set", "set-many")),
    "increment": tuple(Case(function=function) for function in ("set", "increment")),
}

QUICK_CASES: Mapping[str, Sequence[Case]] = {
    "functions": (Case(function="get"), Case(function="set"), Case(function="list-keys")),
    "in-flight": (Case(function="get", in_flight=1), Case(function="get", in_flight=512)),
    "headers": (Case(function="get", headers="traced"),),
    "values": tuple(replace(REFERENCE_CASE, function=name, value_bytes=2**20, in_flight=8) for name in ("get", "set")),
    "idle": (),
    "fixed-rate": (Case(function="get", rate=10_000.0),),
    "batch": tuple(Case(function=function) for function in ("get", "get-many")),
    "increment": (),
}

#: The description of each scenario, for --help and reports.
SCENARIOS: Mapping[str, str] = {
    "functions": "each function, 64 B values, 64 in flight; pages of 10, 100, 1,000; mixed is 95 % get, 5 % set",
    "in-flight": "get and set of 64 B with 1, 8, 64, 512 in flight",
    "headers": "get without headers, with the headers that a host sends, and with trace headers added",
    "values": "get and set of 64 B, 1 KiB, 64 KiB, 1 MiB, 4 MiB, 8 in flight",
    "idle": "get and set with one call in flight: latency of an otherwise idle provider",
    "fixed-rate": "open loop, 10,000 calls/s: latency counts from the time when a call is due, so it includes stalls",
    "batch": "get-many and set-many of 100 keys, compared with single get and set, 64 B values, 64 in flight: keys/s",
    "increment": "increment compared with set, 64 in flight",
    "growth": "get, set and a page at 10^3 to 10^6 keys (10^7 with --large); memory per key",
    "memory": "2,000 simultaneous gets of 1 MiB: memory in addition to the filled store",
    "metrics": "get and set with and without metrics; at least 20 rounds",
    "pages": "two walks over a million keys while gets run: longest waits, minus those for the bare responder",
    "snapshot": "gets while a million keys are saved, minus the bare responder's; start with a snapshot of them",
    "expiry": "get and set on a million keys with deadlines, and on a million keys without deadlines; memory per key",
    "start": "time to first answer, idle memory, get: with host data, as `serve`, as executable; at least 10 rounds",
    "replicated": "get, set, increment, set-many of 10: store=jetstream, one server, file storage, and store=memory",
    "watch": "set without a watcher, with one that answers, with one that never answers; at least 10 rounds",
}
