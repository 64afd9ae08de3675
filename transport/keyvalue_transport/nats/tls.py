"""TLS for the NATS connection, and for the Redis listener: how certificates are loaded, and how TLS errors are explained.

If TLS is required, nothing is sent unencrypted. `DirectTransport` in `direct/transport.py` enforces this rule for the
first connection and for each reconnect.
"""

from __future__ import annotations

import json
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn

__all__ = ["TlsOptions", "TlsRefusedError", "require_tls", "tls_refusal"]

#: Maximum size of a PEM file, which is about four times the size of a system's CA bundle.
PEM_BYTES_MAX = 1024 * 1024
SHOWN_MAX = 256
#: The length of the shortest private key (32 bytes) in base64.
KEY_BODY_CHARACTERS_MIN = 43
ALLOWED = "expected the path or the text of a PEM file"
CERTIFICATE, PRIVATE_KEY = "CERTIFICATE-----", "PRIVATE KEY-----"
#: OpenSSL's reasons for refusing a valid key that belongs to another certificate.
MISMATCHES = frozenset(
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_PRIVATE_KEY_ASSIGNED", "NO_CERTIFICATE_ASSIGNED"}
)
#: Errors after which another attempt may succeed.
TRANSIENT = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
DEMANDED = "the server requires a client certificate, but none is configured"


class TlsRefusedError(ConnectionError):
    """An error for a server without TLS, or for a client certificate that is rejected or missing."""


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """Certificates and a key for TLS. Each option is the path or the text of a PEM file. `repr` hides the options.

    :param ca: the trusted CA certificates for the server's certificate; by default, those of the system
    :param certificate: the client certificate that we present to the server, followed by its chain
    :param key: the unencrypted private key; empty if the key is in the same file as the certificate
    """

    ca: str = field(default="", repr=False)
    certificate: str = field(default="", repr=False)
    key: str = field(default="", repr=False)

    def context(self) -> ssl.SSLContext:
        """Return a TLS context that checks the server's certificate and host name.

        :raises ValueError: an option is unusable. The message begins with the option's name, for example `ca: `. The
            message may show a path, but never the text of a file
        """
        return self._context(ssl.Purpose.SERVER_AUTH)

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS context for a server that presents the certificate. With `ca`, clients must present one too.

        :raises ValueError: as in `context`
        """
        if not self.certificate:
            raise ValueError("certificate: found none, expected the certificate of this server")
        context = self._context(ssl.Purpose.CLIENT_AUTH)
        if self.ca:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        ca, certificate = _read("ca", self.ca, CERTIFICATE), _read("certificate", self.certificate, CERTIFICATE)
        key = _read("key", self.key, PRIVATE_KEY)
        if key.text and not certificate.text:
            raise ValueError("key: found a key without a certificate, expected both")
        try:
            # Comments in the file may be in any language, but cadata must be ASCII.
            context = ssl.create_default_context(purpose, cadata=ca.text.encode("ascii", "replace").decode() or None)
        except ssl.SSLError:
            raise ValueError(f"{ca.where}: found a damaged certificate, {ALLOWED}") from None
        if certificate.text:
            _show(context, certificate, key)
        return context


class Pem(NamedTuple):
    """The PEM text from an option, and the name of the option for error messages."""

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
        pass  # not a valid path
    if content is None:
        raise ValueError(f"{name}: {shown}: found no file, {ALLOWED}")
    if len(content) > PEM_BYTES_MAX:
        raise ValueError(f"{name}: {shown}: found more than {PEM_BYTES_MAX} bytes, allowed {PEM_BYTES_MAX}")
    return Pem(f"{name}: {shown}", content.decode("utf-8-sig", errors="replace"))


def _is_plain_path(value: str) -> bool:
    """Return True if a value is clearly a path. Any other value may be a key in base64, which can contain slashes."""
    directory, file = os.path.split(value)
    return os.path.isdir(directory) and len(file) < KEY_BODY_CHARACTERS_MIN


def _show(context: ssl.SSLContext, certificate: Pem, key: Pem) -> None:
    """Load the client certificate and its key into a context."""

    def refuse() -> NoReturn:  # without this callback, OpenSSL would ask for a password on the terminal
        raise ValueError(
            f"{(key if key.text else certificate).where}: found an encrypted key, expected one that is not encrypted"
        )

    if PRIVATE_KEY not in key.text + certificate.text:
        raise ValueError(
            f"{certificate.where}: found no private key after the certificate, expected one there or in `key`"
        )
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
        raise ValueError(f"certificate: cannot write a temporary file for OpenSSL: {error.strerror}") from None


@contextmanager
def _file(text: str) -> Iterator[str]:
    """Yield the path of a temporary file that no other user can read. OpenSSL loads keys only from files."""
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("pem"), "wb") as memory:  # never on disk
            memory.write(text.encode())
            memory.flush()
            yield f"/proc/self/fd/{memory.fileno()}"
    else:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:  # mode 0600
            file.write(text.encode())
            file.flush()
            yield file.name


def require_tls(line: bytes, has_certificate: bool) -> tuple[bytes, bool]:
    """Return the INFO to pass to nats-py, and True if the server will check our certificate.

    nats-py uses TLS only if the INFO requires TLS. An INFO that only offers TLS is changed to require TLS.

    :raises TlsRefusedError: the server has no TLS, or demands a certificate that we do not have
    """
    try:
        info = json.loads(line.removeprefix(b"INFO "))
    except (ValueError, RecursionError):
        return line, False  # nats-py reports the error
    if not isinstance(info, dict):
        return line, False
    if not (info.get("tls_required") is True or info.get("tls_available") is True):
        raise TlsRefusedError("TLS is required, and the server has none: nothing was sent to it")
    judged = info.get("tls_verify") is True
    if judged and not has_certificate:
        raise TlsRefusedError(DEMANDED)
    return b"INFO %b\r\n" % json.dumps(info | {"tls_required": True}).encode(), judged


def tls_refusal(error: BaseException) -> str | None:
    """Return why TLS failed, if the next attempt would fail too. Return None for all other errors."""
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
