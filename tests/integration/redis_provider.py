"""A provider without a host, with a Redis listener on a Unix socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.conftest import MEASURED, PROVIDER, NatsServer, Process

__all__ = ["RedisProvider", "redis_provider"]


class RedisProvider(NamedTuple):
    """A running provider.

    :ivar socket: the path of its Unix socket
    :ivar prefix: its prefix, for calls over NATS
    """

    process: Process
    socket: str
    prefix: str


@contextmanager
def redis_provider(directory: Path, nats: NatsServer, name: str = "redis", **options: str) -> Iterator[RedisProvider]:
    """Run a provider. `redis_address` in the options is added to the socket."""
    path = directory / f"{name}.provider.sock"
    addresses = ",".join(filter(None, (str(path), options.pop("redis_address", ""))))
    flags = [f"--{option.replace('_', '-')}={text}" for option, text in options.items()]
    prefix = f"default.{name}"
    arguments = (str(PROVIDER), "serve", "--nats", nats.url, "--prefix", prefix, "--redis-address", addresses, *flags)
    process = Process(arguments, directory, MEASURED)
    try:
        process.wait_for("ready: serving")
        yield RedisProvider(process, str(path), prefix)
    finally:
        process.signal(15)
        process.wait()
