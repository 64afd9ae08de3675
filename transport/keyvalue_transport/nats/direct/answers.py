"""The frames that answer an invocation on the direct path: the pieces that they are made of, and `Replies` in frames.

    PUB R_c nobody 0 CRLF CRLF   PUB R_c.results 67 CRLF result CRLF   PUB R_c.results 0 CRLF CRLF
    PUB [reply] HANDSHAKE        [reply] RESULT_LINE result            NEXT_PUB [reply] END

`DirectProtocol` adds these pieces to its output for each whole result that fits into one message. Everything else is written by `FrameReplies`.
"""

from __future__ import annotations

__all__ = ["ANSWER_BYTES", "END", "NEXT_PUB", "PUB", "RESULT_LINES", "SMALL", "FrameReplies"]

PUB = b"PUB "
NEXT_PUB = b"\r\nPUB "
END = b".results 0\r\n\r\n"
#: Results of fewer bytes find their line ready: formatting it costs as much as the rest of the answer.
SMALL = 4096
RESULT_LINES = tuple(b".results %d\r\n" % size for size in range(SMALL))
#: About the bytes of an answer without its result.
ANSWER_BYTES = 256


class FrameReplies:
    """Writes PUB frames for an invocation's reply subject R_c.

    :ivar handshake: what follows R_c in the handshake of an invocation whose parameters came whole, up to the next frame's subject
    :ivar max_payload: bytes of a message that the server takes; it may change
    """

    __slots__ = ("_inbox", "_nobody", "handshake", "max_payload")

    def __init__(self, inbox: str, nobody: str, max_payload: int) -> None:
        self._inbox = inbox.encode()
        self._nobody = nobody.encode()
        self.handshake = b" %b 0\r\n%b" % (self._nobody, NEXT_PUB)
        self.max_payload = max_payload

    def accept(self, reply: bytes, token: str | None) -> list[bytes]:
        """Return the handshake."""
        inbox = self._nobody if token is None else b"%b.%b" % (self._inbox, token.encode())
        return [b"PUB %b %b 0\r\n\r\n" % (reply, inbox)]

    def result(self, reply: bytes, result: bytes) -> list[bytes]:
        """Return the pieces of a result."""
        size, whole = self.max_payload, memoryview(result)
        pieces = [whole[at : at + size] for at in range(0, len(result), size)]
        return [b"".join((b"PUB %b.results %d\r\n" % (reply, len(piece)), piece, b"\r\n")) for piece in pieces]

    def end(self, reply: bytes) -> list[bytes]:
        """Return the frame that ends the invocation."""
        return [PUB + reply + END]
