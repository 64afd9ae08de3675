"""The processes of a benchmark: a NATS server, the load generator and providers.

Providers are launched as a wasmCloud host launches them. Each process runs in its own session. Therefore Ctrl-C
reaches only the benchmark, which then stops the other processes. The output of each process goes to a file, and if
the process fails, the error shows the end of that file.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from bench.load.case import Load
from bench.load.outcome import LoadError, Outcome
from bench.load.usage import children, cpu_ns
from bench.load.workload import LINK_NAME, SOURCE_ID, header_block
from bench.run import ROOT, SCRIPTS
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.keyvalue.interface import encode_bucket_key
from keyvalue_transport.keyvalue.store import STORE, decode_truth_result
from keyvalue_transport.nats.blocking import BlockingConnection
from keyvalue_transport.nats.subjects import invocation_subject
from keyvalue_transport.wrpc.errors import TransportError

__all__ = [
    *("LATTICE", "START_TIMEOUT_S", "GeneratorProcess", "NatsProcess", "Process", "ProcessError", "ProviderProcess"),
    *("host_data", "link_of", "one_line"),
]

T = TypeVar("T")

START_TIMEOUT_S = 60.0
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
        self.pid = self.popen.pid
        assert self.popen.stdin is not None
        if standard_input is not None:
            with suppress(BrokenPipeError), self.popen.stdin as pipe:
                pipe.write(standard_input)

    @property
    def log(self) -> str:
        """The output of the process so far, except what it wrote to a pipe."""
        return self._log.read_text(errors="replace")

    def failure(self, what: str) -> ProcessError:
        """Return an error that says `what` happened and shows the end of the process's output."""
        text = self.log.strip()
        return ProcessError(f"{self.name}: {what}" + (f"; last output:\n{text[-2000:]}" if text else ""))

    def try_until(self, attempt: Callable[[], T], errors: tuple[type[Exception], ...]) -> T:
        """Repeat an attempt until it raises none of the errors. Return its result. If it never does, stop the process.

        :raises ProcessError: the process has ended, or no attempt succeeded within START_TIMEOUT_S
        """
        last: Exception | None = None
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while self.popen.poll() is None and time.monotonic() < deadline_s:
                try:
                    return attempt()
                except errors as error:
                    last = error
                time.sleep(POLL_INTERVAL_S)
            if self.popen.poll() is not None:
                raise self.failure(f"the process ended with exit status {self.popen.returncode}")
            raise self.failure(f"the process was not ready within {START_TIMEOUT_S:g} s: {last!r}")
        except BaseException:
            self.stop()
            raise

    def exit_status(self) -> int | None:
        """Return the exit status, or None if the process is still running after a short wait."""
        with suppress(subprocess.TimeoutExpired):
            return self.popen.wait(ENDING_S)
        return None

    def stop(self) -> None:
        """Send SIGTERM and wait. Send SIGKILL if the process does not exit in time."""
        self.popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_TIMEOUT_S)
        self.popen.kill()
        self.popen.wait()
        for pipe in filter(None, (self.popen.stdin, self.popen.stdout)):
            with suppress(BrokenPipeError):
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class NatsProcess(Process):
    """A real NATS server on a port that the operating system chooses."""

    def __init__(self, directory: Path, settings: str = NATS_CONFIG) -> None:
        config = directory / "nats.conf"
        config.write_text(f"{settings}jetstream {{ store_dir: {json.dumps(str(directory / 'jetstream'))} }}\n")
        ports = directory / "ports"
        ports.mkdir()
        command = (SCRIPTS / "nats-server", "-a", "127.0.0.1", "-p", "-1", "-c", config, "--ports_file_dir", ports)
        super().__init__("nats-server", command, directory)

        def read_url() -> str:
            return str(json.loads(next(ports.iterdir()).read_text())["nats"][0])

        self.url = self.try_until(read_url, (StopIteration, ValueError))  # there is no file, or only a part of it


class ProviderProcess(Process):
    """A provider, launched with an empty environment and host data on standard input.

    The constructor calls the provider until the provider answers, with a client that is connected before the launch.

    :ivar pids: the ids of all processes of the provider
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
        with BlockingConnection(nats.url, START_TIMEOUT_S) as connection:
            began_s = time.perf_counter()
            super().__init__(name, words, directory, {}, text)
            self.try_until(lambda: self._ask(connection), (TransportError,))
        self.start_s = time.perf_counter() - began_s
        self.pids = [self.popen.pid, *children(self.popen.pid)]
        self.pid = self.pids[-1]  # a self-contained executable answers in a child process
        self.start_cpu_s = sum(map(cpu_ns, self.pids)) / 1e9

    def _ask(self, connection: BlockingConnection) -> None:
        subject, params = invocation_subject(self.prefix, STORE, "exists"), encode_bucket_key(b"default", b"ready")
        with suppress(InterfaceError):
            connection.invoke(subject, params, decode_truth_result, CALL_TIMEOUT_S, header_block("host"))


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


class GeneratorProcess(Process):
    """The load generator's process. It runs one load at a time."""

    def __init__(self, directory: Path, name: str = "load") -> None:
        command = (sys.executable, "-m", "bench.load.generator_process")
        super().__init__(name, command, directory, standard_input=None, standard_output=subprocess.PIPE)

    def run(self, load: Load) -> Outcome:
        """Run a load, and return its outcome, as `begin` and `end` do."""
        self.begin(load)
        return self.end()

    def begin(self, load: Load) -> None:
        """Start a load and return immediately. Call `end` to get the outcome."""
        assert self.popen.stdin is not None
        with suppress(BrokenPipeError):  # the process has ended, which `end` notices
            self.popen.stdin.write(json.dumps(asdict(load)).encode() + b"\n")
            self.popen.stdin.flush()

    def end(self) -> Outcome:
        """Wait for the load that `begin` started, and return its outcome. Raise LoadError if the load is not valid."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        if not line:
            raise self.failure("the process ended")
        answer = json.loads(line)
        if "error" in answer:
            raise LoadError(answer["error"])
        return Outcome(**answer)
