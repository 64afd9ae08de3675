"""nkeys as text: a prefix, a key of 32 bytes, and a CRC-16/XMODEM (little endian), in base32 without padding.

prefix of a public key   1 byte; its upper five bits encode the first letter of the text
prefix of a seed         2 bytes; five bits for the letter S, then five for the first letter of the public key
"""

from __future__ import annotations

import base64
import binascii

__all__ = ["KEY_BYTES", "decode_public_key", "decode_seed", "encode_public_key", "encode_seed"]

KEY_BYTES = 32
SEED_LETTER = "S"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"


def encode_public_key(letter: str, key: bytes) -> str:
    """Encode a public key as text that begins with this letter.

    >>> encode_public_key("X", bytes(32))[:4]
    'XAAA'
    """
    return _encoded(bytes([LETTERS.index(letter) << 3]) + key)


def encode_seed(letter: str, seed: bytes) -> str:
    """Encode a seed as text. The seed's public key begins with this letter."""
    return _encoded(_seed_prefix(letter) + seed)


def decode_public_key(letter: str, text: str) -> bytes:
    """Return the 32 bytes of a public key.

    :raises ValueError: the text is not a public key with this letter; the message does not show the text
    """
    return _decoded(bytes([LETTERS.index(letter) << 3]), text, f"a public key {letter}...")


def decode_seed(letter: str, text: str) -> bytes:
    """Return the 32 bytes of a seed.

    :raises ValueError: the text is not a seed with this letter; the message does not show the text
    """
    return _decoded(_seed_prefix(letter), text, f"a seed {SEED_LETTER}{letter}...")


def _seed_prefix(letter: str) -> bytes:
    bits = LETTERS.index(SEED_LETTER) << 11 | LETTERS.index(letter) << 6
    return bits.to_bytes(2, "big")


def _encoded(raw: bytes) -> str:
    checksum = binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(raw + checksum).decode().rstrip("=")


def _decoded(prefix: bytes, text: str, expected: str) -> bytes:
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise ValueError(f"found {len(text)} characters that are not base32, expected {expected}") from None
    key, checksum = raw[:-2], raw[-2:]
    if not key.startswith(prefix) or len(key) != len(prefix) + KEY_BYTES:
        raise ValueError(f"found another kind of key with {len(text)} characters, expected {expected}")
    if checksum != binascii.crc_hqx(key, 0).to_bytes(2, "little"):
        raise ValueError(f"found a key with a wrong checksum, expected {expected}")
    return key[len(prefix) :]
