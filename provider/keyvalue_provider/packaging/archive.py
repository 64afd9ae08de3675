"""Provider archives: what a wasmCloud host takes a provider from. `python -m keyvalue_provider.packaging.archive` makes, shows and verifies them.

    archive = tar, plain or in gzip, of
      claims.jwt       the signed claims: provider/keyvalue_provider/packaging/claims.py
      world.wasm       the provider's world in WIT, encoded; optional
      TARGET.bin       one executable for each target, as x86_64-linux

A host knows an entry by its name up to the last dot, takes the last of two, and compares hashes with the claims. So here only these names are
taken, once each, as plain files; and each but the claims must have its hash, and each hash its entry. Reading unpacks nothing to
the disk, keeps no binary in memory, and ends at limits, since a short gzip may hold any number of bytes.
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
#: Architecture and operating system, by the names that Rust gives them; and those that Python calls otherwise.
TARGET = re.compile(r"[a-z0-9_]{1,40}-[a-z0-9_]{1,40}")
RUST_NAMES = {"arm64": "aarch64", "amd64": "x86_64", "darwin": "macos"}
ENTRIES_MAX = 64
CLAIMS_BYTES_MAX = 64 * 1024
ENTRY_BYTES_MAX = 512 * 1024 * 1024
#: Of all entries together, with their headers.
ARCHIVE_BYTES_MAX = 1024 * 1024 * 1024
BLOCK_BYTES = tarfile.BLOCKSIZE
#: A host keeps it in 32 bits.
REVISION_MAX = 2**31 - 1
PIECE_BYTES = 64 * 1024
GZIP_MAGIC = b"\x1f\x8b"
#: Executables of Linux begin so, and name their machine behind.
ELF_MAGIC = b"\x7fELF"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "arm": 40, "x86": 3}


class ArchiveError(ValueError):
    """What is no provider archive; the message says where it is not."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive: its size, and its SHA-256 in upper-case hex."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Archive:
    """What an archive holds: the token of its claims, and its binaries by target. Nothing of it is verified."""

    token: str
    binaries: Mapping[str, Entry]
    world: Entry | None

    def hashes(self) -> dict[str, str]:
        """What `target_hashes` of the claims should be."""
        entries = dict(self.binaries) | ({} if self.world is None else {WORLD: self.world})
        return {name: entry.sha256 for name, entry in entries.items()}


def native_target() -> str:
    """The target of this machine, as a host there looks for it."""
    machine, system = platform.machine().lower(), platform.system().lower()
    return f"{RUST_NAMES.get(machine, machine)}-{RUST_NAMES.get(system, system)}"


def target_hashes(binaries: Mapping[str, bytes], world: bytes | None = None) -> dict[str, str]:
    """What the claims have to say of these: names and upper-case hex of SHA-256."""
    contents = dict(binaries) | ({} if world is None else {WORLD: world})
    return {name: hashlib.sha256(content).hexdigest().upper() for name, content in contents.items()}


def make_archive(token: str, binaries: Mapping[str, bytes], world: bytes | None = None) -> bytes:
    """The archive, in gzip. The same parameters give the same bytes.

    :param token: signed claims, with the hashes of the others
    :param binaries: by target
    :raises ArchiveError: no binary, a target of another form, or an entry above its limit
    """
    entries = {CLAIMS: token.encode()} | ({} if world is None else {WORLD: world})
    for target, binary in sorted(binaries.items()):
        if not TARGET.fullmatch(target):
            raise ArchiveError(f"found {target!r} as a target, allowed architecture-system, as x86_64-linux")
        entries[target + BINARY_SUFFIX] = binary
    if not binaries:
        raise ArchiveError("found no binary, needed is one at least")
    if len(entries) > ENTRIES_MAX:
        raise ArchiveError(f"found {len(entries)} entries, allowed {ENTRIES_MAX}")
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
    """What a file holds, read once from its beginning; the file must be seekable.

    :raises ArchiveError: it is damaged, cut, or something else
    :raises OSError: it can't be read
    """
    source = _Source(file)
    token: str | None = None
    entries: dict[str, Entry] = {}
    while any(block := source.exactly(BLOCK_BYTES, "before the end of the archive")):
        name, size_bytes = _header(block)
        if name in entries or (name == CLAIMS and token is not None):
            raise ArchiveError(f"{name}: found twice, allowed once")
        if len(entries) >= ENTRIES_MAX:
            raise ArchiveError(f"found more than {ENTRIES_MAX} entries")
        if name == CLAIMS:
            token = source.exactly(size_bytes, f"in {name}").decode(errors="replace")
        else:
            entries[name] = _hashed(source.pieces(size_bytes, f"in {name}"))
        source.exactly(-size_bytes % BLOCK_BYTES, f"behind {name}")
    source.expect_zeros()
    if token is None:
        raise ArchiveError(f"found no {CLAIMS}")
    world = entries.pop(WORLD, None)
    if not entries:
        raise ArchiveError("found no binary, needed is one at least")
    return Archive(token, {name.removesuffix(BINARY_SUFFIX): entry for name, entry in entries.items()}, world)


def archive_faults(archive: Archive, now_s: float) -> list[str]:
    """Why an archive is not to be run, a line each; none if it is what its issuer has signed.

    :param now_s: the time, in seconds since 1970
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
            faults.append(f"{name!r}: the claims have a hash, and the archive has no such entry")
        elif name not in claims.target_hashes:
            faults.append(f"{name}: found in the archive, and the claims have no hash of it")
        elif claims.target_hashes[name] != found[name]:
            faults.append(f"{name}: found SHA-256 {found[name]}, the claims allow {claims.target_hashes[name]!r}")
    return faults


class _Source:
    """The bytes of a tar, inflated if need be, up to ARCHIVE_BYTES_MAX."""

    def __init__(self, file: BinaryIO) -> None:
        magic = file.read(len(GZIP_MAGIC))
        file.seek(0)
        self._file: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if magic == GZIP_MAGIC else file
        self._left_bytes = ARCHIVE_BYTES_MAX

    def exactly(self, size_bytes: int, where: str) -> bytes:
        """So many bytes.

        :param where: in the error, if it ends before
        """
        return b"".join(self.pieces(size_bytes, where))

    def pieces(self, size_bytes: int, where: str) -> Iterator[bytes]:
        """So many bytes, in pieces."""
        while size_bytes:
            piece = self._read(min(size_bytes, PIECE_BYTES))
            if not piece:
                raise ArchiveError(f"ends {where}: {size_bytes} bytes are missing")
            size_bytes -= len(piece)
            yield piece

    def expect_zeros(self) -> None:
        """Read to the end, where gzip has its own checksum."""
        while piece := self._read(PIECE_BYTES):
            if any(piece):
                raise ArchiveError("found bytes behind the end of the archive, allowed zeros")

    def _read(self, size_bytes: int) -> bytes:
        try:
            piece = self._file.read(size_bytes)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveError(f"damaged or cut gzip: {error}") from None
        self._left_bytes -= len(piece)
        if self._left_bytes < 0:
            raise ArchiveError(f"found more than {ARCHIVE_BYTES_MAX} bytes in all")
        return piece


def _header(block: bytes) -> tuple[str, int]:
    """Name and size of an entry. tarfile reads headers alone: of extensions it would take any number of bytes."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise ArchiveError(f"found no header of a tar where one should be: {error}") from None
    name = header.name
    if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ArchiveError(f"{name[:100]!r}: found an entry of type {header.type!r}, allowed plain files")
    if name not in (CLAIMS, WORLD) and not (
        name.endswith(BINARY_SUFFIX) and TARGET.fullmatch(name.removesuffix(BINARY_SUFFIX))
    ):
        raise ArchiveError(f"{name[:100]!r}: found as a name, allowed {CLAIMS}, {WORLD} and TARGET{BINARY_SUFFIX}")
    _check_size(name, header.size)
    return name, header.size


def _check_size(name: str, size_bytes: int) -> None:
    allowed_bytes = CLAIMS_BYTES_MAX if name == CLAIMS else ENTRY_BYTES_MAX
    if not 0 <= size_bytes <= allowed_bytes:
        raise ArchiveError(f"{name}: found {size_bytes} bytes, allowed {allowed_bytes}")


def _hashed(pieces: Iterator[bytes]) -> Entry:
    digest = hashlib.sha256()
    size_bytes = 0
    for piece in pieces:
        digest.update(piece)
        size_bytes += len(piece)
    return Entry(size_bytes, digest.hexdigest().upper())


def main(argv: Sequence[str] | None = None) -> int:
    """The command `python -m keyvalue_provider.packaging.archive`. Returns the exit code: 0, or 1 after a line on standard error for each fault."""
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
            raise ArchiveError(f"found two binaries for {target}, allowed one")
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
            # Whoever made the archive chose the texts: they must not steer a terminal.
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
            f"{arguments.file}: {claims.subject} as signed by {claims.issuer}, for {', '.join(archive.binaries)}\n"
        )
    return faults


def _seed(kind: Kind, given: str | None, directory: Path, owner: str) -> Secret:
    if given:
        try:
            return given_seed(kind, given)
        except ClaimsError as error:  # it may be a seed with a slip in it: it is not repeated
            raise ClaimsError(f"the {kind.name}'s key: found no such file, nor a seed: {error}") from None
    seed, made = stored_seed(kind, directory, owner)
    if made is not None:
        _say(f"{made}: made, the seed of the {kind.name} {public_key(kind, seed)}")
    return seed


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(ENTRY_BYTES_MAX + 1)
    if not 0 < len(content) <= ENTRY_BYTES_MAX:
        raise ArchiveError(f"{path}: found {len(content)} bytes, allowed 1 to {ENTRY_BYTES_MAX}")
    return content


def _check_executable(path: Path, target: str, content: bytes) -> None:
    """A host would find out when it starts it."""
    architecture, _, system = target.partition("-")
    if system != "linux":
        return
    if not content.startswith(ELF_MAGIC):
        raise ArchiveError(f"{path}: found no ELF file, allowed an executable for {target}")
    machine = int.from_bytes(content[18:20], "little")
    if machine != ELF_MACHINES.get(architecture, machine):
        raise ArchiveError(f"{path}: found an ELF file for machine {machine}, allowed one for {target}")


def _now_s() -> int:
    """The time, or what stands in its place for those who want the same archive of the same binaries again."""
    given = os.environ.get("SOURCE_DATE_EPOCH") or str(int(time.time()))
    if not re.fullmatch(r"[0-9]{1,15}", given):
        raise ClaimsError(f"SOURCE_DATE_EPOCH: found {given!r}, allowed seconds since 1970")
    return int(given)


def _date(time_s: int | None) -> str | None:
    if time_s is None:
        return None
    try:
        return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # far from any calendar
        return f"{time_s} s after 1970"


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _binary(text: str) -> tuple[str, Path]:
    target, equals, path = text.partition("=")
    if not equals or not path or not TARGET.fullmatch(target):
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed TARGET=FILE, as {native_target()}=build/{NAME}")
    return target, Path(path)


def _revision(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,10}", text) or int(text) > REVISION_MAX:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed 0 to {REVISION_MAX}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m keyvalue_provider.packaging.archive",
        description="Makes, shows and verifies provider archives of wasmCloud.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    keys = Path(os.environ.get("WASH_KEYS") or Path.home() / ".wash" / "keys")
    make = commands.add_parser(
        "make", help="make one of binaries that are there", epilog="A seed is a file, or its text."
    )
    make.add_argument("file", type=Path, metavar="FILE", help="the archive to write")
    make.add_argument(
        "--binary",
        type=_binary,
        action="append",
        required=True,
        metavar="TARGET=FILE",
        help="may be repeated, as x86_64-linux=FILE",
    )
    make.add_argument("--world", type=Path, metavar="FILE", help="the provider's WIT, encoded as WebAssembly")
    make.add_argument("--name", default=NAME, help=f"in the claims, as the next three; {NAME}")
    make.add_argument("--vendor", default=NAME, help=NAME)
    make.add_argument("--version", default=version(NAME), help=version(NAME))
    make.add_argument("--revision", type=_revision, default=0, help="0")
    for option, letter in (("issuer", "SA"), ("subject", "SV")):
        make.add_argument(
            f"--{option}",
            metavar="SEED",
            default=os.environ.get(f"WASH_{option.upper()}_KEY"),
            help=f"file of the seed {letter}..., or the seed; else WASH_{option.upper()}_KEY, else in --keys-directory",
        )
    make.add_argument(
        "--keys-directory",
        type=Path,
        metavar="DIRECTORY",
        default=keys,
        help="where missing seeds are made; WASH_KEYS, else ~/.wash/keys",
    )
    make.set_defaults(run=_make)
    inspect = commands.add_parser("inspect", help="print the claims and the sizes and hashes of what it holds")
    inspect.add_argument("file", type=Path, metavar="FILE")
    inspect.add_argument("--json", action="store_true", help="as one JSON object")
    inspect.set_defaults(run=_inspect)
    verify = commands.add_parser("verify", help="check signature, keys, times, and the hash of each entry")
    verify.add_argument("file", type=Path, metavar="FILE")
    verify.set_defaults(run=_verify)
    return parser


if __name__ == "__main__":
    sys.exit(main())
