"""A short run of the fuzz, which finds no difference and would find one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from keyvalue_transport.nats.direct import alike
from keyvalue_transport.nats.direct.alike import Alike
from keyvalue_transport.nats.direct.routes import DirectRoutes
from tests.transport.nats.direct.fuzz import run

FRAMES = 40_000


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Log nothing: links are malformed, and handlers fail."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_no_difference_is_found() -> None:
    assert run(FRAMES, seed=1) == ""


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (alike, "CR", b"\x00"),  # a reply subject may reach into the next line
        (DirectRoutes, "settle", lambda routes: None),  # calls do not wait for links
        (Alike, "pause", lambda alike: None),  # nor do those of a shape
    ],
)
def test_faults_are_found(where: object, name: str, fault: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, name, fault)
    assert " differ" in run(FRAMES, seed=1)
