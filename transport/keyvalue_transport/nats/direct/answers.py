"""The frames that answer an invocation on the direct path: constant parts of frames, and `FrameReplies`.

    PUB R_c nobody 0 CRLF CRLF   PUB R_c.results 67 CRLF result CRLF   PUB R_c.results 0 CRLF CRLF
    PUB [reply] HANDSHAKE        [reply] RESULT_LINE result            NEXT_PUB [reply] END

If a result fits into one message, `DirectProtocol` joins the parts in the second line. `FrameReplies` builds all other
frames for the core.
"""

from __future__ import annotations

from keyvalue_transport.nats.subjects import params_subject

__all__ = ["ANSWER_BYTES", "END", "NEXT_PUB", "PUB", "RESULT_LINES", "SMALL", "FrameReplies"]

PUB = b"PUB "
NEXT_PUB = b"\r\nPUB "
END = b".results 0\r\n\r\n"
#: Lines for results of fewer bytes are formatted in advance, because formatting a line takes as long as everything
#: else in an answer.
SMALL = 4096
RESULT_LINES = tuple(b".results %d\r\n" % size for size in range(SMALL))
#: Approximate size of an answer without its result.
ANSWER_BYTES = 256


class FrameReplies:
    """A builder of the PUB frames that answer an invocation. `reply` is the invocation's reply subject R_c.

    :ivar handshake: the bytes between R_c and the next frame's subject, in a handshake for complete parameters
    :ivar max_payload: the NATS server's limit for the size of a message in bytes, which may change
    :ivar receipt: a frame that the NATS server sends back to us, on the subscription for the pieces of parameters. When
        it arrives, the server has read everything that was sent before
    :ivar receipt_token: the token in the frame's subject
    """

    __slots__ = ("_inbox", "_nobody", "handshake", "max_payload", "receipt", "receipt_token")

    def __init__(self, inbox: str, nobody: str, max_payload: int, receipt_token: str) -> None:
        self._inbox = inbox.encode()
        self._nobody = nobody.encode()
        self.handshake = b" %b 0\r\n%b" % (self._nobody, NEXT_PUB)
        self.max_payload = max_payload
        self.receipt = b"PUB %b 0\r\n\r\n" % params_subject(f"{inbox}.{receipt_token}").encode()
        self.receipt_token = receipt_token

    def accept(self, reply: bytes, token: str | None) -> list[bytes]:
        """Return the handshake. With a token, it asks the client for the remaining pieces of cut parameters."""
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
