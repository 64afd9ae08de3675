"""The stage: the NATS server, the load generator and the providers of a run.

Leaving the `with` block of a stage stops all of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from bench.load.case import BATCHES, Case, Load
from bench.load.outcome import Outcome
from bench.load.usage import peak_bytes, restart_peak
from bench.load.workload import COUNT_FROM
from bench.run.processes import GeneratorProcess, NatsProcess, ProviderProcess, one_line
from bench.run.results import Failure, Row
from bench.run.subjects import Subject

__all__ = ["Extent", "NotAvailableError", "Stage", "row_of"]

FILL_IN_FLIGHT = 256
FILL_BYTES_IN_FLIGHT = 16 * 1024 * 1024
#: Even slow peers answer within this time while their store is being filled.
FILL_TIMEOUT_S = 60.0
DELETES_PER_S = 20_000
#: The size of a value from which on a call takes long, so that few calls warm a provider up.
LARGE_BYTES = 64 * 1024
#: Number of the first counter's key. Some providers share one key space between all buckets, so counters need numbers
#: above those of all other keys.
COUNTERS_FROM = 500_000_000
#: The attributes of an outcome that are figures of a row.
OUTCOME_FIGURES = ("calls_per_s", "keys_per_s", "p50_us", "p99_us", "p999_us", "max_us", "generator_cpu_us")


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a run: how many rounds, keys and calls it has, and how long each load takes.

    :ivar seconds: duration of one load
    :ivar growth_keys: numbers of keys at which `growth` measures, in ascending order
    :ivar keys: number of keys in `pages`, `snapshot` and `expiry`
    :ivar memory_calls: number of gets that `memory` keeps in flight
    """

    rounds: int
    seconds: float
    growth_keys: Sequence[int]
    keys: int
    memory_calls: int


class NotAvailableError(Exception):
    """Raised when a scenario needs a program that is not installed. The run continues without the scenario."""


class Stage:
    """A context manager that measures cases. It launches a provider when the first case needs it."""

    nats: NatsProcess
    generator: GeneratorProcess
    directory: Path

    def __init__(self) -> None:
        self._exit = ExitStack()
        self._providers: dict[tuple[str, tuple[tuple[str, str], ...]], ProviderProcess] = {}
        self._filled: dict[tuple[ProviderProcess, bytes], int] = {}
        self._counters = COUNTERS_FROM
        self._launched = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            self.nats = stack.enter_context(NatsProcess(self.directory))
            self.generator = stack.enter_context(GeneratorProcess(self.directory))
            self._exit = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def launch(self, subject: Subject, config: Mapping[str, str] | None = None, watcher: str = "") -> ProviderProcess:
        """Launch a new process for a subject. The stage stops the process at its end, unless you call `stop` earlier.

        :param config: options that override the subject's own
        :param watcher: name of the component to link as a watcher, or empty
        """
        self._launched += 1
        name = f"{subject.name}-{self._launched}"
        own = {**subject.config, **(config or {})}
        return self._exit.enter_context(ProviderProcess(name, subject.command, own, self.nats, self.directory, watcher))

    def provider(self, subject: Subject, case: Case) -> ProviderProcess:
        """Return the process that serves a case for a subject. Cases with the same configuration share a process."""
        config = {}
        if subject.is_peer:
            pass  # A peer does not know our options. The load generator checks if its answers can be compared.
        elif case.function == "list-keys":
            config["page_keys"] = str(case.page_keys)
        elif not subject.is_store:
            config["value_bytes"] = str(case.value_bytes)
            if case.function in BATCHES:
                config["batch_keys"] = str(case.batch_keys)
        key = subject.name, tuple(config.items())
        if key not in self._providers:
            self._providers[key] = self.launch(subject, config)
        return self._providers[key]

    def load(
        self, provider: ProviderProcess, subject: Subject, case: Case, seconds: float, bucket: str = "", calls: int = 0
    ) -> Load:
        """Return the load of a case.

        :param calls: number of calls to measure, from the first one on; if 0, the load takes `seconds`, after calls
            that warm the provider up
        """
        warm_calls = case.in_flight if case.value_bytes >= LARGE_BYTES else max(200, 4 * case.in_flight)
        fields = asdict(case) | {"keys": case.key_space}
        if case.function == "delete":  # each delete needs a key
            calls = fields["keys"] = max(1, int(seconds * DELETES_PER_S))
        return Load(
            **fields,
            url=self.nats.url,
            prefix=provider.prefix,
            bucket=bucket,
            calls=calls,
            seconds=seconds,
            warm_calls=0 if case.rate or calls else warm_calls,
            each_once=case.function == "delete",
            counted=COUNT_FROM if case.function == "increment" else 0,
            exact=subject.is_store,
            watched={"provider": provider.pid, "nats": self.nats.pid},
        )

    def fill(
        self, provider: ProviderProcess, keys: int, value_bytes: int = 64, bucket: str = "", first_key: int = 0
    ) -> None:
        """Set `keys` keys, each once, starting with the key of number `first_key`."""
        in_flight = max(1, min(FILL_IN_FLIGHT, FILL_BYTES_IN_FLIGHT // value_bytes))
        case = Case(function="set", value_bytes=value_bytes, in_flight=in_flight, keys=keys)
        load = Load(**asdict(case), url=self.nats.url, prefix=provider.prefix, bucket=bucket, first_key=first_key)
        self._run_each_once(replace(load, watched={"provider": provider.pid}))

    def fill_counters(self, load: Load) -> Load:
        """Set new counters to `load.counted`. Return a copy of the load that uses the new counters."""
        load = replace(load, first_key=self._counters)
        self._counters += load.keys
        self._run_each_once(replace(load, in_flight=FILL_IN_FLIGHT, delta=load.counted, counted=0))
        return load

    def _run_each_once(self, load: Load) -> None:
        self.generator.run(replace(load, calls=load.keys, warm_calls=0, each_once=True, timeout_s=FILL_TIMEOUT_S))

    def measure(self, subject: Subject, case: Case, seconds: float) -> Outcome:
        """Launch the provider and set its keys if needed. Then measure a case once."""
        provider = self.provider(subject, case)
        bucket = {"delete": "deletes", "increment": "counters"}.get(case.function, "")
        load = self.load(provider, subject, case, seconds, bucket)
        where = provider, load.bucket_name
        if subject.is_store and case.function == "increment":
            load = self.fill_counters(load)
        elif subject.is_store and (case.function == "delete" or self._filled.get(where) != load.keys):
            self.fill(provider, load.keys, case.value_bytes, bucket)
            self._filled[where] = load.keys
        restart_peak(provider.pid)
        return self.generator.run(load)

    def row(self, scenario: str, case: Case, subject: Subject, number: int, seconds: float) -> Row:
        """Measure a case once, and return its row."""
        outcome = self.measure(subject, case, seconds)
        peak = peak_bytes(self.provider(subject, case).pid)
        return row_of(scenario, case, subject, number, outcome, peak_bytes=peak)

    def failure(self, error: Exception, case: Case, subject: Subject, number: int) -> Failure:
        """Return a peer's failure for an error of `row`. Raise the error if the peer is not its cause."""
        is_ours = any(process.popen.poll() is not None for process in (self.nats, self.generator))
        if is_ours or not subject.is_peer:
            raise type(error)(f"{subject.name}: {case.label}: {error}") from None
        provider, text = self._providers.get((subject.name, ())), str(error)
        status = None if provider is None else provider.exit_status()
        if provider is not None and status is not None:
            text = str(provider.failure(f"{text}; its process ended with exit status {status}"))
        return Failure(subject.name, case.label, number, one_line(text), provider is None or status is not None)


def row_of(
    scenario: str, case: Case, subject: Subject, number: int, outcome: Outcome, label: str = "", **more: float
) -> Row:
    """Return a row with the figures of an outcome and the figures in `more`.

    :param label: the name of the case, if it is not that of its load
    """
    figures = {name: getattr(outcome, name) for name in OUTCOME_FIGURES}
    figures |= {f"{name}_cpu_us": cpu_us for name, cpu_us in outcome.cpu_us.items()}
    return Row(
        scenario=scenario,
        case=label or case.label,
        fields=asdict(case),
        subject=subject.name,
        round=number,
        figures={**figures, **more},
    )
