"""The processes of a benchmark: a NATS server, the load generator, watchers and providers.

Providers are launched as a wasmCloud host launches them. Each process runs in its own session. Therefore Ctrl-C
reaches only the benchmark, which then stops the other processes. The output of each process goes to a file, and if
the process fails, the error shows the end of that file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.load.outcome import LoadError, Outcome
from bench.load.usage import children, cpu_ns
from bench.load.workload import LINK_NAME, SOURCE_ID, Load
from bench.run.paths import ROOT, SCRIPTS
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.wrpc.errors import TransportError

__all__ = [
    *("LATTICE", "START_TIMEOUT_S", "GeneratorProcess", "NatsProcess", "Process", "ProcessError", "ProviderProcess"),
    *("WatcherProcess", "host_data", "one_line"),
]

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 15.0
#: Seconds to wait for the exit of a process that no longer answers.
ENDING_S = 0.5
POLL_INTERVAL_S = 0.002
#: Seconds until a provider that starts is called again. The bare responder loses a call that arrives while it subscribes.
CALL_TIMEOUT_S = 0.25
LATTICE = "default"
#: By default, a NATS server disconnects a client with more than 64 MiB of pending messages. Thousands of large answers
#: exceed this limit.
NATS_CONFIG = "max_pending: 4GB\nwrite_deadline: 60s\n"
#: Every host passes xkeys, and loading the library for them takes time. No secret was ever sealed with these.
XKEYS = {
    "host_xkey_public_key": "XCBU4AMJXKTG7XYNRR7UFKLNZQ2V6FIOWBATIHSFPA7WWPLHF7OXDXFH",
    "provider_xkey_private_key": "SXAFXLBJO27A2ZPHSYGL5VMFVJKJRIUHZ4IAPAJLTCLSIE5E76DNLY5XRY",
}


class ProcessError(Exception):
    """Raised when a process fails or does not start. The message includes the end of the process's output."""


def one_line(text: str) -> str:
    """Shorten the text of a `ProcessError` to one line: the error, and the last line of the process's output.

    >>> one_line("kv-1: the process ended; last output:\\nstarting\\nno host data")
    'kv-1: the process ended; last output: no host data'
    """
    first, *rest = text.splitlines()
    return " ".join((first, *rest[-1:]))


class Process:
    """A process and its output. Leaving the `with` block stops the process."""

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        directory: Path,
        environment: Mapping[str, str] | None = None,
        standard_input: bytes | None = b"",
        standard_output: int | None = None,
    ) -> None:
        self.name = name
        self._log = directory / f"{name}.log"
        with self._log.open("wb") as log:
            try:
                self.popen = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log if standard_output is None else standard_output,
                    stderr=log,
                    cwd=ROOT,
                    env=None if environment is None else dict(environment),
                    start_new_session=True,
                )
            except OSError as error:
                raise ProcessError(f"{name}: {error}") from None
        assert self.popen.stdin is not None
        if standard_input is not None:
            with suppress(BrokenPipeError), self.popen.stdin as pipe:
                pipe.write(standard_input)

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        """The output of the process so far."""
        return self._log.read_text(errors="replace")

    def failure(self, what: str) -> ProcessError:
        """Return an error that says `what` happened and shows the end of the process's output."""
        text = self.log.strip()
        return ProcessError(f"{self.name}: {what}" + (f"; last output:\n{text[-2000:]}" if text else ""))

    def exit_status(self) -> int | None:
        """Return the exit status, or None if the process is still running after a short wait."""
        with suppress(subprocess.TimeoutExpired):
            return self.popen.wait(ENDING_S)
        return None

    def stop(self) -> None:
        """Send SIGTERM and wait. Send SIGKILL if the process does not exit in time."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class NatsProcess(Process):
    """A real NATS server on a port that the operating system chooses.

    :param settings: text of its configuration file
    """

    def __init__(self, directory: Path, settings: str = NATS_CONFIG) -> None:
        config = directory / "nats.conf"
        config.write_text(f"{settings}jetstream {{ store_dir: {json.dumps(str(directory / 'jetstream'))} }}\n")
        ports = directory / "ports"
        ports.mkdir()
        command = (SCRIPTS / "nats-server", "-a", "127.0.0.1", "-p", "-1", "-c", config, "--ports_file_dir", ports)
        super().__init__("nats-server", command, directory)
        self.url = self._wait(ports)

    def _wait(self, ports: Path) -> str:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while self.popen.poll() is None and time.monotonic() < deadline_s:
            with suppress(ValueError):  # the server may still be writing the file
                for path in ports.iterdir():
                    urls: list[str] = json.loads(path.read_text())["nats"]
                    return urls[0]
            time.sleep(POLL_INTERVAL_S)
        failure = self.failure("the process did not start")
        self.stop()
        raise failure


class ProviderProcess(Process):
    """A provider, launched with an empty environment and host data on standard input.

    The constructor calls the provider until the provider answers, with a client that is connected before the launch.

    :ivar start_s: seconds from the launch to the first answer
    :ivar start_cpu_s: the CPU time of all processes of the provider until then
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        config: Mapping[str, str],
        nats: NatsProcess,
        directory: Path,
        watcher: str = "",
    ) -> None:
        self.prefix = f"{LATTICE}.{name}"
        text = base64.b64encode(json.dumps(host_data(name, nats.url, config, watcher)).encode()) + b"\r\n"
        words = [str(word).replace("{nats}", nats.url).replace("{prefix}", self.prefix) for word in command]
        asyncio.run(self._launch(nats.url, lambda: Process.__init__(self, name, words, directory, {}, text)))

    async def _launch(self, url: str, start: Callable[[], None]) -> None:
        client = KeyValueClient(url, self.prefix, source_id=SOURCE_ID, link_name=LINK_NAME, timeout_s=CALL_TIMEOUT_S)
        async with client:
            began_s = time.perf_counter()
            start()
            try:
                await self._wait(client, began_s + START_TIMEOUT_S)
                self.start_s = time.perf_counter() - began_s
                self._pids = [self.popen.pid, *children(self.popen.pid)]
                self.start_cpu_s = sum(map(cpu_ns, self._pids)) / 1e9
            except BaseException:
                self.stop()
                raise

    @property
    def pid(self) -> int:
        """The id of the process that answers calls. A self-contained executable answers in a child process."""
        return self._pids[-1]

    @property
    def pids(self) -> list[int]:
        """The ids of all processes of the provider."""
        return self._pids

    async def _wait(self, client: KeyValueClient, deadline_s: float) -> None:
        last: Exception | None = None
        while self.popen.poll() is None and time.perf_counter() < deadline_s:
            try:
                await client.exists("default", "ready")
                return
            except InterfaceError:
                return
            except TransportError as error:
                last = error
            await asyncio.sleep(POLL_INTERVAL_S)
        if self.popen.poll() is not None:
            raise self.failure(f"the process ended with exit status {self.popen.returncode}")
        raise self.failure(f"the process did not answer a call within {START_TIMEOUT_S:g} s: {last}")


def host_data(provider_key: str, url: str, config: Mapping[str, str], watcher: str = "") -> dict[str, Any]:
    """Return host data with a link from the load generator, and with a link to the watcher unless its name is empty."""
    links = [link_of(SOURCE_ID, provider_key, ["store", "atomics", "batch"])]
    if watcher:
        links.append(link_of(provider_key, watcher, ["watcher"], {"watch": "SET@*"}))
    return {
        "host_id": "",
        "lattice_rpc_prefix": LATTICE,
        "link_name": LINK_NAME,
        "lattice_rpc_user_jwt": "",
        "lattice_rpc_user_seed": "",
        "lattice_rpc_url": url,
        "provider_key": provider_key,
        "env_values": {},
        "instance_id": provider_key,
        "link_definitions": links,
        "cluster_issuers": [],
        "config": dict(config),
        "secrets": {},
        "default_rpc_timeout_ms": 5000,
        "structured_logging": False,
        "log_level": "info",
        **XKEYS,
    }


def link_of(
    source_id: str, target: str, interfaces: Sequence[str], source_config: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a link definition as a host sends it."""
    return {
        "source_id": source_id,
        "target": target,
        "name": LINK_NAME,
        "wit_namespace": "wasi",
        "wit_package": "keyvalue",
        "interfaces": list(interfaces),
        "source_config": dict(source_config or {}),
        "target_config": {},
        "source_secrets": None,
        "target_secrets": None,
    }


class WatcherProcess(Process):
    """A component that watches for changes. It answers every call, or no call if `is_stuck`.

    The constructor waits until the component has subscribed to its calls.
    """

    def __init__(self, component: str, nats: NatsProcess, directory: Path, is_stuck: bool) -> None:
        command = (sys.executable, "-m", "bench.load.watching_component", nats.url, f"{LATTICE}.{component}")
        super().__init__(
            component,
            (*command, "--stuck") if is_stuck else command,
            directory,
            standard_input=None,
            standard_output=subprocess.PIPE,
        )
        try:
            self.told()
        except BaseException:
            self.stop()
            raise

    def told(self) -> int:
        """Return the number of calls that the component has received so far."""
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        try:
            self.popen.stdin.write(b"\n")
            self.popen.stdin.flush()
            return int(self.popen.stdout.readline())
        except (ValueError, BrokenPipeError):
            raise self.failure("the process ended") from None


class GeneratorProcess(Process):
    """The load generator's process. It runs one load at a time."""

    def __init__(self, directory: Path, name: str = "load") -> None:
        command = (sys.executable, "-m", "bench.load.generator_process", "--stdin")
        super().__init__(name, command, directory, standard_input=None, standard_output=subprocess.PIPE)

    def run(self, load: Load) -> Outcome:
        """Run a load, and return its outcome.

        :raises LoadError: the load is not valid
        """
        self.begin(load)
        return self.end()

    def begin(self, load: Load) -> None:
        """Start a load and return immediately. Call `end` to get the outcome."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            raise self.failure("the process ended") from None

    def end(self) -> Outcome:
        """Wait for the load that `begin` started, and return its outcome.

        :raises LoadError: the load is not valid
        """
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise self.failure("the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return Outcome(**answer)
