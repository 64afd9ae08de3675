"""The command `wrpc-kv`: how it runs, and what its errors and exit codes are."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from keyvalue_provider.client.command_line import DEFAULT_BUCKET, parse
from keyvalue_provider.client.functions import FUNCTIONS, MissingKeyError, UnhealthyError, prepare
from keyvalue_provider.client.records import TransferError
from keyvalue_provider.client.session import Command, missing_bucket, run_blocking, run_lasting
from keyvalue_provider.client.streams import (
    Output,
    ReaderGoneError,
    StandardStreamError,
    say,
    shown,
)
from keyvalue_provider.standard_streams import hold_closed_streams
from keyvalue_transport.keyvalue.errors import InterfaceError, NoSuchStoreError
from keyvalue_transport.nats.blocking import GiveWayError
from keyvalue_transport.wrpc.errors import TransportError

__all__ = ["main"]

#: The commands that print nothing without `--json`. The others need standard output.
SILENT = ("set", "delete", "set-many", "delete-many", "export", "import")
ERRORS = (
    InterfaceError,
    TransportError,
    MissingKeyError,
    UnhealthyError,
    StandardStreamError,
    TransferError,
    OSError,
    ValueError,
)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `wrpc-kv`. Return 0 on success, 1 after an error, or 130 after Ctrl-C.

    :raises SystemExit: the command line is malformed (2), or it asks for the help (0)
    """
    hold_closed_streams()
    arguments, is_json, code = None, False, 0
    try:
        try:
            arguments = parse(argv)
            is_json = arguments.json
            _run(arguments)
        except ERRORS as error:
            _tell(error, is_json, arguments)
            code = 1
        finally:
            _flush()
    except StandardStreamError as error:
        _tell(error, is_json)
        return 1
    except ReaderGoneError:
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _run(arguments: argparse.Namespace) -> None:
    if arguments.json or arguments.command not in SILENT:
        Output()  # raises StandardStreamError before anything is changed
    if arguments.command == "import":
        arguments.every_bucket = arguments.bucket is None
    arguments.bucket = DEFAULT_BUCKET if arguments.bucket is None else arguments.bucket
    command = FUNCTIONS.get(arguments.command)
    if command is not None:
        prepare(arguments)
        try:
            run_blocking(command, arguments)
            return
        except GiveWayError:
            pass
    import asyncio

    asyncio.run(run_lasting(command or _slow(arguments.command), arguments))


def _slow(name: str) -> Command:
    """Return a command that needs a lasting connection."""
    match name:
        case "watch":
            from keyvalue_provider.client.watch import watch

            return watch
        case "export":
            from keyvalue_provider.client.transfer.exporting import export_bucket

            return export_bucket
        case _:
            from keyvalue_provider.client.transfer.importing import import_file

            return import_file


def _flush() -> None:
    if sys.stdout is not None:
        Output().flush()


def _tell(error: Exception, is_json: bool, arguments: argparse.Namespace | None = None) -> None:
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    if isinstance(error, NoSuchStoreError) and arguments is not None:
        message = missing_bucket(arguments.bucket)
    if is_json:
        say(json.dumps({"error": type(error).__name__, "message": message}))
    else:
        say(f"wrpc-kv: {shown(message)}")


if __name__ == "__main__":
    sys.exit(main())
