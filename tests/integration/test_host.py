"""A provider's life as its host sees it: host data, health, links, configuration, stopping, the log, exit codes."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import termios
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nats
import nkeys
import pytest
from nacl.public import Box, PrivateKey
from nats.aio.client import Client

from keyvalue_provider.config.options import OPTIONS
from keyvalue_provider.host.nkey_text import encode_public_key, encode_seed
from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set
from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    HOST_ID,
    PATHS,
    PROVIDER,
    Launch,
    NatsServer,
    Process,
    Provider,
    RawInvocation,
    host_data_line,
    host_environment,
    in_thread,
)

HEALTHY = {"healthy": True, "message": "serving"}
STOPPED = b"provider shutdown handled successfully"
#: A host waits so long for the reply to its request to stop, and then kills.
HOST_PATIENCE_S = 0.3


@pytest.fixture(scope="module")
def path() -> None:
    """Nothing here depends on it."""


def ended(provider: Provider) -> str:
    """All that it wrote, after a stop in order."""
    assert provider.stop() == 0
    return provider.output


async def ask(raw: Client, provider: Provider, subject: str, payload: bytes = b"") -> bytes:
    """The provider's answer to a request of the host."""
    return bytes((await raw.request(provider.host_subject(subject), payload, timeout=DEADLINE_S)).data)


async def tell(raw: Client, provider: Provider, subject: str, message: object) -> None:
    """Publish what the host would: bytes, or something as JSON."""
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    await raw.publish(provider.host_subject(subject), payload)
    await raw.flush()


async def health(raw: Client, provider: Provider) -> Mapping[str, Any]:
    answer: dict[str, Any] = json.loads(await ask(raw, provider, "health"))
    return answer


async def unhealthy(raw: Client, provider: Provider) -> str:
    """Why it is not healthy."""
    answer = await health(raw, provider)
    assert answer["healthy"] is False
    return str(answer["message"])


def link_to(provider: Provider, **fields: object) -> dict[str, object]:
    """A link of a component to the provider, without options of others."""
    link: dict[str, object] = HOST_CAPTURE["host_data"]["link_definitions"][0]
    return link | {"target": provider.key, "target_config": {}} | fields


def stop_request(host_id: str = HOST_ID) -> bytes:
    return json.dumps({"host_id": host_id}).encode()


# Health


async def test_healthy(provider: Provider, raw: Client) -> None:
    assert await health(raw, provider) == HEALTHY


async def test_a_link_that_is_malformed_makes_it_unhealthy(launch: Launch, raw: Client) -> None:
    provider = launch()
    await tell(raw, provider, "linkdefs.put", link_to(provider, target_config={"bucket": 1}))
    reason = (
        f"link holdout-component -> {provider.key} (default): target_config.bucket: found a number, expected a string"
    )
    assert await unhealthy(raw, provider) == reason
    await tell(raw, provider, "linkdefs.put", link_to(provider, name="second", interfaces="store"))
    reasons = (await unhealthy(raw, provider)).split("; ")
    assert reasons[0] == reason
    assert reasons[1].endswith("(second): interfaces: found a string, expected an array")
    await tell(raw, provider, "linkdefs.put", link_to(provider))
    assert await unhealthy(raw, provider) == reasons[1]
    await tell(raw, provider, "linkdefs.del", link_to(provider, name="second"))
    assert await health(raw, provider) == HEALTHY


async def test_links_of_others_and_no_links_do_not_make_it_unhealthy(launch: Launch, raw: Client) -> None:
    provider = launch()
    of_another = link_to(provider, target="of-another")
    messages: list[object] = [of_another, of_another | {"interfaces": 1}, b"{", []]
    for message in messages:
        await tell(raw, provider, "linkdefs.put", message)
        await tell(raw, provider, "linkdefs.del", message)
    assert await health(raw, provider) == HEALTHY
    output = ended(provider)
    assert output.count("a link is unusable") == 4
    assert output.count("a link was not deleted") == 2  # those of another are just not known
    assert "found 1 bytes that are not JSON, expected a link definition" in output


async def test_a_configuration_that_is_malformed_makes_it_unhealthy(launch: Launch, raw: Client) -> None:
    provider = launch()
    await tell(raw, provider, "config.update", {"page_keys": "none"})
    assert await unhealthy(raw, provider) == "config: page_keys: found 'none', allowed a whole number from 1"
    await tell(raw, provider, "config.update", {"page_keys": "10", "strict_buckets": "yes"})
    assert await unhealthy(raw, provider) == "config: strict_buckets: found 'yes', allowed true or false"
    await tell(raw, provider, "config.update", {"Acess": "read-only", "page_keys": "10"})
    assert await unhealthy(raw, provider) == "config: Acess: no option has this name; did you mean access?"
    await tell(raw, provider, "config.update", {})
    assert await health(raw, provider) == HEALTHY
    assert ended(provider).count("the previous configuration stays in force") == 3


async def test_what_nats_does_not_permit_makes_it_unhealthy(
    new_nats_server: Callable[[str], NatsServer], launch: Launch
) -> None:
    permissions = 'permissions: { publish: ">", subscribe: { deny: "default.>" } }'
    server = new_nats_server(f"authorization {{ users: [ {{ user: u, password: p, {permissions} }} ] }}")
    url = server.url.replace("//", "//u:p@")
    provider = launch(lattice_rpc_url=url)
    await in_thread(provider.wait_for, "permissions violation", 5)
    raw = await nats.connect(url)
    assert "permissions violation for subscription to" in await unhealthy(raw, provider)
    await raw.close()


# Links and configuration


async def test_everything_of_the_capture(launch: Launch, raw: Client) -> None:
    provider = launch(**{k: v for k, v in HOST_CAPTURE["host_data"].items() if k != "lattice_rpc_url"})
    assert "with 1 links" in provider.output
    seen: set[str] = set()
    for name in ("config_update", "link_put", "watch_link_put", "watch_link_delete", "link_delete", "link_delete"):
        for subject in HOST_CAPTURE[name]["subjects"]:
            await raw.publish(subject, HOST_CAPTURE[name]["payload"].encode())
        await raw.flush()
        answer = json.loads((await raw.request(HOST_CAPTURE["health"]["subjects"][0], timeout=DEADLINE_S)).data)
        assert answer["healthy"]
        remarks = answer["message"].split("; ")
        assert remarks[0] == "serving"
        assert all(
            re.search(r": ignored, since no option( of a watcher)? has this name: URL$", remark)
            for remark in remarks[1:]
        )
        seen |= {remark.removeprefix("link ").partition(": ")[0] for remark in remarks[1:]}
    (subject,) = HOST_CAPTURE["shutdown"]["subjects"]
    answer = await raw.request(subject, HOST_CAPTURE["shutdown"]["payload"].encode(), timeout=DEADLINE_S)
    assert answer.data == STOPPED
    assert await in_thread(provider.wait) == 0
    log = [line.partition("Z ")[2] for line in provider.output.splitlines()]
    component, key = HOST_CAPTURE["host_data"]["link_definitions"][0]["source_id"], provider.key
    assert [line for line in log if "keyvalue_provider.host.session: link" in line] == [
        f"INFO keyvalue_provider.host.session: link put: {component} -> {key} (second), store, atomics, batch; options set: URL",
        f"INFO keyvalue_provider.host.session: link put: {key} -> {component} (default), watcher; options set: URL, watch",
        f"INFO keyvalue_provider.host.session: link deleted: {key} -> {component} (default)",
        f"INFO keyvalue_provider.host.session: link deleted: {component} -> {key} (second)",
    ]
    links = [f"{component} -> {key} (default)", f"{component} -> {key} (second)", f"{key} -> {component} (default)"]
    assert seen == set(links)
    assert sorted(line for line in log if line.startswith("WARNING")) == [
        *(
            f"WARNING keyvalue_provider.keyvalue.policy: link {link}: ignored, since no option has this name: URL"
            for link in links[:2]
        ),
        f"WARNING keyvalue_provider.watching.watchers: link {links[2]}: ignored, since no option of a watcher has this name: URL",
        "WARNING keyvalue_provider: config: ignored, since no option has this name: note, sample",
    ]


async def test_a_link_is_put_and_deleted_once(launch: Launch, raw: Client) -> None:
    """A host publishes each link to several subjects; a provider that listens on some of them hears it that often."""
    provider = launch()
    link = link_to(provider)
    for turn in (1, 2):
        for _ in range(2):
            await tell(raw, provider, "linkdefs.put", link)
        provider.wait_for("link put", turn)
        for _ in range(2):
            await tell(raw, provider, "linkdefs.del", link | {"source_config": {}, "target_config": {}})
        provider.wait_for("link deleted", turn)
    assert await health(raw, provider) == HEALTHY
    output = ended(provider)
    assert output.count("link put") == 2
    assert output.count("link deleted") == 2


async def test_a_changed_link_is_put_again(launch: Launch, raw: Client) -> None:
    provider = launch()
    for target_config in ({}, {"bucket": "a"}, {"bucket": "b"}, {"bucket": "b"}):
        await tell(raw, provider, "linkdefs.put", link_to(provider, target_config=target_config))
    assert await health(raw, provider) == HEALTHY
    assert ended(provider).count("link put") == 3


async def test_links_of_host_data(launch: Launch, raw: Client) -> None:
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target_config": {}}
    provider = launch(
        provider_key="kv-with-links",
        link_definitions=[
            link | {"target": "kv-with-links"},
            link | {"target": "kv-with-links", "name": "second"},
            link | {"source_id": "kv-with-links", "target": "a-component"},
            link | {"target": "of-another"},
        ],
    )
    assert "with 3 links" in provider.output
    assert "a link of the host data is unusable: the link from holdout-component to of-another " in provider.output
    await tell(raw, provider, "linkdefs.put", link | {"target": "kv-with-links"})
    assert await health(raw, provider) == HEALTHY
    assert "link put" not in ended(provider)  # it was known


async def test_the_same_configuration_again_is_no_news(launch: Launch, raw: Client) -> None:
    config = {"page_keys": "10", "strict_buckets": "TRUE"}
    provider = launch(config)
    await tell(raw, provider, "config.update", config)
    assert await health(raw, provider) == HEALTHY
    output = ended(provider)
    assert "WARNING" not in output
    assert "ERROR" not in output


async def test_a_changed_configuration_wants_a_restart(launch: Launch, raw: Client) -> None:
    provider = launch({"page_keys": "10"})
    await tell(raw, provider, "config.update", {"key_bytes_max": "100", "strict_buckets": "false"})
    assert await health(raw, provider) == HEALTHY
    assert "config: these changes take effect at the next start: page_keys, key_bytes_max\n" in ended(provider)


@pytest.mark.parametrize(
    ("message", "warning"),
    [
        (b"{", "a configuration is refused: found 1 bytes that are not JSON"),
        (b"\xff\xfe", "a configuration is refused: found 2 bytes that are not JSON"),
        (b"[" * 100_000, "a configuration is refused: found 100000 bytes that are not JSON"),
        ([], "a configuration is refused: config: found an array, expected an object of strings"),
        ({"page_keys": 10}, "a configuration is refused: config.page_keys: found a number, expected a string"),
    ],
)
async def test_a_configuration_that_is_none_is_not_taken(
    provider: Provider, raw: Client, message: object, warning: str
) -> None:
    await tell(raw, provider, "config.update", message)
    reason = warning.removeprefix("a configuration is refused: ")
    told = await health(raw, provider)
    assert told["healthy"] is False
    assert told["message"].startswith(f"config: {reason}")
    provider.wait_for(warning)
    await tell(raw, provider, "config.update", {})
    assert await health(raw, provider) == HEALTHY


async def test_unknown_options_are_named(launch: Launch) -> None:
    provider = launch({"url": "10", "cluster": "true", "bytes_max": "1000"})
    assert "config: ignored, since no option has this name: cluster, url\n" in provider.output
    assert provider.output.count("config: bytes_max is deprecated (use quota_bytes)\n") == 1


# Stopping


async def test_stop_by_the_host(launch: Launch, raw: Client) -> None:
    provider = launch(log_level="debug")
    for message in (b"", b"{", b"[]", b'{"host_id": 1}', b"{}", stop_request("NANOTHERHOST")):
        await raw.publish(provider.host_subject("default.shutdown"), message, "of.nobody")
    assert await health(raw, provider) == HEALTHY
    began_s = time.monotonic()
    assert await ask(raw, provider, "default.shutdown", stop_request()) == STOPPED
    assert time.monotonic() - began_s < HOST_PATIENCE_S
    assert await in_thread(provider.wait) == 0
    assert provider.output.count("a shutdown request is ignored") == 4
    assert provider.output.count("a shutdown request of another host is ignored") == 2
    assert provider.output.count("the host requests a shutdown") == 1


@pytest.mark.parametrize("link_name", ["default", "other"])
async def test_the_link_name_of_the_host_data_is_in_the_subject(launch: Launch, raw: Client, link_name: str) -> None:
    provider = launch(link_name=link_name)
    assert await ask(raw, provider, f"{link_name}.shutdown", stop_request()) == STOPPED
    assert await in_thread(provider.wait) == 0


async def test_without_a_host_id_any_host_stops_it(launch: Launch, raw: Client) -> None:
    for host_id in ("", None):
        provider = launch(host_id=host_id)
        assert await ask(raw, provider, "default.shutdown", stop_request("NANYHOST")) == STOPPED
        assert await in_thread(provider.wait) == 0


async def test_a_request_to_stop_needs_no_reply_subject(launch: Launch, raw: Client) -> None:
    provider = launch()
    await tell(raw, provider, "default.shutdown", stop_request())
    assert await in_thread(provider.wait) == 0


async def test_the_reply_to_stop_comes_last(launch: Launch, raw: Client) -> None:
    provider = launch()
    params = encode_set(b"b", b"k", bytes(1_000))
    assert await (await RawInvocation.begin(raw, provider.subject("set"), params)).result() == encode_unit_result(None)
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    await half.handshake()
    inbox = raw.new_inbox()
    everything = await raw.subscribe(f"{inbox}.>")
    for number in range(200):
        await raw.publish(provider.subject("get"), encode_bucket_key(b"b", b"k"), f"{inbox}.{number}")
    began_s = time.monotonic()
    for number in range(2):  # both requests are answered
        await raw.publish(provider.host_subject("default.shutdown"), stop_request(), f"{inbox}.stop.{number}")
    subjects: list[str] = []
    results: dict[str, bytes] = {}
    while subjects[-2:] != [f"{inbox}.stop.0", f"{inbox}.stop.1"]:
        message = await everything.next_msg(DEADLINE_S)
        subjects.append(message.subject)
        results[message.subject] = results.get(message.subject, b"") + message.data
        if subjects[-1] == f"{inbox}.stop.0":
            took_s = time.monotonic() - began_s
    assert took_s < HOST_PATIENCE_S
    assert await half.result() == b""  # nobody sends its rest: ended, so that no client waits
    expected = encode_get_result(bytes(1_000))
    assert [results[f"{inbox}.{number}.results"] == expected for number in range(200)] == [True] * 200
    assert subjects.count(f"{inbox}.stop.0") == 1
    assert await in_thread(provider.wait) == 0
    with pytest.raises(asyncio.TimeoutError):
        await everything.next_msg(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_stop_it(launch: Launch, number: signal.Signals) -> None:
    provider = launch(environment={})  # the empty environment of a host, whatever these tests run under
    provider.signal(number)
    assert await in_thread(provider.wait) == 0
    assert f"{number.name}: stopping; send a second signal to exit at once" in provider.output
    assert "stopped: 0 invocations answered" in provider.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signals_end_it_while_it_connects(launch: Launch, number: signal.Signals) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        provider = launch(lattice_rpc_url=f"127.0.0.1:{silent.getsockname()[1]}", wait=False)
        await in_thread(lambda: silent.accept()[0].close())
        provider.signal(number)
        assert await in_thread(provider.wait) == 0
    assert f"{number.name}: stopping" in provider.output


# Host data on standard input


def host_data_of(nats_server: NatsServer, key: str, **fields: object) -> dict[str, object]:
    host_data: dict[str, object] = HOST_CAPTURE["host_data"]
    return host_data | {"lattice_rpc_url": nats_server.url, "provider_key": key} | fields


class OpenPipe(Process):
    """A provider whose standard input stays open after what is written to it."""

    def __init__(self, cwd: Path) -> None:
        super().__init__([PROVIDER], cwd, host_environment(), subprocess.PIPE)
        assert self.process.stdin is not None
        self.pipe = self.process.stdin

    def write(self, text: bytes) -> None:
        """Write, and return once the process has read it."""
        self.pipe.write(text)
        self.pipe.flush()
        unread = bytearray(4)
        deadline_s = time.monotonic() + DEADLINE_S
        while int.from_bytes(fcntl.ioctl(self.pipe.fileno(), termios.FIONREAD, bytes(unread)), "little"):
            assert time.monotonic() < deadline_s
            assert self.running, self.output
            time.sleep(0.005)  # nobody tells that a pipe was read

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.wait()
        finally:
            self.pipe.close()


@pytest.mark.parametrize("cut", [0, 1, 500])
def test_host_data_from_a_pipe_that_stays_open(nats_server: NatsServer, tmp_path: Path, cut: int) -> None:
    line = host_data_line(host_data_of(nats_server, f"kv-open-pipe-{cut}"))
    provider = OpenPipe(tmp_path)
    provider.write(line[:cut])
    provider.write(line[cut:])
    provider.wait_for("ready")
    assert provider.stop() == 0


def test_host_data_wrapped_over_lines(nats_server: NatsServer, tmp_path: Path) -> None:
    line = host_data_line(host_data_of(nats_server, "kv-wrapped"))
    provider = OpenPipe(tmp_path)
    for part in textwrap.wrap(line.decode(), 76):
        provider.write(part.encode() + b"\n")
    provider.wait_for("ready")
    assert provider.stop() == 0


def test_host_data_from_a_file(nats_server: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "host_data"
    path.write_bytes(host_data_line(host_data_of(nats_server, "kv-file")).rstrip())
    with path.open("rb") as file:
        provider = Process([PROVIDER], tmp_path, host_environment(), file.fileno())
    provider.wait_for("ready")
    provider.signal(signal.SIGTERM)
    assert provider.wait() == 0


def run(stdin: bytes, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the provider to its end."""
    ended = subprocess.run(
        [PROVIDER, *arguments], input=stdin, env=host_environment(), capture_output=True, timeout=DEADLINE_S
    )
    return subprocess.CompletedProcess(ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode())


def refused(stdin: bytes) -> str:
    """What it says, in one line, where it can't use host data."""
    ended = run(stdin)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("keyvalue-inmemory: ")
    assert ended.stderr.endswith("\n")
    assert ended.stderr.count("\n") == 1
    return ended.stderr.removeprefix("keyvalue-inmemory: ").removesuffix("\n")


def test_no_host_data_in_time(tmp_path: Path) -> None:
    provider = OpenPipe(tmp_path)
    assert provider.wait() == 2
    assert "found nothing on standard input within 5 s, expected host data: one line of base64" in provider.output
    provider.pipe.close()


EXPECTED = "expected host data: one line of base64 of a JSON object, as a wasmCloud host writes it, or: echo "
SECRET = "a-s3cret"


@pytest.mark.parametrize(
    ("stdin", "found"),
    [
        (b"", "found an empty standard input"),
        (b" \r\n", "found an empty standard input"),
        (b'{"lattice_rpc_url": "a-s3cret"}\n', "found 30 characters on standard input that are not base64"),
        (b"abc\n", "found 3 characters on standard input that are not base64"),
        (b"\xff\xfe\n", "found 2 characters on standard input that are not base64"),
        (base64.b64encode(b"a-s3cret"), "found base64 of 8 bytes that are not JSON"),
        (base64.b64encode(b'{"a":'), "found base64 of 5 bytes that are not JSON"),
        (base64.b64encode(b"\xff"), "found base64 of 1 bytes that are not JSON"),
        (base64.b64encode(b"[" * 30_000), "found base64 of 30000 bytes that are not JSON"),
    ],
)
def test_standard_input_that_is_no_host_data(stdin: bytes, found: str) -> None:
    message = refused(stdin)
    assert message.startswith(f"{found}, {EXPECTED}")
    assert SECRET not in message


LINK = {"source_id": "c", "target": "kv"}


@pytest.mark.parametrize(
    ("host_data", "message"),
    [
        ([SECRET], "top level: found an array, expected an object"),
        ({"host_id": [SECRET]}, "host_id: found an array, expected a string"),
        ({"lattice_rpc_url": {"url": SECRET}}, "lattice_rpc_url: found an object, expected a string"),
        ({"lattice_rpc_user_seed": [SECRET]}, "lattice_rpc_user_seed: found an array, expected a string"),
        ({"provider_xkey_private_key": 1}, "provider_xkey_private_key: found a number, expected a string"),
        ({"config": [SECRET]}, "config: found an array, expected an object"),
        ({"config": {"a": 1}}, "config.a: found a number, expected a string"),
        ({"link_definitions": {}}, "link_definitions: found an object, expected an array"),
        ({"link_definitions": [LINK, SECRET]}, "link_definitions[1]: found a string, expected an object"),
        (
            {"link_definitions": [LINK | {"target_config": {"a": [SECRET]}}]},
            "link_definitions[0].target_config.a: found an array, expected a string",
        ),
        ({"secrets": {"a": SECRET}}, "secrets.a: found a string, expected an object"),
        ({"default_rpc_timeout_ms": "1"}, "default_rpc_timeout_ms: found a string, expected a whole number"),
        ({"structured_logging": "true"}, "structured_logging: found a string, expected a boolean"),
        (
            {"provider_key": "a key"},
            "provider_key: found 'a key', allowed printable tokens without white space, '*' and '>', joined by '.'",
        ),
        ({"config": {"acess": SECRET}}, "config: acess: no option has this name; did you mean access?"),
        ({"provider_key": "\ud800"}, "provider_key: found '\\ud800'"),
        (
            {"lattice_rpc_url": f"nats://user:{SECRET}@a:b"},
            "lattice_rpc_url: found a URL whose host or port is none, allowed nats://HOST:PORT",
        ),
        (
            {"lattice_rpc_url": f"ws://{SECRET}@a"},
            "lattice_rpc_url: found 'ws://<redacted>@a', allowed nats://HOST:PORT",
        ),
        ({"config": {"page_keys": "0"}}, "config: page_keys: found '0', allowed a whole number from 1"),
        ({"config": {"shards_min": "3"}}, "config: shards_min: found 3, allowed a power of two from 1 to 65536"),
    ],
)
def test_host_data_with_a_field_that_is_wrong(host_data: object, message: str) -> None:
    if isinstance(host_data, dict):
        host_data = {"config": {"connect_timeout_ms": "1"}} | host_data
    told = refused(base64.b64encode(json.dumps(host_data).encode()))
    assert told.removeprefix("host data: ").startswith(message)
    assert SECRET not in told


# NATS at the start


def dead_url() -> tuple[socket.socket, str]:
    """A port that is taken, and where nobody listens."""
    bound = socket.socket()
    bound.bind(("127.0.0.1", 0))
    return bound, f"nats://127.0.0.1:{bound.getsockname()[1]}"


def test_nats_cannot_be_reached() -> None:
    bound, url = dead_url()
    with bound:
        config = {"connect_timeout_ms": "300"}
        ended = run(host_data_line({"lattice_rpc_url": url, "config": config}))
    assert ended.returncode == 1
    assert ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert f" ERROR keyvalue_provider: {url}: no NATS server reached within 0.3 s: " in last
    assert "refused" in last
    assert "Traceback" not in ended.stderr


def test_the_first_of_several_servers_is_dead(launch: Launch, nats_server: NatsServer) -> None:
    bound, url = dead_url()
    with bound:
        provider = launch(lattice_rpc_url=f"{url}, {nats_server.url}")
    assert f"at {nats_server.url} with" in provider.output


def test_nats_refuses(new_nats_server: Callable[[str], NatsServer]) -> None:
    server = new_nats_server(f"authorization {{ user: u, password: {SECRET} }}")
    url = server.url.replace("//", "//u:another-s3cret@")
    began_s = time.monotonic()
    ended = run(host_data_line({"lattice_rpc_url": url, "log_level": "debug"}))
    assert time.monotonic() - began_s < 5
    assert ended.returncode == 1
    redacted = server.url.replace("//", "//<redacted>@")
    assert f"{redacted}: the NATS server refuses the connection: " in ended.stderr
    assert "s3cret" not in ended.stderr
    assert "Traceback" not in ended.stderr


# The log


def lines_of(provider: Provider) -> list[dict[str, Any]]:
    return [json.loads(line) for line in provider.output.splitlines()]


async def test_a_structured_log_is_json(launch: Launch, raw: Client) -> None:
    provider = launch({"no_option": "1"}, structured_logging=True, log_level="debug")
    await tell(raw, provider, "linkdefs.put", link_to(provider, name='"quoted"\nand over a line'))
    await tell(raw, provider, "linkdefs.put", b"{")
    assert await health(raw, provider) == HEALTHY
    assert provider.stop() == 0
    lines = lines_of(provider)
    assert all(line.keys() == {"timestamp", "level", "target", "fields"} for line in lines)
    messages = [(line["level"], line["target"], line["fields"]["message"]) for line in lines]
    assert ("WARNING", "keyvalue_provider", "config: ignored, since no option has this name: no_option") in messages
    assert any('"quoted"\nand over a line' in message for _, _, message in messages)
    assert any(message.startswith("ready: serving") for _, _, message in messages)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("structured", [False, True])
async def test_a_failed_call_is_logged_with_its_trace(launch: Launch, raw: Client, path: str, structured: bool) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    provider = launch({"transport": path}, structured_logging=structured)
    await raw.publish(provider.subject("get"), b"\x01b\x01\xff", "of.nobody", {"traceparent": trace})
    line = await in_thread(provider.wait_for, "malformed parameters")
    if structured:
        assert json.loads(line)["fields"]["traceparent"] == trace
    else:
        assert line.endswith(f" (traceparent {trace})\n")


async def test_level_and_form_of_the_log_change_with_the_configuration(
    launch: Launch, raw: Client, nats_server: NatsServer
) -> None:
    provider = launch({"log_level": "error"}, wait=False, log_level="debug")
    await in_thread(served, nats_server, provider)
    assert provider.output == ""
    await tell(raw, provider, "config.update", {"structured_logging": "true"})
    await tell(raw, provider, "linkdefs.put", link_to(provider))
    line = await in_thread(provider.wait_for, "link put")  # the host data's level again
    assert json.loads(line)["level"] == "INFO"
    await tell(raw, provider, "config.update", {"log_level": "warn"})
    await tell(raw, provider, "linkdefs.del", link_to(provider))
    await tell(raw, provider, "config.update", {"log_level": "loud"})
    line = await in_thread(provider.wait_for, "log_level: found 'loud', allowed trace, debug")
    assert " ERROR keyvalue_provider: config: " in line
    assert await unhealthy(raw, provider) == line.split(" keyvalue_provider: ")[1].split("; the previous")[0]
    assert "link deleted" not in ended(provider)


async def test_names_cannot_forge_lines_of_the_log(launch: Launch, raw: Client) -> None:
    provider = launch()
    await tell(
        raw, provider, "linkdefs.put", link_to(provider, name="a\n2026-01-01T00:00:00.000Z ERROR provider: forged")
    )
    assert await health(raw, provider) == HEALTHY
    assert provider.stop() == 0
    assert all("forged" not in line or "link put" in line for line in provider.output.splitlines())


@pytest.mark.parametrize("level", ["debug", "TRACE", "info", "warn", "error", "critical"])
def test_levels_of_the_log(launch: Launch, nats_server: NatsServer, level: str) -> None:
    provider = launch({"no_option": "1"}, log_level=level, wait=False)
    if level in ("debug", "TRACE", "info"):
        provider.wait_for("ready")
        assert "WARNING" in provider.output
        return
    served(nats_server, provider)
    assert provider.stop() == 0
    assert ("WARNING" in provider.output) is (level == "warn")
    assert "INFO" not in provider.output


def served(nats_server: NatsServer, provider: Provider) -> None:
    """Return once the provider answers, where its log does not tell."""

    async def wait() -> None:
        raw = await nats.connect(nats_server.url)
        async with asyncio.timeout(DEADLINE_S):
            while True:
                try:
                    await raw.request(provider.subject("get"), encode_bucket_key(b"b", b"k"), timeout=DEADLINE_S)
                    break
                except nats.errors.NoRespondersError:
                    assert provider.running
        await raw.close()

    asyncio.run(wait())


def test_an_unknown_level_is_info(launch: Launch) -> None:
    provider = launch(log_level="loud")
    assert "WARNING root: log_level: found 'loud', allowed trace, debug, info" in provider.output


async def test_no_secret_is_ever_written(new_nats_server: Callable[[str], NatsServer], launch: Launch) -> None:
    seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER).decode()
    public_key = nkeys.from_seed(seed.encode()).public_key.decode()
    users = f"{{ nkey: {public_key} }}, {{ user: u, password: {SECRET} }}"
    server = new_nats_server(f"authorization {{ users: [ {users} ] }}")
    secrets = list(SECRET.encode())
    host_key, own_key = PrivateKey.generate(), PrivateKey.generate()
    xkey_seed = encode_seed("X", bytes(own_key))
    of_link = json.dumps({"password": {"kind": "String", "value": SECRET}}).encode()
    sealed = list(b"xkv1" + Box(host_key, own_key.public_key).encrypt(of_link))
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {
        "target": "kv-with-secrets",
        "source_config": {"password": SECRET},
        "target_config": {"URL": f"redis://:{SECRET}@host"},
        "target_secrets": secrets,
    }
    provider = launch(
        {"unknown": SECRET},
        provider_key="kv-with-secrets",
        lattice_rpc_url=server.url,
        lattice_rpc_user_seed=seed,
        log_level="trace",
        link_definitions=[link],
        secrets={"a": {"kind": "String", "value": SECRET}, "b": {"kind": "Bytes", "value": secrets}},
        env_values={"PASSWORD": SECRET},
        otel_config={"traces_endpoint": SECRET},
        provider_xkey_private_key=xkey_seed,
        host_xkey_public_key=encode_public_key("X", bytes(host_key.public_key)),
    )
    raw = await nats.connect(server.url.replace("//", f"//u:{SECRET}@"))
    await tell(raw, provider, "linkdefs.put", link | {"name": "second", "source_secrets": secrets})
    await tell(raw, provider, "linkdefs.put", link | {"target_config": {"a": [SECRET]}})
    await tell(raw, provider, "linkdefs.put", link | {"target_secrets": SECRET})
    await tell(raw, provider, "linkdefs.put", link | {"name": "sealed", "target_secrets": sealed})
    await tell(raw, provider, "linkdefs.put", f"not JSON: {SECRET}".encode())
    await tell(raw, provider, "linkdefs.del", link)
    await tell(raw, provider, "config.update", {"unknown": SECRET, "page_keys": "9"})
    await tell(raw, provider, "config.update", [SECRET])
    for function in ("get", "set"):
        await raw.publish(provider.subject(function), b"\x01b\x08" + SECRET.encode() + b"\xff" * 9, "of.nobody")
    assert SECRET not in json.dumps(await health(raw, provider))
    await raw.close()
    await in_thread(server.kill)
    await in_thread(provider.wait_for, "the connection is lost")
    await in_thread(server.start)
    await in_thread(provider.wait_for, "connected again")
    assert await in_thread(provider.stop) == 0
    assert "secrets: password" in provider.wait_for("link put")
    for text in (SECRET, seed, xkey_seed, seed[2:30], str(secrets), SECRET.encode().hex(), repr(SECRET)):
        assert text not in provider.output


# The command


def test_help_names_every_option() -> None:
    ended = run(b"", "--help")
    assert ended.returncode == 0
    for name in OPTIONS:
        assert f"\n  {name} " in ended.stdout


def test_version() -> None:
    ended = run(b"", "--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("keyvalue-inmemory ")


def test_arguments_that_it_does_not_have() -> None:
    ended = run(b"", "--port=1")
    assert ended.returncode == 2
    assert "unrecognized arguments: --port=1" in ended.stderr
