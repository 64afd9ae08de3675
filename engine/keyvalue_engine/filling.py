"""A page while the shards of a bucket fill it."""

from __future__ import annotations

__all__ = ["KEY_OVERHEAD_BYTES", "Filling"]

#: Bytes that a key takes on a page besides the key itself. Four bytes hold the LEB128 length of a key up to 256 MiB.
KEY_OVERHEAD_BYTES = 4


class Filling:
    """The keys of a page so far, its limits, and the work that was done for it.

    :ivar size_bytes: the size of the encoded keys
    :ivar work: number of shards visited, deadlines examined, and keys sorted into a new order
    """

    __slots__ = ("bytes_max", "keys", "keys_max", "size_bytes", "work")

    def __init__(self, keys_max: int, bytes_max: int) -> None:
        self.keys: list[bytes] = []
        self.keys_max = keys_max
        self.bytes_max = bytes_max
        self.size_bytes = 0
        self.work = 0
