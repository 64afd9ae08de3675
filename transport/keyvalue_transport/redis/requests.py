"""Reads requests from the bytes of a connection.

    *2 CRLF $3 CRLF GET CRLF $1 CRLF k CRLF        an array of bulk strings: one request
    GET k CRLF                                     an inline request, as a person types it

Two readers share the work. hiredis, a parser in C, reads whole requests. `Scanner` reads everything else: a request that
is cut, inline requests, and bytes that break a rule. hiredis alone would not do. It creates a list as long as the
client says before the elements arrive, and it accepts nested arrays and numbers, which no request contains.

    read ──> scanner, if a request has begun ──> hiredis ──┬─ whole requests
                                                           └─ the rest ──> scanner

So the scanner alone decides which requests are refused, and hiredis never waits for more bytes. `short_calls.py` takes
most reads of one short GET or SET before they come here. Before a password was given, the scanner reads everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain
from typing import TypeAlias

from hiredis import HiredisError, Reader

__all__ = ["ARGUMENTS_MAX", "ProtocolError", "Request", "RequestReader"]

#: A request: the command's name, and its arguments.
Request: TypeAlias = list[bytes]

#: The limit for the arguments of one request. Redis 7 allows 2^31 - 1.
ARGUMENTS_MAX = 1024 * 1024
#: The limits before a password was given, as in Redis.
ARGUMENTS_BEFORE_AUTH_MAX = 10
BULK_BEFORE_AUTH_MAX = 16 * 1024
#: The commands after which these limits may end, and the size of the parts in which a read is searched for them.
LOGINS = frozenset({b"AUTH", b"HELLO"})
LOGIN_PART_BYTES = 4096
#: The limit for a line: an inline request, or a number.
LINE_BYTES_MAX = 64 * 1024
#: A number that is too long for a length.
DIGITS_MAX = 19
#: The first bytes of the types that hiredis takes for bulk strings, or for which it creates a list before the elements
#: arrive.
SIMPLE, VERBATIM, BIG, PUSH, SET, ATTRIBUTE = b"+=(>~|"
#: How to find them: in a read in which each of them is a plus.
MARKS = bytes.maketrans(b"=(>~|", b"+++++")
#: One of them at the beginning of a line. A value that begins so is found as well, which costs only time.
OTHER_TYPE = b"\n+"
#: The lengths of arrays of 10 or more elements.
LENGTHS = re.compile(rb"\*([0-9]{2,19})")
#: The size of an empty argument. A read holds fewer arguments than its size divided by this.
ARGUMENT_BYTES_MIN = 6
ONLY_BYTES, ONLY_LISTS = frozenset({bytes}), frozenset({list})
#: The memory that an argument takes besides its bytes and its head: an object, and its place in a list.
HELD_ARGUMENT_BYTES = 48
#: The same for the bytes of a read that are kept until an argument is complete.
HELD_READ_BYTES = 64
LARGE_BYTES = 4096
NUMBER = re.compile(rb"0|-?[1-9][0-9]*")
HEX = re.compile(rb"[0-9a-fA-F]{2}")
SPACES = b" \t\n\v\f\r\0"
#: The letters after a backslash in a quoted argument, and what they mean.
ESCAPES = {"n": 10, "r": 13, "t": 9, "b": 8, "a": 7}


class ProtocolError(Exception):
    """Bytes that are no request. The connection must be closed, after an answer with this text."""


class RequestReader:
    """Reads the requests of one connection.

    :param request_bytes_max: limit for the bytes of one request
    :ivar scanner: reads requests that are cut
    :ivar error: why no more requests can be read, or None
    """

    __slots__ = ("_hiredis", "error", "scanner")

    def __init__(self, request_bytes_max: int) -> None:
        self.error: ProtocolError | None = None
        self._hiredis: Reader | None = None
        self.scanner = Scanner(request_bytes_max)

    def feed(self, read: bytes) -> list[Request]:
        """Return the requests that are complete with these bytes. After an error, `error` is set."""
        if self.scanner.held_bytes:
            first, read = self._scan(read, True)
            return first + self.feed(read) if read and self.error is None else first
        if len(read) > self.scanner.request_bytes_max or read[:1] != b"*":
            return self._scan(read)[0]
        if (
            SIMPLE in read or VERBATIM in read or BIG in read or PUSH in read or SET in read or ATTRIBUTE in read
        ) and OTHER_TYPE in read.translate(MARKS):
            return self._scan(read)[0]
        last = read.rfind(b"*")
        if last > 0 or read[2:3] != b"\r":  # not one short request
            lengths = LENGTHS.findall(read, 0, last + 1 + DIGITS_MAX)
            if lengths and sum(map(int, lengths)) * ARGUMENT_BYTES_MIN > len(read):
                return self._scan(read)[0]
        parser = self._hiredis
        if parser is None:
            parser = self._hiredis = Reader()
        requests: list[Request] = []
        is_cut = False
        try:
            parser.feed(read)
            while parser.has_data():
                request = parser.gets()
                if request is False:
                    is_cut = True
                    break
                requests.append(request)
            if len(requests) == 1:
                parts: Iterable[bytes] = requests[0]  # a list or None, because the read begins with an asterisk
            elif ONLY_LISTS.issuperset(map(type, requests)):
                parts = chain.from_iterable(requests)
            else:
                raise TypeError
            if len(read) < LARGE_BYTES:
                b"".join(parts)  # finds other types than bytes faster than the next line, unless it copies much
            elif not ONLY_BYTES.issuperset(map(type, parts)):
                raise TypeError
        except (HiredisError, TypeError, MemoryError):  # also bytes, numbers and None in place of an array
            self._hiredis = None
            return self._scan(read)[0]
        if is_cut:
            self._hiredis = None
            requests += self._scan(read[sum(map(_size, requests)) :])[0]
        return requests

    def feed_before_auth(self, read: bytes, at: int) -> tuple[list[Request], int]:
        """Return requests of a client that gave no password, and the offset after them. The limits are lower.

        An AUTH or HELLO is the last request, because it may change the limits.
        """
        part = read[at : at + LOGIN_PART_BYTES]
        requests, rest = self._scan(part, is_trusted=False)
        return requests, at + len(part) - len(rest)

    def _scan(self, read: bytes, only_first: bool = False, is_trusted: bool = True) -> tuple[list[Request], bytes]:
        scanner = self.scanner
        scanner.is_trusted = is_trusted
        try:
            return scanner.feed(read, only_first)
        except ProtocolError as error:
            self.error = error
            return scanner.done, b""
        finally:
            scanner.done = []  # an idle connection must not keep its last request


def _size(request: Request) -> int:
    """Return the size of a request that hiredis has read. It refuses numbers that could be shorter."""
    size = 3 + len(b"%d" % len(request))
    for argument in request:
        length = len(argument)
        size += 5 + length + (1 if length < 10 else len(b"%d" % length))
    return size


class Scanner:
    """Reads requests piece by piece. It takes time in proportion to the bytes, however they are cut.

    :ivar held_bytes: the memory of the request that has begun, as far as it has arrived
    :ivar done: the complete requests of the last call of `feed`
    """

    __slots__ = (
        "_arguments",
        "_missing",
        "_needed_bytes",
        "_pieces",
        "_read_bytes",
        "_unread_bytes",
        "done",
        "held_bytes",
        "is_trusted",
        "request_bytes_max",
    )

    def __init__(self, request_bytes_max: int) -> None:
        self.request_bytes_max = request_bytes_max
        self.is_trusted = True
        self.done: list[Request] = []
        self.held_bytes = 0
        self._arguments: Request = []  # those of the request that has begun
        self._missing = 0  # the number of arguments that it still lacks
        self._read_bytes = 0  # the size of what was read of it
        self._pieces: list[bytes] = []  # its bytes that were not read yet
        self._unread_bytes = 0
        self._needed_bytes = 0  # reading can go on when there are this many unread bytes

    def feed(self, read: bytes, only_first: bool = False) -> tuple[list[Request], bytes]:
        """Return the complete requests, or only the first of them, and the bytes after it.

        If the client is not trusted, an AUTH or HELLO is the last request.

        :raises ProtocolError: the bytes are no request; `done` has the requests before it
        """
        self._pieces.append(read)
        self._unread_bytes += len(read)
        self.held_bytes += len(read) + HELD_READ_BYTES
        self.done = []
        if self._unread_bytes < self._needed_bytes:
            return [], b""
        buffer = b"".join(self._pieces)
        self._needed_bytes = 0
        at, end = 0, len(buffer)
        stops = False
        while at < end and not stops:
            begun = at
            at = self._argument(buffer, at) if self._missing else self._begin(buffer, at)
            if at == begun:
                break
            if self._missing:
                self._read_bytes += at - begun
            else:
                self._read_bytes = 0
                stops = bool(self.done) and (only_first or (not self.is_trusted and _is_login(self.done[-1])))
        rest = buffer[at:]
        if stops:
            self._pieces, self._unread_bytes, self.held_bytes = [], 0, 0
            return self.done, rest
        self._pieces, self._unread_bytes = [rest], len(rest)
        self.held_bytes = self._read_bytes + HELD_ARGUMENT_BYTES * len(self._arguments) + len(rest)
        return self.done, b""

    def _begin(self, buffer: bytes, at: int) -> int:
        """Read an inline request, or the length of an array. Return the offset after it, or `at` if it is cut."""
        if buffer[at] != ord("*"):
            stop = buffer.find(b"\n", at)
            if (len(buffer) if stop < 0 else stop) - at > LINE_BYTES_MAX:
                raise ProtocolError("too big inline request")
            if stop < 0:
                self._needed_bytes = len(buffer) - at + 1
                return at
            request = split_line(buffer[at:stop])
            if request:
                self.done.append(request)
            return stop + 1
        count, stop = self._number(buffer, at, "too big mbulk count string", "invalid multibulk length")
        if stop == at:
            return at
        if count > ARGUMENTS_MAX:
            raise ProtocolError("invalid multibulk length")
        if count > ARGUMENTS_BEFORE_AUTH_MAX and not self.is_trusted:
            raise ProtocolError("unauthenticated multibulk length")
        self._missing = max(0, count)
        if count == 0:
            self.done.append([])  # as hiredis does
        return stop

    def _argument(self, buffer: bytes, at: int) -> int:
        """Read an argument. Return the offset after it, or `at` if it is cut."""
        if buffer[at] != ord("$"):
            found = chr(buffer[at])
            raise ProtocolError(f"expected '$', got '{found if found.isascii() and found.isprintable() else '?'}'")
        length, begin = self._number(buffer, at, "too big bulk count string", "invalid bulk length")
        if begin == at:
            return at
        if length < 0 or self._read_bytes + begin - at + length > self.request_bytes_max:
            raise ProtocolError("invalid bulk length")
        if length > BULK_BEFORE_AUTH_MAX and not self.is_trusted:
            raise ProtocolError("unauthenticated bulk length")
        stop = begin + length + 2
        if stop > len(buffer):
            self._needed_bytes = stop - at
            return at
        self._arguments.append(buffer[begin : stop - 2])
        self._missing -= 1
        if not self._missing:
            self.done.append(self._arguments)
            self._arguments = []
        return stop

    def _number(self, buffer: bytes, at: int, too_long: str, malformed: str) -> tuple[int, int]:
        """Read the number after a character. Return it and the offset after its line; the offset is `at` if it is cut."""
        stop = buffer.find(b"\r\n", at + 1)
        if stop < 0:
            if len(buffer) - at > LINE_BYTES_MAX:
                raise ProtocolError(too_long)
            self._needed_bytes = len(buffer) - at + 1
            return 0, at
        text = buffer[at + 1 : stop]
        if len(text) > DIGITS_MAX or not NUMBER.fullmatch(text):
            raise ProtocolError(malformed)
        return int(text), stop + 2


def _is_login(request: Request) -> bool:
    return bool(request) and request[0].upper() in LOGINS


def split_line(line: bytes) -> Request:
    r"""Return the arguments of an inline request.

    >>> split_line(b"set k \"a\\x20b\" 'it\\'s'\r")
    [b'set', b'k', b'a b', b"it's"]

    :raises ProtocolError: a quote does not end, or something follows it
    """
    arguments = []
    at, end = 0, len(line)
    while at < end:
        if line[at] in SPACES:
            at += 1
            continue
        argument = bytearray()
        while at < end and line[at] not in SPACES:
            if line[at] in b"\"'":
                at = _read_quoted(line, at, argument)
            else:
                argument.append(line[at])
                at += 1
        arguments.append(bytes(argument))
    return arguments


def _read_quoted(line: bytes, at: int, argument: bytearray) -> int:
    """Append the text between quotes to an argument. Return the offset after the closing quote."""
    quote, end = line[at], len(line)
    at += 1
    while at < end:
        if line[at] == quote:
            if at + 1 < end and line[at + 1] not in SPACES:
                break
            return at + 1
        if line[at] == ord("\\") and at + 1 < end and (quote == ord('"') or line[at + 1] == quote):
            digits = line[at + 2 : at + 4]
            if quote == ord('"') and line[at + 1] == ord("x") and HEX.fullmatch(digits):
                argument.append(int(digits, 16))
                at += 4
                continue
            letter = line[at + 1]
            argument.append(ESCAPES.get(chr(letter), letter) if quote == ord('"') else letter)
            at += 2
            continue
        argument.append(line[at])
        at += 1
    raise ProtocolError("unbalanced quotes in request")
