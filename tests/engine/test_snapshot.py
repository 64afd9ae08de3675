"""Snapshots: a load restores what was saved, damage is refused with the frame's offset, and a failed save does no harm."""

from __future__ import annotations

import os
import re
import resource
import signal
import stat
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from random import Random
from struct import Struct
from threading import Event, Thread
from time import time_ns
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from keyvalue_engine import BucketOptions, LimitError, NoSuchBucketError, SnapshotError, Store, StoreError, StoreOptions
from keyvalue_engine.entry import BUCKET_BYTES, SHARD_BYTES, bytes_size, entry_size
from keyvalue_engine.options import TTL_MS_MAX
from keyvalue_engine.snapshot import Reader
from tests.engine.clock import Clock
from tests.engine.entries import shards_of

Content = dict[bytes, dict[bytes, bytes]]

#: The head of a frame, read without the code under test: array(2), uint64 checksum, bin32 size.
HEAD = Struct(">BBQBI")
SECRET = bytes(range(16))
HEADER = [0, "keyvalue-inmemory snapshot", 3, SECRET]
HEADER_1 = [0, "keyvalue-inmemory snapshot", 1, 99]
HOUR_MS = 3_600_000
#: Seconds that a save and a load may take.
LOAD_MS = 60_000


def stored(content: Content, options: StoreOptions | None = None, secret: bytes = SECRET) -> Store:
    store = Store(options, secret=secret)
    for name, entries in content.items():
        for key, value in entries.items():
            store.bucket(name).set(key, value)
    return store


def content_of(store: Store) -> Content:
    """Return all that the store holds, read by its public methods."""
    found: Content = {}
    for name in store.bucket_names():
        bucket = store.bucket(name)
        found[name] = {}
        for key in bucket:
            value = bucket.get(key)
            assert value is not None
            found[name][key] = value
    return found


def unix_ms() -> int:
    return time_ns() // 1_000_000


def frame(body: bytes, offset: int) -> bytes:
    return HEAD.pack(0x92, 0xCF, xxh3_64_intdigest(body, offset), 0xC6, len(body)) + body


def crafted(*bodies: object) -> bytes:
    """Write a file of frames with correct checksums. A body of bytes is used as it is."""
    file = b""
    for body in bodies:
        file += frame(body if isinstance(body, bytes) else msgpack.packb(body), len(file))
    return file


def frames_of(file: bytes) -> list[tuple[int, bytes]]:
    """Return the offset and the bytes of each frame of a sound file."""
    found = []
    offset = 0
    while offset < len(file):
        size = HEAD.size + HEAD.unpack_from(file, offset)[4]
        found.append((offset, file[offset : offset + size]))
        offset += size
    return found


def refusal(path: Path, file: bytes) -> SnapshotError:
    """Return the error that refuses a file of these bytes."""
    path.write_bytes(file)
    with pytest.raises(SnapshotError) as caught:
        Store.load(path)
    error = caught.value
    assert error.path == str(path)
    assert str(error) == f"{path}: byte {error.offset}: {error.reason}"
    return error


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snapshot"


@pytest.fixture
def small(path: Path) -> bytes:
    """Return a small sound file of five frames."""
    stored({b"1": {b"k": b"v"}, b"2": {b"key": b"", b"": b"value"}, b"3": {b"k": b"v"}}).save(path)
    file = path.read_bytes()
    assert len(frames_of(file)) == 5
    assert len(file) < 250
    return file


# Round trips

CONTENTS: dict[str, Content] = {
    "any bytes": {bytes(range(256)): {bytes(range(256)): bytes(range(256))}},
    "many buckets": {b"bucket %d" % number: {b"k": b"%d" % number} for number in range(300)},
    "many keys": {b"b": {b"%d" % number: b"value" for number in range(5_000)}},
    "values of several blocks": {
        b"b": {b"%d" % number: bytes([number]) * 1_000_000 for number in range(5)},
        b"c": {b"k": b""},
    },
    "one value larger than a block": {b"b": {b"k": bytes(3_000_000)}},
}


def save_and_load(store: Store, content: Content, path: Path, options: StoreOptions | None = None) -> Store:
    """Save the store and load the snapshot. Return the new store, which must hold the same."""
    store.save(path)
    loaded = Store.load(path, options)
    loaded.check()
    assert content_of(loaded) == content_of(store) == content
    assert loaded.bucket_names() == store.bucket_names()
    for name in content:
        assert list(loaded.bucket(name).keys()) == list(store.bucket(name).keys()), "the order is unchanged"
    return loaded


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_load_restores_what_was_saved(content: Content, path: Path) -> None:
    save_and_load(stored(content), content, path, StoreOptions(shards_min=1, shard_keys_max=300))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.dictionaries(
        st.binary(max_size=9), st.dictionaries(st.binary(max_size=9), st.binary(max_size=99), min_size=1)
    ),
    secret=st.binary(min_size=16, max_size=16),
)
def test_a_load_restores_any_content(content: Content, secret: bytes, path: Path) -> None:
    loaded = save_and_load(stored(content, secret=secret), content, path)
    assert save_and_load(loaded, content, path.with_name("again"))._tables.secret == secret


def test_a_strict_store_knows_emptied_buckets_after_a_load(path: Path) -> None:
    strict = StoreOptions(strict_buckets=True, buckets_max=2)
    store = stored({b"emptied": {b"k": b"v"}, b"full": {b"k": b"v"}}, strict)
    store.bucket(b"emptied").delete(b"k")
    store.bucket(b"emptied too").set(b"k", b"v")
    store.bucket(b"emptied too").delete(b"k")
    store.save(path)
    loaded = Store.load(path, strict)
    assert loaded.bucket_names() == [b"full"]
    assert [*loaded._tables.emptied] == [b"emptied", b"emptied too"]
    assert loaded.memory_bytes == store.memory_bytes
    assert loaded.bucket(b"emptied").get(b"k") is None
    with pytest.raises(NoSuchBucketError, match="bucket b'never' was never written"):
        loaded.bucket(b"never").get(b"k")
    loaded.check()
    lenient = Store.load(path)
    assert lenient.bucket_names() == [b"full"]
    lenient.check()


def test_values_larger_than_a_block_are_spread_over_blocks(path: Path) -> None:
    stored({b"b": {b"%d" % number: bytes(12_500) for number in range(6)} | {b"large": bytes(75_000)}}).save(path)
    blocks = [len(whole) for _, whole in frames_of(path.read_bytes())][1:-1]
    assert [size // 12_500 for size in sorted(blocks)] in ([2, 2, 2, 6], [1, 1, 2, 2, 6])


def test_a_reader_reads_a_file_as_often_as_asked_and_gives_its_digest(path: Path) -> None:
    store = Store()
    for name in (b"a", b"b", b"c"):
        store.bucket(name).set(b"k", name)
    store.save(path)
    with Reader(path) as reader:
        assert next(iter(reader))[0] == b"a"  # and stop there
        first = list(reader)
        assert reader.digest() == sha256(path.read_bytes()).hexdigest()
        assert list(reader) == first == [(name, [(b"k", name, None)]) for name in (b"a", b"b", b"c")]


def test_a_file_is_a_stream_of_msgpack(path: Path) -> None:
    stored({b"b": {b"k": b"v"}, b"c": {b"": b""}}, secret=SECRET).save(path)
    with path.open("rb") as file:
        objects = list(msgpack.Unpacker(file))
    offsets = [offset for offset, _ in frames_of(path.read_bytes())]
    assert [checksum for checksum, _ in objects] == [
        xxh3_64_intdigest(body, offset) for (_, body), offset in zip(objects, offsets, strict=True)
    ]
    assert [msgpack.unpackb(body) for _, body in objects] == [
        [0, "keyvalue-inmemory snapshot", 3, SECRET],
        [1, b"b", [b"k", b"v"], {}],
        [1, b"c", [b"", b""], {}],
        [2, 2, 2],
    ]


def test_a_file_of_this_version_stays_readable(path: Path) -> None:
    path.write_bytes(
        crafted(
            HEADER,
            [1, b"b", [b"k", b"v", b"", b""], {1: unix_ms() + HOUR_MS}],
            [1, b"c", [b"k", b""], {}],
            [1, b"b", [], {}],
            [2, 3, 3],
        )
    )
    store = Store.load(path)
    assert content_of(store) == {b"b": {b"k": b"v", b"": b""}, b"c": {b"k": b""}}
    assert [store.bucket(name).ttl_ms(b"k") for name in (b"b", b"c")] == [None, None]
    assert HOUR_MS - LOAD_MS < (store.bucket(b"b").ttl_ms(b"") or 0) <= HOUR_MS
    store.check()


#: A file that version 2 wrote. Bucket b holds k, and "" until 2126; c holds 0, 1 and 2; the bucket gone was emptied.
VERSION_2 = bytes.fromhex(
    "92cf951478137743bbadc60000001f9400ba6b657976616c75652d696e6d656d6f727920736e617073686f74026392cf28b3bbb57850b58a"
    "c60000001b9401c4016294c4016bc40176c400c4008101cf00000480665676bd92cffe0f723f5025bddfc6000000169401c4016396c40130"
    "c400c40131c400c40132c4008092cfa8ece6651cf6799dc60000000a9401c404676f6e65908092cf8c9859513cd44e06c600000004930203"
    "05"
)


def test_a_file_of_version_2_loads_with_a_new_secret_that_later_files_keep(path: Path) -> None:
    path.write_bytes(VERSION_2)
    strict = StoreOptions(strict_buckets=True)
    store, other = Store.load(path, strict), Store.load(path, strict)
    content = {b"b": {b"k": b"v", b"": b""}, b"c": {b"0": b"", b"1": b"", b"2": b""}}
    assert content_of(store) == content_of(other) == content
    assert [*store._tables.emptied] == [b"gone"]
    assert 0 < (store.bucket(b"b").ttl_ms(b"") or 0) <= TTL_MS_MAX
    assert store._tables.secret != other._tables.secret
    store.check()
    assert save_and_load(store, content, path)._tables.secret == store._tables.secret


def test_a_file_of_version_1_stays_readable(path: Path) -> None:
    path.write_bytes(
        crafted(HEADER_1, [1, b"b", [b"k", b"v", b"", b""]], [1, b"c", [b"k", b""]], [1, b"b", []], [2, 3, 3])
    )
    store = Store.load(path)
    assert content_of(store) == {b"b": {b"k": b"v", b"": b""}, b"c": {b"k": b""}}
    store.check()
    strict = Store.load(path, StoreOptions(strict_buckets=True))
    assert content_of(strict) == content_of(store), "a block without keys empties nothing"
    strict.check()


# Deadlines


def test_deadlines_are_found_in_the_block_of_their_keys(path: Path) -> None:
    store = Store()
    for number in range(9):
        store.bucket(b"b").set(b"%d" % number, bytes(12_500), ttl_ms=(number + 1) * HOUR_MS if number % 2 else None)
    store.save(path)
    blocks = [msgpack.unpackb(whole[HEAD.size :], strict_map_key=False) for _, whole in frames_of(path.read_bytes())]
    assert len(blocks[1:-1]) == 5
    found = {}
    for _, _, entries, deadlines in blocks[1:-1]:
        found.update({entries[2 * number]: deadline_ms for number, deadline_ms in deadlines.items()})
    assert sorted(found) == [b"1", b"3", b"5", b"7"]
    for key, deadline_ms in found.items():
        assert 0 <= unix_ms() + (int(key) + 1) * HOUR_MS - deadline_ms < LOAD_MS
    ttls_ms = [Store.load(path).bucket(b"b").ttl_ms(b"%d" % number) or 0 for number in range(9)]
    assert [-(-ttl_ms // HOUR_MS) for ttl_ms in ttls_ms] == [0, 2, 0, 4, 0, 6, 0, 8, 0]


def test_expired_keys_are_not_saved(path: Path, clock: Clock) -> None:
    store = Store(clock=clock)
    store.bucket(b"b", BucketOptions(ttl_ms=5)).set_many({b"%d" % number: b"v" for number in range(9)})
    store.bucket(b"b").set_many({b"3": b"stays", b"4": b"stays"})
    clock.move_ms(5)
    store.save(path)
    (_, block), end = (
        (offset, msgpack.unpackb(whole[HEAD.size :])) for offset, whole in frames_of(path.read_bytes())[1:]
    )
    assert (sorted(block[2][::2]), block[3], end[1]) == ([b"3", b"4"], {}, [2, 1, 2])
    assert content_of(Store.load(path)) == {b"b": {b"3": b"stays", b"4": b"stays"}}
    store.check()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("ago_ms", [0, 1, HOUR_MS, None])
def test_keys_that_expired_since_the_save_are_not_loaded(strict: bool, ago_ms: int | None, path: Path) -> None:
    over_ms = -(2**63) if ago_ms is None else unix_ms() - ago_ms
    path.write_bytes(
        crafted(
            HEADER,
            [1, b"b", [b"k", b"v", b"stays", b"v"], {0: over_ms}],
            [1, b"gone", [b"k", b"v"], {0: over_ms}],
            [2, 2, 3],
        )
    )
    store = Store.load(path, StoreOptions(strict_buckets=strict, keys_max=1))
    assert (len(store), store.expired_keys) == (1, 0)
    assert store.bucket(b"b").get_many([b"k", b"stays"]) == [None, b"v"]
    assert store.bucket_names() == [b"b"]
    assert store._tables.emptied.keys() == ({b"gone"} if strict else set())
    assert store.bucket(b"gone").get(b"k") is None
    store.check()


def test_a_deadline_beyond_the_largest_becomes_the_largest(path: Path) -> None:
    path.write_bytes(crafted(HEADER, [1, b"b", [b"k", b"v"], {0: 2**64 - 1}], [2, 1, 1]))
    store = Store.load(path)
    assert 0 <= TTL_MS_MAX - (store.bucket(b"b").ttl_ms(b"k") or 0) < LOAD_MS
    store.save(path)
    assert Store.load(path).bucket(b"b").get(b"k") == b"v"


# The file


def test_only_its_owner_may_read_a_file_and_no_other_file_remains(path: Path) -> None:
    before = os.umask(0)
    try:
        for content in ({b"b": {b"k": b"1"}}, {b"b": {b"k": b"2"}}):
            stored(content).save(path)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert os.listdir(path.parent) == ["snapshot"]
            assert content_of(Store.load(path)) == content
    finally:
        os.umask(before)


def test_a_save_reaches_the_disk_before_its_rename_and_after_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash must leave either the old file or the new one. See `SnapshotFile`."""
    steps: list[str] = []
    descriptors: list[int] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        steps.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        descriptors.append(descriptor)
        fsync(descriptor)

    def noted_replace(source: str, target: str) -> None:
        steps.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    stored({b"b": {b"k": b"v"}}).save(path)
    assert steps == ["file", "rename", "directory"]
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_a_symbolic_link_stays_and_its_file_is_replaced(path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere") / "target"
    path.symlink_to(target)
    for content in ({b"b": {b"k": b"1"}}, {b"b": {b"k": b"2"}}):
        stored(content).save(path)
        assert path.is_symlink()
        assert content_of(Store.load(target)) == content_of(Store.load(path)) == content
        assert [os.listdir(place) for place in (path.parent, target.parent)] == [["snapshot"], ["target"]]


def test_what_is_not_a_regular_file_is_neither_read_nor_replaced(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(SnapshotError, match="byte 0: the file is not a regular file"):
        Store.load(path)
    with pytest.raises(OSError, match="Not a regular file"):
        stored({b"b": {b"k": b"v"}}).save(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert os.listdir(path.parent) == ["snapshot"]
    with pytest.raises(SnapshotError, match="not a regular file"):
        Store.load("/dev/zero")


def forked(act: Callable[[], None]) -> int:
    """Call `act` in a forked process, which a signal ends if it hangs. Return the status."""
    child = os.fork()
    if not child:
        signal.alarm(30)
        try:
            act()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_save_removes_the_files_of_killed_saves_but_not_those_of_running_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, replace, seen = stored({b"b": {b"k": b"v"}}), os.replace, []

    def save_and_die() -> None:
        monkeypatch.setattr(os, "replace", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        store.save(path)

    def replace_after_another_save(source: str, target: str) -> None:
        monkeypatch.setattr(os, "replace", replace)
        seen.append(os.listdir(path.parent))
        stored({b"b": {b"k": b"other"}}).save(path)
        replace(source, target)

    others = (".snapshot-another.tmp", ".snapshot-0123456789abcdef-another.tmp")
    for name in others:
        (path.parent / name).touch()
    assert forked(save_and_die) == -signal.SIGKILL
    assert len(os.listdir(path.parent)) == 3
    monkeypatch.setattr(os, "replace", replace_after_another_save)
    store.save(path)
    assert len(seen[0]) == 3, "the abandoned file is gone, and there is a new one"
    assert sorted(os.listdir(path.parent)) == sorted((*others, "snapshot"))
    assert content_of(Store.load(path)) == content_of(store)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("is_held", [False, True])
def test_a_save_in_a_forked_process_is_refused_if_another_thread_held_a_lock(is_held: bool, path: Path) -> None:
    store = stored({b"b": {b"k": b"v"}})
    (shard,) = shards_of(store)
    is_locked, is_over = Event(), Event()

    def hold() -> None:
        with shard.stripe if is_held else nullcontext():
            is_locked.set()
            is_over.wait()

    def save() -> None:
        try:
            store.save(path)
        except RuntimeError as error:
            os._exit(7 if str(error) == "another thread of the parent process used the store during the fork" else 1)
        os._exit(0)

    thread = Thread(target=hold)
    thread.start()
    try:
        is_locked.wait()
        assert forked(save) == (7 if is_held else 0)
    finally:
        is_over.set()
        thread.join()
    assert path.exists() != is_held


def test_a_path_may_be_relative_and_its_directory_must_exist(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    stored({b"b": {b"k": b"v"}}).save("snapshot")
    assert content_of(Store.load(str(path))) == {b"b": {b"k": b"v"}}
    missing = path.parent / "missing" / "snapshot"
    for call in (stored({}).save, Store.load):
        with pytest.raises(FileNotFoundError, match="No such file or directory"):
            call(missing)
    assert os.listdir(path.parent) == ["snapshot"]


def test_a_save_whose_rename_fails_leaves_nothing(path: Path) -> None:
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        stored({b"b": {b"k": b"v"}}).save(path)
    assert os.listdir(path.parent) == ["snapshot"]
    assert os.listdir(path) == []


@pytest.mark.parametrize("size_bytes_max", [0, 100, 1_500_000])
def test_a_save_that_fails_in_the_middle_leaves_the_old_file(path: Path, size_bytes_max: int) -> None:
    """Make it fail by the system's limit on the size of a file."""
    stored({b"old": {b"k": b"v"}}).save(path)
    old = path.read_bytes()
    store = stored({b"new": {b"%d" % number: bytes(1_000_000) for number in range(3)}})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes_max, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["snapshot"]
    store.check()
    store.save(path)
    assert content_of(Store.load(path)) == content_of(store)


FIRST_KEY_BYTES = BUCKET_BYTES + bytes_size(6) + SHARD_BYTES + entry_size(b"12345", b"123456789")


def test_a_load_accepts_what_a_handle_allowed(path: Path) -> None:
    """A handle's limits may be above the store's, as a link's may be."""
    options = StoreOptions(key_bytes_max=4, value_bytes_max=8)
    store = Store(options)
    store.bucket(b"b", BucketOptions(key_bytes_max=5, value_bytes_max=9)).set(b"12345", b"123456789", HOUR_MS)
    store.save(path)
    loaded = Store.load(path, options)
    assert loaded.bucket(b"b").get(b"12345") == b"123456789"
    with pytest.raises(LimitError, match=r"^key is 5 bytes; the limit is 4 \(key_bytes_max\)$"):
        loaded.bucket(b"b").set(b"12345", b"")


@pytest.mark.parametrize(
    ("options", "needed", "limit"),
    [
        (StoreOptions(bucket_name_bytes_max=5), "bucket name is 6 bytes", "5 (bucket_name_bytes_max)"),
        (StoreOptions(buckets_max=1), "the store would hold 2 buckets", "1 (buckets_max)"),
        (StoreOptions(keys_max=2), "the store would hold 3 keys", "2 (keys_max)"),
        (
            StoreOptions(memory_bytes_max=1_000),
            f"the store would take {FIRST_KEY_BYTES} bytes of memory",
            "1000 (memory_bytes_max)",
        ),
    ],
)
def test_a_file_that_exceeds_a_limit_is_refused(options: StoreOptions, needed: str, limit: str, path: Path) -> None:
    stored({b"bucket": {b"12345": b"123456789"}, b"second": {b"12345": b"1", b"2": b"2"}}).save(path)
    with pytest.raises(LimitError, match=f"^{re.escape(f'{needed}; the limit is {limit}')}$"):
        Store.load(path, options)


# Damage


def test_every_changed_byte_is_found(small: bytes, path: Path) -> None:
    for start, whole in frames_of(small):
        for at in range(start, start + len(whole)):
            for flip in (1, 0x80, 0xFF):
                damaged = bytearray(small)
                damaged[at] ^= flip
                assert refusal(path, bytes(damaged)).offset == start


def test_every_cut_is_found(small: bytes, path: Path) -> None:
    for start, whole in frames_of(small):
        for end in range(start, start + len(whole)):
            error = refusal(path, small[:end])
            assert error.offset == start
            part, left = ("head", end - start) if end - start < HEAD.size else ("body", end - start - HEAD.size)
            size = HEAD.size if part == "head" else len(whole) - HEAD.size
            assert error.reason == f"the file is cut short: {left} bytes left for a frame's {part} of {size} bytes"


@pytest.mark.parametrize("trailing", [b"\0", b"\n", b"x" * 1_000])
def test_bytes_after_the_end_are_refused(small: bytes, path: Path, trailing: bytes) -> None:
    error = refusal(path, small + trailing)
    assert (error.offset, error.reason) == (len(small), f"the file has {len(trailing)} bytes after its end")


def joined(frames: list[tuple[int, bytes]]) -> bytes:
    return b"".join(whole for _, whole in frames)


def test_swapped_doubled_and_dropped_frames_are_refused(small: bytes, path: Path) -> None:
    frames = frames_of(small)
    for index, (offset, whole) in enumerate(frames):
        rest = frames[index + 1 :]
        assert refusal(path, joined([*frames[: index + 1], *frames[index:]])).offset == offset + len(whole)
        assert refusal(path, joined([*frames[:index], *rest])).offset == offset
        for number, other in enumerate(rest):
            swapped = [*frames[:index], other, *rest[:number], frames[index], *rest[number + 1 :]]
            assert refusal(path, joined(swapped)).offset == offset


def test_the_last_frame_shows_that_a_frame_is_from_another_file(path: Path) -> None:
    """Swap in a frame of the same offset and size. It is sound by itself, but the counts of the last frame differ."""
    files = []
    for entries in ({b"1": b"v", b"2": b""}, {b"1": b"longer"}):
        stored({b"b": entries}).save(path)
        files.append(frames_of(path.read_bytes()))
    (header, (offset, block), end), (_, (_, other), _) = files
    assert len(block) == len(other)
    error = refusal(path, joined([header, (offset, other), end]))
    assert (error.offset, error.reason) == (
        end[0],
        "the file has 1 blocks and 1 keys; its end says 1 blocks and 2 keys",
    )


def test_a_frame_of_4_gib_allocates_nothing(path: Path) -> None:
    header = frame(msgpack.packb(HEADER), 0)
    for file in (
        HEAD.pack(0x92, 0xCF, 0, 0xC6, 0xFFFFFFFF),
        header + HEAD.pack(0x92, 0xCF, 0, 0xC6, 0xFFFFFFFF) + b"rest",
        crafted(HEADER, b"\xdd\xff\xff\xff\xff"),  # an array of 2**32 - 1
        crafted(HEADER, b"\xc6\xff\xff\xff\xff"),  # bytes of 2**32 - 1
        crafted(HEADER, b"\x93\x01\xc4\x01b\xdd\xff\xff\xff\xff"),
    ):
        path.write_bytes(file)
        tracemalloc.start()
        try:
            with pytest.raises(SnapshotError, match=r"the file is cut short|the frame cannot be decoded"):
                Store.load(path)
            assert tracemalloc.get_traced_memory()[1] < 500_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xdd" + (8_000_000).to_bytes(4) + b"\x90" * 8_000_000, "8000000 exceeds max_array_len(1048576)"),
        (b"\x93\x01\xc4\x01b\xdd" + (1_000_000).to_bytes(4) + b"\x90" * 1_000_000, "it has more than 2 arrays"),
        (b"\x93\x01\xc4\x01b\xdd" + (1_000_000).to_bytes(4) + b"\x80" * 1_000_000, "it has more than 1 maps"),
        (b"\x93\x01\xc4\x01b\xdd" + (300_000).to_bytes(4) + b"\xd4\x05\x00" * 300_000, "it has an extension type (5)"),
    ],
)
def test_a_frame_with_too_many_parts_is_refused_before_they_are_created(body: bytes, reason: str, path: Path) -> None:
    path.write_bytes(crafted(HEADER, body))
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError) as caught:
            Store.load(path)
        assert caught.value.reason == f"the frame cannot be decoded: {reason}"
        assert tracemalloc.get_traced_memory()[1] < len(body) + 8 * 1024 * 1024 + 500_000, "the body and one list"
    finally:
        tracemalloc.stop()


NO_HEADER = "the file is not a keyvalue-inmemory snapshot"
NO_BLOCK = "the frame is neither a block nor the end"


@pytest.mark.parametrize(
    ("bodies", "index", "reason"),
    [
        ([[0, "keyvalue-inmemory snapshot", 4, SECRET], [2, 0, 0]], 0, "format version is 4; supported: 1 to 3"),
        ([[0, "keyvalue-inmemory snapshot", 0, 99]], 0, "format version is 0; supported: 1 to 3"),
        ([[0, "keyvalue-inmemory snapshot", 2**63, "of another kind"]], 0, "format version is 9223372036854775808;"),
        ([[0, "another format", 1, 99], [2, 0, 0]], 0, NO_HEADER),
        ([[0, b"keyvalue-inmemory snapshot", 1, 99]], 0, NO_HEADER),
        ([[0, "keyvalue-inmemory snapshot", 2, SECRET], [2, 0, 0]], 0, NO_HEADER),
        ([[0, "keyvalue-inmemory snapshot", 3, 99], [2, 0, 0]], 0, NO_HEADER),
        ([[0, "keyvalue-inmemory snapshot", 3, SECRET[1:]], [2, 0, 0]], 0, NO_HEADER),
        ([[0, "keyvalue-inmemory snapshot", 1, 1.5]], 0, NO_HEADER),
        ([[0, "keyvalue-inmemory snapshot", 1]], 0, NO_HEADER),
        ([[]], 0, NO_HEADER),
        ([HEADER, HEADER, [2, 0, 0]], 1, NO_BLOCK),
        ([HEADER, [3, b"b", []]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k"]]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k", "v"]]], 1, NO_BLOCK),
        ([HEADER, [1, "b", [b"k", b"v"]]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", {b"k": b"v"}]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k", b"v"], 0]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k", b"v"], {}, {}]], 1, "the frame cannot be decoded: it has more than 1 maps"),
        ([HEADER, [1, b"b", [b"k", b"v"], {0: None}]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k", b"v"], {0: True}]], 1, NO_BLOCK),
        ([HEADER, [1, b"b", [b"k", b"v"], {"0": 1}]], 1, NO_BLOCK),
        ([HEADER, [2, 0]], 1, NO_BLOCK),
        ([HEADER, [2, 1, 0]], 1, "the file has 0 blocks and 0 keys; its end says 1 blocks and 0 keys"),
        ([HEADER, [2, 0, 1]], 1, "the file has 0 blocks and 0 keys; its end says 0 blocks and 1 keys"),
        (
            [HEADER, [1, b"b", [b"k", b"v"]], [2, 1, 2]],
            2,
            "the file has 1 blocks and 1 keys; its end says 1 blocks and 2 keys",
        ),
        ([HEADER, {}], 1, "the frame is not an array"),
        ([HEADER, b"\xc1"], 1, "the frame cannot be decoded: "),
        ([HEADER, b"\x93\x01"], 1, "the frame cannot be decoded: "),
        ([HEADER, b"\xa1\xff"], 1, "the frame cannot be decoded: "),
        ([HEADER, b"\x94\x01\xc4\x01b\x90\x81\x91\x01\x01"], 1, "the frame cannot be decoded: "),  # {[1]: 1}
        ([HEADER, msgpack.packb([2, 0, 0]) + b"\0"], 1, "the frame cannot be decoded: "),
        ([HEADER, b"\x91" * 100_000], 1, "the frame cannot be decoded: "),
    ],
)
def test_a_sound_frame_with_wrong_content_is_refused(bodies: list[Any], index: int, reason: str, path: Path) -> None:
    file = crafted(*bodies)
    error = refusal(path, file)
    assert error.offset == frames_of(file)[index][0]
    assert error.reason.startswith(reason)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.binary(max_size=300))
def test_arbitrary_bytes_are_refused(file: bytes, path: Path) -> None:
    assert 0 <= refusal(path, file).offset <= len(file)


objects = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda parts: (
        st.lists(parts, max_size=4) | st.dictionaries(st.text() | st.binary() | st.integers(0, 9), parts, max_size=3)
    ),
    max_leaves=8,
)
blocks_alike = st.tuples(st.just(1), st.binary(max_size=3), st.lists(st.binary(max_size=3) | objects, max_size=4))
deadlines_alike = st.dictionaries(st.integers(-1, 4), st.integers(-(2**63), 2**64 - 1), max_size=3)
bodies_alike = (
    st.tuples(st.integers(0, 3), objects, objects)
    | blocks_alike
    | st.tuples(blocks_alike, deadlines_alike | objects).map(lambda parts: (*parts[0], parts[1]))
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bodies=st.lists(objects | bodies_alike | st.binary(max_size=30), max_size=4))
def test_frames_with_arbitrary_content_are_loaded_or_refused(bodies: list[object], path: Path) -> None:
    file = crafted(HEADER, *bodies)
    path.write_bytes(file)
    try:
        store = Store.load(path)
    except StoreError as error:
        assert isinstance(error, SnapshotError)
        assert error.offset in {len(file), *(offset for offset, _ in frames_of(file))}
    else:
        store.check()


# Saves while writers write


def test_a_snapshot_saved_during_writes_is_loaded(path: Path) -> None:
    options = StoreOptions(shard_keys_max=50, shards_min=1)
    stayed = {b"stays %d" % number: b"%d" % number for number in range(1_000)}
    store = stored({b"b": stayed}, options)
    is_over = Event()

    def write(writer: int) -> None:
        rng = Random(writer)
        bucket = store.bucket(b"b")
        own = store.bucket(b"of writer %d" % writer)
        while not is_over.is_set():
            key = b"churn %d %d" % (writer, rng.randrange(1_000))
            if bucket.exists(key):
                bucket.delete(key)
                own.delete(b"k")
            else:
                bucket.set(key, key, rng.choice([None, 1, HOUR_MS]))
                own.set(b"k", key)

    writers = [Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(5):
            store.save(path)
            loaded = Store.load(path, options)
            loaded.check()
            bucket = loaded.bucket(b"b")
            assert all(bucket.get(key) == value for key, value in stayed.items())
            for key in bucket:
                assert bucket.get(key) == stayed.get(key, key)
            assert {*loaded.bucket_names()} <= {b"b", *(b"of writer %d" % number for number in range(4))}
    finally:
        is_over.set()
        for writer in writers:
            writer.join()
    store.check()
    assert os.listdir(path.parent) == ["snapshot"]
