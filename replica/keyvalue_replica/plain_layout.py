"""The layout of a KV bucket that is one bucket, with plain names (`keys = plain`). Other programs share such buckets.

    $KV.<KV bucket>.<key>                       a key, as NATS clients, keyvalue-nats and wasmCloud 2.x write it
    $KV.<KV bucket>._kv.wrpc.<instance>         the barriers of an instance; NATS reserves keys that begin with `_kv`

A delete is a purge, as in keyvalue-nats. If the stream allows no messages that expire, deletes and barriers have no
time to live. The instances then remove old barriers themselves (`old_barriers.py`).
"""

from __future__ import annotations

import re

from keyvalue_engine.errors import LimitError
from keyvalue_replica.errors import UnfitNameError
from keyvalue_replica.layout import BARRIER_BLOCK, MARKER_S, SUBJECT_BYTES, SUBJECT_BYTES_MAX, Layout

__all__ = ["BARRIER_TOKENS", "PLAIN_BARRIER_BLOCK", "PlainLayout", "check_bucket_name", "check_key"]

#: The beginning of the keys of barriers.
BARRIER_TOKENS = b"_kv.wrpc."
PLAIN_BARRIER_BLOCK = b"NATS/1.0\r\nKV-Operation: DEL\r\n\r\n"
PURGE = b"KV-Operation: PURGE\r\nNats-Rollup: sub\r\n"
PURGE_FOR = b"KV-Operation: PURGE\r\nNats-TTL: %ds\r\nNats-Marker-Reason: Remove\r\nNats-Rollup: sub\r\n"
KEY = re.compile(rb"[-/_=a-zA-Z0-9]+(?:\.[-/_=a-zA-Z0-9]+)*")
#: All characters of keys except the dot.
IN_TOKENS = b"-/_=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
UNFIT_IN_KEY = re.compile(rb"[^-/_=.a-zA-Z0-9]")
UNFIT_IN_BUCKET = re.compile(rb"[^-_a-zA-Z0-9]")
BUCKET_BYTES_MAX = 200
#: The beginnings of the names of KV buckets in which wasmCloud keeps the state of a lattice.
OF_WASMCLOUD = b"LATTICEDATA_", b"CONFIGDATA_", b"wadm_"


class PlainLayout(Layout):
    """The subjects and headers of one KV bucket with plain names.

    :param bucket: the name that the engine has for the bucket

    >>> layout = PlainLayout("kv", b"kv")
    >>> layout.subject(b"kv", b"a.key")
    b'$KV.kv.a.key'
    >>> layout.names(b"$KV.kv.a.key")
    (b'kv', b'a.key')
    """

    def __init__(self, kv_bucket: str, bucket: bytes, domain: str = "") -> None:
        super().__init__(kv_bucket, domain)
        self.bucket: bytes = bucket
        self.keys = self.subjects
        self.internal = self.barriers = self.prefix + BARRIER_TOKENS
        self.allow(True, True)

    def allow(self, ttl: bool, batches: bool) -> None:
        """Note what the stream allows: messages that expire, and atomic batches."""
        self.allows_ttl, self.allows_batches = ttl, batches
        self.delete_headers = PURGE_FOR % MARKER_S if ttl else PURGE
        self.barrier_block = BARRIER_BLOCK if ttl else PLAIN_BARRIER_BLOCK

    def subject(self, bucket: bytes, key: bytes) -> bytes:
        """Return the subject of a key.

        :raises UnfitNameError: NATS does not allow the key
        :raises LimitError: the key does not fit into a subject
        """
        if key.translate(None, IN_TOKENS) or not key:  # this test takes a quarter of the time of the next one
            check_key(key)
        subject = self.prefix + key
        if len(subject) > SUBJECT_BYTES_MAX:
            raise LimitError(SUBJECT_BYTES, len(subject), SUBJECT_BYTES_MAX)
        return subject

    def names(self, subject: bytes) -> tuple[bytes, bytes] | None:
        """Return the bucket and the key of a subject, or None if it is not the subject of a key."""
        key = subject[len(self.prefix) :]
        return None if not key or key.startswith(BARRIER_TOKENS) else (self.bucket, key)

    def bucket_of(self, token: bytes) -> bytes:
        """Return the bucket, whatever the token is."""
        return self.bucket

    def key_of(self, token: bytes) -> bytes:
        """Return the key that a token holds.

        :raises ValueError: the token belongs to barriers
        """
        if token.startswith(BARRIER_TOKENS):
            raise ValueError
        return token


def is_fit(key: bytes) -> bool:
    """Return True if NATS allows a key, and barriers do not use it."""
    return KEY.fullmatch(key) is not None and not key.startswith(BARRIER_TOKENS)


def check_key(key: bytes) -> None:
    """Check that a KV bucket may have a key.

    :raises UnfitNameError: NATS does not allow it, or barriers use it
    """
    if not is_fit(key):
        raise UnfitNameError(_why_unfit(key))


def check_bucket_name(name: bytes) -> str:
    """Return the name of a KV bucket as text.

    :raises UnfitNameError: NATS does not allow the name, or wasmCloud uses it itself
    """
    if (found := UNFIT_IN_BUCKET.search(name)) is not None:
        raise UnfitNameError(
            f"the bucket's name has {_shown(name, found.start())}; NATS allows letters, digits, - and _ (keys=plain)"
        )
    if not 0 < len(name) <= BUCKET_BYTES_MAX:
        raise UnfitNameError(
            f"the bucket's name is {len(name)} bytes; NATS allows 1 to {BUCKET_BYTES_MAX} (keys=plain)"
        )
    if name.startswith(OF_WASMCLOUD):
        raise UnfitNameError(f"the KV bucket {name.decode()} holds the state of wasmCloud itself")
    return name.decode()


def _why_unfit(key: bytes) -> str:
    if not key:
        return "the key is empty; NATS allows no empty keys (keys=plain)"
    if (found := UNFIT_IN_KEY.search(key)) is not None:
        return f"the key has {_shown(key, found.start())}; NATS allows letters, digits and - / _ = . (keys=plain)"
    if key.startswith(BARRIER_TOKENS):
        return f"the key begins with {BARRIER_TOKENS.decode()}, which the provider uses itself (keys=plain)"
    return "the key begins or ends with a dot, or has two dots side by side, which NATS does not allow (keys=plain)"


def _shown(name: bytes, at: int) -> str:
    """Return the character at an offset, and its place."""
    character = name[at:].decode(errors="replace")[0]
    return f"the character {character!r} at byte {at}"
