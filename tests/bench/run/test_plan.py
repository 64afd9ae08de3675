"""Plans: what can be measured, which subjects an experiment measures, and the origin of figures."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from bench.endtoend import parser, plan_of
from bench.load.case import Case
from bench.run import ROOT
from bench.run.experiments import EXPERIMENTS
from bench.run.plan import SUBJECTS
from bench.run.provenance import about, load_average
from bench.run.results import REFERENCE
from bench.run.scenarios import SCENARIOS
from bench.run.subjects import BEFORE, DIRECT, OWN, PLAIN, Subject, peer
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
    assert everything.subjects_of("memory") == [DIRECT, PLAIN]
    assert plain.subjects_of("watch") == plain.subjects_of("expiry") == []
    assert plain.subjects_of("memory") == [PLAIN]


def test_a_run_names_commit_versions_and_machine() -> None:
    found = about()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found["commit"]["id"] == head.stdout.strip()
    assert found["versions"]["nats-server"].startswith("v2.")
    assert re.search(r" cores, \d+ GiB, Linux ", found["machine"])
    assert len(list(map(float, load_average().split()))) == 3


def test_an_earlier_revision_is_measured_beside_calls_and_starts() -> None:
    before = Subject(BEFORE, DIRECT.command, DIRECT.config)
    plan = replace(plan_of(parser().parse_args(["--subject", "direct"])), before=before)
    assert [name for name in SCENARIOS if before in plan.subjects_of(name)] == ["start", "against"]
    assert plan.subjects_of("against") == [DIRECT, before]
