"""The states that systemd is told, over a real socket: by a real process, and at addresses that do not work."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from keyvalue_provider.systemd import READY, STOPPING, tell_systemd
from tests.conftest import DEADLINE_S, Launch
from tests.log_lines import LogLines


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """Return a socket in the place of systemd's, and its name in NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@keyvalue-inmemory-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name.replace("@", "\0"))
        heard.settimeout(DEADLINE_S)
        yield heard, name


def test_a_provider_tells_that_it_serves_and_that_it_stops(
    listening: tuple[socket.socket, str], launch: Launch
) -> None:
    heard, name = listening
    provider = launch(environment={"NOTIFY_SOCKET": name})
    assert heard.recv(64) == READY.encode()
    provider.stop()
    assert heard.recv(64) == STOPPING.encode()
    heard.setblocking(False)
    with pytest.raises(BlockingIOError):
        heard.recv(64)


def test_an_address_that_does_not_work_is_no_reason_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with LogLines.of("keyvalue_provider") as log:
        for address in (str(tmp_path / "absent"), "/" + "x" * 200, "relative"):
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            tell_systemd(READY)
        assert len(log.lines) == 3
        assert all(line.startswith("WARNING systemd was not told READY=1: ") for line in log.lines)
        monkeypatch.setenv("NOTIFY_SOCKET", "")
        tell_systemd(READY)
        monkeypatch.delenv("NOTIFY_SOCKET")
        tell_systemd(READY)
        assert len(log.lines) == 3
