"""Certificates: which ones `TlsOptions` accepts, how it refuses others, and what INFO means where TLS is required."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from keyvalue_transport.nats.tls import PEM_BYTES_MAX, TlsOptions, TlsRefusedError, require_tls, tls_refusal
from tests.nats_configs import Authority

ALLOWED = "expected the path or the text of a PEM file"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    """Return a certificate and its key."""
    return authority.issue("client.test")


def fault(options: TlsOptions) -> str:
    with pytest.raises(ValueError, match=r"found|expected") as caught:
        options.context()
    return str(caught.value)


# Accepted options


def test_no_option_is_given() -> None:
    context = TlsOptions().context()
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("memory", [True, False], ids=["memory", "file"])
def test_paths_and_texts(
    authority: Authority, pair: tuple[Path, Path], memory: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not memory:
        monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    load, modes = ssl.SSLContext.load_cert_chain, set()

    def load_and_note(context: ssl.SSLContext, path: str, password: Any) -> None:
        modes.add(Path(path).stat().st_mode & 0o077)
        load(context, path, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_note)
    certificate, key = pair
    both = key.read_text() + certificate.read_text()
    for options in (
        TlsOptions(str(authority.ca), str(certificate), str(key)),
        TlsOptions(authority.ca.read_text(), certificate.read_text(), key.read_text()),
        TlsOptions(str(authority.ca), certificate.read_text(), str(key)),
        TlsOptions(authority.ca.read_text(), both),
        TlsOptions("# Autorität, центр\r\n" + authority.ca.read_text().replace("\n", "\r\n"), both, str(key)),
    ):
        context = options.context()
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.cert_store_stats()["x509_ca"] == 1, "no authority but the given one"
    assert list(tmp_path.iterdir()) == []
    assert memory or modes == {0}, "no other user may read a text"


def test_a_given_key_overrides_one_in_the_certificates_file(authority: Authority, pair: tuple[Path, Path]) -> None:
    other, _ = authority.issue("another.test")
    TlsOptions("", pair[0].read_text() + authority.issue("x")[1].read_text(), str(pair[1])).context()
    assert "found the key of another certificate" in fault(
        TlsOptions("", other.read_text() + pair[1].read_text(), str(pair[1]))
    )


def test_a_byte_order_mark_is_skipped(authority: Authority, pair: tuple[Path, Path], tmp_path: Path) -> None:
    marked = []
    for index, path in enumerate((authority.ca, *pair)):
        marked.append(tmp_path / str(index))
        marked[-1].write_text(f"\ufeff{path.read_text()}")
    ca, certificate, key = map(str, marked)
    assert len(TlsOptions(ca, certificate, key).context().get_ca_certs()) == 1


def test_the_repr_of_options_shows_nothing() -> None:
    assert repr(TlsOptions("s3cret", "s3cret", "s3cret")) == "TlsOptions()"


# Refused options


def test_files_that_cannot_be_used(authority: Authority, pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = map(str, pair)
    missing, empty, long = (tmp_path / name for name in ("missing", "empty", "long"))
    empty.write_bytes(b"")
    long.write_bytes(b"x" * (PEM_BYTES_MAX + 1))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for options, message in (
        (TlsOptions(ca=str(missing)), f"ca: '{missing}': No such file or directory, {ALLOWED}"),
        (TlsOptions(ca=str(tmp_path)), f"ca: '{tmp_path}': found no file, {ALLOWED}"),
        (TlsOptions(ca=f"{tmp_path}/fifo"), f"ca: '{tmp_path}/fifo': found no file, {ALLOWED}"),
        (TlsOptions(ca=f"{tmp_path}/loop"), f"ca: '{tmp_path}/loop': Too many levels of symbolic links.*"),
        (TlsOptions(ca=str(empty)), f"ca: '{empty}': found no certificate, {ALLOWED}"),
        (TlsOptions(ca=key), f"ca: '{key}': found no certificate, {ALLOWED}"),
        (TlsOptions(ca=str(long)), f"ca: '{long}': found more than {PEM_BYTES_MAX} bytes, allowed {PEM_BYTES_MAX}"),
        (TlsOptions(ca="a\0b"), rf"ca: 'a\x00b': found no file, {ALLOWED}"),
        (TlsOptions(ca="\ud800"), rf"ca: '\ud800': found no file, {ALLOWED}"),
        (TlsOptions(certificate=str(missing)), f"certificate: '{missing}': No such file or directory, {ALLOWED}"),
        (TlsOptions(certificate=key), f"certificate: '{key}': found no certificate, {ALLOWED}"),
        (
            TlsOptions(certificate=certificate),
            f"certificate: '{certificate}': found no private key after the certificate, expected one there or in `key`",
        ),
        (TlsOptions("", certificate, str(missing)), f"key: '{missing}': No such file or directory, {ALLOWED}"),
        (TlsOptions("", certificate, certificate), f"key: '{certificate}': found no private key, {ALLOWED}"),
        (TlsOptions(key=key), "key: found a key without a certificate, expected both"),
        (
            TlsOptions("", certificate, str(authority.issue("x")[1])),
            r"key: '.*': found the key of another certificate",
        ),
    ):
        found = fault(options)
        assert found == message or re.fullmatch(message, found), found


def damaged(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join([*lines[:2], "s3cret!\n", *lines[3:]])


def test_texts_that_cannot_be_used(authority: Authority, pair: tuple[Path, Path]) -> None:
    ca, certificate, key = (path.read_text() for path in (authority.ca, *pair))
    begin = "-----BEGIN s3cret"
    for options, message in (
        (TlsOptions(ca=begin), f"ca: found no certificate, {ALLOWED}"),
        (TlsOptions(ca=key), f"ca: found no certificate, {ALLOWED}"),
        (TlsOptions(ca=damaged(ca)), f"ca: found a damaged certificate, {ALLOWED}"),
        (TlsOptions(ca=ca[:-40]), f"ca: found a damaged certificate, {ALLOWED}"),
        (TlsOptions(ca=ca + damaged(ca)), f"ca: found a damaged certificate, {ALLOWED}"),
        (TlsOptions("", begin, key), f"certificate: found no certificate, {ALLOWED}"),
        (TlsOptions("", certificate, begin), f"key: found no private key, {ALLOWED}"),
        (TlsOptions("", damaged(certificate), key), f"certificate and key: found a damaged certificate or key, {ALLOWED}"),
        (TlsOptions("", certificate, damaged(key)), f"certificate and key: found a damaged certificate or key, {ALLOWED}"),
        (TlsOptions("", certificate + damaged(key)), f"certificate: found a damaged certificate or key, {ALLOWED}"),
    ):  # fmt: skip
        assert fault(options) == message


@pytest.mark.parametrize("slash", ["/", "+"])
def test_a_possible_key_body_is_not_shown(pair: tuple[Path, Path], slash: str) -> None:
    """Any of 64 characters can be anywhere in it. If it has slashes, its parts look like directories."""
    body = "".join(pair[1].read_text().splitlines()[1:-1]).replace("/", slash)
    for value in (body, f"/{body}", f"nowhere/{body}"):
        message = fault(TlsOptions("", str(pair[0]), value))
        assert message.startswith("key: a path, not shown: ")
        assert body not in message


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key_is_refused_without_asking_for_a_password(
    pair: tuple[Path, Path], form: PrivateFormat, tmp_path: Path
) -> None:
    """Run a process with its own terminal, from which OpenSSL would read."""
    encrypted = tmp_path / "encrypted.pem"
    key = load_pem_private_key(pair[1].read_bytes(), None)
    encrypted.write_bytes(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"s3cret")))
    assert "ENCRYPTED" in encrypted.read_text()
    code = f"from keyvalue_transport.nats.tls import TlsOptions; TlsOptions('', {str(pair[0])!r}, {str(encrypted)!r}).context()"
    reader, terminal = os.openpty()
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, timeout=30,
            start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(reader)
        os.close(terminal)
    message = f"ValueError: key: '{encrypted}': found an encrypted key, expected one that is not encrypted"
    assert ended.stderr.splitlines()[-1] == message
    inline = TlsOptions("", pair[0].read_text() + encrypted.read_text())
    assert fault(inline) == "certificate: found an encrypted key, expected one that is not encrypted"


@settings(max_examples=10)  # each loads the system's certificates
@given(st.text(), st.text(), st.text())
def test_any_texts(ca: str, certificate: str, key: str) -> None:
    """They give a context, or a ValueError that shows none of the texts."""
    marker = "-----BEGIN CERTIFICATE-----\nPRIVATE KEY-----"
    for options in (TlsOptions(marker + ca), TlsOptions("", marker + certificate, marker + key)):
        assert len(fault(options)) < 200


# INFO


def line(**fields: object) -> bytes:
    return b"INFO " + json.dumps({"server_id": "A"} | fields).encode() + b" \r\n"


@pytest.mark.parametrize(
    "offer", [{"tls_required": True}, {"tls_available": True}, {"tls_required": True, "a": "\u00e9"}]
)
def test_a_server_with_tls(offer: dict[str, object]) -> None:
    seen, judged = require_tls(line(**offer), False)
    assert seen.startswith(b"INFO {")
    assert seen.endswith(b"}\r\n")
    assert json.loads(seen[5:]) == {"server_id": "A"} | offer | {"tls_required": True}
    assert not judged
    assert require_tls(line(**offer, tls_verify=True), True)[1]


@pytest.mark.parametrize(
    ("offer", "has_certificate", "refusal"),
    [
        (
            {"tls_required": True, "tls_verify": True},
            False,
            "the server requires a client certificate, but none is configured",
        ),
        *(
            (offer, True, "TLS is required, and the server has none: nothing was sent to it")
            for offer in ({}, {"tls_required": False}, {"tls_required": 1}, {"tls_available": "true"})
        ),
    ],
)
def test_a_server_that_is_refused(offer: dict[str, object], has_certificate: bool, refusal: str) -> None:
    with pytest.raises(TlsRefusedError, match=refusal):
        require_tls(line(**offer), has_certificate)


@given(st.binary().filter(lambda line: b"{" not in line))
def test_a_malformed_info_is_left_to_nats_py(line: bytes) -> None:
    for other in (line, b"INFO " + line, b"INFO []\r\n", b"INFO " + b"[" * 100_000):
        assert require_tls(other, False) == (other, False)


# Errors


def ssl_error(kind: type[ssl.SSLError], reason: str) -> ssl.SSLError:
    error = kind(1, f"[SSL: {reason}] (_ssl.c:1000)")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "refusal"),
    [
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", "the server requires a client certificate, but none is configured"),
        ("TLSV1_ALERT_UNKNOWN_CA", "the server does not accept the client certificate: unknown ca"),
        ("SSL/TLS_ALERT_BAD_CERTIFICATE", "the server does not accept the client certificate: bad certificate"),
        ("TLSV1_ALERT_PROTOCOL_VERSION", "TLS with the server failed: tlsv1 alert protocol version"),
        ("WRONG_VERSION_NUMBER", "TLS with the server failed: wrong version number"),
        # A retry may succeed.
        (ssl_error(ssl.SSLEOFError, "UNEXPECTED_EOF_WHILE_READING"), None),
        *((kind(), None) for kind in (ssl.SSLZeroReturnError, ConnectionResetError, TimeoutError, ValueError)),
    ],
)
def test_errors_that_repeat(error: str | Exception, refusal: str | None) -> None:
    assert tls_refusal(ssl_error(ssl.SSLError, error) if isinstance(error, str) else error) == refusal
