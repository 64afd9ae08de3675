"""Links: who may call the provider, and whom the provider may call. Knows the host's contract, and nothing of key-value."""

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

#: Links that are kept, and of those that something is said about how many are told: whoever may publish can put links.
LINKS_MAX = 10_000
LINES_MAX = 8
OVERFLOW = f"more than {LINKS_MAX} links can't be used: callers without a link are denied all, until a restart"
#: Source, target and name: a component may be linked to a provider more than once, under several names.
LinkKey = tuple[str, str, str]
#: Opens sealed bytes; raises ValueError where it can't.
Unseal = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class LinkDefinition:
    """A link, as the host defines it. Configurations may hold what is secret: only their names show in `str` and `repr`."""

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
        """What the source's side sets, in clear: a secret goes before what the configuration says under its name."""
        return _options(self.source_config, self.source_secrets)

    @property
    def target_options(self) -> dict[str, str]:
        """The same of the target's side."""
        return _options(self.target_config, self.target_secrets)

    @property
    def key(self) -> LinkKey:
        """What tells this link from others."""
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
        """A link from its JSON object.

        :param unseal: opens what the host has sealed; without it a link with secrets can't be read
        :raises FieldError: a field is of the wrong type, or names nobody, or secrets can't be opened
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
    """The links of one provider: those it is the target or the source of, by source, target and name.

    :param unseal: opens the secrets of links
    """

    def __init__(self, provider_key: str, unseal: Unseal | None = None) -> None:
        self._provider_key = provider_key
        self._unseal = unseal
        self._links: dict[LinkKey, LinkDefinition] = {}
        self._unusable: dict[LinkKey, str] = {}
        self._remarks: dict[LinkKey, str] = {}
        #: A link was not kept since there are too many: nobody knows what it allows, so callers without a link may be its.
        self.overflowed = False
        #: How often they changed: whoever works something out of them compares.
        self.changes = 0

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[LinkDefinition]:
        return iter(list(self._links.values()))

    def find(self, source_id: str, name: str) -> LinkDefinition | None:
        """The link by which this source may call the provider."""
        return self._links.get((source_id, self._provider_key, name))

    def callers(self) -> list[LinkDefinition]:
        """The links by which somebody may call the provider."""
        return [link for link in self._links.values() if link.target == self._provider_key]

    def callees(self) -> list[LinkDefinition]:
        """The links by which the provider may call somebody."""
        return [link for link in self._links.values() if link.source_id == self._provider_key]

    def refused_callers(self) -> list[tuple[str, str]]:
        """Source id and name of the links by which somebody could call the provider if they could be read."""
        return [
            (source_id, name)
            for source_id, target, name in self._unusable.keys() - self._links.keys()
            if target == self._provider_key
        ]

    @property
    def unusable(self) -> list[str]:
        """Why links that were put can't be used: one line each."""
        return [*([OVERFLOW] if self.overflowed else []), *_first(self._unusable.values(), "links more can't be used")]

    @property
    def remarks(self) -> list[str]:
        """What is odd about links that can be used: one line each."""
        return _first(self._remarks.values(), "remarks more on links")

    def refuse(self, link: LinkDefinition, reason: str) -> None:
        """Note in `unusable`, until the link changes or goes, that what it asks for can't be had. It stays among the links."""
        self._unusable[link.key] = f"{_named(link.key)}: {reason}"

    def remark(self, link: LinkDefinition, what: str) -> None:
        """Note something in `remarks`, until the link changes or goes."""
        self._remarks[link.key] = f"{_named(link.key)}: {what}"

    def put(self, link: LinkDefinition) -> bool:
        """Keep a link, in place of one of the same key; whether anything changed.

        :raises FieldError: the link has nothing to do with this provider
        """
        if self._provider_key not in (link.target, link.source_id):
            raise FieldError(
                f"found a link from {shown_name(link.source_id)} to {shown_name(link.target)}, "
                f"expected {self._provider_key} as one of them"
            )
        if link.key not in self._links and len(self._links) >= LINKS_MAX:
            raise FieldError(f"links: found {LINKS_MAX + 1}, allowed {LINKS_MAX}")
        if self._links.get(link.key) == link:
            return False
        self._forget(link.key)
        self._links[link.key] = link
        return True

    def delete(self, key: LinkKey) -> bool:
        """Forget a link; whether it was known."""
        was_known = self.knows(key)
        if was_known:
            self._forget(key)
        return was_known

    def put_json(self, payload: bytes) -> LinkDefinition | None:
        """`put_value` of the JSON of a `linkdefs.put`."""
        return self.put_value(parse_link(payload))

    def put_value(self, value: Any) -> LinkDefinition | None:
        """Keep a link as JSON gives it; the link, or None if it was known just so.

        One that can't be used is noted in `unusable` until a good one of its key comes, or it is deleted.

        :raises FieldError: it is no link
        """
        try:
            link = LinkDefinition.from_json(value, unseal=self._unseal)
            return link if self.put(link) else None
        except FieldError as error:
            key = key_of(value)
            if key is not None and self._provider_key in key[:2]:
                self.put_unreadable(key, str(error))
            raise

    def put_unreadable(self, key: LinkKey, reason: str) -> None:
        """Note in `unusable`, in place of a link of this key, that there is one which can't be read."""
        self._forget(key)  # the old definition no longer holds
        if len(self._unusable) < LINKS_MAX:
            self._unusable[key] = f"{_named(key)}: {reason}"
        elif not self.overflowed:
            self.overflowed = True
            log.error("%s", OVERFLOW)

    def knows(self, key: LinkKey) -> bool:
        """Whether there is a link of this key, readable or not."""
        return key in self._links or key in self._unusable

    def _forget(self, key: LinkKey) -> None:
        self.changes += 1
        self._links.pop(key, None)
        self._unusable.pop(key, None)
        self._remarks.pop(key, None)


def _named(key: LinkKey) -> str:
    source_id, target, name = map(shown_name, key)
    return f"link {source_id} -> {target} ({name})"


def _first(lines: Collection[str], more: str) -> list[str]:
    """The first of these, and how many there are besides."""
    first = list(islice(lines, LINES_MAX))
    if len(lines) > LINES_MAX:
        first.append(f"and {len(lines) - LINES_MAX} {more}")
    return first


def _options(config: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, str]:
    return {**config, **{name: secret.reveal() for name, secret in secrets.items()}}


def _secrets(sealed: bytes | None, what: str, unseal: Unseal | None) -> dict[str, Secret]:
    """The secrets of one side of a link, by name."""
    if not sealed:
        return {}
    if unseal is None:
        raise FieldError(f"{what}: found {len(sealed)} sealed bytes, and no keys in the host data to open them")
    try:
        opened = unseal(sealed)
    except ValueError as error:
        raise FieldError(f"{what}: {error}") from None
    try:
        secrets = json.loads(opened)
    except (ValueError, RecursionError):  # whose message may quote a secret
        secrets = None
    if not isinstance(secrets, dict):
        raise FieldError(f"{what}: expected a JSON object to be sealed")
    return {name: Secret.from_json(secret, f"{what}.{shown_name(name)}.") for name, secret in secrets.items()}


def parse_link(payload: bytes) -> Any:
    """The JSON of a `linkdefs.put` or `linkdefs.del`.

    :raises FieldError: it is none
    """
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        raise FieldError(f"found {len(payload)} bytes that are not JSON, expected a link definition") from None


def key_of(value: Any) -> LinkKey | None:
    """The key of a link whose other fields may be wrong."""
    if not isinstance(value, dict):
        return None
    names = (value.get("source_id"), value.get("target"), value.get("name") or "default")
    if not all(isinstance(name, str) and name for name in names):
        return None
    return names[0], names[1], names[2]  # type: ignore[return-value] # checked one by one
