"""Readers for the files of a NATS user: nsc credentials (a JWT and a seed) and nk keys (only a seed)."""

from __future__ import annotations

import re

__all__ = ["read_credentials", "read_nkey", "shown_path"]

FILE_BYTES_MAX = 64 * 1024
USER_JWT = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
USER_SEED = re.compile(r"BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")
SEED = re.compile(r"S[A-Z][A-Z2-7]{56}")
#: Text that looks like a file's contents, not like a path. nsc names files after public keys, which do not match.
CONTENT = re.compile(r"-----BEGIN|(?<![A-Z2-7])S[A-Z][A-Z2-7]{40}")


def read_credentials(path: str) -> tuple[str, str]:
    """Return the JWT and seed in a credentials file.

    :raises ValueError: the file is unreadable, or the JWT or seed is missing; the message names the file, but never
        shows its contents
    """
    text = _read(path)
    user_jwt, user_seed = USER_JWT.search(text), USER_SEED.search(text)
    if user_jwt is None or user_seed is None:
        raise ValueError(
            f"{shown_path(path)}: the {'seed' if user_jwt else 'JWT'} is missing; expected a credentials file of nsc"
        )
    return user_jwt[1], user_seed[1]


def read_nkey(path: str) -> str:
    """Return the seed in an nkey file.

    :raises ValueError: the file is unreadable, or holds no seed; the message names the file, but never shows its
        contents
    """
    text = _read(path)
    user_seed = USER_SEED.search(text)
    seed = user_seed[1] if user_seed else text.strip()
    if SEED.fullmatch(seed) is None:
        raise ValueError(f"{shown_path(path)}: the seed is missing; expected a file that holds only an nkey seed")
    return seed


def shown_path(path: str) -> str:
    """Return the path to show in a message, or `<redacted>` if it looks like a file's contents.

    >>> shown_path("user.nk")
    'user.nk'
    """
    return "<redacted>" if CONTENT.search(path) else path


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(FILE_BYTES_MAX).decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {error.strerror}; expected the path of a file") from None
