"""Provider archives. A wasmCloud host starts a provider from an archive.

`python -m keyvalue_provider.packaging.archive` makes, inspects and verifies archives.

    archive = a tar file, plain or compressed with gzip, that holds
      claims.jwt       the signed claims; see claims.py
      world.wasm       the provider's WIT world, encoded as WebAssembly; optional
      TARGET.bin       one executable for each target, for example x86_64-linux

A host ignores the part of an entry's name after the last dot. If two entries have the same name, the host uses the last
of them. So an archive may hold only the names above. Each entry must be a plain file, and may occur only once. The
claims must have a hash for every other entry, and no other hashes.

Reading an archive writes nothing to the disk and keeps no binary in memory. Sizes are limited, because a small gzip
file can expand to any size.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import re
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

from keyvalue_provider.host.secret import Secret
from keyvalue_provider.packaging.claims import (
    ACCOUNT,
    SERVICE,
    Claims,
    ClaimsError,
    Kind,
    claims_faults,
    given_seed,
    public_key,
    read_claims,
    sign_claims,
    stored_seed,
)

__all__ = [
    "Archive",
    "ArchiveError",
    "Entry",
    "archive_faults",
    "main",
    "make_archive",
    "native_target",
    "read_archive",
    "target_hashes",
]

NAME = "keyvalue-inmemory"
CLAIMS = "claims.jwt"
WORLD = "world.wasm"
BINARY_SUFFIX = ".bin"
#: Architecture and operating system, as Rust names them. RUST_NAMES translates the names that differ in Python.
TARGET = re.compile(r"[a-z0-9_]{1,40}-[a-z0-9_]{1,40}")
RUST_NAMES = {"arm64": "aarch64", "amd64": "x86_64", "darwin": "macos"}
ENTRIES_MAX = 64
CLAIMS_BYTES_MAX = 64 * 1024
ENTRY_BYTES_MAX = 512 * 1024 * 1024
#: Limit for the total size of all entries, including their headers.
ARCHIVE_BYTES_MAX = 1024 * 1024 * 1024
BLOCK_BYTES = tarfile.BLOCKSIZE
#: A host stores the revision in 32 bits.
REVISION_MAX = 2**31 - 1
PIECE_BYTES = 64 * 1024
GZIP_MAGIC = b"\x1f\x8b"
#: Linux executables begin with these bytes. The machine's number is at offset 18.
ELF_MAGIC = b"\x7fELF"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "arm": 40, "x86": 3}


class ArchiveError(ValueError):
    """The error for a malformed provider archive. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in an archive: its size, and its SHA-256 in upper-case hex."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """The unverified contents of an archive: the claims token, the binaries by target, and the world."""

    token: str
    binaries: Mapping[str, Entry]
    world: Entry | None

    def hashes(self) -> dict[str, str]:
        """Return the hashes that the claims should have as `target_hashes`."""
        entries = dict(self.binaries) | ({} if self.world is None else {WORLD: self.world})
        return {name: entry.sha256 for name, entry in entries.items()}


def native_target() -> str:
    """Return the target of this machine, as a wasmCloud host names it."""
    machine, system = platform.machine().lower(), platform.system().lower()
    return f"{RUST_NAMES.get(machine, machine)}-{RUST_NAMES.get(system, system)}"


def target_hashes(binaries: Mapping[str, bytes], world: bytes | None = None) -> dict[str, str]:
    """Return the `target_hashes` of the claims for these binaries: SHA-256 in upper-case hex, by name."""
    contents = dict(binaries) | ({} if world is None else {WORLD: world})
    return {name: hashlib.sha256(content).hexdigest().upper() for name, content in contents.items()}


def make_archive(token: str, binaries: Mapping[str, bytes], world: bytes | None = None) -> bytes:
    """Return an archive, compressed with gzip. The same parameters give the same bytes.

    :param token: signed claims, with the hashes of the binaries and the world
    :param binaries: executables by target
    :raises ArchiveError: there is no binary, a target is malformed, or an entry is too large
    """
    entries = {CLAIMS: token.encode()} | ({} if world is None else {WORLD: world})
    for target, binary in sorted(binaries.items()):
        if not TARGET.fullmatch(target):
            raise ArchiveError(f"target {target!r} is malformed; expected ARCHITECTURE-SYSTEM, like x86_64-linux")
        entries[target + BINARY_SUFFIX] = binary
    if not binaries:
        raise ArchiveError("the archive has no binary; it needs at least one")
    if len(entries) > ENTRIES_MAX:
        raise ArchiveError(f"the archive has {len(entries)} entries; the limit is {ENTRIES_MAX}")
    target_file = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=target_file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name, content in entries.items():
            _check_size(name, len(content))
            header = tarfile.TarInfo(name)
            header.size = len(content)
            header.mode = 0o755 if name.endswith(BINARY_SUFFIX) else 0o644
            tar.addfile(header, io.BytesIO(content))
    return target_file.getvalue()


def read_archive(file: BinaryIO) -> Archive:
    """Read an archive once, from its beginning. The file must be seekable.

    :raises ArchiveError: the file is damaged, truncated, or not an archive
    :raises OSError: the file is unreadable
    """
    source = _Source(file)
    token: str | None = None
    entries: dict[str, Entry] = {}
    while any(block := source.exactly(BLOCK_BYTES, "before the end of the archive")):
        name, size_bytes = _header(block)
        if name in entries or (name == CLAIMS and token is not None):
            raise ArchiveError(f"{name}: the entry occurs twice")
        if len(entries) >= ENTRIES_MAX:
            raise ArchiveError(f"the archive has more entries than the limit of {ENTRIES_MAX}")
        if name == CLAIMS:
            token = source.exactly(size_bytes, f"in {name}").decode(errors="replace")
        else:
            entries[name] = _hashed(source.pieces(size_bytes, f"in {name}"))
        source.exactly(-size_bytes % BLOCK_BYTES, f"after {name}")
    source.expect_zeros()
    if token is None:
        raise ArchiveError(f"{CLAIMS} is missing")
    world = entries.pop(WORLD, None)
    if not entries:
        raise ArchiveError("the archive has no binary; it needs at least one")
    return Archive(token, {name.removesuffix(BINARY_SUFFIX): entry for name, entry in entries.items()}, world)


def archive_faults(archive: Archive, now_s: float) -> list[str]:
    """Return why an archive must not be run, one line for each fault. The list is empty if the archive is valid.

    :param now_s: the current time, in seconds since 1970
    """
    try:
        faults = claims_faults(archive.token, now_s)
        claims = read_claims(archive.token)
    except ClaimsError as error:
        return [f"{CLAIMS}: {error}"]
    return [f"{CLAIMS}: {fault}" for fault in faults] + _hash_faults(archive, claims)


def _hash_faults(archive: Archive, claims: Claims) -> list[str]:
    faults = []
    found = archive.hashes()
    for name in sorted(found.keys() | claims.target_hashes.keys()):
        if name not in found:
            faults.append(f"{name!r}: the claims have a hash of this entry, but the archive does not have the entry")
        elif name not in claims.target_hashes:
            faults.append(f"{name}: the claims have no hash of this entry")
        elif claims.target_hashes[name] != found[name]:
            faults.append(f"{name}: found SHA-256 {found[name]}, expected {claims.target_hashes[name]!r}")
    return faults


class _Source:
    """A reader for a tar file, which may be compressed. It refuses more than ARCHIVE_BYTES_MAX bytes."""

    def __init__(self, file: BinaryIO) -> None:
        magic = file.read(len(GZIP_MAGIC))
        file.seek(0)
        self._file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if magic == GZIP_MAGIC else file
        self._left_bytes = ARCHIVE_BYTES_MAX

    def exactly(self, size_bytes: int, where: str) -> bytes:
        """Return exactly `size_bytes` bytes.

        :param where: the position in the file, for the error message
        """
        return b"".join(self.pieces(size_bytes, where))

    def pieces(self, size_bytes: int, where: str) -> Iterator[bytes]:
        """Yield exactly `size_bytes` bytes, in pieces."""
        while size_bytes:
            piece = self._read(min(size_bytes, PIECE_BYTES))
            if not piece:
                raise ArchiveError(f"truncated {where}: {size_bytes} bytes are missing")
            size_bytes -= len(piece)
            yield piece

    def expect_zeros(self) -> None:
        """Read to the end, and check that only zeros are left. gzip then verifies its checksum."""
        while piece := self._read(PIECE_BYTES):
            if any(piece):
                raise ArchiveError("found other bytes than zeros after the end of the archive")

    def _read(self, size_bytes: int) -> bytes:
        try:
            piece = self._file.read(size_bytes)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveError(f"damaged or truncated gzip: {error}") from None
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise ArchiveError(f"the unpacked archive is larger than the limit of {ARCHIVE_BYTES_MAX} bytes")
        return piece


def _header(block: bytes) -> tuple[str, int]:
    """Return the name and size of an entry. Parse only the header block, because an extension could have any size."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"malformed tar header: {error}") from None
    name = header.name
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ArchiveError(f"{name[:100]!r}: the entry has type {header.type!r}; only plain files are allowed")
    if name not in (CLAIMS, WORLD) and not (
        name.endswith(BINARY_SUFFIX) and TARGET.fullmatch(name.removesuffix(BINARY_SUFFIX))
    ):
        raise ArchiveError(f"found an entry {name[:100]!r}, allowed {CLAIMS}, {WORLD} and TARGET{BINARY_SUFFIX}")
    _check_size(name, header.size)
    return name, header.size


def _check_size(name: str, size_bytes: int) -> None:
    allowed_bytes = CLAIMS_BYTES_MAX if name == CLAIMS else ENTRY_BYTES_MAX
    if not 0 <= size_bytes <= allowed_bytes:
        raise ArchiveError(f"{name} is {size_bytes} bytes; the limit is {allowed_bytes}")


def _hashed(pieces: Iterator[bytes]) -> Entry:
    digest = hashlib.sha256()
    size_bytes = 0
    for piece in pieces:
        digest.update(piece)
        size_bytes += len(piece)
    return Entry(size_bytes, digest.hexdigest().upper())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m keyvalue_provider.packaging.archive`.

    Write each fault to standard error, one per line. Return the exit code: 0, or 1 if there is a fault.
    """
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], list[str]] = arguments.run
    try:
        faults = command(arguments)
    except (ArchiveError, ClaimsError) as error:
        faults = [str(error)]
    except OSError as error:
        faults = [f"{error.filename}: {error.strerror}" if error.filename else str(error)]
    for fault in faults:
        _say(f"{arguments.command} {arguments.file}: {fault}")
    return 1 if faults else 0


def _make(arguments: argparse.Namespace) -> list[str]:
    binaries = {}
    for target, path in arguments.binary:
        if target in binaries:
            raise ArchiveError(f"{target} has two binaries; give only one")
        binaries[target] = _read(path)
        _check_executable(path, target, binaries[target])
    world = None if arguments.world is None else _read(arguments.world)
    issuer = _seed(ACCOUNT, arguments.issuer, arguments.keys_directory, os.environ.get("USER") or "user")
    subject = _seed(SERVICE, arguments.subject, arguments.keys_directory, NAME)
    claims = Claims(
        issuer=public_key(ACCOUNT, issuer),
        subject=public_key(SERVICE, subject),
        name=arguments.name,
        vendor=arguments.vendor,
        version=arguments.version,
        revision=arguments.revision,
        target_hashes=target_hashes(binaries, world),
        issued_at_s=_now_s(),
    )
    archive = make_archive(sign_claims(claims, issuer), binaries, world)
    unfinished = arguments.file.with_name(f"{arguments.file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(archive)
        unfinished.replace(arguments.file)
    finally:
        unfinished.unlink(missing_ok=True)
    return []


def _inspect(arguments: argparse.Namespace) -> list[str]:
    with arguments.file.open("rb") as file:
        archive = read_archive(file)
    claims = read_claims(archive.token)
    entries = dict(archive.binaries) | ({} if archive.world is None else {WORLD: archive.world})
    if arguments.json:
        shown = {"claims": asdict(claims), "entries": {name: asdict(entry) for name, entry in entries.items()}}
        sys.stdout.write(json.dumps(shown) + "\n")
        return []
    facts = {
        "name": claims.name,
        "vendor": claims.vendor,
        "version": claims.version,
        "revision": claims.revision,
        "issuer": claims.issuer,
        "subject": claims.subject,
        "issued": _date(claims.issued_at_s),
        "not before": _date(claims.not_before_s),
        "expires": _date(claims.expires_s),
    }
    facts |= {name: f"{entry.size_bytes} bytes, SHA-256 {entry.sha256}" for name, entry in entries.items()}
    for name, fact in facts.items():
        if fact is not None:
            # The text comes from the archive and is untrusted. Its control characters must not reach a terminal.
            text = str(fact)
            sys.stdout.write(f"{name:<14}{text if text.isprintable() else ascii(text)}\n")
    return []


def _verify(arguments: argparse.Namespace) -> list[str]:
    with arguments.file.open("rb") as file:
        archive = read_archive(file)
    faults = archive_faults(archive, time.time())
    if not faults:
        claims = read_claims(archive.token)
        sys.stdout.write(
            f"{arguments.file}: {claims.subject}, signed by {claims.issuer}, for {', '.join(archive.binaries)}\n"
        )
    return faults


def _seed(kind: Kind, given: str | None, directory: Path, owner: str) -> Secret:
    if given:
        try:
            return given_seed(kind, given)
        except ClaimsError as error:  # do not show the text, because it may be a seed with a typo
            raise ClaimsError(f"the {kind.name}'s key: neither a file nor a seed: {error}") from None
    seed, made = stored_seed(kind, directory, owner)
    if made is not None:
        _say(f"{made}: created; it holds the seed of the {kind.name} {public_key(kind, seed)}")
    return seed


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(ENTRY_BYTES_MAX + 1)
    if not 0 < len(content) <= ENTRY_BYTES_MAX:
        raise ArchiveError(f"{path}: the file is empty or larger than the limit of {ENTRY_BYTES_MAX} bytes")
    return content


def _check_executable(path: Path, target: str, content: bytes) -> None:
    """Check that a binary is an executable for its target. A host cannot start any other file."""
    architecture, _, system = target.partition("-")
    if system != "linux":
        return
    if not content.startswith(ELF_MAGIC):
        raise ArchiveError(f"{path}: this is not an ELF file; expected an executable for {target}")
    machine = int.from_bytes(content[18:20], "little")
    if machine != ELF_MACHINES.get(architecture, machine):
        raise ArchiveError(f"{path}: found an ELF file for machine {machine}, expected one for {target}")


def _now_s() -> int:
    """Return the current time, or SOURCE_DATE_EPOCH if it is set. This variable makes archives reproducible."""
    given = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    if not re.fullmatch(r"[0-9]{1,15}", given):
        raise ClaimsError(f"SOURCE_DATE_EPOCH: found {given!r}, expected seconds since 1970")
    return int(given)


def _date(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # outside of datetime's range
        return f"{time_s} s after 1970"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _binary(text: str) -> tuple[str, Path]:
    target, equals, path = text.partition("=")
    if not equals or not path or not TARGET.fullmatch(target):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected TARGET=FILE, like {native_target()}=build/{NAME}")
    return target, Path(path)


def _revision(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > REVISION_MAX:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed 0 to {REVISION_MAX}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keyvalue_provider.packaging.archive",
        description="Make, inspect and verify provider archives of wasmCloud.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keys = Path(os.environ.get("WASH_KEYS") or Path.home() / ".wash" / "keys")
    make = commands.add_parser("make", help="make an archive from existing binaries")
    make.add_argument("file", type=Path, metavar="FILE", help="the archive to write")
    make.add_argument(
        "--binary",
        type=_binary,
        action="append",
        required=True,
        metavar="TARGET=FILE",
        help="executable for a target, like x86_64-linux=FILE; may be repeated",
    )
    make.add_argument("--world", type=Path, metavar="FILE", help="the provider's WIT, encoded as WebAssembly")
    make.add_argument("--name", default=NAME, help="provider's name in the claims; default: %(default)s")
    make.add_argument("--vendor", default=NAME, help="vendor in the claims; default: %(default)s")
    make.add_argument("--version", default=version(NAME), help="version in the claims; default: %(default)s")
    make.add_argument("--revision", type=_revision, default=0, help="revision in the claims; default: %(default)s")
    for option, letter in (("issuer", "SA"), ("subject", "SV")):
        make.add_argument(
            f"--{option}",
            metavar="SEED",
            default=os.environ.get(f"WASH_{option.upper()}_KEY"),
            help=f"file with the seed {letter}..., or the seed itself; default: WASH_{option.upper()}_KEY, or a file "
            "in --keys-directory",
        )
    make.add_argument(
        "--keys-directory",
        type=Path,
        metavar="DIRECTORY",
        default=keys,
        help="directory that holds seeds; missing seeds are created; default: WASH_KEYS, or ~/.wash/keys",
    )
    make.set_defaults(run=_make)
    inspect = commands.add_parser("inspect", help="print the claims, and the size and hash of each entry")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="print one JSON object")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="check the signature, the keys, the times, and the hash of each entry")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.set_defaults(run=_verify)
    return parser


if __name__ == "__main__":
    sys.exit(main())
