"""wrpc-kv watch: the changes that it prints, and the link that it adds to a lattice or to a provider, and removes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from keyvalue_provider.client.watch_link import watch_option
from keyvalue_provider.config.options import WatchingLinkOptions
from keyvalue_provider.watching.patterns import Watch
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PROVIDER, Launch, NatsServer, Process, in_thread
from tests.host_double import HostDouble, Hosted
from tests.provider.client.test_streams import WRPC_KV, run


class Lattice(HostDouble):
    """A host whose lattice also takes links and configurations, as a wasmCloud 1.9 host does."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.configurations: dict[str, dict[str, str]] = {}
        self.put_links: dict[tuple[str, str], dict[str, Any]] = {}
        self.refusal = ""

    async def _on_request(self, message: Any) -> None:
        request = message.subject.removeprefix(f"wasmbus.ctl.v1.{self.lattice}.")
        content = json.loads(message.data or b"{}")
        if request.startswith("config.put."):
            self.configurations[request.removeprefix("config.put.")] = content
        elif request.startswith("config.del."):
            del self.configurations[request.removeprefix("config.del.")]
        elif request == "link.put" and not self.refusal:
            assert content["target_config"] == []
            self.put_links[content["source_id"], content["name"]] = content
            (name,) = content["source_config"]
            resolved = content | {"source_config": self.configurations[name], "target_config": {}}
            await self._tell(content["source_id"], "linkdefs.put", resolved)
        elif request == "link.del":
            assert content.keys() == {"source_id", "name", "wit_namespace", "wit_package"}
            link = self.put_links.pop((content["source_id"], content["name"]))
            await self._tell(link["source_id"], "linkdefs.del", link | {"source_config": {}, "target_config": {}})
        elif request != "link.put":
            await super()._on_request(message)
            return
        answer = {"success": not (request == "link.put" and self.refusal), "message": self.refusal}
        await self.client.publish(message.reply, json.dumps(answer).encode())


@pytest.fixture
async def lattice(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Lattice]:
    async with Lattice.open(nats_server.url, tmp_path) as host:
        assert isinstance(host, Lattice)
        yield host


@contextmanager
def watching(command: Sequence[str], *arguments: str, directory: Path) -> Iterator[Process]:
    """Run the command. Its output has the notice and the changes."""
    process = Process([*command, "watch", *arguments], directory, {})
    try:
        yield process
    finally:
        process.kill()


def started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the command with pipes."""
    return subprocess.Popen(command, env={}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def command_of(nats_server: NatsServer, prefix: str) -> Sequence[str]:
    return WRPC_KV, "--nats", nats_server.url, "--prefix", prefix, "--bucket", "a/b"


async def test_changes_over_a_link_of_the_lattice(lattice: Lattice, nats_server: NatsServer, tmp_path: Path) -> None:
    hosted: Hosted = await lattice.start(PROVIDER)
    async with KeyValueClient(nats_server.url, hosted.prefix) as client:
        with watching(command_of(nats_server, hosted.prefix), "k*", directory=tmp_path) as process:
            await in_thread(process.wait_for, "wrpc-kv: watching over the link ")
            ((source, name),) = lattice.put_links
            assert source == hosted.key
            assert lattice.configurations == {name: {"watch": r"SET@a\/b/k*,DEL@a\/b/k*", "watch_bucket": "{bucket}"}}
            await client.set("a/b", "k\n1", b"\x1b[2J")
            await client.set("a/b", "other", b"v")
            await client.set("a", "k", b"v")
            await client.set("a/b", "k2", b"\xff" * 2_000_000)
            await client.delete("a/b", "k\n1")
            await in_thread(process.wait_for, "delete ")
            process.signal(signal.SIGINT)
            assert await in_thread(process.wait) == 0
            assert sorted(process.output.splitlines()[1:]) == sorted(
                [r"set k\n1 \x1b[2J", "set k2 " + r"\xff" * 2_000_000, r"delete k\n1"]
            )
    assert (lattice.put_links, lattice.configurations) == ({}, {})
    assert await lattice.health(hosted) == (True, "serving")


async def test_changes_as_json_until_nobody_reads_them(
    lattice: Lattice, nats_server: NatsServer, tmp_path: Path
) -> None:
    hosted = await lattice.start(PROVIDER)
    command = (*command_of(nats_server, hosted.prefix), "watch", "--json")
    async with KeyValueClient(nats_server.url, hosted.prefix) as client:
        process = await in_thread(started, command)
        try:
            await in_thread(process.stderr.readline)
            await client.set("a/b", "k", b"v")
            line = await in_thread(process.stdout.readline)
            assert json.loads(line) == {"change": "set", "bucket": "a/b", "key": "k", "value": "v"}
            process.stdout.close()
            await client.delete("a/b", "k")
            assert await in_thread(process.wait, DEADLINE_S) == 0
            assert process.stderr.read() == b""
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            process.stderr.close()
    assert (lattice.put_links, lattice.configurations) == ({}, {}), "the link is removed"


async def test_a_host_that_refuses_the_link(lattice: Lattice, nats_server: NatsServer) -> None:
    hosted = await lattice.start(PROVIDER)
    lattice.refusal = "no such link"
    code, _, err = await in_thread(run, command_of(nats_server, hosted.prefix), "watch")
    assert (code, err.count(b"\n")) == (1, 1)
    assert err.endswith(b".link.put: the host refuses: no such link\n")
    assert lattice.configurations == {}


async def test_a_provider_without_a_host_in_the_lattice(
    launch: Launch, nats_server: NatsServer, tmp_path: Path
) -> None:
    """run.sh starts such a provider."""
    provider = launch(lattice_rpc_prefix="hostless")
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        with watching(command_of(nats_server, provider.prefix), "--json", directory=tmp_path) as process:
            await in_thread(process.wait_for, "wrpc-kv: watching over the link ")
            await client.set("a/b", "k", b"\xff")
            await in_thread(process.wait_for, '"base64": "/w=="')
            process.signal(signal.SIGTERM)
            assert await in_thread(process.wait) == 0
            await client.set("a/b", "k", b"v")
    assert len(process.output.splitlines()) == 2


async def test_a_component_of_the_user(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    options = {"watch": "SET@*", "watch_bucket": "{bucket}"}
    link = {"source_id": "own", "target": "mine", "interfaces": ["watcher"], "source_config": options}
    provider = launch(provider_key="own", link_definitions=[link])
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        with watching(command_of(nats_server, provider.prefix), "--component", "mine", directory=tmp_path) as process:
            notice = await in_thread(process.wait_for, "needed: a link from own to it with the interface watcher")
            assert r"watch=SET@a\/b/*,DEL@a\/b/* watch_bucket={bucket}" in notice
            await client.set("any", "k", b"v")
            await in_thread(process.wait_for, "set k v")


async def test_a_provider_without_links(nats_server: NatsServer, tmp_path: Path) -> None:
    arguments: list[str | Path] = [PROVIDER, "serve", "--nats", nats_server.url, "--prefix", "alone.served"]
    provider = Process(arguments, tmp_path, {})
    try:
        await in_thread(provider.wait_for, "ready: serving")
        code, out, err = await in_thread(run, command_of(nats_server, "alone.served"), "watch")
        assert (code, out, b"only a link makes a watcher" in err, err.count(b"\n")) == (1, b"", True, 1)
    finally:
        provider.kill()


async def test_subscriptions_that_nats_does_not_allow(new_nats_server: Callable[[str], NatsServer]) -> None:
    """The command would otherwise wait for changes that cannot arrive."""
    server = new_nats_server(
        'authorization { users: [{ user: u, password: p, permissions: { subscribe: "_INBOX.>" } }] }'
    )
    command = (WRPC_KV, "--nats", server.url.replace("//", "//u:p@"), "watch", "--component", "c")
    code, out, err = await in_thread(run, command)
    assert (code, out) == (1, b"")
    assert b'permissions violation for subscription to "default.c.wrpc' in err.splitlines()[-1].lower()


@pytest.mark.parametrize(
    ("bucket", "pattern", "key", "other"),
    [
        ("b", "*", b"anything", None),
        ("b", "k", b"k", b"k2"),
        ("a,b/c*\\ ", "k,/ *", b"k,/ more", b"k"),
        (" ", r"k\*", b"k*", b"k2"),
        ("b", r"\\*", b"\\x", b"x"),
    ],
)
def test_the_option_of_a_pattern(bucket: str, pattern: str, key: bytes, other: bytes | None) -> None:
    watch = Watch.of(WatchingLinkOptions(watch=watch_option(bucket, pattern)))
    assert watch is not None
    for deletes in (False, True):
        assert watch.matches(bucket.encode(), key, deletes)
        assert not watch.matches(b"another", key, deletes)
        assert other is None or not watch.matches(bucket.encode(), other, deletes)


@pytest.mark.parametrize("pattern", ["", "a\\", "*a", "**"])
def test_a_malformed_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern: found "):
        watch_option("b", pattern)
