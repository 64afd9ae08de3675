"""The parameters of a load: the case that it measures, and how, where and for how long it calls a provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BATCHES", "KEY_BYTES", "Case", "Function", "Headers", "Load", "size_text"]

Function = Literal[
    "get", "set", "exists", "delete", "list-keys", "mixed", "get-many", "set-many", "delete-many", "increment"
]  # fmt: skip
Headers = Literal["none", "host", "traced"]
#: Functions that read or write `batch_keys` keys per call.
BATCHES = frozenset({"get-many", "set-many", "delete-many"})

KEY_BYTES = 12
#: Maximum total size of the values in one bucket. It limits the memory that cases with large values use.
BUCKET_BYTES = 64 * 1024 * 1024
KEYS_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The parameters that distinguish cases.

    :ivar value_bytes: size of a value, which begins with its key of 12 bytes
    :ivar in_flight: number of calls that a closed loop keeps in flight
    :ivar rate: number of calls per second of an open loop; 0 for a closed loop
    :ivar batch_keys: number of keys in a batch, at most `keys`; a batch must fit in one message. No key is repeated
        before all keys have been used
    :ivar keys: number of keys; 0 for as many as `KEYS_MAX` and `BUCKET_BYTES` allow
    """

    function: Function = "get"
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
    def keys_a_call(self) -> int:
        """The number of keys that a call reads or writes, or 0 for list-keys, where the number varies."""
        if self.function == "list-keys":
            return 0
        return self.batch_keys if self.function in BATCHES else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(Case):
    """A case, and what else the load generator must know. The load calls a provider at {prefix} of the NATS server.

    :ivar bucket: name of the bucket; if empty, a name for values of this size
    :ivar keys: number of keys; the first key is that of number `first_key`
    :ivar calls: number of calls to measure; if 0, the measurement ends after `seconds`
    :ivar warm_calls: number of calls before the measurement; only for a closed loop
    :ivar each_once: True to use each key once, in order; otherwise keys are repeated, in a scattered order
    :ivar counted: for increment, the value of every counter before the load
    :ivar delta: for increment, the amount that a call adds
    :ivar beside: `{lattice}.{provider key}` of another provider, which gets every second call. Only the shape of its
        answers is checked. Its latencies are used only for `Outcome.excess_us`
    :ivar exact: True to expect the answers of a store; otherwise only the shape of answers is checked
    :ivar timeout_s: seconds without any answer after which the load fails
    :ivar watched: ids of the processes whose CPU time is measured, by name
    """

    url: str
    prefix: str
    bucket: str = ""
    keys: int = 10_000
    first_key: int = 0
    calls: int = 0
    seconds: float = 1.0
    warm_calls: int = 0
    each_once: bool = False
    counted: int = 0
    delta: int = 1
    beside: str = ""
    exact: bool = True
    timeout_s: float = 30.0
    watched: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def bucket_name(self) -> bytes:
        """The name of the bucket on the wire.

        The default names have the same length, so the bare responder can predict the length of parameters.
        """
        return (self.bucket or f"values-{self.value_bytes:010}").encode()

    @property
    def calls_max(self) -> int:
        """The total number of calls to send, or 0 if the load ends after `seconds`."""
        if self.calls:
            return self.warm_calls + self.calls
        return max(1, round(self.rate * self.seconds)) if self.rate else 0


def size_text(size: int) -> str:
    """Return a number of bytes as text with a unit.

    >>> size_text(64), size_text(65536), size_text(4194304)
    ('64 B', '64 KiB', '4 MiB')
    """
    for unit, bytes_each in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= bytes_each:
            return f"{size / bytes_each:g} {unit}"
    return f"{size} B"
