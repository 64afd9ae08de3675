"""An idle provider hardly wakes up. A wake-up costs CPU time, and most providers of a host are idle most of the time."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import NatsServer, launching
from tests.integration.conftest import Serve

#: About twice of what was measured. The replicated store also gets heartbeats, and looks at its stream.
WAKES_PER_S_MAX = {"memory": 10, "jetstream": 24}
WATCHED_S = 3.0


def wakes(pid: int) -> int:
    """Return how often the threads of a process have waited."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for status in statuses)


def wakes_per_s(pid: int) -> float:
    """Watch a process for a while. Return the number of its wake-ups in a second."""
    time.sleep(1)  # what a start leaves to be done soon
    before, began_s = wakes(pid), time.monotonic()
    time.sleep(WATCHED_S)
    return (wakes(pid) - before) / (time.monotonic() - began_s)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"transport": "plain"},
        {"redis_address": "127.0.0.1:0"},
        {"store": "jetstream"},
        {"store": "jetstream", "keys": "plain"},
    ],
    ids=lambda config: " ".join(config.values()) or "memory",
)
def test_an_idle_provider_hardly_wakes_up(
    jetstream_server: NatsServer, tmp_path: Path, config: Mapping[str, str]
) -> None:
    most = WAKES_PER_S_MAX[config.get("store", "memory")]
    with launching(jetstream_server.url, tmp_path, options={"metrics_address": "127.0.0.1:0"}) as launch:
        assert wakes_per_s(launch(config).process.pid) <= most


def test_an_idle_provider_without_a_host_hardly_wakes_up(serve: Serve, nats_server: NatsServer) -> None:
    process = serve("--nats", nats_server.url, "--prefix", "a.idle")
    process.wait_for("ready: serving")
    assert wakes_per_s(process.process.pid) <= WAKES_PER_S_MAX["memory"]
