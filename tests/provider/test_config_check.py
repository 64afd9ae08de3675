"""`keyvalue-inmemory config check`: its report on options, host data and links. It connects to nothing."""

from __future__ import annotations

import base64
import json
import logging
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from keyvalue_provider.__main__ import main
from keyvalue_provider.config.options import SERVE_OPTIONS
from tests.conftest import DEADLINE_S, HOST_CAPTURE, PROVIDER
from tests.host_double import XKey

SECRET = "a-s3cret"
LINK = {"source_id": "component", "target": "kv", "name": "default", "interfaces": ["store"]}
WATCHING = {"source_id": "kv", "target": "component", "interfaces": ["watcher"]}


Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Check:
    """Run the command in this process, with host data as an object. Return its exit code and output."""

    def run(*flags: str, host_data: object = None, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        if host_data is not None:
            path = tmp_path / "host_data"
            path.write_bytes(encoded(host_data))
            flags = ("--host-data", str(path), *flags)
        with monkeypatch.context() as patch:
            for name, value in (environment or {}).items():
                patch.setenv(name, value)
            code = main(["config", "check", *flags])
        return code, "".join(capsys.readouterr())

    return run


def encoded(host_data: object) -> bytes:
    return base64.b64encode(json.dumps(host_data).encode())


def wrong(output: str) -> list[str]:
    return [line.removeprefix("wrong: ") for line in output.splitlines() if line.startswith("wrong: ")]


def rows(output: str) -> dict[str, tuple[str, str]]:
    return {line.split()[0]: (line[27:59].strip(), line[61:]) for line in output.splitlines()}


def test_check_shows_every_option_and_where_it_came_from(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "keyvalue.toml"
    path.write_text("page_keys = 7\nbuckets = ['b', 'a']\nkeys_max = 1\n")
    flags = ("--config", str(path), "--strict-buckets", "--nats", f"nats://u:{SECRET}@a")
    code, output = check(*flags, environment={"KEYVALUE_KEYS_MAX": "2"})
    assert code == 0
    shown = rows(output)
    assert shown["page_keys"] == ("7", str(path))
    assert shown["buckets"] == ("a,b", str(path))
    assert shown["keys_max"] == ("2", "environment")
    assert shown["strict_buckets"] == ("true", "command line")
    assert shown["nats"] == ("nats://<redacted>@a", "command line")
    assert shown["key_bytes_max"] == ("65536", "default")
    assert shown.keys() >= SERVE_OPTIONS.keys()
    assert output.endswith("nothing is wrong\n")
    assert SECRET not in output


def test_check_reports_all_faults(check: Check) -> None:
    environment = {"KEYVALUE_ACCESS": "all", "KEYVALUE_TTL_M": "1", "KEYVALUE_HOST": "1"}
    code, output = check("--page-keys", "x", "--tls-ca", "none.pem", environment=environment)
    assert code == 2
    assert wrong(output) == [
        "environment: ttl_m: no option has this name; did you mean ttl_ms?",
        "environment: access: found 'all', allowed read-write or read-only",
        "command line: page_keys: found 'x', allowed a whole number from 1",
        "environment: no option has this name: host",
        "tls_ca: 'none.pem': No such file or directory, expected the path or the text of a PEM file",
    ]
    assert rows(output)["page_keys"] == ("-", "command line")


def test_eviction_needs_the_store_in_memory(check: Check) -> None:
    fault = "eviction=oldest needs store=memory; with store=jetstream, set eviction=none"
    host_data = HOST_CAPTURE["host_data"] | {"config": {"store": "jetstream", "eviction": "oldest"}}
    for code, output in (
        check("--store", "jetstream", environment={"KEYVALUE_EVICTION": "oldest"}),
        check(host_data=host_data | {"link_definitions": []}),
    ):
        assert (code, wrong(output)) == (2, [fault])
    assert check("--eviction", "oldest")[0] == 0


def test_check_of_host_data(check: Check) -> None:
    host_data = HOST_CAPTURE["host_data"] | {
        "provider_key": "kv",
        "config": {"page_keys": "7", "other": "1"},
        "secrets": {"bucket": {"kind": "String", "value": SECRET}},
        "link_definitions": [
            LINK | {"target_config": {"access": "read-only", "url": "redis://"}},
            LINK | {"name": "second", "target_config": {"access": SECRET}},
            LINK | {"name": "sealed", "target_secrets": list(SECRET.encode())},
            WATCHING | {"name": "w", "source_config": {"watch": "x"}},
        ],
    }
    code, output = check(host_data=host_data)
    assert code == 2
    ended = subprocess.run(
        [PROVIDER, "config", "check", "--host-data", "-"],
        input=encoded(host_data), env={}, capture_output=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout.decode(), ended.stderr) == (2, output, b""), "a process says the same"
    shown = rows(output)
    assert shown["page_keys"] == ("7", "config")
    assert shown["bucket"] == ("<redacted>", "secrets")
    assert shown["prefix"] == ("default.kv", "host data")
    assert shown["log_level"] == (HOST_CAPTURE["host_data"]["log_level"], "host data")
    assert "link component -> kv (default), store; options set: access, url\n" in output
    for line, begin in zip(
        wrong(output),
        [
            "config: no option has this name: other",
            "link component -> kv (sealed): target_secrets: found 8 bytes that do not begin with xkv1",
            "link component -> kv (second): everything is denied: access: found 8 characters",
            "link kv -> component (w): watch[0]: found 1 characters",
            "link component -> kv (default): no option has this name: url",
        ],
        strict=True,
    ):
        assert line.startswith(begin)
    assert SECRET not in output


def test_check_tells_unknown_misspelt_and_old_names_apart(check: Check) -> None:
    links = [
        LINK | {"target_config": {"keys_max": "7", "url": "redis://", "timeout": "1"}},
        LINK | {"name": "second", "target_config": {"acess": "read-only"}},
        WATCHING | {"source_config": {"URL": "redis://"}},
        WATCHING | {"name": "second", "source_config": {"watch": "SET@*", "watch_buckets": "1"}},
    ]
    config = {"bytes_max": "7", "note": ""}
    code, output = check(host_data={"provider_key": "kv", "link_definitions": links, "config": config})
    assert code == 2
    assert [line for line in output.splitlines() if line.startswith(("remark: ", "wrong: "))] == [
        "remark: config: bytes_max is deprecated (use quota_bytes)",
        "remark: link component -> kv (default): keys_max is deprecated (use quota_keys)",
        "remark: link kv -> component (default): it watches nothing: the option watch is not set",
        "wrong: config: no option has this name: note",
        "wrong: link component -> kv (second): everything is denied: acess: no option has this name; did you mean access?",
        "wrong: link kv -> component (second): watch_buckets: no option has this name; did you mean watch_bucket?",
        "wrong: link component -> kv (default): no option has this name: url, timeout",
        "wrong: link kv -> component (default): no option has this name: URL",
    ]


def test_an_old_name_is_only_a_remark(check: Check) -> None:
    links = [LINK | {"target_config": {"keys_max": "7"}}]
    code, output = check(host_data={"provider_key": "kv", "link_definitions": links})
    assert code == 0
    assert output.splitlines()[-2:] == [
        "remark: link component -> kv (default): keys_max is deprecated (use quota_keys)",
        "nothing is wrong",
    ]


def test_an_option_without_effect_is_only_a_remark(check: Check) -> None:
    code, output = check("--jetstream-bucket", "x", "--redis-flush")
    assert code == 0
    assert output.splitlines()[-3:] == [
        "remark: command line: jetstream_bucket has no effect: it needs store=jetstream",
        "remark: command line: redis_flush has no effect: it needs redis_address",
        "nothing is wrong",
    ]


@pytest.mark.parametrize(
    ("field", "fault"),
    [
        ("colour", "unknown field colour"),
        ("acess", "acess: no option has this name; did you mean access?"),
        ("access", f"access: found {len(SECRET)} characters, allowed read-write or read-only"),
        ("keys_max", f"keys_max: found {len(SECRET)} characters, allowed a whole number from 1"),
    ],
)
def test_a_redis_user_with_an_unusable_option(check: Check, field: str, fault: str) -> None:
    users = json.dumps({"a": {"password": SECRET, field: SECRET}})
    code, output = check("--redis-address", "1", environment={"KEYVALUE_REDIS_USERS": users})
    assert (code, wrong(output)) == (2, [f"redis_users: user a: {fault}"])
    assert SECRET not in output


@pytest.mark.parametrize(
    ("flags", "faults"),
    [
        (["--snapshot-path", "HERE/none/x"], ["snapshot_path: HERE/none/x: the directory does not exist"]),
        (["--snapshot-path", "HERE"], ["snapshot_path: HERE: found a directory, expected the path of a file"]),
        (["--snapshot-path", "HERE/x", "--redis-address", "HERE/r,HERE/s"], []),
        (["--snapshot-path", "x"], []),
        (["--snapshot-path", "HERE/none/x", "--store", "jetstream"], []),  # such a start imports no file
        (["--redis-address", "1,HERE/none/r"], ["redis_address: HERE/none/r: the directory does not exist"]),
        (["--redis-address", "HERE"], ["redis_address: HERE: found a directory, expected the path of a file"]),
    ],
)
def test_a_path_that_a_start_can_not_use(check: Check, tmp_path: Path, flags: list[str], faults: list[str]) -> None:
    code, output = check(*(flag.replace("HERE", str(tmp_path)) for flag in flags))
    expected = [f"command line: {fault.replace('HERE', str(tmp_path))}" for fault in faults]
    assert (code, wrong(output)) == (2 if faults else 0, expected)


def test_a_path_that_is_a_secret_is_not_shown(check: Check) -> None:
    host_data = {"provider_key": "kv", "secrets": {"snapshot_path": {"kind": "String", "value": f"/{SECRET}/x"}}}
    code, output = check(host_data=host_data)
    assert (code, wrong(output)) == (2, ["secrets: snapshot_path: <redacted>: the directory does not exist"])
    assert SECRET not in output


def test_check_reads_links_even_if_an_option_is_wrong(check: Check) -> None:
    own, host = XKey.generate(), XKey.generate()
    sealed = list(host.seal(json.dumps({"bucket": {"kind": "String", "value": SECRET}}).encode(), own))
    host_data = {
        "provider_key": "kv",
        "config": {"shards_min": "3"},
        "provider_xkey_private_key": own.seed,
        "host_xkey_public_key": host.public_key,
        "link_definitions": [{"source_id": "component\ud800", "target": "kv", "target_secrets": sealed}],
    }
    code, output = check(host_data=host_data)
    assert code == 2
    assert rows(output)["shards_min"] == ("-", "config")
    assert "link component\\ud800 -> kv (default), no interface; options set: none; secrets: bucket\n" in output
    assert wrong(output) == ["config: shards_min: found 3, allowed a power of two from 1 to 65536"]


def test_check_does_not_show_a_seed_in_place_of_its_file(check: Check) -> None:
    seed = "SU" + "A" * 56
    code, output = check("--nkey", seed)
    assert code == 2
    assert rows(output)["nkey"] == ("<redacted>", "command line")
    assert output.endswith(
        "wrong: command line: nkey: <redacted>: No such file or directory; expected the path of a file\n"
    )
    assert seed not in output


@pytest.mark.parametrize(
    ("host_data", "fault"),
    [
        *(({"secrets": {name: {"kind": "String", "value": SECRET}}}, f"{name}: ") for name in ("tls_ca", "tls_key")),
        (
            {"lattice_rpc_user_seed": SECRET},
            "host data: lattice_rpc_user_seed: found 8 characters that are not base32, expected a seed SU...",
        ),
        (
            {"lattice_rpc_user_jwt": SECRET},
            "host data: lattice_rpc_user_seed: the seed is missing, and lattice_rpc_user_jwt needs it",
        ),
    ],
)
def test_check_does_not_show_a_secret_of_host_data(check: Check, host_data: dict[str, object], fault: str) -> None:
    code, output = check(host_data=host_data)
    assert code == 2
    assert wrong(output)[0].startswith(fault)
    assert SECRET not in output


def test_an_error_about_host_data_names_the_file(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Not base64\n")
    code, output = check("--host-data", str(path))
    assert code == 2
    assert output.startswith(
        f"keyvalue-inmemory: found 10 characters in {path} that are not base64, expected host data"
    )


def test_a_field_that_host_data_does_not_set_has_its_default(check: Check) -> None:
    _, output = check(host_data={"provider_key": "kv", "log_level": "", "structured_logging": False})
    assert {name: rows(output)[name] for name in ("nats", "prefix", "log_level", "structured_logging")} == {
        "nats": ("nats://127.0.0.1:4222", "default"),
        "prefix": ("default.kv", "host data"),
        "log_level": ("info", "default"),
        "structured_logging": ("false", "host data"),
    }


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_check_reads_plain_json(check: Check, tmp_path: Path, mark: str) -> None:
    path = tmp_path / "host_data.json"
    path.write_text(mark + json.dumps({"provider_key": "kv", "config": {"page_keys": "7"}}, indent=2))
    code, output = check("--host-data", str(path))
    assert code == 0
    assert rows(output)["page_keys"] == ("7", "config")


def test_check_refuses_tables_and_misspelt_names_of_a_file_as_a_start_does(check: Check, tmp_path: Path) -> None:
    path = tmp_path / "keyvalue.toml"
    path.write_text("\ufeffpage-keys = 5\n[provider]\npage_keys = 5\n")
    code, output = check("--config", str(path))
    assert code == 2
    faults = [
        f"{path}: page-keys: no option has this name; did you mean page_keys?",
        f"{path}: provider: found a table; options are not in tables",
    ]
    assert sorted(wrong(output)) == faults
    ended = subprocess.run(
        [PROVIDER, "serve", "--config", path],
        env={},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 2
    assert all(fault in ended.stderr for fault in faults)


def test_check_as_json(check: Check) -> None:
    code, output = check("--json", "--page-keys", "7")
    assert code == 0
    report = json.loads(output)
    assert report["options"]["page_keys"] == {"value": "7", "from": "command line"}
    assert (report["links"], report["remarks"], report["wrong"]) == ([], [], [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--host-data", "none"), "--host-data: none: No such file or directory"),
        (("--host-data", "-", "--page-keys", "1"), "--host-data: not allowed together with --page-keys"),
        (("--host-data", "/dev/null"), "found nothing in /dev/null, expected host data"),
    ],
)
def test_check_without_any_input(check: Check, flags: tuple[str, ...], message: str) -> None:
    code, output = check(*flags)
    assert code == 2
    assert output.startswith(f"keyvalue-inmemory: {message}")
