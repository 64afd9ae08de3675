"""Rounds in which two subjects take turns."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from bench.micro.turns import ROUNDS, in_turns


class Benchmark:
    """The part of pytest-benchmark's fixture that `in_turns` uses."""

    def __init__(self) -> None:
        self.extra_info: dict[str, float] = {}
        self.stats: Any = None

    def pedantic(
        self, act: Callable[..., None], setup: Callable[[], tuple[tuple[Any], dict[str, Any]]], rounds: int
    ) -> None:
        for _ in range(rounds):
            arguments, named = setup()
            act(*arguments, **named)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[1e-6] * rounds))


def test_the_first_subject_alternates_and_undo_follows_both() -> None:
    benchmark = Benchmark()
    done: list[tuple[str, int]] = []

    def note(what: str) -> Callable[[int], None]:
        return lambda turn: done.append((what, turn))

    in_turns(benchmark, 10, lambda turn: turn, note("own"), note("beside"), undo=note("undo"))  # type: ignore[arg-type]
    assert len(done) == 3 * ROUNDS
    for turn in range(ROUNDS):
        order = ["own", "beside"] if turn % 2 else ["beside", "own"]
        assert done[3 * turn : 3 * turn + 3] == [(what, turn) for what in [*order, "undo"]]
    assert benchmark.extra_info["store ns a call"] == 100
    assert benchmark.extra_info.keys() == {"store ns a call", "dict+lock ns a call", "ratio"}
