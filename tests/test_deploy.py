"""deploy/ is valid by Prometheus' own tool, and asks for nothing that the provider does not expose."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine import Store
from tests.provider.test_metrics import Pieces, promtool
from transport.handler import OUTCOMES

__all__ = ["promtool"]  # the fixture

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus-rules.yml"
RULE_TESTS = DEPLOY / "prometheus-rules.test.yml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())

#: Of a query: names of metrics, which Prometheus itself adds none of but `up`.
METRIC = re.compile(r"\b(?:wrpc_keyvalue|process)_\w+")


def exposed() -> dict[str, set[str]]:
    """All samples that a scrape gives, with their labels."""
    samples: dict[str, set[str]] = {}
    for family in Pieces.of(Store()).registry().collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def check(program: str, *arguments: str) -> str:
    """What promtool writes; it must be content."""
    done = subprocess.run([program, *arguments], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Prometheus


def alerts() -> dict[str, str]:
    """The text of each rule by its name."""
    _, *parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_rules_are_valid(promtool: str) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in check(promtool, "check", "rules", RULES.name)


def test_the_rules_do_what_their_tests_say(promtool: str) -> None:
    assert "SUCCESS" in check(promtool, "test", "rules", RULE_TESTS.name)


def test_the_scrape_configuration_is_valid(promtool: str) -> None:
    assert "1 rule files found" in check(promtool, "check", "config", "prometheus.yml")


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_to_do(name: str) -> None:
    text = alerts()[name]
    assert re.search(r"severity: (warning|critical)$", text, re.MULTILINE)
    summary = " ".join(text.partition("summary: >-")[2].split())
    assert len(summary) > 100
    assert "{{ $labels.instance }}" in summary
    assert summary.count(". ") + summary.endswith(".") >= 2  # what is wrong, and what to do


@pytest.mark.parametrize("name", alerts())
def test_every_alert_is_tested_both_ways(name: str) -> None:
    tests = re.findall(rf"alertname: {name}\b(.*(?:\n +exp_alerts:)?)", RULE_TESTS.read_text())
    assert any("exp_alerts" in test for test in tests)
    assert any("exp_alerts" not in test for test in tests)


def test_rules_ask_for_metrics_that_there_are() -> None:
    asked = {name for text in (RULES, RULE_TESTS) for name in METRIC.findall(text.read_text())}
    assert len(asked) > 9
    assert asked - exposed().keys() == set()


# Grafana


def panels() -> dict[str, dict[str, Any]]:
    return {panel["title"]: panel for panel in DASHBOARD["panels"]}


def expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # from there on a data source is named by an object
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) == len(panels())
    for panel in DASHBOARD["panels"]:
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def test_panels_do_not_cover_each_other() -> None:
    covered: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in DASHBOARD["panels"]):
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & covered
        assert max(x for x, _ in cells) < 24
        covered |= cells


def test_the_data_source_is_a_variable() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert variables["instance"]["datasource"] == source
    for panel in DASHBOARD["panels"]:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
    assert all("$instance" in expression for expression in expressions())


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are() -> None:
    found = exposed()
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    for query in (*expressions(), *(variable["query"] for variable in variables)):
        names = set(METRIC.findall(query))
        assert names
        assert names - found.keys() == set(), query
        grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
        assert grouped - {"instance"} <= set().union(*(found[name] for name in names)), query
    results = [result for query in expressions() for result in re.findall(r'result=~"([^"]*)"', query)]
    assert results
    assert {result for group in results for result in group.split("|")} <= set(OUTCOMES)


def test_the_dashboards_expressions_are_valid(promtool: str, tmp_path: Path) -> None:
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, expression in enumerate(expressions()):
        lines += [
            f"  - record: panel_{number}",
            f"    expr: {json.dumps(expression.replace('$__rate_interval', '1m'))}",
        ]
    rules = tmp_path / "dashboard.yml"
    rules.write_text("\n".join(lines))
    assert f"SUCCESS: {len(list(expressions()))} rules found" in check(promtool, "check", "rules", str(rules))


@pytest.mark.parametrize(
    "expression",
    [
        "operations_total",
        "histogram_quantile(0.5,",
        "histogram_quantile(0.99,",
        "process_cpu_seconds_total",
        "wrpc_keyvalue_keys",
        "wrpc_keyvalue_memory_bytes",
        "wrpc_keyvalue_invocations_in_flight",
        "wrpc_keyvalue_half_open_invocations",
        "wrpc_keyvalue_keyspace_hits_total",
        "wrpc_keyvalue_nats_reconnects_total",
    ],
)
def test_the_dashboard_shows(expression: str) -> None:
    assert any(expression in shown for shown in expressions())
