"""TLS of the NATS connection: what a certificate is checked against, which one is shown, and what it means where it fails.

Where TLS is required, nothing leaves in clear: `keyvalue_transport.nats.direct.transport.DirectTransport` sees to it, at the first connection and at each reconnect.
"""

from __future__ import annotations

import json
import os
import ssl
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

__all__ = ["TlsOptions", "TlsRefusedError", "require_tls", "tls_refusal"]

#: A system's bundle of authorities has a fourth of it.
PEM_BYTES_MAX = 1024 * 1024
SHOWN_MAX = 256
#: Of the shortest private key, 32 bytes in base64.
KEY_BODY_CHARACTERS_MIN = 43
ALLOWED = "allowed the path of a PEM file, or its text"
CERTIFICATE, PRIVATE_KEY = "CERTIFICATE-----", "PRIVATE KEY-----"
#: OpenSSL's words for a key that is good, and another certificate's.
MISMATCHES = frozenset(
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_PRIVATE_KEY_ASSIGNED", "NO_CERTIFICATE_ASSIGNED"}
)
#: What ends a connection that may be better the next time.
TRANSIENT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
DEMANDED = "the server demands a client certificate, and none is given"


class TlsRefusedError(ConnectionError):
    """TLS is required and not to be had, or not without a certificate."""


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Certificates, each as a path or as the text of a PEM file. None of it shows in `repr`.

    :param ca: authorities that a server's certificate is checked against; the system's unless given
    :param certificate: what the server is shown, with the chain behind it
    :param key: the private key of `certificate`, unless it stands in the same file; not encrypted
    """

    ca: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def context(self) -> ssl.SSLContext:
        """What a connection is encrypted with: the server's certificate and name are checked.

        :raises ValueError: one of the three can't be used. The message begins with its name, as in `ca: `, and shows the path, never a text
        """
        ca, certificate = _read("ca", self.ca, CERTIFICATE), _read("certificate", self.certificate, CERTIFICATE)
        key = _read("key", self.key, PRIVATE_KEY)
        if key.text and not certificate.text:
            raise ValueError("key: found a key without a certificate, allowed with its certificate alone")
        try:
            # Comments may be in any language, and cadata is ASCII.
            context = ssl.create_default_context(cadata=ca.text.encode("ascii", "replace").decode() or None)
        except ssl.SSLError:
            raise ValueError(f"{ca.where}: found a damaged certificate, {ALLOWED}") from None
        if certificate.text:
            _show(context, certificate, key)
        return context


class Pem(NamedTuple):
    """The text of an option, and how a message calls it."""

    where: str
    text: str


def _read(name: str, value: str, marker: str) -> Pem:
    pem = (
        Pem(name, value.encode(errors="replace").decode())
        if "-----BEGIN" in value or not value
        else _file_at(name, value)
    )
    if value and marker not in pem.text:
        raise ValueError(f"{pem.where}: found no {marker.strip('-').lower()}, {ALLOWED}")
    return pem


def _file_at(name: str, value: str) -> Pem:
    shown = repr(value[:SHOWN_MAX]) if name != "key" or _is_plain_path(value) else "a path, not shown"
    content = None
    try:
        if stat.S_ISREG(os.stat(value).st_mode):
            with Path(value).open("rb") as file:
                content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"{name}: {shown}: {error.strerror}, {ALLOWED}") from None
    except ValueError:
        pass  # no path can be written so
    if content is None:
        raise ValueError(f"{name}: {shown}: found no file, {ALLOWED}")
    if len(content) > PEM_BYTES_MAX:
        raise ValueError(f"{name}: {shown}: found more than {PEM_BYTES_MAX} bytes, allowed {PEM_BYTES_MAX}")
    return Pem(f"{name}: {shown}", content.decode(errors="replace"))


def _is_plain_path(value: str) -> bool:
    """Whether it cannot be the body of a key, which may begin with any of 64 characters, / among them."""
    directory, file = os.path.split(value)
    return os.path.isdir(directory) and len(file) < KEY_BODY_CHARACTERS_MIN


def _show(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    """Have a context show a certificate."""

    def refuse() -> NoReturn:  # asked for a password, OpenSSL would read it from the terminal
        raise ValueError(f"{(key if key.text else certificate).where}: found an encrypted key, allowed one that is not")

    if PRIVATE_KEY not in key.text + certificate.text:
        raise ValueError(f"{certificate.where}: found no private key behind the certificate, allowed there or as `key`")
    try:
        with _file(f"{key.text}\n{certificate.text}") as path:
            context.load_cert_chain(path, password=refuse)
    except ssl.SSLError as error:
        if error.reason in MISMATCHES:
            raise ValueError(
                f"{(key if key.text else certificate).where}: found the key of another certificate"
            ) from None
        what = " and ".join(pem.where for pem in (certificate, key) if pem.text)
        raise ValueError(f"{what}: found a damaged certificate or key, {ALLOWED}") from None
    except OSError as error:
        raise ValueError(f"certificate: no place to hand it to OpenSSL: {error.strerror}") from None


@contextmanager
def _file(text: str) -> Iterator[str]:
    """The path of a text that nobody else can read, and that is gone afterwards: OpenSSL takes keys from files alone."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("pem"), "wb") as memory:  # on no disk
            memory.write(text.encode())
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:  # of mode 0600
            file.write(text.encode())
            file.flush()
            yield file.name


def require_tls(line: bytes, has_certificate: bool) -> tuple[bytes, bool]:
    """A server's INFO as nats-py shall see it, and whether the server judges our certificate.

    nats-py goes on with TLS where a server requires it, and in clear where one only offers it.

    :raises TlsRefusedError: the server has no TLS, or wants a certificate
    """
    try:
        info = json.loads(line.removeprefix(b"INFO "))
    except (ValueError, RecursionError):
        return line, False  # nats-py says what it is
    if not isinstance(info, dict):
        return line, False
    if not (info.get("tls_required") is True or info.get("tls_available") is True):
        raise TlsRefusedError("TLS is required, and the server has none: nothing was sent to it")
    judged = info.get("tls_verify") is True
    if judged and not has_certificate:
        raise TlsRefusedError(DEMANDED)
    return b"INFO %b\r\n" % json.dumps(info | {"tls_required": True}).encode(), judged


def tls_refusal(error: BaseException) -> str | None:
    """Why TLS failed, in words, where the next attempt would fail too; None for all other errors."""
    if isinstance(error, TlsRefusedError):
        return str(error)
    if not isinstance(error, ssl.SSLError) or isinstance(error, TRANSIENT):
        return None
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message.removesuffix('.')}"
    reason = error.reason or "SSL error"
    alert = reason.partition("ALERT_")[2]
    if alert == "CERTIFICATE_REQUIRED":
        return DEMANDED
    if "CERTIFICATE" in alert or alert in ("UNKNOWN_CA", "ACCESS_DENIED"):
        return f"the server does not accept the client certificate: {_words(alert)}"
    return f"TLS with the server failed: {_words(reason)}"


def _words(name: str) -> str:
    return name.replace("_", " ").lower()
