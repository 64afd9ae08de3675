"""A provider's life under a double of a wasmCloud 1.x host: the executable as it is launched, links with and without secrets, lost links, stops that kill."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from keyvalue_transport.keyvalue.errors import AccessDeniedError, OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.build import built_executable
from tests.conftest import COMPONENT, DEADLINE_S, HOST_CAPTURE, PROVIDER, Connect, NatsServer, connecting, in_thread
from tests.host_double import (
    Health,
    HostDouble,
    Hosted,
    Link,
    Secrets,
    XKey,
)

# The first test of what is built builds.
pytestmark = pytest.mark.timeout(300)

SERVING = Health(True, "serving")
STOPPED = b"provider shutdown handled successfully"
KEY = "keyvalue"
#: What is one thing whatever was started.
installed = pytest.mark.parametrize("executable", ["installed"], indirect=True)


class MonitoredNatsServer(NatsServer):
    """A NATS server that tells what is listened to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, 'http: "127.0.0.1:-1"')
        self._monitor = "http://" + self._process.wait_for("Starting http monitor on").split()[-1]

    def listening(self) -> list[str]:
        """The subjects of all subscriptions."""
        with urllib.request.urlopen(f"{self._monitor}/connz?subs=1", timeout=DEADLINE_S) as answer:
            connections = json.load(answer)["connections"]
        return sorted(subject for connection in connections for subject in connection.get("subscriptions_list", ()))


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Return once it holds, for what nobody tells of. Each look is a request, so it takes its time."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await condition():
                pass
    except TimeoutError:
        raise AssertionError(f"not within {DEADLINE_S:g} s: {what}") from None


@pytest.fixture(scope="module", params=["installed", "built"])
def executable(request: pytest.FixtureRequest) -> Path:
    """What a host starts: the installed command, or the self-contained executable."""
    return PROVIDER if request.param == "installed" else built_executable()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MonitoredNatsServer]:
    server = MonitoredNatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture
async def host(server: MonitoredNatsServer, tmp_path: Path) -> AsyncIterator[HostDouble]:
    """A host with a lattice of its own. Behind the test nothing of it may listen."""
    async with HostDouble.open(server.url, tmp_path) as host:
        yield host
    await until(nobody_listens(server, host.lattice), "subscriptions are left")


@pytest.fixture
async def connect(server: MonitoredNatsServer) -> AsyncIterator[Connect]:
    async with connecting(server.url) as connect:
        yield connect


def nobody_listens(server: MonitoredNatsServer, *texts: str) -> Callable[[], Awaitable[bool]]:
    """Whether no subject that anybody listens to contains one of these texts."""

    async def condition() -> bool:
        subjects = await in_thread(server.listening)
        return not any(text in subject for text in texts for subject in subjects)

    return condition


def link(hosted: Hosted | str = KEY, name: str = "default", secrets: Secrets | None = None, **config: str) -> Link:
    """The component's link with these options."""
    target = hosted if isinstance(hosted, str) else hosted.key
    return Link(COMPONENT, target, name, target_config=config, target_secrets=secrets or {})


async def other(call: Awaitable[object]) -> str:
    """The message of `other`."""
    with pytest.raises(OtherError) as caught:
        await call
    return caught.value.message


def lines_with(hosted: Hosted, text: str) -> list[str]:
    """The lines of its log that contain the text."""
    return [line for line in hosted.output.splitlines() if text in line]


async def gone(server: MonitoredNatsServer, hosted: Hosted) -> None:
    """Nothing of an ended provider is left."""
    assert hosted.left() == []
    await until(nobody_listens(server, hosted.prefix, hosted.xkey.public_key), f"{hosted.prefix} listens")


# Keys


@pytest.mark.parametrize(
    ("seed", "public_key"),
    [
        (
            HOST_CAPTURE["host_data"]["provider_xkey_private_key"],
            HOST_CAPTURE["link_put"]["subjects"][-1].split(".")[3],
        ),
        # From nkeys' own tests.
        (
            "SXAKIYZX2POLIHZ5W5YZEWVTH24NLEUETBW3TKIVYRSS3GNHFXO5D4JJZM",
            "XBUJMZHVOPQ2SK5VD3TY4VNBPVU2YFGRLK6EFPEPSMVDUYEBSROWZCEA",
        ),
    ],
)
def test_xkeys_are_those_of_a_host(seed: str, public_key: str) -> None:
    assert XKey.from_seed(seed).public_key == public_key


def test_what_nkeys_has_sealed_is_opened() -> None:
    receiver = XKey.from_seed("SXAHGC56LJFTSRXFC653AT7XZU6WGYIXU4XFPMCT62GGHFLUCSPVYP764M")
    sender = XKey.from_seed("SXAKIYZX2POLIHZ5W5YZEWVTH24NLEUETBW3TKIVYRSS3GNHFXO5D4JJZM")
    sealed = bytes.fromhex(
        "786b7631467698f98703502f4241b7a734729800929f6d094b06c6e34a78de499ee7debbac9477556f3f"
        "bbe90ffd678bc629e5b7cc7c57404d923846cf010226"
    )
    assert receiver.open(sealed, sender) == b"this is super secret"
    assert receiver.open(sender.seal(b"mine", receiver), sender) == b"mine"


# The whole life


async def test_the_whole_life(
    host: HostDouble, server: MonitoredNatsServer, executable: Path, connect: Connect
) -> None:
    config = {"bucket_prefix": "own-"}
    hosted = await host.start(executable, config)
    assert 0 < hosted.ready_s < DEADLINE_S
    assert hosted.left()  # what `gone` looks for is seen while it is there
    assert bool(hosted.temporary) is (executable != PROVIDER)
    assert not await nobody_listens(server, hosted.prefix)()
    linked, stranger = await connect(hosted), await connect(hosted, None, None)
    assert await host.health(hosted) == SERVING

    await host.put(link(hosted, bucket_prefix="linked-", access="read-only"))
    assert await host.health(hosted) == SERVING
    await in_thread(hosted.wait_for, "link put: ")  # the log is read by a thread, which may be behind
    assert len(lines_with(hosted, "link put: ")) == 1
    await stranger.set("b", "k", b"of all")
    assert await linked.get("b", "k") is None
    with pytest.raises(AccessDeniedError):
        await linked.set("b", "k", b"v")
    await host.put(link(hosted, secrets={"bucket": "hidden", "quota_keys": b"2"}, access="read-write"))
    assert await host.health(hosted) == SERVING
    await linked.set_many("any", {"1": b"", "2": b""})
    assert (
        await other(linked.set("b", "3", b""))
        == "the buckets of this quota would hold 3 keys; the limit is 2 (quota_keys)"
    )
    await host.delete(link(hosted))
    assert await host.health(hosted) == SERVING
    assert await linked.get("b", "k") == b"of all"

    await host.configure(hosted, {"bucket_prefix": "new-"})
    assert await host.health(hosted) == SERVING
    assert await stranger.get("b", "k") is None
    await host.configure(hosted, config)
    assert await host.health(hosted) == SERVING
    assert await stranger.get("b", "k") == b"of all"

    assert await host.ask_to_stop(hosted, "NANOTHERHOST", timeout_s=0.05) is None
    assert await host.health(hosted) == SERVING
    stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert set(hosted.healths) == {SERVING}
    assert lines_with(hosted, "WARNING") + lines_with(hosted, "ERROR") + lines_with(hosted, "Traceback") == []
    await gone(server, hosted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it(
    host: HostDouble, server: MonitoredNatsServer, executable: Path, number: signal.Signals
) -> None:
    hosted = await host.start(executable)
    hosted.signal(number)
    assert await host.ended(hosted) == 0
    await gone(server, hosted)


async def test_killed_and_started_again(
    host: HostDouble, server: MonitoredNatsServer, executable: Path, connect: Connect
) -> None:
    hosted = await host.start(executable)
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


async def test_host_data_that_can_not_be_used_ends_it(host: HostDouble, executable: Path) -> None:
    hosted = await host.start(executable, {"page_keys": "none"}, wait=False)
    assert await host.ended(hosted) == 2
    assert hosted.output == "keyvalue-inmemory: config: page_keys: found 'none', allowed a whole number from 1\n"
    assert hosted.left() == []


# Links that were put while it did not listen


@installed
async def test_a_link_that_was_put_before_it_listens_is_found(
    host: HostDouble, executable: Path, connect: Connect
) -> None:
    hosted = await host.start(executable, links=[link(bucket="found")], provider_key=KEY)
    linked, stranger = await connect(hosted), await connect(hosted, None, None)
    await holds(linked, stranger, "found")
    assert await host.health(hosted) == SERVING
    assert {subject.split(".")[4] for subject in host.asked} == {"link", "config"}
    await host.put(link(hosted, bucket="found"))  # heard twice, and no news
    assert await host.health(hosted) == SERVING
    assert lines_with(hosted, "link put: ") == []


@installed
async def test_a_link_of_the_lattice_takes_nothing_from_one_with_secrets(
    host: HostDouble, executable: Path, connect: Connect
) -> None:
    """The lattice tells the links in this order, so the first was looked at when the last holds."""
    for known in (link(secrets={"bucket": "hidden"}, bucket="open"), link(name="plain", access="read-only")):
        host.links[known.key] = known
    hosted = await host.start(executable, links=[link(name="late", bucket="late")], provider_key=KEY)
    linked, late = await connect(hosted), await connect(hosted, link_name="late")
    stranger = await connect(hosted, None, None)
    await holds(late, stranger, "late")
    await linked.set("any", "k", b"v")
    assert await stranger.get("hidden", "k") == b"v"
    assert await stranger.get("open", "k") is None
    with pytest.raises(AccessDeniedError):
        await (await connect(hosted, link_name="plain")).set("b", "k", b"v")
    assert await host.health(hosted) == SERVING


@installed
@pytest.mark.parametrize("reference", ["SECRET_", "SECRET"])
async def test_a_link_whose_secrets_nobody_tells_denies_everything(
    host: HostDouble, executable: Path, connect: Connect, reference: str
) -> None:
    """What a host takes for a reference to a secret, the lattice hands out as the configuration that it is: nothing in it is an option."""
    sealed = replace(link(secrets={"bucket": "hidden"}, page_keys="5"), reference=reference)
    hosted = await host.start(executable, links=[sealed, link(name="plain", bucket="plain")], provider_key=KEY)
    linked, stranger = await connect(hosted), await connect(hosted, None, None)
    await holds(await connect(hosted, link_name="plain"), stranger, "plain")
    with pytest.raises(AccessDeniedError):
        await linked.get("b", "k")
    with pytest.raises(AccessDeniedError):
        await linked.set("b", "k", b"v")
    told = await host.health(hosted)
    assert not told.healthy
    assert told.message.startswith(f"link {COMPONENT} -> {KEY} (default): ")
    assert reference in told.message
    await host.put(sealed)
    assert await host.health(hosted) == SERVING
    await linked.set("b", "k", b"v")
    assert await stranger.get("hidden", "k") == b"v"


@installed
async def test_a_link_that_was_deleted_meanwhile_is_not_found(
    host: HostDouble, executable: Path, connect: Connect
) -> None:
    """The lattice answers with what it knew when it was asked; what the host says while the answer is under way is newer."""
    requests = await host.client.subscribe(f"wasmbus.ctl.v1.{host.lattice}.link.get")
    host.answer = lambda subject: None if subject.endswith("link.get") else host.lattice_answer(subject)
    late = [link(name="deleted", access="read-only"), link(name="kept", bucket="kept")]
    hosted = await host.start(executable, links=late, provider_key=KEY)
    request = await requests.next_msg(DEADLINE_S)
    old = host.lattice_answer(request.subject)
    await host.delete(late[0])
    assert await host.health(hosted) == SERVING
    host.links[late[0].key] = late[0]  # its configuration is still to be had
    assert old is not None
    await host.client.publish(request.reply, old)
    stranger = await connect(hosted, None, None)
    await holds(await connect(hosted, link_name="kept"), stranger, "kept")
    await (await connect(hosted, link_name="deleted")).set("b", "k", b"v")


@installed
async def test_a_lattice_that_does_not_answer_delays_nothing(
    host: HostDouble, executable: Path, connect: Connect
) -> None:
    host.answer = lambda subject: None
    hosted = await host.start(executable, links=[link(access="read-only")], provider_key=KEY)
    await (await connect(hosted)).set("b", "k", b"v")  # it serves, and the lattice was asked at most
    assert await host.health(hosted) == SERVING
    stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert len(host.asked) == 1
    assert "Traceback" not in hosted.output


@installed
async def test_without_a_lattice_it_serves(server: MonitoredNatsServer, executable: Path, tmp_path: Path) -> None:
    async with HostDouble.open(server.url, tmp_path, has_lattice=False) as host:
        hosted = await host.start(executable)
        assert await host.health(hosted) == SERVING
        assert (await host.shutdown(hosted, kill=False)).exit_code == 0
        assert lines_with(hosted, "WARNING") == []
        assert "Traceback" not in hosted.output


@installed
@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"success": false, "message": "no"}',
        b'{"success": true, "message": "", "response": {}}',
        b'{"success": true, "message": "", "response": [1, {}, {"source_id": "c"}, {"source_id": 1, "target": "keyvalue"}]}',
    ],
)
async def test_an_answer_that_is_none_does_no_harm(
    host: HostDouble, executable: Path, connect: Connect, told: bytes
) -> None:
    host.answer = lambda subject: told
    hosted = await host.start(executable, provider_key=KEY)
    await (await connect(hosted)).set("b", "k", b"v")
    await host.put(link(hosted, access="read-only"))
    assert await host.health(hosted) == SERVING
    with pytest.raises(AccessDeniedError):
        await (await connect(hosted)).set("b", "k", b"v")
    stop = await host.shutdown(hosted, kill=False)
    assert (stop.answer, stop.exit_code) == (STOPPED, 0)
    assert "Traceback" not in hosted.output


async def holds(linked: KeyValueClient, stranger: KeyValueClient, bucket: str) -> None:
    """Return once the bucket of a link is this one."""

    async def condition() -> bool:
        await linked.set("any", "probe", bucket.encode())
        return await stranger.get(bucket, "probe") == bucket.encode()

    await until(condition, f"the link's bucket is {bucket}")
