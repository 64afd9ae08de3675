"""One invocation on the client side, without I/O and without NATS.

    start ──> first piece sent ── accepted ──> the remaining pieces and the empty end piece sent
                     └──────────── result pieces ──> complete: DONE
                                                     empty piece too early: failed

Results may arrive before the handshake. Pass each event to the `Call`, and send the pieces that its methods return.
When `done` is True, `value` or `error` is set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from keyvalue_transport.wrpc.errors import DecodeError, InvocationEndedError, NeedMoreBytes

__all__ = ["Call"]

T = TypeVar("T")


class Call(Generic[T]):
    """An invocation, with its parameters and its outcome.

    :param decode: decodes the result; raises NeedMoreBytes if the result is incomplete; any other exception becomes
        `error`
    :param first_bytes_max: limit for the number of parameter bytes in the first message
    :param piece_bytes_max: limit for the number of parameter bytes in each later message
    :param result_bytes_max: limit for the size of the result in bytes
    """

    __slots__ = ("_decode", "_needed", "_pieces", "_result_bytes_max", "_size", "_unsent", "done", "error", "value")

    def __init__(
        self,
        params: bytes,
        decode: Callable[[bytes, int, int], tuple[T, int]],
        first_bytes_max: int,
        piece_bytes_max: int,
        result_bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        first_bytes_max = max(1, first_bytes_max)
        first = params if len(params) <= first_bytes_max else params[:first_bytes_max]
        self._unsent = [first]
        self._unsent += [params[at : at + piece_bytes_max] for at in range(len(first), len(params), piece_bytes_max)]
        self._unsent.append(b"")
        self._decode = decode
        self._result_bytes_max = result_bytes_max
        self._pieces: list[bytes] = []
        self._size = 0
        self._needed = 0
        self.done = False
        self.value: T | None = None
        self.error: Exception | None = None

    def start(self) -> bytes:
        """Return the first piece of the parameters."""
        return self._unsent.pop(0)

    def accepted(self) -> list[bytes]:
        """Return the remaining pieces and the empty end piece. Call this method when the server's handshake arrives.

        Return an empty list on a second handshake.
        """
        unsent, self._unsent = self._unsent, []
        return unsent

    def result(self, piece: bytes) -> None:
        """Add a piece of the result. An empty piece ends the result.

        For a function without a result, only the empty piece arrives.
        """
        if self.done:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > self._result_bytes_max:
            self.fail(DecodeError(f"result is {self._size} bytes; the limit is {self._result_bytes_max}"))
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
        except Exception as error:  # the invocation's caller raises `error`
            self.fail(error)
        else:
            self.done = True
            self._pieces = []
