"""Snapshots move into and out of the replicated store: the commands, kills at every point, and what others see."""

from __future__ import annotations

import asyncio
import json
import signal
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import nats
import pytest
from nats.aio.client import Client
from nats.js.api import KeyValueConfig

from keyvalue_engine import Store
from keyvalue_engine.snapshot import Reader
from keyvalue_provider import moving, snapshot_import
from keyvalue_provider.config.command_line import command_line
from keyvalue_provider.config.start_plan import read_standalone_plan
from keyvalue_replica.errors import StreamError
from keyvalue_replica.importing import Import, Progress
from keyvalue_replica.layout import Layout
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.stream import IMPORT, SECRET
from keyvalue_transport.nats.client import KeyValueClient
from keyvalue_transport.nats.connection import Connection, ConnectionOptions
from tests.conftest import (
    DEADLINE_S,
    PROVIDER,
    Launch,
    NatsServer,
    Process,
    in_thread,
    launching,
    until,
)
from tests.engine.clock import Clock
from tests.integration.test_replicated import JETSTREAM, answered

Content = dict[tuple[bytes, bytes], bytes]
Run = Callable[..., Process]

HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a NATS server with JetStream."""
    directory = tmp_path_factory.mktemp("nats")
    server = NatsServer(directory, jetstream(directory))
    yield server
    server.stop()


def jetstream(directory: Path) -> str:
    return f"jetstream {{ store_dir: {json.dumps(str(directory))} }}\n"


@pytest.fixture
async def admin(nats_server: NatsServer) -> AsyncIterator[Client]:
    """Open a NATS client that uses none of our code."""
    client = await nats.connect(nats_server.url)
    yield client
    await client.close()


@pytest.fixture
def launch(nats_server: NatsServer, tmp_path: Path) -> Iterator[Launch]:
    with launching(nats_server.url, tmp_path) as launch:
        yield launch


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Start the command with arguments and an environment."""
    started: list[Process] = []

    def start(*arguments: str | Path, **environment: str) -> Process:
        process = Process([PROVIDER, *arguments], tmp_path, environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def ended(process: Process, code: int = 0) -> str:
    """Return the output of a process that ends with a code."""
    assert process.wait() == code, process.output
    assert "Traceback" not in process.output
    return process.output


async def api(client: Client, name: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call the JetStream API."""
    answer: dict[str, Any] = json.loads(
        (await client.request(f"$JS.API.{name}", json.dumps(parameters or {}).encode(), DEADLINE_S)).data
    )
    return answer


async def mark(client: Client, bucket: str, **metadata: str) -> None:
    """Replace metadata of a bucket's stream."""
    config = (await api(client, f"STREAM.INFO.KV_{bucket}"))["config"]
    kept = {name: text for name, text in config["metadata"].items() if name != IMPORT}
    answer = await api(client, f"STREAM.UPDATE.KV_{bucket}", {**config, "metadata": kept | metadata})
    assert "error" not in answer


async def messages(client: Client, bucket: str) -> int:
    """Return the number of messages in a bucket, or 0 if it does not exist."""
    info = await api(client, f"STREAM.INFO.KV_{bucket}")
    return int(info["state"]["messages"]) if "state" in info else 0


async def content_of_bucket(client: Client, bucket: str) -> Content:
    """Return the keys and values in a bucket, as the JetStream API shows them."""
    layout, found = Layout(bucket), {}
    info = await api(client, f"STREAM.INFO.KV_{bucket}", {"subjects_filter": ">"})
    for subject in info["state"]["subjects"]:
        message = (await api(client, f"STREAM.MSG.GET.KV_{bucket}", {"last_by_subj": subject}))["message"]
        if b"KV-Operation" not in b64decode(message.get("hdrs", "")):
            names = layout.names(subject.encode())
            assert names is not None
            found[names] = b64decode(message.get("data", ""))
    return found


def content_of(store: Store) -> Content:
    return {(name, key): value for name in store.bucket_names() for key, value in store.bucket(name).items()}


def deadlines_of(path: Path) -> dict[tuple[bytes, bytes], int | None]:
    with Reader(path) as reader:
        return {(bucket, key): deadline for bucket, entries in reader for key, _, deadline in entries}


#: The bucket of `serve` without options.
BUCKET = "default_keyvalue-inmemory"


async def test_an_import_goes_on_after_faults_and_keeps_keys_deadlines_and_cursors(
    run: Run, new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    """Kill the import, interrupt it, and kill the NATS server. Then serve, and export."""
    server = new_nats_server(jetstream(tmp_path / "streams"))
    where = {"KEYVALUE_NATS": server.url}
    clock = Clock()  # stands still until the snapshot is saved, so that no key expires before
    store, snapshot, exported = Store(clock=clock), tmp_path / "memory", tmp_path / "exported"
    many = store.bucket(b"many")
    for number in range(60_000):
        many.set(b"k%d" % number, b"%d" % number)
    store.bucket(b"").set(b"\x00 any.name>", bytes(range(256)))
    store.bucket(b"").set(b"", b"")
    store.bucket(b"expiring").set(b"soon", b"v", 1_000)
    store.bucket(b"expiring").set(b"late", b"v", HOUR_MS)
    store.save(snapshot)
    clock.move_ms(1_000)
    first = many.page(keys_max=1_000)
    admin = await nats.connect(server.url, allow_reconnect=False)

    async def importing(keys: int) -> Process:
        """Import until the bucket has this many messages."""
        process = run("import-snapshot", snapshot, **where)
        await until(lambda: has_messages(admin, BUCKET, keys), f"{keys} messages")
        return process

    (await importing(6_000)).kill()
    assert "holds a part of a snapshot: finish it with" in ended(run("serve", "--store", "jetstream", **where), 1)
    interrupted = await importing(20_000)
    interrupted.signal(signal.SIGINT)
    assert "interrupted" in ended(interrupted, 130)
    assert "do the same again to continue" in interrupted.output
    process = await importing(34_000)
    await in_thread(server.kill)
    assert "lost" in ended(process, 1)
    await in_thread(server.start)
    last = ended(run("import-snapshot", snapshot, **where))
    assert "continuing after " in last
    assert "of 60,004 keys into the KV bucket default_keyvalue-inmemory; 1 had expired, 0 do not fit" in last
    await admin.close()

    serving = run("serve", "--store", "jetstream", **where)
    await in_thread(serving.wait_for, "ready: serving")
    async with KeyValueClient(server.url, "default.keyvalue-inmemory", timeout_s=DEADLINE_S) as client:
        keys, cursor = [*first.keys], first.cursor
        while cursor is not None:
            page = await client.list_keys("many", cursor)
            keys += page.keys
            cursor = page.cursor
        assert keys == list(many), "the memory store's cursor is valid"
        assert await client.get("", "\x00 any.name>") == bytes(range(256))
        assert await client.get_many("expiring", ["soon", "late"]) == [None, b"v"]
        await client.set("new", "k", b"v")
    ended(run("export-snapshot", exported, **where))
    loaded = Store.load(exported)
    assert content_of(loaded) == content_of(store) | {(b"new", b"k"): b"v"}
    assert loaded.bucket(b"many").page(keys_max=1_000) == first
    before, after = (deadlines_of(path)[b"expiring", b"late"] for path in (snapshot, exported))
    assert before is not None
    assert after is not None
    assert abs(after - before) < 1_000


async def has_messages(client: Client, bucket: str, least: int) -> bool:
    return await messages(client, bucket) >= least


class StoppingConnection(Connection):
    """A connection whose process ends at one of its requests and writes.

    :cvar left: number of requests and writes until then
    :cvar sent: 0 if it ends before the message is sent, 1 if it is cut in the middle, 2 if it ends before the answer
    """

    left: ClassVar[int] = 0
    sent: ClassVar[int] = 0

    def write_now(self, frames: bytes) -> bool:
        if not self._is_over():
            return super().write_now(frames)
        super().write_now(frames[: len(frames) * self.sent // 2])
        raise KilledError

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes:
        if not self._is_over():
            return await super().request(subject, payload, timeout_s)
        if self.sent:
            await self.publish(subject, payload, self.new_inbox())
        raise KilledError

    def _is_over(self) -> bool:
        StoppingConnection.left -= 1
        return self.left < 0


class KilledError(Exception):
    """The process has ended."""


@pytest.mark.bulk
@pytest.mark.parametrize("sent", [0, 1, 2])
@pytest.mark.parametrize("exists", [False, True], ids=["new", "empty"])
async def test_an_import_that_ends_at_any_point_can_be_finished(
    nats_server: NatsServer, admin: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool, sent: int
) -> None:
    """End it at each request and at each write, then run it again: each key is there once or twice, and nothing else."""
    monkeypatch.setattr(snapshot_import, "STEP_KEYS", 3)
    store = Store()
    for number in range(10):
        store.bucket(b"b%d" % (number % 2)).set(b"k%d" % number, b"%d" % number)
    store.save(tmp_path / "memory")
    StoppingConnection.sent = sent
    points = 0
    while True:
        bucket = f"{'empty' if exists else 'new'}-{sent}-{points}"
        if exists:
            await admin.jetstream().create_key_value(KeyValueConfig(bucket))
        arguments = [
            "import-snapshot",
            str(tmp_path / "memory"),
            "--nats",
            nats_server.url,
            "--jetstream-bucket",
            bucket,
        ]
        StoppingConnection.left = points
        monkeypatch.setattr(moving, "Connection", StoppingConnection)
        try:
            await imported(arguments)
            break
        except KilledError:
            points += 1
        monkeypatch.setattr(moving, "Connection", Connection)
        try:
            await imported(arguments)
        except StreamError as error:  # the last request was carried out, and no message showed it
            assert "holds 10 keys" in str(error) or "another import" in str(error), error
            if "another import" in str(error):  # the message of the first run came after the second had looked
                await imported(arguments)
        assert await content_of_bucket(admin, bucket) == content_of(store)
        info = await api(admin, f"STREAM.INFO.KV_{bucket}")
        # 10 keys, 5 times the progress, and for the second run the progress twice and a step of 3 keys
        assert info["state"]["last_seq"] <= 10 + 5 + 2 + 3
        metadata = info["config"]["metadata"]
        assert IMPORT not in metadata
        assert metadata[SECRET] == store._tables.secret.hex()
    assert points >= 14


async def test_of_two_imports_at_once_one_stops(nats_server: NatsServer, admin: Client) -> None:
    options = ReplicaOptions("twice", secret=bytes(16))
    connections = [await Connection.open(ConnectionOptions((nats_server.url,))) for _ in range(3)]
    first, second, other = (Import(each, options, "abc" if each is not connections[2] else "d") for each in connections)
    for each in (first, second, other):
        await each.look()
    assert await first.begin() == Progress()
    await first.put([first.message(b"b", b"k", b"v", None)], Progress(1))
    assert await second.begin() == Progress(1)
    with pytest.raises(StreamError, match="another import into this bucket is at work"):
        await first.put([], Progress(2))
    with pytest.raises(StreamError, match="holds a part of a snapshot"):
        await other.begin()
    await mark(admin, "twice")
    with pytest.raises(StreamError, match="the mark of this import is gone"):
        await second.put([], Progress(2))
    await mark(admin, "twice", **{IMPORT: "abc"})
    await second.put([], Progress(2))
    await second.end()
    with pytest.raises(StreamError, match="another import has finished"):
        await first.end()
    assert await content_of_bucket(admin, "twice") == {(b"b", b"k"): b"v"}
    for connection in connections:
        await connection.close()


async def imported(arguments: list[str]) -> None:
    parsed = command_line().parse_args(arguments)
    plan, configuration = read_standalone_plan(parsed, {})
    with Reader(parsed.file) as reader:
        await moving._import(reader, parsed.skip, plan, configuration.options)


async def test_an_export_shows_one_moment(launch: Launch, nats_server: NatsServer, tmp_path: Path) -> None:
    """Both keys of each batch are exported with the same value, which is not older than the export."""
    provider = launch(JETSTREAM | {"jetstream_bucket": "moment"})
    path = tmp_path / "exported"
    arguments = ["export-snapshot", str(path), "--nats", nats_server.url, "--jetstream-bucket", "moment"]
    plan, configuration = read_standalone_plan(command_line().parse_args(arguments), {})
    written = 0
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:

        async def write() -> None:
            nonlocal written
            while True:
                await client.set_many("b", {"a": b"%d" % (written + 1), "z": b"%d" % (written + 1)})
                written += 1

        writing = asyncio.create_task(write())
        for _ in range(20):
            least = written
            await moving._export(str(path), True, plan, configuration.options)
            loaded = Store.load(path).bucket(b"b")
            assert loaded.get(b"a") == loaded.get(b"z")
            assert int(loaded.get(b"a") or 0) >= least
        assert written > 20
        writing.cancel()


async def test_an_instance_leaves_while_an_import_is_at_work(
    launch: Launch, nats_server: NatsServer, admin: Client
) -> None:
    """It serves again if the order of keys is still the same, and otherwise says what to do."""
    provider = launch(JETSTREAM | {"jetstream_bucket": "busy"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"v")
        await mark(admin, "busy", **{IMPORT: "abc"})
        await in_thread(provider.wait_for, "the KV bucket busy holds a part of a snapshot")
        await mark(admin, "busy")
        assert await answered(lambda: client.get("b", "k")) == b"v"
    await mark(admin, "busy", **{SECRET: bytes(16).hex()})
    await in_thread(provider.wait_for, "another secret of the order of keys now: restart this instance")


async def test_what_cannot_be_imported_is_refused_and_changes_nothing(
    run: Run, launch: Launch, nats_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    snapshot, other, damaged = (tmp_path / name for name in ("memory", "other", "damaged"))
    store = Store()
    store.bucket(b"b").set(b"k", b"v")
    store.save(snapshot)
    store.bucket(b"b").set(b"other", b"v")
    store.save(other)
    damaged.write_bytes(other.read_bytes()[:-3])

    def importing(path: Path, bucket: str) -> Process:
        return run("import-snapshot", path, "--nats", nats_server.url, "--jetstream-bucket", bucket)

    assert "the file is cut short" in ended(importing(damaged, "fresh"), 2)
    assert "No such file or directory" in ended(importing(tmp_path / "none", "fresh"), 2)
    assert await messages(admin, "fresh") == 0
    assert "error" in await api(admin, "STREAM.INFO.KV_fresh")
    provider = launch(JETSTREAM | {"jetstream_bucket": "used"})
    assert "1 instances or other clients follow the KV bucket used: stop them" in ended(importing(snapshot, "used"), 1)
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        await client.set("b", "k", b"v")
    provider.stop()
    assert "the KV bucket used holds 1 keys" in ended(importing(snapshot, "used"), 1)
    for _ in range(2):  # the second time, after the keys were purged, it does not continue after the first time
        ended(importing(snapshot, "begun"))
        assert await messages(admin, "begun") == 2  # the key and the progress
        await api(admin, "STREAM.PURGE.KV_begun", {"filter": Layout("begun").subject(b"b", b"k").decode()})
    await mark(admin, "begun", **{IMPORT: "abc"})
    assert "holds a part of a snapshot: finish it with" in ended(importing(other, "begun"), 1)


async def test_keys_that_do_not_fit_are_named_and_can_be_left_out(
    run: Run, nats_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    """The largest value that fits is imported, and one byte more is not."""
    fits = 1024 * 1024 - 256
    store = Store()
    store.bucket(b"b").set(b"fits", bytes(fits), HOUR_MS)
    store.save(tmp_path / "memory")
    expected = content_of(store)
    store.bucket(b"b").set(b"large", bytes(fits + 1))
    for number in range(25):
        store.bucket(b"long").set(b"%d" % number + b"\xff" * 3_000, b"v")
    store.save(tmp_path / "memory")
    command = "import-snapshot", tmp_path / "memory", "--nats", nats_server.url, "--jetstream-bucket", "misfits"
    output = ended(run(*command), 2)
    assert f"bucket b, key large: value is {fits + 1} bytes; the limit is {fits} (max_payload" in output
    assert "... (3,002 bytes): bucket and key are " in output
    assert output.count("does not fit: bucket") == 20
    assert "does not fit: 6 more keys" in output
    assert (
        "nothing was imported: 26 keys do not fit (import-snapshot --skip names them and imports the others)" in output
    )
    assert "error" in await api(admin, "STREAM.INFO.KV_misfits")
    assert "imported 1 of 27 keys" in ended(run(*command, "--skip", "--transport", "plain"))
    assert await content_of_bucket(admin, "misfits") == expected


async def test_an_import_goes_on_when_a_full_bucket_has_room_again(
    run: Run, nats_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    store = Store()
    for number in range(40):
        store.bucket(b"b").set(b"k%d" % number, bytes(100_000))
    store.save(tmp_path / "memory")
    command = "import-snapshot", tmp_path / "memory", "--nats", nats_server.url, "--jetstream-bucket", "full"
    assert "the KV bucket is full: " in ended(run(*command, "--jetstream-bytes-max", "3_000_000"), 1)
    config = (await api(admin, "STREAM.INFO.KV_full"))["config"]
    await api(admin, "STREAM.UPDATE.KV_full", {**config, "max_bytes": 10_000_000})
    assert "continuing after " in ended(run(*command))
    assert await content_of_bucket(admin, "full") == content_of(store)


async def test_it_waits_for_jetstream_as_a_start_does(
    run: Run, new_nats_server: Callable[[str], NatsServer], tmp_path: Path
) -> None:
    server, snapshot = new_nats_server(""), tmp_path / "memory"
    Store().save(snapshot)
    where = "--nats", server.url, "--connect-timeout-ms", "500"
    for command in (("import-snapshot", snapshot, *where), ("export-snapshot", tmp_path / "exported", *where)):
        assert "is it switched on (`nats-server -js`)" in ended(run(*command), 1)
    patient = run("import-snapshot", snapshot, "--nats", server.url)
    await in_thread(patient.wait_for, "trying again for up to 10,000 ms")
    await in_thread(server.kill)
    await in_thread(server.start, jetstream(tmp_path / "streams"))
    assert "imported 0 of 0 keys" in ended(patient)


async def test_an_export_replaces_no_file_and_needs_a_bucket(
    run: Run, launch: Launch, nats_server: NatsServer, tmp_path: Path
) -> None:
    launch(JETSTREAM | {"jetstream_bucket": "empty"})
    path = tmp_path / "exported"

    def exporting(bucket: str, *more: str, path: Path = path) -> Process:
        return run("export-snapshot", path, "--nats", nats_server.url, "--jetstream-bucket", bucket, *more)

    assert "the KV bucket missing does not exist" in ended(exporting("missing"), 1)
    assert "the directory does not exist" in ended(exporting("empty", path=tmp_path / "none" / "exported"), 2)
    assert not path.exists()
    path.write_bytes(b"old")
    assert f"{path} exists (--force replaces it)" in ended(exporting("empty"), 2)
    assert path.read_bytes() == b"old"
    assert "exported 0 keys" in ended(exporting("empty", "--force"))
    assert len(Store.load(path)) == 0


async def test_each_bucket_of_a_snapshot_becomes_a_kv_bucket(
    run: Run, launch: Launch, nats_server: NatsServer, admin: Client, tmp_path: Path
) -> None:
    """Names that NATS does not allow are counted. A finished bucket is skipped when the command runs again."""
    store, snapshot = Store(), tmp_path / "snapshot"
    for number in range(30_000):
        store.bucket(b"moved_many").set(b"k%d" % number, b"%d" % number)
    store.bucket(b"moved_few").set(b"a.b", b"v", HOUR_MS)
    store.bucket(b"moved_few").set(b"a b", b"unfit")
    store.bucket(b"moved/unfit").set(b"k", b"v")
    store.save(snapshot)
    first = store.bucket(b"moved_many").page(keys_max=1_000)
    command = ("import-snapshot", snapshot, "--keys", "plain", "--nats", nats_server.url)
    refused = ended(run(*command), 2)
    assert "does not fit: 1 keys: the bucket's name has the character '/' at byte 5" in refused
    assert "does not fit: bucket moved_few, key a b: the key has the character ' ' at byte 1" in refused
    assert "nothing was imported: 2 of 30,003 keys do not fit" in refused
    assert await messages(admin, "moved_many") == await messages(admin, "moved_few") == 0
    process = run(*command, "--skip")
    await until(lambda: has_messages(admin, "moved_many", 6_000), "a part is imported")
    process.kill()
    assert "imported 30,001 of 30,003 keys" in ended(run(*command, "--skip"))
    again = ended(run(*command, "--skip"))
    assert "imported the bucket" not in again, "all were imported before"
    provider = launch({"store": "jetstream", "keys": "plain"})
    async with KeyValueClient(nats_server.url, provider.prefix, timeout_s=DEADLINE_S) as client:
        assert await client.get_many("moved_few", ["a.b", "a b"]) == [b"v", None]
        keys, cursor = [*first.keys], first.cursor
        while cursor is not None:
            page = await client.list_keys("moved_many", cursor)
            keys, cursor = [*keys, *page.keys], page.cursor
        assert keys == list(store.bucket(b"moved_many")), "the memory store's cursor is valid"
    theirs = await admin.jetstream().create_key_value(KeyValueConfig("moved_theirs"))
    before = await api(admin, "STREAM.INFO.KV_moved_theirs")
    store = Store()
    store.bucket(b"moved_theirs").set(b"k", b"v")
    store.save(snapshot)
    assert "others have created the KV bucket moved_theirs" in ended(run(*command), 1)
    assert (await api(admin, "STREAM.INFO.KV_moved_theirs"))["config"] == before["config"]
    ended(run(*command, "--jetstream-adopt", "true"))
    assert (await theirs.get("k")).value == b"v"
