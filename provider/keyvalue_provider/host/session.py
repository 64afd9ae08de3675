"""The session with the host: health, links, configuration, shutdown.

The session sees the provider only as a `Capability`. `keyvalue_provider.host.subjects` lists the subjects. A host sends
each link only once. A provider that is starting or disconnected misses the link. So the session asks the lattice for
links at startup and after each reconnect.

The lattice does not return secrets, but host data contains them. So a provider that missed a link with secrets while it
was starting asks for a restart, once. `restart_mark.py` explains how a process knows that it was restarted.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

from keyvalue_provider.health import Health
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.json_fields import FieldError, Fields, text_map
from keyvalue_provider.host.lattice import LINKS_PER_STEP, LatticeLink, lattice_links
from keyvalue_provider.host.links import LINKS_MAX, LinkDefinition, LinkKey, Links, key_of, parse_link
from keyvalue_provider.host.restart_mark import EXIT_RESTART, RestartMark
from keyvalue_provider.host.subjects import host_subjects
from keyvalue_provider.host.xkeys import Xkeys
from keyvalue_transport.nats.connection import Connection, Message
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Capability", "HostSession", "links_of"]

log = logging.getLogger(__name__)

#: Seconds to wait before each request for links. After a lost connection, hosts need time to reconnect too.
ASKING_PAUSES_S = (0.0, 1.0, 3.0, 10.0)
#: Seconds to wait before the next request if the lattice did not return a configuration of a link in time.
UNANSWERED_PAUSE_S = 10.0
#: Seconds to wait before a restart for secrets. A link that is put at this moment arrives meanwhile, with its secrets.
SECRETS_WAIT_S = 1.0
#: After this time, a provider does not restart for secrets.
JUST_STARTED_S = 30.0


def links_of(host_data: HostData | None, xkeys: Xkeys | None) -> Links:
    """Return the links from the host data. Log a warning for each unusable link."""
    if host_data is None:
        return Links("")
    links = Links(host_data.provider_key, None if xkeys is None else xkeys.open)
    for value in host_data.link_definitions:
        try:
            links.put_value(value)
        except FieldError as error:
            log.warning("a link of the host data is unusable: %s", error)
    return links


class Capability(Protocol):
    """The methods of a provider that the host session calls."""

    def health(self) -> Health:
        """Return what is wrong with the provider, its links and the session."""
        ...

    def is_empty(self) -> bool:
        """Return True if the provider holds no data, so that a restart loses nothing."""
        ...

    def configure(self, config: Mapping[str, str]) -> None:
        """Apply a new and complete configuration."""
        ...

    def refuse_configuration(self, reason: str) -> None:
        """Record that a new configuration is unreadable."""
        ...

    def links_changed(self) -> None:
        """Apply the current links, after links were put, deleted or found to be unusable."""
        ...


class HostSession:
    """The session with a host. Call `start` to begin the session.

    The session sets `stop_requested` when the host asks the provider to stop, or when secrets of links are missing and
    a restart brings them. Call `acknowledge_stop` after the stop.

    :param links: the links from the host data, which the session changes later
    :param xkey: the provider's public xkey; empty if the host data has no xkeys
    :param mark: the mark of a restart for secrets; None to never restart
    :ivar stop_asked: set if the host asks the provider to stop
    :ivar stop_asked_s: when it asked first, on the monotonic clock
    :ivar asks_to_restart: True if the provider must end so that the host starts it again
    """

    def __init__(
        self,
        connection: Connection,
        host_data: HostData,
        links: Links,
        xkey: str,
        capability: Capability,
        stop_requested: asyncio.Event,
        mark: RestartMark | None = None,
    ) -> None:
        self._links = links
        self._stop_requested = stop_requested
        self._connection = connection
        self._host_id = host_data.host_id
        self._capability = capability
        self._lattice, self._provider_key = host_data.lattice_rpc_prefix, host_data.provider_key
        self._subjects = host_subjects(self._lattice, self._provider_key, host_data.link_name, xkey)
        self.stop_asked = asyncio.Event()
        self.stop_asked_s = 0.0
        self.asks_to_restart = False
        self._mark = mark
        self._started_s = 0.0
        self._restarting: asyncio.TimerHandle | None = None
        self._stop_replies: list[str] = []
        self._asking: asyncio.Task[None] | None = None
        self._telling: asyncio.Handle | None = None  # not None while changes wait to be reported to the capability
        self._asking_again: asyncio.TimerHandle | None = None
        self._touched: set[LinkKey] = set()  # links that the host has put or deleted since the last request began

    @property
    def asks_to_stop(self) -> bool:
        """True if the host asks the provider to stop."""
        return self.stop_asked.is_set()

    def ailments(self) -> list[str]:
        """Return why the session is unhealthy, one line for each reason."""
        if self._asking is not None and self._asking.done() and not self._asking.cancelled():
            error = self._asking.exception()
            if error is not None:
                return [f"a background task died: {type(error).__name__}"]
        return []

    async def start(self) -> None:
        """Subscribe. Then ask the lattice in the background for links that were put earlier.

        :raises DisconnectedError: the connection is closed
        """
        subjects = self._subjects
        self._started_s = asyncio.get_running_loop().time()
        # A host puts a link on two subjects (provider key and xkey). It may delete the link and put it again at once.
        # So the messages on all link subjects must be handled in the order in which they were sent.
        for subject, handle in (
            *((subject, self._on_link_put) for subject in subjects.link_puts),
            *((subject, self._on_link_delete) for subject in subjects.link_deletes),
            (subjects.config_update, self._on_config_update),
        ):
            await self._connection.subscribe_in_order(subject, handle)
        for subject, callback in (
            (subjects.health, self._on_health),
            (subjects.shutdown, self._on_shutdown),
        ):
            await self._connection.subscribe(subject, callback)
        self._ask()
        self._connection.on_reconnected = self._ask  # finds links put while disconnected

    def stop(self) -> None:
        """Stop asking the lattice. The session still handles the host's messages."""
        self._connection.on_reconnected = None
        for waiting in (self._restarting, self._asking_again, self._asking):
            if waiting is not None:
                waiting.cancel()

    def _ask(self) -> None:
        if self._asking_again is not None:
            self._asking_again.cancel()
        if self._asking is not None:
            self._asking.cancel()
            self._touched.clear()
        self._asking = asyncio.create_task(self._ask_lattice())

    def _ask_again(self) -> None:
        loop = asyncio.get_running_loop()
        self._asking_again = loop.call_later(UNANSWERED_PAUSE_S, self._ask)

    async def acknowledge_stop(self) -> None:
        """Answer the host's shutdown requests, if there are any. The host then kills the process."""
        for reply in self._stop_replies:
            await self._answer(reply, b"provider shutdown handled successfully")

    def _tell_soon(self) -> None:
        """Report changed links to the capability soon, and before the next call is handled.

        Changes that arrive together are reported only once.
        """
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._tell)
            self._connection.before_next_call(self._tell)

    def _tell(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
            self._capability.links_changed()

    async def _on_health(self, message: Message) -> None:
        self._tell()  # the answer must include faults in links that arrived before the request
        health = self._capability.health()
        answer = {"healthy": health.is_healthy, "message": health.message}
        await self._answer(message.reply, json.dumps(answer).encode())

    def _on_link_put(self, payload: bytes) -> None:
        changes = self._links.changes
        try:
            value = parse_link(payload)
        except FieldError as error:
            log.warning("a link is unusable: %s", error)
            return
        self._touch(key_of(value))
        self._put(value, "put")
        if self._links.changes != changes:  # also true if an unusable link replaced a usable one
            self._tell_soon()

    def _on_link_delete(self, payload: bytes) -> None:
        try:
            value = parse_link(payload)
            key = key_of(value) or LinkDefinition.from_json(value).key
        except FieldError as error:
            log.warning("a link was not deleted: %s", error)
            return
        self._touch(key)
        if self._links.delete(key):
            log.info("link deleted: %s -> %s (%s)", *key)
            self._tell_soon()

    def _touch(self, key: LinkKey | None) -> None:
        """Note that the host's word on a link is newer than what the lattice is about to answer."""
        is_asking = self._asking is None or not self._asking.done()
        if key is not None and is_asking and len(self._touched) < LINKS_MAX:
            self._touched.add(key)

    def _put(self, value: Any, how: str) -> None:
        try:
            link = self._links.put_value(value)
        except FieldError as error:
            log.warning("a link is unusable: %s", error)
        else:
            if link is not None:
                log.info("link %s: %s", how, link)

    async def _ask_lattice(self) -> None:
        """Request the lattice's links, and take those that are newer than the known ones."""
        found = None
        known = self._links.keys()
        for pause_s in ASKING_PAUSES_S:
            await asyncio.sleep(pause_s)
            try:
                found = await lattice_links(self._connection, self._lattice, self._provider_key)
            except DisconnectedError as error:
                log.warning("the request for the lattice's links was not sent: %s", error)
                return
            if found is not None:
                break
        else:
            if self._links.lack_answers:
                self._ask_again()
            return
        # Keep links that the lattice does not have, because the host that answers may not know the newest links yet.
        for source_id, target, name in known - {link.key for link in found} - self._touched:
            log.warning("link %s -> %s (%s): missing in the lattice; it stays in force", source_id, target, name)
        changes = self._links.changes
        for number, link in enumerate(found, 1):
            if not number % LINKS_PER_STEP:
                if self._links.changes != changes:
                    self._tell_soon()
                await asyncio.sleep(0)  # the messages of the host that arrive meanwhile are newer than `found`
            if link.key not in self._touched:
                self._take(link)
        if self._links.changes != changes:
            self._tell_soon()
        if any(link.lacks_answer for link in found):
            self._ask_again()
        else:
            self._consider_restart()

    def _take(self, link: LatticeLink) -> None:
        """Take a link from the lattice, which may have changed while the provider was disconnected.

        A known link with secrets stays, because the lattice does not return secrets. A known link stays also if the
        lattice's version is unreadable.
        """
        known = self._links.get(link.key)
        if not link.unreadable:
            if known is None or not known.has_secrets:
                self._put(link.value, "found in the lattice")
        elif not self._links.knows(link.key) or (self._links.lacks_answer(link.key) and not link.lacks_answer):
            log.warning("link %s -> %s (%s): everything is denied: %s", *link.key, link.unreadable)
            self._links.put_unreadable(link.key, link.unreadable, link.lacks_secrets, link.lacks_answer)

    def _consider_restart(self) -> None:
        """Decide after the first complete answer of the lattice if a restart may be needed. Decide only once."""
        mark, self._mark = self._mark, None
        if mark is None:
            return
        if self._links.lack_secrets:
            loop = asyncio.get_running_loop()
            self._restarting = loop.call_later(SECRETS_WAIT_S, self._restart_for_secrets, mark)
        else:
            mark.remove()

    def _restart_for_secrets(self, mark: RestartMark) -> None:
        """Ask for a restart if the provider has just started, and nothing but secrets of links is missing or wrong."""
        self._tell()  # finds faults in the options of links
        reason = ""
        if not (self._links.lack_only_secrets and self._capability.health().is_ready):
            reason = "health reports other faults, or none"
        elif not self._capability.is_empty():
            reason = "the store holds keys"
        elif asyncio.get_running_loop().time() - self._started_s > JUST_STARTED_S:
            reason = f"the provider has run for more than {JUST_STARTED_S:g} s"
        if reason:
            log.info("no restart for the secrets of links: %s", reason)
        elif mark.set():
            log.warning(
                "a link was put with secrets before the provider listened: "
                "exiting with code %d, so that the host starts the provider again with the secrets",
                EXIT_RESTART,
            )
            self.asks_to_restart = True
            self._stop_requested.set()

    def _on_config_update(self, payload: bytes) -> None:
        try:
            config = text_map(json.loads(payload), "config")
        except FieldError as error:
            reason = str(error)
        except (ValueError, RecursionError):
            reason = f"found {len(payload)} bytes that are not JSON"
        else:
            self._capability.configure(config)
            return
        log.warning("a configuration is refused: %s", reason)
        self._capability.refuse_configuration(reason)

    async def _on_shutdown(self, message: Message) -> None:
        try:
            host_id = Fields(json.loads(message.data)).text("host_id")
        except (ValueError, RecursionError):
            log.warning("a shutdown request is ignored: expected a JSON object with the host_id")
            return
        if self._host_id and host_id != self._host_id:
            log.debug("a shutdown request of another host is ignored")
            return
        log.info("the host requests a shutdown")
        if not self.asks_to_stop:
            self.stop_asked_s = monotonic()
        self.stop_asked.set()
        if message.reply:
            self._stop_replies.append(message.reply)
        self._stop_requested.set()

    async def _answer(self, reply: str, payload: bytes) -> None:
        if not reply or self._connection.replies.refuses(reply.encode()):
            return
        try:
            await self._connection.publish(reply, payload)
        except DisconnectedError as error:
            log.warning("the host was not answered: %s", error)
