"""A stage for the tests of a module, and a provider on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.run.processes import ProviderProcess
from bench.run.stage import Stage
from bench.run.subjects import DIRECT


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module")
def direct(stage: Stage) -> ProviderProcess:
    return stage.launch(DIRECT)
