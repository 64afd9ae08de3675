"""A short history of a replicated store on three real servers, with faults."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from keyvalue_transport.wrpc.errors import NoProviderError, TransportError
from tests.conftest import DEADLINE_S
from tests.torture import linearizability, replicated
from tests.torture.faults import INSTANCES, Happened
from tests.torture.linearizability import UNKNOWN, Call
from tests.torture.planted import BUGS
from tests.torture.replicated import History, is_found, main, record


@pytest.mark.timeout(180)
async def test_a_short_history_under_faults_is_linearizable(tmp_path: Path) -> None:
    history = await record(tmp_path, seed=3, calls=150, seconds=8)
    assert history.failure() is None
    assert len(history) > 500
    assert history.unknown < len(history) / 2
    assert len(history.faults) >= 3
    answered = {call.function for calls in history.calls.values() for call in calls if call.result != UNKNOWN}
    assert answered >= {"get", "set", "delete", "increment", "set-missing", "take", "replace", "remove"}


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("bug", "seed", "text"),
    [
        ("apply out of order", 1, "NOT LINEARIZABLE|WRONG LOCAL READ"),
        ("batch in halves", 5, "has a part of a batch"),  # a history with all messages of a key
    ],
)
def test_a_planted_bug_of_real_processes_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bug: str, seed: int, text: str
) -> None:
    words = f"--seed {seed} --calls 160 --seconds 8 --histories 7 --output {tmp_path} --planted"
    code, printed = main([*words.split(), bug]), capsys.readouterr().out
    assert code == 0, printed
    assert re.search(text, printed), printed
    assert len(list(tmp_path.glob("history-*/calls.jsonl"))) == 1


@pytest.mark.parametrize("error", [NoProviderError("refused"), TransportError("no answer")])
async def test_a_history_ends_although_an_instance_never_answers(
    monkeypatch: pytest.MonkeyPatch, error: TransportError
) -> None:
    class Hanging:
        async def ask(self, key: str, function: str, argument: Any) -> Any:
            raise error

    @asynccontextmanager
    async def calling(*_: object) -> AsyncIterator[list[Hanging]]:
        yield [Hanging()] * INSTANCES

    async def nothing(*_: object) -> None:
        """Do nothing."""

    for name, value in {"calling": calling, "write_others": nothing, "read_locally": nothing}.items():
        monkeypatch.setattr(replicated, name, value)
    monkeypatch.setattr(replicated, "REPAIR_S", 0.2)
    monkeypatch.setattr(replicated, "SETTLED_S", 0.0)
    scene: Any = SimpleNamespace()
    history = History()
    async with asyncio.timeout(DEADLINE_S):
        await replicated.settle(scene, history, 1, False)
    assert "NOT ANSWERED" in str(history.failure())


def test_a_history_with_too_many_orders_is_not_decided() -> None:
    history = History()
    sets = [Call("set", number, argument=b"%d" % number, result=UNKNOWN) for number in range(40)]
    gets = [Call("get", 100 + number, 200 + number, result=b"%d" % number) for number in range(40)]
    history.calls["a"] += [*sets, *gets]
    began_s = monotonic()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linearizability, "STEPS_MAX", 10_000)
        assert str(history.failure()).startswith("NOT DECIDED: key a: no result after 10000 steps")
    assert monotonic() - began_s < DEADLINE_S


def test_a_missing_answer_shows_only_the_bugs_that_leave_answers_out() -> None:
    for failure in ("WRONG LOCAL READ: instance 1", "NOT LINEARIZABLE: key a"):
        assert all(is_found(failure, bug) for bug in (None, *BUGS))
    for failure in ("NOT ANSWERED: 2 calls", "NOT SERVING: instance 1"):
        assert [bug for bug in (None, *BUGS) if is_found(failure, bug)] == [None, "wait for exactly S"]
    assert not any(is_found(None, bug) for bug in (None, *BUGS))


def test_a_failed_history_is_kept(tmp_path: Path) -> None:
    history = History()
    history.hanging = 1
    assert history.failure() == "NOT SERVING: instance 1"
    history.unsettled = 2
    assert history.failure() == "NOT ANSWERED: 2 calls, although nothing was broken"
    history.calls["a"] += [Call("set", 0, 1, b"1"), Call("get", 2, 3, None, b"2")]
    assert str(history.failure()).startswith("NOT LINEARIZABLE: key a: Call(function='get', began_s=2,")
    history.wrong.append("instance 1 has a part of a batch")
    assert history.failure() == "WRONG LOCAL READ: instance 1 has a part of a batch"
    history.faults.append(Happened(0, 1, "connection cut", 2))
    history.logs["0-instance-0"] = "a line"
    history.save(tmp_path / "history-1")
    names = {path.name: path.read_text() for path in (tmp_path / "history-1").iterdir()}
    assert names["calls.jsonl"].count('"key": "a"') == 2
    assert json.loads(names["faults.jsonl"])["name"] == "connection cut"
    assert names["0-instance-0.log"] == "a line"
