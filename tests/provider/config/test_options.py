"""The declared options: their tables, the numbers that they accept, and where each goes.

tests/provider/keyvalue tests the effect of a link's options.
"""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_engine import BucketOptions, StoreOptions
from keyvalue_provider.config.declaration import OptionTable
from keyvalue_provider.config.options import (
    LINK_OPTIONS,
    LIVE_OPTIONS,
    OPTIONS,
    SERVE_OPTIONS,
    WATCHING_LINK_OPTIONS,
    LinkOptions,
    OptionError,
    ProviderOptions,
    StandaloneOptions,
    WatchingLinkOptions,
)
from keyvalue_provider.config.sources import host_settings, resolve
from keyvalue_provider.host.secret import Secret
from keyvalue_replica.options import ReplicaOptions
from keyvalue_transport.redis.limits import ListenerLimits
from keyvalue_transport.wrpc.invocation import InvocationLimits
from tests.conftest import options_of

#: These are smaller than the numbers of the tests below, and have cases of their own.
SMALL = {"jetstream_history", "jetstream_replicas", "redis_socket_mode"}
NUMBERS = sorted({field.name for field in fields(ProviderOptions) if field.type in ("int", "int | None")} - SMALL)
LINK_NUMBERS = sorted(set(NUMBERS) & LINK_OPTIONS.keys())


def set_to(name: str, text: str) -> ProviderOptions:
    return ProviderOptions(**{name: OPTIONS[name].value_type.parse(name, text)})


def set_on_link(name: str, text: str) -> LinkOptions:
    options, remarks = LinkOptions.from_config(ProviderOptions(), {name: text})
    assert remarks == []
    return options


@pytest.mark.parametrize("table", [SERVE_OPTIONS, LINK_OPTIONS, WATCHING_LINK_OPTIONS])
def test_every_option_can_be_shown_in_a_table(table: OptionTable) -> None:
    for name, option in table.items():
        assert option.name == name
        assert option.help, name
        assert "|" not in option.help, "the documents show it in a table"
        assert option.shown(option.default)


@pytest.mark.parametrize("table", [SERVE_OPTIONS, LINK_OPTIONS, WATCHING_LINK_OPTIONS])
def test_no_option_accepts_text_that_is_not_unicode(table: OptionTable) -> None:
    """JSON can express a lone surrogate, which no system call, protocol or key can hold."""
    for name, option in table.items():
        for text in ("\ud800", "/x/\ud800", "a\ud800:1", '{"\ud800": {"password": "p"}}'):
            with pytest.raises(OptionError):
                option.value_type.parse(name, text)
    for users in ('{"\\ud800": {"password": "p"}}', '{"u": {"password": "\\ud800"}}'):
        with pytest.raises(OptionError, match="redis_users"):
            set_to("redis_users", users)


def test_without_options_everything_has_its_default() -> None:
    assert options_of({}) == ProviderOptions()
    assert ProviderOptions().store_options() == StoreOptions()
    assert ProviderOptions().invocation_limits() == InvocationLimits()


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    """The provider and a link read them the same way."""
    setters = (set_to, set_on_link) if name in LINK_NUMBERS else (set_to,)
    for set_number in setters:
        assert getattr(set_number(name, " 4_096\n"), name) == 4096
        for text in ("", " ", "0", "-1", "+1", "1.0", "1e3", "0x10", "four", "\u0664", "\u00b2", "1" * 20, "_"):
            with pytest.raises(OptionError) as caught:
                set_number(name, text)
            assert str(caught.value) == f"{name}: found {text!r}, allowed a whole number from 1"


ENGINE_NAMES = {"page_keys": "page_keys_max", "page_bytes": "page_bytes_max"}


@pytest.mark.parametrize("name", sorted(set(LINK_NUMBERS) - {"quota_keys", "quota_bytes"}))
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
    ("name", "text", "message"),
    [
        ("shards_min", "131072", "shards_min: found 131072, allowed a power of two from 1 to 65536"),
        ("bucket_name_bytes_max", str(2**30 + 1), "bucket_name_bytes_max: found 1073741825, allowed 1 to 1073741824"),
        ("jetstream_history", "65", "jetstream_history: found 65, allowed 1 to 64"),
        ("jetstream_replicas", "6", "jetstream_replicas: found 6, allowed 1 to 5"),
        ("keys_max", "9" * 19, "keys_max: found 9999999999999999999, allowed 1 to 9223372036854775807"),
    ],
)
def test_numbers_that_the_store_refuses(name: str, text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        set_to(name, text)
    assert str(caught.value) == message


def test_unknown_names_are_reported_and_ignored() -> None:
    options, remarks = LinkOptions.from_config(ProviderOptions(), {"url": "b", "page_keys": "9", "buckets_max": "1"})
    assert options == LinkOptions(page_keys=9)
    assert remarks == ["ignored, since no option has this name: buckets_max, url"]
    watching, remarks = WatchingLinkOptions.from_config({"URL": "b", "watch": "SET@*", "page_keys": "1"})
    assert watching == WatchingLinkOptions("SET@*")
    assert remarks == ["ignored, since no option of a watcher has this name: URL, page_keys"]


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"acess": "read-only"}, "acess: no option has this name; did you mean access?"),
        ({"page_keys": "7", "acess": "x", "url": ""}, "acess: no option has this name; did you mean access?"),
        (
            {"keys_max": "7", "quota_keys": "7"},
            "keys_max: this is the old name of quota_keys, which is set too; set only quota_keys",
        ),
        ({"bytes_max": "all"}, "bytes_max: found 'all', allowed a whole number from 1"),
    ],
)
def test_a_link_with_an_unusable_name(config: dict[str, str], fault: str) -> None:
    with pytest.raises(OptionError) as caught:
        LinkOptions.from_config(ProviderOptions(), config)
    assert str(caught.value) == fault
    with pytest.raises(OptionError, match=r"^wacth_bucket: no option has this name; did you mean watch_bucket\?$"):
        WatchingLinkOptions.from_config({"watch": "SET@*", "wacth_bucket": "1"})


def test_old_names_of_a_link_still_work() -> None:
    options, remarks = LinkOptions.from_config(ProviderOptions(keys_max=9), {"keys_max": "7", "bytes_max": "8"})
    assert options == LinkOptions(quota_keys=7, quota_bytes=8)
    assert remarks == ["keys_max is deprecated (use quota_keys)", "bytes_max is deprecated (use quota_bytes)"]


#: The options of a link: a text and its value, which differs from the default and from OF_PROVIDER.
OF_LINK: dict[str, tuple[str, object]] = {
    "bucket": ("one", b"one"),
    "bucket_prefix": ("p-", b"p-"),
    "buckets": ("a,b", frozenset({b"a", b"b"})),
    "strict_buckets": ("true", True),
    "access": ("read-only", "read-only"),
    "reads": ("local", "local"),
    "counter": ("be64", "be64"),
    "enable_bucket_auto_create": ("TRUE", True),
    "js_domain": ("hub", "hub"),
    **dict.fromkeys(LINK_NUMBERS, ("7", 7)),
}
OF_PROVIDER = {
    "bucket": "two",
    "bucket_prefix": "q-",
    "buckets": "c",
    "strict_buckets": "false",
    "access": "read-write",
    "reads": "latest",
    "counter": "text",
    "enable_bucket_auto_create": "false",
    "js_domain": "leaf",
}


@pytest.mark.parametrize("name", sorted(LINK_OPTIONS.keys() - {"keys"}))
def test_a_links_option_overrides_the_providers_which_overrides_the_default(name: str) -> None:
    text, value = OF_LINK[name]
    assert getattr(LinkOptions(), name) != value
    options = set_to(name, text)
    assert getattr(LinkOptions.from_config(options, {})[0], name) == value
    other = set_to(name, OF_PROVIDER.get(name, "8"))
    assert getattr(LinkOptions.from_config(other, {name: text})[0], name) == value


def test_names_are_plain_only_in_the_replicated_store() -> None:
    replicated = ProviderOptions(store="jetstream", keys="plain")
    assert LinkOptions.from_config(replicated, {})[0].keys == "plain"
    assert LinkOptions.from_config(ProviderOptions(store="jetstream"), {"keys": "plain"})[0].keys == "plain"
    assert LinkOptions.from_config(ProviderOptions(keys="plain"), {"keys": "plain"})[0].keys == "encoded"


def test_a_snapshot_is_not_imported_into_kv_buckets_of_others() -> None:
    options = ProviderOptions(store="jetstream", keys="plain", snapshot_path="file")
    assert options.conflict().startswith("snapshot_path needs keys=encoded")
    assert replace(options, keys="encoded").conflict() == replace(options, store="memory").conflict() == ""


def test_a_link_inherits_no_quota() -> None:
    assert LinkOptions.from_config(ProviderOptions(), {}) == (LinkOptions(), [])
    assert LinkOptions.from_config(ProviderOptions(keys_max=7), {}) == (LinkOptions(), [])  # a quota has no default
    assert LINK_OPTIONS.keys() < OPTIONS.keys()


def test_a_store_without_a_provider_uses_its_own_options() -> None:
    store = StoreOptions(
        strict_buckets=True, page_keys_max=2, page_bytes_max=300, key_bytes_max=4, value_bytes_max=5, keys_max=6
    )
    options = ProviderOptions.of_store(store)
    assert replace(options.store_options(), keys_max=6) == store


def test_a_running_provider_accepts_only_live_options() -> None:
    before, after = ProviderOptions(page_keys=1, access="read-only"), ProviderOptions(page_keys=2, ttl_ms=3)
    assert before.with_live_options(after) == ProviderOptions(page_keys=1, ttl_ms=3)


def test_live_options_are_not_options_of_the_store() -> None:
    assert {"access", "quota_keys", "quota_bytes", "require_link", "log_level"} <= LIVE_OPTIONS
    for name in LIVE_OPTIONS:
        options = set_to(name, {"log_level": "warn"}.get(name) or OF_LINK.get(name, ("1",))[0])
        assert options.store_options() == StoreOptions()
        assert options.invocation_limits() == InvocationLimits()


REDIS_LIMITS = ("connections_max", "request_bytes_max", "held_bytes_max", "unsent_bytes_max")
#: The name of an option where it arrives, if it has another name there.
ARRIVES_AS = {
    "page_keys": "page_keys_max",
    "page_bytes": "page_bytes_max",
    "half_open_timeout_ms": "half_open_timeout_s",
    "redis_idle_timeout_ms": "idle_timeout_s",
    **{f"redis_{name}": name for name in REDIS_LIMITS},
    "jetstream_create": "creates",
    "jetstream_adopt": "adopts",
    "jetstream_timeout_ms": "timeout_s",
    "batch": "is_atomic",
    **{f"jetstream_{name}": name for name in ("bucket", "storage", "replicas", "history", "bytes_max", "domain")},
}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_every_option_arrives(name: str) -> None:
    """An option must change exactly one field that the engine and the transport are given, or be listed in `elsewhere`."""
    others = {"transport": "plain", "metrics_address": "127.0.0.1:0", "log_level": "warn"}
    others |= dict.fromkeys(("strict_buckets", "require_link", "structured_logging", "outlive_host"), "true")
    others |= {"jetstream_adopt": "true", "keys": "plain"}
    others |= dict.fromkeys(("restart_for_secrets", "jetstream_create"), "false")
    others |= {"store": "jetstream", "jetstream_storage": "memory", "jetstream_replicas": "3", "batch": "pipelined"}
    others |= {"eviction": "unused", "redis_socket_mode": "660", "redis_flush": "true"}
    others |= {"redis_users": '{"u": {"password": "p"}}'}
    options = set_to(name, others.get(name) or OF_LINK.get(name, ("8",))[0])
    assert ProviderOptions().changed(options) == [name]
    assert options.changed(options) == []
    changed = {
        field.name
        for given, default in (
            (options.store_options(), StoreOptions()),
            (options.invocation_limits(), InvocationLimits()),
            (options.replica_options("b"), ReplicaOptions("b")),
            (options.listener_limits(), ListenerLimits()),
        )
        for field in fields(given)
        if getattr(given, field.name) != getattr(default, field.name)
    }
    elsewhere = {"transport", "metrics_address", "connect_timeout_ms", "stop_timeout_ms"} | LIVE_OPTIONS
    elsewhere |= {"watch_queue_events", "watch_queue_bytes", "watch_timeout_ms", "tls_ca", "tls_certificate", "tls_key"}
    elsewhere |= {"outlive_host", "restart_for_secrets", "store", "snapshot_path", "snapshot_interval_ms"}
    elsewhere |= {"keys", "open_buckets_max", "bucket_idle_ms"}
    elsewhere |= {"redis_address", "redis_password", "redis_users", "redis_buckets", "redis_socket_mode", "redis_flush"}
    elsewhere |= {"redis_tls_certificate", "redis_tls_key", "redis_tls_ca"}
    if name in elsewhere:
        assert not changed, f"option {name} is listed in `elsewhere`, but it changes {sorted(changed)}"
    else:
        expected = ARRIVES_AS.get(name, name)
        assert changed, (
            f"option {name} did not arrive: neither store_options nor invocation_limits passes it on as {expected}. "
            "If it takes effect at another place, add it to `elsewhere` in this test"
        )
        assert changed == {expected}, f"option {name} must change only {expected}, but it changes {sorted(changed)}"


def test_milliseconds_become_seconds() -> None:
    assert set_to("half_open_timeout_ms", "1500").invocation_limits().half_open_timeout_s == 1.5


def test_options_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ProviderOptions().page_keys = 1  # type: ignore[misc] # that is the point


def test_secrets_are_not_shown() -> None:
    hush = "hush-hush"
    for options in (
        StandaloneOptions(nats=f"nats://u:{hush}@a", credentials=hush, nkey=hush),
        ProviderOptions(tls_key=Secret(hush)),
    ):
        assert hush not in repr(options)


def configs(table: OptionTable) -> st.SearchStrategy[dict[str, str]]:
    names = st.sampled_from(sorted(table)) | st.text(max_size=20)
    return st.dictionaries(names, st.text() | st.integers().map(str), max_size=4)


def is_refusal(error: str, table: OptionTable) -> bool:
    """Return True if an error names an option, and what is allowed or meant."""
    return (
        re.match(rf"({'|'.join([*table, *table.old_names])}): found .*, allowed ", error, re.DOTALL) is not None
        or error.startswith("redis_users: not ")
        or re.search(rf": no option has this name; did you mean ({'|'.join(table)})( or \w+)*\?$", error) is not None
    )


@given(configs(OPTIONS))
def test_any_configuration_gives_options_and_faults(config: dict[str, str]) -> None:
    resolved = resolve(host_settings(config, {}))
    assert all(is_refusal(fault.removeprefix("config: "), OPTIONS) for fault in resolved.faults)
    names = OPTIONS.sort_names(config)
    assert set(resolved.unknown.get("config", ())) == set(names.unknown)
    assert set(config) == {*names.options, *names.unknown, *names.faults}
    assert set(ProviderOptions().changed(resolved.options)) <= set(names.options.values()) - resolved.wrong


@given(configs(LINK_OPTIONS))
def test_any_configuration_of_a_link_gives_options_or_an_option_error(config: dict[str, str]) -> None:
    try:
        options, _ = LinkOptions.from_config(ProviderOptions(), config)
    except OptionError as error:
        assert is_refusal(str(error), LINK_OPTIONS)
    else:
        changed = {f.name for f in fields(options) if getattr(options, f.name) != getattr(LinkOptions(), f.name)}
        assert changed <= set(LINK_OPTIONS.sort_names(config).options.values())
