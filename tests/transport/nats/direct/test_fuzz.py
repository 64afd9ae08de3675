"""Runs of the fuzz test, which find no difference, and a fault that it does find."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from keyvalue_transport.nats.direct import alike
from tests.transport.nats.direct.fuzz import direct, new_case, run

FRAMES = 30_000


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Turn off the log, since links are malformed and handlers fail."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.bulk
def test_no_difference_is_found() -> None:
    assert run(FRAMES, seed=1) == ""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(2, 6))
def test_no_difference_is_found_in_a_long_run(seed: int) -> None:
    assert run(100_000, seed) == ""


def test_cases_hold_every_outcome(loop: asyncio.AbstractEventLoop) -> None:
    """The ways must agree on every kind of outcome, such as parameters that a further piece completes."""
    counts = Counter[str]()
    for number in range(60):
        counts.update(direct(loop, new_case(1, number), together=True).counts)
    assert {name for name, number in counts.items() if number < 20} == {"expired"}


@pytest.mark.bulk
def test_a_fault_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "CR", b"\x00")  # a reply subject may reach into the next line
    assert " differ" in run(FRAMES, seed=1)
