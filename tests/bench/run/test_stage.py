"""The stage: rows, fills, and what is left behind."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from threading import Timer

import pytest

from bench.load.outcome import LoadError
from bench.load.usage import resident_bytes
from bench.load.workload import Load, bucket_of
from bench.run.processes import ProviderProcess
from bench.run.scenarios import Case
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT
from tests.bench.loads import MIB, little


@pytest.mark.parametrize("is_filling", [False, True])
def test_a_provider_that_ends_fails_the_load_at_once(stage: Stage, is_filling: bool) -> None:
    with stage.launch(DIRECT) as provider:
        load = replace(little(stage, DIRECT, Case(function="get"), provider), calls=0, seconds=60.0)
        provider.popen.send_signal(signal.SIGSTOP)  # calls that it has taken are answered by nobody, NATS included
        kill = Timer(0.3, provider.popen.kill)
        kill.start()
        began_s = time.monotonic()
        with pytest.raises(LoadError, match=r"the process provider ended after .* answers to .* calls"):
            if is_filling:
                stage.fill(provider, "filling", 10_000_000, 64)
            else:
                stage.generator.run(load)
        assert time.monotonic() - began_s < 0.3 + 2.0  # it is looked for twice a second
        kill.join()


def test_a_row_that_cannot_be_measured_says_whose_it_is(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(load: Load) -> None:
        raise LoadError("wrong")

    monkeypatch.setattr(stage.generator, "run", fail)
    with pytest.raises(LoadError, match=r"^bare: exists, 64 in flight: wrong$"):
        stage.row("functions", Case(function="exists"), BARE, 0, 0.05)


def test_large_parameters_leave_no_memory_behind(stage: Stage, direct: ProviderProcess) -> None:
    case = Case(function="set", value_bytes=MIB, in_flight=4)
    load = replace(stage.load(direct, DIRECT, case, bucket_of(MIB), 1.0), calls=100, warm_calls=0, keys=4)
    stage.generator.run(load)
    before = resident_bytes(direct.pid)
    stage.generator.run(load)
    grown = resident_bytes(direct.pid) - before
    assert grown < 32 * MIB, f"100 sets of 1 MiB over the same four keys grew the process by {grown / MIB:.0f} MiB"
