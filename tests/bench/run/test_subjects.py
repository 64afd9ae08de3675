"""Subjects: ours set options that there are, peers have names of their own."""

from __future__ import annotations

import pytest

from bench.run.subjects import DIRECT, EXPIRING, PLAIN, VARIANTS, peer
from tests.conftest import options_of


def test_subjects_set_options_that_there_are() -> None:
    """A provider passes over a name that it does not know, and then nothing would be measured."""
    for subject in (DIRECT, PLAIN, *VARIANTS):
        assert options_of(subject.config).ttl_ms == (3_600_000 if subject is EXPIRING else None)


@pytest.mark.parametrize(
    "text", ["", "name", "name=", "=command", "a b=command", "bare=command", "direct=command", "direct-stuck=command"]
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--peer: found"):
        peer(text)
