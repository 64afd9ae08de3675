"""Loads of few calls on real processes."""

from __future__ import annotations

from dataclasses import replace

from bench.load.case import Case, Load
from bench.run.processes import ProviderProcess
from bench.run.stage import Stage
from bench.run.subjects import Subject

CALLS = 200
#: The number of calls with values of a mebibyte and more.
LARGE_CALLS = 10
MIB = 2**20


def little(stage: Stage, subject: Subject, case: Case, provider: ProviderProcess | None = None) -> Load:
    """Return the load of a case, with few calls. Fill its bucket."""
    provider = provider or stage.provider(subject, case)
    calls = LARGE_CALLS if case.value_bytes >= MIB else CALLS
    load = stage.load(provider, subject, case, 0.0, f"{case.function}-{case.value_bytes}", calls)
    load = replace(load, calls=calls, keys=calls, bucket=load.bucket if subject.is_store else "")
    if subject.is_store and case.function == "increment":
        return stage.fill_counters(load)
    if subject.is_store and case.function not in ("set", "set-many"):
        stage.fill(provider, load.keys, case.value_bytes, load.bucket)
    return load
