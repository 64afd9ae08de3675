"""Without a host: `keyvalue-inmemory serve`. Real processes, and a real NATS server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PROVIDER, NatsServer
from tests.integration.conftest import Serve
from tests.nats_configs import Key, Operator, credentials_file, nkey_config

SECRET = "a-s3cret"


async def test_it_serves_like_one_started_by_a_host(
    serve: Serve, nats_server: NatsServer, raw: Client, tmp_path: Path
) -> None:
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
    for subject in ("health", "config.update", "default.shutdown", "linkdefs.put"):  # it does not listen to a host
        with pytest.raises(NoRespondersError):
            await raw.request(f"wasmbus.rpc.a.lattice.kv.{subject}", b"{}", timeout=DEADLINE_S)
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--nats", f"ws://u:{SECRET}@a"), "command line: nats: found 'ws://<redacted>@a', allowed"),
        (("--config", "misspelt.toml"), "misspelt.toml: acess: no option has this name; did you mean access?"),
    ],
)
def test_unusable_input_is_refused_in_one_line(
    serve: Serve, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    """tests/provider/config/ tests all refusals."""
    (tmp_path / "misspelt.toml").write_text("acess = 'read-only'\n")
    process = serve(*flags)
    assert process.wait() == 2
    (line,) = process.output.splitlines()
    assert line.startswith(f"keyvalue-inmemory: {message}")
    assert SECRET not in line


def test_output_that_cannot_be_written_is_reported_in_one_line() -> None:
    for arguments in (["--version"], ["config", "check"]):
        with open("/dev/full", "wb") as full:
            ended = subprocess.run([PROVIDER, *arguments], stdout=full, stderr=subprocess.PIPE, timeout=DEADLINE_S)
        assert ended.returncode == 1, arguments
        assert ended.stderr == b"keyvalue-inmemory: standard output: No space left on device\n"
