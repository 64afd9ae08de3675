"""Secrets: no operation shows one."""

from __future__ import annotations

import copy
import doctest
import json
import pickle
import string
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import pytest

from keyvalue_provider.host import secret as secret_module
from keyvalue_provider.host.secret import Secret

HUSH = "hush-hush"


@dataclass
class Holder:
    secret: Secret = field(default_factory=lambda: Secret(HUSH))


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        "{!r}".format,
        lambda secret: f"{secret}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 # one of the ways
        lambda secret: string.Template("$secret").substitute(secret=secret),
        lambda secret: str([secret]) + str({"a": secret}),
        lambda secret: repr(Holder(secret)),
        lambda secret: json.dumps({"a": secret}, default=str),
        lambda secret: " ".join(dir(secret)),
    ],
)
@pytest.mark.parametrize("value", [HUSH, HUSH.encode()])
def test_it_is_not_shown(show: Callable[[Secret], str], value: str | bytes) -> None:
    assert HUSH not in show(Secret(value))


@pytest.mark.parametrize(
    "copied",
    [
        pickle.dumps,
        lambda secret: pickle.dumps(secret, 0),
        copy.copy,
        copy.deepcopy,
        lambda secret: asdict(Holder(secret)),
    ],
)
def test_it_is_not_copied_or_written(copied: Callable[[Secret], object]) -> None:
    with pytest.raises(TypeError, match="a secret cannot be pickled or copied"):
        copied(Secret(HUSH))
    assert not hasattr(Secret(HUSH), "__dict__")


@pytest.mark.parametrize(
    ("value", "revealed"), [("hush", "hush"), (b"hush", "hush"), ("", ""), (b"", ""), ("ключ".encode(), "ключ")]
)
def test_it_is_revealed_as_text_and_false_when_empty(value: str | bytes, revealed: str) -> None:
    assert Secret(value).reveal() == revealed
    assert bool(Secret(value)) is (revealed != "")


def test_secrets_compare_by_value() -> None:
    assert Secret(HUSH) == Secret(HUSH)
    assert Secret(HUSH) != Secret("")
    assert Secret(HUSH) != HUSH
    assert len({Secret(HUSH), Secret(HUSH), Secret("")}) == 2


def test_examples() -> None:
    assert doctest.testmod(secret_module).failed == 0
    assert doctest.testmod(secret_module).attempted > 0
