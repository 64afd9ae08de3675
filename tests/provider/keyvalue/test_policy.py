"""The policy: what each caller may do, with which buckets, and what is reported about links that are unusable or odd.

Links are put and deleted as by the host's messages. Calls of a real service show what a caller may do.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.config.options import LINK_OPTIONS, LinkOptions, ProviderOptions
from keyvalue_provider.host.links import LinkDefinition
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.keyvalue.handles import DeniedHandles
from keyvalue_provider.keyvalue.policy import Access, Policy, Right, reach_of
from keyvalue_replica.options import LinkedOptions
from keyvalue_transport.keyvalue.errors import AccessDeniedError, NoSuchStoreError
from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.wrpc.handler import ANONYMOUS, Caller
from tests.conftest import options_of
from tests.provider.keyvalue.scene import (
    CALLS,
    KEY,
    LINKED,
    OTHER,
    SECRET,
    STRANGER,
    WRITES,
    Scene,
    at_once,
    warnings,
)

# Names


@pytest.mark.parametrize(
    ("options", "name", "reached"),
    [
        ({}, b"", b""),
        ({"bucket": "one"}, b"", b"one"),
        ({"bucket": "one", "bucket_prefix": "p-"}, b"b", b"one"),
        ({"bucket_prefix": "ü"}, "ß".encode(), "üß".encode()),
        ({"buckets": "a, b c ,"}, b"b c", b"b c"),
        ({"buckets": "a,b"}, b"", None),
        ({"buckets": "a,b"}, b"a,b", None),
        ({"buckets": "a,b", "bucket_prefix": "p-"}, b"b", b"p-b"),
        ({"buckets": "a,b", "bucket_prefix": "p-"}, b"p-b", None),
        ({"buckets": "a,b", "bucket": "one"}, b"b", b"one"),
        ({"buckets": "a,b", "bucket": "one"}, b"one", None),
    ],
)
@pytest.mark.parametrize("of_provider", [False, True])
def test_the_bucket_that_a_name_means(
    options: dict[str, str], name: bytes, reached: bytes | None, of_provider: bool
) -> None:
    scene = Scene(**(options if of_provider else {}))
    scene.put(**({} if of_provider else options))
    if reached is None:
        for call in CALLS.values():
            with pytest.raises(NoSuchStoreError):
                call(scene.service, LINKED, name)
        assert len(scene.store) == 0
    else:
        scene.service.set(LINKED, name, b"k", b"v")
        assert scene.store.bucket_names() == [reached]
        assert scene.service.get(LINKED, name, b"k") == b"v"
        assert scene.service.list_keys(LINKED, name, None) == ([b"k"], None)


NAMES = st.text(st.sampled_from("abc"), max_size=3)


@given(
    st.none() | NAMES.filter(bool), st.none() | NAMES, st.none() | st.lists(NAMES.filter(bool), min_size=1), st.data()
)
def test_a_quota_covers_all_reachable_buckets_and_no_others(
    bucket: str | None, prefix: str | None, buckets: list[str] | None, data: st.DataObject
) -> None:
    config = {"bucket": bucket, "bucket_prefix": prefix, "buckets": None if buckets is None else ",".join(buckets)}
    options, _ = LinkOptions.from_config(ProviderOptions(), {k: v for k, v in config.items() if v is not None})
    reach, access = reach_of(options), Access.of(options)
    name = data.draw(NAMES).encode()
    try:
        reached = access.reached(name)
    except NoSuchStoreError:
        assert name not in (options.buckets or ())
    else:
        assert reach.covers(reached)
    if reach.covers(name):  # then some name reaches it
        given = [name.removeprefix((prefix or "").encode())] if bucket is None else (options.buckets or {b"any"})
        assert {access.reached(each) for each in given} == {name}


# Reading and writing


@pytest.mark.parametrize("name", CALLS)
def test_a_read_only_link_can_read_but_not_write(name: str) -> None:
    scene = Scene()
    scene.put(access=" Read-Only ", buckets="b")
    scene.service.set(OTHER, b"b", b"k", b"7")
    call = CALLS[name]
    if name in WRITES:
        for bucket in (b"b", b"not allowed either"):
            with pytest.raises(AccessDeniedError):
                call(scene.service, LINKED, bucket)
    else:
        assert call(scene.service, LINKED, b"b") == call(scene.service, OTHER, b"b")
    assert scene.service.get(OTHER, b"b", b"k") == b"7"
    assert scene.store.bucket_names() == [b"b"]


def test_a_link_may_write_where_the_provider_lets_others_read() -> None:
    scene = Scene(access="read-only")
    scene.put(access="read-write")
    scene.put(OTHER)
    scene.service.set(LINKED, b"b", b"k", b"v")
    for caller in (OTHER, STRANGER, ANONYMOUS):
        assert scene.service.get(caller, b"b", b"k") == b"v"
        with pytest.raises(AccessDeniedError):
            scene.service.set(caller, b"b", b"k", b"v")


# Callers


@pytest.mark.parametrize(
    ("caller", "reached"),
    [
        (Caller("component", "default"), b"default-b"),
        (Caller("component", None), b"default-b"),  # a link's name is "default" if none is given
        (Caller("component", ""), b"default-b"),
        (Caller("component", "third"), b"linkless-b"),
        (Caller("Component", "default"), b"linkless-b"),
        (Caller(None, "default"), b"linkless-b"),
        (Caller("", "default"), b"linkless-b"),
        (Caller(KEY, "default"), b"linkless-b"),
        (ANONYMOUS, b"linkless-b"),
        (Caller("other", "second"), b"second-b"),
        (Caller("other", None), b"linkless-b"),  # it has a link, but none called default
        (Caller("other", "default"), b"linkless-b"),
    ],
)
def test_headers_select_a_link_or_none(caller: Caller, reached: bytes) -> None:
    for require_link in ("false", "true"):
        scene = Scene(bucket_prefix="linkless-", require_link=require_link)
        scene.put(bucket_prefix="default-")
        scene.put(Caller("other", "second"), bucket_prefix="second-")
        scene.links.put(LinkDefinition(KEY, "component", "default", target_config={"bucket": "of-another"}))
        scene.links_changed()
        if require_link == "true" and reached == b"linkless-b":
            for call in CALLS.values():
                with pytest.raises(AccessDeniedError):
                    call(scene.service, caller, b"b")
        else:
            scene.service.set(caller, b"b", b"k", b"v")
            assert scene.store.bucket_names() == [reached]


def test_too_many_links_deny_callers_without_one() -> None:
    scene = Scene()
    scene.put()
    scene.service.get(STRANGER, b"b", b"k")
    scene.links.overflowed = True
    scene.links_changed()
    with pytest.raises(AccessDeniedError):
        scene.service.get(STRANGER, b"b", b"k")
    scene.service.get(LINKED, b"b", b"k")
    scene.configure(ProviderOptions())
    with pytest.raises(AccessDeniedError):
        scene.service.get(ANONYMOUS, b"b", b"k")


# Changes


def test_the_limits_for_reading_parameters_are_the_largest_of_any_caller() -> None:
    scene = Scene(key_bytes_max="8", value_bytes_max="8", bucket_name_bytes_max="4", batch_keys_max="5")
    limits = scene.service.parameter_limits
    own = ParameterLimits(bucket_bytes_max=4, key_bytes_max=8, value_bytes_max=8, batch_keys_max=5)
    assert limits == own
    scene.put(key_bytes_max="2", value_bytes_max="100")
    scene.put(OTHER, key_bytes_max="50", value_bytes_max="20")
    scene.put(STRANGER, key_bytes_max="1000", value_bytes_max="none")
    assert (limits.key_bytes_max, limits.value_bytes_max) == (50, 100)
    scene.delete(OTHER)
    assert (limits.key_bytes_max, limits.value_bytes_max) == (8, 100)
    scene.delete()
    assert limits == own
    assert scene.service.parameter_limits is limits


SOURCES = st.sampled_from(["a", "b", "c"])
LINK_NAMES = st.sampled_from(["default", "second"])
CONFIGS = st.fixed_dictionaries(
    {},
    optional={
        "key_bytes_max": st.sampled_from(["5", "70_000", "80_000", "none"]),
        "value_bytes_max": st.sampled_from(["5", "20_000_000"]),
        "bucket_prefix": st.sampled_from(["", "p"]),
        "quota_keys": st.sampled_from(["1", "2"]),
        "access": st.sampled_from(["read-only", "read-write"]),
    },
)
PROVIDER_CONFIGS = st.fixed_dictionaries(
    {}, optional={"bucket": st.just("one"), "batch_keys_max": st.just("7"), "require_link": st.just("true")}
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "unreadable"]), SOURCES, LINK_NAMES, CONFIGS)
    | st.tuples(st.just("delete"), SOURCES, LINK_NAMES)
    | st.tuples(st.just("callee"), SOURCES)
    | st.tuples(st.just("configure"), PROVIDER_CONFIGS)
    | st.tuples(st.sampled_from(["apply", "overflow"])),
    max_size=30,
)


@given(CHANGES)
def test_a_changed_policy_is_the_policy_of_all_links(changes: list[tuple[Any, ...]]) -> None:
    """Each change reads only the changed links, and no caller keeps handles of an earlier policy."""
    scene = Scene()
    options = ProviderOptions()
    callers = [Caller(source, name) for source in ("a", "b", "c", None) for name in ("default", "second", None, "")]
    for change, *details in [*changes, ("apply",)]:
        match change, details:
            case "put", (source, name, config):
                scene.links.put(LinkDefinition(source, KEY, name, target_config=config))
            case "unreadable", (source, name, _):
                scene.links.put_unreadable((source, KEY, name), "it has secrets")
            case "delete", (source, name):
                scene.links.delete((source, KEY, name))
            case "callee", (target,):
                scene.links.put(LinkDefinition(KEY, target, "default", interfaces=("watcher",)))
            case "configure", (config,):
                options = options_of(config)
                scene.configure(options)
            case "overflow", ():
                scene.links.overflowed = True
        if change != "apply":
            continue
        scene.links_changed()
        fresh = Policy(scene.store.options, scene.links, options)
        assert scene.service.parameter_limits == fresh.parameter_limits
        for caller in callers:
            assert asdict(scene.policy.access_of(caller)) == asdict(fresh.access_of(caller))
            handles, right = scene.service._handles[caller], fresh.access_of(caller).right
            assert isinstance(handles.readable, DeniedHandles) is (right is Right.DENIED)
            assert isinstance(handles.writable, DeniedHandles) is (right is not Right.READ_WRITE)
            if right is not Right.DENIED:
                quota = fresh.access_of(caller).quota
                bucket: Any = handles.readable[b"b"]
                held = bucket._quota
                assert (held and (held.reach, held.keys_max)) == (quota and (quota.reach, quota.quota_keys))
        reaches = {access.quota.reach for access in map(fresh.access_of, callers) if access.quota is not None}
        assert scene.counted_reaches == len(reaches)


def test_options_of_the_provider_that_change_while_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.put(url=SECRET)
    scene.put(OTHER, bucket="own")
    assert len(warnings(caplog)) == 1
    config = {"bucket": "theirs", "batch_keys_max": "7", "answer_bytes_max": "9", "value_bytes_max": "1"}
    scene.configure(options_of(config))
    kv = scene.service
    for caller in (LINKED, OTHER, ANONYMOUS):
        kv.set(caller, b"b", (caller.source_id or "").encode(), b"value")
    assert sorted(at_once(kv.list_keys(ANONYMOUS, b"", None)).keys) == [b"", b"component"]
    assert sorted(at_once(kv.list_keys(OTHER, b"", None)).keys) == [b"other"]
    limits = kv.parameter_limits
    assert (limits.batch_keys_max, limits.answer_bytes_max) == (7, 9)
    assert (
        limits.value_bytes_max == ParameterLimits().value_bytes_max
    )  # the store's option, which is fixed when it is made
    scene.configure(ProviderOptions(require_link=True))
    kv.get(LINKED, b"b", b"k")
    with pytest.raises(AccessDeniedError):
        kv.get(ANONYMOUS, b"b", b"k")
    assert len(warnings(caplog)) == 1  # once for each definition
    assert len(scene.links.remarks) == 1


# Options that are unknown or malformed


LINE = "link component -> kv (default): "


@pytest.mark.parametrize(
    ("config", "remark"),
    [
        ({"url": SECRET, "timeout": "b"}, "ignored, since no option has this name: timeout, url"),
        ({"keys_max": "1"}, "keys_max is deprecated (use quota_keys)"),
        (
            {"keys_max": "1", "url": SECRET},
            "ignored, since no option has this name: url; keys_max is deprecated (use quota_keys)",
        ),
    ],
)
def test_an_unknown_or_old_name_is_logged_once_and_noted(
    caplog: pytest.LogCaptureFixture, config: dict[str, str], remark: str
) -> None:
    scene = Scene()
    for _ in range(2):
        scene.put(**config)
        scene.put(OTHER)
    assert warnings(caplog) == scene.links.remarks == [LINE + remark]
    assert scene.links.unusable == []
    scene.service.set(LINKED, b"b", b"k", b"v")
    scene.put()
    assert scene.links.remarks == []
    assert len(warnings(caplog)) == 1


def test_the_first_of_many_unknown_options_are_named(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.put(**{f"unknown-{number:05}": "" for number in range(10_000)})
    (remark,) = scene.links.remarks
    assert "unknown-00000, unknown-00001" in remark
    assert len(remark) < 400
    assert len(warnings(caplog)[0]) < 400


#: A malformed text for each option, with its message. A misspelt name would be ignored, and the link writable.
MALFORMED = {
    "bucket": ("", "found 0 characters, allowed "),
    "bucket_prefix": ("\ud800", "found 1 characters, allowed "),
    "buckets": (" , ", "found 3 characters, allowed "),
    "strict_buckets": ("perhaps", "found 7 characters, allowed "),
    "access": (SECRET, f"found {len(SECRET)} characters, allowed "),
    "page_keys": ("0", "found 1 characters, allowed "),
    "page_bytes": (SECRET, f"found {len(SECRET)} characters, allowed "),
    "key_bytes_max": ("1e3", "found 3 characters, allowed "),
    "value_bytes_max": (str(2**30 + 1), "found a number of 10 digits, allowed "),
    "quota_keys": ("", "found 0 characters, allowed "),
    "quota_bytes": ("many", "found 4 characters, allowed "),
    "reads": (SECRET, f"found {len(SECRET)} characters, allowed "),
    "keys": (SECRET, f"found {len(SECRET)} characters, allowed "),
    "counter": (SECRET, f"found {len(SECRET)} characters, allowed "),
    "enable_bucket_auto_create": ("perhaps", "found 7 characters, allowed "),
    "js_domain": ("a.b", "found 3 characters, allowed "),
    "ttl_ms": ("9" * 19, "found a number of 19 digits, allowed 1 to "),
    "acess": ("read-only", "no option has this name; did you mean access?"),
}


def test_every_option_can_be_malformed() -> None:
    assert MALFORMED.keys() - {"acess"} == LINK_OPTIONS.keys()


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_option_denies_everything_only_to_its_own_link(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Only the length of the value is shown, since it may be a secret in the wrong option."""
    text, message = MALFORMED[name]
    scene = Scene()
    scene.put(OTHER)
    scene.put()
    scene.service.set(LINKED, b"b", b"k", b"1")
    for _ in range(2):
        scene.put(**{"page_keys": "7", "url": SECRET, name: text})
    for call in CALLS.values():
        with pytest.raises(AccessDeniedError):
            call(scene.service, LINKED, b"b")
        call(scene.service, OTHER, b"c")
        call(scene.service, ANONYMOUS, b"c")
    (line,) = scene.links.unusable
    assert line.startswith(f"{LINE}everything is denied: {name}: {message}")
    assert SECRET not in line
    assert warnings(caplog) == [line]
    assert scene.links.remarks == []
    assert len(scene.links) == 2
    scene.put()
    assert scene.links.unusable == []
    assert scene.service.get(LINKED, b"b", b"k") == b"1"
    scene.put(**{name: text})
    scene.delete()
    assert scene.links.unusable == []
    assert scene.service.get(LINKED, b"b", b"k") == b"1"


def secrets_of(scene: Scene) -> Iterator[str]:
    """Yield every text about links that may be shown."""
    yield from scene.links.unusable
    yield from scene.links.remarks
    policy, handles = scene.policy, scene.service._handles
    things = [policy, scene.service, handles, scene.links, *scene.links, policy.access_of(LINKED), *handles.values()]
    things += [*policy._grants.values(), handles._quotas]
    for thing in things:
        yield repr(thing)
        yield str(thing)


def test_secrets_are_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    scene = Scene()
    for malformed in ({}, {"ttl_ms": "soon"}):
        scene.links.put(
            LinkDefinition(
                "component",
                KEY,
                "default",
                source_config={"password": SECRET},
                target_config={"url": f"redis://:{SECRET}@host", "quota_keys": "7", **malformed},
                source_secrets={"password": Secret(SECRET)},
                target_secrets={"password": Secret(SECRET.encode()), "quota_keys": Secret(SECRET)},
            )
        )
        scene.links_changed()
        shown = "\n".join([*secrets_of(scene), caplog.text])
        assert "component" in shown
        assert SECRET not in shown


def test_no_link_changes_the_access_of_a_user() -> None:
    scene, user = Scene(store="jetstream", keys="plain"), Caller("no component", "user")
    scene.policy.add_user(user, LINK_OPTIONS.read({"access": "read-only", "bucket": "b", "key_bytes_max": "70_000"})[0])

    def check() -> None:
        access, buckets = scene.policy.access_of(user), scene.policy.linked_buckets()
        assert (access.right, access.bucket, buckets) == (Right.READ_ONLY, b"b", {("", b"b"): False})
        assert scene.service.parameter_limits.key_bytes_max == 70_000

    check()
    scene.put(user, access="read-write", bucket="b", key_bytes_max="5")
    check()
    scene.delete(user)
    check()


def test_links_name_the_kv_buckets_that_are_opened_for_them() -> None:
    scene = Scene(store="jetstream", keys="plain", js_domain="hub")
    scene.put(bucket="one")
    scene.put(OTHER, bucket="one", js_domain="leaf", enable_bucket_auto_create="true")
    scene.put(STRANGER, bucket="own", keys="encoded")
    assert scene.policy.linked_buckets() == {("hub", b"one"): False, ("leaf", b"one"): True}
    assert "keys=encoded needs a provider with keys=encoded" in scene.links.unusable[0]
    access = scene.policy.access_of(OTHER)
    assert reach_of(LinkOptions(bucket=b"one", keys="plain", js_domain="leaf")).names == frozenset({b"leaf/one"})
    assert isinstance(access.limits, LinkedOptions)
    assert (access.limits.is_plain, access.limits.creates, access.limits.domain) == (True, True, "leaf")
    scene.delete(OTHER)
    scene.put()
    assert scene.policy.linked_buckets() == {}
    encoded = Scene(store="jetstream")
    encoded.put(bucket="one")
    assert encoded.policy.linked_buckets() == {}
