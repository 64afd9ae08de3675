"""The command line of `scripts/torture`, a short hostile run, and how the figures are judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

import pytest

from tests.torture import hostile
from tests.torture.__main__ import COMMANDS, main
from tests.torture.calls import TTL_MS, Calls, Phase, phases
from tests.torture.figures import MIB, Bars, Figures, Sample

#: No provider keeps the first two. Falls are not judged, because freed memory is returned up to a second later.
IMPOSSIBLE = Bars(growth_ratio=0, growth_slack_bytes=-(2**40), fall_bytes_min=2**40)


def test_the_help_names_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)
    assert main(["no-such-command"]) == 2


def test_a_short_run_reports_its_figures_and_a_missed_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """Run all kinds of phases against a real provider, with a bar that no provider keeps."""
    words = "--seconds 6 --phase-seconds 0.9 --buckets 20 --memory-mb 32"
    assert hostile.main(words.split(), IMPOSSIBLE) == 1
    text = capsys.readouterr().out
    answered, careful, health = (
        int(re.search(pattern, text)[1])  # type: ignore[index]
        for pattern in (r"flood: (\d+) calls answered", r"careful caller: (\d+) calls", r"health probe: (\d+) req")
    )
    assert min(answered, careful, health) > 0, text
    missed = text.partition("missed bars\n")[2].splitlines()
    assert missed, text
    assert all("RSS grew by" in line for line in missed), text


def test_the_seed_decides_the_sequence_of_calls() -> None:
    def sequence(seed: int) -> list[object]:
        calls = Calls(seed, buckets=10, survivors=0.5)
        kinds: Iterator[tuple[int, Phase]] = enumerate(islice(phases(), 9))
        return [list(islice(calls.phase(number, phase), 300)) for number, phase in kinds]

    assert sequence(1) == sequence(1) != sequence(2)


def sample(at_s: float, kind: str, number: int, growth: int = 0, counted: int = 0, keys: int = 0) -> Sample:
    """Return a sample of a provider with 100 MiB when it was ready, and 1,000 answers a second. Sizes are in MiB."""
    answered = int(at_s * 1000)
    return Sample(at_s, Phase(kind), number, answered, (100 + growth) * MIB, counted * MIB, keys, 0, True)


@pytest.mark.parametrize(
    ("samples", "missed"),
    [
        ([sample(60, "grow", 0, growth=166, counted=100)], []),
        (
            [sample(60, "grow", 0, growth=167, counted=100)],
            ["at 60 s (grow tiny): RSS grew by 167.0 MiB; the limit is"],
        ),
        ([sample(1, "grow", 0, 99, 99), sample(2, "delete", 1, 98, 60)], []),
        ([sample(1, "grow", 0, 99, 99), sample(2, "delete", 1, 99, 60)], ["at 2 s: deletions took the counted memory"]),
        ([sample(1, "delete", 0, keys=9), *(sample(at, "ttl", 1, keys=9 + 740) for at in (2, 3, 4, 5))], []),
        (
            [sample(1, "delete", 0, keys=9), *(sample(at, "ttl", 1, keys=9 + 760) for at in (2, 3, 4, 5))],
            ["at 5 s (ttl): 760 keys are held; the limit is 750 at 1000 sets/s"],
        ),
        ([sample(1, "grow", 0)._replace(reconnects=2)], ["the provider lost its NATS connection 2 times"]),
        ([sample(at, "grow", 0)._replace(answered=1) for at in (1, 40)], ["the flood got no answer for 39 s"]),
        ([], ["no sample was taken"]),
    ],
)
def test_each_bar_is_judged(samples: list[Sample], missed: list[str]) -> None:
    assert TTL_MS == 500
    figures = Figures(Bars(), ready_bytes=100 * MIB)
    figures.careful.add(0.1)
    figures.health.add(0.1)
    for each in samples:
        figures.add(each)
    figures.end()
    unique = list(dict.fromkeys(figures.missed))
    assert len(unique) == len(missed), figures.missed
    assert all(found.startswith(expected) for found, expected in zip(unique, missed, strict=True)), unique


def test_an_unanswered_call_misses_a_bar() -> None:
    figures = Figures(Bars(), ready_bytes=100 * MIB)
    figures.careful.add(0.1)
    figures.careful.faults.append("set after 30.0 s: no answer")
    figures.add(sample(1, "grow", 0))
    figures.end()
    assert figures.missed == [
        "the careful caller: 1 of 1 calls; the first: set after 30.0 s: no answer",
        "the health probe made no call",
    ]
