"""A provider's life under a double of a wasmCloud 1.x host: links with and without secrets, lost links, stops that kill, many lives.

tests/integration/test_lattice.py tests the answers of the lattice, and tests/test_build.py the end of the built
executable.
"""

from __future__ import annotations

import asyncio
import json
import urllib.request
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from keyvalue_transport.keyvalue.errors import AccessDeniedError, OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.build import built_executable
from tests.conftest import (
    COMPONENT,
    DEADLINE_S,
    HOST_CAPTURE,
    PROVIDER,
    Connect,
    NatsServer,
    connecting,
    in_thread,
    until,
)
from tests.host_double import Health, HostDouble, Hosted, Link, Secrets, XKey, written
from tests.integration.test_host import STOPPED
from tests.nats_configs import Key

# The first test of a built program builds it.
pytestmark = pytest.mark.timeout(300)

SERVING = Health(True, "serving")
KEY = "keyvalue"
#: Lives of providers, and how many run at a time. A start takes a third of a second of one processor, and more for the executable.
CYCLES = 6
CYCLES_LONG = 200
ABREAST = 3


class MonitoredNatsServer(NatsServer):
    """A NATS server that reports its subscriptions."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 'http: "127.0.0.1:-1"')
        self._monitor = "http://" + self._process.wait_for("Starting http monitor on").split()[-1]

    def listening(self) -> list[str]:
        """Return the subjects of all subscriptions."""
        with urllib.request.urlopen(f"{self._monitor}/connz?subs=1", timeout=DEADLINE_S) as answer:
            connections = json.load(answer)["connections"]
        return sorted(subject for connection in connections for subject in connection.get("subscriptions_list", ()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitoredNatsServer]:
    server = MonitoredNatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture
async def host(server: MonitoredNatsServer, tmp_path: Path) -> AsyncIterator[HostDouble]:
    """Open a host with its own lattice. After the test, none of its subjects may have a listener."""
    async with HostDouble.open(server.url, tmp_path) as host:
        yield host
    await until(nobody_listens(server, host.lattice), "subscriptions are left")


@pytest.fixture
async def connect(server: MonitoredNatsServer) -> AsyncIterator[Connect]:
    async with connecting(server.url) as connect:
        yield connect


def nobody_listens(server: MonitoredNatsServer, *texts: str) -> Callable[[], Awaitable[bool]]:
    """Return a condition: no subject with a listener contains one of these texts."""

    async def condition() -> bool:
        subjects = await in_thread(server.listening)
        return not any(text in subject for text in texts for subject in subjects)

    return condition


def link(hosted: Hosted | str = KEY, name: str = "default", secrets: Secrets | None = None, **config: str) -> Link:
    """Return the component's link with these options."""
    target = hosted if isinstance(hosted, str) else hosted.key
    return Link(COMPONENT, target, name, target_config=config, target_secrets=secrets or {})


def lines_with(hosted: Hosted, text: str) -> list[str]:
    """Return the lines of the log that contain the text."""
    return [line for line in hosted.output.splitlines() if text in line]


async def gone(server: MonitoredNatsServer, hosted: Hosted) -> None:
    """Return once nothing of an ended provider is left."""
    assert hosted.left() == []
    await until(nobody_listens(server, hosted.prefix, hosted.xkey.public_key), f"{hosted.prefix} listens")


def test_xkeys_are_those_of_a_host_and_of_nkeys() -> None:
    """The texts are a pair from the capture and, from the tests of nkeys, a pair and a sealed message."""
    own = XKey.from_seed(HOST_CAPTURE["host_data"]["provider_xkey_private_key"])
    assert own.public_key == HOST_CAPTURE["link_put"]["subjects"][-1].split(".")[3]
    sender = XKey.from_seed("SXAKIYZX2POLIHZ5W5YZEWVTH24NLEUETBW3TKIVYRSS3GNHFXO5D4JJZM")
    assert sender.public_key == "XBUJMZHVOPQ2SK5VD3TY4VNBPVU2YFGRLK6EFPEPSMVDUYEBSROWZCEA"
    receiver = XKey.from_seed("SXAHGC56LJFTSRXFC653AT7XZU6WGYIXU4XFPMCT62GGHFLUCSPVYP764M")
    sealed = bytes.fromhex(
        "786b7631467698f98703502f4241b7a734729800929f6d094b06c6e34a78de499ee7debbac9477556f3f"
        "bbe90ffd678bc629e5b7cc7c57404d923846cf010226"
    )
    assert receiver.open(sealed, sender) == b"this is super secret"
    assert receiver.open(sender.seal(b"mine", receiver), sender) == b"mine"


# The whole life


@pytest.mark.parametrize("is_built", [False, True], ids=["installed", "built"])
async def test_the_whole_life(host: HostDouble, server: MonitoredNatsServer, is_built: bool, connect: Connect) -> None:
    config = {"bucket_prefix": "own-"}
    hosted = await host.start(built_executable() if is_built else PROVIDER, config)
    assert hosted.left()  # `gone` would find these while the provider runs
    assert not await nobody_listens(server, hosted.prefix)()
    linked, stranger = await connect(hosted), await connect(hosted, None, None)
    assert await host.health(hosted) == SERVING

    await host.put(link(hosted, bucket_prefix="linked-", access="read-only"))
    assert await host.health(hosted) == SERVING
    await in_thread(hosted.wait_for, "link put: ")  # a thread reads the log
    assert len(lines_with(hosted, "link put: ")) == 1
    await stranger.set("b", "k", b"of all")
    assert await linked.get("b", "k") is None
    with pytest.raises(AccessDeniedError):
        await linked.set("b", "k", b"v")
    await host.put(link(hosted, secrets={"bucket": "hidden", "quota_keys": b"2"}, access="read-write"))
    assert await host.health(hosted) == SERVING
    await linked.set_many("any", {"1": b"", "2": b""})
    with pytest.raises(
        OtherError, match=r"^the buckets of this quota would hold 3 keys; the limit is 2 \(quota_keys\)$"
    ):
        await linked.set("b", "3", b"")
    await host.delete(link(hosted))
    assert await host.health(hosted) == SERVING
    assert await linked.get("b", "k") == b"of all"

    await host.configure(hosted, {"bucket_prefix": "new-"})
    assert await host.health(hosted) == SERVING
    assert await stranger.get("b", "k") is None
    await host.configure(hosted, config)
    assert await host.health(hosted) == SERVING
    assert await stranger.get("b", "k") == b"of all"

    stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert set(hosted.healths) == {SERVING}
    faults = [line for text in ("WARN ", "ERROR", "Traceback") for line in lines_with(hosted, text)]
    assert [line for line in faults if "the last answers may be lost" not in line] == []  # a busy machine may say so
    await gone(server, hosted)


async def test_killed_and_started_again(host: HostDouble, server: MonitoredNatsServer, connect: Connect) -> None:
    hosted = await host.start(PROVIDER)
    await host.put(link(hosted, secrets={"bucket": "hidden"}))
    await host.put(link(hosted, "second", access="read-only"))
    await (await connect(hosted)).set("b", "k", b"v")
    await host.kill(hosted)
    await gone(server, hosted)
    again = await host.restart(hosted)
    assert "with 2 links" in again.output
    assert again.host_data["provider_xkey_private_key"] == hosted.host_data["provider_xkey_private_key"]
    linked, plain = await connect(again), await connect(again, None, None)
    assert await linked.get("b", "k") is None  # it was in memory
    await linked.set("b", "k", b"v")
    assert await plain.get("hidden", "k") == b"v"
    with pytest.raises(AccessDeniedError):
        await (await connect(again, link_name="second")).set("b", "k", b"v")
    assert await host.health(again) == SERVING
    assert (await host.shutdown(again)).answer == STOPPED
    await gone(server, again)


# Links that were put before it listened


async def test_links_that_were_put_before_it_listens_are_found(host: HostDouble, connect: Connect) -> None:
    """The lattice sends the links in this order: when the last is in force, the provider has seen the others.

    Links of host data stay.
    """
    for known in (link(secrets={"bucket": "hidden"}, bucket="open"), link(name="plain", access="read-only")):
        host.links[known.key] = known
    hosted = await host.start(PROVIDER, links=[link(name="late", bucket="late")], provider_key=KEY)
    linked, late = await connect(hosted), await connect(hosted, link_name="late")
    stranger = await connect(hosted, None, None)
    await holds(late, stranger, "late")
    assert {subject.split(".")[4] for subject in host.asked} == {"link", "config"}
    await linked.set("any", "k", b"v")
    assert await stranger.get("hidden", "k") == b"v"
    assert await stranger.get("open", "k") is None
    with pytest.raises(AccessDeniedError):
        await (await connect(hosted, link_name="plain")).set("b", "k", b"v")
    await host.put(link(name="late", bucket="late"))  # received twice, and unchanged
    assert await host.health(hosted) == SERVING
    assert lines_with(hosted, "link put: ") == []


async def test_a_link_whose_secrets_are_missing_denies_everything(host: HostDouble, connect: Connect) -> None:
    """The lattice hands out a reference to a secret as a configuration. Nothing in it is an option."""
    sealed = replace(link(secrets={"bucket": "hidden"}, page_keys="5"), reference="SECRET")
    links = [sealed, link(name="plain", bucket="plain")]
    hosted = await host.start(PROVIDER, {"restart_for_secrets": "false"}, links=links, provider_key=KEY)
    linked, stranger = await connect(hosted), await connect(hosted, None, None)
    await holds(await connect(hosted, link_name="plain"), stranger, "plain")
    for call in (linked.get("b", "k"), linked.set("b", "k", b"v")):
        with pytest.raises(AccessDeniedError):
            await call
    told = await host.health(hosted)
    assert not told.healthy
    assert told.message.startswith(f"link {COMPONENT} -> {KEY} (default): configuration SECRET")
    await host.put(sealed)
    assert await host.health(hosted) == SERVING
    await linked.set("b", "k", b"v")
    assert await stranger.get("hidden", "k") == b"v"


async def test_a_lattice_that_does_not_answer_delays_nothing(host: HostDouble, connect: Connect) -> None:
    host.answer = lambda subject: None
    hosted = await host.start(PROVIDER, links=[link(access="read-only")], provider_key=KEY)
    await (await connect(hosted)).set("b", "k", b"v")  # it serves, though the lattice has not answered
    assert await host.health(hosted) == SERVING
    stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert len(host.asked) == 1
    assert "Traceback" not in hosted.output


async def holds(linked: KeyValueClient, stranger: KeyValueClient, bucket: str) -> None:
    """Return once this is the bucket of a link."""

    async def condition() -> bool:
        await linked.set("any", "probe", bucket.encode())
        return await stranger.get(bucket, "probe") == bucket.encode()

    await until(condition, f"the link's bucket is {bucket}")


# Secrets


@pytest.mark.parametrize("credentials", ["password", "seed"])
async def test_no_secret_is_seen(
    new_nats_server: Callable[[str], NatsServer], tmp_path: Path, credentials: str
) -> None:
    """Search the log at its finest level, health and metrics for secrets of NATS, links, configurations and calls."""
    password, text, octets, clear = (f"{name}-Hu5h" for name in ("password", "text", "octets", "clear"))
    user = Key.new()
    users = f"{{ nkey: {user.public_key} }}, {{ user: u, password: {password} }}"
    nats_server = new_nats_server(f"authorization {{ users: [ {users} ] }}")
    url = nats_server.url.replace("//", f"//u:{password}@")
    by_seed = {"lattice_rpc_user_seed": user.seed, "lattice_rpc_url": nats_server.url}
    secrets: Secrets = {"text": text, "octets": octets.encode(), "bucket": text}
    fields: dict[str, Any] = {
        "provider_key": KEY,
        "secrets": written({"text": text, "octets": octets.encode()}),
        "env_values": {"PASSWORD": clear},
        "otel_config": {"traces_endpoint": clear},
        "log_level": "trace",
        **(by_seed if credentials == "seed" else {}),
    }
    known = Link(COMPONENT, KEY, target_config={"URL": clear}, target_secrets=secrets, source_secrets=secrets)
    watching = Link(KEY, COMPONENT, interfaces=("watcher",), source_secrets={"watch": text})
    broken = Link(COMPONENT, KEY, "broken", target_secrets={"access": text, "ttl_ms": b"\xff"})
    async with HostDouble.open(url, tmp_path) as host:
        host.links[known.key] = known
        hosted = await host.start(
            PROVIDER, {"metrics_address": "127.0.0.1:0", "unknown": clear}, links=[watching], **fields
        )
        await host.put(broken, replace(known, name="second"))
        assert not (await host.health(hosted)).healthy
        async with KeyValueClient(url, hosted.prefix, source_id=COMPONENT, link_name="broken") as client:
            with pytest.raises(AccessDeniedError):
                await client.get("b", "k")
        async with KeyValueClient(url, hosted.prefix, source_id=clear, link_name=clear) as client:
            await client.set(clear, clear, clear.encode())
            assert await client.get(clear, clear) == clear.encode()
        of_another = replace(known, name="third").resolved(host.xkey, host.xkey)
        for message in (
            of_another,
            known.emptied() | {"name": "fourth", "target_config": {"a": [clear]}},
            known.emptied() | {"name": "fifth", "target_secrets": clear},
            [clear],
        ):
            await host.client.publish(hosted.host_subject("linkdefs.put"), json.dumps(message).encode())
        for config in (b"not JSON: " + clear.encode(), json.dumps([clear]).encode()):
            await host.client.publish(hosted.host_subject("config.update"), config)
        for function in ("get", "set"):
            await host.client.publish(
                hosted.subject(function), b"\x01b\x0a" + clear.encode() + b"\xff" * 9, "of.nobody"
            )
        await host.configure(hosted, {"unknown": clear, "page_keys": "none"})
        assert "page_keys" in (await host.health(hosted)).message
        endpoint = hosted.wait_for("metrics at").split()[-1].removesuffix("/metrics")
        metrics, alive = [await in_thread(fetched, f"{endpoint}/{path}") for path in ("metrics", "livez")]
        await in_thread(nats_server.kill)
        await in_thread(hosted.wait_for, "the connection is lost")
        await in_thread(nats_server.start)
        await in_thread(hosted.wait_for, "connected again")
        await host.health(hosted)  # the host is connected again too
        stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert "link put: " in hosted.output
    assert "malformed parameters" in hosted.output
    assert "wrpc_keyvalue_links " in metrics
    seen = "\n".join((hosted.output, metrics, alive, *(health.message for health in hosted.healths)))
    for secret in (password, text, octets, clear, user.seed, hosted.xkey.seed):
        octets_of_secret = secret.encode()
        for form in (
            secret,
            str([*octets_of_secret])[1:-1],
            octets_of_secret.hex(),
            b64encode(octets_of_secret).decode(),
        ):
            assert form not in seen


def fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())


# Many lives


@pytest.mark.parametrize(
    ("is_built", "cycles"),
    [
        pytest.param(False, CYCLES, id="installed"),
        pytest.param(False, CYCLES_LONG, id="installed, long", marks=pytest.mark.long),
        pytest.param(True, CYCLES, id="built", marks=pytest.mark.long),
    ],
)
async def test_many_lives_leave_nothing(
    host: HostDouble, server: MonitoredNatsServer, is_built: bool, cycles: int
) -> None:
    executable = built_executable() if is_built else PROVIDER

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

    await live(0)  # the host's own subscriptions exist from now on
    await until(nobody_listens(server, f"{host.lattice}.kv"), "subscriptions are left")
    before = await in_thread(server.listening)
    numbers = iter(range(1, cycles))
    async with asyncio.TaskGroup() as group:
        for _ in range(ABREAST):
            group.create_task(lives())

    async def as_before() -> bool:
        return bool(await in_thread(server.listening) == before)

    await until(as_before, "subscriptions are left")
