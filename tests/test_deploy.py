"""deploy/ is valid by Prometheus' own tool and by wadm's rules, and uses only metrics and options that the provider has."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from keyvalue_engine import Store
from keyvalue_provider.config.options import LinkOptions, ProviderOptions
from keyvalue_transport.keyvalue.outcomes import OUTCOMES
from tests.conftest import options_of
from tests.provider.observe.test_exports import metrics_of_exports
from tests.provider.observe.test_metrics import Pieces, promtool
from tests.provider.observe.test_redis_metrics import metrics_of_a_listener
from tests.provider.observe.test_replica_metrics import metrics_of_a_new_replica
from tests.provider.observe.test_snapshot_metrics import metrics_of_new_snapshots

__all__ = ["promtool"]  # the fixture

DEPLOY = Path(__file__).parent.parent / "deploy"
RULES = DEPLOY / "prometheus-rules.yml"
RULE_TESTS = DEPLOY / "prometheus-rules.test.yml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())

#: Names of metrics in a query. Prometheus itself adds `up`.
METRIC = re.compile(r"\b(?:wrpc_keyvalue|process)_\w+")


#: The metrics that exist only with some options.
OPTIONAL = metrics_of_a_new_replica, metrics_of_new_snapshots, metrics_of_a_listener, metrics_of_exports


def exposed() -> dict[str, set[str]]:
    """Return all samples of a scrape, with their labels, also those of optional parts."""
    samples: dict[str, set[str]] = {}
    optional = [family for families in OPTIONAL for family in families()]
    for family in (*Pieces.of(Store()).registry().collect(), *optional):
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def check(program: str, *arguments: str) -> str:
    """Run promtool, which must find no fault. Return its output."""
    done = subprocess.run([program, *arguments], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Prometheus


def alerts() -> dict[str, str]:
    """Return the text of each rule by its name."""
    _, *parts = re.split(r"^ +- alert: (\w+)$", RULES.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_rules_and_scrape_configuration_are_valid(promtool: str) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in check(promtool, "check", "rules", RULES.name)
    assert "SUCCESS" in check(promtool, "test", "rules", RULE_TESTS.name)
    assert "1 rule files found" in check(promtool, "check", "config", "prometheus.yml")


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_to_do_and_is_tested_both_ways(name: str) -> None:
    text = alerts()[name]
    assert re.search(r"severity: (warning|critical)$", text, re.MULTILINE)
    assert re.search(r"\n        for: \d+[sm]\n", text)
    (summary,) = re.findall(r"summary: (.*)", text)
    assert len(summary) < 100
    assert "{{ $labels.instance }}" in summary
    description = " ".join(text.partition("description: >-")[2].partition("runbook_url:")[0].split())
    assert len(description) > 100
    assert "{{ $labels.instance }}" in description
    assert description.count(". ") + description.endswith(".") >= 2  # what is wrong, and what to do
    assert re.findall(r"runbook_url: (.*)", text) == [f"docs/observing.md#{name.lower()}"]
    tests = re.findall(rf"alertname: {name}\b(.*(?:\n +exp_alerts:)?)", RULE_TESTS.read_text())
    assert {"exp_alerts" in test for test in tests} == {True, False}  # tests that it fires, and that it does not


def test_every_alert_has_a_runbook() -> None:
    runbooks = re.split(r"^### ", (DEPLOY.parent / "docs" / "observing.md").read_text(), flags=re.MULTILINE)[1:]
    assert [runbook.partition("\n")[0] for runbook in runbooks] == list(alerts())
    for runbook in runbooks:
        assert "\n- " in runbook, "it says what to do"


def test_rules_use_existing_metrics() -> None:
    asked = {name for text in (RULES, RULE_TESTS) for name in METRIC.findall(text.read_text())}
    assert len(asked) > 9
    assert asked - exposed().keys() == set()


# Grafana


ROWS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] == "row"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS: list[str] = [target["expr"] for panel in PANELS for target in panel["targets"]]


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["schemaVersion"] >= 36  # after the import, a data source is named by an object
    assert DASHBOARD["title"]
    assert re.fullmatch(r"[\w-]{1,40}", DASHBOARD["uid"])
    for name in ("id", "title"):
        assert len({panel[name] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
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
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])


def test_the_dashboard_follows_the_rules_of_the_mixin_linter() -> None:
    """The rules of Grafana's dashboard-linter: https://github.com/grafana/dashboard-linter/tree/main/docs/rules"""
    assert DASHBOARD["editable"] is False
    job, instance = DASHBOARD["templating"]["list"][1:3]
    for variable in (job, instance):
        assert (variable["type"], variable["multi"], variable["allValue"]) == ("query", True, ".+")
        assert variable["refresh"] == 2  # when the time range changes
    assert (job["name"], instance["name"]) == ("job", "instance")
    for expression in EXPRESSIONS:
        selectors = re.findall(r"(\w+)\{([^}]*)\}", expression)
        assert len(selectors) == len(METRIC.findall(expression)) > 0
        for metric, labels in selectors:
            assert labels.startswith('job=~"$job", instance=~"$instance"')
            if metric.endswith("_total"):
                assert re.search(rf"(rate|increase)\({metric}\{{", expression), "a counter is not shown as it is"
        assert set(re.findall(r"\[([^\]]*)\]", expression)) <= {"$__rate_interval"}


def test_the_panels_are_in_rows() -> None:
    assert DASHBOARD["panels"][0] in ROWS
    titles = "Calls, Store, NATS, Watching, Snapshots, Replicated store, Redis clients, Spans and log"
    assert [row["title"] for row in ROWS] == titles.split(", ")
    for row, after in zip(ROWS, [*ROWS[1:], {"gridPos": {"y": 1_000}}], strict=True):
        height = range(row["gridPos"]["y"] + 1, after["gridPos"]["y"])
        assert any(panel["gridPos"]["y"] in height for panel in PANELS)


def test_the_dashboard_uses_existing_metrics_and_labels() -> None:
    found = exposed()
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    for query in (*EXPRESSIONS, *(variable["query"] for variable in variables)):
        names = set(METRIC.findall(query))
        assert names
        assert names - found.keys() == set(), query
        grouped = {label for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(", ")}
        assert grouped - {"instance"} <= set().union(*(found[name] for name in names)), query
    results = [result for query in EXPRESSIONS for result in re.findall(r'result=~"([^"]*)"', query)]
    assert results
    assert {result for group in results for result in group.split("|")} <= set(OUTCOMES)


def test_the_dashboards_expressions_are_valid(promtool: str, tmp_path: Path) -> None:
    lines = ["groups:", "- name: dashboard", "  rules:"]
    for number, expression in enumerate(EXPRESSIONS):
        expr = json.dumps(expression.replace("$__rate_interval", "1m"))
        lines += [f"  - record: panel_{number}", f"    expr: {expr}"]
    rules = tmp_path / "dashboard.yml"
    rules.write_text("\n".join(lines))
    assert f"SUCCESS: {len(EXPRESSIONS)} rules found" in check(promtool, "check", "rules", str(rules))


def test_the_dashboard_shows_the_important_metrics() -> None:
    expected = """
        operations_total  histogram_quantile(0.5,  histogram_quantile(0.99,  process_cpu_seconds_total
        wrpc_keyvalue_keys  wrpc_keyvalue_memory_bytes  wrpc_keyvalue_invocations_in_flight
        wrpc_keyvalue_half_open_invocations  wrpc_keyvalue_keyspace_hits_total  wrpc_keyvalue_nats_reconnects_total
    """
    optional = {family.name for families in OPTIONAL for family in families()}
    missing = [part for part in (*expected.split(), *optional) if not any(part in shown for shown in EXPRESSIONS)]
    assert missing == []


# wadm


def configured(place: dict[str, Any]) -> dict[str, str]:
    """Return the options of a place with named configurations."""
    return {name: text for config in place.get("config", ()) for name, text in config["properties"].items()}


def traits(part: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [trait["properties"] for trait in part["traits"] if trait["type"] == kind]


@pytest.fixture(scope="module", params=["wadm.yaml", "wadm-replicated.yaml"])
def manifest(request: pytest.FixtureRequest) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((DEPLOY / request.param).read_text())
    return manifest


@pytest.fixture(scope="module")
def parts(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return components and providers of the application, by name."""
    return {part["name"]: part for part in manifest["spec"]["components"]}


def test_the_manifest_is_an_application(manifest: dict[str, Any], parts: dict[str, dict[str, Any]]) -> None:
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (manifest["apiVersion"], manifest["kind"]) == ("core.oam.dev/v1beta1", "Application")
    assert re.fullmatch(r"[\w-]+", manifest["metadata"]["name"])
    assert manifest["metadata"]["annotations"].keys() == {"version", "description"}
    assert all(isinstance(text, str) for text in manifest["metadata"]["annotations"].values())
    assert len(parts) == len(manifest["spec"]["components"])
    assert [part["type"] for part in parts.values()] == ["component", "capability", "capability"]
    for part in parts.values():
        assert part.keys() == {"name", "type", "properties", "traits"}
        assert part["properties"].keys() <= {"image", "id", "config", "secrets"}
        assert part["properties"]["image"]
        (scaler,) = traits(part, "spreadscaler")
        assert scaler.keys() == {"instances"}
        assert scaler["instances"] > 0
        assert len(part["traits"]) == 1 + len(traits(part, "link"))


def test_links_of_the_manifest(parts: dict[str, dict[str, Any]]) -> None:
    links = {(name, link["target"]["name"]): link for name, part in parts.items() for link in traits(part, "link")}
    assert links.keys() == {("counter", "keyvalue"), ("http", "counter")}
    needed = {"namespace", "package", "interfaces", "target"}
    for link in links.values():
        assert needed <= link.keys() <= needed | {"name", "source"}
        assert link["target"].keys() <= {"name", "config", "secrets"}
        assert link.get("source", {}).keys() <= {"config", "secrets"}
    link = links["counter", "keyvalue"]
    assert (link["namespace"], link["package"]) == ("wasi", "keyvalue")
    assert set(link["interfaces"]) <= {"store", "atomics", "batch"}


def test_configurations_of_the_manifest_have_names_and_strings(parts: dict[str, dict[str, Any]]) -> None:
    links = [link for part in parts.values() for link in traits(part, "link")]
    places = [part["properties"] for part in parts.values()]
    places += [link.get(end, {}) for link in links for end in ("source", "target")]
    configs = [config for place in places for config in place.get("config", ())]
    assert len({config["name"] for config in configs}) == len(configs) == 3
    for config in configs:
        assert config.keys() == {"name", "properties"}
        assert all(isinstance(text, str) for text in config["properties"].values())


def test_options_of_the_manifest_are_accepted(parts: dict[str, dict[str, Any]]) -> None:
    options = configured(parts["keyvalue"]["properties"])
    provider = options_of(options)
    assert set(ProviderOptions().changed(provider)) == set(options)
    (link,) = traits(parts["counter"], "link")
    link_options = configured(link["target"])
    assert len(link_options) > 1
    assert LinkOptions.from_config(provider, link_options)[1] == []
    (scaler,) = traits(parts["keyvalue"], "spreadscaler")
    # With store = memory, several instances would answer from different keys.
    assert scaler == {"instances": 3 if provider.store == "jetstream" else 1}


def test_the_manifest_starts_the_archive_that_is_built(manifest: dict[str, Any]) -> None:
    wasmcloud = tomllib.loads((DEPLOY.parent / "wasmcloud.toml").read_text())
    (provider,) = (part for part in manifest["spec"]["components"] if part["name"] == "keyvalue")
    image = provider["properties"]["image"].removeprefix("file://")
    archive = (
        (DEPLOY / image).resolve().relative_to(DEPLOY.parent)
    )  # wash resolves the path from the manifest's directory
    assert archive.as_posix() == f"build/{wasmcloud['provider']['bin_name']}.par.gz"
    assert manifest["metadata"]["annotations"]["version"] == f"v{wasmcloud['version']}"
