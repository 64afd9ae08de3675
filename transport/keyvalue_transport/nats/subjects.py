"""Functions that build the NATS subjects of wRPC 0.0.1. No other module knows the format of the subjects.

invocation   {prefix}.wrpc.0.0.1.{instance}.{function}      queue group: {prefix}
handshake    {R_c}              R_c is the client's inbox, and R_s is the server's inbox
parameters   {R_s}.params
results      {R_c}.results
"""

from __future__ import annotations

import re

__all__ = ["PROTOCOL", "check_subject", "invocation_subject", "params_subject", "params_token", "results_subject"]

PROTOCOL = "wrpc.0.0.1"

_TOKENS = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


def check_subject(text: str, what: str) -> str:
    """Return the text if it is a subject without wildcards.

    >>> check_subject("default.my key", "prefix")
    Traceback (most recent call last):
    ValueError: prefix: found 'default.my key', allowed printable tokens without white space, '*' or '>', joined by '.'

    :param what: the name for the text in the error message
    :raises ValueError: the text is not a subject, or has wildcards or unprintable characters
    """
    if not (_TOKENS.fullmatch(text) and text.isprintable()):
        raise ValueError(
            f"{what}: found {text[:128]!r}, allowed printable tokens without white space, '*' or '>', joined by '.'"
        )
    return text


def invocation_subject(prefix: str, instance: str, function: str) -> str:
    """Return the subject on which a function is invoked.

    >>> invocation_subject("default.kv", "wrpc:keyvalue/store@0.2.0-draft", "get")
    'default.kv.wrpc.0.0.1.wrpc:keyvalue/store@0.2.0-draft.get'
    """
    return f"{prefix}.{PROTOCOL}.{instance}.{function}"


def params_subject(server_inbox: str) -> str:
    """Return the subject for all pieces of the parameters except the first."""
    return server_inbox + ".params"


def params_token(subject: str) -> str:
    """Return the last token of the server's inbox, which is part of the subject for parameters.

    >>> params_token("_INBOX.abc.17.params")
    '17'
    """
    return subject.rsplit(".", 2)[-2]


def results_subject(client_inbox: str) -> str:
    """Return the subject for the pieces of the result."""
    return client_inbox + ".results"
