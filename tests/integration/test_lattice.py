"""The lattice's links, which the provider asks for at the start, over a real NATS server and with a lattice by hand.

The tests cover which links are accepted, links that cannot be read, and malformed answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from keyvalue_provider.health import Health
from keyvalue_provider.host import lattice as lattice_module
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.lattice import LatticeLink, lattice_links
from keyvalue_provider.host.links import Links
from keyvalue_provider.host.restart_mark import RestartMark
from keyvalue_provider.host.session import HostSession
from keyvalue_transport.nats.connection import Connection, ConnectionOptions, Message, Subscription
from tests.conftest import DEADLINE_S, NatsServer, in_thread, settled
from tests.log_lines import LogLines

KEY = "kv"
LINK = {"source_id": "component", "target": KEY, "name": "default", "interfaces": ["store"]}
MINE = ("component", KEY, "default")


@pytest.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(ConnectionOptions((nats_server.url,)))
    yield connection
    await connection.close()


class Lattice:
    """A lattice that answers for links and configurations, and records each request."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self.name = name
        self.prefix = f"wasmbus.ctl.v1.{name}."
        self.answers: dict[str, Any] = {}
        self.asked: list[str] = []
        self.before_answer: Callable[[], Awaitable[None]] | None = None

    async def start(self) -> None:
        await self._client.subscribe(f"{self.prefix}>", cb=self._answer)
        await settled(self._client)

    async def _answer(self, message: Msg) -> None:
        what = message.subject.removeprefix(self.prefix)
        self.asked.append(what)
        if self.before_answer is not None:
            await self.before_answer()
        if what in self.answers:
            answer = self.answers[what]
            await message.respond(answer if isinstance(answer, bytes) else json.dumps({"response": answer}).encode())


@pytest.fixture
async def lattice(raw: Client, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Lattice:
    monkeypatch.setattr(lattice_module, "REQUEST_TIMEOUT_S", DEADLINE_S)
    lattice = Lattice(raw, f"lattice-{abs(hash(request.node.name))}")
    await lattice.start()
    return lattice


async def found(connection: Connection, lattice: Lattice) -> list[LatticeLink]:
    links = await lattice_links(connection, lattice.name, KEY)
    assert links is not None
    return links


async def test_the_configurations_that_a_link_names_are_used(connection: Connection, lattice: Lattice) -> None:
    lattice.answers = {
        "link.get": [
            LINK | {"source_config": [], "target_config": ["one", "two"]},
            LINK | {"name": "second", "target_config": ["two"]},
            LINK | {"target": "another", "target_config": ["of-another"]},
            {"source_id": KEY, "target": "component", "name": "watch", "source_config": ["one"]},
            "no link",
        ],
        "config.get.one": {"bucket": "a", "access": "read-only"},
        "config.get.two": {"bucket": "b"},
    }
    links = {link.key: link.value for link in await found(connection, lattice) if not link.unreadable}
    assert links[MINE]["target_config"] == {"bucket": "b", "access": "read-only"}  # the last value of an option counts
    assert links["component", KEY, "second"]["target_config"] == {"bucket": "b"}
    assert links[KEY, "component", "watch"]["source_config"] == {"bucket": "a", "access": "read-only"}
    assert len(links) == 3
    assert lattice.asked == ["link.get", "config.get.one", "config.get.two"]  # each once


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            ["SECRET_password"],
            "SECRET_password: the lattice does not return secrets; "
            "delete the link and put it again, or restart the provider",
        ),
        (["none"], "none: the lattice has no such configuration"),
        (["damaged"], "damaged: found 1 bytes that are not JSON"),
        (["a b"], "a b: name: found 'a b', allowed printable tokens"),
        (["n" * 1025], f"{'n' * 64}: the name is 1025 bytes; the limit is 1024"),
        ("none", "target_config: found a string, expected an array"),
        ([1], "target_config[0]: found a number, expected a string"),
    ],
)
async def test_a_link_that_cannot_be_read(
    connection: Connection, lattice: Lattice, config: object, reason: str
) -> None:
    lattice.answers = {
        "link.get": [LINK | {"target_config": config}],
        "config.get.none": None,
        "config.get.damaged": b"{",
    }
    (link,) = await found(connection, lattice)
    assert link.key == MINE
    assert link.unreadable.startswith(f"configuration {reason}")
    assert link.lacks_secrets == ("secrets" in reason)


@pytest.mark.parametrize(
    ("answer", "warning"),
    [
        (b"[" * 100_000, "found 100000 bytes that are not JSON"),
        (b'{"response": {}}', "response: found an object, expected an array"),
        (b'{"response": null}', ""),
        (b'{"success": false, "message": "no quorum", "response": null}', "the request failed: 'no quorum'"),
    ],
)
async def test_malformed_answers(
    connection: Connection, lattice: Lattice, answer: bytes, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    lattice.answers = {"link.get": answer}
    assert await lattice_links(connection, lattice.name, KEY) == ([] if not warning else None)
    assert [record.getMessage() for record in caplog.records if record.name == "keyvalue_provider.host.lattice"] == (
        [f"the links of the lattice: {warning}"] if warning else []
    )


async def test_a_lattice_that_stops_answering_is_not_asked_again(
    connection: Connection, lattice: Lattice, monkeypatch: pytest.MonkeyPatch
) -> None:
    lattice.answers = {"link.get": [LINK | {"name": name, "target_config": [name]} for name in ("one", "two")]}

    async def be_impatient() -> None:
        monkeypatch.setattr(lattice_module, "REQUEST_TIMEOUT_S", 0.05)

    lattice.before_answer = be_impatient
    for link in await found(connection, lattice):
        assert link.unreadable == f"configuration {link.key[2]}: the lattice has not answered within 0.05 s"
    assert lattice.asked == ["link.get", "config.get.one"]


async def test_no_lattice_answers(connection: Connection) -> None:
    assert await lattice_links(connection, "no-lattice", KEY) is None


async def test_too_many_links(
    connection: Connection, lattice: Lattice, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lattice_module, "LINKS_MAX", 2)
    lattice.answers = {"link.get": [LINK | {"name": str(number)} for number in range(3)]}
    assert await lattice_links(connection, lattice.name, KEY) is None
    assert "3 links of this provider; the limit is 2" in caplog.text


class Unconcerned:
    """A capability that does nothing except count how often it was told of links."""

    def __init__(self, *ailments: str, is_empty: bool = True) -> None:
        self.told = 0
        self.changed = asyncio.Event()
        self._ailments = list(ailments)
        self._is_empty = is_empty

    def health(self) -> Health:
        return Health(self._ailments, [], [])

    def is_empty(self) -> bool:
        return self._is_empty

    def configure(self, config: Mapping[str, str]) -> None:
        pass

    def refuse_configuration(self, reason: str) -> None:
        pass

    def links_changed(self) -> None:
        self.told += 1
        self.changed.set()


def session(
    connection: Connection,
    lattice: Lattice,
    links: Links,
    capability: Unconcerned | None = None,
    xkey: str = "",
    mark: RestartMark | None = None,
) -> HostSession:
    """Return a session that has not started."""
    host_data = HostData(lattice_rpc_prefix=lattice.name, provider_key=KEY)
    return HostSession(connection, host_data, links, xkey, capability or Unconcerned(), asyncio.Event(), mark)


async def asked(host: HostSession) -> None:
    """Return once the session has asked the lattice and handled its answers."""
    assert host._asking is not None
    await asyncio.wait_for(host._asking, DEADLINE_S)


@pytest.mark.parametrize("deleted", ["before it is asked", "while it is asked", "never"])
async def test_a_link_that_is_deleted_before_the_lattice_answers_does_not_come_back(
    connection: Connection, lattice: Lattice, raw: Client, monkeypatch: pytest.MonkeyPatch, deleted: str
) -> None:
    """The lattice answers with its state at the time of the question. The host's later messages are newer."""
    lattice.answers = {"link.get": [LINK]}
    links = Links(KEY)
    host = session(connection, lattice, links)
    subscribe = connection.subscribe_in_order

    async def delete() -> None:
        await raw.publish(f"wasmbus.rpc.{lattice.name}.{KEY}.linkdefs.del", json.dumps(LINK).encode())

    async def subscribe_and_hear(subject: str, handle: Callable[[bytes], None]) -> Subscription:
        subscription = await subscribe(subject, handle)
        await connection.flush(DEADLINE_S)
        await delete()
        await settled(raw)
        await connection.flush(DEADLINE_S)
        return subscription

    if deleted == "before it is asked":
        monkeypatch.setattr(connection, "subscribe_in_order", subscribe_and_hear)
    elif deleted == "while it is asked":
        lattice.before_answer = delete  # on the connection that answers, so it comes first
    await host.start()
    await asked(host)
    assert lattice.asked == ["link.get"]
    assert len(links) == (1 if deleted == "never" else 0)


async def test_only_the_current_answer_is_older_than_the_messages_of_the_host(
    connection: Connection, lattice: Lattice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that was deleted during an earlier request may have been put again while NATS was away."""
    monkeypatch.setattr("keyvalue_provider.host.session.ASKING_PAUSES_S", (0.0, 0.0))
    links = Links(KEY)
    host = session(connection, lattice, links)
    monkeypatch.setattr(lattice_module, "REQUEST_TIMEOUT_S", 0.05)
    await host.start()
    host._on_link_delete(json.dumps(LINK).encode())
    await asked(host)
    assert lattice.asked == ["link.get"] * 2  # without an answer
    monkeypatch.setattr(lattice_module, "REQUEST_TIMEOUT_S", DEADLINE_S)
    lattice.answers = {"link.get": [LINK | {"target_config": ["ro"]}], "config.get.ro": {"access": "read-only"}}
    host._ask()
    await asked(host)
    assert [link.target_config for link in links] == [{"access": "read-only"}]

    async def put() -> None:
        host._on_link_put(json.dumps(LINK | {"target_config": {"access": "read-write"}}).encode())

    lattice.before_answer = put
    host._ask()
    await asked(host)
    assert [link.target_config for link in links] == [{"access": "read-write"}]
    host.stop()


SEALED = {"target_secrets": list(b"sealed")}
OPENED = json.dumps({"password": {"kind": "String", "value": "s"}}).encode()


@pytest.mark.parametrize(
    ("known", "configs", "access"),
    [
        ({"target_config": {"access": "read-write"}}, ["ro"], "read-only"),
        ({"target_config": {"access": "read-only"}}, ["ro"], "read-only"),
        ({"target_config": {"access": "read-write"}} | SEALED, ["ro"], "read-write"),
        ({"target_config": {"access": "read-write"}}, ["SECRET"], "read-write"),
        ({"target_config": {"access": "read-write"}}, ["none"], "read-write"),
        ({"target_config": "malformed"}, ["ro"], "read-only"),
        ({"target_config": "malformed"}, ["none"], None),
    ],
)
async def test_a_link_that_changed_meanwhile_is_taken_from_the_lattice(
    connection: Connection, lattice: Lattice, known: dict[str, Any], configs: list[str], access: str | None
) -> None:
    lattice.answers = {
        "link.get": [LINK | {"target_config": configs}],
        "config.get.ro": {"access": "read-only"},
        "config.get.none": None,
    }
    links = Links(KEY, lambda sealed: OPENED)
    with suppress(FieldError):
        links.put_value(LINK | known)
    host, changes, unusable = session(connection, lattice, links), links.changes, links.unusable
    await host.start()
    await asked(host)
    link = links.get(MINE)
    assert (None if link is None else link.target_config["access"]) == access
    if access is None:
        assert links.unusable == unusable
    else:
        assert (links.changes == changes) == (known["target_config"] == {"access": access})
    host.stop()


@pytest.mark.parametrize("later", ["readable", "lacks secrets", "unanswered"])
async def test_a_configuration_that_was_not_answered_in_time_is_requested_again(
    connection: Connection, lattice: Lattice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, later: str
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(lattice_module, "REQUEST_TIMEOUT_S", 0.1)
    monkeypatch.setattr("keyvalue_provider.host.session.UNANSWERED_PAUSE_S", 0.05)
    lattice.answers = {"link.get": [LINK | {"target_config": ["ro"]}]}
    links, mark = Links(KEY), RestartMark("host", lattice.name, KEY)
    host = session(connection, lattice, links, mark=mark)
    await host.start()
    await asked(host)
    assert ["has not answered" in reason for reason in links.unusable] == [True]
    assert links.lack_answers
    changes = links.changes
    if later == "readable":
        lattice.answers["config.get.ro"] = {"access": "read-only"}
    elif later == "lacks secrets":
        lattice.answers["link.get"] = [LINK | {"target_config": ["SECRET"]}]
    async with asyncio.timeout(DEADLINE_S):
        while lattice.asked.count("link.get") < 3 and links.changes == changes:
            await connection.flush(DEADLINE_S)
    assert links.lack_answers == (later == "unanswered") == (links.changes == changes)
    assert links.lack_secrets == (later == "lacks secrets")
    assert (links.get(MINE) is not None) == (later == "readable")
    host.stop()


async def test_thousands_of_links_are_told_to_the_capability_in_a_few_calls(
    connection: Connection, lattice: Lattice, raw: Client
) -> None:
    capability, links = Unconcerned(), Links(KEY)
    host = session(connection, lattice, links, capability)
    await host.start()
    await connection.flush(DEADLINE_S)
    prefix = f"wasmbus.rpc.{lattice.name}.{KEY}"
    for number in range(2_000):
        await raw.publish(f"{prefix}.linkdefs.put", json.dumps(LINK | {"name": str(number)}).encode())
    await raw.publish(f"{prefix}.linkdefs.del", json.dumps(LINK | {"name": "7"}).encode())
    await raw.flush()
    async with asyncio.timeout(DEADLINE_S):
        while links.find("component", "1999") is None or links.find("component", "7") is not None:
            await raw.request(f"{prefix}.health", b"", DEADLINE_S)
    assert 1 <= capability.told <= 200
    host.stop()


@pytest.mark.parametrize(
    ("capability", "missing", "just_started_s", "reason"),
    [
        (Unconcerned(), ["SECRET"], DEADLINE_S, None),
        (Unconcerned(), ["SECRET", "none"], DEADLINE_S, "health reports other faults"),
        (Unconcerned("an ailment"), ["SECRET"], DEADLINE_S, "health reports other faults"),
        (Unconcerned(is_empty=False), ["SECRET"], DEADLINE_S, "the store holds keys"),
        (Unconcerned(), ["SECRET"], 0, "the provider has run for more than 0 s"),
    ],
)
async def test_a_restart_for_secrets_loses_nothing_and_hides_no_fault(
    connection: Connection, lattice: Lattice, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capability: Unconcerned, missing: list[str], just_started_s: float, reason: str | None,
) -> None:  # fmt: skip
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("keyvalue_provider.host.session.SECRETS_WAIT_S", 0.0)
    monkeypatch.setattr("keyvalue_provider.host.session.JUST_STARTED_S", just_started_s)
    lattice.answers = {"link.get": [LINK | {"name": name, "target_config": [name]} for name in missing]}
    lattice.answers["config.get.none"] = None
    mark = RestartMark("host", lattice.name, KEY)
    host = session(connection, lattice, Links(KEY), capability, mark=mark)
    with LogLines.of("keyvalue_provider.host.session") as log_lines:
        await host.start()
        await log_lines.wait_for(
            "exiting with code 3" if reason is None else f"no restart for the secrets of links: {reason}"
        )
    assert host.asks_to_restart == mark.path.exists() == (reason is None)
    host.stop()


K, X = KEY, "XKEY"


@pytest.mark.parametrize(
    ("messages", "is_known"),
    [
        ([(K, "del", "default"), (K, "put", "default")], True),
        ([(K, "put", "default"), (K, "del", "default")], False),
        ([(X, "put", "other"), (K, "del", "default"), (X, "put", "default")], True),
        ([(X, "del", "other"), (K, "put", "other"), (X, "del", "default"), (K, "put", "default")], True),
    ],
)
async def test_links_are_put_and_deleted_in_the_order_of_the_host(
    connection: Connection, lattice: Lattice, raw: Client, messages: list[tuple[str, str, str]], is_known: bool
) -> None:
    links = Links(KEY)
    host = session(connection, lattice, links, xkey=X)
    await host.start()
    await connection.flush(DEADLINE_S)
    prefix = f"wasmbus.rpc.{lattice.name}"
    for verb in ("put", "del"):
        links.put_value(LINK)
        # Send one burst, with a message of another link first. Handling by subscription would use their order.
        for key, what, name in [(K, verb, "first"), *messages]:
            await raw.publish(f"{prefix}.{key}.linkdefs.{what}", json.dumps(LINK | {"name": name}).encode())
        await settled(raw)
        await connection.flush(DEADLINE_S)
        await raw.request(f"{prefix}.{KEY}.health", b"", DEADLINE_S)
        assert links.knows(MINE) is is_known
    host.stop()


async def test_the_lattice_is_asked_again_when_nats_is_back(
    new_nats_server: Callable[[], NatsServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyvalue_provider.host.session.ASKING_PAUSES_S", [0.05] * 100)
    server = new_nats_server()
    client = await nats.connect(server.url, reconnect_time_wait=0.05)
    lattice = Lattice(client, "a-lattice")
    lattice.answers = {"link.get": []}
    await lattice.start()
    connection = await Connection.open(ConnectionOptions((server.url,)))
    links, capability = Links(KEY), Unconcerned()
    host = session(connection, lattice, links, capability)
    await host.start()
    await asked(host)
    assert len(links) == 0
    lattice.answers = {"link.get": [LINK]}
    await in_thread(server.kill)
    await in_thread(server.start)
    async with asyncio.timeout(DEADLINE_S):
        await capability.changed.wait()
    assert links.knows(MINE)
    host.stop()
    await connection.close()
    await client.close()


async def test_a_link_that_the_lattice_does_not_have_is_logged(
    connection: Connection, lattice: Lattice, caplog: pytest.LogCaptureFixture
) -> None:
    lattice.answers = {"link.get": []}
    links = Links(KEY)
    links.put_value(LINK)
    host = session(connection, lattice, links)
    await host.start()
    await asked(host)
    assert "link component -> kv (default): missing in the lattice; it stays in force" in caplog.text
    assert links.knows(MINE)


async def test_a_message_that_fails_is_logged_with_its_traceback(
    connection: Connection, raw: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The fault is in the provider, and is not reported as one of NATS."""
    failed = asyncio.Event()

    async def fail(message: Message) -> None:
        failed.set()
        raise KeyError("ours")

    def fail_at_once(payload: bytes) -> None:
        raise KeyError("ours")

    await connection.subscribe("fail", fail)
    await connection.subscribe_in_order("fail-at-once", fail_at_once)
    await connection.flush(DEADLINE_S)
    await raw.publish("fail-at-once", b"")
    await raw.publish("fail", b"")
    await settled(raw)
    async with asyncio.timeout(DEADLINE_S):
        await failed.wait()
    await connection.flush(DEADLINE_S)
    assert sorted(record.getMessage() for record in caplog.records) == [
        "a message to fail-at-once was not handled",
        "a message was not handled",
    ]
    assert all(record.exc_info and record.exc_info[0] is KeyError for record in caplog.records)
