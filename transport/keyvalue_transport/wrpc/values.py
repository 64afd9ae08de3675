"""The value encoding of the component model, as wRPC uses it on the wire.

    unsigned, length   LEB128: 7 bits in each byte, low bits first, the high bit set if another byte follows;
                       a length is a u32 in at most 5 bytes
    string, list<u8>   length, bytes (UTF-8 in a string)
    list<T>            length, elements
    option<T>          0 | 1 T
    result<T, E>       0 T | 1 E
    bool               0 | 1

A reader takes (buffer, at, end) and returns (value, offset after the value). A reader does not read bytes at or after
`end`, because they may belong to another caller. A reader raises these errors:

    NeedMoreBytes      the value continues after `end`
    DecodeError        the bytes are malformed
    LengthLimitError   a length is above the reader's limit

A reader allocates no memory for a value until the value's bytes have arrived.
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

#: The LEB128 encodings of the numbers below 128. Each encoding is one byte.
ONE_BYTE = tuple(bytes([value]) for value in range(128))


def write_unsigned(value: int) -> bytes:
    """Return the LEB128 encoding of an unsigned number.

    >>> write_unsigned(300).hex()
    'ac02'
    """
    if 0 <= value < 128:
        return ONE_BYTE[value]
    if value < 0:
        raise ValueError(f"number is {value}; the minimum is 0")
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
    """Read a LEB128 number of at most `bits` bits.

    An encoding with redundant bytes is accepted if it is not longer than the encoding of the largest number.

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
            raise DecodeError(f"a number does not fit in {bits} bits")
        if byte < 128:
            return value, at


def read_bytes(buffer: bytes, at: int, end: int, bytes_max: int, what: Length) -> tuple[bytes, int]:
    """Read a list<u8> of at most `bytes_max` bytes. `what` names the length in the error message.

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
    """Read a string of at most `bytes_max` bytes. Check that the string is UTF-8, and return its bytes."""
    text, at = read_bytes(buffer, at, end, bytes_max, what)
    check_text(text)
    return text, at


def check_text(text: bytes) -> None:
    """Raise DecodeError if a text is not UTF-8."""
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise DecodeError(f"a string is not UTF-8 at byte {error.start}") from None


def read_tag(buffer: bytes, at: int, end: int, tags: int, what: str) -> tuple[int, int]:
    """Read the one-byte tag of a variant with `tags` cases. Options and results are variants with two cases."""
    if at >= end:
        raise NeedMoreBytes(at + 1)
    tag = buffer[at]
    if tag >= tags:
        raise DecodeError(f"the tag of {what} is {tag}; the limit is {tags - 1}")
    return tag, at + 1


def read_bool(buffer: bytes, at: int, end: int) -> tuple[bool, int]:
    """Read a bool."""
    tag, at = read_tag(buffer, at, end, 2, "a bool")
    return tag == 1, at
