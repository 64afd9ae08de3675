"""`keyvalue-inmemory config check`: every option, where it comes from, and what is wrong. Connects to nothing.

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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from keyvalue_provider.config.command_line import flags_of
from keyvalue_provider.config.options import OPTIONS, STANDALONE_OPTIONS, ProviderOptions
from keyvalue_provider.config.sources import Resolved
from keyvalue_provider.config.start_plan import (
    refuse_links,
    resolve_host,
    resolve_standalone,
    tls_of,
    urls_of_host,
    user_of,
    user_of_host,
    xkeys_of,
)
from keyvalue_provider.config.user_files import shown_path
from keyvalue_provider.host.host_data import HostData, read_host_data
from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import Links, key_of
from keyvalue_provider.host.xkeys import Xkeys
from keyvalue_provider.keyvalue.policy import Policy
from keyvalue_provider.observe.log import printable
from keyvalue_provider.watching.watchers import INTERFACE, watch_of
from keyvalue_transport.nats.urls import redacted_url

__all__ = ["Report", "check"]

S = TypeVar("S")
T = TypeVar("T")

STANDARD_INPUT = 0
HOST_DATA = "host data"
NAME_COLUMN, VALUE_COLUMN = 24, 32


@dataclass(slots=True)
class Report:
    """What is found out about a configuration.

    :ivar options: value and origin of each, by name; a secret shows as `<redacted>`
    :ivar links: a line each, with the names of the options that it sets
    :ivar remarks: what is odd, and stops nothing
    :ivar faults: what keeps the provider from starting, or a link from being used
    """

    options: dict[str, tuple[str, str]] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def json(self) -> str:
        """One object, of options, links, remarks and faults."""
        options = {name: {"value": value, "from": origin} for name, (value, origin) in self.options.items()}
        return json.dumps({"options": options, "links": self.links, "ignored": self.remarks, "wrong": self.faults})

    def text(self) -> str:
        """For people."""
        lines = [_row("option", "value", "from"), *(_row(name, *shown) for name, shown in self.options.items())]
        lines += [f"link {link}" for link in self.links]
        lines += [f"ignored: {remark}" for remark in self.remarks]
        lines += [f"wrong: {fault}" for fault in self.faults] or ["nothing is wrong"]
        return "\n".join(map(printable, lines))


def check(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Print the report of a command line; the exit code: 2 where something is wrong, else 0.

    :raises ValueError: there is nothing to be reported on; the message says where it stands
    """
    report = Report()
    if arguments.host_data is None:
        resolved = resolve_standalone(arguments, environment)
        _describe(report, resolved, (STANDALONE_OPTIONS, resolved.standalone), (OPTIONS, resolved.options))
        _describe_log(report, "info", False, "default")
        for part in (refuse_links, user_of, tls_of):
            _try(report, part, resolved)
    else:
        if given := [name for name, value in {"config": arguments.config, **flags_of(arguments)}.items() if value]:
            raise ValueError(
                f"--host-data: found also --{given[0].replace('_', '-')}, allowed alone: a host gives all options"
            )
        host_data = _read(arguments.host_data)
        resolved = resolve_host(host_data, host_data.config, environment)
        report.options["nats"] = _shown("nats", host_data.lattice_rpc_url), HOST_DATA
        report.options["prefix"] = f"{host_data.lattice_rpc_prefix}.{host_data.provider_key}", HOST_DATA
        _describe(report, resolved, (OPTIONS, resolved.options))
        _describe_log(report, host_data.log_level, host_data.structured_logging, HOST_DATA)
        _try(report, urls_of_host, host_data)
        _try(report, user_of_host, host_data)
        xkeys = _try(report, xkeys_of, host_data)
        _try(report, tls_of, resolved)
        _describe_links(report, host_data, xkeys, resolved.options)
    print(report.json() if arguments.json else report.text())  # noqa: T201 # what was asked for
    return 2 if report.faults else 0


def _read(path: str) -> HostData:
    if path == "-":
        return read_host_data(STANDARD_INPUT)
    try:
        with open(path, "rb") as file:
            return read_host_data(file.fileno())
    except OSError as error:
        raise ValueError(f"--host-data: {path}: {error.strerror}") from None


def _describe(report: Report, resolved: Resolved, *tables: tuple[Iterable[str], object]) -> None:
    for names, options in tables:
        for name in names:
            setting = resolved.settings.get(name)
            shown = "<redacted>" if setting is not None and setting.is_secret else _shown(name, getattr(options, name))
            if name in resolved.wrong:
                shown = "-"  # it does not start with the default in its place
            report.options[name] = shown, "default" if setting is None else setting.origin
    report.faults += resolved.faults
    for origin, names in resolved.unknown.items():
        report.remarks.append(f"{origin}: no option has this name: {', '.join(names)}")


def _shown(name: str, value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case bytes():
            return value.decode()
        case frozenset():
            return ",".join(sorted(bucket.decode() for bucket in value))
        case str() if name == "nats":
            return ", ".join(redacted_url(url.strip()) for url in value.split(","))
        case str() if name in ("credentials", "nkey"):
            return shown_path(value)
        case str() if "-----BEGIN" in value:
            return "the text of a PEM file"
    return str(value)


def _describe_log(report: Report, level: str, is_structured: bool, origin: str) -> None:
    """The log's form, where no option says it."""
    for name, shown in (("log_level", level), ("structured_logging", _shown("", is_structured))):
        if report.options[name][0] == "none":
            report.options[name] = shown, origin


def _try(report: Report, part: Callable[[S], T], source: S) -> T | None:
    """A part of a start; None where it would find something wrong beyond the options, which is reported."""
    try:
        return part(source)
    except ValueError as error:
        report.faults.append(str(error))
        return None


def _describe_links(report: Report, host_data: HostData, xkeys: Xkeys | None, options: ProviderOptions) -> None:
    logging.getLogger().addHandler(logging.NullHandler())  # what is warned of stands in the report
    links = Links(host_data.provider_key, None if xkeys is None else xkeys.open)
    for value in host_data.link_definitions:
        try:
            links.put_value(value)
        except FieldError as error:
            key = key_of(value)
            if key is None or not links.knows(key):  # else it stands in `unusable`
                report.faults.append(f"a link of the host data: {error}")
    Policy(options.store_options(), links, options)
    for link in links.callees():
        if INTERFACE in link.interfaces:
            watch_of(link, links, host_data.lattice_rpc_prefix)
    report.links += [str(link) for link in links]
    report.remarks += links.remarks
    report.faults += links.unusable


def _row(name: str, value: str, origin: str) -> str:
    return f"{name:<{NAME_COLUMN}}{value:<{VALUE_COLUMN}}  {origin}".rstrip()
