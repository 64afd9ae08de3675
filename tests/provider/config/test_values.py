"""Types of values: what each reads, how it shows a value, and its error for a malformed text."""

from __future__ import annotations

import doctest
import re
from typing import Any

import pytest

from keyvalue_provider.config import values
from keyvalue_provider.config.values import OptionError, ValueType
from keyvalue_provider.host.secret import Secret
from keyvalue_transport.redis.limits import Address

HUSH = "hush-hush"
SEED = "SU" + "A" * 56
PEM_TEXT = f"-----BEGIN PRIVATE KEY-----\n{HUSH}"
CHOICE = values.one_of("read-write", "read-only")


@pytest.mark.parametrize(
    ("value_type", "text", "value", "shown"),
    [
        (values.FLAG, "true", True, "true"),
        (values.FLAG, " 1 ", True, "true"),
        (values.FLAG, "false", False, "false"),
        (values.FLAG, "0", False, "false"),
        (values.COUNT, " 4_096\n", 4096, "4096"),
        (values.SHARDS, "64", 64, "64"),
        (values.BUCKET_NAME, " b,c ", b" b,c ", " b,c "),
        (values.BUCKET_NAME, "\u00fc", b"\xc3\xbc", "\u00fc"),
        (values.ENCODED_TEXT, "p-", b"p-", "p-"),
        (values.ENCODED_TEXT, "", b"", ""),
        (values.BUCKET_NAMES, " a,b c\t,, \u00fc,a", frozenset({b"a", b"b c", b"\xc3\xbc"}), "a,b c,\u00fc"),
        (CHOICE, " Read-Write\n", "read-write", "read-write"),
        (values.LOG_LEVEL, " WARN", "warn", "warn"),
        (values.TEXT, "", "", ""),
        (values.ADDRESS, "9464", "9464", "9464"),
        (values.SUBJECT_PREFIX, " a.b ", "a.b", "a.b"),
        (values.NATS_URLS, f"nats://u:{HUSH}@a,b", f"nats://u:{HUSH}@a,b", "nats://<redacted>@a, b"),
        (values.USER_FILE, "user.nk", "user.nk", "user.nk"),
        (values.USER_FILE, SEED, SEED, "<redacted>"),
        (values.PEM, "ca.pem", "ca.pem", "ca.pem"),
        (values.PEM, PEM_TEXT, PEM_TEXT, "the text of a PEM file"),
        (values.PEM_SECRET, HUSH, Secret(HUSH), "<redacted>"),
        (values.PATH, "/x/\udce4", "/x/\udce4", "/x/\udce4"),  # a path that is not UTF-8
        (values.PEM, "/x/\udce4", "/x/\udce4", "/x/\udce4"),
        (values.REDIS_ADDRESSES, "/x/\udce4", (Address(path="/x/\udce4"),), "/x/\udce4"),
    ],
)
def test_a_type_reads_and_shows_its_values(value_type: ValueType[Any], text: str, value: object, shown: str) -> None:
    assert value_type.parse("name", text) == value
    assert value_type.show(value) == shown


@pytest.mark.parametrize(
    ("value_type", "text", "found", "allowed"),
    [
        *((values.FLAG, text, text, "true or false") for text in ("", "yes", "truefalse")),
        (values.FLAG, "t" * 100, "t" * 64, "true or false"),
        (values.BUCKET_NAME, "", "", "the name of a bucket"),
        (values.BUCKET_NAME, "\ud800", "\ud800", "text that can be encoded in UTF-8"),
        (values.ENCODED_TEXT, "p\ud800", "p\ud800", "text that can be encoded in UTF-8"),
        (values.TEXT, "\ud800", "\ud800", "text that can be encoded in UTF-8"),
        (values.BUCKET_NAMES, "", "", "names of buckets, separated by commas"),
        (values.BUCKET_NAMES, " , ,", " , ,", "names of buckets, separated by commas"),
        (values.BUCKET_NAMES, "a,\ud800", "\ud800", "text that can be encoded in UTF-8"),
        (CHOICE, "", "", "read-write or read-only"),
        (CHOICE, "readonly", "readonly", "read-write or read-only"),
        (values.LOG_LEVEL, "loud", "loud", "trace, debug, info, warn or error"),
        (values.PEM, "", "", "the path or the text of a PEM file"),
        (values.SECRET, "", "", "some text"),
        (values.PATH, "", "", "the path of a file"),
        (values.PATH, "a\0b", "a\0b", "the path of a file"),
        (values.USER_FILE, "a\0b", "a\0b", "the path of a file"),
        (values.ADDRESS, "a:b", "a:b", "HOST:PORT, with a port from 0 to 65535"),
    ],
)
def test_a_type_refuses_malformed_texts(value_type: ValueType[Any], text: str, found: str, allowed: str) -> None:
    with pytest.raises(OptionError) as caught:
        value_type.parse("name", text)
    assert str(caught.value) == f"name: found {found!r}, allowed {allowed}"
    assert re.fullmatch(rf"name: found \d+ characters, allowed {allowed}", caught.value.discreet)


FORM = '{"NAME": {"password": "...", "OPTION": "VALUE"}}'


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{bad", "not JSON (line 1, column 2)"),
        ('{"a": {"password":\n"hush}', "not JSON (line 2, column 1)"),
        ("[" * 100_000, f"not JSON of this form: {FORM}"),
        ("9" * 5_000, f"not JSON of this form: {FORM}"),
        ('["hush"]', f"not an object of this form: {FORM}"),
        (
            '{"default": {"password": "hush"}}',
            "user default: not allowed here; redis_password is the password of this user",
        ),
        ('{"a": "hush"}', "user a: found a string, expected an object of strings"),
        ('{"a": {"password": "hush", "quota_keys": 7031}}', "user a.quota_keys: found a number, expected a string"),
        ('{"a": {"password": 7031}}', "user a.password: found a number, expected a string"),
        ('{"a": {"pasword": "hush"}}', "user a: no password; found pasword"),
        ('{"a\\n": {"password": ""}}', "user a\\n: no password"),
        ('{"a": {"b\\n": 7031}}', "user a.b\\n: found a number, expected a string"),
        (f'{{"{"a" * 200}": {{}}}}', f"user {'a' * 128}: no password"),
        ('{"a": {"password": "hush\\ud800"}}', "user a: the name or password can't be encoded in UTF-8"),
    ],
)
def test_malformed_redis_users(text: str, fault: str) -> None:
    with pytest.raises(OptionError) as caught:
        values.REDIS_USERS.parse("redis_users", text)
    assert str(caught.value) == caught.value.discreet == f"redis_users: {fault}"


@pytest.mark.parametrize(("text", "address"), [("h:1", ("h", 1)), ("[::1]:2", ("::1", 2)), (":3", ("127.0.0.1", 3))])
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert values.split_address(text) == address


@pytest.mark.parametrize("text", ["", "h", "h:", "h:65536", "::1:9", "h:\u0664", "h\x00:1"])
def test_malformed_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed HOST:PORT"):
        values.split_address(text)


def test_the_examples() -> None:
    assert doctest.testmod(values).failed == 0
