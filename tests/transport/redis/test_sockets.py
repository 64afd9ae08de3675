"""Sockets: a path that is in use stays, and TCP connections find out that a client has gone."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from keyvalue_transport.redis.sockets import KEEPALIVE_S, bind_path, keep_alive, unlink


@pytest.mark.timeout(20)
def test_the_path_of_a_stuck_process_is_in_use(tmp_path: Path) -> None:
    """Its backlog is full, so a connection would wait until it accepts one."""
    path = str(tmp_path / "s")
    with (
        socket.socket(socket.AF_UNIX) as stuck,
        socket.socket(socket.AF_UNIX) as first,
        socket.socket(socket.AF_UNIX) as second,
    ):
        stuck.bind(path)
        stuck.listen(0)
        for client in (first, second):
            client.setblocking(False)
            with suppress(BlockingIOError):
                client.connect(path)
        with pytest.raises(OSError, match="in use") as raised:
            bind_path(path, 0o700)
        assert raised.value.errno == errno.EADDRINUSE
    bound, inode = bind_path(path, 0o700)  # nobody listens any more
    bound.close()
    unlink(path, inode)
    assert not Path(path).exists()


def test_connections_are_kept_alive() -> None:
    with socket.socket(socket.AF_INET) as connection:
        keep_alive(connection)
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == KEEPALIVE_S
    keep_alive(None)
