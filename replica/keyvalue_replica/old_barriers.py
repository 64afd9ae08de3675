"""The removal of barriers from a stream in which messages do not expire, as they do elsewhere after a minute."""

from __future__ import annotations

import json
import logging
from time import monotonic

from keyvalue_replica.errors import UnavailableError
from keyvalue_replica.layout import BARRIER_S, Layout
from keyvalue_replica.stream import Api, ApiError

__all__ = ["OldBarriers"]

log = logging.getLogger(__name__)


class OldBarriers:
    """The barriers of all instances that are older than `BARRIER_S`.

    A call may wait for longer (`jetstream_timeout_ms`). If its barrier is removed before it was delivered, the next
    barrier of its instance answers it.
    """

    def __init__(self, api: Api, layout: Layout) -> None:
        self._api = api
        self._layout = layout
        self._noted = 0  # the last sequence at `_noted_s`
        self._noted_s = monotonic()

    async def remove(self, applied: int) -> None:
        """Remove the barriers that are older than `BARRIER_S`, at most once in this time.

        :param applied: the sequence of the last message that was applied
        :raises DisconnectedError: the connection is lost
        """
        layout, now_s = self._layout, monotonic()
        if layout.allows_ttl or now_s - self._noted_s < BARRIER_S:
            return
        before, self._noted, self._noted_s = self._noted, applied, now_s
        if before:
            parameters = {"filter": f"{layout.barriers.decode()}>", "seq": before}
            try:
                await self._api.call(f"STREAM.PURGE.{layout.stream}", parameters)
            except (ApiError, UnavailableError) as error:
                log.warning("replica: old barriers stay in %s: %s", layout.stream, error)

    def removal_of(self, instance: str) -> bytes:
        """Return the frame that removes the barriers of an instance that stops."""
        if self._layout.allows_ttl:
            return b""
        purge = json.dumps({"filter": self._layout.barrier(instance).decode()})
        return f"PUB {self._api.prefix}.STREAM.PURGE.{self._layout.stream} {len(purge)}\r\n{purge}\r\n".encode()
