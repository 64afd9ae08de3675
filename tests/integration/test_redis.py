"""The Redis listener of a real provider: clients, users, limits, and keys that are shared with wRPC."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
import trustme

from keyvalue_transport.keyvalue.errors import OtherError
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, PROVIDER, NatsServer, Process
from tests.integration.redis_provider import RedisProvider, redis_provider
from tests.integration.redis_server import Wire, encode_request

USERS = {
    "reader": {"password": "r", "access": "read-only"},
    "tenant": {"password": "t", "bucket_prefix": "tenant-", "value_bytes_max": "10", "quota_keys": "3"},
    "one": {"password": "o", "buckets": "default"},
}


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def provider(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProvider]:
    directory = tmp_path_factory.mktemp("provider")
    with redis_provider(directory, nats, redis_users=json.dumps(USERS), redis_flush="true") as running:
        yield running


@pytest.fixture
def wire(provider: RedisProvider) -> Iterator[Wire]:
    with Wire(provider.socket) as connection:
        connection.call(b"FLUSHDB")
        yield connection


@pytest.fixture
async def client(provider: RedisProvider, nats: NatsServer) -> AsyncIterator[KeyValueClient]:
    async with KeyValueClient(nats.url, provider.prefix) as connected:
        yield connected


HANDSHAKE = encode_request([b"CLIENT", b"SETINFO", b"LIB-NAME", b"redis-rs"]) + encode_request(
    [b"CLIENT", b"SETINFO", b"LIB-VER", b"0.27.6"]
)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (HANDSHAKE, b"+OK\r\n+OK\r\n"),
        (encode_request([b"SELECT", b"1"]) + HANDSHAKE, b"+OK\r\n" * 3),
        (encode_request([b"AUTH", b"reader", b"r"]) + HANDSHAKE, b"+OK\r\n" * 3),
        (encode_request([b"SET", b"app1:k", b"v"]), b"+OK\r\n"),
        (encode_request([b"EXISTS", b"app1:k"]), b":1\r\n"),
        (encode_request([b"GET", b"app1:k"]), b"$1\r\nv\r\n"),
        (
            encode_request([b"SCAN", b"0", b"MATCH", b"app1:*", b"COUNT", b"1000"]),
            b"*2\r\n$1\r\n0\r\n*1\r\n$6\r\napp1:k\r\n",
        ),
        (encode_request([b"SCAN", b"18446744073709551615", b"MATCH", b"app1:*"]), b"*2\r\n$1\r\n0\r\n*0\r\n"),
        (encode_request([b"INCRBY", b"app1:n", b"5"]), b":5\r\n"),
        (encode_request([b"MGET", b"app1:k"]), b"*1\r\n$1\r\nv\r\n"),
        (encode_request([b"MSET", b"app1:a", b"1", b"app1:b", b"2"]), b"+OK\r\n"),
        (encode_request([b"SETNX", b"app1:a", b"1"]), b":0\r\n"),
        (encode_request([b"DEL", b"app1:a"]) + encode_request([b"DEL", b"none"]), b":1\r\n:0\r\n"),
    ],
)
def test_the_calls_of_a_host(provider: RedisProvider, sent: bytes, expected: bytes) -> None:
    """These are the bytes of the Rust crate redis 0.27.6 in a wasmCloud 2.7 host, whole and byte by byte."""
    for size in (len(sent), 1):
        with Wire(provider.socket) as wire:
            wire.calls([[b"FLUSHDB"], [b"SET", b"app1:k", b"v"]])
            if b"SETNX" in sent or b"app1:a\r\n*" in sent:
                wire.call(b"SET", b"app1:a", b"1")
            for at in range(0, len(sent), size):
                wire.send(sent[at : at + size])
            answer = b""
            while len(answer) < len(expected):
                answer += wire.socket.recv(4096)
            assert answer == expected


def test_redis_py(provider: RedisProvider) -> None:
    for protocol in (2, 3):
        with redis.Redis(unix_socket_path=provider.socket, protocol=protocol) as client:
            client.flushdb()
            assert client.set("k", "v", ex=100, nx=True)
            assert client.set("k", "w", get=True, keepttl=True) == b"v"
            assert 0 < client.ttl("k") <= 100
            assert client.mset({"a": 1, "b": 2})
            assert client.mget("a", "none", "b") == [b"1", None, b"2"]
            assert client.incrby("a", -5) == -4
            assert sorted(client.scan_iter(match="[ab]", count=1)) == [b"a", b"b"]
            assert client.getdel("b") == b"2"
            assert client.client_getname() is None
            assert client.info("clients")["connected_clients"] >= 1
            assert client.config_get("maxmemory") == {"maxmemory": "0"}
            assert client.command_count() == 47
            assert client.memory_usage("k") > 200
            assert client.randomkey() in (b"a", b"k")
            with client.pipeline(transaction=False) as pipeline:
                assert pipeline.set("x", 1).incr("x").expire("x", 9).persist("x").execute() == [True, 2, True, True]
            with pytest.raises(redis.ResponseError, match="unknown command 'LPUSH'"):
                client.lpush("k", 1)


async def test_both_protocols_share_counters_and_keys(wire: Wire, client: KeyValueClient) -> None:
    assert wire.call(b"INCRBY", b"n", b"41") == 41
    assert await client.increment("default", "n") == 42
    assert wire.call(b"GET", b"n") == b"42"
    wire.call(b"SET", b"n", b"-7")
    with pytest.raises(OtherError, match="not a decimal number"):
        await client.increment("default", "n")
    assert wire.call(b"INCR", b"n") == -6
    await client.set("default", "n", b"18446744073709551615")
    assert "not an integer or out of range" in str(wire.call(b"INCR", b"n"))
    assert await client.get("default", "n") == b"18446744073709551615"
    await client.set("1", "in one", b"1")
    assert wire.calls([[b"SELECT", b"1"], [b"GET", b"in one"]]) == [b"OK", b"1"]


async def test_keys_that_are_not_utf8_are_left_out_over_nats(wire: Wire, client: KeyValueClient) -> None:
    names = [b"\xff%d" % number for number in range(50)] + [b"\xc3\xa4", b"a"]
    wire.call(b"MSET", *(part for name in names for part in (name, b"v")))
    assert sorted([key async for key in client.keys("default")]) == ["a", "\xe4"]
    assert sorted(wire.call(b"KEYS", b"*")) == sorted(names)
    assert wire.call(b"GET", b"\xff1") == b"v"


def test_users_have_the_options_of_links(provider: RedisProvider, wire: Wire) -> None:
    wire.call(b"SET", b"k", b"v")
    with Wire(provider.socket) as user:
        assert "WRONGPASS" in str(user.call(b"AUTH", b"reader", b"wrong"))
        assert "WRONGPASS" in str(user.call(b"AUTH", b"nobody", b""))
        assert user.call(b"AUTH", b"reader", b"r") == b"OK"
        assert user.call(b"GET", b"k") == b"v"
        assert "NOPERM" in str(user.call(b"SET", b"k", b"w"))
        assert user.call(b"AUTH", b"tenant", b"t") == b"OK"
        assert user.call(b"GET", b"k") is None
        assert user.call(b"MSET", b"1", b"", b"2", b"") == b"OK"
        assert user.call(b"SETNX", b"3", b"") == 1
        assert "OOM the buckets of this quota would hold 4 keys" in str(user.call(b"SET", b"4", b"", b"NX"))
        assert "value is 11 bytes; the limit is 10" in str(user.call(b"APPEND", b"1", b"12345678901"))
        assert user.call(b"CLIENT", b"LIST").count(b"\n") == 1, "a user sees only its own connections"
        assert b"db0" not in user.call(b"INFO")
        user.call(b"FLUSHDB")
        assert user.call(b"AUTH", b"one", b"o") == b"OK"
        assert user.call(b"GET", b"k") == b"v"
        user.call(b"SELECT", b"1")
        assert "ERR no such bucket" in str(user.call(b"GET", b"k"))
        assert user.call(b"RESET") == b"RESET"
        assert user.call(b"CLIENT", b"LIST").count(b"\n") >= 2


def test_a_password(nats: NatsServer, tmp_path: Path) -> None:
    with redis_provider(tmp_path, nats, "locked", redis_password="secret") as locked, Wire(locked.socket) as wire:
        assert "NOAUTH" in str(wire.call(b"GET", b"k"))
        assert "NOAUTH" in str(wire.call(b"SELECT", b"1"))
        assert wire.calls([[b"CLIENT", b"SETINFO", b"LIB-NAME", b"x"]]) == [b"OK"]
        assert "NOAUTH" in str(wire.call(b"CLIENT", b"LIST"))
        assert "NOAUTH" in str(wire.call(b"HELLO", b"3"))
        assert "WRONGPASS" in str(wire.call(b"AUTH", b"wrong"))
        assert "JUNK" in str(wire.call(b"HELLO", b"3", b"AUTH", b"default", b"secret", b"JUNK"))
        login = b"AUTH", b"default", b"secret", b"SETNAME", b"me"
        assert wire.call(b"HELLO", b"3", *login)[b"proto"] == 3
        assert wire.call(b"CLIENT", b"GETNAME") == b"me"
        assert wire.call(b"SET", b"k", b"v") == b"OK"
        assert wire.call(b"RESET") == b"RESET"
        assert "NOAUTH" in str(wire.call(b"GET", b"k"))
        assert "secret" not in locked.process.output


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"redis_address": "0.0.0.0:0"}, "redis_address: 0.0.0.0:0 is not a loopback address"),
        ({"redis_address": "example.org:1"}, "is not a loopback address"),
        ({"redis_address": "nonsense"}, "redis_address: found 'nonsense', allowed HOST:PORT"),
        ({"redis_address": "1", "redis_users": "{"}, "redis_users: not JSON (line 1, column 2)"),
        ({"redis_address": "1", "redis_users": '{"a": {"password": "p", "acess": ""}}'}, "redis_users: user a: acess"),
        ({"redis_address": "1", "redis_tls_ca": "none"}, "redis_tls_certificate: found none"),
        ({"redis_address": "1", "redis_socket_mode": "9"}, "redis_socket_mode: found '9', allowed octal digits"),
    ],
)
def test_what_is_refused_at_the_start(nats: NatsServer, options: dict[str, str], reason: str) -> None:
    flags = [f"--{name.replace('_', '-')}={text}" for name, text in options.items()]
    arguments = (str(PROVIDER), "serve", "--nats", nats.url, "--prefix", "default.refused", *flags)
    ended = subprocess.run(arguments, env={}, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 2
    assert reason in ended.stderr


def test_an_address_in_use(nats: NatsServer, tmp_path: Path, provider: RedisProvider) -> None:
    mine = tmp_path / "mine.sock"
    arguments = (str(PROVIDER), "serve", "--nats", nats.url, "--prefix", "default.second", "--redis-address")
    ended = subprocess.run(
        (*arguments, f"{mine},{provider.socket}"),
        env={},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == 1
    assert f"redis_address {provider.socket}: Address already in use" in ended.stdout + ended.stderr
    assert not mine.exists(), "the socket that it could open is closed again"
    with Wire(provider.socket) as wire:
        assert wire.call(b"PING") == b"PONG"


def test_a_start_that_fails_while_clients_wait(nats: NatsServer, tmp_path: Path) -> None:
    """They get answers from the beginning, and an end when it is certain that the provider does not start."""
    path, snapshot = tmp_path / "waiting.sock", str(tmp_path / "snapshot")
    arguments = "--snapshot-path", snapshot, "--connect-timeout-ms", "30000", "--redis-address", path
    with redis_provider(tmp_path, nats, "holder", snapshot_path=snapshot) as holder:
        late = Process((PROVIDER, "serve", "--nats", nats.url, "--prefix", "default.late", *arguments), tmp_path, {})
        late.wait_for("uses the snapshot")
        with redis_provider(tmp_path, nats, "late"), Wire(str(path)) as wire:  # it comes after the first look for it
            assert wire.call(b"CLIENT", b"SETINFO", b"LIB-NAME", b"x") == b"OK"
            assert "LOADING" in str(wire.call(b"GET", b"k"))
            holder.process.signal(15)
            assert wire.is_closed()
            assert late.wait() == 1
    assert "not started: default.late is also served" in late.output
    assert not path.exists()


def test_the_socket_belongs_to_its_user_and_goes_with_the_provider(nats: NatsServer, tmp_path: Path) -> None:
    path = tmp_path / "mine.provider.sock"
    for mode in ("600", "660"):
        with redis_provider(tmp_path, nats, "mine", redis_socket_mode=mode) as mine:
            assert stat.S_IMODE(os.stat(mine.socket).st_mode) == int(mode, 8)
        assert not path.exists()
    with redis_provider(tmp_path, nats, "mine") as mine:
        mine.process.kill()
    assert path.exists()
    with redis_provider(tmp_path, nats, "mine") as mine, Wire(mine.socket) as wire:
        assert wire.call(b"PING") == b"PONG"


def test_tls(nats: NatsServer, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    (tmp_path / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    options = {
        "redis_address": "127.0.0.1:0",
        "redis_tls_certificate": str(tmp_path / "cert.pem"),
        "redis_tls_key": str(tmp_path / "key.pem"),
        "redis_connections_max": "5",
    }
    with redis_provider(tmp_path, nats, "tls", **options) as running:
        port = int(running.process.wait_for("Redis clients can connect").rpartition(":")[2])
        with redis.Redis(port=port, ssl=True, ssl_ca_certs=str(tmp_path / "ca.pem")) as client:
            assert client.set("k", b"v" * 1_000_000)
            assert client.get("k") == b"v" * 1_000_000
        with Wire(("127.0.0.1", port)) as plain, pytest.raises((EOFError, ConnectionResetError)):
            plain.call(b"PING")
        assert_handshakes_count(running, port, str(tmp_path / "ca.pem"))


def wait_for_clients(wire: Wire, clients: int) -> None:
    ends_s = time.monotonic() + DEADLINE_S
    while b"connected_clients:%d\r" % clients not in wire.call(b"INFO", b"clients"):
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def assert_handshakes_count(running: RedisProvider, port: int, authority: str) -> None:
    """Clients that begin no handshake, and the first client, are as many connections as there may be."""
    with Wire(running.socket) as wire:
        silent = [Wire(("127.0.0.1", port)) for _ in range(4)]
        wait_for_clients(wire, 5)
        with Wire(running.socket) as other:
            assert "max number of clients" in str(other.answer())
        with Wire(("127.0.0.1", port)) as other:
            assert other.is_closed()
        assert b"rejected_connections:2\r" in wire.call(b"INFO", b"stats")
        silent.pop().socket.close()
        wait_for_clients(wire, 4)
        with redis.Redis(port=port, ssl=True, ssl_ca_certs=authority) as client:
            assert client.get("k") == b"v" * 1_000_000
        for each in silent:
            each.socket.close()


@pytest.mark.parametrize(
    "sent", [b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\nSET k v\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nSET k v\r\n"]
)
def test_http_requests_are_closed(wire: Wire, provider: RedisProvider, sent: bytes) -> None:
    with Wire(provider.socket) as browser:
        browser.send(sent)
        browser.socket.settimeout(DEADLINE_S)
        while browser.socket.recv(4096):
            pass
    assert wire.call(b"GET", b"k") is None
    assert wire.call(b"GET", b"/") is None


def test_limits(nats: NatsServer, tmp_path: Path) -> None:
    options = {"redis_connections_max": "3", "redis_request_bytes_max": "10000", "redis_held_bytes_max": "15000"}
    with redis_provider(tmp_path, nats, "limited", **options) as limited:
        wires = [Wire(limited.socket) for _ in range(3)]
        assert all(wire.call(b"PING") == b"PONG" for wire in wires)
        with Wire(limited.socket) as fourth:
            assert "max number of clients" in str(fourth.answer())
        assert "Protocol error: invalid bulk length" in str(wires[0].call(b"SET", b"k", b"v" * 10_000))
        half = encode_request([b"SET", b"k", b"v" * 9_000])[:-10]
        wires[1].send(half)
        wires[2].send(half)
        assert "too many bytes of incomplete or waiting requests" in str(wires[2].answer())
        assert wires[2].is_closed()
        wires[1].send(encode_request([b"SET", b"k", b"v" * 9_000])[-10:])
        assert wires[1].answer() == b"OK"
        for wire in wires:
            wire.socket.close()


def test_the_arguments_of_incomplete_requests_count_as_the_memory_that_they_take(
    nats: NatsServer, tmp_path: Path
) -> None:
    """Each argument of two bytes takes six times as much memory as bytes of the request."""
    with redis_provider(tmp_path, nats, "small", redis_held_bytes_max="10000000") as running:
        status = Path(f"/proc/{running.process.process.pid}/status")
        before_kib = int(status.read_text().partition("VmRSS:")[2].split()[0])
        wires = [Wire(running.socket) for _ in range(4)]
        for wire in wires:
            with suppress(ConnectionError):
                wire.send(b"*1000000\r\n" + b"$2\r\nxx\r\n" * 150_000)
        with Wire(running.socket) as other:
            assert other.call(b"PING") == b"PONG"
        peak_kib = int(status.read_text().partition("VmHWM:")[2].split()[0])
        assert peak_kib - before_kib < 25_000
        for wire in wires:
            wire.socket.close()


def test_a_client_that_reads_nothing_does_not_stop_others(nats: NatsServer, tmp_path: Path) -> None:
    with redis_provider(tmp_path, nats, "slow", redis_unsent_bytes_max="40000000") as running:
        with Wire(running.socket) as wire:
            wire.call(b"SET", b"k", b"v" * 5_000_000)
            slow = [Wire(running.socket) for _ in range(20)]
            for each in slow:
                each.send(encode_request([b"GET", b"k"]) * 1_000)
            for _ in range(20):
                assert wire.call(b"PING") == b"PONG"
                time.sleep(0.01)
            memory = Path(f"/proc/{running.process.process.pid}/status").read_text()
            peak_kib = int(memory.partition("VmHWM:")[2].split()[0])
            assert peak_kib < 400_000
            for each in slow:
                each.socket.close()
        with Wire(running.socket) as wire:
            assert wire.calls([[b"GET", b"k"]] * 50) == [b"v" * 5_000_000] * 50


def test_ten_thousand_idle_connections(nats: NatsServer, tmp_path: Path) -> None:
    """Each costs a few kilobytes. A process may open fewer files, so several take part."""
    import resource

    limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200, 10_000)
    with redis_provider(tmp_path, nats, "crowd") as running:
        status = Path(f"/proc/{running.process.process.pid}/status")
        before_kib = int(status.read_text().partition("VmRSS:")[2].split()[0])
        wires: list[Wire] = []
        for number in range(limit):
            wires.append(Wire(running.socket))
            if not number % 500:
                wires[-1].call(b"PING")  # so that no more connections wait than the backlog holds
        assert all(each.call(b"PING") == b"PONG" for each in wires)
        after_kib = int(status.read_text().partition("VmRSS:")[2].split()[0])
        assert (after_kib - before_kib) / limit < 8, "KiB for each connection"
        for each in wires:
            each.socket.close()


def test_idle_connections_stay_unless_an_option_sets_a_time(nats: NatsServer, tmp_path: Path) -> None:
    with redis_provider(tmp_path, nats, "idle", redis_idle_timeout_ms="200") as running, Wire(running.socket) as wire:
        assert wire.call(b"PING") == b"PONG"
        assert wire.is_closed()


def test_client_kill(provider: RedisProvider, wire: Wire) -> None:
    with Wire(provider.socket) as victim:
        number = victim.call(b"CLIENT", b"ID")
        assert wire.call(b"CLIENT", b"KILL", b"ID", b"%d" % number) == 1
        assert victim.is_closed()
    assert wire.call(b"CLIENT", b"KILL", b"ID", b"%d" % wire.call(b"CLIENT", b"ID"), b"SKIPME", b"no") == 1
    assert wire.is_closed()


async def test_a_walk_leaves_turns_to_others(wire: Wire, provider: RedisProvider) -> None:
    for start in range(0, 100_000, 5_000):
        wire.call(b"MSET", *(part for number in range(start, start + 5_000) for part in (b"k%d" % number, b"")))
    wire.send(encode_request([b"KEYS", b"*"]) + encode_request([b"PING"]))
    with Wire(provider.socket) as other:
        began_s = time.monotonic()
        assert other.call(b"PING") == b"PONG"
        assert time.monotonic() - began_s < 2
    assert len(await asyncio.to_thread(wire.answer)) == 100_000
    assert wire.answer() == b"PONG"
    assert wire.call(b"DBSIZE") == 100_000
    assert wire.call(b"FLUSHDB") == b"OK"
    assert wire.call(b"DBSIZE") == 0
