"""The state machine of the core finds each bug that is planted into the core."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.replica.test_core import Cluster
from tests.torture.planted import BUGS, planted

#: As many examples as `test_core.py` tries, without the search for a shorter one.
SETTINGS = settings(
    Cluster.TestCase.settings, phases=[Phase.generate], database=None, suppress_health_check=list(HealthCheck)
)
TEXTS = {
    "answer before apply": "a confirmed change is missing|a local mix",
    "wait for exactly S": "a call has no answer",
    "send again": "a change was stored twice",
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    with planted(bug), pytest.raises(AssertionError, match=TEXTS.get(bug, "a mix|a local mix|stale|is missing")):
        run_state_machine_as_test(seed(2)(Cluster), settings=SETTINGS)
