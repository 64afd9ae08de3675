"""Old barriers are removed from a stream in which nothing expires, but never one that somebody may wait for."""

from __future__ import annotations

import json

import pytest

from keyvalue_replica import old_barriers
from keyvalue_replica.layout import BARRIER_S, Layout
from keyvalue_replica.old_barriers import OldBarriers
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.stream import Api


class Requested:
    """Remembers the requests to JetStream. They are refused if `refuses` is set."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, object]] = []
        self.refuses = False

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        self.requests.append((subject, json.loads(payload)))
        return b'{"error": {"err_code": 10110, "description": "no"}}' if self.refuses else b"{}"


@pytest.fixture
def time_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time_s = [0.0]
    monkeypatch.setattr(old_barriers, "monotonic", lambda: time_s[0])
    return time_s


async def test_barriers_before_the_last_noted_sequence_are_removed(
    time_s: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    requested, layout = Requested(), PlainLayout("kv", b"kv", "hub")
    layout.allow(ttl=False, batches=False)
    barriers = OldBarriers(Api(requested, "hub"), layout)
    for applied in (10, 20, 30):
        await barriers.remove(applied)  # too early
        time_s[0] += BARRIER_S
        await barriers.remove(applied)
    subject = "$JS.hub.API.STREAM.PURGE.KV_kv"
    assert requested.requests == [(subject, {"filter": "$KV.kv._kv.wrpc.>", "seq": before}) for before in (10, 20)]
    requested.refuses = True
    time_s[0] += BARRIER_S
    await barriers.remove(40)
    assert "old barriers stay in KV_kv: no" in caplog.text
    assert barriers.removal_of("a1").endswith(b'{"filter": "$KV.kv._kv.wrpc.a1"}\r\n')


@pytest.mark.parametrize("layout", [Layout("kv"), PlainLayout("kv", b"kv")])
async def test_where_messages_expire_the_server_removes_them(time_s: list[float], layout: Layout) -> None:
    requested = Requested()
    barriers = OldBarriers(Api(requested), layout)
    for applied in (10, 20, 30):
        time_s[0] += BARRIER_S
        await barriers.remove(applied)
    assert (requested.requests, barriers.removal_of("a1")) == ([], b"")
