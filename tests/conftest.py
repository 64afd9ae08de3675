"""Fixtures for whole processes: a real NATS server, the provider launched as a host does it, and invocations by hand.

Every process writes its log to a pipe that a thread reads, so that a test waits for a line and never for a time. The
system chooses the ports.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Protocol

import nats
import pytest
from hypothesis import settings
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from keyvalue_provider.config.options import ProviderOptions
from keyvalue_provider.config.sources import host_settings, resolve
from keyvalue_transport.keyvalue.store import STORE
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject, params_subject, results_subject

# An example may take as long as a loaded machine needs. Benchmarks measure times.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

#: Seconds to wait for anything that must happen. It only ends a hang, since a loaded machine is slow.
DEADLINE_S = 30.0
SCRIPTS = Path(sys.executable).parent
PROVIDER = SCRIPTS / "keyvalue-inmemory"
NATS_SERVER = SCRIPTS / "nats-server"
#: The data that a real host wrote and published. See the file's `about`.
TESTS = Path(__file__).parent
#: The folders of tests that show what is covered of engine and transport.
COVERING = ("engine", "transport", "hostile", "integration")
HOST_CAPTURE: dict[str, Any] = json.loads((TESTS / "vectors" / "host_1_9_2_spawn.json").read_text())
HOST_ID: str = HOST_CAPTURE["host_data"]["host_id"]

#: Variables that make coverage follow into a process. Only providers that a module shares get them, because coverage
#: doubles the time of a start.
MEASURED: dict[str, str] = {}
if "PYTEST_XDIST_WORKER" in os.environ:
    MEASURED |= {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("COVERAGE_PROCESS_")}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell lets its background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the long tests first, so that no process waits at the end while another one runs a long test."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Run long and bulk tests without coverage, and those of other folders than `COVERING`.

    They take two to five times as long with it, and others cover the same.
    """
    trace = sys.gettrace()
    is_covering = item.path.relative_to(TESTS).parts[0] in COVERING
    if trace is None or (is_covering and not any(item.get_closest_marker(name) for name in ("long", "bulk"))):
        return (yield)
    sys.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(trace)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape a test's log so that it can be sent between processes: it may contain half of a surrogate pair."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


Environment = Mapping[str, str]


class Process:
    """A process and its output (standard output and error in one)."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        cwd: Path,
        environment: Environment | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self.process = subprocess.Popen(
            arguments, cwd=cwd, env=environment, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        self._lines: list[str] = []
        self._ended = False
        self._changed = Condition()
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """Return the whole output so far."""
        with self._changed:
            return "".join(self._lines)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_for(self, text: str, times: int = 1) -> str:
        """Return the n-th line that contains the text (`times`), once it is written."""

        def found() -> list[str]:
            return [line for line in self._lines if text in line][times - 1 :]

        with self._changed:
            self._changed.wait_for(lambda: found() or self._ended, DEADLINE_S)
            lines = found()
        assert lines, f"{text!r} was not written {times} times, but:\n{self.output}"
        return lines[0]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        """Return the exit code, after reading the rest of the output."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        assert not self._reader.is_alive(), "another process holds the pipe of its output"
        return code

    def kill(self) -> None:
        """Send SIGKILL, and read the rest of the output. Do nothing if it has ended."""
        self.process.kill()
        self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            for line in pipe:
                with self._changed:
                    self._lines.append(line.decode(errors="backslashreplace"))
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class NatsServer:
    """A real NATS server on a port that the system chose. It keeps the port when it is restarted.

    :param config: text of its configuration file
    """

    def __init__(self, directory: Path, config: str = "") -> None:
        self._directory = directory
        self._config = directory / "nats.conf"
        self._config.write_text(config)
        self.port = -1
        self.start()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self, config: str | None = None) -> None:
        """Start, and wait until it accepts connections. Without a configuration, use the previous one."""
        if config is not None:
            self._config.write_text(config)
        arguments = (NATS_SERVER, "-a", "127.0.0.1", "-p", str(self.port), "-c", self._config)
        self._process = Process(arguments, self._directory)
        line = self._process.wait_for("Listening for client connections on")
        port = re.search(r":(\d+)\s*$", line)
        assert port is not None, line
        self.port = int(port[1])
        self._process.wait_for("Server is ready")
        socket.create_connection(("127.0.0.1", self.port), DEADLINE_S).close()

    @property
    def output(self) -> str:
        """Return its log since the last start."""
        return self._process.output

    def wait_for(self, text: str, times: int = 1) -> str:
        """Return the n-th line of its log that contains the text (`times`), once it is written."""
        return self._process.wait_for(text, times)

    def reload(self, config: str) -> None:
        """Load another configuration while it runs."""
        self._config.write_text(config)
        reload = (NATS_SERVER, "--signal", f"reload={self._process.process.pid}")
        subprocess.run(reload, check=True, capture_output=True, timeout=DEADLINE_S)
        self._process.wait_for("Reloaded server configuration")

    @contextmanager
    def silence(self) -> Iterator[None]:
        """Stop it for a while, as if a network dropped everything: connections stay open, and no answer arrives."""
        self._process.signal(signal.SIGSTOP)
        os.waitpid(self._process.process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            self._process.signal(signal.SIGCONT)

    def kill(self, wait: bool = True) -> None:
        """Kill it, as in a crash."""
        self._process.signal(signal.SIGKILL)
        if wait:
            self._process.wait()

    def stop(self) -> None:
        if self._process.running:
            self._process.process.terminate()
        self._process.wait()


class Provider(Process):
    """The provider's process. Its standard input gets host data as a host writes it, and is then closed."""

    def __init__(
        self,
        host_data: Mapping[str, Any],
        cwd: Path,
        environment: Environment,
        command: Sequence[str | Path] = (PROVIDER,),
    ) -> None:
        self.host_data = host_data
        self.key: str = host_data["provider_key"]
        self.prefix = f"{host_data['lattice_rpc_prefix']}.{self.key}"
        super().__init__(command, cwd, environment, subprocess.PIPE)
        assert self.process.stdin is not None
        with self.process.stdin as pipe:
            pipe.write(host_data_line(host_data))

    def subject(self, function: str) -> str:
        """Return the subject of a function of its store."""
        return invocation_subject(self.prefix, STORE, function)

    def host_subject(self, rest: str) -> str:
        """Return a subject on which the host speaks to it."""
        return f"wasmbus.rpc.{self.host_data['lattice_rpc_prefix']}.{self.key}.{rest}"

    def stop(self) -> int:
        """Send SIGTERM. Return the exit code."""
        self.process.terminate()
        return self.wait()


def host_data_line(host_data: Mapping[str, Any]) -> bytes:
    """Return host data as a host writes it."""
    return base64.b64encode(json.dumps(host_data).encode()) + b"\r\n"


def free_port() -> int:
    """Return a port of the loopback address that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Launch(Protocol):
    """Launches a provider and waits until it serves. Keywords override fields of the captured host data."""

    def __call__(
        self,
        config: Mapping[str, str] | None = None,
        *,
        environment: Environment | None = None,
        wait: bool = True,
        **fields: object,
    ) -> Provider: ...


KEYS = (f"kv-{number}" for number in count())
#: The transport's two paths, which behave the same.
PATHS = ("plain", "direct")


@contextmanager
def launching(
    nats_url: str, cwd: Path, command: Sequence[str | Path] = (PROVIDER,), options: Mapping[str, str] | None = None
) -> Iterator[Launch]:
    """Launch providers at a NATS server, each under its own key.

    Stop those that still run; the test fails if one does not stop in order.

    :param command: starts a provider
    :param options: the configuration of all providers; each may override it
    """
    launched: list[Provider] = []

    def launch(
        config: Mapping[str, str] | None = None,
        *,
        environment: Environment | None = None,
        wait: bool = True,
        **fields: object,
    ) -> Provider:
        host_data = HOST_CAPTURE["host_data"] | {
            "lattice_rpc_url": nats_url,
            "provider_key": next(KEYS),
            "link_definitions": [],
            "config": {**(options or {}), **(config or {})},
            **fields,
        }
        provider = Provider(host_data, cwd, {} if environment is None else environment, command)
        launched.append(provider)
        if wait:
            provider.wait_for("ready: serving")
        return provider

    try:
        yield launch
        codes = [provider.stop() if provider.running else 0 for provider in launched]
        assert codes == [0] * len(launched), "".join(provider.output for provider in launched)
        for provider in launched:
            provider.wait()
            assert "Traceback" not in provider.output, provider.output
    finally:
        for provider in launched:
            provider.kill()


class RawInvocation:
    """One invocation, message by message, for cases that no client produces. Begin with `begin`."""

    def __init__(self, client: Client, reply: str, handshakes: Subscription, results: Subscription) -> None:
        self.reply = reply
        self._client = client
        self._handshakes = handshakes
        self._results = results

    @classmethod
    async def begin(
        cls, client: Client, subject: str, piece: bytes, headers: dict[str, str] | None = None
    ) -> RawInvocation:
        """Subscribe, and send the first piece of the parameters."""
        reply = client.new_inbox()
        invocation = cls(client, reply, await client.subscribe(reply), await client.subscribe(results_subject(reply)))
        await client.publish(subject, piece, reply, headers)
        await client.flush()
        return invocation

    async def handshake(self) -> str:
        """Return the server's inbox."""
        message = await self._handshakes.next_msg(DEADLINE_S)
        assert message.data == b""
        return str(message.reply)

    async def taken(self) -> bool:
        """Return True if a server took it.

        The first reply shows it: a handshake, or NATS' message that nobody listens.
        """
        message = await self._handshakes.next_msg(DEADLINE_S)
        return not (message.headers and message.headers.get("Status") == "503")

    async def send(self, server_inbox: str, *pieces: bytes) -> None:
        """Send further pieces of the parameters."""
        for piece in pieces:
            await self._client.publish(params_subject(server_inbox), piece)
        await self._client.flush()

    async def result(self) -> bytes:
        """Return the whole result, up to the message that ends it."""
        pieces = []
        while piece := (await self._results.next_msg(DEADLINE_S)).data:
            pieces.append(piece)
        return b"".join(pieces)

    @property
    def unread(self) -> tuple[int, int]:
        """Return the numbers of handshakes and of result messages that arrived and were not read."""
        return self._handshakes.pending_msgs, self._results.pending_msgs


async def settled(client: Client) -> None:
    """Return once the server has received all that was sent.

    nats-py's flush overtakes output that still waits to be written. A second flush does not.
    """
    await client.flush()
    await client.flush()


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start the NATS server for all tests that need none of their own."""
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture
def new_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], NatsServer]]:
    """Return a function that starts a separate NATS server for the test, with a configuration."""
    servers = []

    def start(config: str = "") -> NatsServer:
        server = NatsServer(tmp_path_factory.mktemp("nats"), config)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module", params=PATHS)
def path(request: pytest.FixtureRequest) -> str | None:
    """Choose the transport's path of `provider`.

    A module that does not depend on it overrides this with None, the default.
    """
    path: str = request.param
    return path


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    """Return a function that launches providers, on the default path unless their configuration names another."""
    with launching(nats_server.url, tmp_path) as launch:
        yield launch


@pytest.fixture(scope="module")
def provider(nats_server: NatsServer, path: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provider]:
    """Launch one provider for all tests of a module that need none of their own."""
    with launching(nats_server.url, tmp_path_factory.mktemp("provider")) as launch:
        config = {"stop_timeout_ms": "500"} | ({} if path is None else {"transport": path})
        yield launch(config, environment=MEASURED)


@pytest.fixture
async def client(nats_server: NatsServer, provider: Provider) -> AsyncIterator[KeyValueClient]:
    """Open a client of `provider`."""
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        yield client


@pytest.fixture
async def raw(nats_server: NatsServer) -> AsyncIterator[Client]:
    """Open a NATS client that uses none of our code."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


Naming = Callable[[str], str]


@pytest.fixture(scope="session")
def named() -> Naming:
    """Return a function that turns a name into one that the store under test allows. Most stores allow every name.

    A module overrides this fixture for a store that does not.
    """
    return lambda name: name


@pytest.fixture
def bucket(request: pytest.FixtureRequest, named: Naming) -> str:
    """Return the name of a bucket that no other test uses."""
    return named(request.node.name)[:200]


#: A caller that a host names.
COMPONENT = "component"
Connect = Callable[..., Awaitable[KeyValueClient]]


@asynccontextmanager
async def connecting(url: str) -> AsyncIterator[Connect]:
    """Yield a function that connects as a caller with these headers, by default the component's.

    All clients are closed at the end.
    """
    async with AsyncExitStack() as stack:

        async def connect(
            provider: Provider, source_id: str | None = COMPONENT, link_name: str | None = "default"
        ) -> KeyValueClient:
            client = KeyValueClient(
                url, provider.prefix, source_id=source_id, link_name=link_name, timeout_s=DEADLINE_S
            )
            return await stack.enter_async_context(client)

        yield connect


def options_of(config: Mapping[str, str]) -> ProviderOptions:
    """Return the provider's options from a configuration without faults."""
    resolved = resolve(host_settings(config, {}))
    assert (resolved.faults, resolved.unknown) == ((), {})
    return resolved.options


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a blocking function, while the event loop goes on."""
    return await asyncio.wait_for(asyncio.to_thread(function, *arguments), 2 * DEADLINE_S)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once the condition holds, for conditions without an event of their own.

    Each check is a request, so it takes time.
    """
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():
                pass
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None
