"""The types of option values. A type parses a value from text, and formats the value as text.

An error names the option, the value found, and what is allowed. This module does not know which options exist.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from keyvalue_engine.options import LENGTH_MAX, SHARD_BITS_MAX, TTL_MS_MAX
from keyvalue_provider.config.user_files import shown_path
from keyvalue_provider.host.json_fields import FieldError, shown_name, text_map
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.observe.log import LEVELS, printable
from keyvalue_transport.nats.subjects import check_subject
from keyvalue_transport.nats.urls import redacted_url, split_urls
from keyvalue_transport.redis.limits import Address

__all__ = [
    "ADDRESS",
    "BUCKET_NAME",
    "BUCKET_NAMES",
    "BYTES",
    "COUNT",
    "DATABASES",
    "ENCODED_TEXT",
    "FLAG",
    "HISTORY",
    "KV_BUCKET",
    "LENGTH",
    "LOG_LEVEL",
    "MILLISECONDS",
    "MODE",
    "NATS_URLS",
    "PATH",
    "PEM",
    "PEM_SECRET",
    "REDIS_ADDRESSES",
    "REDIS_USERS",
    "REPLICAS",
    "SECRET",
    "SHARDS",
    "SUBJECT_PREFIX",
    "TEXT",
    "TTL",
    "USER_FILE",
    "OptionError",
    "RedisUsers",
    "ValueType",
    "one_of",
    "split_address",
]

#: The largest number that the engine accepts. Lengths and times have their own limits.
NUMBER_MAX = 2**63 - 1
REDIS_USERS_FORM = '{"NAME": {"password": "...", "OPTION": "VALUE"}}'
ADDRESS_FORM = "HOST:PORT, with a port from 0 to 65535"
#: An error shows at most this many characters of a malformed value.
SHOWN_MAX = 64
#: The names that NATS allows for KV buckets.
KV_BUCKET_NAME = re.compile("[-_A-Za-z0-9]{1,200}")

T = TypeVar("T")


class OptionError(ValueError):
    """The error for a malformed or misspelt option. The message says which option, what was found, and what is allowed.

    :ivar discreet: the message without the value, which may be a secret
    """

    def __init__(self, message: str, discreet: str | None = None) -> None:
        super().__init__(message)
        self.discreet = message if discreet is None else discreet

    @classmethod
    def of(cls, name: str, text: str, allowed: str) -> OptionError:
        """Return the error for an option whose text is malformed."""
        return cls(
            f"{name}: found {text[:SHOWN_MAX]!r}, allowed {allowed}",
            f"{name}: found {len(text)} characters, allowed {allowed}",
        )


@dataclass(frozen=True, slots=True)
class ValueType(Generic[T]):
    """A type of option values.

    :param parse: returns the value of an option, given its name and text, or raises OptionError
    :param metavar: the placeholder for a value in the help
    :param show: returns the value as text, without passwords, keys and seeds
    :param bare: the text to use for a flag without a value; None if the flag needs a value
    :param is_secret: True to leave the value out of `repr`
    """

    parse: Callable[[str, str], T]
    metavar: str
    show: Callable[[T], str] = str
    bare: str | None = None
    is_secret: bool = False


def split_address(text: str) -> tuple[str, int]:
    """Split HOST:PORT into host and port. The default host is 127.0.0.1.

    >>> split_address("9464")
    ('127.0.0.1', 9464)

    :raises ValueError: the text is malformed
    """
    host, _, port = text.strip().rpartition(":")
    is_bare = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if is_bare or not (
        port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65_536 and host.isprintable()
    ):
        raise ValueError(f"found {text[:SHOWN_MAX]!r}, allowed {ADDRESS_FORM}")
    return host.strip("[]") or "127.0.0.1", int(port)


def one_of(*texts: str) -> ValueType[str]:
    """Return a type that allows only these texts. Case is ignored."""

    def parse(name: str, text: str) -> str:
        value = text.strip().lower()
        if value in texts:
            return value
        raise OptionError.of(name, text, " or ".join(texts))

    return ValueType(parse, "|".join(texts))


def _parse_kv_bucket(name: str, text: str) -> str:
    if KV_BUCKET_NAME.fullmatch(text.strip()):
        return text.strip()
    raise OptionError.of(name, text, "1 to 200 letters, digits, - and _")


def _number(metavar: str, number_max: int = NUMBER_MAX) -> ValueType[int]:
    """Return the type of whole numbers from 1 to `number_max`."""

    def parse(name: str, text: str) -> int:
        digits = text.strip().replace("_", "")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) > 0):
            raise OptionError.of(name, text, "a whole number from 1")
        if int(digits) > number_max:
            raise OptionError(
                f"{name}: found {int(digits)}, allowed 1 to {number_max}",
                f"{name}: found a number of {len(digits)} digits, allowed 1 to {number_max}",
            )
        return int(digits)

    return ValueType(parse, metavar)


def _parse_flag(name: str, text: str) -> bool:
    match text.strip().lower():
        case "true" | "1":
            return True
        case "false" | "0":
            return False
    raise OptionError.of(name, text, "true or false")


def _show_flag(flag: bool) -> str:
    return str(flag).lower()


def _parse_shards(name: str, text: str) -> int:
    number = COUNT.parse(name, text)
    if number > 1 << SHARD_BITS_MAX or number & (number - 1):
        allowed = f"allowed a power of two from 1 to {1 << SHARD_BITS_MAX}"
        raise OptionError(f"{name}: found {number}, {allowed}", f"{name}: found {len(text)} characters, {allowed}")
    return number


def _parse_subject_prefix(name: str, text: str) -> str:
    try:
        return check_subject(text.strip(), name)
    except ValueError as error:
        raise OptionError(str(error)) from None


def _parse_urls(name: str, text: str) -> str:
    try:
        split_urls(text)
    except ValueError as error:
        raise OptionError(f"{name}: {error}") from None
    return text


def _show_urls(urls: str) -> str:
    return ", ".join(redacted_url(url.strip()) for url in urls.split(","))


def _parse_level(name: str, text: str) -> str:
    level = text.strip().lower()
    if level in LEVELS:
        return level
    raise OptionError.of(name, text, "trace, debug, info, warn or error")


def _is_path(text: str) -> bool:
    """Return True if the system accepts a path. In a path, U+DC80 to U+DCFF are bytes that are not UTF-8."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # another lone surrogate, which JSON can express
        return False
    return bool(text) and "\0" not in text


def _parse_path(name: str, text: str) -> str:
    if _is_path(text):
        return text
    raise OptionError.of(name, text, "the path of a file")


def _parse_pem(name: str, text: str) -> str:
    if _is_path(text):
        return text
    raise OptionError.of(name, text, "the path or the text of a PEM file")


def _parse_pem_secret(name: str, text: str) -> Secret:
    return Secret(_parse_pem(name, text))


def _show_pem(text: str) -> str:
    return "the text of a PEM file" if "-----BEGIN" in text else text


def _parse_text(name: str, text: str) -> str:
    _encoded(name, text)
    return text


def _parse_bucket_name(name: str, text: str) -> bytes:
    if text:
        return _encoded(name, text)
    raise OptionError.of(name, text, "the name of a bucket")


def _parse_bucket_names(name: str, text: str) -> frozenset[bytes]:
    buckets = frozenset(_encoded(name, bucket.strip()) for bucket in text.split(",") if bucket.strip())
    if buckets:  # an empty list, perhaps by mistake, must not allow all buckets
        return buckets
    raise OptionError.of(name, text, "names of buckets, separated by commas")


def _show_bucket_names(buckets: frozenset[bytes]) -> str:
    return ",".join(sorted(bucket.decode() for bucket in buckets))


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can express
        raise OptionError.of(name, text, "text that can be encoded in UTF-8") from None


def _parse_address(name: str, text: str) -> str:
    try:
        split_address(text)
    except ValueError as error:
        raise OptionError(f"{name}: {error}", f"{name}: found {len(text)} characters, allowed {ADDRESS_FORM}") from None
    return text


def _parse_secret_text(name: str, text: str) -> Secret:
    if text:
        return Secret(_parse_text(name, text))
    raise OptionError.of(name, text, "some text")


def _parse_redis_addresses(name: str, text: str) -> tuple[Address, ...]:
    addresses = []
    for part in text.split(","):
        part = part.strip()
        if part.startswith(("/", "./")) and _is_path(part):
            addresses.append(Address(path=part))
            continue
        try:
            host, port = split_address(part)
        except ValueError:
            raise OptionError.of(name, text, f"{ADDRESS_FORM}, or a path that begins with / or ./") from None
        addresses.append(Address(host, port))
    return tuple(addresses)


def _show_redis_addresses(addresses: tuple[Address, ...]) -> str:
    return ",".join(map(str, addresses))


def _parse_databases(name: str, text: str) -> tuple[bytes, ...]:
    buckets = [part.strip() for part in text.split(",")]
    if all(buckets):
        return tuple(_encoded(name, bucket) for bucket in buckets)
    raise OptionError.of(name, text, "names of buckets, separated by commas")


def _show_databases(buckets: tuple[bytes, ...]) -> str:
    return ",".join(bucket.decode() for bucket in buckets)


def _parse_mode(name: str, text: str) -> int:
    digits = text.strip()
    if digits and len(digits) <= 4 and set(digits) <= set("01234567") and int(digits, 8) <= 0o777:
        return int(digits, 8)
    raise OptionError.of(name, text, "octal digits, from 0 to 777")


@dataclass(frozen=True, slots=True)
class RedisUsers:
    """The passwords of Redis users, and their options as a link has them, both by name. `repr` hides the passwords."""

    passwords: Mapping[str, Secret]
    options: Mapping[str, Mapping[str, str]]


def _parse_redis_users(name: str, text: str) -> RedisUsers:
    """Return the users in a JSON text. An error names users and fields, but never shows a value."""
    try:
        users = json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{name}: not JSON (line {error.lineno}, column {error.colno})") from None
    except (ValueError, RecursionError):  # a number with thousands of digits, or deep nesting
        raise OptionError(f"{name}: not JSON of this form: {REDIS_USERS_FORM}") from None
    if not isinstance(users, dict):
        raise OptionError(f"{name}: not an object of this form: {REDIS_USERS_FORM}")
    passwords: dict[str, Secret] = {}
    options: dict[str, dict[str, str]] = {}
    for user, fields in users.items():
        place = f"{name}: user {printable(shown_name(user))}"
        if user == "default":
            raise OptionError(f"{place}: not allowed here; redis_password is the password of this user")
        try:
            options[user] = text_map(fields, place)
        except FieldError as error:
            raise OptionError(printable(str(error))) from None
        password = options[user].pop("password", "")
        if not password:
            others = f"; found {printable(shown_name(', '.join(options[user])))}" if options[user] else ""
            raise OptionError(f"{place}: no password{others}")
        try:
            _encoded(name, user + password)
        except OptionError:
            raise OptionError(f"{place}: the name or password can't be encoded in UTF-8") from None
        passwords[user] = Secret(password)
    return RedisUsers(passwords, options)


def _show_redis_users(users: RedisUsers) -> str:
    return ",".join(sorted(users.passwords))


FLAG = ValueType(_parse_flag, "true|false", _show_flag, bare="true")
COUNT = _number("N")
SHARDS = ValueType(_parse_shards, "N")
BYTES = _number("BYTES")
#: A length limit for keys, values or names.
LENGTH = _number("BYTES", LENGTH_MAX)
MILLISECONDS = _number("MS")
TTL = _number("MS", TTL_MS_MAX)
TEXT = ValueType(_parse_text, "TEXT")
#: The most that NATS allows for a KV bucket.
HISTORY = _number("N", 64)
REPLICAS = _number("N", 5)
KV_BUCKET = ValueType(_parse_kv_bucket, "NAME")
BUCKET_NAME = ValueType(_parse_bucket_name, "NAME", bytes.decode)
BUCKET_NAMES = ValueType(_parse_bucket_names, "NAME,...", _show_bucket_names)
ENCODED_TEXT = ValueType(_encoded, "TEXT", bytes.decode)
LOG_LEVEL = ValueType(_parse_level, "LEVEL")
ADDRESS = ValueType(_parse_address, "HOST:PORT")
REDIS_ADDRESSES = ValueType(_parse_redis_addresses, "ADDRESS,...", _show_redis_addresses)
REDIS_USERS = ValueType(_parse_redis_users, "JSON", _show_redis_users, is_secret=True)
DATABASES = ValueType(_parse_databases, "NAME,...", _show_databases)
MODE = ValueType(_parse_mode, "MODE", "{:o}".format)
SECRET: ValueType[Secret] = ValueType(_parse_secret_text, "TEXT", is_secret=True)
NATS_URLS = ValueType(_parse_urls, "URL", _show_urls, is_secret=True)
SUBJECT_PREFIX = ValueType(_parse_subject_prefix, "LATTICE.KEY")
#: The path of a file that holds a seed. A user may give the seed itself by mistake.
USER_FILE = ValueType(_parse_path, "FILE", shown_path, is_secret=True)
#: The path of a file.
PATH = ValueType(_parse_path, "FILE")
#: The path or the text of a PEM file.
PEM = ValueType(_parse_pem, "FILE", _show_pem)
PEM_SECRET: ValueType[Secret] = ValueType(_parse_pem_secret, "FILE", is_secret=True)
