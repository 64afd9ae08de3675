"""The command `wrpc-kv`: a client of `wrpc:keyvalue` for people and scripts."""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from keyvalue_provider.config.user_files import read_credentials, read_nkey
from keyvalue_provider.host.json_fields import Fields
from keyvalue_provider.host.subjects import health_subject
from keyvalue_provider.observe.log import printable
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError

if TYPE_CHECKING:
    from keyvalue_transport.nats.client import KeyValueClient
    from keyvalue_transport.nats.connection import Connection

# The client is imported inside functions, because importing nats-py would slow down `--help`.

__all__ = ["main"]

WAIT_INTERVAL_S = 0.05


class MissingKeyError(Exception):
    """The error for a requested key that does not exist."""


class UnhealthyError(Exception):
    """The error for a provider that is unhealthy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `wrpc-kv`. Return 0 on success, 1 after an error, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    import asyncio

    try:
        asyncio.run(_run(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (InterfaceError, TransportError, MissingKeyError, UnhealthyError, OSError, ValueError) as error:
        if arguments.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}), file=sys.stderr)
        else:
            print(f"wrpc-kv: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


async def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "set":
        arguments.value = _value(arguments)
    from keyvalue_transport.nats.client import KeyValueClient
    from keyvalue_transport.nats.connection import Connection, ConnectionOptions
    from keyvalue_transport.nats.subjects import check_subject
    from keyvalue_transport.nats.tls import TlsOptions
    from keyvalue_transport.nats.urls import split_urls

    user_jwt, user_seed = _credentials(arguments)
    tls = TlsOptions(arguments.tls_ca, arguments.tls_certificate, arguments.tls_key)
    check_subject(arguments.prefix, "prefix")
    options = ConnectionOptions(
        split_urls(arguments.nats),
        user_jwt=user_jwt,
        user_seed=user_seed,
        open_timeout_s=arguments.timeout,
        path="plain",  # only a server needs the direct path
        tls=None if tls == TlsOptions() else tls,
    )
    connection = await Connection.open(options)
    try:
        async with KeyValueClient(
            connection,
            arguments.prefix,
            source_id=arguments.source_id,
            link_name=arguments.link_name,
            timeout_s=arguments.timeout,
        ) as client:
            if arguments.wait:
                await _wait(client, arguments.bucket, arguments.wait)
            if arguments.command == "health":
                await _health(connection, arguments)
            else:
                await COMMANDS[arguments.command](client, arguments)
    finally:
        await connection.close()


async def _health(connection: Connection, arguments: argparse.Namespace) -> None:
    """Print the provider's health. Then raise an error if the provider is unhealthy."""
    subject = health_subject(arguments.prefix)
    try:
        answer = await connection.request(subject, b"", arguments.timeout)
    except TimeoutError:
        raise NoProviderError(
            f"no answer to {subject}: is the provider running, is the prefix right, and has a host started the provider?"
        ) from None
    try:
        value = json.loads(answer)
    except (ValueError, RecursionError):
        raise ValueError(f"{subject}: found {len(answer)} bytes that are not JSON") from None
    fields = Fields(value, "health.")
    is_healthy, message = fields.flag("healthy"), fields.text("message")
    if arguments.json:
        _print_json({"healthy": is_healthy, "message": message})
    else:
        print(f"{'healthy' if is_healthy else 'unhealthy'}: {printable(message)}")
    sys.stdout.flush()
    if not is_healthy:
        raise UnhealthyError(f"the provider {arguments.prefix} is unhealthy")


async def _get(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    found = await client.get(arguments.bucket, arguments.key)
    if found is None:
        raise _missing([arguments.key], arguments.bucket)
    if arguments.json:
        _print_value(arguments.key, found)
    else:
        sys.stdout.buffer.write(found)
        sys.stdout.buffer.flush()


async def _set(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    await client.set(arguments.bucket, arguments.key, arguments.value)
    if arguments.json:
        _print_json({"key": arguments.key, "value_bytes": len(arguments.value)})


async def _delete(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    await client.delete(arguments.bucket, arguments.key)
    if arguments.json:
        _print_json({"key": arguments.key})


async def _exists(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    exists = await client.exists(arguments.bucket, arguments.key)
    if arguments.json:
        _print_json({"key": arguments.key, "exists": exists})
    else:
        print("true" if exists else "false")


async def _keys(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    async for key in client.keys(arguments.bucket):
        print(json.dumps(key) if arguments.json else key)


async def _increment(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    number = await client.increment(arguments.bucket, arguments.key, arguments.delta)
    if arguments.json:
        _print_json({"key": arguments.key, "number": number})
    else:
        print(number)


async def _get_many(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    """Print one line for each key, existing or missing. Then raise an error that names the missing keys."""
    values = await client.get_many(arguments.bucket, arguments.keys)
    for key, value in zip(arguments.keys, values, strict=True):
        if arguments.json:
            _print_value(key, value)
        else:
            sys.stdout.buffer.write((value or b"") + b"\n")
    sys.stdout.flush()
    missing = [key for key, value in zip(arguments.keys, values, strict=True) if value is None]
    if missing:
        raise _missing(missing, arguments.bucket)


async def _set_many(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    texts = arguments.entries
    if len(texts) % 2:
        raise ValueError(f"found {len(texts)} arguments, expected pairs of key and value")
    entries = {key: _bytes(value) for key, value in zip(texts[::2], texts[1::2], strict=True)}
    await client.set_many(arguments.bucket, entries)
    if arguments.json:
        for key, value in entries.items():
            _print_json({"key": key, "value_bytes": len(value)})


async def _delete_many(client: KeyValueClient, arguments: argparse.Namespace) -> None:
    await client.delete_many(arguments.bucket, arguments.keys)
    if arguments.json:
        for key in arguments.keys:
            _print_json({"key": key})


COMMANDS: dict[str, Callable[[KeyValueClient, argparse.Namespace], Coroutine[object, object, None]]] = {
    "get": _get,
    "set": _set,
    "delete": _delete,
    "exists": _exists,
    "keys": _keys,
    "increment": _increment,
    "get-many": _get_many,
    "set-many": _set_many,
    "delete-many": _delete_many,
}


async def _wait(client: KeyValueClient, bucket: str, timeout_s: float) -> None:
    """Wait until a provider answers.

    :raises NoProviderError: no provider answers within `timeout_s`
    """
    import asyncio

    deadline_s = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            await client.exists(bucket, "")
            return
        except InterfaceError:
            return
        except NoProviderError:
            if asyncio.get_running_loop().time() > deadline_s:
                raise
        await asyncio.sleep(WAIT_INTERVAL_S)


def _value(arguments: argparse.Namespace) -> bytes:
    if arguments.file is not None:
        return Path(arguments.file).read_bytes()
    if arguments.value == "-" or (arguments.value is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read()
    if arguments.value is None:
        raise ValueError("the value is missing: give it as an argument, with --file PATH, or on standard input")
    return _bytes(arguments.value)


def _credentials(arguments: argparse.Namespace) -> tuple[str, str]:
    """Return the user's JWT and seed. A missing part is an empty string."""
    if arguments.creds is not None:
        return read_credentials(arguments.creds)
    return "", "" if arguments.nkey is None else read_nkey(arguments.nkey)


def _bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _missing(keys: Sequence[str], bucket: str) -> MissingKeyError:
    return MissingKeyError(f"no key {', '.join(map(repr, keys))} in bucket {bucket!r}")


def _print_value(key: str, value: bytes | None) -> None:
    _print_json({"key": key, "value_base64": None if value is None else base64.b64encode(value).decode()})


def _print_json(answer: dict[str, object]) -> None:
    print(json.dumps(answer, ensure_ascii=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wrpc-kv",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Read and write keys of a wrpc:keyvalue provider over NATS.",
        epilog="examples:\n"
        "  wrpc-kv set hello world\n"
        "  wrpc-kv get hello\n"
        "  wrpc-kv --bucket pictures set cat --file cat.png\n"
        "  wrpc-kv --bucket pictures get cat > copy.png\n"
        "  date | wrpc-kv set now -\n"
        "  wrpc-kv keys\n"
        "  wrpc-kv increment visits\n"
        "  wrpc-kv set-many sky blue grass green\n"
        "  wrpc-kv get-many sky grass\n"
        "  wrpc-kv health",
    )
    parser.add_argument(
        "--nats",
        "--url",
        default=os.environ.get("NATS_URL", "127.0.0.1:4222"),
        metavar="URL",
        help="NATS server: HOST:PORT, nats://USER:PASSWORD@HOST:PORT, tls://HOST; default: $NATS_URL or 127.0.0.1:4222",
    )
    parser.add_argument(
        "--prefix",
        default="default.keyvalue-inmemory",
        help="prefix of the provider's subjects: {lattice}.{provider key}; default: %(default)s",
    )
    parser.add_argument("--bucket", default="default", help="name of the bucket; default: %(default)s")
    _add_credentials(parser)
    parser.add_argument("--source-id", help="call as the component with this id")
    parser.add_argument("--link-name", help="call over the link with this name")
    parser.add_argument(
        "--timeout", type=_seconds, default=10.0, metavar="SECONDS", help="timeout for each call; default: %(default)g"
    )
    parser.add_argument(
        "--wait", type=_seconds, default=0.0, metavar="SECONDS", help="wait at most this long for a provider"
    )
    parser.add_argument("--json", action="store_true", help="print answers and errors as JSON, one per line")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("get", "write the value's bytes to standard output"),
        ("set", "store a value from an argument, a file, or standard input"),
        ("delete", "remove a key; a missing key is not an error"),
        ("exists", "print true or false"),
        ("increment", "add to a key's number and print the sum; a missing key counts as 0"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument("key")
        if name == "set":
            source = command.add_mutually_exclusive_group()
            source.add_argument("value", nargs="?", help="the value, or - for standard input")
            source.add_argument("--file", metavar="PATH", help="read the value from this file")
        elif name == "increment":
            command.add_argument("delta", nargs="?", type=_delta, default=1, help="number to add; default: %(default)s")
    for name, what in (
        ("get-many", "print one line for each key: its value, or nothing if the key is missing"),
        ("delete-many", "remove keys; a missing key is not an error"),
    ):
        commands.add_parser(name, help=what, description=what).add_argument("keys", nargs="+", metavar="key")
    what = "store a value for each key, or none if any is refused"
    commands.add_parser("set-many", help=what, description=what).add_argument("entries", nargs="+", metavar="key value")
    commands.add_parser(
        "keys", help="print all keys of the bucket, one per line", description="print all keys of the bucket"
    )
    what = "print the health of a provider that a host has started; the exit code is 1 if it is unhealthy"
    commands.add_parser("health", help=what, description=f"{what}.\nThe request goes to wasmbus.rpc.PREFIX.health.")
    return parser


def _add_credentials(parser: argparse.ArgumentParser) -> None:
    user = parser.add_mutually_exclusive_group()
    user.add_argument(
        "--creds", metavar="FILE", help="connect as the user in this file: JWT and seed, as nsc writes them"
    )
    user.add_argument("--nkey", metavar="FILE", help="connect with the nkey seed in this file")
    for name, what in (
        (
            "ca",
            "certificate authorities to trust; TLS is mandatory if any --tls option is set or the URL is tls://",
        ),
        ("certificate", "client certificate to present to the server"),
        ("key", "private key of the client certificate, unless it is in the same file"),
    ):
        parser.add_argument(f"--tls-{name}", default="", metavar="FILE", help=what)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"found {text}, allowed 0 to 86400")
    return seconds


def _delta(text: str) -> int:
    delta = int(text)
    if not 0 <= delta < 2**64:
        raise argparse.ArgumentTypeError(f"found {text}, allowed 0 to {2**64 - 1}")
    return delta


if __name__ == "__main__":
    sys.exit(main())
