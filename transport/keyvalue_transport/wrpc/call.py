"""One invocation at the client, without I/O.

    start ──> first piece sent ── handshake(R_s) ──> the other pieces and the end sent
                     └──────────── result pieces ──> whole: DONE
                                                     empty piece before that: failed

Results may come before the handshake. A `Call` is told what comes and returns what to send; `done` says when `value` or `error` is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from keyvalue_transport.wrpc.errors import DecodeError, InvocationEndedError, NeedMoreBytes
from keyvalue_transport.wrpc.invocation import Send
from keyvalue_transport.wrpc.subjects import params_subject

__all__ = ["Call"]

T = TypeVar("T")


class Call(Generic[T]):
    """An invocation of `subject` with parameters, and what became of it.

    :param inbox: R_c, the client's inbox of this invocation
    :param header_bytes: size of the header block that the first message carries
    :param decode: reader of the result. What it raises besides NeedMoreBytes becomes `error`: a DecodeError, or an error of its interface
    :param result_bytes_max: a result longer than this is refused
    """

    __slots__ = ("_decode", "_needed", "_pieces", "_result_bytes_max", "_sends", "_size", "done", "error", "value")

    def __init__(
        self,
        subject: str,
        inbox: str,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[T, int]],
        max_payload: int,
        header_bytes: int = 0,
        result_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        # The first message leaves room for its subjects and headers, as the peers in other languages do.
        size = max(1, max_payload - header_bytes - len(subject.encode()) - len(inbox.encode()))
        first = params if len(params) <= size else params[:size]
        rest = params[len(first) :]
        self._sends = [Send(subject, first, inbox)]
        self._sends += [Send("", rest[at : at + max_payload]) for at in range(0, len(rest), max_payload)]
        self._sends.append(Send("", b""))
        self._decode = decode
        self._result_bytes_max = result_bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 0
        self.done = False
        self.value: T | None = None
        self.error: Exception | None = None

    def start(self) -> Send:
        """The first message."""
        return self._sends.pop(0)

    def handshake(self, server_inbox: str) -> list[Send]:
        """The other messages, now that the server's inbox is known; none at a second handshake."""
        subject = params_subject(server_inbox)
        sends = [Send(subject, send.payload) for send in self._sends]
        self._sends = []
        return sends

    def result(self, piece: bytes) -> None:
        """A piece of the result; an empty one ends it (and is all that comes from a function without a result)."""
        if self.done:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._result_bytes_max:
            self.fail(DecodeError(f"result in bytes: found {self._size}, allowed {self._result_bytes_max}"))
            return
        if self._size >= self._needed:
            self._try_decode()
        if not piece and not self.done:
            self.fail(InvocationEndedError(f"the provider ended the invocation after {self._size} bytes of its result"))

    def fail(self, error: Exception) -> None:
        """End the invocation with an error."""
        self.done = True
        self.error = error
        self._pieces = []

    def _try_decode(self) -> None:
        buffer = b"".join(self._pieces)
        try:
            self.value, _ = self._decode(buffer, 0, len(buffer))
        except NeedMoreBytes as more:
            self._pieces = [buffer]
            self._needed = more.end_min
        except Exception as error:  # the caller of the invocation gets it raised
            self.fail(error)
        else:
            self.done = True
            self._pieces = []
