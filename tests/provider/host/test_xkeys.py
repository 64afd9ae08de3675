"""Xkeys: their text, and opening messages sealed by a host.

PyNaCl makes the key pairs. The seal in tests/host_double.py is written independently of the code under test.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.public import Box, PrivateKey

from keyvalue_provider.host.nkey_text import LETTERS, decode_public_key, decode_seed, encode_public_key, encode_seed
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.host.xkeys import SealedError, Xkeys

HOST, OWN = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(32, 64)))
SEED = encode_seed("X", bytes(OWN))
HOST_PUBLIC = encode_public_key("X", bytes(HOST.public_key))
SECRETS = b'{"password": {"kind": "String", "value": "hush"}}'
KEYS = Xkeys(Secret(SEED), HOST_PUBLIC)


def seal(text: bytes, sender: PrivateKey = HOST, receiver: PrivateKey = OWN) -> bytes:
    return b"xkv1" + bytes(Box(sender, receiver.public_key).encrypt(text))


@given(key=st.binary(min_size=32, max_size=32), letter=st.sampled_from(LETTERS))
def test_text_of_keys(key: bytes, letter: str) -> None:
    public, seed = encode_public_key(letter, key), encode_seed(letter, key)
    assert (len(public), public[0]) == (56, letter)
    assert (len(seed), seed[:2]) == (58, f"S{letter}")
    assert decode_public_key(letter, public) == key
    assert decode_seed(letter, seed) == key


def test_text_of_a_key_made_by_others() -> None:
    """The seed is from the documentation of nkeys."""
    seed = "SUAGMJH5XLGZKQQWAWKRZJIGMOU4HPFUYLXJMXOO5NLFEO2OOQJ5LPRDPM"
    assert encode_seed("U", decode_seed("U", seed)) == seed


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "found another kind of key with 0 characters"),
        ("hush", "found 4 characters that are not base32"),
        ("é" * 58, "found 58 characters that are not base32"),
        (SEED[:-1], "found 57 characters that are not base32"),
        (SEED[:-8], "found another kind of key with 50 characters"),
        (SEED + SEED[:8], "found another kind of key with 66 characters"),
        (HOST_PUBLIC, "found another kind of key with 56 characters"),
        (encode_seed("U", bytes(OWN)), "found another kind of key with 58 characters"),
        (SEED[:-3] + ("A" if SEED[-3] != "A" else "B") + SEED[-2:], "found a key with a wrong checksum"),
    ],
)
def test_a_malformed_seed(text: str, found: str) -> None:
    with pytest.raises(ValueError, match="expected a seed SX") as caught:
        decode_seed("X", text)
    assert str(caught.value).startswith(found)
    assert not text or text not in str(caught.value)
    with pytest.raises(ValueError, match=r"^provider_xkey_private_key: found "):
        Xkeys(Secret(text), HOST_PUBLIC)


def test_a_malformed_public_key() -> None:
    with pytest.raises(ValueError, match=r"^host_xkey_public_key: found another kind of key with 58 characters"):
        Xkeys(Secret(SEED), SEED)
    with pytest.raises(ValueError, match=r"^host_xkey_public_key: found a point of low order, expected a public key X"):
        Xkeys(Secret(SEED), encode_public_key("X", bytes(32)))


def test_the_public_key() -> None:
    assert KEYS.public_key == encode_public_key("X", bytes(OWN.public_key))


@given(text=st.binary(max_size=300))
def test_a_seal_of_the_host_is_opened(text: bytes) -> None:
    assert KEYS.open(seal(text)) == text


@given(at=st.integers(0, len(seal(SECRETS)) - 1), bit=st.integers(0, 7))
def test_any_changed_bit_is_noticed(at: int, bit: int) -> None:
    sealed = bytearray(seal(SECRETS))
    sealed[at] ^= 1 << bit
    with pytest.raises(SealedError, match=rf"^found {len(sealed)} bytes "):
        KEYS.open(bytes(sealed))


@given(sealed=st.binary(max_size=100) | st.binary(max_size=100).map(lambda rest: b"xkv1" + rest))
def test_anything_else_is_an_error(sealed: bytes) -> None:
    with pytest.raises(SealedError, match=rf"^found {len(sealed)} bytes "):
        KEYS.open(sealed)


def test_a_seal_by_others_is_not_opened() -> None:
    other = PrivateKey(bytes(32))
    for sealed in (seal(SECRETS, sender=other), seal(SECRETS, receiver=other)):
        with pytest.raises(SealedError, match="sealed with keys other than those of the host data"):
            KEYS.open(sealed)


def test_no_secret_is_shown() -> None:
    assert SEED not in repr(KEYS)
