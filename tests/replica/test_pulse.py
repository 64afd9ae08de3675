"""A consumer is lost or late. Real servers that stand still: tests/integration/test_replicated_recovery.py."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from keyvalue_replica import pulse
from keyvalue_replica.pulse import why_lost
from keyvalue_replica.stream import Api
from keyvalue_transport.wrpc.errors import DisconnectedError


class Server:
    """A server that answers about a consumer as the test says, and the consumer."""

    def __init__(self, *answers: dict[str, Any] | None, has_pong: bool = True) -> None:
        self.answers = list(answers)
        self.heard_s = 0.0
        self._has_pong = has_pong

    async def flush(self, timeout_s: float) -> None:
        if not self._has_pong:
            raise DisconnectedError("no PONG")

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        assert subject == "$JS.API.CONSUMER.INFO.KV_b.c"
        answer = self.answers.pop(0)
        if answer is None:
            raise TimeoutError
        return json.dumps(answer).encode()


EXISTS = {"push_bound": True}
GONE = {"error": {"code": 404, "err_code": 10014, "description": "consumer not found"}}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"SILENCE_S": 0.02, "READING_S": 0.01, "STUCK_S": 0.2}.items():
        monkeypatch.setattr(pulse, name, seconds)


@pytest.mark.parametrize(
    ("answers", "tries", "why"),
    [
        ([EXISTS, EXISTS, GONE], 1, "the consumer is gone: consumer not found"),
        ([EXISTS, {}], 1, "nobody receives the deliveries of the consumer"),
        ([EXISTS, None], 1, "the consumer is silent: JetStream does not answer"),
        ([None, EXISTS, None, None], 2, "the consumer is silent: JetStream does not answer"),
        ([EXISTS] * 100, 1, "the consumer exists, but was silent for 0.2 s"),
    ],
)
async def test_why_it_is_lost(answers: list[dict[str, Any] | None], tries: int, why: str) -> None:
    server = Server(*answers)
    server.heard_s = asyncio.get_running_loop().time()
    found = await why_lost(server, Api(server), "KV_b.c", server, tries)
    assert found.startswith(why)
    assert len(server.answers) == 0 or "exists" in why


async def test_a_connection_without_an_answer_is_cut_off() -> None:
    server = Server(has_pong=False)
    assert await why_lost(server, Api(server), "KV_b.c", server) == "the consumer is silent: no PONG"


async def test_a_consumer_that_is_heard_while_the_server_is_asked_is_not_lost() -> None:
    server = Server(GONE, GONE, GONE)
    asking, ask = 0, server.request

    async def request(subject: str, payload: bytes, timeout_s: float) -> bytes:
        nonlocal asking
        asking += 1
        if asking < 3:
            server.heard_s = asyncio.get_running_loop().time()
        return await ask(subject, payload, timeout_s)

    server.request = request  # type: ignore[method-assign]
    await why_lost(server, Api(server), "KV_b.c", server)
    assert asking == 3
