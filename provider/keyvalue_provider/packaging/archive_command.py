"""The command `keyvalue-inmemory archive`. It makes, inspects and verifies provider archives."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from keyvalue_provider.host.secret import Secret
from keyvalue_provider.packaging.archive import (
    ENTRY_BYTES_MAX,
    NAME,
    TARGET,
    WORLD,
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
    Kind,
    given_seed,
    public_key,
    read_claims,
    sign_claims,
    stored_seed,
)

__all__ = ["run"]

#: A host stores the revision in 32 bits.
REVISION_MAX = 2**31 - 1
#: Linux executables begin with these bytes. The machine's number is at offset 18.
ELF_MAGIC = b"\x7fELF"
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "arm": 40, "x86": 3}


def run(argv: Sequence[str]) -> int:
    """Run the command `keyvalue-inmemory archive`.

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
        prog="keyvalue-inmemory archive",
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
