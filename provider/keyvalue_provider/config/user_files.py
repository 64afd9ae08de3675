"""Files that say as which NATS user to connect: credentials (JWT and seed), as nsc writes them, and nkeys (a seed alone), as nk does."""

from __future__ import annotations

import re

__all__ = ["read_credentials", "read_nkey", "shown_path"]

FILE_BYTES_MAX = 64 * 1024
USER_JWT = re.compile(r"BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
USER_SEED = re.compile(r"BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")
SEED = re.compile(r"S[A-Z][A-Z2-7]{56}")
#: No path looks so: it is what should stand in a file. (nsc names files by the public key, which begins with another letter.)
CONTENT = re.compile(r"-----BEGIN|(?<![A-Z2-7])S[A-Z][A-Z2-7]{40}")


def read_credentials(path: str) -> tuple[str, str]:
    """JWT and seed of a user.

    :raises ValueError: the file can't be read, or has not both; the message names it, and never shows what is in it
    """
    text = _read(path)
    user_jwt, user_seed = USER_JWT.search(text), USER_SEED.search(text)
    if user_jwt is None or user_seed is None:
        raise ValueError(
            f"{shown_path(path)}: found no {'seed' if user_jwt else 'JWT'} of a user, allowed a file as nsc writes it"
        )
    return user_jwt[1], user_seed[1]


def read_nkey(path: str) -> str:
    """The seed of an nkey user.

    :raises ValueError: the file can't be read, or is none; the message names it, and never shows what is in it
    """
    text = _read(path)
    user_seed = USER_SEED.search(text)
    seed = user_seed[1] if user_seed else text.strip()
    if SEED.fullmatch(seed) is None:
        raise ValueError(f"{shown_path(path)}: found no seed, allowed a file that holds an nkey seed alone")
    return seed


def shown_path(path: str) -> str:
    """The path as it may be shown: not where it is what should stand in the file.

    >>> shown_path("user.nk")
    'user.nk'
    """
    return "<redacted>" if CONTENT.search(path) else path


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(FILE_BYTES_MAX).decode(errors="replace")
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {error.strerror}, allowed the path of a file") from None
