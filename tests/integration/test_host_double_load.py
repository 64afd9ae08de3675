"""A provider under a double of a wasmCloud 1.x host, and under load: links that change, stops that kill, secrets that stay secret, many lives."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from keyvalue_transport.keyvalue.errors import AccessDeniedError, InterfaceError, NoSuchStoreError
from keyvalue_transport.keyvalue.interface import encode_unit_result
from keyvalue_transport.keyvalue.store import STORE, encode_set
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.subjects import invocation_subject
from tests.conftest import COMPONENT, DEADLINE_S, PROVIDER, Connect, NatsServer, RawInvocation, in_thread, settled
from tests.host_double import PATIENCE_S, HostDouble, Hosted, Link, Secrets, written
from tests.integration.test_host_double import (
    KEY,
    SERVING,
    STOPPED,
    MonitoredNatsServer,
    connect,
    executable,
    gone,
    host,
    installed,
    link,
    nobody_listens,
    server,
    until,
)

# The first test of what is built builds.
pytestmark = pytest.mark.timeout(300)

__all__ = ["connect", "executable", "host", "server"]  # the fixtures

ROUNDS = 30
#: Invocations that wait for their answers at a time, and how many are answered before the host asks to stop.
WINDOW = 256
ANSWERED = 2_000
#: Lives of providers, and how many at a time: a start takes a third of a second of one processor, and of the executable more.
CYCLES = 10
CYCLES_LONG = 200
ABREAST = 3


# Links


@installed
async def test_links_with_secrets_that_change_under_load(host: HostDouble, executable: Path, connect: Connect) -> None:
    """Half of each definition is sealed. A call that mixed two would read what no definition lets it read."""
    hosted = await host.start(executable, {"require_link": "true"})
    old = link(hosted, secrets={"bucket": "old"}, buckets="a,b")
    new = link(hosted, secrets={"bucket": b"new"}, buckets="b,c")
    callers = [await connect(hosted) for _ in range(3)]
    for definition, name in ((old, "a"), (new, "c")):
        await host.put(definition)
        assert await host.health(hosted) == SERVING
        await callers[0].set(name, "which", str(definition.target_secrets["bucket"]).encode())
    over = asyncio.Event()
    seen: dict[str, set[object]] = {name: set() for name in "abc"}

    async def call(client: KeyValueClient, name: str) -> None:
        while not over.is_set():
            try:
                seen[name].add(await client.get(name, "which"))
            except InterfaceError as error:
                seen[name].add(type(error))

    calls = [asyncio.create_task(call(client, name)) for client in callers for name in seen for _ in range(4)]
    for _ in range(ROUNDS):
        for definition in (old, new):
            await host.put(definition)
            assert await host.health(hosted) == SERVING
    over.set()
    await asyncio.wait_for(asyncio.gather(*calls), DEADLINE_S)
    assert seen == {"a": {b"old", NoSuchStoreError}, "b": {b"old", b"b'new'"}, "c": {b"b'new'", NoSuchStoreError}}


# Stopping


class Sets:
    """Invocations of `set`, a window of them in flight all the time, and what came of each, by its number."""

    def __init__(self, client: Client, hosted: Hosted) -> None:
        self.sent = 0
        self.refused: set[int] = set()
        self.taken: set[int] = set()
        self.results: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.many_ended = asyncio.Event()
        self._client = client
        self.subject = invocation_subject(hosted.prefix, STORE, "set")
        self._inbox = client.new_inbox()
        self._window = asyncio.Semaphore(WINDOW)

    async def run(self) -> None:
        """Invoke until it is cancelled."""
        await self._client.subscribe(f"{self._inbox}.>", cb=self._on_message, pending_msgs_limit=-1)
        for number in itertools.count():
            await self._window.acquire()
            params = encode_set(b"b", str(number % 1000).encode(), bytes(100))
            await self._client.publish(self.subject, params, f"{self._inbox}.{number}")
            self.sent = number + 1

    async def _on_message(self, message: Msg) -> None:
        number, _, part = message.subject.removeprefix(f"{self._inbox}.").partition(".")
        over = False
        if part:
            self.results[int(number)] = self.results.get(int(number), b"") + message.data
            if over := not message.data:
                self.ended.append(int(number))
        elif over := bool(message.headers):  # NATS' own word, that nobody listens
            self.refused.add(int(number))
        else:
            self.taken.add(int(number))
        if over:
            self._window.release()
        if len(self.ended) >= ANSWERED:
            self.many_ended.set()


async def test_a_stop_under_load_loses_nothing(
    host: HostDouble, server: MonitoredNatsServer, executable: Path, connect: Connect
) -> None:
    """The host kills when it has the reply. What was taken till then has its whole answer, and what was not is NATS' to refuse."""
    hosted = await host.start(executable)
    client = await nats.connect(server.url)
    sets = Sets(client, hosted)
    running = asyncio.create_task(sets.run())
    await asyncio.wait_for(sets.many_ended.wait(), DEADLINE_S)
    half = await RawInvocation.begin(host.client, sets.subject, encode_set(b"b", b"k", bytes(100))[:-1])
    await half.handshake()
    stop = await host.shutdown(hosted)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await settled(client)
    assert stop.answer == STOPPED, f"nothing within {PATIENCE_S} s"
    assert stop.took_s <= PATIENCE_S
    assert stop.exit_code in (0, -signal.SIGKILL)
    numbers = set(range(sets.sent))
    assert len(numbers) > ANSWERED
    assert numbers == sets.taken | sets.refused
    assert not sets.taken & sets.refused
    assert sorted(sets.ended) == sorted(sets.taken)
    assert sets.results == dict.fromkeys(sets.taken, encode_unit_result(None))
    assert await half.result() == b""
    assert f"stopped: {len(sets.taken)} invocations answered" in hosted.output
    await client.close()
    await gone(server, hosted)


# Secrets


@pytest.mark.parametrize("credentials", ["password", "seed"])
async def test_no_secret_is_seen(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path, executable: Path, credentials: str
) -> None:
    password, text, octets, clear = (f"{name}-Hu5h" for name in ("password", "text", "octets", "clear"))
    user = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    public_key = nkeys.from_seed(bytearray(user.encode())).public_key.decode()
    users = f"{{ nkey: {public_key} }}, {{ user: u, password: {password} }}"
    nats_server = new_nats_server(f"authorization {{ users: [ {users} ] }}")
    url = nats_server.url.replace("//", f"//u:{password}@")
    by_seed = {"lattice_rpc_user_seed": user, "lattice_rpc_url": nats_server.url}
    secrets: Secrets = {"text": text, "octets": octets.encode(), "bucket": text}
    fields: dict[str, Any] = {
        "provider_key": KEY,
        "secrets": written({"text": text, "octets": octets.encode()}),
        "env_values": {"PASSWORD": clear},
        "log_level": "debug",
        **(by_seed if credentials == "seed" else {}),
    }
    known = Link(COMPONENT, KEY, target_config={"URL": clear}, target_secrets=secrets, source_secrets=secrets)
    watching = Link(KEY, COMPONENT, interfaces=("watcher",), source_secrets={"watch": text})
    broken = Link(COMPONENT, KEY, "broken", target_secrets={"access": text, "ttl_ms": b"\xff"})
    async with HostDouble.open(url, tmp_path) as host:
        host.links[known.key] = known
        config = {"metrics_address": "127.0.0.1:0", "unknown": clear}
        hosted = await host.start(executable, config, links=[watching], **fields)
        await host.put(broken, replace(known, name="second"))
        assert not (await host.health(hosted)).healthy
        async with KeyValueClient(url, hosted.prefix, source_id=COMPONENT, link_name="broken") as client:
            with pytest.raises(AccessDeniedError):
                await client.get("b", "k")
        of_another = replace(known, name="third").resolved(host.xkey, host.xkey)
        await host.client.publish(hosted.subject("linkdefs.put"), json.dumps(of_another).encode())
        await host.configure(hosted, {"unknown": clear, "page_keys": "none"})
        assert "page_keys" in (await host.health(hosted)).message
        metrics = await in_thread(scraped, hosted.wait_for("metrics at").split()[-1])
        await in_thread(nats_server.kill)
        await in_thread(hosted.wait_for, "the connection is lost")
        await in_thread(nats_server.start)
        await in_thread(hosted.wait_for, "connected again")
        await host.health(hosted)  # the host is connected again too
        stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert "link put: " in hosted.output
    assert "wrpc_keyvalue_links " in metrics
    seen = "\n".join((hosted.output, metrics, *(health.message for health in hosted.healths)))
    for secret in (password, text, octets, clear, user, hosted.xkey.seed):
        for form in (
            secret,
            str(list(secret.encode()))[1:-1],
            secret.encode().hex(),
            b64encode(secret.encode()).decode(),
        ):
            assert form not in seen


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())


# Many lives


@pytest.mark.parametrize("cycles", [CYCLES, pytest.param(CYCLES_LONG, marks=pytest.mark.long)])
async def test_many_lives_leave_nothing(
    host: HostDouble, server: MonitoredNatsServer, executable: Path, cycles: int
) -> None:
    async def live(number: int) -> None:
        hosted = await host.start(executable)
        definition = link(hosted, bucket=f"bucket-{number}")
        await host.put(definition)
        assert await host.health(hosted) == SERVING
        async with KeyValueClient(
            server.url, hosted.prefix, source_id=COMPONENT, link_name="default", timeout_s=DEADLINE_S
        ) as client:
            await client.set("any", "k", b"v")
            assert await client.get(f"bucket-{number}", "k") == b"v"
        stop = await host.shutdown(hosted)
        assert stop.answer == STOPPED
        assert "Traceback" not in hosted.output
        assert hosted.left() == []
        await host.delete(definition)

    async def lives() -> None:
        for number in numbers:
            await live(number)

    host.environment = {}  # whatever measures coverage makes a start three times as long
    await live(0)  # what the host itself listens to is there from now on
    await until(nobody_listens(server, f"{host.lattice}.kv"), "subscriptions are left")
    before = await in_thread(server.listening)
    numbers = iter(range(1, cycles if executable == PROVIDER else CYCLES))
    async with asyncio.TaskGroup() as group:
        for _ in range(ABREAST):
            group.create_task(lives())

    async def as_before() -> bool:
        return bool(await in_thread(server.listening) == before)

    await until(as_before, "subscriptions are left")
