"""Programs for Redis, run against the listener of a real provider: redis_exporter, and the modes of redis-cli."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DEADLINE_S, NatsServer, Process, free_port
from tests.integration.redis_provider import redis_provider
from tests.integration.redis_server import Wire
from tests.provider.observe.test_metrics import debian_program


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Run a provider with 200 keys in database 0 and one in database 1. Yield the port of its listener."""
    directory, number = tmp_path_factory.mktemp("tools"), free_port()
    options = {"redis_address": f"127.0.0.1:{number}", "metrics_address": f"127.0.0.1:{free_port()}"}
    nats = NatsServer(directory)
    try:
        with redis_provider(directory, nats, "tools", **options) as provider, Wire(provider.socket) as wire:
            for each in range(200):
                wire.call(b"SET", b"key%d" % each, b"v" * each)
            wire.calls([[b"GET", b"key1"], [b"GET", b"none"], [b"SELECT", b"1"], [b"SET", b"one", b"1"], [b"NOPE"]])
            yield number
    finally:
        nats.stop()


def test_redis_exporter(port: int, tmp_path: Path) -> None:
    program, own = debian_program("prometheus-redis-exporter", "prometheus-redis-exporter"), free_port()
    words = f"-redis.addr redis://127.0.0.1:{port} -web.listen-address 127.0.0.1:{own} -export-client-list"
    exporter = Process([program, *words.split(), "-check-keys", "db0=key19*"], tmp_path)
    try:
        exporter.wait_for("Providing metrics at")
        ends_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{own}/metrics", timeout=DEADLINE_S) as answer:
                    text = answer.read().decode()
                break
            except OSError:
                assert time.monotonic() < ends_s
                time.sleep(0.05)
    finally:
        exporter.kill()
    found = dict(re.findall(r"^(redis_\S+) (\S+)$", text, re.MULTILINE))
    assert found["redis_up"] == "1"
    assert 'redis_exporter_last_scrape_error{err=""} 0' in text
    assert (found['redis_db_keys{db="db0"}'], found['redis_db_keys{db="db1"}']) == ("200", "1")
    assert found['redis_commands_total{cmd="set"}'] == "201"
    assert float(found['redis_commands_duration_seconds_total{cmd="set"}']) > 0
    assert found['redis_commands_failed_calls_total{cmd="unknown"}'] >= "1"
    assert (found["redis_keyspace_hits_total"], found["redis_keyspace_misses_total"]) == ("1", "1")
    assert found['redis_key_size{db="db0",key="key199"}'] == "199"
    assert "redis_connected_clients_details{" in text
    for name in ("memory_used_bytes", "memory_used_rss_bytes", "uptime_in_seconds", "net_input_bytes_total"):
        assert float(found[f"redis_{name}"]) >= 0
    assert float(found["redis_connected_clients"]) >= 2
    assert float(found["redis_memory_used_rss_bytes"]) > 10_000_000


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--scan --pattern key19?", r'("key19\d"\n){10}$'),
        ("--bigkeys", r"Biggest string found '\"key199\"' has 199 bytes"),
        ("--memkeys", r"Biggest string found '\"key\d+\"' has \d+ bytes"),
        ("-r 3 -i 0.01 --stat", r"keys .* clients .* requests"),
        ("--latency --raw -i 0.2", r"^\d+ \d+ \d+\.\d+ \d+"),
        ("INFO everything", r"cmdstat_get:calls=\d"),
    ],
)
def test_redis_cli(port: int, words: str, expected: str) -> None:
    """The modes that never end write to a terminal, which `script` provides, until they are stopped."""
    command = f"{debian_program('redis-cli', 'redis-tools')} -p {port} {words}"
    done = subprocess.run(
        ["timeout", "2", "script", "-qec", command, "/dev/null"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_S,
    )
    assert re.search(expected, done.stdout.replace("\r\n", "\n")), done.stdout
