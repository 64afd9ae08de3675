"""The standard streams of the command. Each can be closed, a terminal, or a pipe whose reader goes away.

Text is UTF-8, whatever the locale. On a terminal, control characters are escaped, because a key or a value could
otherwise change what the terminal shows.
"""

from __future__ import annotations

import json
import re
import sys
from contextlib import suppress
from typing import BinaryIO

from keyvalue_provider.standard_streams import drop_output

__all__ = [
    "Output",
    "ReaderGoneError",
    "StandardStreamError",
    "input_bytes",
    "json_text",
    "key_count",
    "say",
    "shown",
]

#: Characters that a terminal may obey instead of showing them: controls, and marks that reorder a line.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: The same without the tab and the line feed, which values often contain.
CONTROLS_OF_VALUES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
#: `json.dumps` would create an encoder for each key of an export.
ENCODER = json.JSONEncoder(ensure_ascii=False)


class StandardStreamError(Exception):
    """The error for a standard stream that is closed or cannot be written."""


class ReaderGoneError(Exception):
    """The reader of standard output has closed its end, as `head` does."""


def shown(text: str, controls: re.Pattern[str] = CONTROLS) -> str:
    r"""Return the text with control characters escaped, as in "a\x1b[2J"."""
    return controls.sub(lambda found: repr(found[0])[1:-1], text)


def key_count(number: int) -> str:
    """Return a number of keys as text.

    >>> key_count(1), key_count(5_000)
    ('1 key', '5,000 keys')
    """
    return f"{number:,} {'key' if number == 1 else 'keys'}"


def json_text(answer: object) -> bytes:
    """Return JSON on one line, in UTF-8, with control characters escaped."""
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", ENCODER.encode(answer)).encode()


def say(text: str, end: str = "\n") -> None:
    """Write to standard error. If it is closed, or if nobody reads it, write nothing."""
    if sys.stderr is not None:
        with suppress(OSError):  # the exit code still tells the result
            sys.stderr.write(text + end)
            sys.stderr.flush()


def input_bytes() -> bytes:
    """Return all bytes of standard input. On a terminal, say first that they are read.

    :raises StandardStreamError: standard input is closed
    """
    if sys.stdin is None:
        raise StandardStreamError("standard input is closed; give the value as an argument, or with --file PATH")
    if sys.stdin.isatty():
        say("wrpc-kv: reading the value from standard input; end it with Ctrl-D (twice after text without a newline)")
    return sys.stdin.buffer.read()


class Output:
    """Standard output.

    :ivar is_terminal: True if people read it
    :raises StandardStreamError: standard output is closed
    """

    def __init__(self) -> None:
        if sys.stdout is None:
            raise StandardStreamError("standard output is closed")
        self._file: BinaryIO = sys.stdout.buffer
        self.is_terminal = sys.stdout.isatty()

    def write(self, content: bytes) -> None:
        """Write bytes as they are.

        :raises ReaderGoneError: nobody reads them
        :raises StandardStreamError: they cannot be written
        """
        try:
            self._file.write(content)
        except OSError as error:
            raise self._failed(error) from error

    def flush(self) -> None:
        """Write what is buffered. Raise the same errors as `write`."""
        try:
            sys.stdout.flush()  # also the text that argparse wrote
        except OSError as error:
            raise self._failed(error) from error

    def line(self, text: str) -> None:
        """Write a line."""
        text = shown(text) if self.is_terminal else text
        self.write(text.encode(errors="surrogateescape") + b"\n")

    def json(self, answer: object) -> None:
        """Write a line of JSON."""
        self.write(json_text(answer) + b"\n")

    def value(self, value: bytes) -> None:
        """Write a value: its bytes, or on a terminal its text and a newline."""
        if not self.is_terminal:
            self.write(value)
            return
        text = shown(value.decode(errors="backslashreplace"), CONTROLS_OF_VALUES)
        self.write(text.encode() + (b"" if text.endswith("\n") else b"\n"))

    def _failed(self, error: OSError) -> Exception:
        drop_output()
        if isinstance(error, BrokenPipeError):
            return ReaderGoneError()
        return StandardStreamError(f"standard output: {error.strerror}")
