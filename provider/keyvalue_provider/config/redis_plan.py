"""The plan of the Redis listener: its options, checked and combined."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from keyvalue_provider.config.options import LINK_OPTIONS, OptionError, ProviderOptions
from keyvalue_provider.host.json_fields import shown_name
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.observe.log import printable
from keyvalue_transport.redis.limits import Address, ListenerLimits
from keyvalue_transport.wrpc.handler import Caller

__all__ = ["RedisPlan", "caller_of", "plan_redis"]

#: The buckets of the databases if no option names them.
DATABASES = (b"default", *(b"%d" % number for number in range(1, 16)))
#: No header of a call over NATS can hold a line break, so no component can call itself a Redis user.
SOURCE = "redis\r\n"


@dataclass(frozen=True, slots=True)
class RedisPlan:
    """The parameters of the listener.

    :ivar users: each user's password, and the values of its own options
    :ivar context: the TLS context for TCP; None for no TLS
    """

    addresses: tuple[Address, ...]
    limits: ListenerLimits
    password: Secret | None
    users: Mapping[str, tuple[Secret, Mapping[str, Any]]] = field(repr=False)
    databases: tuple[bytes, ...]
    socket_mode: int
    may_flush: bool
    context: ssl.SSLContext | None


def caller_of(user: str) -> Caller:
    """Return the caller as whom a user calls the service."""
    return Caller(SOURCE, user)


def plan_redis(options: ProviderOptions) -> RedisPlan | None:
    """Return the plan, or None if no address is set.

    :raises ValueError: an option is unusable, or an address needs a password
    """
    if options.redis_address is None:
        return None
    if options.redis_password is None:
        for address in options.redis_address:
            if not address.path and not _is_loopback(address.host):
                raise ValueError(
                    f"redis_address: {address} is not a loopback address, and redis_password is not set: set a password"
                )
    return RedisPlan(
        options.redis_address,
        options.listener_limits(),
        options.redis_password,
        _users(options),
        options.redis_buckets or DATABASES,
        options.redis_socket_mode,
        options.redis_flush,
        _context(options),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _users(options: ProviderOptions) -> dict[str, tuple[Secret, Mapping[str, Any]]]:
    users: dict[str, tuple[Secret, Mapping[str, Any]]] = {}
    if options.redis_users is None:
        return users
    for name, texts in options.redis_users.options.items():
        place = f"redis_users: user {printable(shown_name(name))}"
        if unknown := LINK_OPTIONS.sort_names(texts).unknown:
            raise ValueError(f"{place}: unknown field {printable(shown_name(unknown[0]))}")
        try:
            own, remarks = LINK_OPTIONS.read(texts)
        except OptionError as error:
            raise ValueError(f"{place}: {error.discreet}") from None
        if remarks:
            raise ValueError(f"{place}: {'; '.join(remarks)}")
        users[name] = options.redis_users.passwords[name], own
    return users


def _context(options: ProviderOptions) -> ssl.SSLContext | None:
    certificate, key, ca = options.redis_tls_certificate, options.redis_tls_key, options.redis_tls_ca
    if certificate is None and key is None and ca is None:
        return None
    from keyvalue_transport.nats.tls import TlsOptions

    tls = TlsOptions(ca=ca or "", certificate=certificate or "", key="" if key is None else key.reveal())
    try:
        return tls.server_context()
    except ValueError as error:
        raise ValueError(f"redis_tls_{error}") from None
