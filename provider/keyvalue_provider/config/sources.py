"""Where options come from, and which of several counts. The later of these goes before the earlier:

launched by a host   environment (a host passes none), the host's configuration, the host's secrets
standalone           file, environment, flags
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from keyvalue_provider.config.options import (
    OPTIONS,
    STANDALONE_OPTIONS,
    OptionError,
    ProviderOptions,
    StandaloneOptions,
)
from keyvalue_provider.host.secret import Secret

__all__ = [
    "Resolved",
    "Setting",
    "SettingsError",
    "environment_settings",
    "file_settings",
    "flag_settings",
    "host_settings",
    "resolve",
]

VARIABLE_PREFIX = "KEYVALUE_"
FILE_BYTES_MAX = 1024 * 1024


class SettingsError(ValueError):
    """A source can't be read; the message names it, what was found and what is allowed."""


class Setting(NamedTuple):
    """What one source says of one option.

    :ivar origin: the source, for people
    :ivar fault: what is wrong with it before it is looked at as an option
    """

    text: str
    origin: str
    is_secret: bool = False
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """What all sources together say.

    :ivar settings: what counts, by name; what is not there has its default
    :ivar faults: what is wrong, a line each, without secrets; the options are as if it were not set
    :ivar wrong: the names of these
    :ivar unknown: names that are no options, by origin
    """

    options: ProviderOptions
    standalone: StandaloneOptions
    settings: Mapping[str, Setting]
    faults: tuple[str, ...]
    wrong: frozenset[str]
    unknown: Mapping[str, tuple[str, ...]]


def environment_settings(environment: Mapping[str, str]) -> dict[str, Setting]:
    """What the environment sets: KEYVALUE_ and the name in capitals. Other variables are not ours."""
    return {
        variable.removeprefix(VARIABLE_PREFIX).lower(): Setting(text, "environment")
        for variable, text in environment.items()
        if variable.startswith(VARIABLE_PREFIX)
    }


def host_settings(config: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, Setting]:
    """What a host says. A secret can stand in for any option."""
    return {
        **{name: Setting(text, "config") for name, text in config.items()},
        **{name: Setting(secret.reveal(), "secrets", is_secret=True) for name, secret in secrets.items()},
    }


def file_settings(path: Path) -> dict[str, Setting]:
    """The options in a TOML file: `name = value` lines, where a value is a string, a whole number, a boolean, or an array of strings.

    :raises SettingsError: it can't be read, or holds something else
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from None
    if len(text) > FILE_BYTES_MAX:
        raise SettingsError(f"{path}: found more than {FILE_BYTES_MAX} bytes")
    try:
        values = tomllib.loads(text.decode())
    except UnicodeDecodeError:
        raise SettingsError(f"{path}: found bytes that are not UTF-8, allowed TOML") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is no TOMLDecodeError
        raise SettingsError(f"{path}: {error}") from None
    return {name: _setting(value, str(path)) for name, value in values.items()}


def flag_settings(flags: Mapping[str, str | None]) -> dict[str, Setting]:
    """Options from the command line, by name; None: the flag was not given."""
    return {name: Setting(text, "command line") for name, text in flags.items() if text is not None}


def resolve(*sources: Mapping[str, Setting], standalone: bool = False) -> Resolved:
    """What these say together; a later one goes before an earlier one.

    :param standalone: STANDALONE_OPTIONS are options too
    """
    table = OPTIONS if not standalone else {**OPTIONS, **STANDALONE_OPTIONS}
    settings: dict[str, Setting] = {}
    for source in sources:
        settings |= source
    values: dict[str, Any] = {}
    faults: list[str] = []
    unknown: dict[str, tuple[str, ...]] = {}
    wrong = set()
    for name, (text, origin, is_secret, fault) in settings.items():
        if name not in table:
            unknown[origin] = (*unknown.get(origin, ()), name)
            continue
        try:
            if fault:
                raise OptionError(f"{name}: {fault}")
            values[name] = table[name].parse(name, text)
        except OptionError as error:
            faults.append(f"{origin}: {error.discreet if is_secret else error}")
            wrong.add(name)
    return Resolved(
        ProviderOptions(**{name: value for name, value in values.items() if name in OPTIONS}),
        StandaloneOptions(**{name: value for name, value in values.items() if name in STANDALONE_OPTIONS}),
        settings,
        tuple(faults),
        frozenset(wrong),
        unknown,
    )


def _setting(value: Any, origin: str) -> Setting:
    """What a file says of an option, as the text that the other sources have."""
    match value:
        case str():
            return Setting(value, origin)
        case bool():
            return Setting(str(value).lower(), origin)
        case int():
            return Setting(str(value), origin)
        case list() if all(isinstance(element, str) for element in value):
            if any("," in element for element in value):
                return Setting("", origin, fault="found a comma in a string of an array, allowed between them alone")
            return Setting(",".join(value), origin)
    found = {dict: "a table", list: "an array not of strings alone", float: f"{value}"}.get(
        type(value), "a date or time"
    )
    return Setting(
        "", origin, fault=f"found {found}, allowed a string, a whole number, a boolean or an array of strings"
    )
