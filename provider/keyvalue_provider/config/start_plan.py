"""What a provider is started as: from host data, or from flags, environment and file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keyvalue_provider.config.command_line import flags_of
from keyvalue_provider.config.sources import (
    Resolved,
    environment_settings,
    file_settings,
    flag_settings,
    host_settings,
    resolve,
)
from keyvalue_provider.config.user_files import read_credentials, read_nkey
from keyvalue_provider.host.host_data import HostData, read_host_data
from keyvalue_provider.host.nkey_text import decode_seed
from keyvalue_provider.host.xkeys import Xkeys
from keyvalue_transport.nats.connection import ConnectionOptions
from keyvalue_transport.nats.tls import SHOWN_MAX, TlsOptions
from keyvalue_transport.nats.urls import split_urls

__all__ = [
    "Launch",
    "hosted",
    "launch_of_host",
    "launch_standalone",
    "refuse_links",
    "resolve_host",
    "resolve_standalone",
    "standalone",
    "tls_of",
    "urls_of_host",
    "user_of",
    "user_of_host",
    "xkeys_of",
]

NAME = "keyvalue-inmemory"


@dataclass(frozen=True, slots=True)
class Launch:
    """As what a provider is started.

    :param prefix: of the subjects of its functions: {lattice}.{provider key} of who calls them
    :param host_data: None: there is no host; signals alone stop it, and there are no links
    :param xkeys: the keys by which the host seals secrets, if it has given any
    :param log_level: unless the option of this name says otherwise; so `structured_logging`
    :param resolve: options from a new configuration of the host
    """

    prefix: str
    connection: ConnectionOptions
    host_data: HostData | None
    xkeys: Xkeys | None
    log_level: str
    structured_logging: bool
    resolve: Callable[[Mapping[str, str]], Resolved]


def hosted(descriptor: int, environment: Mapping[str, str]) -> tuple[Launch, Resolved]:
    """As a host starts it, with host data from a pipe.

    :raises ValueError: what is there can't be used; the message says where it stands
    """
    host_data = read_host_data(descriptor)
    resolved = resolve_host(host_data, host_data.config, environment)
    _refuse_faults(resolved)
    return launch_of_host(host_data, resolved, environment), resolved


def standalone(arguments: argparse.Namespace, environment: Mapping[str, str]) -> tuple[Launch, Resolved]:
    """Without a host.

    :raises ValueError: an option can't be used; the message says where it stands
    """
    resolved = resolve_standalone(arguments, environment)
    _refuse_faults(resolved)
    return launch_standalone(resolved), resolved


def launch_of_host(host_data: HostData, resolved: Resolved, environment: Mapping[str, str]) -> Launch:
    """What `hosted` starts, where nothing is wrong with the options.

    :raises ValueError: something else can't be used
    """
    user_jwt, user_seed = user_of_host(host_data)
    return Launch(
        prefix=f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}",
        connection=_connection(urls_of_host(host_data), host_data.provider_key, resolved, user_jwt, user_seed),
        host_data=host_data,
        xkeys=xkeys_of(host_data),
        log_level=host_data.log_level,
        structured_logging=host_data.structured_logging,
        resolve=lambda config: resolve_host(host_data, config, environment),
    )


def launch_standalone(resolved: Resolved) -> Launch:
    """What `standalone` starts, where nothing is wrong with the options.

    :raises ValueError: something else can't be used
    """
    options = resolved.standalone
    refuse_links(resolved)
    user_jwt, user_seed = user_of(resolved)
    return Launch(
        prefix=options.prefix,
        connection=_connection(split_urls(options.nats), NAME, resolved, user_jwt, user_seed),
        host_data=None,
        xkeys=None,
        log_level="info",
        structured_logging=False,
        resolve=lambda _: resolved,
    )


def urls_of_host(host_data: HostData) -> tuple[str, ...]:
    """Where NATS is.

    :raises ValueError: host data says it badly; so of the next ones
    """
    try:
        return split_urls(host_data.lattice_rpc_url)
    except ValueError as error:
        raise ValueError(f"host data: lattice_rpc_url: {error}") from None


def user_of_host(host_data: HostData) -> tuple[str, str]:
    """JWT and seed of the NATS user, empty where there is none."""
    user_jwt, user_seed = host_data.lattice_rpc_user_jwt.reveal(), host_data.lattice_rpc_user_seed.reveal()
    if user_jwt and not user_seed:
        raise ValueError(
            "host data: lattice_rpc_user_seed: found none beside lattice_rpc_user_jwt, allowed both or none"
        )
    if user_seed:
        try:
            decode_seed("U", user_seed)
        except ValueError as error:
            raise ValueError(f"host data: lattice_rpc_user_seed: {error}") from None
    return user_jwt, user_seed


def user_of(resolved: Resolved) -> tuple[str, str]:
    """The same where there is no host: from the files that the options name."""
    options = resolved.standalone
    if options.credentials is not None and options.nkey is not None:
        raise ValueError("credentials, nkey: found both, allowed one of them")
    name = "nkey" if options.credentials is None else "credentials"
    try:
        if options.credentials is not None:
            return read_credentials(options.credentials)
        return "", "" if options.nkey is None else read_nkey(options.nkey)
    except ValueError as error:
        raise ValueError(f"{resolved.settings[name].origin}: {name}: {error}") from None


def refuse_links(resolved: Resolved) -> None:
    """Without a host nobody has a link.

    :raises ValueError: links are required
    """
    if resolved.options.require_link:
        raise ValueError("require_link: found true, allowed false without a host: there are no links")


def resolve_host(host_data: HostData, config: Mapping[str, str], environment: Mapping[str, str]) -> Resolved:
    """The options of a provider that a host has started, with this configuration."""
    return resolve(environment_settings(environment), host_settings(config, host_data.secrets))


def resolve_standalone(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Resolved:
    """The options of a provider without a host.

    :raises SettingsError: the file can't be read
    """
    return resolve(
        {} if arguments.config is None else file_settings(Path(arguments.config)),
        environment_settings(environment),
        flag_settings(flags_of(arguments)),
        standalone=True,
    )


def _connection(
    urls: tuple[str, ...], name: str, resolved: Resolved, user_jwt: str, user_seed: str
) -> ConnectionOptions:
    options = resolved.options
    return ConnectionOptions(
        urls=urls,
        name=name,
        user_jwt=user_jwt,
        user_seed=user_seed,
        open_timeout_s=options.connect_timeout_ms / 1000,
        path=options.transport,
        tls=tls_of(resolved),
    )


def tls_of(resolved: Resolved) -> TlsOptions | None:
    """The certificates of the options, if they set any.

    :raises ValueError: one can't be used
    """
    tls = resolved.options.tls_options()
    if tls is not None:
        try:
            tls.context()  # only to find out now what is wrong with it
        except ValueError as error:
            raise ValueError(_discreet(f"tls_{error}", resolved)) from None
    return tls


def _discreet(message: str, resolved: Resolved) -> str:
    """What is wrong with a certificate, without a path that came as a secret: it may be no path at all."""
    for setting in resolved.settings.values():
        if setting.is_secret:
            message = message.replace(repr(setting.text[:SHOWN_MAX]), "<redacted>")
    return message


def xkeys_of(host_data: HostData) -> Xkeys | None:
    """The keys that the host has given; None where it has not given both.

    :raises ValueError: one of them is none
    """
    if not (host_data.provider_xkey_private_key and host_data.host_xkey_public_key):
        return None
    try:
        return Xkeys(host_data.provider_xkey_private_key, host_data.host_xkey_public_key)
    except ValueError as error:
        raise ValueError(f"host data: {error}") from None


def _refuse_faults(resolved: Resolved) -> None:
    if resolved.faults:
        raise ValueError("; ".join(resolved.faults))
