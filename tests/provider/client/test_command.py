"""wrpc-kv against a launched provider: command lines, outputs and exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from keyvalue_provider.client.command import main
from keyvalue_provider.client.command_line import parse
from tests.conftest import DEADLINE_S, SCRIPTS, Launch, NatsServer, Process, Provider
from tests.nats_configs import Authority, Key, Operator, credentials_file, nkey_config

WRPC_KV = SCRIPTS / "wrpc-kv"
EVERY_BYTE = bytes(range(256)) + b"\r\n\n\0"
FUNCTIONS = ("get", "set", "delete", "exists", "keys", "increment", "get-many", "set-many", "delete-many")
COMMANDS = (*FUNCTIONS, "export", "import", "watch", "ping", "health")


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since nothing here depends on it."""


class Command:
    """The command wrpc-kv and its provider. It runs in this process, or as its own process (`process`).

    :ivar out: standard output of the last run; `err` is its standard error
    """

    def __init__(self, url: str, prefix: str, bucket: str, capture: pytest.CaptureFixture[bytes]) -> None:
        self.arguments = ["--nats", url, "--prefix", prefix, "--bucket", bucket]
        self.out = b""
        self.err = ""
        self._capture = capture

    def __call__(self, *arguments: str) -> int:
        """Run the command, and return the exit code."""
        code = main([*self.arguments, *arguments])
        self.out, err = self._capture.readouterr()
        self.err = err.decode()
        return code

    def process(self, *arguments: str, stdin: bytes = b"") -> int:
        """Run the command as a process, and return the exit code."""
        ended = subprocess.run(
            [WRPC_KV, *self.arguments, *arguments],
            input=stdin, env={}, capture_output=True, timeout=DEADLINE_S,
        )  # fmt: skip
        self.out, self.err = ended.stdout, ended.stderr.decode()
        return ended.returncode


@pytest.fixture
def kv(nats_server: NatsServer, provider: Provider, bucket: str, capsysbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(nats_server.url, provider.prefix, bucket, capsysbinary)


# Values


def test_set_and_get(kv: Command) -> None:
    assert (kv("set", "hello", "world"), kv.out, kv.err) == (0, b"", "")
    assert (kv("get", "hello"), kv.out, kv.err) == (0, b"world", "")
    assert (kv("exists", "hello"), kv.out, kv.err) == (0, b"true\n", "")
    assert (kv("--bucket", "another", "exists", "hello"), kv.out) == (0, b"false\n")
    assert (kv("--source-id", "component", "--link-name", "default", "get", "hello"), kv.out) == (0, b"world")
    assert (kv("delete", "hello"), kv.out, kv.err) == (0, b"", "")
    assert (kv("exists", "hello"), kv.out, kv.err) == (0, b"false\n", "")
    assert (kv("delete", "hello"), kv.out, kv.err) == (0, b"", "")


def test_a_missing_permission_is_told_at_once(
    new_nats_server: Callable[[str], NatsServer], capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It took the whole timeout."""
    user = '{ user: u, password: p, permissions: { publish: "nothing" } }'
    server = new_nats_server(f"authorization {{ users: [{user}] }}")
    kv = Command(server.url.replace("//", "//u:p@"), "default.kv", "b", capsysbinary)
    for arguments in (("get", "k"), ("--wait", "80000", "get", "k")):
        assert kv("--timeout", "80000", *arguments) == 1
        function = "exists" if "--wait" in arguments else "get"
        subject = f"default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.{function}"
        assert (kv.out, kv.err) == (b"", f"wrpc-kv: NATS does not allow publishing to {subject}\n")


def test_a_missing_key(kv: Command, bucket: str) -> None:
    assert kv("get", "nowhere") == 1
    assert (kv.out, kv.err) == (b"", f"wrpc-kv: no key 'nowhere' in bucket {bucket!r}\n")


@pytest.mark.parametrize("value", ["", "-1", "ключ", " spaces ", "a\nb"])
def test_values_from_the_arguments(kv: Command, value: str) -> None:
    assert kv("set", "k", "--", value) == 0
    assert kv("get", "k") == 0
    assert kv.out == value.encode()


@pytest.mark.parametrize("source", [("-",), (), ("--file", "value"), ("--file", "-")])
def test_values_from_standard_input_or_a_file(
    kv: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: tuple[str, ...]
) -> None:
    value = EVERY_BYTE * 10_000  # more than one message of NATS
    monkeypatch.chdir(tmp_path)
    (tmp_path / "value").write_bytes(value)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(value)))
    assert kv("set", "k", *source) == 0
    assert (kv("get", "k"), kv.out) == (0, value)


def test_bytes_pass_through_the_process_unchanged(kv: Command) -> None:
    assert kv.process("set", "k", stdin=EVERY_BYTE) == 0
    assert (kv.process("get", "k"), kv.out, kv.err) == (0, EVERY_BYTE, "")


def test_arguments_that_are_not_utf_8(kv: Command) -> None:
    latin = os.fsdecode(b"caf\xe9")
    assert kv("set", "k", latin) == 0, "a value is bytes"
    assert (kv("get", "k"), kv.out) == (0, b"caf\xe9")
    for arguments in (("set", latin, "v"), ("--bucket", latin, "keys")):
        assert kv.process(*arguments) == 2, "a name is text"
        assert kv.err.endswith(": found bytes that are not UTF-8\n")
    assert kv.process("set-many", latin, "v") == 2
    assert kv.err.endswith("wrpc-kv: error: found a key that is not UTF-8\n")


# Keys


def test_keys(kv: Command) -> None:
    assert (kv("keys"), kv.out) == (0, b"")
    keys = {"a", "ключ", "with space", "with\nline"}
    for key in keys:
        assert kv("set", key, "v") == 0
    assert kv("keys") == 0
    assert sorted(kv.out.decode().split("\n")) == sorted(["", *"\n".join(keys).split("\n")])
    assert kv("--json", "keys") == 0
    assert {json.loads(line) for line in kv.out.splitlines()} == keys


@pytest.mark.parametrize(
    ("arguments", "size"),
    [(("get", "0"), 1), (("get", "0"), 60_000), (("keys",), 60_000), (("--json", "get-many", "0", "none"), 60_000)],
)
def test_a_reader_that_goes_away(kv: Command, arguments: tuple[str, ...], size: int) -> None:
    """It is not an error. A short output fails when it is flushed at the end, a long one while it is written."""
    for number in range(3):
        assert kv("set", f"{number}", "v" * size) == 0
        assert kv("set", f"{number}" + "k" * size, "v") == 0
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [WRPC_KV, *kv.arguments, *arguments],
        stdout=write, stderr=subprocess.PIPE, env={}, timeout=DEADLINE_S,
    )  # fmt: skip
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")


# Numbers, and many keys


def test_increment(kv: Command) -> None:
    assert (kv("increment", "visits"), kv.out, kv.err) == (0, b"1\n", "")
    assert (kv("increment", "visits", "299"), kv.out) == (0, b"300\n")
    assert (kv("increment", "visits", "0"), kv.out) == (0, b"300\n")
    assert (kv("get", "visits"), kv.out) == (0, b"300")
    assert kv("increment", "visits", "18446744073709551615") == 1
    assert kv.err.startswith("wrpc-kv: ")
    assert (kv("--json", "increment", "visits"), json.loads(kv.out)) == (0, {"key": "visits", "number": 301})
    assert kv("set", "visits", "many") == 0
    assert (kv("increment", "visits"), kv.out) == (1, b"")
    assert kv.err.startswith("wrpc-kv: the value 'many' is not a decimal number")


def test_many_keys(kv: Command, bucket: str) -> None:
    assert (kv("set-many", "a", "1", "ключ", "", "b", "2", "a", "3"), kv.out, kv.err) == (0, b"", "")
    assert (kv("get-many", "b", "ключ", "a", "b"), kv.out, kv.err) == (0, b"2\n\n3\n2\n", "")
    assert (kv("delete-many", "a", "none"), kv.out, kv.err) == (0, b"", "")
    assert kv("get-many", "none", "b", "a") == 1
    assert (kv.out, kv.err) == (b"\n2\n\n", f"wrpc-kv: no key 'none', 'a' in bucket {bucket!r}\n")


def test_json(kv: Command, bucket: str) -> None:
    missing = {"error": "MissingKeyError", "message": f"no key 'a' in bucket {bucket!r}"}
    calls: list[tuple[tuple[str, ...], list[object]]] = [
        (("set", "ключ", "value"), [{"key": "ключ", "value_bytes": 5}]),
        (("get", "ключ"), [{"key": "ключ", "value": "value"}]),
        (("exists", "ключ"), [{"key": "ключ", "exists": True}]),
        (("delete", "ключ"), [{"key": "ключ"}]),
        (("exists", "ключ"), [{"key": "ключ", "exists": False}]),
        (
            ("set-many", "a", "1", "b", "", "a", "three"),
            [{"key": "a", "value_bytes": 5}, {"key": "b", "value_bytes": 0}],
        ),
        (("get-many", "b", "a"), [{"key": "b", "value": ""}, {"key": "a", "value": "three"}]),
        (("delete-many", "a", "none"), [{"key": "a"}, {"key": "none"}]),
        (("keys",), ["b"]),
        (("set", "bytes", os.fsdecode(b"\xff\0")), [{"key": "bytes", "value_bytes": 2}]),
        (("get", "bytes"), [{"key": "bytes", "base64": "/wA="}]),
    ]
    for words, lines in calls:
        # The flag may be before or after the command.
        assert (kv(*(("--json", *words) if words[0] != "get" else (*words, "--json"))), kv.err) == (0, "")
        assert [json.loads(line) for line in kv.out.splitlines()] == lines
    for command, out in (("get", b""), ("get-many", b'{"key": "a", "value": null}\n')):
        assert (kv("--json", command, "a"), kv.out) == (1, out)
        assert json.loads(kv.err) == missing


# Health


def test_health(kv: Command, launch: Launch) -> None:
    """The provider's answer, and not only its bytes: the exit code is 1 if the provider is unhealthy."""
    assert (kv("health"), kv.out, kv.err) == (0, b"healthy: serving\n", "")
    link = {"source_id": "a", "target": "ill", "target_config": {"access": "read"}}
    prefix = launch(provider_key="ill", link_definitions=[link]).prefix
    reason = (
        "link a -> ill (default): everything is denied: access: found 4 characters, allowed read-write or read-only"
    )
    assert (kv("--prefix", prefix, "health"), kv.out.decode()) == (1, f"unhealthy: {reason}\n")
    assert kv.err == f"wrpc-kv: the provider {prefix} is unhealthy\n"
    assert kv("--prefix", prefix, "--json", "health") == 1
    assert json.loads(kv.out) == {"healthy": False, "message": reason}


def test_ping(kv: Command, launch: Launch) -> None:
    """The exit code is that of a health check. An error of the interface is an answer."""
    assert (kv("ping"), kv.err) == (0, "")
    assert re.fullmatch(rb"10 of 10 calls answered: p50 [\d.]+ ms, p99 [\d.]+ ms\n", kv.out)
    strict = launch({"strict_buckets": "true"})
    assert kv("--prefix", strict.prefix, "ping", "--count", "200", "--json") == 0
    answer = json.loads(kv.out)
    assert (answer["calls"], answer["answered"]) == (200, 200)
    assert 0 < answer["p50_ms"] <= answer["p99_ms"]
    assert strict.stop() == 0
    assert kv("--prefix", strict.prefix, "ping") == 1
    assert (kv.out, kv.err.count("\n")) == (b"0 of 10 calls answered\n", 1)
    assert kv.err.startswith("wrpc-kv: nobody serves this function")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "k" * 65_537, "v"), "key is 65537 bytes; the limit is 65536 (key_bytes_max)"),
        (("--prefix", "default.of-nobody", "get", "k"), "nobody serves this function: is the provider running"),
        (("--prefix", "default.of-nobody", "--wait", "0.1", "get", "k"), "nobody serves this function"),
        (("--prefix", "default.of-nobody", "health"), "no answer to wasmbus.rpc.default.of-nobody.health: is the"),
        (("set", "k", "--file", "/of/nobody"), "/of/nobody: No such file or directory"),
        (("import", "/of/nobody"), "/of/nobody: No such file or directory"),
        (("export", "/of/nobody"), "/of/nobody: No such file or directory"),
        (("export", "/"), "/: Is a directory"),
        (("--creds", "/of/nobody", "get", "k"), "/of/nobody: No such file or directory"),
        (("--nkey", "/of/nobody", "get", "k"), "/of/nobody: No such file or directory"),
        (("--tls-ca", "/of/nobody", "get", "k"), "ca: '/of/nobody': No such file or directory, expected"),
    ],
)
def test_other_errors(kv: Command, arguments: tuple[str, ...], message: str) -> None:
    assert kv(*arguments) == 1
    assert kv.out == b""
    assert kv.err.startswith(f"wrpc-kv: {message}")
    assert kv.err.count("\n") == 1


def test_nats_cannot_be_reached(kv: Command) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"user:s3cret@127.0.0.1:{bound.getsockname()[1]}"
        assert kv.process("--url", url, "--timeout", "0.2", "get", "k") == 1
    assert "no NATS server reached within 0.2 s" in kv.err
    assert "<redacted>@127.0.0.1" in kv.err
    assert "s3cret" not in kv.err
    assert "Traceback" not in kv.err


def test_interrupted(kv: Command, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        command = Process([WRPC_KV, "--url", url, "--timeout", "60", "get", "k"], tmp_path, {})
        silent.settimeout(DEADLINE_S)
        silent.accept()[0].close()
        command.signal(signal.SIGINT)
        assert command.wait() == 130
    assert "Traceback" not in command.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("rename", "k"), "invalid choice: 'rename'"),
        (("set", "k", "v", "--file", "f"), "not allowed with argument"),
        (("increment", "k", "18446744073709551616"), "found 18446744073709551616, allowed 0 to 18446744073709551615"),
        (("increment", "k", "many"), "argument delta: found many, allowed 0 to 18446744073709551615"),
        (("increment", "k", "1_0"), "argument delta: found 1_0, allowed 0 to"),
        (("ping", "--count", "0"), "argument --count: found 0, allowed 1 to 1000000"),
        (("--wait", "soon", "get", "k"), "argument --wait: found soon, allowed 0 to 86400"),
        (("set-many",), "the following arguments are required: key value"),
        (("set-many", "a", "1", "b"), "wrpc-kv: error: found 3 arguments, expected pairs of key and value\n"),
        (("--prefix", "a b", "get", "k"), "prefix: found 'a b', allowed"),
        (("--prefix", "a", "watch"), "prefix: found 'a', allowed {lattice}.{provider key}"),
        (("watch", "*bad*"), "pattern: found '*bad*', allowed a key, or the start of keys and a *"),
        (("--url", "ws://a", "get", "k"), "--url: found 'ws://a', allowed nats://HOST:PORT or tls://HOST:PORT"),
        (("--url", "user:s3cret@a:b", "get", "k"), "argument --nats/--url: found a URL with a malformed host or port"),
        (("--creds", "f", "--nkey", "f", "get", "k"), "argument --nkey: not allowed with argument --creds"),
        (("--timeout", "-1", "get", "k"), "found -1, allowed 0 to 86400"),
        (("--timeout", "0", "get", "k"), "argument --timeout: found 0, allowed above 0, up to 86400"),
        (("--wait", "nan", "get", "k"), "found nan, allowed 0 to 86400"),
    ],
)
def test_usage(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert "s3cret" not in err


# The environment


def test_the_url_may_come_from_the_environment(
    kv: Command, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NATS_URL", nats_server.url)
    arguments = kv.arguments[2:]
    assert main([*arguments, "set", "k", "v"]) == 0
    assert kv("get", "k") == 0
    assert kv.out == b"v"
    monkeypatch.setenv("NATS_URL", "")
    assert parse(["keys"]).nats == "127.0.0.1:4222", "an empty variable counts as not set"
    monkeypatch.setenv("NATS_URL", "ws://a")
    with pytest.raises(SystemExit, match="2"):
        parse(["keys"])
    assert parse(["--nats", nats_server.url, "keys"]).nats == nats_server.url, "the flag overrides the variable"


# Credentials


def secured(
    new_nats_server: Callable[[str], NatsServer],
    launch: Launch,
    server_config: str,
    config: Mapping[str, str] | None = None,
    **fields: str,
) -> tuple[str, ...]:
    """Launch a provider at a server of this configuration. Return the arguments that reach it."""
    server = new_nats_server(server_config)
    credentials: dict[str, Any] = {"lattice_rpc_url": server.url, **fields}
    provider = launch(config, **credentials)
    return "--url", server.url, "--prefix", provider.prefix


def test_files_of_a_user(
    kv: Command, new_nats_server: Callable[[str], NatsServer], launch: Launch, tmp_path: Path
) -> None:
    operator, key = Operator(), Key.new()
    user_jwt = operator.user(key)
    at = secured(
        new_nats_server, launch, operator.config, lattice_rpc_user_jwt=user_jwt, lattice_rpc_user_seed=key.seed
    )
    path = tmp_path / "user.creds"
    path.write_text(credentials_file(user_jwt, key.seed))
    assert (kv(*at, "--creds", str(path), "set", "k", "v"), kv.err) == (0, "")
    path.write_text(credentials_file(user_jwt, Key.new().seed))
    assert kv(*at, "--creds", str(path), "get", "k") == 1
    assert kv.err == f"wrpc-kv: {at[1]}: the NATS server refuses the connection: 'Authorization Violation'\n"
    at = secured(new_nats_server, launch, nkey_config(key.public_key), lattice_rpc_user_seed=key.seed)
    path.write_text(f"{key.seed}\n")
    assert (kv(*at, "--nkey", str(path), "set", "k", "v"), kv.err) == (0, "")
    path.write_text("")
    for option, missing in (("--creds", "JWT"), ("--nkey", "seed")):
        assert kv(*at, option, str(path), "get", "k") == 1
        assert kv.err.startswith(f"wrpc-kv: {path}: the {missing} is missing; ")


def test_certificates(
    kv: Command, new_nats_server: Callable[[str], NatsServer], launch: Launch, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, private = map(str, authority.issue("client.test"))
    options = {"tls_ca": str(authority.ca), "tls_certificate": certificate, "tls_key": private}
    at = secured(new_nats_server, launch, authority.config(clients=authority.ca), options)
    ca = ("--tls-ca", str(authority.ca))
    shown = ("--tls-certificate", certificate, "--tls-key", private)
    assert (kv(*at, *ca, *shown, "set", "k", "v"), kv.err) == (0, "")
    assert (kv(*at, *ca, *shown, "get", "k"), kv.out) == (0, b"v")
    assert kv(*at, *ca, "get", "k") == 1
    assert kv.err == f"wrpc-kv: {at[1]}: the server requires a client certificate, but none is configured\n"
    assert kv(*at, *shown, "get", "k") == 1
    assert kv.err.startswith(f"wrpc-kv: {at[1]}: the server's certificate is not accepted: ")


def test_waits_for_a_provider(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    listener = Process(
        [WRPC_KV, "--url", nats_server.url, "--prefix", "default.late", "--wait", "15", "exists", "k"],
        tmp_path,
        {},
    )
    launch(provider_key="late")
    assert listener.wait() == 0
    assert listener.output == "false\n"


def test_no_such_store_ends_the_wait(launch: Launch, kv: Command, bucket: str) -> None:
    """The message names the bucket and what refuses it."""
    provider = launch({"strict_buckets": "true"})
    reason = (
        f"no such store: the provider has no bucket {bucket!r} for this caller (its options buckets, strict_buckets; "
        "with keys=plain, the KV bucket is missing)"
    )
    assert (kv("--prefix", provider.prefix, "get", "k"), kv.err) == (1, f"wrpc-kv: {reason}\n")
    assert kv("--prefix", provider.prefix, "get", "k", "--json") == 1
    assert json.loads(kv.err) == {"error": "NoSuchStoreError", "message": reason}
    assert (kv("--prefix", provider.prefix, "keys"), kv.out) == (0, b"")
    assert kv("--prefix", provider.prefix, "--wait", "15", "set", "k", "v") == 0
    assert (kv("--prefix", provider.prefix, "get", "k"), kv.out) == (0, b"v")


def test_help_and_its_examples(capsys: pytest.CaptureFixture[str]) -> None:
    def helped(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main([*arguments, "--help"])
        assert caught.value.code == 0
        return capsys.readouterr().out

    text = helped()
    for command in COMMANDS:
        assert command in text
        assert helped(command).startswith(f"usage: wrpc-kv {command}")
    examples = [line for line in text.splitlines() if line.startswith("  wrpc-kv ")]
    assert len(examples) >= 4
    for example in examples:
        arguments = shlex.split(example.partition(" > ")[0])[1:]
        assert parse(arguments).command in COMMANDS
