"""The sockets of a listener: the files of Unix sockets, and options of TCP connections."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

__all__ = ["bind_path", "keep_alive", "unlink"]

#: The time after which the system asks whether a silent client's machine is still there. Redis has the same default.
KEEPALIVE_S = 300


def bind_path(path: str, mode: int) -> tuple[socket.socket, int]:
    """Return a bound Unix socket, and the inode of its file. Replace the file of a socket on which nobody listens.

    :raises OSError: the path is not available
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            if stat.S_ISSOCK(os.stat(path).st_mode):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.setblocking(False)  # the process that listens may be stuck, and its backlog full
                    if probe.connect_ex(path) == errno.ECONNREFUSED:
                        os.unlink(path)
        except FileNotFoundError:
            pass
        before = os.umask(0o777)  # nobody can connect before the mode is set
        try:
            bound.bind(path)
        finally:
            os.umask(before)
        inode = os.stat(path).st_ino
        os.chmod(path, mode)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound, inode


def unlink(path: str, inode: int) -> None:
    """Remove the file of a socket, unless another process has replaced it."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass


def keep_alive(connection: Any) -> None:
    """Let the system close the connection of a client whose machine has gone, as Redis does."""
    if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
