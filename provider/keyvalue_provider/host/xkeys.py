"""Xkeys: curve25519 key pairs. A host uses them to seal the secrets of links for one provider.

sealed = "xkv1" + nonce (24 bytes) + NaCl box of the secrets, from the host's key to the provider's
"""

from __future__ import annotations

from keyvalue_provider.host.nkey_text import decode_public_key, decode_seed, encode_public_key
from keyvalue_provider.host.secret import Secret

__all__ = ["SealedError", "Xkeys"]

LETTER = "X"
VERSION = b"xkv1"
NONCE_BYTES = 24


class SealedError(ValueError):
    """The error for sealed secrets that cannot be opened. The message says why, but shows no secret."""


class Xkeys:
    """The provider's key pair and the host's public key.

    :raises ValueError: a key is malformed; the message names the key but does not show it
    """

    __slots__ = ("_box", "public_key")

    def __init__(self, provider_seed: Secret, host_public_key: str) -> None:
        from nacl.exceptions import CryptoError
        from nacl.public import Box, PrivateKey, PublicKey  # an import above would slow down `--help`

        try:
            own = PrivateKey(decode_seed(LETTER, provider_seed.reveal()))
        except ValueError as error:
            raise ValueError(f"provider_xkey_private_key: {error}") from None
        try:
            host = PublicKey(decode_public_key(LETTER, host_public_key))
        except ValueError as error:
            raise ValueError(f"host_xkey_public_key: {error}") from None
        #: The provider's public key (X...), which is part of subjects.
        self.public_key = encode_public_key(LETTER, bytes(own.public_key))
        try:
            self._box = Box(own, host)
        except CryptoError:
            raise ValueError("host_xkey_public_key: found a point of low order, expected a public key X...") from None

    def open(self, sealed: bytes) -> bytes:
        """Decrypt bytes that the host has sealed.

        :raises SealedError: the bytes have an unknown version, or were sealed with other keys
        """
        from nacl.exceptions import CryptoError

        if not sealed.startswith(VERSION):
            raise SealedError(f"found {len(sealed)} bytes that do not begin with {VERSION.decode()}")
        nonce, box = sealed[len(VERSION) :][:NONCE_BYTES], sealed[len(VERSION) + NONCE_BYTES :]
        try:
            return self._box.decrypt(box, nonce)
        except (CryptoError, ValueError):
            raise SealedError(
                f"found {len(sealed)} bytes that are damaged or sealed with keys other than those of the host data"
            ) from None
