"""The commands that call a function of the provider, and `health` and `ping`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from time import perf_counter

from keyvalue_provider.client.records import json_value
from keyvalue_provider.client.session import Command, Session
from keyvalue_provider.client.streams import Output, input_bytes, shown
from keyvalue_transport.keyvalue.errors import InterfaceError
from keyvalue_transport.wrpc.errors import NoProviderError, TransportError

__all__ = ["FUNCTIONS", "MissingKeyError", "UnhealthyError", "prepare"]


class MissingKeyError(Exception):
    """The error for a requested key that does not exist."""


class UnhealthyError(Exception):
    """The error for a provider that is unhealthy, or that leaves calls without an answer."""


def prepare(arguments: argparse.Namespace) -> None:
    """Read the value of `set` before the command connects."""
    if arguments.command == "set":
        if arguments.file not in (None, "-"):
            with open(arguments.file, "rb") as file:
                arguments.value = file.read()
        elif arguments.file == "-" or arguments.value in (None, b"-"):
            arguments.value = input_bytes()


async def _get(session: Session, arguments: argparse.Namespace) -> None:
    found = await session.client.get(arguments.bucket, arguments.key)
    if found is None:
        raise _missing([arguments.key], arguments.bucket)
    if arguments.json:
        Output().json({"key": arguments.key} | json_value(found))
    else:
        Output().value(found)


async def _set(session: Session, arguments: argparse.Namespace) -> None:
    await session.client.set(arguments.bucket, arguments.key, arguments.value)
    if arguments.json:
        Output().json({"key": arguments.key, "value_bytes": len(arguments.value)})


async def _delete(session: Session, arguments: argparse.Namespace) -> None:
    await session.client.delete(arguments.bucket, arguments.key)
    if arguments.json:
        Output().json({"key": arguments.key})


async def _exists(session: Session, arguments: argparse.Namespace) -> None:
    exists = await session.client.exists(arguments.bucket, arguments.key)
    if arguments.json:
        Output().json({"key": arguments.key, "exists": exists})
    else:
        Output().line("true" if exists else "false")


async def _keys(session: Session, arguments: argparse.Namespace) -> None:
    output = Output()
    write = output.json if arguments.json else output.line
    async for key in session.client.keys(arguments.bucket):
        write(key)


async def _increment(session: Session, arguments: argparse.Namespace) -> None:
    number = await session.client.increment(arguments.bucket, arguments.key, arguments.delta)
    if arguments.json:
        Output().json({"key": arguments.key, "number": number})
    else:
        Output().line(str(number))


async def _get_many(session: Session, arguments: argparse.Namespace) -> None:
    """Print one line for each key, existing or missing. Then raise an error that names the missing keys."""
    values = await session.client.get_many(arguments.bucket, arguments.keys)
    output = Output()
    for key, value in zip(arguments.keys, values, strict=True):
        if arguments.json:
            output.json({"key": key} | json_value(value))
        elif output.is_terminal:
            output.line((value or b"").decode(errors="backslashreplace"))
        else:
            output.write((value or b"") + b"\n")
    output.flush()
    missing = [key for key, value in zip(arguments.keys, values, strict=True) if value is None]
    if missing:
        raise _missing(missing, arguments.bucket)


async def _set_many(session: Session, arguments: argparse.Namespace) -> None:
    await session.client.set_many(arguments.bucket, arguments.entries)
    if arguments.json:
        output = Output()
        for key, value in arguments.entries.items():
            output.json({"key": key, "value_bytes": len(value)})


async def _delete_many(session: Session, arguments: argparse.Namespace) -> None:
    await session.client.delete_many(arguments.bucket, arguments.keys)
    if arguments.json:
        output = Output()
        for key in arguments.keys:
            output.json({"key": key})


async def _health(session: Session, arguments: argparse.Namespace) -> None:
    """Print the provider's health. Then raise an error if the provider is unhealthy."""
    from keyvalue_provider.host.json_fields import Fields
    from keyvalue_provider.host.subjects import health_subject

    subject = health_subject(arguments.prefix)
    try:
        answer = await session.request(subject, b"")
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
    output = Output()
    if arguments.json:
        output.json({"healthy": is_healthy, "message": message})
    else:
        output.line(f"{'healthy' if is_healthy else 'unhealthy'}: {shown(message)}")
    output.flush()
    if not is_healthy:
        raise UnhealthyError(f"the provider {arguments.prefix} is unhealthy")


async def _ping(session: Session, arguments: argparse.Namespace) -> None:
    """Print the latency of calls. Then raise an error if a call was not answered."""
    output = Output()
    latencies_s: list[float] = []
    failure: TransportError | None = None
    while len(latencies_s) < arguments.count:
        start_s = perf_counter()
        try:
            await session.client.exists(arguments.bucket, "")
        except InterfaceError:
            pass  # an error of the interface is an answer
        except TransportError as error:
            failure = error
            break
        latencies_s.append(perf_counter() - start_s)
    latencies_s.sort()
    p50_ms, p99_ms = (_quantile_ms(latencies_s, quantile) for quantile in (0.5, 0.99))
    if arguments.json:
        output.json({"calls": arguments.count, "answered": len(latencies_s), "p50_ms": p50_ms, "p99_ms": p99_ms})
    else:
        times = f": p50 {p50_ms} ms, p99 {p99_ms} ms" if latencies_s else ""
        output.line(f"{len(latencies_s)} of {arguments.count} calls answered{times}")
    output.flush()
    if failure is not None:
        raise failure


def _quantile_ms(sorted_s: Sequence[float], quantile: float) -> float | None:
    """Return the smallest value that is at least as large as this part of all values. Return None if there are none.

    >>> _quantile_ms([0.001, 0.002, 0.003], 0.5)
    2.0
    """
    if not sorted_s:
        return None
    return round(sorted_s[math.ceil(quantile * len(sorted_s)) - 1] * 1000, 3)


def _missing(keys: Sequence[str], bucket: str) -> MissingKeyError:
    return MissingKeyError(f"no key {', '.join(map(repr, keys))} in bucket {bucket!r}")


FUNCTIONS: dict[str, Command] = {
    "get": _get,
    "set": _set,
    "delete": _delete,
    "exists": _exists,
    "keys": _keys,
    "increment": _increment,
    "get-many": _get_many,
    "set-many": _set_many,
    "delete-many": _delete_many,
    "health": _health,
    "ping": _ping,
}
