"""Users and certificates of NATS servers: configurations, certificates and decentralized users for tests."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nkeys
import trustme

#: No limit, in the claims of accounts and users.
UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class Key:
    """An nkey: its seed, which is secret, and its public key."""

    seed: str
    public_key: str

    @classmethod
    def new(cls, kind: int = nkeys.PREFIX_BYTE_USER) -> Key:
        seed = nkeys.encode_seed(os.urandom(32), kind)
        return cls(seed.decode(), nkeys.from_seed(bytearray(seed)).public_key.decode())

    def jwt(self, subject: str, kind: str, claims: dict[str, Any], **times: int) -> str:
        """Return a JWT of version 2 about a subject, issued by this key."""
        body = {
            **{"iat": int(time.time()), "iss": self.public_key, "name": kind, "sub": subject},
            **{"nats": claims | {"type": kind, "version": 2}, **times},
        }
        body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
        parts = ".".join(_base64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body))
        return f"{parts}.{_base64(nkeys.from_seed(bytearray(self.seed.encode())).sign(parts.encode()))}"


class Operator:
    """An operator with one account. The server's configuration need not mention its users."""

    def __init__(self) -> None:
        self._key = Key.new(nkeys.PREFIX_BYTE_OPERATOR)
        self._account = Key.new(nkeys.PREFIX_BYTE_ACCOUNT)

    @property
    def config(self) -> str:
        """Return the configuration of the server."""
        names = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        limits = dict.fromkeys(names, UNLIMITED) | {"wildcards": True}
        account = self._key.jwt(self._account.public_key, "account", {"limits": limits})
        operator = self._key.jwt(self._key.public_key, "operator", {})
        return (
            f'operator: "{operator}"\nresolver: MEMORY\n'
            f'resolver_preload: {{ {self._account.public_key}: "{account}" }}\n'
        )

    def user(self, user: Key, **times: int) -> str:
        """Return the JWT of a user. `exp` is the time until which it is valid."""
        return self._account.jwt(
            user.public_key, "user", dict.fromkeys(("subs", "data", "payload"), UNLIMITED), **times
        )


def credentials_file(user_jwt: str, user_seed: str) -> str:
    """Return the text of a credentials file, as nsc writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n"
        "NKEYs are sensitive and should be treated as secrets.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user_seed}\n------END USER NKEY SEED------\n\n"
        "*************************************************************\n"
    )


def user_config(user: str, password: str) -> str:
    return f"authorization {{ user: {_quoted(user)}, password: {_quoted(password)} }}\n"


def token_config(token: str) -> str:
    return f"authorization {{ token: {_quoted(token)} }}\n"


def nkey_config(public_key: str) -> str:
    return f"authorization {{ users: [ {{ nkey: {public_key} }} ] }}\n"


class Authority:
    """A certificate authority in a directory: `ca.pem`, and for each certificate NAME.pem with the chain, and NAME.key."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self.ca = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)

    def issue(self, *names: str, days: int = 1) -> tuple[Path, Path]:
        """Return certificate and key for host names or addresses. With negative days, it expired that many days ago."""
        ends = datetime.now(UTC) + timedelta(days=days)
        issued = self._ca.issue_cert(*names, not_before=ends - timedelta(days=30), not_after=ends)
        stem = self._directory / f"{len(list(self._directory.iterdir()))}"
        certificate, key = stem.with_suffix(".pem"), stem.with_suffix(".key")
        certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def config(self, *names: str, days: int = 1, clients: Path | None = None, more: str = "") -> str:
        """Return the configuration of a server with a certificate for these names.

        It requires a client certificate of `clients`, if given.
        """
        certificate, key = self.issue(*(names or ("127.0.0.1",)), days=days)
        verify = "" if clients is None else f'ca_file: "{clients}", verify: true, '
        return f'tls {{ cert_file: "{certificate}", key_file: "{key}", {verify} {more} }}\n'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _base64(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).decode().rstrip("=")
