"""Finds other instances that serve the same prefix from a store of their own, which is called a split.

NATS distributes the calls among all instances with a prefix. If their stores differ, a key that one instance has stored
is missing at the others. No call fails, so only this module notices it.

    _INBOX.keyvalue-inmemory.{prefix}.who     a question: an empty message; each instance answers with an announcement
    _INBOX.keyvalue-inmemory.{prefix}.here    an announcement, as an answer and every 5 s:
                                              {"instance": 16 hex digits, "store": text, "where": text}

The texts are printable ASCII. Instances with the same `store` share their keys. The subjects begin with `_INBOX`,
because every provider may publish and subscribe there.

Other clients may do so too. So announcements are read strictly, only a few are kept, and questions that arrive together
get one answer. A forged announcement causes a false warning, or prevents a start by `serve`, but does no other harm.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from keyvalue_transport.nats.connection import Connection

__all__ = ["OtherInstances", "SplitError", "place_of_process"]

log = logging.getLogger(__name__)

#: Seconds between two announcements.
INTERVAL_S = 5.0
#: After this many intervals without an announcement, an instance has ended.
SILENT_INTERVALS = 3
#: An instance is reported after this many intervals. Before, a host may still be replacing it: a host starts a new
#: instance while the old one stops.
REPORTED_INTERVALS = 6
#: Seconds to wait for an answer, if somebody listens to the question.
ANSWER_TIMEOUT_S = 1.0
#: Seconds between a question and the answer. Questions that arrive meanwhile get the same answer.
ANSWER_PAUSE_S = 0.05
ANNOUNCEMENT_BYTES_MAX = 1024
OTHERS_MAX = 64
#: A report names at most this many instances.
NAMED_MAX = 3
HOST_ID_SHOWN = 8
NODE_NAME_MAX = 200

INSTANCE = re.compile("[0-9a-f]{16}")
TEXT = re.compile("[ -~]{1,400}")
NO_RESPONDERS = b"NATS/1.0 503"

#: The beginning of the identity of a replicated store, and the option that makes one.
JETSTREAM = "jetstream "
SHARED_STORE = "store=jetstream"


class SplitError(Exception):
    """The error for a start beside an instance with another store."""


@dataclass(slots=True)
class Other:
    """Another instance.

    :ivar intervals: number of intervals since its first announcement
    :ivar silent: number of intervals since its last announcement
    """

    store: str
    where: str
    intervals: int = 0
    silent: int = 0


class OtherInstances:
    """The other instances with the same prefix and another store. Call `look`, unless a host started this one, and `join`.

    :param where: tells an operator where this instance runs
    :param store: returns the identity of the store that this instance shares with others; None for a store in memory
    """

    def __init__(self, connection: Connection, prefix: str, where: str, store: Callable[[], str] | None = None) -> None:
        self._connection = connection
        self._prefix = prefix
        self._who, self._here = (f"_INBOX.keyvalue-inmemory.{prefix}.{end}" for end in ("who", "here"))
        self._where = where
        self._instance = instance = secrets.token_hex(8)
        self._store = store or (lambda: f"memory {instance}")
        self._others: dict[str, Other] = {}
        self._reported: frozenset[str] = frozenset()
        self._listens = self._is_there = False
        self._answered = asyncio.Event()
        self._answering: asyncio.TimerHandle | None = None

    @property
    def count(self) -> int:
        """Return the number of other instances that were heard lately."""
        return len(self._others)

    def remarks(self) -> list[str]:
        """Return what an operator should know, or an empty list if there is no split."""
        found = [other for other in self._others.values() if other.intervals >= REPORTED_INTERVALS]
        if not found:
            return []
        named = [f"{other.where} ({options_of_store(other.store)})" for other in found[:NAMED_MAX]]
        if len(found) > NAMED_MAX:
            named.append(f"{len(found) - NAMED_MAX} more")
        return [
            f"{self._prefix} is also served, with other keys, by {', '.join(named)}: each call reaches only one instance"
        ]

    async def look(self, allows_split: bool) -> None:
        """Look for other instances that serve the prefix with other keys, before this one takes calls from them.

        Do not call this if a host has started this instance: calls are lost meanwhile, and it must start in any case.

        :raises SplitError: there is one, and that is not allowed
        :raises DisconnectedError: the connection is closed or lost
        """
        await self.find()
        if not allows_split and (found := self.remarks()):
            own, share = options_of_store(self._store()), SHARED_STORE
            if all(store.startswith(JETSTREAM) for store in (self._store(), *(o.store for o in self._others.values()))):
                share = f"the same jetstream_bucket, keys and jetstream_domain; this instance has {own}"
            raise SplitError(
                f"not started: {found[0]}; stop the others, choose another prefix, let all instances share their "
                f"keys ({share}), or set allow_split=true"
            )

    async def listen(self) -> None:
        """Begin to listen to announcements.

        :raises DisconnectedError: the connection is closed or lost
        """
        if not self._listens:
            await self._connection.subscribe_frames(self._here, self._on_here)
            self._listens = True

    async def find(self) -> None:
        """Ask who is there. Return at the first answer from a split, or at once if nobody listens to the question.

        An instance that was there before this one is reported without delay.

        :raises DisconnectedError: the connection is closed or lost
        """
        await self.listen()
        self._others.clear()  # those that are still there answer
        self._answered.clear()
        connection, inbox = self._connection, self._connection.new_inbox()
        statuses = await connection.subscribe_frames(inbox, self._on_status)
        await connection.publish(self._who, b"", inbox)
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._answered.wait()
        await connection.drain([statuses], 0.0)
        for other in self._others.values():
            other.intervals = REPORTED_INTERVALS

    async def join(self) -> None:
        """Let the others know this instance, and ask who is there.

        :raises DisconnectedError: the connection is closed or lost
        """
        await self.listen()
        await self._connection.subscribe_frames(self._who, self._on_who)
        self._is_there = True
        await self._connection.publish(self._who, b"")  # this instance answers too
        self._report()

    def leave(self) -> None:
        """Say nothing any more, because this instance stops."""
        self._is_there = False

    async def run(self) -> None:
        """Announce this instance, and report the others, again and again."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            self.end_interval()

    def end_interval(self) -> None:
        """Announce this instance, forget those that have ended, and report those that are there for long."""
        if not (self._is_there and self._connection.connected):
            return
        self._announce()
        for instance, other in tuple(self._others.items()):
            other.intervals += 1
            other.silent += 1
            if other.silent > SILENT_INTERVALS:
                del self._others[instance]
        self._report()

    def _report(self) -> None:
        """Log a warning if the instances that are reported have changed."""
        reported = frozenset(
            instance for instance, other in self._others.items() if other.intervals >= REPORTED_INTERVALS
        )
        if reported == self._reported:
            return
        self._reported = reported
        if reported:
            log.warning("%s", *self.remarks())
        else:
            log.info("%s is no longer served with other keys", self._prefix)

    def _announce(self) -> None:
        announcement = {"instance": self._instance, "store": self._store(), "where": self._where}
        payload = json.dumps(announcement).encode()
        # If it is not sent, the next one will be.
        self._connection.write_now(b"PUB %s %d\r\n%s\r\n" % (self._here.encode(), len(payload), payload))

    def _on_status(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if headers.startswith(NO_RESPONDERS):
            self._answered.set()

    def _on_who(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        if self._answering is None:
            self._answering = asyncio.get_running_loop().call_later(ANSWER_PAUSE_S, self._answer)

    def _answer(self) -> None:
        self._answering = None
        if self._is_there:
            self._announce()

    def _on_here(self, subject: bytes, reply: bytes, headers: bytes, payload: bytes) -> None:
        try:
            instance, store, where = read_announcement(payload)
        except ValueError as error:
            self._connection.reading.note_ignored("an announcement of another instance", error)
            return
        if instance == self._instance or store == self._store():
            return
        other = self._others.get(instance)
        if other is not None:
            other.silent = 0
        elif len(self._others) < OTHERS_MAX:
            self._others[instance] = Other(store, where)
            self._answered.set()


def options_of_store(store: str) -> str:
    """Return the options that an identity tells: `jetstream orders 2026-...` has store=jetstream, jetstream_bucket=orders."""
    kind, bucket, *_ = [*store.split(" "), ""]
    if not (store.startswith(JETSTREAM) and bucket):
        return f"store={kind}"
    return f"{SHARED_STORE}, {bucket if '=' in bucket else f'jetstream_bucket={bucket}'}"


def place_of_process(host_id: str) -> str:
    """Return where this process runs, with the beginning of its host's id. A client with the whole id could stop it.

    :param host_id: empty without a host
    """
    host = f" of host {host_id[:HOST_ID_SHOWN]}..." if host_id else ""
    return re.sub("[^ -~]", "?", f"process {os.getpid()} on {os.uname().nodename[:NODE_NAME_MAX]}{host}")


def read_announcement(payload: bytes) -> tuple[str, str, str]:
    """Return the instance, the store and the place of an announcement. Ignore other fields.

    :raises ValueError: it is not an announcement
    """
    if len(payload) > ANNOUNCEMENT_BYTES_MAX:
        raise ValueError(f"found {len(payload)} bytes, allowed {ANNOUNCEMENT_BYTES_MAX}")
    try:
        fields = json.loads(payload)
    except RecursionError:
        raise ValueError("found JSON that is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("found JSON that is not an object")
    found = []
    for name, pattern in (("instance", INSTANCE), ("store", TEXT), ("where", TEXT)):
        text = fields.get(name)
        if not isinstance(text, str) or not pattern.fullmatch(text):
            raise ValueError(f"{name}: allowed only text like {pattern.pattern}")
        found.append(text)
    return found[0], found[1], found[2]
