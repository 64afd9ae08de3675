"""The plan of a start: which subjects, which connection, which options. It comes from host data, or from flags, environment and file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from keyvalue_provider.config.command_line import flags_of
from keyvalue_provider.config.sources import (
    Configuration,
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
    "StartPlan",
    "plan_hosted",
    "plan_standalone",
    "read_hosted_plan",
    "read_standalone_plan",
    "refuse_links",
    "resolve_host",
    "resolve_standalone",
    "tls_of",
    "urls_of_host",
    "user_of",
    "user_of_host",
    "xkeys_of",
]

NAME = "keyvalue-inmemory"


@dataclass(frozen=True, slots=True)
class StartPlan:
    """How a provider starts, besides its options.

    :param prefix: of the subjects that callers use: {lattice}.{provider key}
    :param host_data: None: there is no host; only signals stop it, and there are no links
    :param xkeys: the keys with which the host seals secrets, if it gave any
    :param log_level: unless the option of this name is set; `structured_logging` likewise
    :param resolve: returns the options of a new configuration from the host
    """

    prefix: str
    connection: ConnectionOptions
    host_data: HostData | None
    xkeys: Xkeys | None
    log_level: str
    structured_logging: bool
    resolve: Callable[[Mapping[str, str]], Configuration]


def read_hosted_plan(descriptor: int, environment: Mapping[str, str]) -> tuple[StartPlan, Configuration]:
    """Return the plan of a start by a host, from the host data in a pipe, and its options.

    :raises ValueError: host data or an option can't be used; the message says where it stands
    """
    host_data = read_host_data(descriptor)
    configuration = resolve_host(host_data, host_data.config, environment)
    _refuse_faults(configuration)
    return plan_hosted(host_data, configuration, environment), configuration


def read_standalone_plan(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[StartPlan, Configuration]:
    """Return the plan of a start without a host, from the command line, and its options.

    :raises ValueError: an option can't be used; the message says where it stands
    """
    configuration = resolve_standalone(arguments, environment)
    _refuse_faults(configuration)
    return plan_standalone(configuration), configuration


def plan_hosted(host_data: HostData, configuration: Configuration, environment: Mapping[str, str]) -> StartPlan:
    """Return the plan of a start by a host, whose options have no fault.

    :raises ValueError: something else can't be used
    """
    user_jwt, user_seed = user_of_host(host_data)
    return StartPlan(
        prefix=f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}",
        connection=_connection(urls_of_host(host_data), host_data.provider_key, configuration, user_jwt, user_seed),
        host_data=host_data,
        xkeys=xkeys_of(host_data),
        log_level=host_data.log_level,
        structured_logging=host_data.structured_logging,
        resolve=lambda config: resolve_host(host_data, config, environment),
    )


def plan_standalone(configuration: Configuration) -> StartPlan:
    """Return the plan of a start without a host, whose options have no fault.

    :raises ValueError: something else can't be used
    """
    options = configuration.standalone
    refuse_links(configuration)
    user_jwt, user_seed = user_of(configuration)
    return StartPlan(
        prefix=options.prefix,
        connection=_connection(split_urls(options.nats), NAME, configuration, user_jwt, user_seed),
        host_data=None,
        xkeys=None,
        log_level="info",
        structured_logging=False,
        resolve=lambda _: configuration,
    )


def urls_of_host(host_data: HostData) -> tuple[str, ...]:
    """Return the URLs of NATS.

    :raises ValueError: the host data has none that can be used
    """
    try:
        return split_urls(host_data.lattice_rpc_url)
    except ValueError as error:
        raise ValueError(f"host data: lattice_rpc_url: {error}") from None


def user_of_host(host_data: HostData) -> tuple[str, str]:
    """Return JWT and seed of the NATS user, empty if there is none.

    :raises ValueError: the host data has none that can be used
    """
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


def user_of(configuration: Configuration) -> tuple[str, str]:
    """Return the same without a host: from the files that the options name.

    :raises ValueError: a file can't be used
    """
    options = configuration.standalone
    if options.credentials is not None and options.nkey is not None:
        raise ValueError("credentials, nkey: found both, allowed one of them")
    name = "nkey" if options.credentials is None else "credentials"
    try:
        if options.credentials is not None:
            return read_credentials(options.credentials)
        return "", "" if options.nkey is None else read_nkey(options.nkey)
    except ValueError as error:
        raise ValueError(f"{configuration.settings[name].origin}: {name}: {error}") from None


def refuse_links(configuration: Configuration) -> None:
    """Refuse to require links where there is no host to give them.

    :raises ValueError: links are required
    """
    if configuration.options.require_link:
        raise ValueError("require_link: found true, allowed false without a host: there are no links")


def resolve_host(host_data: HostData, config: Mapping[str, str], environment: Mapping[str, str]) -> Configuration:
    """Return the options of a provider that a host has started, with this configuration."""
    return resolve(environment_settings(environment), host_settings(config, host_data.secrets))


def resolve_standalone(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Configuration:
    """Return the options of a provider without a host.

    :raises SourceError: the file can't be read
    """
    return resolve(
        {} if arguments.config is None else file_settings(Path(arguments.config)),
        environment_settings(environment),
        flag_settings(flags_of(arguments)),
        standalone=True,
    )


def _connection(
    urls: tuple[str, ...], name: str, configuration: Configuration, user_jwt: str, user_seed: str
) -> ConnectionOptions:
    options = configuration.options
    return ConnectionOptions(
        urls=urls,
        name=name,
        user_jwt=user_jwt,
        user_seed=user_seed,
        open_timeout_s=options.connect_timeout_ms / 1000,
        path=options.transport,
        tls=tls_of(configuration),
    )


def tls_of(configuration: Configuration) -> TlsOptions | None:
    """Return the certificates that the options set, if any.

    :raises ValueError: one can't be used
    """
    tls = configuration.options.tls_options()
    if tls is not None:
        try:
            tls.context()  # only to find out now what is wrong with it
        except ValueError as error:
            raise ValueError(_discreet(f"tls_{error}", configuration)) from None
    return tls


def _discreet(message: str, configuration: Configuration) -> str:
    """Return what is wrong with a certificate, without a path that came as a secret: it may be no path at all."""
    for setting in configuration.settings.values():
        if setting.is_secret:
            message = message.replace(repr(setting.text[:SHOWN_MAX]), "<redacted>")
    return message


def xkeys_of(host_data: HostData) -> Xkeys | None:
    """Return the keys that the host has given, or None if it has not given both.

    :raises ValueError: one of them is malformed
    """
    if not (host_data.provider_xkey_private_key and host_data.host_xkey_public_key):
        return None
    try:
        return Xkeys(host_data.provider_xkey_private_key, host_data.host_xkey_public_key)
    except ValueError as error:
        raise ValueError(f"host data: {error}") from None


def _refuse_faults(configuration: Configuration) -> None:
    if configuration.faults:
        raise ValueError("; ".join(configuration.faults))
