"""The lock of a path: one process at a time, also through symbolic links, until the last fork has ended."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from keyvalue_provider.keyvalue.path_lock import PathLock


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    path, link = tmp_path / "snapshot", tmp_path / "link"
    link.symlink_to(path)
    first, second = PathLock(str(path)), PathLock(str(link))
    assert first.take()
    assert not second.take()
    assert second.holder == f"process {os.getpid()}"
    assert stat.S_IMODE(os.stat(first.path).st_mode) == 0o600
    first.release()
    first.release()
    assert second.take()
    assert not first.take()
    assert {*os.listdir(tmp_path)} == {"link", "snapshot.lock"}
    second.release()


@pytest.mark.parametrize("is_full", [False, True])
def test_a_lock_file_that_is_damaged_or_unwritable_names_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """The lock does not need the file's content. So a full disk does not prevent the start."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    holder, other = PathLock(str(tmp_path / "snapshot")), PathLock(str(tmp_path / "snapshot"))
    if is_full:
        monkeypatch.setattr(os, "pwrite", fail)
    assert holder.take()
    if not is_full:
        (tmp_path / "snapshot.lock").write_bytes(b"\xff" * 100)
    assert not other.take()
    assert other.holder == "another process"
    holder.release()
    other.release()


def test_the_lock_file_is_no_symbolic_link(tmp_path: Path) -> None:
    """Otherwise, somebody who may write to the directory could have another file emptied."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "snapshot.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic link"):
        PathLock(str(tmp_path / "snapshot")).take()
    assert victim.read_bytes() == b"precious"
