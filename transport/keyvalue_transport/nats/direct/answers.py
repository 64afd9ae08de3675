"""The frames that answer an invocation on the direct path: constant parts of frames, and `FrameReplies`.

    PUB R_c nobody 0 CRLF CRLF   PUB R_c.results 67 CRLF result CRLF   PUB R_c.results 0 CRLF CRLF
    PUB head [tail] HANDSHAKE head [tail] RESULT_LINE result           NEXT_PUB head [tail] END

alike.py explains the head and the tail of a reply subject.

If a result fits into one message, `DirectProtocol` joins the parts in the second line. `FrameReplies` builds all other
frames for the core.
"""

from __future__ import annotations

from keyvalue_transport.nats.subjects import params_subject
from keyvalue_transport.wrpc.handler import SMALL_BYTES

__all__ = ["ANSWER_BYTES", "END", "NEXT_PUB", "PUB", "RESULT_LINES", "SMALL", "FrameReplies", "message_count"]

PUB = b"PUB "
NEXT_PUB = b"\r\nPUB "
END = b".results 0\r\n\r\n"
#: Lines for results of fewer bytes are formatted in advance, because formatting a line takes as long as everything
#: else in an answer.
SMALL = SMALL_BYTES + 1
RESULT_LINES = tuple(b".results %d\r\n" % size for size in range(SMALL))
#: Maximum number of heads for which the constant parts are kept. Callers choose the heads.
HEADS_MAX = 256
#: Approximate size of an answer without its result.
ANSWER_BYTES = 256


class FrameReplies:
    """A builder of the PUB frames that answer an invocation. `reply` is the invocation's reply subject R_c.

    :ivar begun_of: the results of `begun`, by head; looking here first saves a call
    :ivar handshake_end: the bytes after the reply subject of a handshake for complete parameters
    :ivar max_payload: the NATS server's limit for the size of a message in bytes, which may change
    :ivar receipt_token: the token in the subject of receipts
    """

    __slots__ = (
        *("_handshake", "_inbox", "_nobody", "_receipt_subject"),
        *("begun_of", "handshake_end", "max_payload", "receipt_token"),
    )

    def __init__(self, inbox: str, nobody: str, max_payload: int, receipt_token: str) -> None:
        self._inbox = inbox.encode()
        self._nobody = nobody.encode()
        self._handshake = b" %b 0\r\n%b" % (self._nobody, NEXT_PUB)
        self.handshake_end = b" %b 0\r\n\r\n" % self._nobody
        self.begun_of: dict[bytes, tuple[bytes, bytes, bytes]] = {}
        self.max_payload = max_payload
        self._receipt_subject = params_subject(f"{inbox}.{receipt_token}").encode()
        self.receipt_token = receipt_token

    def begun(self, head: bytes) -> tuple[bytes, bytes, bytes]:
        """Return the bytes before each of the three tails in an answer, up to the head of the reply subject."""
        begun = self.begun_of.get(head)
        if begun is None:
            if len(self.begun_of) >= HEADS_MAX:
                self.begun_of.clear()
            begun = self.begun_of[head] = PUB + head, self._handshake + head, NEXT_PUB + head
        return begun

    def accept(self, reply: bytes, token: str | None) -> list[bytes]:
        """Return the handshake. With a token, it asks the client for the remaining pieces of cut parameters."""
        if token is None:
            return [self.handshake(reply)]
        return [b"PUB %b %b.%b 0\r\n\r\n" % (reply, self._inbox, token.encode())]

    def handshake(self, reply: bytes) -> bytes:
        """Return the handshake of an invocation whose parameters are complete."""
        return PUB + reply + self.handshake_end

    @property
    def handshake_and_next(self) -> bytes:
        """Return the bytes between the reply subject of such a handshake and that of the result."""
        return self._handshake

    def result(self, reply: bytes, result: bytes) -> list[bytes]:
        """Return the pieces of a result and the end. Those of a small result are one bytes object."""
        if (length := len(result)) < SMALL and length <= self.max_payload:
            return [b"".join((PUB, reply, RESULT_LINES[length], result, NEXT_PUB, reply, END))]
        size, whole = self.max_payload, memoryview(result)
        pieces = [whole[at : at + size] for at in range(0, len(result), size)]
        frames = [b"".join((b"PUB %b.results %d\r\n" % (reply, len(piece)), piece, b"\r\n")) for piece in pieces]
        return [*frames, *self.end(reply)]

    def end(self, reply: bytes) -> list[bytes]:
        """Return the frame that ends the invocation."""
        return [PUB + reply + END]

    def receipt(self, payload: bytes) -> bytes:
        """Return a frame that the NATS server sends back to us, on the subscription for the pieces of parameters.

        When it arrives, the server has read everything that was sent before.
        """
        return b"PUB %b %d\r\n%b\r\n" % (self._receipt_subject, len(payload), payload)


def message_count(frames: list[bytes]) -> int:
    """Return the number of messages in frames of which some are joined. Count a value that looks like a frame as one."""
    return sum(frame.count(NEXT_PUB) + 1 for frame in frames)
