"""Where options come from, which source wins, and what is reported about faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from keyvalue_provider.config.options import OPTIONS, SERVE_OPTIONS, ProviderOptions, StandaloneOptions
from keyvalue_provider.config.sources import (
    FILE_BYTES_MAX,
    Setting,
    SourceError,
    environment_settings,
    file_settings,
    flag_settings,
    host_settings,
    resolve,
)
from keyvalue_provider.host.secret import Secret

HUSH = "hush-hush"


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "keyvalue.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_later_source_overrides_an_earlier_one(tmp_path: Path) -> None:
    path = written(tmp_path, "page_keys = 1\nkeys_max = 1\nvalue_bytes_max = 1\nnats = 'file'\n")
    environment = {"KEYVALUE_PAGE_KEYS": "2", "KEYVALUE_KEYS_MAX": "2", "KEYVALUE_NATS": "variable", "PAGE_KEYS": "9"}
    resolved = resolve(
        file_settings(path),
        environment_settings(environment),
        flag_settings({"page_keys": "3", "keys_max": None}),
        standalone=True,
    )
    assert resolved.faults == ()
    options = resolved.options
    assert (options.page_keys, options.keys_max, options.value_bytes_max) == (3, 2, 1)
    assert resolved.standalone.nats == "variable"
    assert {name: setting.origin for name, setting in resolved.settings.items()} == {
        "page_keys": "command line",
        "keys_max": "environment",
        "value_bytes_max": str(path),
        "nats": "environment",
    }


def test_a_secret_overrides_the_configuration_and_is_not_shown() -> None:
    secrets = {"page_keys": Secret(HUSH), "bucket": Secret(b"b"), "access": Secret(b"\xff"), "other": Secret(HUSH)}
    config = {"page_keys": "7", "bucket": "c", "unknown": HUSH}
    resolved = resolve(environment_settings({"KEYVALUE_BUCKET": "d"}), host_settings(config, secrets))
    assert resolved.options == ProviderOptions(bucket=b"b")
    assert sorted(resolved.faults) == [
        "secrets: access: found 1 characters, allowed read-write or read-only",
        "secrets: page_keys: found 9 characters, allowed a whole number from 1",
    ]
    assert resolved.unknown == {"config": ("unknown",), "secrets": ("other",)}
    assert resolved.settings["bucket"] == Setting("b", "secrets", is_secret=True)
    assert HUSH not in repr(resolved)


@pytest.mark.parametrize(
    ("name", "text"), [("metrics_address", "h:hush"), ("shards_min", "7031"), ("page_keys", "9" * 19)]
)
def test_a_fault_of_a_secret_does_not_show_it(name: str, text: str) -> None:
    resolved = resolve(host_settings({}, {name: Secret(text)}))
    (fault,) = resolved.faults
    assert fault.startswith(f"secrets: {name}: found ")
    assert text not in fault


@pytest.mark.parametrize("name", [name for name, option in SERVE_OPTIONS.items() if option.value_type.is_secret])
@pytest.mark.parametrize("text", [f"{HUSH}\udce4", f"{HUSH}\ud800", f"nats://u:{HUSH}@a b:c", f'{{"u": "{HUSH}"}}', ""])
def test_a_fault_of_a_secret_option_does_not_show_it(name: str, text: str) -> None:
    for source in (
        environment_settings({f"KEYVALUE_{name.upper()}": text}),
        host_settings({name: text}, {}),
        host_settings({}, {name: Secret(text)}),
        flag_settings({name: text}),
        {name: Setting(text, "keyvalue.toml")},
    ):
        resolved = resolve(source, standalone=True)
        assert HUSH not in "".join(resolved.faults)
        assert resolved.wrong == {name} or "\ud800" not in text


def test_every_fault_is_reported_with_its_origin() -> None:
    resolved = resolve(
        environment_settings({"KEYVALUE_TTL_MS": "soon"}), host_settings({"page_keys": "0", "shards_min": "3"}, {})
    )
    assert resolved.faults == (
        "environment: ttl_ms: found 'soon', allowed a whole number from 1",
        "config: page_keys: found '0', allowed a whole number from 1",
        "config: shards_min: found 3, allowed a power of two from 1 to 65536",
    )


def test_standalone_options_are_unknown_under_a_host() -> None:
    resolved = resolve(environment_settings({"KEYVALUE_NATS": "elsewhere"}), host_settings({"nats": "here"}, {}))
    assert resolved.unknown == {"environment": ("nats",), "config": ("nats",)}
    assert resolved.standalone == StandaloneOptions()


def test_values_of_a_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "\ufeffpage_keys = 1_000\nrequire_link = true\nbuckets = ['a', 'b']\nprefix = 'default.kv'\n"
    )
    resolved = resolve(file_settings(path), standalone=True)
    assert resolved.options == ProviderOptions(require_link=True, buckets=frozenset({b"a", b"b"}))
    assert resolved.standalone.prefix == "default.kv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"page_keys = {'1' * 5_000}", "Exceeds the limit"),
        ("page_keys", "Expected '=' after a key"),
        (b"page_keys = '\xff'", "the file is not UTF-8, as TOML requires"),
        ("#" * (FILE_BYTES_MAX + 1), f"the file is larger than the limit of {FILE_BYTES_MAX} bytes"),
        ("a = " + "[" * 5_000, ""),
    ],
)
def test_an_unusable_file(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SourceError) as caught:
        file_settings(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_every_value_of_a_file_that_is_not_an_option_is_a_fault(tmp_path: Path) -> None:
    path = written(
        tmp_path, "page_keys = 1.5\nbuckets = ['a', 1]\nnats = ['a', 'b,c']\n[prefix]\npage_keys = 1\n[other]\n"
    )
    resolved = resolve(file_settings(path), standalone=True)
    kinds = "expected a string, a whole number, a boolean or an array of strings"
    assert resolved.faults == (
        f"{path}: other: found a table; options are not in tables",
        f"{path}: page_keys: found a float, {kinds}",
        f"{path}: buckets: found an array with other values than strings, {kinds}",
        f"{path}: nats: strings in an array must not contain commas",
        f"{path}: prefix: found a table, {kinds}",
    )
    assert resolved.wrong == {"page_keys", "buckets", "nats", "prefix"}
    assert resolved.unknown == {}


def test_unknown_names_are_reported_and_ignored() -> None:
    config = {"page_keys": "7", "": "", "url": "redis://"}
    resolved = resolve(environment_settings({"KEYVALUE_PORT": "1", "PAGE_KYES": "2"}), host_settings(config, {}))
    assert resolved.options == ProviderOptions(page_keys=7)
    assert resolved.unknown == {"config": ("", "url"), "environment": ("port",)}
    assert resolved.faults == ()


def test_a_misspelt_name_is_a_fault_in_every_source(tmp_path: Path) -> None:
    path = written(tmp_path, "acess = 'read-only'\n[Buckets]\n")
    resolved = resolve(
        file_settings(path), environment_settings({"KEYVALUE_PAGE_KYES": "1", "KEYVALUE_ACCESS": "read-only"})
    )
    assert resolved.faults == (
        f"{path}: acess: no option has this name; did you mean access?",
        f"{path}: Buckets: no option has this name; did you mean buckets?",
        "environment: page_kyes: no option has this name; did you mean page_keys?",
    )
    assert resolved.unknown == {}
    assert resolve(host_settings({"ttl-ms": HUSH}, {"tls_kye": Secret(HUSH)})).faults == (
        "config: ttl-ms: no option has this name; did you mean ttl_ms?",
        "secrets: tls_kye: no option has this name; did you mean tls_key?",
    )


def test_old_names_still_work() -> None:
    resolved = resolve(environment_settings({"KEYVALUE_BYTES_MAX": "7"}), host_settings({"keys_max": "8"}, {}))
    assert resolved.options == ProviderOptions(quota_bytes=7, keys_max=8)
    assert resolved.remarks == ("environment: bytes_max is deprecated (use quota_bytes)",)
    assert resolved.faults == ()
    assert resolved.settings["quota_bytes"].origin == "environment"
    overridden = resolve(environment_settings({"KEYVALUE_BYTES_MAX": "7"}), host_settings({"quota_bytes": "8"}, {}))
    assert overridden.options == ProviderOptions(quota_bytes=8)


NEEDY = [
    ("jetstream_bucket", "b", "store", "jetstream"),
    ("keys", "plain", "store", "jetstream"),
    ("batch", "pipelined", "store", "jetstream"),
    ("bucket_idle_ms", "7", "store", "jetstream"),
    ("redis_flush", "true", "redis_address", "h:1"),
    ("redis_password", HUSH, "redis_address", "/a.sock"),
    ("snapshot_interval_ms", "7", "snapshot_path", "file"),
]


@pytest.mark.parametrize(("name", "text", "needed", "value"), NEEDY)
def test_an_option_without_the_one_that_it_needs_is_a_remark(name: str, text: str, needed: str, value: str) -> None:
    missing = f"{needed}={value}" if needed == "store" else needed
    given = host_settings({name: text}, {})
    assert resolve(given).remarks == (f"config: {name} has no effect: it needs {missing}",)
    assert resolve(given).faults == ()
    assert resolve(given, host_settings({needed: value}, {})).remarks == ()
    assert resolve(given, host_settings({needed: ""}, {})).remarks == (), "the fault comes first"
    default = OPTIONS[name].default
    if default is not None:
        assert resolve(host_settings({name: OPTIONS[name].shown(default)}, {})).remarks == ()


def test_the_options_of_the_optional_parts_need_them() -> None:
    needed = {name: option.needs for name, option in OPTIONS.items()}
    for name in OPTIONS.keys() - {"redis_address"}:
        for begin, what in (("jetstream_", "store=jetstream"), ("redis_", "redis_address")):
            assert not name.startswith(begin) or needed[name] == what, name
    for needs in filter(None, needed.values()):
        name, _, value = needs.partition("=")
        OPTIONS[name].value_type.parse(name, value or "/x")


def test_an_old_name_next_to_the_present_one_is_a_fault() -> None:
    resolved = resolve(host_settings({"quota_bytes": "8", "bytes_max": "8"}, {}))
    assert resolved.faults == (
        "config: bytes_max: this is the old name of quota_bytes, which is set too; set only quota_bytes",
    )
    assert resolved.wrong == {"quota_bytes"}


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.toml: No such file or directory$"):
        file_settings(tmp_path / "none.toml")
