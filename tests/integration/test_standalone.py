"""Without a host: `keyvalue-inmemory serve`, and what `config check` says. Real processes, and a real NATS server."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_provider.config.options import OPTIONS, STANDALONE_OPTIONS
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, HOST_CAPTURE, PROVIDER, NatsServer, Process, host_environment
from tests.host_double import XKey
from tests.nats_configs import Key, Operator, credentials_file, nkey_config

SECRET = "a-s3cret"

Serve = Callable[..., Process]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts `keyvalue-inmemory serve` with flags and an environment."""
    started: list[Process] = []

    def start(*flags: str, **environment: str) -> Process:
        process = Process([PROVIDER, "serve", *flags], tmp_path, host_environment() | environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def check(*flags: str, stdin: bytes = b"", environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of `keyvalue-inmemory config check`."""
    ended = subprocess.run(
        [PROVIDER, "config", "check", *flags],
        input=stdin,
        env=host_environment() | dict(environment or {}),
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert b"Traceback" not in ended.stderr
    return ended.returncode, (ended.stdout + ended.stderr).decode()


async def test_it_serves_what_a_host_started_one_serves(serve: Serve, nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "keyvalue.toml"
    path.write_text(
        'nats = "nats://nobody:4"\nprefix = "a.lattice.kv"\npage_keys = 7\nttl_ms = "60_000"\nlog_level = "debug"\n'
    )
    process = serve(
        "--config",
        str(path),
        "--page-keys",
        "2",
        "--strict-buckets",
        KEYVALUE_NATS=nats_server.url,
        KEYVALUE_PAGE_KEYS="3",
    )
    process.wait_for(f"ready: serving a.lattice.kv at {nats_server.url}")
    async with KeyValueClient(nats_server.url, "a.lattice.kv", timeout_s=DEADLINE_S) as client:
        for key in ("a", "b", "c"):
            await client.set("bucket", key, b"value")
        assert await client.get("bucket", "a") == b"value"
        assert len((await client.list_keys("bucket")).keys) == 2
        assert await client.increment("bucket", "n", 3) == 3
        assert await client.get_many("bucket", ["a", "n"]) == [b"value", b"3"]
    process.process.terminate()
    assert process.wait() == 0
    assert "SIGTERM: stopping" in process.output


@pytest.mark.parametrize("option", ["credentials", "nkey"])
async def test_it_connects_as_the_user_of_a_file(
    serve: Serve, new_nats_server: Callable[[str], NatsServer], tmp_path: Path, option: str
) -> None:
    key, path = Key.new(), tmp_path / "user"
    user_jwt = ""
    if option == "nkey":
        server = new_nats_server(nkey_config(key.public_key))
        path.write_text(f"{key.seed}\n")
    else:
        operator = Operator()
        user_jwt = operator.user(key)
        server = new_nats_server(operator.config)
        path.write_text(credentials_file(user_jwt, key.seed))
    process = serve(f"--{option}", str(path), "--nats", server.url, "--prefix", "a.b", "--log-level", "debug")
    process.wait_for("ready: serving a.b")
    async with KeyValueClient(server.url, "a.b", timeout_s=DEADLINE_S, user_jwt=user_jwt, user_seed=key.seed) as client:
        await client.set("bucket", "key", b"value")
        assert await client.get("bucket", "key") == b"value"
    process.process.terminate()
    assert process.wait() == 0
    assert key.seed not in process.output


async def test_it_hears_no_host(serve: Serve, nats_server: NatsServer, raw: Client) -> None:
    serve("--nats", nats_server.url, "--prefix", "default.alone").wait_for("ready: serving default.alone")
    for subject in ("health", "config.update", "default.shutdown", "linkdefs.put"):
        with pytest.raises(NoRespondersError):
            await raw.request(f"wasmbus.rpc.default.alone.{subject}", b"{}", timeout=DEADLINE_S)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--page-keys", "none"), "command line: page_keys: found 'none', allowed a whole number from 1"),
        (("--prefix", "a b"), "command line: prefix: found 'a b', allowed printable tokens"),
        (("--nats", f"ws://u:{SECRET}@a"), "command line: nats: found 'ws://<redacted>@a', allowed"),
        (("--config", "none.toml"), "none.toml: No such file or directory"),
        (("--metrics-address", "a\u200bb:1"), "command line: metrics_address: found 'a\\u200bb:1', allowed HOST:PORT"),
        (("--require-link",), "require_link: found true, allowed false without a host"),
        (("--shards-min", "3"), "command line: shards_min: found 3, allowed a power of two"),
    ],
)
def test_what_cannot_be_used(serve: Serve, flags: tuple[str, ...], message: str) -> None:
    process = serve(*flags)
    assert process.wait() == 2
    (line,) = process.output.splitlines()
    assert line.startswith(f"keyvalue-inmemory: {message}")
    assert SECRET not in line


def test_help_names_every_flag() -> None:
    ended = subprocess.run([PROVIDER, "serve", "--help"], capture_output=True, timeout=DEADLINE_S, text=True)
    assert ended.returncode == 0
    for name in (*OPTIONS, *STANDALONE_OPTIONS, "config"):
        assert f"  --{name.replace('_', '-')} " in ended.stdout, name


def rows(output: str) -> dict[str, tuple[str, str]]:
    return {line.split()[0]: (line[24:56].strip(), line[58:]) for line in output.splitlines()}


def test_check_shows_every_option_and_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "keyvalue.toml"
    path.write_text("page_keys = 7\nbuckets = ['b', 'a']\nkeys_max = 1\npage_key = 1\n")
    code, output = check(
        "--config",
        str(path),
        "--strict-buckets",
        "--nats",
        f"nats://u:{SECRET}@a",
        environment={"KEYVALUE_KEYS_MAX": "2"},
    )
    assert code == 0
    shown = rows(output)
    assert shown["page_keys"] == ("7", str(path))
    assert shown["buckets"] == ("a,b", str(path))
    assert shown["keys_max"] == ("2", "environment")
    assert shown["strict_buckets"] == ("true", "command line")
    assert shown["nats"] == ("nats://<redacted>@a", "command line")
    assert shown["key_bytes_max"] == ("65536", "default")
    assert shown.keys() >= {*OPTIONS, *STANDALONE_OPTIONS}
    assert f"\nignored: {path}: no option has this name: page_key\n" in output
    assert output.endswith("nothing is wrong\n")
    assert SECRET not in output


def test_check_says_all_that_is_wrong() -> None:
    code, output = check("--page-keys", "x", "--tls-ca", "none.pem", environment={"KEYVALUE_ACCESS": "all"})
    assert code == 2
    wrong = [line for line in output.splitlines() if line.startswith("wrong: ")]
    assert wrong == [
        "wrong: environment: access: found 'all', allowed read-write or read-only",
        "wrong: command line: page_keys: found 'x', allowed a whole number from 1",
        "wrong: tls_ca: 'none.pem': No such file or directory, allowed the path of a PEM file, or its text",
    ]
    assert rows(output)["page_keys"] == ("-", "command line")
    code, output = check("--tls-ca", "none.pem")
    assert code == 2
    assert "none.pem" in output.splitlines()[-1]


def test_check_of_host_data(tmp_path: Path) -> None:
    link = {"source_id": "component", "target": "kv", "name": "default", "interfaces": ["store"]}
    host_data = HOST_CAPTURE["host_data"] | {
        "provider_key": "kv",
        "config": {"page_keys": "7", "other": "1"},
        "secrets": {"bucket": {"kind": "String", "value": SECRET}},
        "link_definitions": [
            link | {"target_config": {"access": "read-only", "url": "redis://"}},
            link | {"name": "second", "target_config": {"access": SECRET}},
            link | {"name": "sealed", "target_secrets": list(SECRET.encode())},
            {
                "source_id": "kv",
                "target": "component",
                "name": "w",
                "interfaces": ["watcher"],
                "source_config": {"watch": "x"},
            },
        ],
    }
    line = base64.b64encode(json.dumps(host_data).encode())
    (tmp_path / "host_data").write_bytes(line)
    code, output = check("--host-data", str(tmp_path / "host_data"))
    assert (code, output) == check("--host-data", "-", stdin=line)
    assert code == 2
    shown = rows(output)
    assert shown["page_keys"] == ("7", "config")
    assert shown["bucket"] == ("<redacted>", "secrets")
    assert shown["prefix"] == ("default.kv", "host data")
    assert shown["log_level"] == (HOST_CAPTURE["host_data"]["log_level"], "host data")
    assert "link component -> kv (default), store; options set: access, url\n" in output
    assert "ignored: config: no option has this name: other\n" in output
    wrong = [line.removeprefix("wrong: ") for line in output.splitlines() if line.startswith("wrong: ")]
    assert wrong[0].startswith("link component -> kv (sealed): target_secrets: found 8 bytes of another form")
    assert wrong[1].startswith("link component -> kv (second): all is denied: access: found 8 characters")
    assert wrong[2].startswith("link kv -> component (w): watch[0]: found 1 characters")
    assert SECRET not in output


def test_check_reads_links_also_where_an_option_is_wrong() -> None:
    own, host = XKey.generate(), XKey.generate()
    sealed = list(host.seal(json.dumps({"bucket": {"kind": "String", "value": SECRET}}).encode(), own))
    host_data = {
        "provider_key": "kv",
        "config": {"shards_min": "3"},
        "provider_xkey_private_key": own.seed,
        "host_xkey_public_key": host.public_key,
        "link_definitions": [{"source_id": "component\ud800", "target": "kv", "target_secrets": sealed}],
    }
    code, output = check("--host-data", "-", stdin=base64.b64encode(json.dumps(host_data).encode()))
    assert code == 2
    assert rows(output)["shards_min"] == ("-", "config")
    assert "link component\\ud800 -> kv (default), no interface; options set: none; secrets: bucket\n" in output
    assert [line for line in output.splitlines() if line.startswith("wrong: ")] == [
        "wrong: config: shards_min: found 3, allowed a power of two from 1 to 65536"
    ]


@pytest.mark.parametrize("name", ["tls_ca", "tls_certificate", "tls_key"])
def test_check_does_not_show_a_certificate_that_came_as_a_secret(name: str) -> None:
    host_data = {"secrets": {name: {"kind": "String", "value": SECRET}}}
    code, output = check("--host-data", "-", stdin=base64.b64encode(json.dumps(host_data).encode()))
    assert code == 2
    assert f"wrong: {name}: " in output
    assert SECRET not in output


def test_check_does_not_show_a_seed_in_place_of_its_file() -> None:
    seed = "SU" + "A" * 56
    code, output = check("--nkey", seed)
    assert code == 2
    assert rows(output)["nkey"] == ("<redacted>", "command line")
    assert output.endswith(
        "wrong: command line: nkey: <redacted>: No such file or directory, allowed the path of a file\n"
    )
    assert seed not in output


def test_check_says_what_is_wrong_with_the_user(tmp_path: Path) -> None:
    for fields, wrong in (
        (
            {"lattice_rpc_user_seed": SECRET},
            "lattice_rpc_user_seed: found 8 characters that are not base32, expected a seed SU...",
        ),
        (
            {"lattice_rpc_user_jwt": SECRET},
            "lattice_rpc_user_seed: found none beside lattice_rpc_user_jwt, allowed both or none",
        ),
    ):
        line = base64.b64encode(json.dumps(fields).encode())
        code, output = check("--host-data", "-", stdin=line)
        assert code == 2
        assert output.endswith(f"\nwrong: host data: {wrong}\n")
        assert SECRET not in output


def test_output_that_cannot_be_written_is_one_line() -> None:
    for arguments in (["--version"], ["config", "check"]):
        with open("/dev/full", "wb") as full:
            ended = subprocess.run([PROVIDER, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_S)
        assert ended.returncode == 1, arguments
        assert ended.stderr == b"keyvalue-inmemory: standard output: No space left on device\n"


def test_check_as_json() -> None:
    code, output = check("--json", "--page-keys", "7")
    assert code == 0
    report = json.loads(output)
    assert report["options"]["page_keys"] == {"value": "7", "from": "command line"}
    assert (report["links"], report["ignored"], report["wrong"]) == ([], [], [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--host-data", "none"), "--host-data: none: No such file or directory"),
        (("--host-data", "-", "--page-keys", "1"), "--host-data: found also --page-keys, allowed alone"),
        (("--host-data", "-"), "found an empty standard input, expected host data"),
    ],
)
def test_check_of_nothing(flags: tuple[str, ...], message: str) -> None:
    code, output = check(*flags)
    assert code == 2
    assert output.startswith(f"keyvalue-inmemory: {message}")
