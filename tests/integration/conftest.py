"""Fixtures that several modules share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import NoProviderError
from tests.conftest import PROVIDER, NatsServer, Process, until
from tests.log_lines import LogLines

Serve = Callable[..., Process]


@pytest.fixture(scope="module")
def jetstream_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream for the tests of a module."""
    directory = tmp_path_factory.mktemp("nats")
    server = NatsServer(directory, f"jetstream {{ store_dir: {json.dumps(str(directory))} }}\n")
    yield server
    server.stop()


@pytest.fixture
async def log_lines() -> AsyncIterator[LogLines]:
    """Collect the lines that the transport logs."""
    with LogLines.of("keyvalue_transport") as lines:
        yield lines


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start `keyvalue-inmemory serve` with flags and an environment.

    `shell` is a command of bash that runs it as "$@".
    """
    started: list[Process] = []

    def start(*flags: str, shell: str = "", **environment: str) -> Process:
        command: list[str | Path] = [PROVIDER, "serve", *flags]
        if shell:
            command = ["bash", "-c", shell, "bash", *command]
        process = Process(command, tmp_path, environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


async def until_it_serves(client: KeyValueClient) -> None:
    """Return once a provider answers the client's calls."""

    async def answers() -> bool:
        try:
            await client.exists("bucket", "key")
        except NoProviderError:
            return False
        return True

    await until(answers, "the provider serves")
