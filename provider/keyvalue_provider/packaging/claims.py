"""The claims of a provider archive: a JSON web token in the format of nkeys and wascap, and its signing keys.

    claims.jwt = header "." claims "." signature, each in base64url without padding
    header     = {"typ": "jwt", "alg": "Ed25519"}
    claims     = {"jti", "iat", "iss": issuer, "sub": subject, "wascap_revision": 3,
                  "wascap": {"name", "vendor", "rev", "ver", "target_hashes": {name: SHA-256 in upper-case hex}}}
    signature  = the issuer's signature of header "." claims

A name is a target or "world.wasm". The issuer is an account (A...), and the subject is the provider (V...). Seeds are
stored in the same files that `wash` uses, so that `wash` signs with the same keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from keyvalue_provider.host.json_fields import FieldError, Fields
from keyvalue_provider.host.nkey_text import KEY_BYTES, decode_public_key, decode_seed, encode_public_key, encode_seed
from keyvalue_provider.host.secret import Secret

__all__ = [
    "ACCOUNT",
    "SERVICE",
    "Claims",
    "ClaimsError",
    "Kind",
    "claims_faults",
    "given_seed",
    "public_key",
    "read_claims",
    "sign_claims",
    "stored_seed",
]

REVISION = 3
HEADER = {"typ": "jwt", "alg": "Ed25519"}
SEED_FILE_BYTES_MAX = 1024


class ClaimsError(ValueError):
    """The error for malformed claims or a malformed seed. The message never shows a seed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of key pair: the first letter of its public keys, and its name in file names."""

    letter: str
    name: str


ACCOUNT = Kind("A", "account")
SERVICE = Kind("V", "service")


@dataclass(frozen=True, slots=True)
class Claims:
    """An issuer's claims about a provider. Times are in seconds since 1970. A missing claim is None."""

    issuer: str
    subject: str
    name: str
    vendor: str
    target_hashes: Mapping[str, str]
    issued_at_s: int
    revision: int | None = None
    version: str | None = None
    expires_s: int | None = None
    not_before_s: int | None = None
    wascap_revision: int = REVISION


def sign_claims(claims: Claims, issuer_seed: Secret) -> str:
    """Return the signed token. The same claims give the same token, because the token's id is a hash of the claims.

    :raises ClaimsError: the seed is not the seed of an account
    """
    assert claims.issuer == public_key(ACCOUNT, issuer_seed)
    wascap = {
        "name": claims.name,
        "vendor": claims.vendor,
        "rev": claims.revision,
        "ver": claims.version,
        "target_hashes": dict(sorted(claims.target_hashes.items())),
    }
    stated: dict[str, Any] = {
        "exp": claims.expires_s,
        "iat": claims.issued_at_s,
        "iss": claims.issuer,
        "sub": claims.subject,
        "nbf": claims.not_before_s,
        "wascap": {name: value for name, value in wascap.items() if value is not None},
        "wascap_revision": claims.wascap_revision,
    }
    stated = {name: value for name, value in stated.items() if value is not None}
    stated["jti"] = base64.b32encode(hashlib.sha256(_json(stated)).digest()).decode().rstrip("=")
    signed = f"{_encoded(_json(HEADER))}.{_encoded(_json(stated))}"
    return f"{signed}.{_encoded(_signing_key(ACCOUNT, issuer_seed).sign(signed.encode()).signature)}"


def read_claims(token: str) -> Claims:
    """Return the unverified claims in a token. Use `claims_faults` to verify a token.

    :raises ClaimsError: the token is malformed
    """
    _, payload, _ = _parts(token)
    try:
        stated = Fields(_from_json(payload, "claims"), "claims.")
        wascap = Fields(stated.mapping("wascap"), "claims.wascap.")
        stated.text("jti")
        return Claims(
            issuer=stated.text("iss"),
            subject=stated.text("sub"),
            name=wascap.text("name"),
            vendor=wascap.text("vendor"),
            target_hashes=wascap.text_map("target_hashes"),
            issued_at_s=stated.number("iat", 0),
            revision=wascap.number("rev", 0) if "rev" in wascap else None,
            version=wascap.text("ver") if "ver" in wascap else None,
            expires_s=stated.number("exp", 0) if "exp" in stated else None,
            not_before_s=stated.number("nbf", 0) if "nbf" in stated else None,
            wascap_revision=stated.number("wascap_revision", 0),
        )
    except FieldError as error:
        raise ClaimsError(str(error)) from None


def claims_faults(token: str, now_s: float) -> list[str]:
    """Check the header, keys, signature and times of a token. Return one line for each fault, or an empty list.

    :raises ClaimsError: the token is malformed
    """
    claims = read_claims(token)
    header, _, signature = _parts(token)
    found = _from_json(header, "header")
    faults = [] if found == HEADER else [f"header: found {_shown(found)}, allowed {json.dumps(HEADER)}"]
    if claims.wascap_revision != REVISION:
        faults.append(f"claims.wascap_revision: found {claims.wascap_revision}, allowed {REVISION}")
    if claims.expires_s is not None and claims.expires_s <= now_s:
        faults.append(f"claims.exp: expired {now_s - claims.expires_s:.0f} s ago")
    if claims.not_before_s is not None and claims.not_before_s > now_s:
        faults.append(f"claims.nbf: not valid for another {claims.not_before_s - now_s:.0f} s")
    try:
        decode_public_key(SERVICE.letter, claims.subject)
    except ValueError as error:
        faults.append(f"claims.sub: {error}")
    try:
        issuer = VerifyKey(decode_public_key(ACCOUNT.letter, claims.issuer))
    except ValueError as error:
        return [*faults, f"claims.iss: {error}"]
    try:
        issuer.verify(token.rpartition(".")[0].encode(), signature)
    except (BadSignatureError, ValueError):
        faults.append(f"signature: the issuer {claims.issuer} has not signed these claims")
    return faults


def public_key(kind: Kind, seed: Secret) -> str:
    """Return the public key for a seed.

    :raises ClaimsError: the seed is malformed, or of another kind
    """
    return encode_public_key(kind.letter, bytes(_signing_key(kind, seed).verify_key))


def given_seed(kind: Kind, given: str) -> Secret:
    """Return the seed in the file `given`. If there is no such file, `given` is the seed itself, as in `wash`.

    :raises ClaimsError: the file is unreadable, or the seed is malformed
    """
    try:
        seed = _read_seed(Path(given))
    except FileNotFoundError:
        seed = Secret(given)
    except OSError as error:
        raise ClaimsError(f"the file of the seed is unreadable: {error.strerror}") from None
    public_key(kind, seed)
    return seed


def stored_seed(kind: Kind, directory: Path, owner: str) -> tuple[Secret, Path | None]:
    """Return an owner's seed from a directory of keys. If the seed is missing, create it.

    Also return the path of the created file, or None. Only the current user can read this file.

    :raises ClaimsError: the file does not hold a seed of this kind
    :raises OSError: the directory or the file cannot be read or created
    """
    if not owner or Path(owner).name != owner:
        raise ClaimsError(f"the owner of a key is {owner!r}, which cannot be part of a file name")
    path = directory / f"{owner}_{kind.name}.nk"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = Secret(encode_seed(kind.letter, os.urandom(KEY_BYTES)))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        seed = _read_seed(path)
        try:
            public_key(kind, seed)
        except ClaimsError as error:
            raise ClaimsError(f"{path}: {error}") from None
        return seed, None
    with open(descriptor, "w") as file:
        file.write(new.reveal())  # no line feed at the end, because wash refuses it
    return new, path


def _read_seed(path: Path) -> Secret:
    with path.open("rb") as file:
        return Secret(file.read(SEED_FILE_BYTES_MAX).decode("utf-8-sig", errors="replace").strip())


def _signing_key(kind: Kind, seed: Secret) -> SigningKey:
    try:
        return SigningKey(decode_seed(kind.letter, seed.reveal()))
    except ValueError as error:
        raise ClaimsError(str(error)) from None


def _parts(token: str) -> tuple[bytes, bytes, bytes]:
    parts = token.split(".")
    if len(parts) != 3:
        raise ClaimsError(f"parts of the token: found {len(parts)}, expected 3: header.claims.signature")
    header, claims, signature = map(_decoded, parts)
    return header, claims, signature


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    # Padding, or extra bits after the last byte, would allow the same token to be written in several ways.
    if _encoded(octets) != text:
        raise ClaimsError(f"found {len(text)} characters of a token that are not base64url without padding")
    return octets


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _from_json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except ClaimsError:
        raise
    except (ValueError, RecursionError):
        raise ClaimsError(f"{what}: found {len(text)} bytes that are not JSON") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Refuse two fields with the same name, because parsers differ in which field they use."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ClaimsError("an object of the token has two fields with the same name")
    return fields


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
