"""Operating the replicated store: what an administrator of NATS does with the bucket, and what the provider then does."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.js.api import KeyValueConfig

from keyvalue_replica.layout import Layout
from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, in_thread, launching, settled, until
from tests.integration.test_replicated import JETSTREAM, admin, answered, jetstream, launch, nats_server
from tests.torture.cluster import free_ports

__all__ = ["admin", "launch", "nats_server"]  # fixtures

DOCUMENT = (Path(__file__).parents[2] / "docs" / "replication.md").read_text()


async def api(client: Client, name: str, parameters: Mapping[str, Any] | None = None, domain: str = "") -> Any:
    """Call a function of the JetStream API, which must not fail."""
    prefix = f"$JS.{domain}.API" if domain else "$JS.API"
    answer = json.loads(
        (await client.request(f"{prefix}.{name}", json.dumps(parameters or {}).encode(), DEADLINE_S)).data
    )
    assert "error" not in answer, answer
    return answer


async def test_barriers_of_an_ended_instance_go_away(launch: Launch, nats_server: NatsServer, admin: Client) -> None:
    """The server removes a barrier after a minute. The test publishes one with a second in place of the minute."""
    provider = launch({"jetstream_bucket": "barriers"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.get("b", "k")

    async def subjects() -> dict[str, int]:
        info = await api(admin, "STREAM.INFO.KV_barriers", {"subjects_filter": "$KV.barriers.i.>"})
        return dict(info["state"].get("subjects") or {})

    (subject,) = await subjects()
    message = (await api(admin, "STREAM.MSG.GET.KV_barriers", {"last_by_subj": subject}))["message"]
    headers = base64.b64decode(message["hdrs"])
    assert headers.count(b"Nats-TTL: 60s") == 1
    fields = dict(line.split(": ") for line in headers.replace(b"60s", b"1s").decode().split("\r\n")[1:] if line)
    await admin.request("$KV.barriers.i.ended", b"1", headers=fields, timeout=DEADLINE_S)
    assert (await subjects()).keys() == {subject, "$KV.barriers.i.ended"}

    async def is_gone() -> bool:
        return (await subjects()).keys() == {subject}

    await until(is_gone, "the barrier is removed, and leaves no marker")


def scrape(url: str) -> str:
    with urlopen(url, timeout=DEADLINE_S) as answer:
        text: str = answer.read().decode()
        return text


async def test_health_and_metrics_of_an_instance_that_catches_up_and_is_past_its_limit(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    keys = 40_000
    async with KeyValueClient(nats_server.url, launch({"jetstream_bucket": "many"}).prefix) as client:
        assert (await client.list_keys("b")).keys == []
    layout = Layout("many")
    for number in range(keys):
        await admin.publish(layout.subject(b"b", b"%d" % number).decode(), b"by others")
    await settled(admin)
    late = launch({"jetstream_bucket": "many", "keys_max": "39999", "metrics_address": "127.0.0.1:0"}, wait=False)
    told: list[str] = []

    async def is_serving() -> bool:
        with suppress(NoRespondersError):
            answer = json.loads((await admin.request(late.host_subject("health"), timeout=DEADLINE_S)).data)
            told.append(answer["message"])
            assert answer["healthy"] == answer["message"].startswith("serving")
        return bool(told) and told[-1].startswith("serving")

    await until(is_serving, "it has caught up")
    left = [int(found[1]) for message in told if (found := re.fullmatch(r"catching up, (\d+) left", message))]
    assert 0 < max(left) <= keys + 1  # the barrier of the first instance may be there
    assert told[-1].startswith("serving; the KV bucket exceeds keys_max by 1: ")
    async with KeyValueClient(nats_server.url, late.prefix, timeout_s=DEADLINE_S) as client:
        assert await client.get("b", "7") == b"by others"
        with pytest.raises(OtherError, match=r"keys_max"):
            await client.set("b", "one more", b"v")
    at = late.wait_for("metrics at").split()[-1]
    found = await in_thread(scrape, at)
    assert 'wrpc_keyvalue_replica_excess{limit="keys_max"} 1.0\n' in found
    for sample, value in (("serving", 1), ("behind", 0), ('confirmation_seconds_count{kind="barrier"}', 1)):
        assert f"wrpc_keyvalue_replica_{sample} {value}.0\n" in found
    assert int(float(re.findall(r"^wrpc_keyvalue_replica_applied_sequence (.*)$", found, re.MULTILINE)[0])) >= keys


DOCUMENT = (Path(__file__).parents[2] / "docs" / "replication.md").read_text()
OWN = "$JS.API.STREAM.CREATE.KV_visits"  # only for a bucket that the provider creates


def documented_user(without: str = "") -> str:
    """Return the provider's user in the document, without one of its permissions. Its password is its name."""
    (user,) = re.findall(r"```text\n({ user: provider.*?)```", DOCUMENT, re.DOTALL)
    return str(user).replace("$PROVIDER_PASSWORD", "provider").replace(f'"{without}"', '"none"')


def documented_stream() -> dict[str, Any]:
    """Return the configuration of the stream in the document, for one server."""
    (text,) = re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)
    return {**json.loads(text.replace("$SECRET", secrets.token_hex(16))), "num_replicas": 1}


OF_JETSTREAM: list[str] = re.findall(r'"(\$(?:JS|KV)\.[^"]+)"', documented_user())
CREATE = "$JS.API.STREAM.CREATE.KV_visits"
#: The host data for which the document's permissions are.
FIELDS: dict[str, Any] = {"provider_key": "keyvalue-inmemory", "lattice_rpc_prefix": "default"}
FIELDS |= dict.fromkeys(("host_xkey_public_key", "provider_xkey_private_key"), "")


async def call_all(url: str, provider: Provider) -> None:
    """Call each kind of function, and write so much that the consumer's flow control works."""
    async with KeyValueClient(url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set_many("b", {"n": b"1", "k": b"v"})
        assert await client.increment("b", "n", 1) == 2
        await client.delete("b", "k")
        await asyncio.gather(*(client.set("b", f"k{number}", bytes(100_000)) for number in range(100)))
        assert await client.get_many("b", ["n", "k", "k99"]) == [b"2", None, bytes(100_000)]


class Documented:
    """A NATS server with the documented permissions, and a provider that has them.

    :param without: a permission that is left out
    :param creates: False to let an administrator create the stream of the document
    """

    def __init__(self, directory: Path, without: str, creates: bool) -> None:
        users = f"authorization {{ users: [ {{ user: admin, password: admin }}\n{documented_user(without)} ] }}\n"
        self.server = NatsServer(directory, jetstream(directory) + users)
        self.creates = creates
        self.admin, self.provider = (
            self.server.url.replace("//", f"//{user}:{user}@") for user in ("admin", "provider")
        )

    async def live(self, launch: Launch) -> None:
        """Create the stream, serve and be called. Ask about the consumer, because the server stands still for a while."""
        if not self.creates:
            async with await nats.connect(self.admin) as admin:
                await api(admin, "STREAM.CREATE.KV_visits", documented_stream())
        options = {"jetstream_bucket": "visits", "jetstream_create": str(self.creates).lower()}
        provider = launch(JETSTREAM | options, wait=False, **FIELDS)
        await in_thread(provider.wait_for, "ready: serving")
        await call_all(self.admin, provider)
        with self.server.silence():
            await asyncio.sleep(1.5)  # silence is what is asked about
        async with KeyValueClient(self.admin, provider.prefix, timeout_s=DEADLINE_S) as client:
            await client.get("b", "k")


@pytest.mark.parametrize("creates", [True, False])
async def test_the_documented_permissions_are_enough(tmp_path: Path, creates: bool) -> None:
    documented = Documented(tmp_path, "" if creates else CREATE, creates)
    try:
        with launching(documented.provider, tmp_path) as launch:
            await documented.live(launch)
        assert "Violation" not in documented.server.output
    finally:
        documented.server.stop()


@pytest.mark.parametrize("without", OF_JETSTREAM)
async def test_each_documented_permission_is_needed(tmp_path: Path, without: str) -> None:
    documented = Documented(tmp_path, without, creates=without == CREATE)
    try:
        with launching(documented.provider, tmp_path) as launch:
            refused = f'Publish Violation - Subject "{without.rstrip("*>")}'
            tasks = [
                asyncio.create_task(documented.live(launch)),
                asyncio.create_task(in_thread(documented.server.wait_for, refused)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
        await tasks[1]
    finally:
        documented.server.stop()


async def test_a_bucket_that_lacks_a_feature_is_not_changed_without_permission(launch: Launch, admin: Client) -> None:
    await admin.jetstream().create_key_value(KeyValueConfig("lacking", history=1))
    provider = launch({"jetstream_bucket": "lacking", "jetstream_create": "false"}, wait=False)
    assert await in_thread(provider.wait) == 1
    lacks = "KV_lacking lacks subject_delete_marker_ttl, allow_atomic, and jetstream_create is false"
    assert lacks in provider.output


@pytest.fixture
def domains(tmp_path: Path) -> Iterator[tuple[NatsServer, NatsServer]]:
    """Start a server, and a leaf node of it, each with a JetStream domain of its own. The document's user is at the first."""
    (port,) = free_ports(1)
    user = documented_user().replace("$JS.API", "$JS.leaf.API").replace("$KV.", "$JS.leaf.API.$KV.")
    more = {
        "hub": f"authorization {{ users: [ {{ user: admin, password: admin }}\n{user} ] }}\n"
        f'leafnodes {{ listen: "127.0.0.1:{port}" }}\n',
        "leaf": f'leafnodes {{ remotes: [ {{ url: "nats://admin:admin@127.0.0.1:{port}" }} ] }}\n',
    }
    servers = []
    for name, config in more.items():
        (directory := tmp_path / name).mkdir()
        store = f"jetstream {{ store_dir: {json.dumps(str(directory))}, domain: {name} }}\n"
        servers.append(NatsServer(directory, f"server_name: {name}\n{store}{config}"))
    hub, leaf = servers
    leaf.wait_for("Leafnode connection created")
    yield hub, leaf
    leaf.stop()
    hub.stop()


async def test_instances_in_two_domains_share_the_bucket_of_one(
    domains: tuple[NatsServer, NatsServer], tmp_path: Path
) -> None:
    hub, leaf = domains
    config = JETSTREAM | {"jetstream_bucket": "visits"}
    with launching(hub.url.replace("//", "//provider:provider@"), tmp_path) as launch:
        far = launch(config | {"jetstream_domain": "leaf"}, **FIELDS)
        await call_all(leaf.url, far)
        with launching(leaf.url, tmp_path) as launch_near:
            near = launch_near(config)
            async with KeyValueClient(leaf.url, near.prefix, timeout_s=DEADLINE_S) as of_near:
                assert await of_near.get_many("b", ["n", "k", "k99"]) == [b"2", None, bytes(100_000)]
                async with KeyValueClient(leaf.url, far.prefix, timeout_s=DEADLINE_S) as of_far:
                    for number in range(3, 40):
                        clients = of_near, of_far
                        assert await clients[number % 2].increment("b", "n", 1) == number
                        assert await clients[1 - number % 2].get("b", "n") == b"%d" % number
                    await in_thread(leaf.kill)
                    await in_thread(leaf.start)
                    for client in (of_near, of_far):
                        assert await answered(partial(client.increment, "b", "n", 0)) == 39
    assert "Violation" not in hub.output
