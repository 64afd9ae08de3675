"""Plans: what can be measured, which subjects an experiment measures, and the origin of figures."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.endtoend import parser, plan_of
from bench.load.case import Case
from bench.load.outcome import LoadError
from bench.run import ROOT
from bench.run.experiments import EXPERIMENTS
from bench.run.plan import SUBJECTS, measure
from bench.run.provenance import about
from bench.run.results import REFERENCE, Row
from bench.run.scenarios import SCENARIOS
from bench.run.stage import Stage
from bench.run.subjects import BARE, BEFORE, DIRECT, OWN, PLAIN, Subject, peer
from tests.bench.rows import row
from tests.conftest import options_of


def test_every_scenario_is_measured_and_explained() -> None:
    text = parser().format_help()
    assert [name for name in SCENARIOS if f"\n  {name} " not in text] == []
    assert [name for name, scenario in SCENARIOS.items() if not (scenario.cases or name in EXPERIMENTS)] == []
    assert set(EXPERIMENTS) <= set(SCENARIOS)


def test_a_case_of_several_scenarios_is_measured_once() -> None:
    loads = plan_of(parser().parse_args([])).loads()
    assert loads[Case(function="get"), SUBJECTS] == ["functions", "in-flight", "headers", "batch"]
    assert loads[Case(function="get"), (DIRECT, OWN["replicated"], OWN["replicated-local"])] == ["replicated"]
    assert next(iter(loads.values())) == [REFERENCE]
    assert len({case for case, subjects in loads if subjects == SUBJECTS}) == len(loads) - 1 - 8


def test_subjects_set_existing_options() -> None:
    """A provider ignores a name that it does not know, and then the option would measure nothing."""
    for subject in (subject for subject in OWN.values() if "transport" in subject.config):
        assert options_of(subject.config).ttl_ms == (3_600_000 if subject.name == "direct-expiring" else None)


@pytest.mark.parametrize(
    "text", ["", "name", "name=", "=command", "a b=command", "bare=command", "direct-stuck=command"]
)
def test_a_malformed_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--peer: found"):
        peer(text)


def test_experiments_measure_variants_next_to_what_they_vary() -> None:
    everything = plan_of(parser().parse_args([]))
    plain = plan_of(parser().parse_args(["--subject", "plain"]))
    assert everything.subjects_of("watch") == [DIRECT, OWN["direct-watched"], OWN["direct-stuck"]]
    assert everything.subjects_of("functions") == [*SUBJECTS]
    assert plain.subjects_of("watch") == plain.subjects_of("expiry") == []
    assert plain.subjects_of("functions") == [BARE, PLAIN]


def test_a_scenario_that_fails_does_not_end_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: Stage, name: str, *__: object) -> Iterator[Row]:
        yield row("direct", 0, name, calls_per_s=1.0)
        raise LoadError("wrong")

    def working(_: Stage, name: str, *__: object) -> Iterator[Row]:
        yield row("direct", 0, name, calls_per_s=1.0)

    monkeypatch.setattr("bench.run.plan.EXPERIMENTS", {"memory": failing, "expiry": working})
    options = ["--rounds", "1", "--seconds", "0.05", "--scenario", "memory", "--scenario", "expiry"]
    rows: list[Row] = []
    with pytest.raises(LoadError, match=r"^memory: wrong$"):
        rows.extend(measure(plan_of(parser().parse_args(options)), []))
    assert [row.scenario for row in rows] == [REFERENCE, "memory", "expiry"]


def test_a_run_names_commit_versions_and_machine() -> None:
    found = about()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found["commit"]["id"] == head.stdout.strip()
    assert found["versions"]["nats-server"].startswith("v2.")
    assert re.search(r" cores, \d+ GiB, Linux ", found["machine"])


def test_an_earlier_revision_is_measured_beside_calls_and_starts() -> None:
    before = Subject(BEFORE, DIRECT.command, DIRECT.config)
    plan = replace(plan_of(parser().parse_args(["--subject", "direct"])), before=before)
    assert [name for name in SCENARIOS if before in plan.subjects_of(name)] == ["start", "against"]
    assert plan.subjects_of("against") == [DIRECT, before]
