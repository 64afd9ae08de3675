"""Changes that an instance makes to a stream when it opens it. Real servers: tests/integration/test_replicated.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from keyvalue_replica.errors import StreamError
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.stream import IMPORT, SECRET, open_stream, stream_state
from tests.replica.test_follower import CONFIG


class OneStream:
    """The JetStream API of a server with one stream.

    :ivar config: its configuration
    :ivar later: metadata that another client sets after the first call
    """

    def __init__(self, metadata: Mapping[str, str], later: Mapping[str, str]) -> None:
        self.config: dict[str, Any] = CONFIG | {"metadata": metadata}
        self.later = later

    async def call(self, name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        if name.startswith("STREAM.UPDATE."):
            self.config = parameters or {}
        answer = {"created": "then", "ts": "2026-01-01T00:00:01Z", "config": self.config, "state": {"last_seq": 0}}
        later, self.later = self.later, {}
        self.config = self.config | {"metadata": self.config["metadata"] | later}
        return answer


@pytest.mark.parametrize(
    "later", [{}, {IMPORT: "abc", SECRET: "01" * 16}, {SECRET: "01" * 16}, {"note": "of another program"}]
)
async def test_a_change_keeps_what_others_have_changed_meanwhile(later: dict[str, str]) -> None:
    api, layout = OneStream({}, later), Layout("kv")
    try:
        state = await open_stream(cast(Any, api), layout, ReplicaOptions("kv"))
    except StreamError as error:
        assert IMPORT in later, error
        assert "holds a part of a snapshot" in str(error)
    else:
        assert IMPORT not in later
        assert state == await stream_state(cast(Any, api), layout)
    assert api.config["metadata"].items() >= later.items()
    assert IMPORT in later or SECRET in api.config["metadata"]
