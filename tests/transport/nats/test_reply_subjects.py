"""The reply subjects that are answered: refused ones are found, and a head never hides one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from keyvalue_transport.nats.reply_subjects import REPLY_BYTES_MAX, ReplySubjects

SUBJECTS = st.text("$_.awsmbukvI*", max_size=12).map(str.encode) | st.sampled_from(
    [b"$SYS.x", b"wasmbus.rpc.a", b"wasmbus", b"wasmbus2.a", b"a.kv.f", b"a.kv", b"_own.kv.f", b"_INBOX.a"]
)


@given(SUBJECTS, SUBJECTS, st.sampled_from(["a.kv", "_own.kv", "wasm"]))
def test_a_head_belongs_to_allowed_subjects_only(reply: bytes, other: bytes, prefix: str) -> None:
    rule = ReplySubjects()
    rule.forbid(prefix)
    forbidden = (b"$", b"wasmbus.", f"{prefix}.".encode())
    assert rule.allows(reply) is not any(map(reply.startswith, forbidden))
    assert rule.plain_first == (-1 if prefix.startswith("_") else ord("_"))
    if rule.allows(reply) and (head := rule.head(reply)):
        assert reply.startswith(head)
        assert rule.allows(head + other)


def test_refusals_are_counted() -> None:
    rule = ReplySubjects()
    found = [rule.refuses(reply) for reply in (b"x" * REPLY_BYTES_MAX, b"x" * (REPLY_BYTES_MAX + 1), b"$", b"r")]
    assert found == [False, True, True, False]
    assert rule.refused == 2
