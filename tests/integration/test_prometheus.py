"""A real Prometheus server scrapes a launched provider, evaluates the rules of deploy/, and answers queries."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, Process, in_thread, until
from tests.integration.test_metrics import ON, Endpoint
from tests.provider.observe.test_metrics import debian_program

RULES = Path(__file__).parent.parent.parent / "deploy" / "prometheus-rules.yml"
CONFIG = """\
global: {{ scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: keyvalue-inmemory
    static_configs: [{{ targets: ["{host}:{port}"] }}]
"""


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since Prometheus sees no difference."""


class Prometheus(Process):
    """A Prometheus server that scrapes one endpoint. It does not accept port 0, so it gets a port that was free."""

    def __init__(self, program: str, directory: Path, endpoint: Endpoint) -> None:
        config = directory / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES, host=endpoint.host, port=endpoint.port))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        arguments = (
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'series'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        )
        super().__init__(arguments, directory)

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the response of its HTTP interface."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", f"/api/v1/{path}?{urlencode(parameters)}")
            answer = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> dict[frozenset[tuple[str, str]], float]:
        """Return values by labels, without the labels that name their origin."""
        where = {"__name__", "job", "instance"}
        return {
            frozenset((name, value) for name, value in series["metric"].items() if name not in where): float(
                series["value"][1]
            )
            for series in self.ask("query", query=expression)["result"]
        }


Start = Callable[[Endpoint], Prometheus]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start Prometheus."""
    program = debian_program("prometheus")
    started: list[Prometheus] = []

    def start(endpoint: Endpoint) -> Prometheus:
        prometheus = Prometheus(program, tmp_path, endpoint)
        started.append(prometheus)
        prometheus.wait_for("Server is ready to receive web requests")
        return prometheus

    yield start
    for prometheus in started:
        prometheus.process.terminate()
        prometheus.wait()


async def test_prometheus_scrapes_answers_and_evaluates_the_rules(
    launch: Launch, nats_server: NatsServer, start: Start
) -> None:
    provider = launch(ON)
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        for number in range(7):
            await client.set("b", f"{number}", b"value")
        assert await client.get("b", "absent") is None
    prometheus = await in_thread(start, Endpoint.of(provider))

    async def scraped() -> bool:
        # Scrape twice, so that rates have two samples.
        count = await in_thread(prometheus.query, "count_over_time(wrpc_keyvalue_keys[1m]) >= 2")
        return bool(count)

    await until(scraped, "two scrapes")
    operations = await in_thread(prometheus.query, "wrpc_keyvalue_operations_total > 0")
    assert operations == {
        frozenset({("operation", "set"), ("protocol", "wrpc"), ("result", "ok")}): 7,
        frozenset({("operation", "get"), ("protocol", "wrpc"), ("result", "none")}): 1,
    }
    assert await in_thread(prometheus.query, "sum(wrpc_keyvalue_operation_duration_seconds_count)") == {frozenset(): 8}
    assert await in_thread(prometheus.query, "rate(wrpc_keyvalue_keyspace_misses_total[1m])") == {frozenset(): 0}
    assert await in_thread(prometheus.query, "count(wrpc_keyvalue_build_info)") == {frozenset(): 1}
    (target,) = (await in_thread(prometheus.ask, "targets"))["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")

    async def rules() -> list[dict[str, Any]]:
        (group,) = (await in_thread(prometheus.ask, "rules"))["groups"]
        found: list[dict[str, Any]] = group["rules"]
        return found

    async def evaluated() -> bool:
        up = await in_thread(prometheus.query, "up == 1")
        return bool(up) and all(rule["health"] == "ok" and rule["state"] == "inactive" for rule in await rules())

    await until(evaluated, "the rules are evaluated")
    assert {rule.get("lastError", "") for rule in await rules()} == {""}
