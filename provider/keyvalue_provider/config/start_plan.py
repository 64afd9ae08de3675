"""The start plan: subjects, connection and keys. It comes from host data, or from the options of `serve`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import argparse  # only for type checkers, because a host gives no arguments

    from keyvalue_provider.config.redis_plan import RedisPlan

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
    """The parameters of a start that are not in ProviderOptions.

    :param prefix: the prefix of the subjects that callers use: {lattice}.{provider key}
    :param host_data: None without a host; then there are no links, and only signals stop the provider
    :param xkeys: the keys that open sealed secrets, or None if the host data has no xkeys
    :param log_level: the log level if the option `log_level` is not set
    :param structured_logging: True to log JSON if the option `structured_logging` is not set
    :param resolve: reads the sources of options again. A host gives its new configuration
    :param redis: the parameters of the Redis listener, or None
    :param allows_split: False to refuse the start if another instance serves the prefix with other keys
    """

    prefix: str
    connection: ConnectionOptions
    host_data: HostData | None
    xkeys: Xkeys | None
    log_level: str
    structured_logging: bool
    resolve: Callable[[Mapping[str, str]], Configuration]
    allows_split: bool
    redis: RedisPlan | None


def read_hosted_plan(descriptor: int, environment: Mapping[str, str]) -> tuple[StartPlan, Configuration]:
    """Read host data from a pipe. Return the start plan and the configuration.

    :raises ValueError: host data or an option is wrong; the message says where
    """
    host_data = read_host_data(descriptor)
    configuration = resolve_host(host_data, host_data.config, environment)
    _refuse_faults(configuration)
    return plan_hosted(host_data, configuration, environment), configuration


def read_standalone_plan(
    arguments: argparse.Namespace, environment: Mapping[str, str]
) -> tuple[StartPlan, Configuration]:
    """Return the start plan and the configuration for a start without a host.

    :raises ValueError: an option is wrong; the message says where
    """
    configuration = resolve_standalone(arguments, environment)
    _refuse_faults(configuration)
    return plan_standalone(configuration, lambda: resolve_standalone(arguments, environment)), configuration


def plan_hosted(host_data: HostData, configuration: Configuration, environment: Mapping[str, str]) -> StartPlan:
    """Return the plan for a start by a host.

    :param configuration: a configuration without faults
    :raises ValueError: the URLs, the user, a certificate or an xkey is wrong
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
        allows_split=True,  # a host starts a new instance while the old one stops
        redis=redis_of(configuration),
    )


def plan_standalone(configuration: Configuration, read_again: Callable[[], Configuration]) -> StartPlan:
    """Return the plan for a start without a host.

    :param configuration: a configuration without faults
    :param read_again: reads the file of options again
    :raises ValueError: links are required, or the user or a certificate is wrong
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
        resolve=lambda _: read_again(),
        allows_split=options.allow_split,
        redis=redis_of(configuration),
    )


def urls_of_host(host_data: HostData) -> tuple[str, ...]:
    """Return the URLs of the NATS servers in the host data.

    :raises ValueError: there is no URL, or one is malformed
    """
    try:
        return split_urls(host_data.lattice_rpc_url)
    except ValueError as error:
        raise ValueError(f"host data: lattice_rpc_url: {error}") from None


def user_of_host(host_data: HostData) -> tuple[str, str]:
    """Return the JWT and seed of the NATS user in the host data. A missing part is an empty string.

    :raises ValueError: there is a JWT without a seed, or the seed is malformed
    """
    user_jwt, user_seed = host_data.lattice_rpc_user_jwt.reveal(), host_data.lattice_rpc_user_seed.reveal()
    if user_jwt and not user_seed:
        raise ValueError("host data: lattice_rpc_user_seed: the seed is missing, and lattice_rpc_user_jwt needs it")
    if user_seed:
        try:
            decode_seed("U", user_seed)
        except ValueError as error:
            raise ValueError(f"host data: lattice_rpc_user_seed: {error}") from None
    return user_jwt, user_seed


def user_of(configuration: Configuration) -> tuple[str, str]:
    """Read the NATS user's JWT and seed from the files that the options name. A missing part is an empty string.

    :raises ValueError: both options are set, or a file is unreadable or malformed
    """
    options = configuration.standalone
    if options.credentials is not None and options.nkey is not None:
        raise ValueError("credentials, nkey: both are set; set only one of them")
    name = "nkey" if options.credentials is None else "credentials"
    try:
        if options.credentials is not None:
            return read_credentials(options.credentials)
        return "", "" if options.nkey is None else read_nkey(options.nkey)
    except ValueError as error:
        raise ValueError(f"{configuration.settings[name].origin}: {name}: {error}") from None


def refuse_links(configuration: Configuration) -> None:
    """Check that links are not required. Without a host, there are no links.

    :raises ValueError: links are required
    """
    if configuration.options.require_link:
        raise ValueError("require_link: without a host there are no links, so this must be false")


def resolve_host(host_data: HostData, config: Mapping[str, str], environment: Mapping[str, str]) -> Configuration:
    """Return the combined configuration of a provider that a host has started."""
    return resolve(environment_settings(environment), host_settings(config, host_data.secrets))


def resolve_standalone(arguments: argparse.Namespace, environment: Mapping[str, str]) -> Configuration:
    """Return the combined configuration of a provider without a host.

    :raises SourceError: the file is unreadable
    """
    from keyvalue_provider.config.command_line import flags_of  # here, so that a start by a host does not wait for it

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
    """Return the TLS options, or None if none is set.

    :raises ValueError: a certificate or key is unusable
    """
    tls = configuration.options.tls_options()
    if tls is not None:
        try:
            tls.context()  # raises if a certificate or key is unusable
        except ValueError as error:
            raise ValueError(_discreet(f"tls_{error}", configuration)) from None
    return tls


def redis_of(configuration: Configuration) -> RedisPlan | None:
    """Return the plan of the Redis listener, or None if it is off.

    :raises ValueError: an option is unusable, or an address needs a password
    """
    if configuration.options.redis_address is None:
        return None
    from keyvalue_provider.config.redis_plan import plan_redis  # here, because a start without it does not need it

    try:
        return plan_redis(configuration.options)
    except ValueError as error:
        raise ValueError(_discreet(str(error), configuration)) from None


def _discreet(message: str, configuration: Configuration) -> str:
    """Redact secret settings in an error about a certificate. They may hold a key by mistake, instead of a path."""
    for setting in configuration.settings.values():
        if setting.is_secret:
            message = message.replace(repr(setting.text[:SHOWN_MAX]), "<redacted>")
    return message


def xkeys_of(host_data: HostData) -> Xkeys | None:
    """Return the xkeys in the host data, or None if a key is missing.

    :raises ValueError: a key is malformed
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
