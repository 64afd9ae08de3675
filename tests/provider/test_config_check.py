"""What `keyvalue-inmemory config check` says. Real processes; no NATS server, since it connects to nothing."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from keyvalue_provider.config.options import SERVE_OPTIONS
from tests.conftest import DEADLINE_S, HOST_CAPTURE, PROVIDER, host_environment
from tests.host_double import XKey

SECRET = "a-s3cret"


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


def rows(output: str) -> dict[str, tuple[str, str]]:
    return {line.split()[0]: (line[24:56].strip(), line[58:]) for line in output.splitlines()}


def test_check_shows_every_option_and_where_it_came_from(tmp_path: Path) -> None:
    path = tmp_path / "keyvalue.toml"
    path.write_text("page_keys = 7\nbuckets = ['b', 'a']\nkeys_max = 1\n")
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
    assert shown.keys() >= SERVE_OPTIONS.keys()
    assert output.endswith("nothing is wrong\n")
    assert SECRET not in output


def test_check_says_all_that_is_wrong() -> None:
    code, output = check(
        "--page-keys",
        "x",
        "--tls-ca",
        "none.pem",
        environment={"KEYVALUE_ACCESS": "all", "KEYVALUE_TTL_M": "1", "KEYVALUE_HOST": "1"},
    )
    assert code == 2
    wrong = [line for line in output.splitlines() if line.startswith("wrong: ")]
    assert wrong == [
        "wrong: environment: ttl_m: no option has this name; did you mean ttl_ms?",
        "wrong: environment: access: found 'all', allowed read-write or read-only",
        "wrong: command line: page_keys: found 'x', allowed a whole number from 1",
        "wrong: environment: no option has this name: host",
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
    wrong = [line.removeprefix("wrong: ") for line in output.splitlines() if line.startswith("wrong: ")]
    assert wrong[0] == "config: no option has this name: other"
    assert wrong[1].startswith("link component -> kv (sealed): target_secrets: found 8 bytes of another form")
    assert wrong[2].startswith("link component -> kv (second): everything is denied: access: found 8 characters")
    assert wrong[3].startswith("link kv -> component (w): watch[0]: found 1 characters")
    assert wrong[4] == "link component -> kv (default): no option has this name: url"
    assert SECRET not in output


def check_links(*links: dict[str, Any], **fields: object) -> list[str]:
    """What `config check` says of host data with these links, without its tables."""
    host_data = {"provider_key": "kv", "link_definitions": links, **fields}
    code, output = check("--host-data", "-", stdin=base64.b64encode(json.dumps(host_data).encode()))
    said = [line for line in output.splitlines() if line.startswith(("remark: ", "wrong: "))]
    assert code == (2 if any(line.startswith("wrong: ") for line in said) else 0)
    return said


def test_check_tells_unknown_misspelt_and_old_names_apart() -> None:
    link = {"source_id": "component", "target": "kv", "interfaces": ["store"]}
    watching = {"source_id": "kv", "target": "component", "interfaces": ["watcher"]}
    said = check_links(
        link | {"target_config": {"keys_max": "7", "url": "redis://", "timeout": "1"}},
        link | {"name": "second", "target_config": {"acess": "read-only"}},
        watching | {"source_config": {"URL": "redis://"}},
        watching | {"name": "second", "source_config": {"watch": "SET@*", "watch_buckets": "1"}},
        config={"bytes_max": "7", "note": ""},
    )
    assert said == [
        "remark: config: bytes_max is deprecated (use quota_bytes)",
        "remark: link component -> kv (default): keys_max is deprecated (use quota_keys)",
        "remark: link kv -> component (default): it watches nothing: the option watch is not set",
        "wrong: config: no option has this name: note",
        "wrong: link component -> kv (second): everything is denied: acess: no option has this name; did you mean access?",
        "wrong: link kv -> component (second): watch_buckets: no option has this name; did you mean watch_bucket?",
        "wrong: link component -> kv (default): no option has this name: url, timeout",
        "wrong: link kv -> component (default): no option has this name: URL",
    ]


def test_an_old_name_is_only_a_remark() -> None:
    link = {"source_id": "component", "target": "kv", "target_config": {"keys_max": "7"}}
    assert check_links(link) == ["remark: link component -> kv (default): keys_max is deprecated (use quota_keys)"]


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


def test_check_as_json() -> None:
    code, output = check("--json", "--page-keys", "7")
    assert code == 0
    report = json.loads(output)
    assert report["options"]["page_keys"] == {"value": "7", "from": "command line"}
    assert (report["links"], report["remarks"], report["wrong"]) == ([], [], [])


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
