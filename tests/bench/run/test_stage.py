"""The stage and its processes: how they are launched, what is reported if one does not start or ends early, and what remains."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import nats
import pytest

from bench.load.case import Case, Load
from bench.load.outcome import LoadError
from bench.load.usage import resident_bytes
from bench.run.processes import GeneratorProcess, ProcessError, ProviderProcess
from bench.run.stage import Stage
from bench.run.subjects import BARE, DIRECT, Subject, peer
from tests.bench.loads import MIB, little
from tests.conftest import DEADLINE_S


def test_a_peer_gets_none_of_our_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer may know another option by that name. Its pages show if they can be compared."""
    given: list[Mapping[str, str]] = []
    monkeypatch.setattr(Stage, "launch", lambda _, subject, config: given.append(config))
    for subject in (DIRECT, peer("redis=/opt/redis")):
        Stage().provider(subject, Case(function="list-keys", page_keys=10))
    assert given == [{"page_keys": "10"}, {}]


@pytest.fixture
def provider(stage: Stage) -> ProviderProcess:
    """Launch a provider for one test, which ends it."""
    return stage.launch(DIRECT)


async def test_a_provider_that_ends_fails_the_load(stage: Stage, provider: ProviderProcess) -> None:
    """Notice it before an answer is missing.

    Another subscriber receives calls too, or NATS would report that nobody listens.
    """
    load = replace(little(stage, DIRECT, Case(function="get"), provider), calls=0, seconds=3_600.0)
    client = await nats.connect(stage.nats.url)
    calls = await client.subscribe(f"{provider.prefix}.>")
    await client.flush()
    stage.generator.begin(load)
    await calls.next_msg(DEADLINE_S)
    provider.popen.kill()
    with pytest.raises(LoadError, match=r"the process provider ended after .* answers to .* calls"):
        stage.generator.end()
    await client.close()


def test_an_error_that_no_peer_caused_is_raised_with_its_case(stage: Stage) -> None:
    with pytest.raises(LoadError, match=r"^bare: exists, 64 in flight: wrong$"):
        stage.failure(LoadError("wrong"), Case(function="exists"), BARE, 0)


def test_large_parameters_leave_no_memory_in_use(stage: Stage, direct: ProviderProcess) -> None:
    case = Case(function="set", value_bytes=MIB, in_flight=4)
    load = replace(stage.load(direct, DIRECT, case, 1.0, calls=100), keys=4)
    stage.generator.run(load)
    before = resident_bytes(direct.pid)
    stage.generator.run(load)
    grown = resident_bytes(direct.pid) - before
    assert grown < 32 * MIB, f"100 sets of 1 MiB over the same four keys grew the process by {grown / MIB:.0f} MiB"


# Processes that do not start


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (("/nowhere/provider",), "broken-.*: .*No such file or directory"),
        (
            (sys.executable, "-c", "import sys; sys.exit('no data')"),
            "(?s): the process ended with exit status 1; .*no data",
        ),
    ],
)
def test_a_provider_that_does_not_start_says_why(stage: Stage, command: Sequence[str], error: str) -> None:
    with pytest.raises(ProcessError, match=error):
        stage.launch(Subject("broken", tuple(command)))


def test_a_load_generator_that_ended_says_so(stage: Stage, tmp_path: Path) -> None:
    with GeneratorProcess(tmp_path) as generator:
        generator.popen.kill()
        generator.popen.wait()
        with pytest.raises(ProcessError, match="load: the process ended"):
            generator.run(Load(url=stage.nats.url, prefix="default.kv"))
