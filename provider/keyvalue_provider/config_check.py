"""The command `keyvalue-inmemory config check`. It prints every option with its value and source, and all faults.

It does not connect to NATS.

option              value       from
page_keys           500         config
...
link component -> kv (default), store; options set: bucket_prefix
wrong: config: page_bytes: found 'x', allowed a whole number from 1
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from keyvalue_provider.config.command_line import flags_of
from keyvalue_provider.config.declaration import OptionTable
from keyvalue_provider.config.options import (
    JETSTREAM,
    LINK_OPTIONS,
    OPTIONS,
    STANDALONE_OPTIONS,
    WATCHING_LINK_OPTIONS,
    ProviderOptions,
)
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import (
    redis_of,
    refuse_links,
    resolve_host,
    resolve_standalone,
    tls_of,
    urls_of_host,
    user_of,
    user_of_host,
    xkeys_of,
)
from keyvalue_provider.host.host_data import HostData, read_host_data
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import LinkDefinition, Links, key_of
from keyvalue_provider.host.xkeys import Xkeys
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.observe.log import printable
from keyvalue_provider.watching.watchers import INTERFACE, WATCHES_NOTHING, watch_of

__all__ = ["Report", "check"]

S = TypeVar("S")
T = TypeVar("T")

STANDARD_INPUT = 0
NAME_COLUMN, VALUE_COLUMN = 27, 32


@dataclass(slots=True)
class Report:
    """The report of `config check` on a configuration.

    :ivar options: value and origin of each option, by name; a secret is shown as `<redacted>`
    :ivar links: one line for each link, with the names of the options that the link sets
    :ivar remarks: harmless findings, such as deprecated names
    :ivar faults: reasons why the provider would not start or a link is unusable; also unknown names, although a start
        ignores them
    """

    options: dict[str, tuple[str, str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def json(self) -> str:
        """Return the report as one JSON object."""
        options = {name: {"value": value, "from": origin} for name, (value, origin) in self.options.items()}
        return json.dumps({"options": options, "links": self.links, "remarks": self.remarks, "wrong": self.faults})

    def text(self) -> str:
        """Return the report as lines of text."""
        lines = [_row("option", "value", "from"), *(_row(name, *shown) for name, shown in self.options.items())]
        lines += [f"link {link}" for link in self.links]
        lines += [f"remark: {remark}" for remark in self.remarks]
        lines += [f"wrong: {fault}" for fault in self.faults] or ["nothing is wrong"]
        return "\n".join(map(printable, lines))


def check(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the report for a command line. Return the exit code: 2 if something is wrong, else 0.

    :raises ValueError: the host data, the file or the combination of flags is unusable; the message says which
    """
    report = Report()
    if arguments.host_data is None:
        configuration = resolve_standalone(arguments, environment)
        _describe(
            report, configuration, (STANDALONE_OPTIONS, configuration.standalone), (OPTIONS, configuration.options)
        )
        _describe_log(report, HostData())
        for part in (refuse_links, user_of, tls_of, redis_of):
            _try(report, part, configuration)
        _check_paths(report, configuration)
    else:
        if given := [name for name, value in {"config": arguments.config, **flags_of(arguments)}.items() if value]:
            raise ValueError(
                f"--host-data: not allowed together with --{given[0].replace('_', '-')}; the host data has all options"
            )
        host_data = _read(arguments.host_data)
        configuration = resolve_host(host_data, host_data.config, environment)
        nats, prefix = host_data.lattice_rpc_url, f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}"
        report.options["nats"] = STANDALONE_OPTIONS["nats"].shown(nats), _origin(host_data, "lattice_rpc_url")
        report.options["prefix"] = prefix, _origin(host_data, "lattice_rpc_prefix", "provider_key")
        _describe(report, configuration, (OPTIONS, configuration.options))
        _describe_log(report, host_data)
        _try(report, urls_of_host, host_data)
        _try(report, user_of_host, host_data)
        xkeys = _try(report, xkeys_of, host_data)
        _try(report, tls_of, configuration)
        _try(report, redis_of, configuration)
        _check_paths(report, configuration)
        _describe_links(report, host_data, xkeys, configuration.options)
    print(report.json() if arguments.json else report.text())  # noqa: T201 # the command's output
    return 2 if report.faults else 0


def _read(path: str) -> HostData:
    if path == "-":
        return read_host_data(STANDARD_INPUT, accepts_json=True)
    try:
        with open(path, "rb") as file:
            return read_host_data(file.fileno(), accepts_json=True, where=f"in {path}")
    except OSError as error:
        raise ValueError(f"--host-data: {path}: {error.strerror}") from None


def _describe(report: Report, configuration: Configuration, *tables: tuple[OptionTable, object]) -> None:
    for table, options in tables:
        for name, option in table.items():
            setting = configuration.settings.get(name)
            if name in configuration.wrong:
                shown = "-"  # do not show the default, because the provider would not start
            elif setting is not None and setting.is_secret:
                shown = "<redacted>"
            else:
                shown = option.shown(getattr(options, name))
            report.options[name] = shown, "default" if setting is None else setting.origin
    report.faults += configuration.faults
    report.remarks += configuration.remarks
    for origin, names in configuration.unknown.items():
        report.faults.append(_unknown(origin, names))


def _describe_log(report: Report, host_data: HostData) -> None:
    """Report the log level and format in use, if no option sets them."""
    for name, shown in (
        ("log_level", host_data.log_level),
        ("structured_logging", str(host_data.structured_logging).lower()),
    ):
        if report.options[name][0] == "none":
            report.options[name] = shown, _origin(host_data, name)


def _origin(host_data: HostData, *fields: str) -> str:
    return "default" if host_data.given.isdisjoint(fields) else "host data"


def _try(report: Report, part: Callable[[S], T], source: S) -> T | None:
    """Run one step of a start. If the step fails, add the error to the report and return None."""
    try:
        return part(source)
    except ValueError as error:
        report.faults.append(str(error))
        return None


def _check_paths(report: Report, configuration: Configuration) -> None:
    """Report each path at which a start could not use or create a file or a socket."""
    options = configuration.options
    paths = [("redis_address", address.path) for address in options.redis_address or () if address.path]
    if options.snapshot_path is not None:
        paths.append(("snapshot_path", options.snapshot_path))
    for name, path in paths:
        setting = configuration.settings[name]
        where = f"{setting.origin}: {name}: {'<redacted>' if setting.is_secret else path}"
        if os.path.isdir(path):
            report.faults.append(f"{where}: found a directory, expected the path of a file")
        elif not os.path.isdir(os.path.dirname(path) or ".") and (name, options.store) != ("snapshot_path", JETSTREAM):
            report.faults.append(f"{where}: the directory does not exist")


def _describe_links(report: Report, host_data: HostData, xkeys: Xkeys | None, options: ProviderOptions) -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # the report shows the warnings already
    links = Links(host_data.provider_key, None if xkeys is None else xkeys.open)
    for value in host_data.link_definitions:
        try:
            links.put_value(value)
        except FieldError as error:
            key = key_of(value)
            if key is None or not links.knows(key):  # otherwise `links.unusable` has the fault
                report.faults.append(f"a link of the host data: {error}")
    Policy(options.store_options(), links, options)
    for link in _watching(links):
        watch_of(link, links, host_data.lattice_rpc_prefix)
    report.links += [str(link) for link in links]
    report.faults += links.unusable
    for link in links.callers():
        _describe_names(report, link, LINK_OPTIONS, link.target_options)
    for link in _watching(links):
        _describe_names(report, link, WATCHING_LINK_OPTIONS, link.source_options)
        if "watch" not in link.source_options:
            report.remarks.append(f"{_named(link)}: {WATCHES_NOTHING}")


def _watching(links: Links) -> Iterator[LinkDefinition]:
    return (link for link in links.callees() if INTERFACE in link.interfaces)


def _describe_names(report: Report, link: LinkDefinition, table: OptionTable, config: Iterable[str]) -> None:
    names = table.sort_names(config)
    report.remarks += [f"{_named(link)}: {remark}" for remark in names.deprecated.values()]
    if names.unknown:
        report.faults.append(_unknown(_named(link), names.unknown))


def _named(link: LinkDefinition) -> str:
    return f"link {link.source_id} -> {link.target} ({link.name})"


def _unknown(where: str, names: Iterable[str]) -> str:
    return f"{where}: no option has this name: {', '.join(names)}"


def _row(name: str, value: str, origin: str) -> str:
    return f"{name:<{NAME_COLUMN}}{value:<{VALUE_COLUMN}}  {origin}".rstrip()
