"""The link that makes `wrpc-kv watch` a watcher: what it is, and how it is added and removed.

    a host of the lattice answers   config.put, link.put  ...  link.del, config.del
    only the provider answers       linkdefs.put          ...  linkdefs.del, as a host publishes them
    nobody answers                  WatchError

The link's name is that of the component, which is random. So no other link is replaced or removed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple

from keyvalue_provider.client.session import Session
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.host.json_fields import Fields
from keyvalue_provider.host.subjects import health_subject, host_subjects
from keyvalue_provider.watching.patterns import Watch
from keyvalue_transport.wrpc.errors import TransportError

__all__ = ["WatchError", "WatchLink", "watch_option"]

#: The characters with a meaning in the option `watch`.
SPECIAL = "\\,/*"
#: The value of the option `watch_bucket` for the bucket's own name.
OWN_NAME = "{bucket}"


class WatchError(TransportError):
    """The error for a component that cannot watch."""


def watch_option(bucket: str, pattern: str) -> str:
    r"""Return the option `watch` for the keys of one bucket. A backslash in the pattern makes the next character literal.

    >>> watch_option("b", "a/b*")
    'SET@b/a\\/b*,DEL@b/a\\/b*'

    :raises ValueError: the pattern is malformed
    """
    name = "".join(_escaped(character) for character in bucket)
    keys, characters = [], iter(pattern)
    for character in characters:
        if character == "\\":
            keys.append(character + next(characters, ""))
        else:
            keys.append(character if character == "*" else _escaped(character))
    if keys[-1:] == ["\\"]:
        raise ValueError(f"pattern: found {pattern!r}, allowed a character after the last backslash")
    option = ",".join(f"{verb}@{name}/{''.join(keys)}" for verb in ("SET", "DEL"))
    try:
        Watch.of(WatchingLinkOptions(watch=option))
    except OptionError:
        raise ValueError(
            rf"pattern: found {pattern!r}, allowed a key, or the start of keys and a *; \* for the character"
        ) from None
    return option


def _escaped(character: str) -> str:
    return f"\\{character}" if character in SPECIAL or character.isspace() else character


class WatchLink(NamedTuple):
    """A link from a provider to a component that watches.

    :ivar name: the name of the link, and of its configuration
    :ivar watch: the option `watch`
    """

    lattice: str
    provider: str
    component: str
    name: str
    watch: str

    @property
    def options(self) -> dict[str, str]:
        """Return the options of the link."""
        return {"watch": self.watch, "watch_bucket": OWN_NAME}

    def definition(self, config: object) -> dict[str, object]:
        """Return the link with its options, or with the name of their configuration."""
        return {
            "source_id": self.provider,
            "target": self.component,
            "name": self.name,
            "wit_namespace": "wasi",
            "wit_package": "keyvalue",
            "interfaces": ["watcher"],
            "source_config": config,
            "target_config": type(config)(),
        }

    async def add(self, session: Session) -> Callable[[], Awaitable[None]]:
        """Add the link. Return a function that removes it.

        :raises WatchError: nobody adds it
        """
        try:
            await self._ask_lattice(session, f"config.put.{self.name}", self.options)
        except TimeoutError:
            return await self._tell_provider(session)
        try:
            await self._ask_lattice(session, "link.put", self.definition([self.name]))
        except (WatchError, TimeoutError):
            with suppress(WatchError, TimeoutError):  # the first error is reported
                await self._ask_lattice(session, f"config.del.{self.name}")
            raise
        return lambda: self._remove_from_lattice(session)

    async def _ask_lattice(self, session: Session, request: str, content: object = None) -> None:
        """Send a request to the hosts of the lattice.

        :raises TimeoutError: no host answers
        :raises WatchError: the host refuses
        """
        subject = f"wasmbus.ctl.v1.{self.lattice}.{request}"
        answer = await session.request(subject, b"" if content is None else json.dumps(content).encode())
        try:
            fields = Fields(json.loads(answer), f"{request}: ")
            succeeded, message = fields.flag("success"), fields.text("message")
        except (ValueError, RecursionError):
            raise WatchError(f"{subject}: the answer of the host is malformed") from None
        if not succeeded:
            raise WatchError(f"{subject}: the host refuses: {message}")

    async def _remove_from_lattice(self, session: Session) -> None:
        named = {"source_id": self.provider, "name": self.name, "wit_namespace": "wasi", "wit_package": "keyvalue"}
        try:
            await self._ask_lattice(session, "link.del", named)
        finally:
            await self._ask_lattice(session, f"config.del.{self.name}")

    async def _tell_provider(self, session: Session) -> Callable[[], Awaitable[None]]:
        """Send the link to the provider, as a host does."""
        connection, subjects = session.connection, host_subjects(self.lattice, self.provider, "default")
        assert connection is not None

        async def health() -> None:
            """Wait until the provider has handled what was sent before."""
            await session.request(health_subject(f"{self.lattice}.{self.provider}"), b"")

        async def remove() -> None:
            await connection.publish(subjects.link_deletes[0], json.dumps(self.definition({})).encode())
            await health()

        try:
            await health()
        except TimeoutError:
            raise WatchError(
                f"no host answers in the lattice {self.lattice}, and the provider {self.provider} listens to none, as "
                "with `serve`; only a link makes a watcher"
            ) from None
        await connection.publish(subjects.link_puts[0], json.dumps(self.definition(self.options)).encode())
        await health()
        return remove
