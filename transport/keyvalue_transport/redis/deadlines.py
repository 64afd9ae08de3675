"""Times in commands: lifetimes in SET, GETEX and EXPIRE, in seconds or milliseconds, from now or since 1970.

The store's clock is not the Unix clock. A time since 1970 is converted with a fixed offset, so that EXPIRETIME returns
what EXPIREAT has set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from keyvalue_transport.redis.answers import CommandError
from keyvalue_transport.redis.revisions import I64_MAX, I64_MIN, Entry, parse_integer
from keyvalue_transport.redis.session import RedisSession

__all__ = ["NS_PER_MS", "SYNTAX", "Lifetime", "lifetime_of", "parse_lifetime"]

NS_PER_MS = 1_000_000
SYNTAX = "ERR syntax error"
#: The units by option: milliseconds, and True for a time from now.
UNITS = {b"EX": (1000, True), b"PX": (1, True), b"EXAT": (1000, False), b"PXAT": (1, False)}


class Lifetime(NamedTuple):
    """A time to live, or a deadline.

    :ivar ms: milliseconds from now, or since 1970
    :ivar offset_ns: the Unix time at which the store's clock was 0
    """

    ms: int
    is_relative: bool
    offset_ns: int

    def deadline(self, entry: Entry | None, now_ns: int, default_ns: int | None) -> int | None:
        """Return the deadline on the store's clock."""
        return self.ms * NS_PER_MS + (now_ns if self.is_relative else -self.offset_ns)


def lifetime_of(session: RedisSession, name: str, text: bytes, unit_ms: int, is_relative: bool) -> Lifetime:
    """Return the lifetime in an argument.

    :param name: the command, for the error
    :raises CommandError: the argument is no integer, or out of the range of Redis
    """
    ms = parse_integer(text) * unit_ms
    offset_ns = session.surroundings.unix_offset_ns()
    now_ms = (session.calls.now_ns() + offset_ns) // NS_PER_MS if is_relative else 0
    if not I64_MIN <= ms <= I64_MAX - now_ms:
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    return Lifetime(ms, is_relative, offset_ns)


def parse_lifetime(
    session: RedisSession, name: str, words: Sequence[bytes], others: set[bytes]
) -> tuple[Lifetime | None, set[bytes]]:
    """Return the lifetime in the options of a command, and its other options.

    :param others: the other options that the command has
    :raises CommandError: an option is unknown, contradicts another, or lacks its time, or the time is not above 0. The
        time is read last, as in Redis
    """
    found: set[bytes] = set()
    unit, text = b"", b""
    left = iter(words)
    for word in left:
        option = word.upper()
        if option in others:
            found.add(option)
        elif option in UNITS and unit in (b"", option) and (argument := next(left, None)) is not None:
            unit, text = option, argument
        else:
            raise CommandError(SYNTAX)
    if {b"NX", b"XX"} <= found or (unit and found & {b"KEEPTTL", b"PERSIST"}):
        raise CommandError(SYNTAX)
    if not unit:
        return None, found
    lifetime = lifetime_of(session, name, text, *UNITS[unit])
    if lifetime.ms <= 0:
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    return lifetime, found
