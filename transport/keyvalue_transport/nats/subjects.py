"""The NATS subjects of wRPC 0.0.1. Pure functions; the only place that knows how they look.

invocation   {prefix}.wrpc.0.0.1.{instance}.{function}      queue group: {prefix}
handshake    {R_c}              R_c and R_s are inboxes of client and server
parameters   {R_s}.params
results      {R_c}.results
"""

from __future__ import annotations

import re

__all__ = ["PROTOCOL", "check_subject", "invocation_subject", "params_subject", "params_token", "results_subject"]

PROTOCOL = "wrpc.0.0.1"

_TOKENS = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


def check_subject(text: str, what: str) -> str:
    """The text, if it is a subject without wildcards.

    >>> check_subject("default.my key", "prefix")
    Traceback (most recent call last):
    ValueError: prefix: found 'default.my key', allowed printable tokens without white space, '*' and '>', joined by '.'
    """
    if not (_TOKENS.fullmatch(text) and text.isprintable()):
        raise ValueError(
            f"{what}: found {text[:128]!r}, allowed printable tokens without white space, '*' and '>', joined by '.'"
        )
    return text


def invocation_subject(prefix: str, instance: str, function: str) -> str:
    """Where a function is invoked.

    >>> invocation_subject("default.kv", "wrpc:keyvalue/store@0.2.0-draft", "get")
    'default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.get'
    """
    return f"{prefix}.{PROTOCOL}.{instance}.{function}"


def params_subject(server_inbox: str) -> str:
    """Where a client sends the pieces of its parameters after the first."""
    return server_inbox + ".params"


def params_token(subject: str) -> str:
    """The last token of the server's inbox in a params subject.

    >>> params_token("_INBOX.abc.17.params")
    '17'
    """
    return subject.rsplit(".", 2)[-2]


def results_subject(client_inbox: str) -> str:
    """Where the server sends the pieces of the result."""
    return client_inbox + ".results"
