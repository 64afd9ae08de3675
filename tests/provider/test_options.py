"""Options: one table, what each takes, and where it goes."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import StoreOptions
from provider.options import OPTIONS, OptionError, ProviderOptions
from transport.invocation import InvocationLimits

NUMBERS = sorted(field.name for field in fields(ProviderOptions) if field.type in ("int", "int | None"))


def set_to(name: str, text: str) -> ProviderOptions:
    options, unknown = ProviderOptions.from_config({name: text})
    assert unknown == []
    return options


def test_the_table_has_every_option() -> None:
    assert set(OPTIONS) == {field.name for field in fields(ProviderOptions)}
    assert len(NUMBERS) > 10
    for name, option in OPTIONS.items():
        assert option.what, name


def test_nothing_set_is_all_defaults() -> None:
    assert ProviderOptions.from_config({}) == (ProviderOptions(), [])
    assert ProviderOptions().store_options() == StoreOptions()
    assert ProviderOptions().invocation_limits() == InvocationLimits()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    assert getattr(set_to(name, "4096"), name) == 4096
    assert getattr(set_to(name, " 4_096\n"), name) == 4096
    for text in ("", " ", "0", "-1", "+1", "1.0", "1e3", "0x10", "four", "\u0664", "\u00b2", "1" * 20, "_"):
        with pytest.raises(OptionError) as caught:
            set_to(name, text)
        assert str(caught.value) == f"{name}: found {text!r}, allowed a whole number from 1"


@pytest.mark.parametrize(
    ("text", "flag"), [("true", True), ("TRUE", True), (" 1 ", True), ("false", False), ("False", False), ("0", False)]
)
def test_flags(text: str, flag: bool) -> None:
    assert set_to("strict_buckets", text).strict_buckets is flag


@pytest.mark.parametrize("text", ["", "yes", "on", "2", "truefalse", "t" * 100])
def test_what_is_no_flag(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        set_to("strict_buckets", text)
    assert str(caught.value) == f"strict_buckets: found {text[:64]!r}, allowed true or false"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("shards_min", "3", "shards_min: found 3, allowed a power of two from 1 to 65536"),
        ("shards_min", "131072", "shards_min: found 131072, allowed a power of two from 1 to 65536"),
        ("value_bytes_max", str(2**30 + 1), "value_bytes_max: found 1073741825, allowed 1 to 1073741824"),
        ("keys_max", "9" * 19, "keys_max: found 9999999999999999999, allowed 1 to 9223372036854775807"),
    ],
)
def test_what_the_store_does_not_take(name: str, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        set_to(name, text)
    assert str(caught.value) == message


def test_unknown_names_are_told_and_ignored() -> None:
    options, unknown = ProviderOptions.from_config({"Page_Keys": "none", "page_keys": "7", "": "", "bucket": "b"})
    assert options == ProviderOptions(page_keys=7)
    assert unknown == ["Page_Keys", "", "bucket"]


#: Options of the store whose name there is another.
STORE_NAMES = {"page_keys": "page_keys_max", "page_bytes": "page_bytes_max"}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_arrives(name: str) -> None:
    """Set one option to what is not its default: exactly one thing of all that the rooms are given changes."""
    other = {"strict_buckets": "true", "transport": "plain", "metrics_address": "127.0.0.1:0"}.get(name, "8")
    if getattr(ProviderOptions(), name) == other:
        other = "direct"
    options = set_to(name, other)
    assert ProviderOptions().changed(options) == [name]
    assert options.changed(options) == []
    store, limits = options.store_options(), options.invocation_limits()
    changed = {
        field.name for field in fields(store) if getattr(store, field.name) != getattr(StoreOptions(), field.name)
    }
    changed |= {f.name for f in fields(limits) if getattr(limits, f.name) != getattr(InvocationLimits(), f.name)}
    elsewhere = {"transport", "metrics_address", "connect_timeout_ms", "stop_timeout_ms"}
    expected = STORE_NAMES.get(name, "half_open_timeout_s" if name == "half_open_timeout_ms" else name)
    assert changed == (set() if name in elsewhere else {expected})


def test_milliseconds_become_seconds() -> None:
    assert set_to("half_open_timeout_ms", "1500").invocation_limits().half_open_timeout_s == 1.5


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ProviderOptions().page_keys = 1  # type: ignore[misc] # that is the point


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS)) | st.text(), st.text() | st.integers().map(str)))
def test_any_configuration_gives_options_or_an_option_error(config: dict[str, str]) -> None:
    try:
        options, unknown = ProviderOptions.from_config(config)
    except OptionError as error:
        assert re.match(rf"({'|'.join(OPTIONS)}): found .*, allowed ", str(error), re.DOTALL)
    else:
        assert set(unknown) == set(config) - set(OPTIONS)
        assert set(ProviderOptions().changed(options)) <= set(config)
