"""Links: which are kept, how they are found, and what is reported about unusable ones."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyvalue_provider.host.json_fields import FieldError
from keyvalue_provider.host.links import LINES_MAX, LINKS_MAX, LinkDefinition, Links, parse_link
from tests.conftest import HOST_CAPTURE

KEY = "kv"
LINK: dict[str, Any] = {
    "source_id": "component",
    "target": KEY,
    "name": "default",
    "wit_namespace": "wasi",
    "wit_package": "keyvalue",
    "interfaces": ["store", "batch"],
    "source_config": {"watch": "SET@hush"},
    "target_config": {"bucket": "hush", "URL": "redis://hush"},
    "source_secrets": None,
    "target_secrets": None,
}
HUSH = "hush"


def payload(**fields: object) -> bytes:
    return json.dumps(LINK | fields).encode()


def put_json(links: Links, payload: bytes) -> LinkDefinition | None:
    """Put the link in a `linkdefs.put` message. Return the link, or None if nothing changed."""
    return links.put_value(parse_link(payload))


def delete_json(links: Links, payload: bytes) -> tuple[str, str, str] | None:
    """Delete a link, and return its key, or None if it is unknown."""
    key = LinkDefinition.from_json(parse_link(payload)).key
    return key if links.delete(key) else None


def test_a_link_from_json() -> None:
    """All fields except source and target may be missing."""
    assert LinkDefinition.from_json(LINK) == LinkDefinition(
        source_id="component",
        target=KEY,
        name="default",
        wit_namespace="wasi",
        wit_package="keyvalue",
        interfaces=("store", "batch"),
        source_config={"watch": "SET@hush"},
        target_config={"bucket": "hush", "URL": "redis://hush"},
    )
    nulls = dict.fromkeys(LINK) | {"source_id": "a", "target": "b"}
    expected = LinkDefinition("a", "b", "default")
    assert LinkDefinition.from_json({"source_id": "a", "target": "b"}) == expected
    assert LinkDefinition.from_json(nulls) == expected
    assert LinkDefinition.from_json({"source_id": "a", "target": "b", "name": "", "new_in_1_10": [1]}) == expected


@pytest.mark.parametrize("name", ["link_put", "watch_link_put", "watch_link_delete", "link_delete"])
def test_links_of_the_capture(name: str) -> None:
    sent = json.loads(HOST_CAPTURE[name]["payload"])
    link = LinkDefinition.from_json(sent)
    assert link.key == (sent["source_id"], sent["target"], sent["name"])
    assert link.source_config == sent["source_config"]
    assert link.target_config == sent["target_config"]
    assert list(link.interfaces) == sent["interfaces"]


WRONG: list[tuple[object, str]] = [
    ([], "top level: found an array, expected an object"),
    ({}, "source_id: found nothing, expected a name"),
    ({"source_id": "a"}, "target: found nothing, expected a name"),
    ({"source_id": 1, "target": KEY}, "source_id: found a number, expected a string"),
    (LINK | {"name": ["hush"]}, "name: found an array, expected a string"),
    (LINK | {"interfaces": "hush"}, "interfaces: found a string, expected an array"),
    (LINK | {"interfaces": ["store", 1.5]}, "interfaces[1]: found a number, expected a string"),
    (LINK | {"target_config": {"a": True}}, "target_config.a: found a boolean, expected a string"),
    (LINK | {"source_secrets": "hush"}, "source_secrets: found a string, expected an array"),
    (LINK | {"target_secrets": [256]}, "target_secrets: expected an array of numbers from 0 to 255"),
]


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_a_malformed_link_is_an_error(value: object, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        LinkDefinition.from_json(value)
    assert str(caught.value) == message
    with pytest.raises(FieldError) as caught:
        LinkDefinition.from_json(value, "link_definitions[2].")
    assert str(caught.value).startswith("link_definitions[2]")
    assert HUSH not in str(caught.value)


def test_only_names_of_options_are_shown() -> None:
    link = LinkDefinition.from_json(LINK)
    assert str(link) == "component -> kv (default), store, batch; options set: URL, bucket, watch"
    assert str(LinkDefinition("a", "b", "c")) == "a -> b (c), no interface; options set: none"
    assert HUSH not in repr(link)
    assert "120" not in repr(link)


def test_links_are_identified_by_source_target_and_name() -> None:
    links = Links(KEY)
    for fields in ({}, {"name": "second"}, {"source_id": KEY, "target": "component"}, {"source_id": KEY}):
        assert put_json(links, payload(**fields)) is not None
    first, second = ("component", KEY, "default"), ("component", KEY, "second")
    callee, both = (KEY, "component", "default"), (KEY, KEY, "default")
    assert [link.key for link in links] == [first, second, callee, both]
    assert [link.key for link in links.callers()] == [first, second, both]
    assert [link.key for link in links.callees()] == [callee, both]
    found = links.find("component", "second")
    assert found is not None
    assert found.key == second
    assert links.find("component", "third") is None
    assert delete_json(links, payload(name="second", source_config={}, target_config={})) == second
    assert links.find("component", "second") is None
    assert links.find("component", "default") is not None
    assert delete_json(links, payload(source_id=KEY)) == both
    assert links.find(KEY, "default") is None, "it is only a source now"


def test_every_change_is_counted_and_nothing_else() -> None:
    links = Links(KEY)
    seen = [links.changes]

    def changed() -> bool:
        seen.append(links.changes)
        return seen[-1] > seen[-2]

    assert put_json(links, payload()) == LinkDefinition.from_json(LINK)
    assert changed()
    assert put_json(links, payload()) is None
    assert not changed()
    link = put_json(links, payload(target_config={}))
    assert link is not None
    assert links.find("component", "default") == link
    assert changed()
    assert delete_json(links, payload(name="second")) is delete_json(links, payload(target="another")) is None
    assert not changed()
    of_others = "the link from component to another does not belong to this provider"
    for wrong, message in ((payload(target="another"), of_others), (b"{", "JSON"), (payload(source_id=1), "source_id")):
        with pytest.raises(FieldError, match=message):
            put_json(links, wrong)
        assert not changed()
    assert links.unusable == []
    with pytest.raises(FieldError):
        put_json(links, payload(target_config={"bucket": 1}))
    assert changed(), "the link that it replaced is no longer in force"
    assert delete_json(links, payload()) == link.key
    assert changed()
    assert len(links) == 0


@pytest.mark.parametrize("wrong", [b"", b"{", b"\xff", b"hush", b"[" * 100_000])
def test_a_payload_that_is_not_json(wrong: bytes) -> None:
    links = Links(KEY)
    with pytest.raises(FieldError) as caught:
        put_json(links, wrong)
    assert str(caught.value) == f"found {len(wrong)} bytes that are not JSON, expected a link definition"
    assert links.unusable == []


@pytest.mark.parametrize("mended_by", ["a put", "a deletion"])
def test_an_unusable_link_is_noted_until_it_is_corrected(mended_by: str) -> None:
    links = Links(KEY)
    put_json(links, payload())
    for fields, fault in (
        ({"target_config": {"bucket": 1}}, "target_config.bucket: found a number, expected a string"),
        ({"interfaces": 1, "name": None}, "interfaces: found a number, expected an array"),
    ):
        with pytest.raises(FieldError):
            put_json(links, payload(**fields))
        assert links.unusable == [f"link component -> kv (default): {fault}"]
        assert links.find("component", "default") is None  # the link that it replaced is no longer in force
    if mended_by == "a put":
        assert put_json(links, payload()) is not None
        assert links.find("component", "default") is not None
    else:
        assert delete_json(links, payload()) == ("component", KEY, "default")
    assert links.unusable == []


def test_the_changed_links_are_told_once() -> None:
    links = Links(KEY)
    link = put_json(links, payload())
    assert link is not None
    assert links.take_changed() == {link.key}
    put_json(links, payload())  # unchanged
    assert not links.delete(("nobody", KEY, "default"))
    links.refuse(link, "odd")
    assert links.take_changed() == set()
    put_json(links, payload(target_config={}))
    links.put_unreadable(("other", KEY, "default"), "odd")
    assert links.take_changed() == {link.key, ("other", KEY, "default")} == links.keys()
    assert links.get(link.key) is not None
    assert [links.is_unreadable(key) for key in (link.key, ("other", KEY, "default"))] == [False, True]
    links.delete(link.key)
    assert links.take_changed() == {link.key}
    assert links.get(link.key) is None


def test_long_names_are_cut_in_messages() -> None:
    long = "x" * 100_000
    links = opened(**{long: HUSH})
    for name, wrong in (("config", {"target_config": {long: 1}}), ("secrets", {"target_secrets": list(SEALED)})):
        with pytest.raises(FieldError) as caught:
            put_json(links, payload(source_id=long, name=name, **wrong))
        assert len(str(caught.value)) < 400
    with pytest.raises(FieldError) as caught:
        put_json(links, payload(source_id=long, target=long))
    assert len(str(caught.value)) < 400
    assert [len(line) < 600 for line in links.unusable] == [True, True]


@pytest.mark.parametrize(
    "fields",
    [{"source_id": 1}, {"target": ["kv"]}, {"name": 1}, {"source_id": ""}, {"target": "another", "interfaces": 1}],
)
def test_an_unusable_link_that_is_not_ours_is_not_noted(fields: dict[str, object]) -> None:
    links = Links(KEY)
    with pytest.raises(FieldError):
        put_json(links, payload(**fields))
    assert links.unusable == []


def note(links: Links, notes: str, link: LinkDefinition, what: str) -> None:
    if notes == "unusable":
        links.refuse(link, what)
    else:
        links.remark(link, what)


@pytest.mark.parametrize("notes", ["unusable", "remarks"])
def test_a_note_on_a_link_stays_until_it_changes(notes: str) -> None:
    links = Links(KEY)
    link = put_json(links, payload())
    second = put_json(links, payload(name="second"))
    assert link is not None
    assert second is not None
    note(links, notes, link, "odd")
    note(links, notes, second, "odder")
    assert put_json(links, payload()) is None
    lines = ["link component -> kv (default): odd", "link component -> kv (second): odder"]
    assert getattr(links, notes) == lines
    assert len(links) == 2
    assert links.find("component", "default") is link
    put_json(links, payload(target_config={}))
    assert getattr(links, notes) == lines[1:]
    delete_json(links, payload(name="second"))
    assert getattr(links, notes) == []
    note(links, notes, link, "odd")
    with pytest.raises(FieldError):
        put_json(links, payload(interfaces=1))
    assert links.remarks == []
    assert links.unusable == ["link component -> kv (default): interfaces: found a number, expected an array"]


@pytest.mark.parametrize(
    ("notes", "more"), [("unusable", "and 2 more unusable links"), ("remarks", "and 2 more remarks on links")]
)
def test_the_first_of_many_notes_are_shown(notes: str, more: str) -> None:
    links = Links(KEY)
    for number in range(LINES_MAX + 2):
        if number == LINES_MAX:
            assert len(getattr(links, notes)) == LINES_MAX
        link = put_json(links, payload(name=str(number)))
        assert link is not None
        note(links, notes, link, "odd")
    lines = getattr(links, notes)
    assert len(lines) == LINES_MAX + 1
    assert lines[0] == "link component -> kv (0): odd"
    assert lines[-1] == more


def test_links_are_kept_up_to_a_limit() -> None:
    links = Links(KEY)
    for number in range(LINKS_MAX):
        links.put(LinkDefinition("component", KEY, str(number)))
    with pytest.raises(FieldError, match=rf"^there are {LINKS_MAX} links already, which is the limit$"):
        links.put(LinkDefinition("component", KEY, "one more"))
    assert links.put(LinkDefinition("component", KEY, "0", target_config={"bucket": "b"}))
    assert len(links) == LINKS_MAX


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(LINK)), JSON))
def test_anything_else_is_a_field_error(fields: dict[str, object]) -> None:
    links = Links(KEY)
    link = LINK | fields
    try:
        put = put_json(links, json.dumps(link).encode())
    except FieldError:
        assert len(links) == 0
        assert len(links.unusable) <= 1
    else:
        assert put is not None
        assert [link.key for link in links] == [put.key]
        assert links.unusable == []


SEALED = b"sealed"


def opened(**secrets: object) -> Links:
    """Return links whose sealed secrets always open to these."""

    def unseal(sealed: bytes) -> bytes:
        if sealed != SEALED:
            raise ValueError("found something else")
        return json.dumps(secrets).encode()

    return Links(KEY, unseal)


def test_secrets_override_the_configuration() -> None:
    links = opened(bucket={"kind": "String", "value": "secret-one"}, ttl={"kind": "Bytes", "value": [0xFF, 0x37]})
    link = put_json(links, payload(target_secrets=list(SEALED), source_secrets=list(SEALED)))
    assert link is not None
    assert link.target_options == {"bucket": "secret-one", "URL": "redis://hush", "ttl": "\udcff7"}
    assert link.source_options == {"watch": "SET@hush", "bucket": "secret-one", "ttl": "\udcff7"}
    assert str(link).endswith("; options set: URL, bucket, watch; secrets: bucket, ttl")
    assert "secret-one" not in f"{link} {link!r} {link.target_secrets}"


def test_the_same_secrets_sealed_again_are_no_change() -> None:
    links = Links(KEY, lambda sealed: b'{"a": {"kind": "String", "value": "b"}}')
    assert put_json(links, payload(target_secrets=[1])) is not None
    assert put_json(links, payload(target_secrets=[2])) is None
    assert links.changes == 1


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (Links(KEY), "target_secrets: the host data has no keys to open these secrets"),
        (Links(KEY, lambda _: b"\xff"), "target_secrets: the opened secrets are not a JSON object"),
        (Links(KEY, lambda _: b"[" * 100_000), "target_secrets: the opened secrets are not a JSON object"),
        (opened(a="hush"), "target_secrets.a: found a string, expected an object"),
        (opened(a={"kind": "hush"}), "target_secrets.a.kind: expected String or Bytes"),
    ],
)
def test_unreadable_secrets(links: Links, message: str) -> None:
    with pytest.raises(FieldError) as caught:
        put_json(links, payload(target_secrets=list(SEALED)))
    assert str(caught.value) == message
    assert links.unusable == [f"link component -> kv (default): {message}"]
    assert links.is_unreadable(("component", KEY, "default"))


def test_too_many_unreadable_links_deny_callers_without_a_link() -> None:
    links = Links(KEY)
    for number in range(LINKS_MAX + 1):
        assert not links.overflowed
        links.put_unreadable(("component", KEY, str(number)), "why")
    assert links.overflowed
    assert links.unusable[0].startswith(f"more than {LINKS_MAX} links are unusable: callers without a link are denied")
