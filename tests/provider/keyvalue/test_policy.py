"""The policy: who may do what, with which buckets, and what is said of links that can't be used or are odd.

Links are put and deleted as the host's messages do it. What a caller may do shows in calls of a real service.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.config.options import LINK_OPTIONS, LinkOptions, ProviderOptions
from keyvalue_provider.host.links import LinkDefinition
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.keyvalue.policy import Access, Reach
from keyvalue_transport.keyvalue.errors import AccessDeniedError, NoSuchStoreError, OtherError
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
    Call,
    Scene,
    at_once,
    warnings,
)

# Names


@pytest.mark.parametrize(
    ("options", "name", "reached"),
    [
        ({}, b"b", b"b"),
        ({}, b"", b""),
        ({"bucket": "one"}, b"b", b"one"),
        ({"bucket": "one"}, b"", b"one"),
        ({"bucket": "one", "bucket_prefix": "p-"}, b"b", b"one"),
        ({"bucket_prefix": "p-"}, b"b", b"p-b"),
        ({"bucket_prefix": ""}, b"b", b"b"),
        ({"bucket_prefix": "ü"}, "ß".encode(), "üß".encode()),
        ({"buckets": "a, b\t,c"}, b"b", b"b"),
        ({"buckets": "a, b c ,"}, b"b c", b"b c"),
        ({"buckets": "a,b"}, b"c", None),
        ({"buckets": "a,b"}, b"", None),
        ({"buckets": "a,b"}, b" b", None),
        ({"buckets": "a,b"}, b"a,b", None),
        ({"buckets": "a,b", "bucket_prefix": "p-"}, b"b", b"p-b"),
        ({"buckets": "a,b", "bucket_prefix": "p-"}, b"p-b", None),
        ({"buckets": "a,b", "bucket": "one"}, b"b", b"one"),
        ({"buckets": "a,b", "bucket": "one"}, b"one", None),
    ],
)
@pytest.mark.parametrize("of_provider", [False, True])
def test_which_bucket_a_name_means(
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
def test_a_quota_is_of_all_buckets_that_are_reached_and_of_no_others(
    bucket: str | None, prefix: str | None, buckets: list[str] | None, data: st.DataObject
) -> None:
    config = {"bucket": bucket, "bucket_prefix": prefix, "buckets": None if buckets is None else ",".join(buckets)}
    options, _ = LinkOptions.from_config(ProviderOptions(), {k: v for k, v in config.items() if v is not None})
    reach, access = Reach.of(options), Access.of(options)
    name = data.draw(NAMES).encode()
    try:
        reached = access.reached(name)
    except NoSuchStoreError:
        assert name not in (options.buckets or ())
    else:
        assert reach.covers(reached)
    if reach.covers(name):  # then some name leads there
        given = [name.removeprefix((prefix or "").encode())] if bucket is None else (options.buckets or {b"any"})
        assert {access.reached(each) for each in given} == {name}


# Reading and writing


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_link_without_options_allows_everything(call: Call) -> None:
    scene = Scene()
    scene.put()
    call(scene.service, LINKED, b"b")
    call(scene.service, ANONYMOUS, b"b")


def test_a_read_only_link_reads() -> None:
    scene = Scene()
    scene.put(access="read-only")
    scene.service.set(OTHER, b"b", b"k", b"v")
    assert scene.service.get(LINKED, b"b", b"k") == b"v"
    assert scene.service.exists(LINKED, b"b", b"k") is True
    assert scene.service.list_keys(LINKED, b"b", None) == ([b"k"], None)
    assert scene.service.get_many(LINKED, b"b", [b"k", b"no"]) == [b"v", None]


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_a_read_only_link_does_not_write(call: Call) -> None:
    scene = Scene()
    scene.put(access=" Read-Only ", buckets="b")
    scene.service.set(OTHER, b"b", b"k", b"7")
    for bucket in (b"b", b"not allowed either"):
        with pytest.raises(AccessDeniedError):
            call(scene.service, LINKED, bucket)
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


HEADERS: list[tuple[Caller, bool]] = [
    (Caller("component", "default"), True),
    (Caller("component", None), True),  # a link's name is "default" where none is given
    (Caller("component", "second"), False),
    (Caller("component", ""), True),
    (Caller("Component", "default"), False),
    (Caller(None, "default"), False),
    (Caller("", "default"), False),
    (Caller(KEY, "default"), False),
    (ANONYMOUS, False),
]


@pytest.mark.parametrize(("caller", "is_linked"), HEADERS)
def test_headers_name_a_link_or_none(caller: Caller, is_linked: bool) -> None:
    scene = Scene(bucket_prefix="linkless-")
    scene.put(bucket_prefix="linked-")
    scene.links.put(LinkDefinition(KEY, "component", "default", target_config={"bucket": "of-another"}))
    scene.links_changed()
    scene.service.set(caller, b"b", b"k", b"v")
    assert scene.store.bucket_names() == [b"linked-b" if is_linked else b"linkless-b"]


@pytest.mark.parametrize(("caller", "is_linked"), HEADERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_link_can_be_required(caller: Caller, is_linked: bool, call: Call) -> None:
    scene = Scene(require_link="true")
    scene.put()
    if is_linked:
        call(scene.service, caller, b"b")
        scene.delete()
    with pytest.raises(AccessDeniedError):
        call(scene.service, caller, b"b")


def test_too_many_links_to_be_kept_deny_callers_without_one() -> None:
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


def test_a_link_that_is_not_the_default_one_needs_its_name() -> None:
    scene = Scene(require_link="true")
    scene.put(Caller("component", "second"))
    scene.service.set(Caller("component", "second"), b"b", b"k", b"v")
    for name in (None, "default"):
        with pytest.raises(AccessDeniedError):
            scene.service.get(Caller("component", name), b"b", b"k")


# What changes


def test_a_reader_of_parameters_reads_what_any_caller_may_send() -> None:
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
    assert limits.value_bytes_max == ParameterLimits().value_bytes_max  # the store's, which stays as it was made
    scene.configure(ProviderOptions(require_link=True))
    kv.get(LINKED, b"b", b"k")
    with pytest.raises(AccessDeniedError):
        kv.get(ANONYMOUS, b"b", b"k")
    assert len(warnings(caplog)) == 1  # of each definition once
    assert len(scene.links.remarks) == 1


# Options that are unknown or malformed


def test_an_unknown_option_is_ignored_warned_of_once_and_named(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    for _ in range(2):
        scene.put(url="redis://" + SECRET, timeout="b", page_keys="1")
        scene.put(OTHER)
    remark = "ignored, since no option has this name: timeout, url"
    assert warnings(caplog) == [f"link component -> kv (default): {remark}"]
    assert scene.links.remarks == [f"link component -> kv (default): {remark}"]
    assert scene.links.unusable == []
    scene.service.set_many(LINKED, b"b", {b"1": b"", b"2": b""})
    assert len(at_once(scene.service.list_keys(LINKED, b"b", None)).keys) == 1
    scene.put(url="redis://" + SECRET)
    assert len(warnings(caplog)) == 2
    assert scene.links.remarks == ["link component -> kv (default): ignored, since no option has this name: url"]
    scene.put()
    assert scene.links.remarks == []
    assert len(warnings(caplog)) == 2


def test_a_misspelt_option_denies_everything(caplog: pytest.LogCaptureFixture) -> None:
    """It would be ignored, and the link writable."""
    scene = Scene()
    scene.put(OTHER)
    for _ in range(2):
        scene.put(acess="read-only", url=SECRET)
    for call in CALLS.values():
        with pytest.raises(AccessDeniedError):
            call(scene.service, LINKED, b"b")
        call(scene.service, OTHER, b"c")
    line = "link component -> kv (default): everything is denied: acess: no option has this name; did you mean access?"
    assert scene.links.unusable == warnings(caplog) == [line]
    scene.put(access="read-only")
    assert scene.links.unusable == []
    scene.service.get(LINKED, b"b", b"k")


def test_an_old_name_works_is_warned_of_once_and_named(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    for _ in range(2):
        scene.put(keys_max="1", url=SECRET)
        scene.put(OTHER)
    line = (
        "link component -> kv (default): ignored, since no option has this name: url; "
        "keys_max is deprecated (use quota_keys)"
    )
    assert scene.links.remarks == warnings(caplog) == [line]
    scene.service.set(LINKED, b"b", b"k", b"v")
    with pytest.raises(OtherError, match=r"the buckets of this quota would hold 2 keys; the limit is 1 \(quota_keys\)"):
        scene.service.set(LINKED, b"b", b"new", b"v")
    scene.put(keys_max="1", quota_keys="2")
    with pytest.raises(AccessDeniedError):
        scene.service.get(LINKED, b"b", b"k")


def test_of_many_unknown_options_the_first_are_named(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.put(**{f"unknown-{number:05}": "" for number in range(10_000)})
    (remark,) = scene.links.remarks
    assert "unknown-00000, unknown-00001" in remark
    assert len(remark) < 400
    assert len(warnings(caplog)[0]) < 400


MALFORMED = {
    "bucket": "",
    "bucket_prefix": "\ud800",
    "buckets": " , ",
    "strict_buckets": "perhaps",
    "access": "write-only",
    "page_keys": "0",
    "page_bytes": "-1",
    "key_bytes_max": "1e3",
    "value_bytes_max": str(2**30 + 1),
    "quota_keys": "",
    "quota_bytes": "many",
    "ttl_ms": "9" * 19,
}


def test_every_option_can_be_malformed() -> None:
    assert MALFORMED.keys() == LINK_OPTIONS.keys()


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_option_denies_everything_to_its_link_alone(name: str, caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()
    scene.put(OTHER)
    scene.put()
    scene.service.set(LINKED, b"b", b"k", b"1")
    for _ in range(2):
        scene.put(**{"page_keys": "7", "url": SECRET, name: MALFORMED[name]})
    for call in CALLS.values():
        with pytest.raises(AccessDeniedError):
            call(scene.service, LINKED, b"b")
        call(scene.service, OTHER, b"c")
        call(scene.service, ANONYMOUS, b"c")
    (line,) = scene.links.unusable
    assert line.startswith(f"link component -> kv (default): everything is denied: {name}: found ")
    assert ", allowed " in line
    assert warnings(caplog) == [line]
    assert scene.links.remarks == []
    assert len(scene.links) == 2
    scene.put()
    assert scene.links.unusable == []
    assert scene.service.get(LINKED, b"b", b"k") == b"1"


def test_a_malformed_link_is_mended_by_its_deletion() -> None:
    scene = Scene()
    scene.put(access="")
    assert len(scene.links.unusable) == 1
    scene.delete()
    assert scene.links.unusable == []
    scene.service.set(LINKED, b"b", b"k", b"v")


@pytest.mark.parametrize("name", ["access", "page_keys", "strict_buckets", "ttl_ms"])
def test_of_a_malformed_value_only_the_length_is_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """It may be a secret that was written into the wrong option."""
    scene = Scene()
    scene.put(**{name: SECRET})
    (line,) = scene.links.unusable
    assert f": {name}: found {len(SECRET)} characters, allowed " in line
    assert SECRET not in line + caplog.text


def test_too_large_a_number_is_not_shown() -> None:
    scene = Scene()
    scene.put(ttl_ms="9" * 19)
    (line,) = scene.links.unusable
    assert "ttl_ms: found a number of 19 digits, allowed 1 to " in line


def secrets_of(scene: Scene) -> Iterator[str]:
    """All that may be shown of what belongs to links."""
    yield from scene.links.unusable
    yield from scene.links.remarks
    policy, handles = scene.policy, scene.service._handles
    things = [policy, scene.service, handles, scene.links, *scene.links, *policy.accesses.values(), *handles.values()]
    things += [*policy._grants.values(), handles._quotas]
    for thing in things:
        yield repr(thing)
        yield str(thing)


def test_secrets_do_not_show(caplog: pytest.LogCaptureFixture) -> None:
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
