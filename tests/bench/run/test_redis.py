"""The scenario redis against real servers, and without them."""

from __future__ import annotations

import pytest

from bench.run.redis import redis
from bench.run.scenarios import SCENARIOS, redis_cases
from bench.run.stage import Extent, NotAvailableError, Stage
from bench.run.subjects import OWN
from tests.provider.observe.test_metrics import debian_program

SUBJECTS = [OWN[name] for name in SCENARIOS["redis"].subjects]
EXTENT = Extent(1, 0.01, [], 1, 1)


def test_each_case_is_measured_with_both_servers(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    debian_program("redis-benchmark", "redis-tools")
    monkeypatch.setattr("bench.run.redis.ROUNDS", 1)
    rows = list(redis(stage, "redis", SUBJECTS, EXTENT))
    assert {(row.case, row.subject) for row in rows} == {
        (case, subject.name) for case in redis_cases() for subject in SUBJECTS
    }
    assert all(min(row.figures.values()) > 0 for row in rows)


def test_without_redis_the_scenario_is_not_available(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NotAvailableError, match="redis-server, redis-benchmark is missing: apt-get install"):
        next(redis(stage, "redis", SUBJECTS, EXTENT))
