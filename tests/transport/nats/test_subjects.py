"""The NATS subjects of wRPC, in tables."""

from __future__ import annotations

import doctest
import re

import pytest

from keyvalue_transport.keyvalue.store import STORE
from keyvalue_transport.nats import subjects
from keyvalue_transport.nats.subjects import (
    check_subject,
    invocation_subject,
    params_subject,
    params_token,
    results_subject,
)


@pytest.mark.parametrize(
    ("prefix", "instance", "function", "subject"),
    [
        ("default.kv", STORE, "get", "default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.get"),
        ("default.kv", STORE, "list-keys", "default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.list-keys"),
        ("решётка.V1", "a:b/c@1", "f", "решётка.V1.wrpc.0.0.1.a:b/c@1.f"),
    ],
)
def test_the_subject_of_a_function(prefix: str, instance: str, function: str, subject: str) -> None:
    assert invocation_subject(prefix, instance, function) == subject


@pytest.mark.parametrize(
    ("inbox", "params", "results", "token"),
    [
        ("_INBOX.abc", "_INBOX.abc.params", "_INBOX.abc.results", "abc"),
        ("_INBOX.abc.17", "_INBOX.abc.17.params", "_INBOX.abc.17.results", "17"),
        ("own.prefix.x.0a1b", "own.prefix.x.0a1b.params", "own.prefix.x.0a1b.results", "0a1b"),
    ],
)
def test_the_subjects_of_an_inbox(inbox: str, params: str, results: str, token: str) -> None:
    assert params_subject(inbox) == params
    assert results_subject(inbox) == results
    assert params_token(params) == token


@pytest.mark.parametrize("text", ["default", "default.keyvalue-inmemory", "a.b.c", "_INBOX.1", "ключ", "wrpc:a/b@1"])
def test_a_subject_without_wildcards_is_used_unchanged(text: str) -> None:
    assert check_subject(text, "prefix") == text


WORDS = "allowed printable tokens without white space, '*' or '>', joined by '.'"


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "a.", ".a", "a..b"),  # empty tokens
        *("*", "a.*", "a.*.b", "a*b", ">", "a.>", "a>"),  # wildcards: they would match other subjects, too
        *("a b", " a", "a ", "a\tb", "a\r\nPUB x 0", "a\n", "a\u2003b"),  # the end of a protocol line
        *("a\x00b", "a\x7f", "a\x1b[2J", "a\u200bb"),  # not printable in a log
    ],
)
def test_a_malformed_subject_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'prefix: found {text!r}, {WORDS}')}$"):
        check_subject(text, "prefix")


def test_a_long_text_is_cut_in_the_message() -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"prefix: found '{'a' * 128}', {WORDS}") + "$"):
        check_subject("a" * 500 + " ", "prefix")


def test_the_examples_of_the_documentation_run() -> None:
    results = doctest.testmod(subjects)
    assert results.attempted > 0
    assert results.failed == 0
