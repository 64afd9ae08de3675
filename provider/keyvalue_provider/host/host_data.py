"""Host data: one line of base64-encoded JSON that a host writes to a provider's standard input."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import select
import time
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from keyvalue_provider.host.json_fields import Fields, shown_name
from keyvalue_provider.host.links import LinkDefinition
from keyvalue_provider.host.secret import Secret
from keyvalue_transport.nats.subjects import check_subject

__all__ = ["HostData", "HostDataError", "parse_host_data", "read_host_data"]

HOST_DATA_BYTES_MAX = 16 * 1024 * 1024
READ_TIMEOUT_S = 5.0
ON_STANDARD_INPUT = "on standard input"

EXPECTED = (
    "expected host data: one line of base64 of a JSON object, as a wasmCloud host writes it, "
    'or: echo \'{"lattice_rpc_url": "127.0.0.1:4222"}\' | base64 | keyvalue-inmemory'
)


class HostDataError(ValueError):
    """The error for malformed host data. The message says which field is wrong, but never shows a value."""


@dataclass(frozen=True, slots=True)
class HostData:
    """Host data, with defaults for missing fields. Fields have the same names as in the JSON. `repr` shows no secrets.

    :ivar given: the names of the fields that the host has set
    :ivar link_definitions: the JSON of well-formed links, with their secrets still sealed
    """

    host_id: str = ""
    lattice_rpc_prefix: str = "default"
    lattice_rpc_url: str = field(default="nats://127.0.0.1:4222", repr=False)
    lattice_rpc_user_jwt: Secret = field(default_factory=lambda: Secret(""))
    lattice_rpc_user_seed: Secret = field(default_factory=lambda: Secret(""))
    provider_key: str = "keyvalue-inmemory"
    link_name: str = "default"
    instance_id: str = ""
    link_definitions: tuple[Any, ...] = field(default=(), repr=False)
    cluster_issuers: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict, repr=False)
    env_values: Mapping[str, str] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    host_xkey_public_key: str = ""
    provider_xkey_private_key: Secret = field(default_factory=lambda: Secret(""))
    default_rpc_timeout_ms: int = 2000
    structured_logging: bool = False
    log_level: str = "info"
    otel_config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)


def read_host_data(
    descriptor: int, timeout_s: float = READ_TIMEOUT_S, accepts_json: bool = False, where: str = ON_STANDARD_INPUT
) -> HostData:
    """Read host data from a pipe or file, without waiting for its end. Wait for data at most `timeout_s`.

    :param accepts_json: True to accept JSON that is not encoded, too
    :param where: the place of the host data in errors
    :raises HostDataError: the host data is malformed, or incomplete after `timeout_s`
    """
    try:
        return _read_host_data(descriptor, timeout_s, accepts_json, where)
    except OSError as error:
        raise HostDataError(f"can't read host data {where} ({error.strerror}), {EXPECTED}") from None


def _read_host_data(descriptor: int, timeout_s: float, accepts_json: bool, where: str) -> HostData:
    deadline_s = time.monotonic() + timeout_s
    text = b""
    while True:
        left_s = max(0.0, deadline_s - time.monotonic())
        if not select.select([descriptor], [], [], left_s)[0]:
            if not text.strip():
                raise HostDataError(f"found nothing {where} within {timeout_s:g} s, {EXPECTED}")
            return parse_host_data(
                text, accepts_json, where
            )  # raises an error that says what the incomplete text lacks
        piece = os.read(descriptor, 64 * 1024)
        text += piece
        if len(text) > HOST_DATA_BYTES_MAX:
            raise HostDataError(f"found more than {HOST_DATA_BYTES_MAX} bytes {where}, {EXPECTED}")
        if not piece:
            return parse_host_data(text, accepts_json, where)
        if piece.endswith(b"\n") and _is_whole(text, accepts_json):
            return parse_host_data(text, accepts_json, where)


def parse_host_data(text: bytes, accepts_json: bool = False, where: str = ON_STANDARD_INPUT) -> HostData:
    """Return the host data in a base64 text, which may be wrapped over several lines.

    :param accepts_json: True to accept JSON that is not encoded, too
    :param where: the place of the text in errors
    :raises HostDataError: the text is malformed
    """
    if not text.strip():
        raise HostDataError(f"found nothing {where}, {EXPECTED}")
    value = _decoded(text, accepts_json, where)
    try:
        host_data = _from_json(value)
        for name in ("lattice_rpc_prefix", "provider_key", "link_name"):
            check_subject(getattr(host_data, name), name)
    except ValueError as error:
        raise HostDataError(f"host data: {error}") from None
    return host_data


def _is_whole(text: bytes, accepts_json: bool) -> bool:
    """Return True if waiting for more text is pointless: the text is complete, or can never be host data."""
    try:
        _decoded(text, accepts_json)
    except HostDataError:
        return not (accepts_json and _is_json(text)) and re.search(rb"[^A-Za-z0-9+/=\s]", text) is not None
    return True


def _is_json(text: bytes) -> bool:
    """Return True if a text begins like a JSON object. Base64 cannot begin like this."""
    return text.removeprefix(BOM_UTF8).lstrip().startswith(b"{")


def _decoded(text: bytes, accepts_json: bool, where: str = ON_STANDARD_INPUT) -> Any:
    text = text.removeprefix(BOM_UTF8)
    if accepts_json and _is_json(text):
        encoding, decoded = "text", text
    else:
        encoding, joined = "base64", b"".join(text.split())
        try:
            decoded = base64.b64decode(joined, validate=True)
        except binascii.Error:
            raise HostDataError(f"found {len(joined)} characters {where} that are not base64, {EXPECTED}") from None
    try:
        return json.loads(decoded)
    except (ValueError, RecursionError):
        raise HostDataError(f"found {encoding} of {len(decoded)} bytes that are not JSON, {EXPECTED}") from None


def _from_json(value: Any) -> HostData:
    fields = Fields(value)
    defaults = HostData()
    return HostData(
        host_id=fields.text("host_id"),
        lattice_rpc_prefix=fields.text("lattice_rpc_prefix", defaults.lattice_rpc_prefix),
        lattice_rpc_url=fields.text("lattice_rpc_url", defaults.lattice_rpc_url),
        lattice_rpc_user_jwt=Secret(fields.text("lattice_rpc_user_jwt")),
        lattice_rpc_user_seed=Secret(fields.text("lattice_rpc_user_seed")),
        provider_key=fields.text("provider_key", defaults.provider_key),
        link_name=fields.text("link_name", defaults.link_name),
        instance_id=fields.text("instance_id"),
        link_definitions=_links(fields.array("link_definitions")),
        cluster_issuers=fields.texts("cluster_issuers"),
        config=fields.text_map("config"),
        env_values=fields.text_map("env_values"),
        secrets={
            name: Secret.from_json(secret, f"secrets.{shown_name(name)}.")
            for name, secret in fields.mapping("secrets").items()
        },
        host_xkey_public_key=fields.text("host_xkey_public_key"),
        provider_xkey_private_key=Secret(fields.text("provider_xkey_private_key")),
        default_rpc_timeout_ms=fields.number("default_rpc_timeout_ms", defaults.default_rpc_timeout_ms),
        structured_logging=fields.flag("structured_logging"),
        log_level=fields.text("log_level", defaults.log_level),
        otel_config=fields.mapping("otel_config"),
        given=frozenset(name for name in value if value[name] not in (None, "")),
    )


def _links(values: list[Any]) -> tuple[Any, ...]:
    """Check that all values are links, and return them unchanged."""
    for index, value in enumerate(values):
        LinkDefinition.from_json(value, f"link_definitions[{index}].", unseal=lambda _: b"{}")
    return tuple(values)
