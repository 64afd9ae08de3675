"""Provider archives. A wasmCloud host starts a provider from an archive.

archive_command.py makes, inspects and verifies archives.

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

import gzip
import hashlib
import io
import platform
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from keyvalue_provider.packaging.claims import (
    Claims,
    ClaimsError,
    claims_faults,
    read_claims,
)

__all__ = [
    "Archive",
    "ArchiveError",
    "Entry",
    "archive_faults",
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
PIECE_BYTES = 64 * 1024
GZIP_MAGIC = b"\x1f\x8b"


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
