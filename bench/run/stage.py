"""The stage: the NATS server, the load generator and the providers of a run.

Leaving the `with` block of a stage stops all of its processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from bench.load.outcome import LoadError, Outcome
from bench.load.usage import UsageError, peak_bytes, restart_peak
from bench.load.workload import BATCHES, COUNT_FROM, Load, bucket_of
from bench.run.processes import GeneratorProcess, NatsProcess, ProcessError, ProviderProcess, one_line
from bench.run.rows import Row
from bench.run.scenarios import Case
from bench.run.subjects import Subject

__all__ = ["Extent", "NotAvailableError", "PeerError", "Stage", "row_of"]

FILL_IN_FLIGHT = 256
FILL_BYTES_IN_FLIGHT = 16 * 1024 * 1024
#: Seconds to wait for each answer while the store is being filled. Even slow peers answer within this time.
FILL_TIMEOUT_S = 60.0
DELETES_PER_S = 20_000
#: Number of the first counter's key. Some providers share one key space between all buckets, so counters need numbers
#: above those of all other keys.
COUNTERS_FROM = 500_000_000
#: The attributes of an outcome that are figures of a row.
OUTCOME_FIGURES = (*("calls_per_s", "keys_per_s", "p50_us", "p99_us", "p999_us", "max_us", "generator_cpu_us"),)


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


class PeerError(Exception):
    """Raised when a peer fails in a case. The message is one line.

    :ivar is_gone: True if the peer's process has exited or never answered, so the peer would fail in every case
    """

    def __init__(self, text: str, is_gone: bool) -> None:
        super().__init__(text)
        self.is_gone = is_gone


class Stage:
    """A context manager that measures cases. It launches a provider when the first case needs it."""

    nats: NatsProcess
    generator: GeneratorProcess
    directory: Path

    def __init__(self) -> None:
        self._exit = ExitStack()
        self._providers: dict[tuple[str, tuple[tuple[str, str], ...]], ProviderProcess] = {}
        self._filled: dict[tuple[ProviderProcess, str], int] = {}
        self._counters = 0
        self._launched = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            self.nats = stack.enter_context(NatsProcess(self.directory))
            self.generator = stack.enter_context(GeneratorProcess(self.directory))
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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

    def load(self, provider: ProviderProcess, subject: Subject, case: Case, bucket: str, seconds: float) -> Load:
        """Return the load of a case. Deletes end after a number of calls, because each delete needs a key."""
        deletes = case.function == "delete"
        keys = max(1, int(seconds * DELETES_PER_S)) if deletes else case.key_space
        return Load(
            url=self.nats.url,
            prefix=provider.prefix,
            function=case.function,
            bucket=bucket,
            value_bytes=case.value_bytes,
            in_flight=case.in_flight,
            rate=case.rate,
            calls=keys if deletes else 0,
            seconds=seconds,
            warm_calls=0 if deletes else case.warm_calls,
            headers=case.headers,
            keys=keys,
            each_once=deletes,
            page_keys=case.page_keys,
            batch_keys=case.batch_keys,
            counted=COUNT_FROM if case.function == "increment" else 0,
            exact=subject.is_store,
            watched={"provider": provider.pid, "nats": self.nats.pid},
        )

    def fill(self, provider: ProviderProcess, bucket: str, keys: int, value_bytes: int, first_key: int = 0) -> None:
        """Set `keys` keys, each once, starting with the key of number `first_key`."""
        load = Load(
            url=self.nats.url,
            prefix=provider.prefix,
            function="set",
            bucket=bucket,
            value_bytes=value_bytes,
            in_flight=max(1, min(FILL_IN_FLIGHT, FILL_BYTES_IN_FLIGHT // value_bytes)),
            keys=keys,
            first_key=first_key,
            watched={"provider": provider.pid},
        )
        self._run_each_once(load)

    def fill_counters(self, load: Load) -> Load:
        """Set new counters to `load.counted`. Return a copy of the load that uses the new counters."""
        load = replace(load, first_key=COUNTERS_FROM + self._counters)
        self._counters += load.keys
        self._run_each_once(replace(load, in_flight=FILL_IN_FLIGHT, delta=load.counted, counted=0))
        return load

    def _run_each_once(self, load: Load) -> None:
        load = replace(load, calls=load.keys, warm_calls=0, each_once=True, timeout_s=FILL_TIMEOUT_S)
        self.generator.run(load)

    def measure(self, subject: Subject, case: Case, seconds: float) -> Outcome:
        """Launch the provider and set its keys if needed. Then measure a case once."""
        provider = self.provider(subject, case)
        bucket = {"delete": "deletes", "increment": "counters"}.get(case.function, bucket_of(case.value_bytes))
        load = self.load(provider, subject, case, bucket, seconds)
        if subject.is_store:
            if case.function == "delete":
                self.fill(provider, bucket, load.keys, case.value_bytes)
            elif case.function == "increment":
                load = self.fill_counters(load)
            elif self._filled.get((provider, bucket), 0) != load.keys:
                self.fill(provider, bucket, load.keys, case.value_bytes)
                self._filled[provider, bucket] = load.keys
        restart_peak(provider.pid)
        return self.generator.run(load)

    def row(self, scenario: str, case: Case, subject: Subject, number: int, seconds: float) -> Row:
        """Measure a case once, and return its row.

        :raises PeerError: a peer failed
        :raises LoadError: our own provider gave a wrong answer or none
        :raises ProcessError: one of our own processes failed
        :raises UsageError: the usage of one of our own processes could not be read
        """
        try:
            outcome = self.measure(subject, case, seconds)
            peak = peak_bytes(self.provider(subject, case).pid)
        except (LoadError, ProcessError, UsageError) as error:
            is_ours = any(process.popen.poll() is not None for process in (self.nats, self.generator))
            if is_ours or not subject.is_peer:
                raise type(error)(f"{subject.name}: {case.label}: {error}") from None
            raise self._peer_error(subject, str(error)) from None
        return row_of(scenario, case, subject, number, outcome, {"peak_bytes": float(peak)})

    def _peer_error(self, subject: Subject, text: str) -> PeerError:
        provider = self._providers.get((subject.name, ()))
        status = None if provider is None else provider.exit_status()
        if provider is not None and status is not None:
            text = str(provider.failure(f"{text}; its process ended with exit status {status}"))
        return PeerError(one_line(text), is_gone=provider is None or status is not None)


def row_of(
    scenario: str, case: Case, subject: Subject, number: int, outcome: Outcome, more: Mapping[str, float]
) -> Row:
    """Return a row with the figures of an outcome and the additional figures in `more`."""
    figures = {name: getattr(outcome, name) for name in OUTCOME_FIGURES}
    figures |= {f"{name}_cpu_us": cpu_us for name, cpu_us in outcome.cpu_us.items()}
    return Row(
        scenario=scenario,
        case=case.label,
        fields=asdict(case),
        subject=subject.name,
        round=number,
        figures={**figures, **more},
        latencies=outcome.latencies,
    )
