"""Component-model value encoding, as wRPC puts it on the wire.

    unsigned, length   LEB128: 7 bits a byte, low ones first, high bit set where another byte follows; a length is a u32, at most 5 bytes
    string, list<u8>   length, bytes (a string's are UTF-8)
    list<T>            length, elements
    option<T>          0 | 1 T
    result<T, E>       0 T | 1 E
    bool               0 | 1

A reader takes (buffer, at, end) and returns (value, offset behind it). It looks at no byte at or behind `end`, though the buffer may go on
there with another caller's bytes. It raises

    NeedMoreBytes      the value goes on behind `end`
    DecodeError        no value of the type begins with these bytes
    LengthLimitError   a length passes the limit that the reader was given

and allocates nothing for a length before its bytes are there.
"""

from __future__ import annotations

from keyvalue_transport.wrpc.errors import DecodeError, Length, LengthLimitError, NeedMoreBytes

__all__ = [
    "ONE_BYTE",
    "U64_MAX",
    "check_text",
    "read_bool",
    "read_bytes",
    "read_tag",
    "read_text",
    "read_unsigned",
    "write_length",
    "write_unsigned",
]

U64_MAX = 2**64 - 1

#: LEB128 of the numbers below 128.
ONE_BYTE = tuple(bytes([value]) for value in range(128))


def write_unsigned(value: int) -> bytes:
    """LEB128 of an unsigned number.

    >>> write_unsigned(300).hex()
    'ac02'
    """
    if 0 <= value < 128:
        return ONE_BYTE[value]
    if value < 0:
        raise ValueError(f"found {value}, allowed numbers from 0")
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    written = bytearray()
    while value >= 128:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


write_length = write_unsigned


def read_unsigned(buffer: bytes, at: int, end: int, bits: int) -> tuple[int, int]:
    """A number of at most `bits` bits, from its LEB128; longer forms than needed are taken while they fit in the bytes of the largest.

    >>> read_unsigned(bytes.fromhex("ac02"), 0, 2, 64)
    (300, 2)
    """
    value = shift = 0
    while True:
        if at >= end:
            raise NeedMoreBytes(at + 1)
        byte = buffer[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if value >> bits or (byte >= 128 and shift >= bits):
            raise DecodeError(f"found a number that does not fit in {bits} bits")
        if byte < 128:
            return value, at


def read_bytes(buffer: bytes, at: int, end: int, bytes_max: int, what: Length) -> tuple[bytes, int]:
    """A list<u8> of at most `bytes_max` bytes; `what` names it in the error.

    >>> read_bytes(b"\\x02hi and more", 0, 13, 64, Length("value is {} bytes"))
    (b'hi', 3)
    """
    if at >= end:
        raise NeedMoreBytes(at + 1)
    length = buffer[at]
    if length < 128:
        at += 1
    else:
        length, at = read_unsigned(buffer, at, end, 32)
    stop = at + length
    if length > bytes_max:
        raise LengthLimitError(what, length, bytes_max)
    if stop > end:
        raise NeedMoreBytes(stop)
    return buffer[at:stop], stop


def read_text(buffer: bytes, at: int, end: int, bytes_max: int, what: Length) -> tuple[bytes, int]:
    """A string of at most `bytes_max` bytes, as its UTF-8, which is checked."""
    text, at = read_bytes(buffer, at, end, bytes_max, what)
    check_text(text)
    return text, at


def check_text(text: bytes) -> None:
    """:raises DecodeError: it is not UTF-8"""
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"found a string that is not UTF-8 at its byte {error.start}") from None


def read_tag(buffer: bytes, at: int, end: int, tags: int, what: str) -> tuple[int, int]:
    """The discriminant of a variant of `tags` cases (an option and a result have two): one byte below 128."""
    if at >= end:
        raise NeedMoreBytes(at + 1)
    tag = buffer[at]
    if tag >= tags:
        raise DecodeError(f"found {tag} as the tag of {what}, allowed 0 to {tags - 1}")
    return tag, at + 1


def read_bool(buffer: bytes, at: int, end: int) -> tuple[bool, int]:
    """A bool."""
    tag, at = read_tag(buffer, at, end, 2, "a bool")
    return tag == 1, at
