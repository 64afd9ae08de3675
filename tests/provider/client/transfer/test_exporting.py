"""wrpc-kv export and import over a real provider: every key and value comes back, whatever interrupts the commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from keyvalue_engine import Store
from keyvalue_provider.client.transfer.exporting import is_same_order
from keyvalue_transport.nats.client import KeyValueClient
from tests.conftest import DEADLINE_S, Launch, NatsServer, Provider, in_thread
from tests.provider.client.test_streams import WRPC_KV, on_terminal, run

SEED = {
    "text": b"value",
    "bytes": bytes(range(256)),
    "empty": b"",
    "with\nline": "ключ\u2028".encode(),
    "large": b"x" * 3_000_000,
}


@pytest.fixture(scope="module")
def path() -> None:
    """Use only the default path, since nothing here depends on it."""


@pytest.fixture
def command(nats_server: NatsServer, provider: Provider) -> Sequence[str]:
    return WRPC_KV, "--nats", nats_server.url, "--prefix", provider.prefix


async def contents(client: KeyValueClient, bucket: str) -> dict[str, bytes]:
    """Return all keys and values of a bucket."""
    keys = [key async for key in client.keys(bucket)]
    found: dict[str, bytes] = {}
    for begin in range(0, len(keys), 500):
        some = keys[begin : begin + 500]
        found |= {
            key: value
            for key, value in zip(some, await client.get_many(bucket, some), strict=True)
            if value is not None
        }
    return found


async def filled(client: KeyValueClient, bucket: str, keys: int = 5_000) -> dict[str, bytes]:
    """Fill a bucket with small values and some odd ones. Return its contents."""
    entries = {f"key-{number}": b"%d" % number for number in range(keys)}
    await client.set_many(bucket, entries)
    for key, value in SEED.items():
        await client.set(bucket, key, value)
    return entries | SEED


@pytest.mark.parametrize("name", ["keys.jsonl", "keys.snapshot"])
async def test_a_bucket_comes_back(
    client: KeyValueClient, command: Sequence[str], bucket: str, tmp_path: Path, name: str
) -> None:
    entries = await filled(client, bucket)
    file = tmp_path / name
    code, out, err = await in_thread(run, command, "--bucket", bucket, "export", str(file))
    assert (code, out, err.decode()) == (0, b"", f"wrpc-kv: 5,005 keys exported to {file}\n")
    assert file.stat().st_mode & 0o777 == 0o600
    exported = file.read_bytes()
    typo = ("--bucket", f"{bucket}-typo", "export", str(file))
    refusal = f"wrpc-kv: {file} exists (--force replaces it)\n"
    assert await in_thread(run, command, *typo) == (1, b"", refusal.encode())
    assert (file.read_bytes(), os.listdir(tmp_path)) == (exported, [name])
    if name == "keys.snapshot":
        loaded = Store.load(str(file)).bucket(bucket.encode())
        assert {key.decode(): loaded.get(key) for key in (k.encode() for k in entries)} == entries
        await client.delete_many(bucket, entries)  # a snapshot names its bucket
        target = bucket
    else:
        lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
        assert {line["key"] for line in lines} == entries.keys()
        target = f"{bucket}-copy"
    arguments = () if target == bucket else ("--bucket", target)
    code, out, err = await in_thread(run, command, "--json", *arguments, "import", str(file))
    assert (code, json.loads(out), err) == (0, {"keys": 5005, "expired": 0, "lasting": 0}, b"")
    assert await contents(client, target) == entries
    assert os.listdir(tmp_path) == [name], "no position is left"


async def test_an_export_through_a_pipe_to_an_import(
    client: KeyValueClient, command: Sequence[str], bucket: str
) -> None:
    entries = await filled(client, bucket)
    words = " ".join(command)
    shell = f"{words} --bucket '{bucket}' export - | {words} --bucket '{bucket} 2' import -"
    code, out, _ = await in_thread(run, ("sh", "-c", shell))
    assert (code, out) == (0, b"")
    assert await contents(client, f"{bucket} 2") == entries
    assert await in_thread(run, ("sh", "-c", f"{words} --bucket '{bucket}' export - | head -c 1")) == (0, b"{", b"")


async def test_an_empty_bucket(client: KeyValueClient, command: Sequence[str], bucket: str, tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.snapshot"):
        for what in ("export", "import"):
            assert (await in_thread(run, command, "--bucket", bucket, what, str(tmp_path / name)))[0] == 0
    assert (tmp_path / "none.jsonl").read_bytes() == b""
    assert await contents(client, bucket) == {}


async def test_values_beyond_the_limit_of_an_answer(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    """The commands ask for parts of a batch that is too large, and store parts of it."""
    provider = launch({"answer_bytes_max": "1000000", "batch_keys_max": "7", "page_keys": "50"})
    command = (WRPC_KV, "--nats", nats_server.url, "--prefix", provider.prefix, "--bucket", "b")
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        entries = {f"{number}": bytes([number]) * 300_000 for number in range(40)}
        for key, value in entries.items():
            await client.set("b", key, value)
        assert (await in_thread(run, command, "export", str(tmp_path / "f")))[0] == 0
        for key in entries:
            await client.delete("b", key)
        assert (await in_thread(run, command, "import", str(tmp_path / "f")))[0] == 0
        assert {key: await client.get("b", key) for key in entries} == entries


@contextmanager
def killed_when(command: Sequence[str], *arguments: str, is_due: Callable[[], bool], number: int) -> Iterator[None]:
    """Run a command, and end it with a signal as soon as a condition holds."""
    process = subprocess.Popen([*command, *arguments], env={}, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + DEADLINE_S
    try:
        while not is_due():
            assert process.poll() is None, "the command ended first"
            assert time.monotonic() < deadline_s
        process.send_signal(number)
        process.wait(DEADLINE_S)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("name", ["keys.jsonl", "keys.snapshot"])
async def test_an_interrupted_export_continues(
    client: KeyValueClient, command: Sequence[str], bucket: str, tmp_path: Path, name: str, number: int
) -> None:
    """The second run adds what is missing. Each key is there once. With --force, an old file stays until the end."""
    entries = await filled(client, bucket, 8_000)
    for begin in range(0, 120_000, 8_000):
        more = {f"more-{key}": b"" for key in range(begin, begin + 8_000)}
        await client.set_many(bucket, more)
        entries |= more
    file = tmp_path / name
    position = tmp_path / f"{name}.exporting"
    export = (*command, "--bucket", bucket)
    force = ("--force",) if number == signal.SIGKILL else ()
    if force:
        file.write_text("old")

    def interrupt() -> None:
        with killed_when(export, "export", str(file), *force, is_due=position.exists, number=number):
            pass

    await in_thread(interrupt)
    noted = json.loads(position.read_text())["position"]["written"]
    assert 0 < noted["keys"] < len(entries)
    assert file.read_text() == "old" if force else not file.exists()
    with (tmp_path / f"{name}.part").open("ab") as part:
        part.write(b"half of a")  # the run that was killed may have written more than it noted
    code, _, err = await in_thread(run, export, "--bucket", f"{bucket}-other", "export", str(file), *force)
    assert (code, err.count(b"\n")) == (1, 1)
    assert b"the interrupted command had another bucket; --restart begins again" in err
    code, _, err = await in_thread(run, export, "export", str(file), *force)
    assert code == 0
    assert err.decode().splitlines() == [
        f"wrpc-kv: continuing after {noted['keys']:,} keys",
        f"wrpc-kv: {len(entries):,} keys exported to {file}",
    ]
    if name == "keys.snapshot":
        loaded = Store.load(str(file)).bucket(bucket.encode())
        assert sum(1 for key in entries if loaded.get(key.encode()) == entries[key]) == len(entries)
    else:
        keys = [json.loads(line)["key"] for line in file.read_text().split("\n")[:-1]]
        assert len(keys) == len(entries)
        assert set(keys) == entries.keys()
    assert os.listdir(tmp_path) == [name]


async def test_an_interrupted_import_continues(
    client: KeyValueClient, command: Sequence[str], bucket: str, tmp_path: Path
) -> None:
    """Everything before the noted record is stored. The second run stores only the rest."""
    file = tmp_path / "keys.jsonl"
    file.write_text("".join(f'{{"key": "{number}", "value": "v"}}\n' for number in range(150_000)))
    position = tmp_path / "keys.jsonl.importing"
    arguments = (*command, "--bucket", bucket)

    def interrupt() -> None:
        with killed_when(arguments, "import", str(file), is_due=position.exists, number=signal.SIGKILL):
            pass

    await in_thread(interrupt)
    records = json.loads(position.read_text())["position"]["records"]
    assert 0 < records < 150_000
    for begin in range(0, records, 5_000):
        keys = [f"{number}" for number in range(begin, min(begin + 5_000, records))]
        assert None not in await client.get_many(bucket, keys)
    await client.delete(bucket, "0")
    assert (await in_thread(run, arguments, "import", str(file)))[0] == 0
    found = await contents(client, bucket)
    assert found.keys() == {f"{number}" for number in range(1, 150_000)}, "the first record was stored before"
    assert not position.exists()


async def test_an_export_is_not_continued_in_another_order(
    launch: Launch, nats_server: NatsServer, tmp_path: Path
) -> None:
    """A provider without its keys' old order would make the export miss keys."""
    part, position = tmp_path / "f.part", tmp_path / "f.exporting"
    provider = launch()
    command = (WRPC_KV, "--nats", nats_server.url, "--prefix", provider.prefix, "--bucket", "b")
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        await client.set_many("b", {f"{number}": b"" for number in range(3_000)})
        page = await client.list_keys("b")
    noted = [key.decode() for key in page.keys[:32]]
    part.write_bytes(b"x" * 100)
    for keys, code in ((list(reversed(noted)), 1), (noted, 0)):
        content = {
            "about": {"prefix": provider.prefix, "bucket": "b", "format": "jsonl"},
            "position": {
                "page": {"begin": None, "keys": keys, "next": page.cursor},
                "written": {"offset": 100, "blocks": 1, "keys": 1_000},
            },
        }
        position.write_text(json.dumps(content))
        found = await in_thread(run, command, "export", str(tmp_path / "f"))
        assert found[0] == code
        assert (b"lists the keys in another order than before" in found[2]) == bool(code)
    assert (tmp_path / "f").read_bytes().startswith(b"x" * 100 + b'{"key": ')


def test_the_order_of_the_noted_keys() -> None:
    assert is_same_order([], ["a"])
    assert is_same_order(["a", "b", "c", "d"], ["new", "a", "x", "c"])
    assert not is_same_order(["a", "b", "c", "d"], ["d"]), "too many are gone"
    assert not is_same_order(["a", "b"], ["b", "a"])


def test_malformed_files(command: Sequence[str], tmp_path: Path) -> None:
    """The position stays if a key was stored, with advice that helps. Otherwise nothing is left."""
    good = b'{"key": "k", "value": "v"}\n'
    file, snapshot, position = tmp_path / "f", tmp_path / "f.snapshot", tmp_path / "f.importing"
    text = tmp_path / "README.md"
    text.write_bytes(b"# Title\n" + good)
    file.write_bytes(b"\xef\xbb\xbf" + good.replace(b"\n", b"\r\n") + b"\n" + good.replace(b'"k"', b'"k2"') + b"{}\n")
    snapshot.write_bytes(b"no snapshot")
    refused: list[tuple[tuple[str, ...], bytes]] = [
        (("import", str(file)), b'line 4: expected {"key": text, "value": text} or'),
        (("import", str(snapshot)), b"the file is cut short"),
        (("import", str(text)), b"line 1: found malformed JSON or base64"),
        (("import", "-"), b"line 1: found malformed JSON or base64"),
        (("import", str(tmp_path)), b"Is a directory"),
        (("import", "-", "--format", "snapshot"), b"a snapshot must be a file"),
        (("import", str(tmp_path / "none")), b"No such file or directory"),
        (("export", str(tmp_path)), b"Is a directory"),
        (("export", "/of/nobody"), b"No such file or directory"),
        (("--prefix", "default.nobody", "export", str(tmp_path / "e")), b"nobody serves this function"),
    ]
    for arguments, message in refused:
        code, out, err = run(command, "--bucket", "malformed", *arguments, stdin=b"# Title\n")
        assert (code, out, b"Traceback" in err) == (1, b"", False)
        assert message in err
        advice = b"wrpc-kv: 2 keys stored; correct the file, then use --restart\n"
        assert err.count(b"\n") == 1 or (arguments == ("import", str(file)) and err.startswith(advice))
    assert json.loads(position.read_text())["position"] == {"records": 3}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"f", "f.snapshot", "README.md", "f.importing"}, "a command that has done nothing leaves nothing"
    assert not tmp_path.with_name(f"{tmp_path.name}.importing").exists()
    for noted in (b"[]", b"{", b'{"about": {}, "position": {"records": 1}}', b'{"about": 1, "position": 1}'):
        position.write_bytes(noted)
        code, _, err = run(command, "--bucket", "malformed", "import", str(file))
        assert (code, b"--restart begins again" in err, b"Traceback" in err) == (1, True, False)
    code, _, err = run(command, "--bucket", "malformed", "import", str(file), "--restart")
    assert (code, b"line 4: " in err) == (1, True)
    file.write_bytes(good)
    code, _, err = run(command, "--bucket", "malformed", "import", str(file), "--restart")
    assert (code, err.decode()) == (0, f"wrpc-kv: 1 key imported from {file}\n")


async def test_the_last_of_equal_keys_is_stored(client: KeyValueClient, command: Sequence[str], bucket: str) -> None:
    """A call of one message overtakes a call of several, so equal keys are never in flight together."""
    values = ["x" * 3_000_000 if number % 2 == 0 else f"{number}" for number in range(10)]
    text = "".join(json.dumps({"key": "k", "value": value}) + "\n" for value in values)
    assert (await in_thread(lambda: run(command, "--bucket", bucket, "import", "-", stdin=text.encode())))[0] == 0
    assert await client.get(bucket, "k") == b"9"


async def test_a_refused_key_and_lost_deadlines(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    provider = launch({"key_bytes_max": "10"})
    command = (WRPC_KV, "--nats", nats_server.url, "--prefix", provider.prefix)
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps({"key": "k" * number, "value": "v"}) + "\n" for number in range(1, 21)))
    code, _, err = await in_thread(run, command, "import", str(file))
    assert code == 1
    assert b"key 'kkkkkkkkkkk': key is 11 bytes; the limit is 10 (key_bytes_max)" in err
    store = Store()
    own = store.bucket(b"of a snapshot")
    own.set(b"lasting", b"v")
    own.set(b"short", b"v", ttl_ms=3_600_000)
    own.set(b"gone", b"v", ttl_ms=1)
    store.bucket(b"other").set(b"k", b"v")
    store.save(str(tmp_path / "f.snapshot"))
    code, out, _ = await in_thread(run, command, "import", str(tmp_path / "f.snapshot"), "--json")
    async with KeyValueClient(nats_server.url, provider.prefix) as client:
        found = await contents(client, "of a snapshot")
        assert await client.get("other", "k") == b"v"
        assert found | {"gone": b""} == {"lasting": b"v", "short": b"v", "gone": b""}
        assert json.loads(out)["lasting"] == 1 + ("gone" in found)
        await client.delete("other", "k")
        code, _, err = await in_thread(
            run, command, "--bucket", "of a snapshot", "import", str(tmp_path / "f.snapshot")
        )
        assert code == 0
        assert re.search(
            rb": [01] keys? left out as expired; 1 key stored without a deadline, because a call cannot set one\n", err
        )
        assert await client.get("other", "k") is None, "only the named bucket is read"


@pytest.mark.parametrize(
    ("buckets", "has"),
    [
        ([], "none"),
        (["default"], "'default'"),
        (["a", "b", "c", "d", "e"], "'a', 'b', 'c', 'd', 'e'"),
        (["a", "b", "c", "d", "e", "f", "g"], "'a', 'b', 'c', 'd', 'e', ..."),
    ],
)
def test_a_snapshot_without_the_bucket(command: Sequence[str], tmp_path: Path, buckets: list[str], has: str) -> None:
    """It was a success with no keys."""
    file = tmp_path / "f.snapshot"
    store = Store()
    for bucket in buckets:
        store.bucket(bucket.encode()).set(b"k", b"v")
    store.save(str(file))
    code, out, err = run(command, "--bucket", "zzz", "import", str(file))
    assert (code, out) == (1, b"")
    assert err.decode() == f"wrpc-kv: the snapshot has no bucket 'zzz'; it has: {has}\n"
    assert os.listdir(tmp_path) == ["f.snapshot"]


def test_a_bucket_that_the_provider_refuses(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    """The message names the bucket of the snapshot, and not the default one."""
    link = {"source_id": "a", "target": "few", "target_config": {"buckets": "first"}}
    prefix = launch(provider_key="few", link_definitions=[link]).prefix
    store = Store()
    for bucket in (b"first", b"second"):
        store.bucket(bucket).set(b"k", b"v")
    file = tmp_path / "f.snapshot"
    store.save(str(file))
    code, _, err = run(
        (WRPC_KV, "--nats", nats_server.url, "--prefix", prefix, "--source-id", "a"), "import", str(file)
    )
    assert (code, b"no such store: the provider has no bucket 'second' for this caller" in err) == (1, True)


async def test_the_progress_is_shown_on_a_terminal(
    client: KeyValueClient, command: Sequence[str], bucket: str, tmp_path: Path
) -> None:
    file = tmp_path / "f"
    file.write_text("".join(f'{{"key": "{number}", "value": "v"}}\n' for number in range(100_000)))
    code, text = await in_thread(on_terminal, (*command, "--bucket", bucket), "import", str(file))
    assert code == 0
    assert b" keys/s\x1b[K" in text
    assert text.endswith(f"\r\x1b[Kwrpc-kv: 100,000 keys imported from {file}\n".encode())
