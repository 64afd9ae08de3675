"""Options: a table of the provider's and one of a link's, what each takes, and where it goes. What a link's do is tested in tests/provider/keyvalue."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import BucketOptions, StoreOptions
from keyvalue_provider.config.options import (
    LINK_DEFAULTS,
    LINK_OPTIONS,
    LIVE_OPTIONS,
    OPTIONS,
    LinkOptions,
    Option,
    OptionError,
    ProviderOptions,
)
from keyvalue_provider.config.sources import host_settings, resolve
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.conftest import options_of

NUMBERS = sorted(field.name for field in fields(ProviderOptions) if field.type in ("int", "int | None"))
LINK_NUMBERS = sorted(field.name for field in fields(LinkOptions) if field.type == "int | None")


def set_to(name: str, text: str) -> ProviderOptions:
    return ProviderOptions(**{name: OPTIONS[name].parse(name, text)})


def set_on_link(name: str, text: str) -> LinkOptions:
    options, unknown = LinkOptions.from_config(ProviderOptions(), {name: text})
    assert unknown == []
    return options


@pytest.mark.parametrize(("table", "options"), [(OPTIONS, ProviderOptions), (LINK_OPTIONS, LinkOptions)])
def test_the_table_has_every_option(
    table: dict[str, Option], options: type[ProviderOptions] | type[LinkOptions]
) -> None:
    assert list(table) == [field.name for field in fields(options)]
    for name, option in table.items():
        assert option.what, name
        assert "|" not in option.what, "the documents show it in a table"


def test_numbers_are_found() -> None:
    assert len(NUMBERS) > 10
    assert len(LINK_NUMBERS) == 7


def test_nothing_set_is_all_defaults() -> None:
    assert options_of({}) == ProviderOptions()
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


@pytest.mark.parametrize("name", LINK_NUMBERS)
def test_numbers_of_a_link(name: str) -> None:
    assert getattr(set_on_link(name, " 4_096\n"), name) == 4096
    for text in ("", "0", "-1", "1.0", "four", "\u0664", "1" * 20):
        with pytest.raises(OptionError) as caught:
            set_on_link(name, text)
        assert str(caught.value) == f"{name}: found {text!r}, allowed a whole number from 1"


ENGINE_NAMES = {"page_keys": "page_keys_max", "page_bytes": "page_bytes_max"}


@pytest.mark.parametrize("name", sorted(set(LINK_NUMBERS) - {"keys_max", "bytes_max"}))
def test_the_largest_number_of_a_link_is_the_engines(name: str) -> None:
    with pytest.raises(OptionError) as caught:
        set_on_link(name, "9" * 19)
    found, _, most = str(caught.value).rpartition(" to ")
    assert found == f"{name}: found {'9' * 19}, allowed 1"
    assert getattr(set_on_link(name, most), name) == int(most)
    engine_name = ENGINE_NAMES.get(name, name)
    BucketOptions(**{engine_name: int(most)})  # type: ignore[arg-type] # by name
    with pytest.raises(ValueError, match=f"found {int(most) + 1}, allowed 1 to {most}"):
        BucketOptions(**{engine_name: int(most) + 1})  # type: ignore[arg-type] # by name


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
        ("bucket_name_bytes_max", str(2**30 + 1), "bucket_name_bytes_max: found 1073741825, allowed 1 to 1073741824"),
        ("page_keys", "9" * 19, "page_keys: found 9999999999999999999, allowed 1 to 9223372036854775807"),
        ("keys_max", "9" * 19, "keys_max: found 9999999999999999999, allowed 1 to 9223372036854775807"),
        ("ttl_ms", "9" * 19, "ttl_ms: found 9999999999999999999, allowed 1 to 9223372036854"),
    ],
)
def test_what_the_store_does_not_take(name: str, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        set_to(name, text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("bucket", "b", b"b"),
        ("bucket", " b,c ", b" b,c "),
        ("bucket", "\u00fc", b"\xc3\xbc"),
        ("bucket_prefix", "p-", b"p-"),
        ("bucket_prefix", "", b""),
        ("buckets", "b", frozenset({b"b"})),
        ("buckets", " a,b c\t,, \u00fc,a", frozenset({b"a", b"b c", b"\xc3\xbc"})),
        ("access", "read-only", "read-only"),
        ("access", " Read-Write\n", "read-write"),
    ],
)
def test_what_names_and_access_take(name: str, text: str, value: object) -> None:
    assert getattr(set_on_link(name, text), name) == value
    assert getattr(set_to(name, text), name) == value


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("bucket", "", "the name of a bucket"),
        ("bucket", "\ud800", "text that can be encoded in UTF-8"),
        ("bucket_prefix", "p\ud800", "text that can be encoded in UTF-8"),
        ("buckets", "", "names of buckets with commas between"),
        ("buckets", " , ,", "names of buckets with commas between"),
        ("buckets", "a,\ud800", "text that can be encoded in UTF-8"),
        ("access", "", "read-write or read-only"),
        ("access", "readonly", "read-write or read-only"),
        ("access", "x" * 100, "read-write or read-only"),
        ("strict_buckets", "maybe", "true or false"),
    ],
)
def test_what_names_and_access_do_not_take(name: str, text: str, allowed: str) -> None:
    shown = text if name != "buckets" or "\ud800" not in text else "\ud800"
    for set_option in (set_to, set_on_link):
        with pytest.raises(OptionError) as caught:
            set_option(name, text)
        assert str(caught.value) == f"{name}: found {shown[:64]!r}, allowed {allowed}"


def test_unknown_names_are_told_and_ignored() -> None:
    config = {"Page_Keys": "none", "page_keys": "7", "": "", "url": "redis://"}
    resolved = resolve(host_settings(config, {}))
    assert resolved.options == ProviderOptions(page_keys=7)
    assert resolved.unknown == {"config": ("Page_Keys", "", "url")}
    assert resolved.faults == ()
    link_options, unknown = LinkOptions.from_config(
        resolved.options, {"Bucket": "b", "page_keys": "9", "buckets_max": "1"}
    )
    assert link_options == LinkOptions(page_keys=9)
    assert unknown == ["Bucket", "buckets_max"]


#: What a link may set, as text and as the value that comes of it; another than the default, and than OF_PROVIDER.
OF_LINK: dict[str, tuple[str, object]] = {
    "bucket": ("one", b"one"),
    "bucket_prefix": ("p-", b"p-"),
    "buckets": ("a,b", frozenset({b"a", b"b"})),
    "strict_buckets": ("true", True),
    "access": ("read-only", "read-only"),
    **dict.fromkeys(LINK_NUMBERS, ("7", 7)),
}
OF_PROVIDER = {
    "bucket": "two",
    "bucket_prefix": "q-",
    "buckets": "c",
    "strict_buckets": "false",
    "access": "read-write",
}


@pytest.mark.parametrize("name", sorted(LINK_OPTIONS))
def test_a_links_option_goes_before_the_providers_and_that_before_the_default(name: str) -> None:
    text, value = OF_LINK[name]
    assert getattr(LinkOptions(), name) != value
    options = set_to(name, text) if name in OPTIONS else ProviderOptions()
    inherited = LinkOptions.from_config(options, {})[0]
    if name in LINK_DEFAULTS:
        assert getattr(inherited, name) == value
    else:
        assert inherited == LinkOptions()  # None: as the store was made by the provider's options; keys_max: no quota
    other = set_to(name, OF_PROVIDER.get(name, "8")) if name in OPTIONS else ProviderOptions()
    assert getattr(LinkOptions.from_config(other, {name: text})[0], name) == value


def test_what_a_link_inherits() -> None:
    assert LinkOptions.from_config(ProviderOptions(), {}) == (LinkOptions(), [])
    store_wide = {field.name for field in fields(StoreOptions)} | STORE_NAMES.keys()
    assert set(LINK_OPTIONS) == set(LINK_DEFAULTS) | (set(LINK_OPTIONS) & store_wide)
    assert store_wide.isdisjoint(LINK_DEFAULTS)


def test_what_takes_effect_at_once_is_not_the_stores() -> None:
    assert set(OPTIONS) >= LIVE_OPTIONS
    for name in LIVE_OPTIONS:
        options = set_to(name, {"log_level": "warn"}.get(name) or OF_LINK.get(name, ("1",))[0])
        assert options.store_options() == StoreOptions()
        assert options.invocation_limits() == InvocationLimits()


#: Options of the store whose name there is another.
STORE_NAMES = {"page_keys": "page_keys_max", "page_bytes": "page_bytes_max"}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_arrives(name: str) -> None:
    """Set one option to what is not its default: exactly one thing of all that the rooms are given changes."""
    others = {"transport": "plain", "metrics_address": "127.0.0.1:0", "log_level": "warn"}
    others |= dict.fromkeys(("strict_buckets", "require_link", "structured_logging"), "true")
    other = others.get(name) or OF_LINK.get(name, ("8",))[0]
    options = set_to(name, other)
    assert ProviderOptions().changed(options) == [name]
    assert options.changed(options) == []
    store, limits = options.store_options(), options.invocation_limits()
    changed = {
        field.name for field in fields(store) if getattr(store, field.name) != getattr(StoreOptions(), field.name)
    }
    changed |= {f.name for f in fields(limits) if getattr(limits, f.name) != getattr(InvocationLimits(), f.name)}
    elsewhere = {"transport", "metrics_address", "connect_timeout_ms", "stop_timeout_ms"} | LIVE_OPTIONS
    elsewhere |= {"watch_queue_events", "watch_queue_bytes", "watch_timeout_ms", "tls_ca", "tls_certificate", "tls_key"}
    expected = STORE_NAMES.get(name, "half_open_timeout_s" if name == "half_open_timeout_ms" else name)
    assert changed == (set() if name in elsewhere else {expected})


def test_milliseconds_become_seconds() -> None:
    assert set_to("half_open_timeout_ms", "1500").invocation_limits().half_open_timeout_s == 1.5


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ProviderOptions().page_keys = 1  # type: ignore[misc] # that is the point


def configs(table: dict[str, Option]) -> st.SearchStrategy[dict[str, str]]:
    return st.dictionaries(st.sampled_from(sorted(table)) | st.text(), st.text() | st.integers().map(str))


def is_refusal(error: str, table: dict[str, Option]) -> bool:
    return re.match(rf"({'|'.join(table)}): found .*, allowed ", error, re.DOTALL) is not None


@given(configs(dict(OPTIONS)))
def test_any_configuration_gives_options_and_faults(config: dict[str, str]) -> None:
    resolved = resolve(host_settings(config, {}))
    assert all(is_refusal(fault.removeprefix("config: "), dict(OPTIONS)) for fault in resolved.faults)
    assert set(resolved.unknown.get("config", ())) == set(config) - set(OPTIONS)
    assert set(ProviderOptions().changed(resolved.options)) <= set(config) - resolved.wrong


@given(configs(dict(LINK_OPTIONS)))
def test_any_configuration_of_a_link_gives_options_or_an_option_error(config: dict[str, str]) -> None:
    try:
        options, unknown = LinkOptions.from_config(ProviderOptions(), config)
    except OptionError as error:
        assert is_refusal(str(error), dict(LINK_OPTIONS))
    else:
        assert set(unknown) == set(config) - set(LINK_OPTIONS)
        changed = {f.name for f in fields(options) if getattr(options, f.name) != getattr(LinkOptions(), f.name)}
        assert changed <= set(config)
