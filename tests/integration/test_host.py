"""A provider's life as its host sees it: host data, health, links, configuration, stopping, the log, exit codes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError

from keyvalue_transport.keyvalue.interface import encode_bucket_key, encode_unit_result
from keyvalue_transport.keyvalue.store import encode_get_result, encode_set
from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    HOST_ID,
    PROVIDER,
    Launch,
    NatsServer,
    Process,
    Provider,
    RawInvocation,
    host_data_line,
    in_thread,
    until,
)

HEALTHY = {"healthy": True, "message": "serving"}
STOPPED = b"provider shutdown handled successfully"
#: Longer than any test: a stop that waited for half-open invocations would not end.
LONG_STOP = {"stop_timeout_ms": "600_000", "half_open_timeout_ms": "600_000"}
GET = encode_bucket_key(b"b", b"k")
MARKERS = count()


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since nothing here depends on it."""


async def ask(raw: Client, provider: Provider, subject: str, payload: bytes = b"") -> bytes:
    """Return the provider's answer to a request of the host."""
    return bytes((await raw.request(provider.host_subject(subject), payload, timeout=DEADLINE_S)).data)


async def tell(raw: Client, provider: Provider, subject: str, message: object) -> None:
    """Publish a message of the host: bytes, or an object as JSON."""
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    await raw.publish(provider.host_subject(subject), payload)
    await raw.flush()


async def health(raw: Client, provider: Provider) -> Mapping[str, Any]:
    answer: dict[str, Any] = json.loads(await ask(raw, provider, "health"))
    return answer


async def unhealthy(raw: Client, provider: Provider) -> str:
    """Return the reason why it is not healthy."""
    answer = await health(raw, provider)
    assert answer["healthy"] is False
    return str(answer["message"])


def link_to(provider: Provider, **fields: object) -> dict[str, object]:
    """Return a link from a component to the provider, without the captured options."""
    link: dict[str, object] = HOST_CAPTURE["host_data"]["link_definitions"][0]
    return link | {"target": provider.key, "target_config": {}} | fields


async def logged(raw: Client, provider: Provider) -> str:
    """Return the whole log so far. A thread reads the log, so this logs a marker last and waits for it."""
    marker = f"marker {next(MARKERS)}"
    for verb in ("put", "del"):
        await tell(raw, provider, f"linkdefs.{verb}", link_to(provider, name=marker))
    await in_thread(provider.wait_for, f"({marker})", 2)
    return provider.output


def stop_request(host_id: str = HOST_ID) -> bytes:
    return json.dumps({"host_id": host_id}).encode()


# Links and configuration


async def test_malformed_links_make_it_unhealthy_until_they_are_corrected_or_deleted(
    provider: Provider, raw: Client
) -> None:
    assert await health(raw, provider) == HEALTHY
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


async def test_links_of_others_and_other_messages_do_not_make_it_unhealthy(provider: Provider, raw: Client) -> None:
    before = await logged(raw, provider)
    of_another = link_to(provider, target="of-another")
    messages: list[object] = [of_another, of_another | {"interfaces": 1}, b"{", []]
    for message in messages:
        await tell(raw, provider, "linkdefs.put", message)
        await tell(raw, provider, "linkdefs.del", message)
    assert await health(raw, provider) == HEALTHY
    output = (await logged(raw, provider))[len(before) :]
    assert output.count("a link is unusable") == 4
    assert output.count("a link was not deleted") == 2  # a link of another provider is just unknown
    assert "found 1 bytes that are not JSON, expected a link definition" in output


async def test_a_link_is_put_when_it_changes_and_deleted_once(provider: Provider, raw: Client) -> None:
    """A host publishes each link to several subjects.

    A provider that listens to several of them receives it as often.
    """
    for target_config in ({}, {}, {"bucket": "a"}, {"bucket": "b"}, {"bucket": "b"}):
        await tell(raw, provider, "linkdefs.put", link_to(provider, name="news", target_config=target_config))
    for _ in range(2):
        await tell(raw, provider, "linkdefs.del", link_to(provider, name="news", source_config={}))
    await tell(raw, provider, "linkdefs.put", link_to(provider, name="news"))
    output = await logged(raw, provider)
    lines = [line for line in output.splitlines() if "(news)" in line]
    assert [re.sub(r".*session: link (\w+):.*", r"\1", line) for line in lines] == ["put"] * 3 + ["deleted", "put"]


async def test_malformed_configurations_make_it_unhealthy_until_a_good_one_comes(
    provider: Provider, raw: Client
) -> None:
    for message, reason in (
        (b"{", "found 1 bytes that are not JSON"),
        (b"\xff\xfe", "found 2 bytes that are not JSON"),
        (b"[" * 100_000, "found 100000 bytes that are not JSON"),
        ([], "config: found an array, expected an object of strings"),
        ({"page_keys": 10}, "config.page_keys: found a number, expected a string"),
        ({"page_keys": "none"}, "page_keys: found 'none', allowed a whole number from 1"),
        ({"strict_buckets": "yes"}, "strict_buckets: found 'yes', allowed true or false"),
        ({"Acess": "read-only"}, "Acess: no option has this name; did you mean access?"),
    ):
        await tell(raw, provider, "config.update", message)
        assert (await unhealthy(raw, provider)).startswith(f"config: {reason}")
        output = await logged(raw, provider)
        assert (
            f"a configuration is refused: {reason}" in output
            or f"config: {reason}; the previous configuration stays" in output
        )
    await tell(raw, provider, "config.update", {})
    assert await health(raw, provider) == HEALTHY


async def test_links_and_options_of_host_data(launch: Launch, raw: Client) -> None:
    link = HOST_CAPTURE["host_data"]["link_definitions"][0] | {"target_config": {}}
    config = {"page_keys": "10", "strict_buckets": "TRUE", "url": "10", "cluster": "true", "bytes_max": "1000"}
    provider = launch(
        config,
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
    assert provider.output.count("config: ignored, since no option has this name: cluster, url\n") == 1
    assert provider.output.count("config: bytes_max is deprecated (use quota_bytes)\n") == 1
    started = provider.output
    await tell(raw, provider, "linkdefs.put", link | {"target": "kv-with-links"})
    await tell(raw, provider, "config.update", config)
    assert await health(raw, provider) == HEALTHY
    news = (await logged(raw, provider))[len(started) :]
    assert news.count("link put") == 1, "the marker's: known links are not put again"
    assert "config" not in news
    await tell(raw, provider, "config.update", config | {"key_bytes_max": "100", "page_keys": "9"})
    assert await health(raw, provider) == HEALTHY
    assert "config: these changes take effect at the next start: page_keys, key_bytes_max\n" in await logged(
        raw, provider
    )


def test_a_start_waits_only_for_modules_that_it_needs(launch: Launch) -> None:
    """The calls of a component are lost until its provider serves. The list holds the modules that took the most time."""
    provider = launch(environment={"PYTHONPROFILEIMPORTTIME": "1"})
    before, _, _ = provider.output.partition("ready: serving")
    _, _, before = before.partition(" keyvalue_provider\n")  # what measures the coverage is imported earlier
    imported = {line.rpartition("| ")[2].strip() for line in before.splitlines() if line.startswith("import time:")}
    assert {"nats.aio.client", "keyvalue_provider.process"} <= imported
    unused = (
        "argparse ctypes keyvalue_engine.snapshot nats.js.api nkeys prometheus_client tomllib wsgiref.simple_server"
    )
    assert imported.isdisjoint(unused.split())


async def test_every_link_and_option_of_the_capture(launch: Launch, raw: Client) -> None:
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
    assert sorted(line for line in log if line.startswith("WARN ")) == [
        *(
            f"WARN keyvalue_provider.keyvalue.policy: link {link}: ignored, since no option has this name: URL"
            for link in links[:2]
        ),
        f"WARN keyvalue_provider.watching.watchers: link {links[2]}: ignored, since no option of a watcher has this name: URL",
        "WARN keyvalue_provider: config: ignored, since no option has this name: note, sample",
    ]


async def test_a_missing_nats_permission_makes_it_unhealthy(
    new_nats_server: Callable[[str], NatsServer], launch: Launch
) -> None:
    permissions = 'permissions: { publish: ">", subscribe: { deny: "default.>" } }'
    server = new_nats_server(f"authorization {{ users: [ {{ user: u, password: p, {permissions} }} ] }}")
    url = server.url.replace("//", "//u:p@")
    provider = launch(lattice_rpc_url=url)
    await in_thread(provider.wait_for, "Permissions Violation", 5)
    raw = await nats.connect(url)
    assert "Permissions Violation for Subscription to" in await unhealthy(raw, provider)
    await raw.close()


# Stopping


async def test_the_reply_to_the_hosts_request_comes_last(launch: Launch, raw: Client) -> None:
    """A host kills the provider when it has the reply, or after 300 ms, so the provider's own stop limit does not count."""
    provider = launch(LONG_STOP, link_name="other", log_level="debug")
    for message in (b"", b"{", b"[]", b'{"host_id": 1}', b"{}", stop_request("NANOTHERHOST")):
        await raw.publish(provider.host_subject("other.shutdown"), message, "of.nobody")
    assert await health(raw, provider) == HEALTHY
    params = encode_set(b"b", b"k", bytes(1_000))
    assert await (await RawInvocation.begin(raw, provider.subject("set"), params)).result() == encode_unit_result(None)
    half = await RawInvocation.begin(raw, provider.subject("set"), params[:-1])
    await half.handshake()
    inbox = raw.new_inbox()
    everything = await raw.subscribe(f"{inbox}.>")
    for number in range(200):
        await raw.publish(provider.subject("get"), GET, f"{inbox}.{number}")
    for number in range(2):  # both requests are answered
        await raw.publish(provider.host_subject("other.shutdown"), stop_request(), f"{inbox}.stop.{number}")
    results: dict[str, bytes] = {}
    subjects: list[str] = []
    while subjects[-2:] != [f"{inbox}.stop.0", f"{inbox}.stop.1"]:
        came = await everything.next_msg(DEADLINE_S)
        subjects.append(came.subject)
        results[came.subject] = results.get(came.subject, b"") + came.data
    assert results[f"{inbox}.stop.0"] == results[f"{inbox}.stop.1"] == STOPPED
    assert subjects.count(f"{inbox}.stop.0") == 1
    assert await half.result() == b""  # its rest is never sent; it is ended so that no client waits
    expected = encode_get_result(bytes(1_000))
    assert [results[f"{inbox}.{number}.results"] == expected for number in range(200)] == [True] * 200
    assert await in_thread(provider.wait) == 0
    await raw.flush()
    assert everything.pending_msgs == 0
    assert provider.output.count("a shutdown request is ignored") == 4
    assert provider.output.count("a shutdown request of another host is ignored") == 2


async def test_without_a_host_id_any_host_stops_it_even_without_a_reply_subject(launch: Launch, raw: Client) -> None:
    provider = launch(host_id=None)
    await tell(raw, provider, "default.shutdown", stop_request("NANYHOST"))
    assert await in_thread(provider.wait) == 0
    assert provider.output.count("the host requests a shutdown") == 1


async def half_a_set(raw: Client, provider: Provider) -> tuple[RawInvocation, str]:
    """Begin a `set` whose last byte is missing. Return it and the provider's inbox for it."""
    half = await RawInvocation.begin(raw, provider.subject("set"), encode_set(b"b", b"k", b"v")[:-1])
    return half, await half.handshake()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_waits_for_calls_in_flight(launch: Launch, raw: Client, number: signal.Signals) -> None:
    provider = launch(environment={})  # the empty environment of a host, whatever the environment of these tests is
    half, server_inbox = await half_a_set(raw, provider)
    provider.signal(number)
    await in_thread(provider.wait_for, f"{number.name}: stopping; send a second signal to exit at once")
    await half.send(server_inbox, b"v", b"")
    assert await half.result() == encode_unit_result(None)
    assert await in_thread(provider.wait) == 0
    assert "stopped: 1 invocations answered" in provider.output
    with pytest.raises(NoRespondersError):
        await raw.request(provider.subject("get"), timeout=DEADLINE_S)


async def test_a_signal_ends_calls_that_are_never_answered(launch: Launch, raw: Client) -> None:
    provider = launch(LONG_STOP | {"stop_timeout_ms": "100"})
    half, _ = await half_a_set(raw, provider)
    provider.signal(signal.SIGTERM)
    assert await half.result() == b""
    assert await in_thread(provider.wait) == 0


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
async def test_a_second_signal_ends_at_once(
    launch: Launch, raw: Client, first: signal.Signals, second: signal.Signals
) -> None:
    provider = launch(LONG_STOP)
    await half_a_set(raw, provider)
    provider.signal(first)
    await in_thread(provider.wait_for, f"{first.name}: stopping")
    assert provider.running
    provider.signal(second)
    assert await in_thread(provider.wait) == 128 + second


async def test_a_signal_ends_it_while_it_connects(launch: Launch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        provider = launch(lattice_rpc_url=f"127.0.0.1:{silent.getsockname()[1]}", wait=False)
        await in_thread(lambda: silent.accept()[0].close())
        provider.signal(signal.SIGINT)
        assert await in_thread(provider.wait) == 0
    assert "SIGINT: stopping" in provider.output


# Host data on standard input


class OpenPipe(Process):
    """A provider whose standard input stays open after the host data is written to it."""

    def __init__(self, cwd: Path) -> None:
        super().__init__([PROVIDER], cwd, {}, subprocess.PIPE)
        assert self.process.stdin is not None
        self.pipe = self.process.stdin


def test_standard_input_may_stay_open_and_is_read_until_a_timeout(nats_server: NatsServer, tmp_path: Path) -> None:
    """tests/provider/host/test_host_data.py tests all ways in which host data may arrive."""
    silent, provider = OpenPipe(tmp_path), OpenPipe(tmp_path)
    host_data = HOST_CAPTURE["host_data"] | {"lattice_rpc_url": nats_server.url, "provider_key": "kv-open-pipe"}
    provider.pipe.write(host_data_line(host_data))
    provider.pipe.flush()
    provider.wait_for("ready")
    provider.process.terminate()
    assert provider.wait() == 0
    assert silent.wait() == 2
    assert "found nothing on standard input within 5 s, expected host data: one line of base64" in silent.output
    for process in (silent, provider):
        process.pipe.close()


SECRET = "a-s3cret"
EXPECTED = "expected host data: one line of base64 of a JSON object, as a wasmCloud host writes it, or: echo "


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (
            b'{"lattice_rpc_url": "a-s3cret"}\n',
            f"found 30 characters on standard input that are not base64, {EXPECTED}",
        ),
        (host_data_line({"host_id": [SECRET]}), "host data: host_id: found an array, expected a string"),
        (
            host_data_line({"lattice_rpc_url": f"ws://{SECRET}@a"}),
            "host data: lattice_rpc_url: found 'ws://<redacted>@a', allowed nats://HOST:PORT",
        ),
        (
            host_data_line({"config": {"acess": SECRET, "page_keys": "0"}}),
            "config: acess: no option has this name; did you mean access?; config: page_keys: found '0', allowed",
        ),
    ],
)
def test_unusable_input_is_refused_in_one_line(stdin: bytes, message: str) -> None:
    """tests/provider/host/test_host_data.py and tests/provider/config/ test all refusals."""
    ended = subprocess.run([PROVIDER], input=stdin, env={}, capture_output=True, timeout=DEADLINE_S)
    assert (ended.returncode, ended.stdout) == (2, b"")
    (line,) = ended.stderr.decode().splitlines()
    assert line.startswith(f"keyvalue-inmemory: {message}")
    assert SECRET not in line


# The log


@pytest.mark.parametrize(("path", "structured"), [("plain", False), ("direct", True)])
async def test_a_failed_call_is_logged_with_its_trace(launch: Launch, raw: Client, path: str, structured: bool) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    provider = launch({"transport": path}, structured_logging=structured)
    await tell(raw, provider, "linkdefs.put", link_to(provider, name='"quoted"\nand over a line'))
    await raw.publish(provider.subject("get"), b"\x01b\x01\xff", "of.nobody", {"traceparent": trace})
    line = await in_thread(provider.wait_for, "malformed parameters")
    if not structured:
        assert line.endswith(f" (traceparent {trace})\n")
        return
    lines = [json.loads(line) for line in provider.output.splitlines()]
    assert all(line.keys() == {"timestamp", "level", "target", "fields"} for line in lines)
    messages = [(line["level"], line["target"], line["fields"]["message"]) for line in lines]
    assert messages[0][:2] == ("INFO", "keyvalue_provider")
    assert any('"quoted"\nand over a line' in message for _, _, message in messages)
    assert json.loads(line)["fields"]["traceparent"] == trace


async def test_level_and_format_of_the_log_change_with_the_configuration(launch: Launch, raw: Client) -> None:
    provider = launch({"log_level": "error"}, wait=False, log_level="debug")

    async def serves() -> bool:
        return await (await RawInvocation.begin(raw, provider.subject("get"), GET)).taken()

    await until(serves, "it serves, and its log does not tell")
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
    assert provider.stop() == 0
    assert "link deleted" not in provider.output
