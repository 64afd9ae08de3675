"""Provider archives: a new one is accepted. One that was changed, cut or added to is not."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import stat
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from keyvalue_provider.host.nkey_text import decode_seed, encode_seed
from keyvalue_provider.host.secret import Secret
from keyvalue_provider.packaging import archive as archive_module
from keyvalue_provider.packaging import archive_command
from keyvalue_provider.packaging.archive import (
    Archive,
    ArchiveError,
    archive_faults,
    make_archive,
    native_target,
    read_archive,
    target_hashes,
)
from keyvalue_provider.packaging.claims import (
    ACCOUNT,
    SERVICE,
    Claims,
    ClaimsError,
    given_seed,
    public_key,
    read_claims,
    sign_claims,
    stored_seed,
)

#: An account's key pair, made by the Go library of nkeys. The Rust library's tests have it too.
GO_SEED = "SAAPN4W3EG6KCJGUQTKTJ5GSB5NHK5CHAJL4DBGFUM3HHROI4XUEP4OBK4"
GO_PUBLIC_KEY = "ACODERUVFFAWZQDSS6SBIACUA5O6SXF7HJ3YTYXBALHZP3P7R4BUO4J2"
ISSUER = Secret(GO_SEED)
SUBJECT = Secret(encode_seed("V", bytes(range(32))))
NOW_S = 1_800_000_000


def elf(machine: int, size_bytes: int) -> bytes:
    """Return bytes that begin like a Linux executable."""
    return (b"\x7fELF" + bytes(14) + machine.to_bytes(2, "little")).ljust(size_bytes, b"\x90")


BINARIES = {"aarch64-linux": elf(183, 2100), "x86_64-linux": elf(62, 1200)}
WORLD = b"\0asm world"


def claims_of(binaries: dict[str, bytes], world: bytes | None = None) -> Claims:
    return Claims(
        issuer=GO_PUBLIC_KEY,
        subject=public_key(SERVICE, SUBJECT),
        name="keyvalue",
        vendor="tests",
        version="1.2.3",
        revision=4,
        target_hashes=target_hashes(binaries, world),
        issued_at_s=NOW_S,
    )


@cache
def token() -> str:
    return sign_claims(claims_of(BINARIES, WORLD), ISSUER)


def faults_of(archive: bytes) -> list[str]:
    return archive_faults(read_archive(io.BytesIO(archive)), NOW_S)


def tar_of(*entries: tuple[str, bytes] | tuple[tarfile.TarInfo, bytes], end: bytes = bytes(1024)) -> bytes:
    """Return a tar of any entries."""
    tar = b""
    for header, content in entries:
        if isinstance(header, str):
            header = tarfile.TarInfo(header)
            header.size = len(content)
        tar += header.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)
    return tar + end


def entries() -> list[tuple[str, bytes]]:
    return [("claims.jwt", token().encode()), ("world.wasm", WORLD), *((f"{t}.bin", b) for t, b in BINARIES.items())]


def token_of(header: Any, claims: Any, key: Secret = ISSUER) -> str:
    """Return a signed token of any JSON."""
    parts = ".".join(
        base64.urlsafe_b64encode(part if isinstance(part, bytes) else json.dumps(part).encode()).decode().rstrip("=")
        for part in (header, claims)
    )
    signature = SigningKey(decode_seed("A", key.reveal())).sign(parts.encode()).signature
    return f"{parts}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


HEADER = {"typ": "jwt", "alg": "Ed25519"}


def stated() -> dict[str, Any]:
    """Return the claims of the token."""
    payload = token().split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


# Made and accepted


def test_a_new_archive_is_accepted() -> None:
    for made in (make_archive(token(), BINARIES, WORLD), tar_of(*entries())):
        archive = read_archive(io.BytesIO(made))
        assert archive_faults(archive, NOW_S) == []
        assert archive.hashes() == {
            "aarch64-linux": hashlib.sha256(BINARIES["aarch64-linux"]).hexdigest().upper(),
            "x86_64-linux": hashlib.sha256(BINARIES["x86_64-linux"]).hexdigest().upper(),
            "world.wasm": hashlib.sha256(WORLD).hexdigest().upper(),
        }
        assert archive.binaries["x86_64-linux"].size_bytes == 1200
        assert read_claims(archive.token) == claims_of(BINARIES, WORLD)


def test_the_tar_depends_on_nothing_else() -> None:
    """Its names are sorted, and contain nothing of the machine that made it.

    The order of the binaries does not matter.
    """
    made = make_archive(token(), BINARIES, WORLD)
    turned = dict(reversed(BINARIES.items()))
    assert make_archive(sign_claims(claims_of(turned, WORLD), ISSUER), turned, WORLD) == made
    with tarfile.open(fileobj=io.BytesIO(made), mode="r:gz") as tar:
        assert tar.getnames() == ["claims.jwt", "world.wasm", "aarch64-linux.bin", "x86_64-linux.bin"]
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.mode == (0o755 if member.name.endswith(".bin") else 0o644)
        binary = tar.extractfile("x86_64-linux.bin")
        assert binary is not None
        assert binary.read() == BINARIES["x86_64-linux"]


def test_the_token_is_that_of_wascap() -> None:
    header = token().split(".")[0]
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == HEADER
    claims = stated()
    assert claims.pop("jti")
    assert claims == {
        "iat": NOW_S,
        "iss": GO_PUBLIC_KEY,
        "sub": public_key(SERVICE, SUBJECT),
        "wascap": {
            "name": "keyvalue",
            "vendor": "tests",
            "rev": 4,
            "ver": "1.2.3",
            "target_hashes": target_hashes(BINARIES, WORLD),
        },
        "wascap_revision": 3,
    }


def test_keys_are_those_of_other_libraries() -> None:
    assert public_key(ACCOUNT, ISSUER) == GO_PUBLIC_KEY
    assert public_key(SERVICE, SUBJECT)[0] == "V"
    with pytest.raises(ClaimsError, match="expected a seed SV"):
        public_key(SERVICE, ISSUER)


def test_an_archive_of_this_machine_is_valid_now() -> None:
    binaries = {native_target(): b"here"}
    claims = replace(claims_of(binaries), issued_at_s=int(time.time()), expires_s=int(time.time()) + 3600)
    archive = read_archive(io.BytesIO(make_archive(sign_claims(claims, ISSUER), binaries)))
    assert archive_faults(archive, time.time()) == []


@pytest.mark.parametrize(
    ("binaries", "message"),
    [
        ({}, "the archive has no binary; it needs at least one"),
        ({"../x-y": b""}, "target '../x-y' is malformed; expected ARCHITECTURE-SYSTEM, like x86_64-linux"),
        ({"world": b""}, "target 'world' is malformed"),
        ({f"a-{number}": b"" for number in range(64)}, "the archive has 65 entries; the limit is 64"),
    ],
)
def test_an_archive_that_no_host_accepts_is_not_made(binaries: dict[str, bytes], message: str) -> None:
    with pytest.raises(ArchiveError, match=f"^{message}"):
        make_archive("token", binaries)


# Changed


@given(
    st.sampled_from(["claims.jwt", "world.wasm", *(f"{t}.bin" for t in BINARIES)]), st.integers(0), st.integers(1, 255)
)
def test_a_changed_byte_of_an_entry_is_a_fault(name: str, at: int, change: int) -> None:
    changed = bytearray(dict(entries())[name])
    changed[at % len(changed)] ^= change
    faults = faults_of(tar_of(*(dict(entries()) | {name: bytes(changed)}).items()))
    if name == "claims.jwt":
        assert faults
        assert all(fault.startswith("claims.jwt: ") or "SHA-256" in fault or "hash" in fault for fault in faults)
    else:
        (fault,) = faults
        assert fault.startswith(f"{name.removesuffix('.bin')}: found SHA-256 ")


@given(st.integers(0), st.integers(1, 255))
def test_a_changed_byte_of_the_gzip_is_never_read_as_another_archive(at: int, change: int) -> None:
    made = bytearray(make_archive(token(), BINARIES, WORLD))
    made[at % len(made)] ^= change
    try:
        archive = read_archive(io.BytesIO(bytes(made)))
    except ArchiveError:
        return
    # gzip's own header has bytes without a meaning.
    assert (archive.token, archive.hashes()) == (token(), target_hashes(BINARIES, WORLD))


@given(st.binary(max_size=2048) | st.builds(gzip.compress, st.binary(max_size=2048)))
def test_anything_else_is_refused_with_a_reason(octets: bytes) -> None:
    with pytest.raises(ArchiveError, match=r"."):
        read_archive(io.BytesIO(octets))


def test_every_cut_is_refused() -> None:
    made, plain = make_archive(token(), BINARIES, WORLD), tar_of(*entries())
    for whole in made, plain:
        for length in range(0, len(whole) - 1024, 37):
            with pytest.raises(ArchiveError, match=r"damaged or truncated gzip|bytes are missing"):
                read_archive(io.BytesIO(whole[:length]))


HASHES = target_hashes(BINARIES, WORLD)


def replaced(**changes: object) -> bytes:
    """Return the archive with different claims, correctly signed."""
    claims = replace(claims_of(BINARIES, WORLD), **changes)  # type: ignore[arg-type] # whatever the test says
    return make_archive(sign_claims(claims, ISSUER), BINARIES, WORLD)


@pytest.mark.parametrize(
    ("archive", "fault"),
    [
        (replaced(expires_s=NOW_S), "claims.jwt: claims.exp: expired 0 s ago"),
        (replaced(not_before_s=NOW_S + 60), "claims.jwt: claims.nbf: not valid for another 60 s"),
        (replaced(wascap_revision=2), "claims.jwt: claims.wascap_revision: found 2, allowed 3"),
        (replaced(subject=GO_PUBLIC_KEY), "claims.jwt: claims.sub: found another kind of key"),
        (replaced(target_hashes=target_hashes(BINARIES)), "world.wasm: the claims have no hash of this entry"),
        (
            replaced(target_hashes=HASHES | {"arm-linux": "AB"}),
            "'arm-linux': the claims have a hash of this entry, but the archive",
        ),
        (
            replaced(target_hashes={name: text.lower() for name, text in HASHES.items()}),
            "aarch64-linux: found SHA-256 ",
        ),
    ],
)
def test_an_archive_that_differs_from_its_claims_is_a_fault(archive: bytes, fault: str) -> None:
    faults = faults_of(archive)
    assert faults
    assert faults[0].startswith(fault), faults


OTHER_ISSUER = Secret(encode_seed("A", bytes(32)))
ANOTHER_KIND = "claims.iss: found another kind of key"
A_NUMBER = {"wascap": {"target_hashes": {"a": 1}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            token_of(HEADER, stated(), OTHER_ISSUER),
            f"signature: the issuer {GO_PUBLIC_KEY} has not signed these claims",
        ),
        (token_of(HEADER | {"alg": "none"}, stated()), 'header: found {"typ": "jwt", "alg": "none"}, allowed'),
        (token_of([], stated()), "header: found [], allowed"),
        (token_of(HEADER, stated() | {"iss": public_key(SERVICE, SUBJECT)}), ANOTHER_KIND),
        (token_of(HEADER, stated() | {"iss": ""}), ANOTHER_KIND),
        (token_of(HEADER, stated() | {"iss": "é"}), "claims.iss: found 1 characters that are not base32"),
        ("", "parts of the token: found 1, expected 3: header.claims.signature"),
        ("é.é.é", "found 1 characters of a token that are not base64url"),
        (token() + "=", "found 87 characters of a token that are not base64url"),
        (token_of(HEADER, b"{"), "claims: found 1 bytes that are not JSON"),
        (token_of(HEADER, b"[" * 10_000), "claims: found 10000 bytes that are not JSON"),
        (token_of(HEADER, []), "claims: found an array, expected an object"),
        (token_of(HEADER, b'{"iss": "a", "iss": "b"}'), "an object of the token has two fields with the same name"),
        (token_of(HEADER, {"iat": -1}), "claims.iat: found a number, expected a whole number from 0"),
        (token_of(HEADER, {"wascap": 1}), "claims.wascap: found a number, expected an object"),
        (token_of(HEADER, A_NUMBER), "claims.wascap.target_hashes.a: found a number, expected a string"),
    ],
)
def test_a_malformed_token_is_a_fault(text: str, message: str) -> None:
    faults = archive_faults(Archive(text, {}, None), NOW_S)
    assert faults[0].startswith(f"claims.jwt: {message}"), faults


# Added


def typed(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.type, header.linkname = kind, link
    return header, b""


def sized(name: str, size_bytes: int) -> tuple[tarfile.TarInfo, bytes]:
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    return header, b""


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (tar_of(*entries(), entries()[0]), "claims.jwt: the entry occurs twice"),
        (tar_of(*entries(), entries()[2]), "aarch64-linux.bin: the entry occurs twice"),
        (tar_of(*entries()[1:]), "claims.jwt is missing"),
        (tar_of(*entries()[:2]), "the archive has no binary; it needs at least one"),
        (tar_of(*entries(), ("claims.txt", b"")), "found an entry 'claims.txt', allowed claims.jwt, world.wasm"),
        (tar_of(*entries(), ("../../evil", b"")), "found an entry '../../evil', allowed "),
        (
            tar_of(*entries(), typed("arm-linux.bin", tarfile.SYMTYPE, "/etc/passwd")),
            "'arm-linux.bin': the entry has type",
        ),
        (tar_of(*entries(), typed("arm-linux.bin", tarfile.DIRTYPE)), "'arm-linux.bin/?': the entry has type b'5'"),
        (tar_of(typed("x", tarfile.XHDTYPE), *entries()), "'x': the entry has type b'x'; only plain files are allowed"),
        (tar_of(sized("claims.jwt", 65_537)), "claims.jwt is 65537 bytes; the limit is 65536"),
        (tar_of(sized("x86_64-linux.bin", 2**40)), "x86_64-linux.bin is 1099511627776 bytes; the limit is 536870912"),
        (tar_of(sized("x86_64-linux.bin", 2**29)), "truncated in x86_64-linux.bin: "),
        (tar_of(*((f"a-{n}.bin", b"") for n in range(65))), "the archive has more entries than the limit of 64"),
        (tar_of(*entries(), end=bytes(512) + b"\1" * 512), "found other bytes than zeros after the end of the archive"),
        (tar_of(*entries(), end=b""), "truncated before the end of the archive: 512 bytes are missing"),
        (tar_of(*entries(), end=b"\1" * 512), "malformed tar header: "),
        (make_archive(token(), BINARIES, WORLD) * 2, "found other bytes than zeros after the end"),
        (gzip.compress(b"", mtime=0), "truncated before the end of the archive: 512 bytes are missing"),
    ],
)
def test_an_archive_that_others_may_read_differently_is_refused(tar: bytes, message: str) -> None:
    for packed in (tar,) if tar[:2] == b"\x1f\x8b" else (tar, gzip.compress(tar)):
        with pytest.raises(ArchiveError, match=f"^{message}"):
            read_archive(io.BytesIO(packed))


def test_a_short_gzip_of_many_bytes_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "ARCHIVE_BYTES_MAX", 2**20)
    monkeypatch.setattr(archive_module, "ENTRY_BYTES_MAX", 2**30)
    header, _ = sized("x86_64-linux.bin", 2**30)
    bomb = gzip.compress(header.tobuf() + bytes(2**26))
    assert len(bomb) < 2**17
    read = 0

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            nonlocal read
            piece = super().read(size)
            read += len(piece)
            return piece

    with pytest.raises(ArchiveError, match=r"^the unpacked archive is larger than the limit of 1048576 bytes"):
        read_archive(Counted(bomb))
    assert read < len(bomb)


# Seeds


def test_missing_seeds_are_made_once_and_only_for_their_user(tmp_path: Path) -> None:
    directory = tmp_path / "home" / "keys"
    seed, made = stored_seed(ACCOUNT, directory, "alice")
    assert made == directory / "alice_account.nk"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert made.read_text() == seed.reveal()  # without a line feed, which wash would not accept
    assert public_key(ACCOUNT, seed).startswith("A")
    assert stored_seed(ACCOUNT, directory, "alice") == (seed, None)
    assert stored_seed(SERVICE, directory, "alice")[1] == directory / "alice_service.nk"


@pytest.mark.parametrize("text", ["", "hush", encode_seed("V", bytes(32)), GO_SEED[:-1], GO_SEED.lower(), "\xff"])
def test_a_malformed_seed_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "alice_account.nk"
    path.write_text(text)
    for read in (lambda: stored_seed(ACCOUNT, tmp_path, "alice"), lambda: given_seed(ACCOUNT, str(path))):
        with pytest.raises(ClaimsError, match="expected a seed SA") as caught:
            read()
        assert not text or text not in str(caught.value)


@pytest.mark.parametrize("owner", ["", "../alice", "/alice"])
def test_a_key_stays_in_its_directory(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ClaimsError, match=r"^the owner of a key is .*, which cannot be part of a file name"):
        stored_seed(ACCOUNT, tmp_path, owner)
    assert list(tmp_path.iterdir()) == []


def test_a_seed_is_given_as_a_file_or_as_text(tmp_path: Path) -> None:
    (tmp_path / "seed").write_text(GO_SEED + "\n")
    assert given_seed(ACCOUNT, str(tmp_path / "seed")) == given_seed(ACCOUNT, GO_SEED) == ISSUER
    (tmp_path / "seed").write_text(f"\ufeff{GO_SEED}\n")
    assert given_seed(ACCOUNT, str(tmp_path / "seed")) == ISSUER
    with pytest.raises(ClaimsError, match="the file of the seed is unreadable: Is a directory"):
        given_seed(ACCOUNT, str(tmp_path))


# The command


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command in a directory of its own, with keys there. Return exit code, output and errors."""
    for name in ("WASH_ISSUER_KEY", "WASH_SUBJECT_KEY", "SOURCE_DATE_EPOCH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WASH_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("USER", "alice")
    monkeypatch.chdir(tmp_path)
    for target, binary in BINARIES.items():
        (tmp_path / target).write_bytes(binary)
    (tmp_path / "world").write_bytes(WORLD)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = archive_command.run(arguments)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


MAKE = ("make", "a.par.gz", "--binary", "x86_64-linux=x86_64-linux")


def test_make_names_the_keys_it_made_and_verify_accepts_the_archive(command: Command, tmp_path: Path) -> None:
    both = (*MAKE, "--binary", "aarch64-linux=aarch64-linux", "--world", "world")
    code, output, errors = command(*both)
    assert (code, output) == (0, "")
    account, service = errors.splitlines()
    assert account.startswith(f"{tmp_path}/keys/alice_account.nk: created; it holds the seed of the account A")
    assert service.startswith(
        f"{tmp_path}/keys/keyvalue-inmemory_service.nk: created; it holds the seed of the service V"
    )
    assert command(*both) == (0, "", "")
    seeds = [path.read_text() for path in (tmp_path / "keys").iterdir()]
    assert len(seeds) == 2
    assert not any(seed in errors for seed in seeds)
    code, output, errors = command("verify", "a.par.gz")
    assert (code, errors) == (0, "")
    keys = f"{service.split()[-1]}, signed by {account.split()[-1]}"
    assert output == f"a.par.gz: {keys}, for aarch64-linux, x86_64-linux\n"
    assert {path.name for path in tmp_path.iterdir()} == {"a.par.gz", "keys", "world", *BINARIES}


def test_keys_and_time_from_the_environment_are_inspected(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "subject").write_text(SUBJECT.reveal())
    monkeypatch.setenv("WASH_ISSUER_KEY", GO_SEED)
    monkeypatch.setenv("WASH_SUBJECT_KEY", str(tmp_path / "subject"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(NOW_S))
    named = ("--vendor", "es\x1b[2Jcape", "--version", "1.2.3", "--revision", "4", "--name", "keyvalue")
    assert command(*MAKE, *named, "--world", "world") == (0, "", "")
    assert not (tmp_path / "keys").exists()
    only = {"x86_64-linux": BINARIES["x86_64-linux"]}
    with (tmp_path / "a.par.gz").open("rb") as file:
        assert read_claims(read_archive(file).token) == replace(claims_of(only, WORLD), vendor="es\x1b[2Jcape")
    code, output, errors = command("inspect", "a.par.gz")
    assert (code, errors) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in output.splitlines())
    assert lines["vendor"] == r"'es\x1b[2Jcape'"
    assert lines["issuer"] == GO_PUBLIC_KEY
    assert lines["issued"] == "2027-01-15T08:00:00Z"
    assert lines["x86_64-linux"] == f"1200 bytes, SHA-256 {target_hashes(BINARIES)['x86_64-linux']}"
    shown = json.loads(command("inspect", "a.par.gz", "--json")[1])
    assert shown["claims"]["target_hashes"] == target_hashes(only, WORLD)
    assert shown["entries"]["world.wasm"]["size_bytes"] == len(WORLD)


def test_verify_has_a_line_for_each_fault(command: Command, tmp_path: Path) -> None:
    claims = replace(claims_of(BINARIES), subject="V", target_hashes={"x86_64-linux": "AB", "arm-linux": "CD"})
    archive = make_archive(sign_claims(claims, ISSUER), BINARIES)
    (tmp_path / "a.par.gz").write_bytes(archive)
    code, output, errors = command("verify", "a.par.gz")
    assert (code, output) == (1, "")
    expected = ["claims.jwt", "aarch64-linux", "'arm-linux'", "x86_64-linux"]
    assert [line.split(": ")[:2] for line in errors.splitlines()] == [["verify a.par.gz", name] for name in expected]


NO_ELF = "world: this is not an ELF file; expected an executable for x86_64-linux"
OTHER_ELF = "aarch64-linux: found an ELF file for machine 183, expected one for x86_64-linux"
NO_TIME = "SOURCE_DATE_EPOCH: found 'yesterday', expected seconds since 1970"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((*MAKE[:3], "x86_64-linux=world"), f"make a.par.gz: {NO_ELF}"),
        ((*MAKE[:3], "x86_64-linux=aarch64-linux"), f"make a.par.gz: {OTHER_ELF}"),
        (MAKE, f"make a.par.gz: {NO_TIME}"),
        (("verify", "none"), "verify none: none: No such file or directory"),
        (("inspect", "world"), "inspect world: truncated before the end of the archive: 502 bytes are missing"),
        (("verify", "."), "verify .: .: Is a directory"),
        ((*MAKE, *MAKE[2:]), "make a.par.gz: x86_64-linux has two binaries; give only one"),
        ((*MAKE, "--world", "none"), "make a.par.gz: none: No such file or directory"),
        ((*MAKE, "--issuer", "hush"), "make a.par.gz: the account's key: neither a file nor a seed: found 4 char"),
        (("make", "none/a", *MAKE[2:]), "make none/a: none/a."),
    ],
)
def test_a_failure_is_reported_in_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Iterable[str], line: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday" if NO_TIME in line else "0")
    code, output, errors = command(*arguments)
    assert (code, output) == (1, "")
    assert not (tmp_path / "a.par.gz").exists()
    assert errors.splitlines()[-1].startswith(line), errors
    assert "hush" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("make", "a", "--binary", "x86_64-linux"), "found 'x86_64-linux', expected TARGET=FILE"),
        (("make", "a", "--binary", "../a=b"), "found '../a=b', expected TARGET=FILE"),
        ((*MAKE, "--revision", "-1"), "found '-1', allowed 0 to 2147483647"),
        ((*MAKE, "--revision", "2147483648"), "found '2147483648', allowed 0 to 2147483647"),
        ((), "the following arguments are required: COMMAND"),
    ],
)
def test_a_malformed_command_line_is_refused(
    command: Command, capsys: pytest.CaptureFixture[str], arguments: Iterable[str], message: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
