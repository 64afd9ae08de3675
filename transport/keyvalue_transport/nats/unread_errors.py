"""Errors of a NATS server that a client cannot read, because its own write failed before.

A server at its limit of connections sends INFO and an error, and closes the connection. nats-py has usually written
something before it reads the error. Then the write fails, the system drops what was not read, and nats-py reports only
`Broken pipe`.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

__all__ = ["error_to_new_clients"]

#: Seconds and bytes to read for the error.
LISTEN_TIMEOUT_S = 0.5
GREETING_BYTES_MAX = 64 * 1024
SERVER_ERROR = re.compile(rb"^-ERR +([^\r\n]+)", re.MULTILINE)


async def error_to_new_clients(host: str, port: int) -> str | None:
    """Return the error that a server sends to each new client, or None. Connect to it, and only read."""
    greeting = b""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LISTEN_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                while len(greeting) < GREETING_BYTES_MAX and (more := await reader.read(GREETING_BYTES_MAX)):
                    greeting += more
                    if (found := SERVER_ERROR.search(greeting)) is not None:
                        return found[1].decode(errors="replace")
            finally:
                writer.transport.abort()
    return None
