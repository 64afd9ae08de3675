"""Links. A link allows a component to call the provider, or the provider to call a component."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from keyvalue_provider.host.json_fields import FieldError, Fields, shown_name
from keyvalue_provider.host.secret import Secret

__all__ = ["LINKS_MAX", "LinkDefinition", "LinkKey", "Links", "Unseal", "key_of", "parse_link"]

log = logging.getLogger(__name__)

#: Limits for links and for lines about links in a health answer. Any client that may publish can put links.
LINKS_MAX = 10_000
LINES_MAX = 8
OVERFLOW = f"more than {LINKS_MAX} links are unusable: callers without a link are denied everything until a restart"
#: Source, target and name. A component may have several links to a provider, with different names.
LinkKey = tuple[str, str, str]
#: A function that opens sealed bytes, or raises ValueError.
Unseal = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class LinkDefinition:
    """A link as the host defines it. Its configurations may hold secrets, so `str` and `repr` show only the names."""

    source_id: str
    target: str
    name: str
    wit_namespace: str = ""
    wit_package: str = ""
    interfaces: tuple[str, ...] = ()
    source_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    target_config: Mapping[str, str] = field(default_factory=dict, repr=False)
    source_secrets: Mapping[str, Secret] = field(default_factory=dict)
    target_secrets: Mapping[str, Secret] = field(default_factory=dict)

    @property
    def source_options(self) -> dict[str, str]:
        """Return the source's options in clear text. A secret overrides a configured option with the same name."""
        return _options(self.source_config, self.source_secrets)

    @property
    def target_options(self) -> dict[str, str]:
        """Return the target's options in clear text. A secret overrides a configured option with the same name."""
        return _options(self.target_config, self.target_secrets)

    @property
    def has_secrets(self) -> bool:
        """True if the source or the target has secrets."""
        return bool(self.source_secrets or self.target_secrets)

    @property
    def key(self) -> LinkKey:
        """Return the key of this link."""
        return self.source_id, self.target, self.name

    def __str__(self) -> str:
        interfaces = ", ".join(self.interfaces) or "no interface"
        options = ", ".join(sorted({*self.source_config, *self.target_config})) or "none"
        secrets = ", ".join(sorted({*self.source_secrets, *self.target_secrets}))
        return (
            f"{self.source_id} -> {self.target} ({self.name}), {interfaces}; options set: {options}"
            f"{secrets and f'; secrets: {secrets}'}"
        )

    @classmethod
    def from_json(cls, value: Any, what: str = "", unseal: Unseal | None = None) -> LinkDefinition:
        """Parse a link from a JSON object.

        :param unseal: opens sealed secrets; without it, a link with secrets is refused
        :raises FieldError: a field has the wrong type, source or target is missing, or the secrets cannot be opened
        """
        fields = Fields(value, what)
        link = cls(
            source_id=fields.text("source_id"),
            target=fields.text("target"),
            name=fields.text("name", "default"),
            wit_namespace=fields.text("wit_namespace"),
            wit_package=fields.text("wit_package"),
            interfaces=fields.texts("interfaces"),
            source_config=fields.text_map("source_config"),
            target_config=fields.text_map("target_config"),
            source_secrets=_secrets(fields.octets("source_secrets"), f"{what}source_secrets", unseal),
            target_secrets=_secrets(fields.octets("target_secrets"), f"{what}target_secrets", unseal),
        )
        for name in ("source_id", "target"):
            if not getattr(link, name):
                raise FieldError(f"{what}{name}: found nothing, expected a name")
        return link


class Links:
    """The links of one provider. The provider is the source or the target of each link.

    :param unseal: opens the secrets of links
    """

    def __init__(self, provider_key: str, unseal: Unseal | None = None) -> None:
        self._provider_key = provider_key
        self._unseal = unseal
        self._links: dict[LinkKey, LinkDefinition] = {}
        self._unusable: dict[LinkKey, str] = {}
        self._lacking_secrets: set[LinkKey] = set()
        self._lacking_answer: set[LinkKey] = set()
        self._remarks: dict[LinkKey, str] = {}
        #: True if LINKS_MAX prevented the recording of an unusable link. Any caller without a link may be its source.
        self.overflowed = False
        self._changed: set[LinkKey] = set()
        self._deleted: set[LinkKey] = set()
        #: Number of changes so far. When this number increases, data derived from the links is stale.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[LinkDefinition]:
        return iter(list(self._links.values()))

    def find(self, source_id: str, name: str) -> LinkDefinition | None:
        """Return the link that lets this source call the provider, or None."""
        return self._links.get((source_id, self._provider_key, name))

    def callers(self) -> list[LinkDefinition]:
        """Return the links whose target is the provider."""
        return [link for link in self._links.values() if link.target == self._provider_key]

    def callees(self) -> list[LinkDefinition]:
        """Return the links whose source is the provider."""
        return [link for link in self._links.values() if link.source_id == self._provider_key]

    def get(self, key: LinkKey) -> LinkDefinition | None:
        """Return the link with this key, or None if there is none, or if it is unreadable."""
        return self._links.get(key)

    def is_unreadable(self, key: LinkKey) -> bool:
        """Return True if there is a link with this key, but its definition cannot be read."""
        return key in self._unusable and key not in self._links

    def is_from_caller(self, key: LinkKey) -> bool:
        """Return True if a link with this key has the provider as its target."""
        return key[1] == self._provider_key

    def is_to_callee(self, key: LinkKey) -> bool:
        """Return True if a link with this key has the provider as its source."""
        return key[0] == self._provider_key

    def keys(self) -> set[LinkKey]:
        """Return the keys of all links, readable or not. O(links)."""
        return {*self._links, *self._unusable}

    def take_changed(self) -> set[LinkKey]:
        """Return the keys of the links that were put, deleted or found unreadable since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def take_deleted(self) -> set[LinkKey]:
        """Return the keys of the links that were deleted since the last call, even if they were put again."""
        deleted, self._deleted = self._deleted, set()
        return deleted

    @property
    def unusable_count(self) -> int:
        """Return the number of unusable links that are known."""
        return len(self._unusable)

    @property
    def unusable(self) -> list[str]:
        """Return why links are unusable, one line for each link."""
        return [*([OVERFLOW] if self.overflowed else []), *_first(self._unusable.values(), "more unusable links")]

    @property
    def lack_secrets(self) -> bool:
        """True if a link is unreadable because its secrets are missing."""
        return bool(self._lacking_secrets)

    @property
    def lack_only_secrets(self) -> bool:
        """True if `lack_secrets`, and no link is unusable for another reason."""
        return self.lack_secrets and not self.overflowed and self._lacking_secrets == self._unusable.keys()

    @property
    def lack_answers(self) -> bool:
        """True if a link is unreadable because the lattice did not answer in time."""
        return bool(self._lacking_answer)

    def lacks_answer(self, key: LinkKey) -> bool:
        """Return True if the link with this key is unreadable because the lattice did not answer in time."""
        return key in self._lacking_answer

    @property
    def remarks(self) -> list[str]:
        """Return the remarks about usable links, one line for each link."""
        return _first(self._remarks.values(), "more remarks on links")

    def refuse(self, link: LinkDefinition, reason: str) -> None:
        """Report a link as unusable until the link is changed or deleted. Do not remove the link."""
        self._unusable[link.key] = f"{_named(link.key)}: {reason}"

    def remark(self, link: LinkDefinition, what: str) -> None:
        """Add a remark about a link. The remark stays until the link is changed or deleted."""
        self._remarks[link.key] = f"{_named(link.key)}: {what}"

    def put(self, link: LinkDefinition) -> bool:
        """Add or replace a link. Return True if anything changed.

        :raises FieldError: the link is not from or to this provider, or there are LINKS_MAX links already
        """
        if self._provider_key not in (link.target, link.source_id):
            raise FieldError(
                f"the link from {shown_name(link.source_id)} to {shown_name(link.target)} "
                f"does not belong to this provider ({self._provider_key})"
            )
        if link.key not in self._links and len(self._links) >= LINKS_MAX:
            raise FieldError(f"there are {LINKS_MAX} links already, which is the limit")
        if self._links.get(link.key) == link:
            return False
        self._forget(link.key)
        self._links[link.key] = link
        return True

    def delete(self, key: LinkKey) -> bool:
        """Remove a link. Return True if the link existed."""
        was_known = self.knows(key)
        if was_known:
            self._forget(key)
            self._deleted.add(key)
        return was_known

    def put_value(self, value: Any) -> LinkDefinition | None:
        """Add or replace a link, given as a JSON value. Return the link, or None if nothing changed.

        A malformed link with a readable key is listed in `unusable` until the link is replaced or deleted.

        :raises FieldError: the link is malformed, or `put` refuses it
        """
        try:
            link = LinkDefinition.from_json(value, unseal=self._unseal)
            return link if self.put(link) else None
        except FieldError as error:
            key = key_of(value)
            if key is not None and self._provider_key in key[:2]:
                self.put_unreadable(key, str(error))
            raise

    def put_unreadable(
        self, key: LinkKey, reason: str, lacks_secrets: bool = False, lacks_answer: bool = False
    ) -> None:
        """Record an unreadable link. It replaces any link with the same key.

        :param lacks_secrets: True if only the secrets of the link are missing
        :param lacks_answer: True if the lattice did not answer in time
        """
        self._forget(key)  # the old definition is no longer valid
        if len(self._unusable) < LINKS_MAX:
            self._unusable[key] = f"{_named(key)}: {reason}"
            if lacks_secrets:
                self._lacking_secrets.add(key)
            if lacks_answer:
                self._lacking_answer.add(key)
        elif not self.overflowed:
            self.overflowed = True
            log.error("%s", OVERFLOW)

    def knows(self, key: LinkKey) -> bool:
        """Return True if there is a link with this key, readable or not."""
        return key in self._links or key in self._unusable

    def _forget(self, key: LinkKey) -> None:
        self.changes += 1
        self._changed.add(key)
        self._links.pop(key, None)
        self._unusable.pop(key, None)
        self._lacking_secrets.discard(key)
        self._lacking_answer.discard(key)
        self._remarks.pop(key, None)


def _named(key: LinkKey) -> str:
    source_id, target, name = map(shown_name, key)
    return f"link {source_id} -> {target} ({name})"


def _first(lines: Collection[str], more: str) -> list[str]:
    """Return the first LINES_MAX lines. If more lines remain, add a line with their number."""
    first = list(islice(lines, LINES_MAX))
    if len(lines) > LINES_MAX:
        first.append(f"and {len(lines) - LINES_MAX} {more}")
    return first


def _options(config: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, str]:
    return {**config, **{name: secret.reveal() for name, secret in secrets.items()}}


def _secrets(sealed: bytes | None, what: str, unseal: Unseal | None) -> dict[str, Secret]:
    """Open the sealed secrets for one side of a link. Return the secrets by name."""
    if not sealed:
        return {}
    if unseal is None:
        raise FieldError(f"{what}: the host data has no keys to open these secrets")
    try:
        opened = unseal(sealed)
    except ValueError as error:
        raise FieldError(f"{what}: {error}") from None
    try:
        secrets = json.loads(opened)
    except (ValueError, RecursionError):  # the message of such an error may quote a secret
        secrets = None
    if not isinstance(secrets, dict):
        raise FieldError(f"{what}: the opened secrets are not a JSON object")
    return {name: Secret.from_json(secret, f"{what}.{shown_name(name)}.") for name, secret in secrets.items()}


def parse_link(payload: bytes) -> Any:
    """Return the JSON value of a `linkdefs.put` or `linkdefs.del` message.

    :raises FieldError: the message is not JSON
    """
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise FieldError(f"found {len(payload)} bytes that are not JSON, expected a link definition") from None


def key_of(value: Any) -> LinkKey | None:
    """Return the key of a link, or None if the key is malformed. The other fields are not checked."""
    if not isinstance(value, dict):
        return None
    names = (value.get("source_id"), value.get("target"), value.get("name") or "default")
    if not all(isinstance(name, str) and name for name in names):
        return None
    return names[0], names[1], names[2]  # type: ignore[return-value] # checked above, in a way that mypy does not see
