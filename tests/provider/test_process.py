"""The ailments of a running provider, on a connection that was never opened.

tests/integration tests whole processes.
"""

from __future__ import annotations

import asyncio

import pytest

from keyvalue_provider import process
from keyvalue_provider.config.start_plan import plan_hosted, resolve_host
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.links import Links
from keyvalue_provider.keyvalue.memory_return import MemoryReturn
from keyvalue_provider.live_configuration import LiveConfiguration
from keyvalue_provider.observe.exports import Exports
from keyvalue_transport.nats.connection import Connection


@pytest.mark.usefixtures("root")
async def test_ailments_are_of_connection_background_tasks_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(self: MemoryReturn) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(MemoryReturn, "run", die)
    host_data = HostData()
    configuration = resolve_host(host_data, {}, {})
    plan = plan_hosted(host_data, configuration, {})
    parts = process._compose(
        plan, configuration.options, Connection(plan.connection), Links(""), None, Exports(None, None)
    )
    provider = process.RunningProvider(parts, LiveConfiguration(plan, configuration))
    assert provider.health().ailments == ["NATS is not connected"]
    await asyncio.wait([parts.background[-1]])
    provider.refuse_configuration("found an array")
    provider.configure({"page_keys": "none"})
    dead = "a background task died: ZeroDivisionError"
    fault = "config: page_keys: found 'none', allowed a whole number from 1"
    assert provider.health().ailments == ["NATS is not connected", dead, fault]
    provider.configure({"require_link": "true"})
    assert provider.health().ailments == ["NATS is not connected", dead]
    assert parts.policy.linkless.right.value == "denied"
