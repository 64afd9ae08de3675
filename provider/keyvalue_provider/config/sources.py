"""The sources of options. Later sources override earlier ones.

started by a host    environment (a host passes none), the host's configuration, the host's secrets
standalone           file, environment, flags
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keyvalue_provider.config.options import (
    OPTIONS,
    SERVE_OPTIONS,
    STANDALONE_OPTIONS,
    OptionError,
    ProviderOptions,
    StandaloneOptions,
)
from keyvalue_provider.host.json_fields import shown_name
from keyvalue_provider.host.secret import Secret

__all__ = [
    "Configuration",
    "Setting",
    "SourceError",
    "environment_settings",
    "file_settings",
    "flag_settings",
    "host_settings",
    "resolve",
]

VARIABLE_PREFIX = "KEYVALUE_"
FILE_BYTES_MAX = 1024 * 1024


class SourceError(ValueError):
    """The error for an unreadable source. The message names the source and says what is wrong."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The text that one source sets for one option. `repr` hides the text, which may hold a password.

    :ivar origin: the name of the source in messages
    :ivar fault: why the value is unusable; empty if it is usable
    :ivar is_table: True for a table of a file, which may hold options by mistake
    """

    text: str = field(repr=False)
    origin: str
    is_secret: bool = False
    fault: str = ""
    is_table: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """The combined options from all sources, and their faults.

    :ivar settings: the effective setting of each option; an option that no source sets has no entry
    :ivar faults: one line for each fault, without secrets; a faulty option has its default in `options`
    :ivar wrong: the names of the faulty options
    :ivar unknown: names that resemble no option, by origin
    :ivar remarks: one for each old name in use, and for each option that has no effect without another
    """

    options: ProviderOptions
    standalone: StandaloneOptions
    settings: Mapping[str, Setting]
    faults: tuple[str, ...]
    wrong: frozenset[str]
    unknown: Mapping[str, tuple[str, ...]]
    remarks: tuple[str, ...]


def environment_settings(environment: Mapping[str, str]) -> dict[str, Setting]:
    """Return the settings in the environment. A variable's name is KEYVALUE_ plus the option's name in upper case."""
    return {
        variable.removeprefix(VARIABLE_PREFIX).lower(): Setting(text, "environment")
        for variable, text in environment.items()
        if variable.startswith(VARIABLE_PREFIX)
    }


def host_settings(config: Mapping[str, str], secrets: Mapping[str, Secret]) -> dict[str, Setting]:
    """Return the settings from a host. A secret may set any option, and overrides the configuration."""
    return {
        **{name: Setting(text, "config") for name, text in config.items()},
        **{name: Setting(secret.reveal(), "secrets", is_secret=True) for name, secret in secrets.items()},
    }


def file_settings(path: Path) -> dict[str, Setting]:
    """Return the settings in a TOML file.

    Each line has the form `name = value`. A value is a string, a whole number, a boolean, or an array of strings.

    :raises SourceError: the file is unreadable or too large, or is not TOML
    """
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None
    if len(text) > FILE_BYTES_MAX:
        raise SourceError(f"{path}: the file is larger than the limit of {FILE_BYTES_MAX} bytes")
    import tomllib  # here, because a host passes no file, and importing this module takes 2 ms

    try:
        values = tomllib.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise SourceError(f"{path}: the file is not UTF-8, as TOML requires") from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits raises a plain ValueError
        raise SourceError(f"{path}: {error}") from None
    return {name: _setting(value, str(path)) for name, value in values.items()}


def flag_settings(flags: Mapping[str, str | None]) -> dict[str, Setting]:
    """Return the settings on the command line.

    :param flags: the text of each option; None for a flag that is not set
    """
    return {name: Setting(text, "command line") for name, text in flags.items() if text is not None}


def resolve(*sources: Mapping[str, Setting], standalone: bool = False) -> Configuration:
    """Combine the sources into one configuration. Later sources override earlier ones.

    :param standalone: True to accept STANDALONE_OPTIONS too
    """
    table = SERVE_OPTIONS if standalone else OPTIONS
    settings: dict[str, Setting] = {}
    given_names: dict[str, str] = {}
    faults: list[str] = []
    wrong: set[str] = set()
    unknown: dict[str, tuple[str, ...]] = {}
    remarks: list[str] = []
    for source in sources:
        names = table.sort_names(source)
        for name, option in names.options.items():
            settings[option], given_names[option] = source[name], name
        for name in names.unknown:
            if source[name].is_table:
                faults.append(f"{source[name].origin}: {shown_name(name)}: found a table; options are not in tables")
                continue
            unknown[source[name].origin] = (*unknown.get(source[name].origin, ()), name)
        for name, fault in names.faults.items():
            faults.append(f"{source[name].origin}: {fault}")
            wrong.update(option for old_name, option in table.old_names.items() if old_name == name)
        remarks += [f"{source[name].origin}: {remark}" for name, remark in names.deprecated.items()]
    values: dict[str, Any] = {}
    for option, setting in settings.items():
        name = given_names[option]
        try:
            if setting.fault:
                raise OptionError(f"{name}: {setting.fault}")
            values[option] = table[option].value_type.parse(name, setting.text)
        except OptionError as error:
            is_secret = setting.is_secret or table[option].value_type.is_secret
            faults.append(f"{setting.origin}: {error.discreet if is_secret else error}")
            wrong.add(option)
    options = ProviderOptions(**{name: value for name, value in values.items() if name in OPTIONS})
    if conflict := options.conflict():
        faults.append(conflict)
    if not faults:  # a faulty option may be the one that others need
        remarks += _without_effect(options, settings)
    return Configuration(
        options,
        StandaloneOptions(**{name: value for name, value in values.items() if name in STANDALONE_OPTIONS}),
        settings,
        tuple(faults),
        frozenset(wrong),
        unknown,
        tuple(remarks),
    )


def _without_effect(options: ProviderOptions, settings: Mapping[str, Setting]) -> Iterator[str]:
    """Yield a remark for each option that has no effect, because the option that it needs is not set."""
    for name, option in OPTIONS.items():
        if name in settings and getattr(options, name) != option.default and not option.has_effect(options):
            yield f"{settings[name].origin}: {name} has no effect: it needs {option.needs}"


def _setting(value: Any, origin: str) -> Setting:
    """Convert a TOML value to a setting. The setting's text has the same form as in other sources."""
    match value:
        case str():
            return Setting(value, origin)
        case bool():
            return Setting(str(value).lower(), origin)
        case int():
            return Setting(str(value), origin)
        case list() if all(isinstance(element, str) for element in value):
            if any("," in element for element in value):
                return Setting("", origin, fault="strings in an array must not contain commas")
            return Setting(",".join(value), origin)
    found = {dict: "a table", list: "an array with other values than strings", float: "a float"}.get(
        type(value), "a date or time"
    )
    fault = f"found {found}, expected a string, a whole number, a boolean or an array of strings"
    return Setting("", origin, fault=fault, is_table=isinstance(value, dict))
