"""The reply subjects that are answered. Callers choose them, and the server publishes to them with its own permissions.

A caller could make the server speak for it where the caller itself may not: to a host's subjects, to JetStream, or to
the server's own functions. So a call with such a reply subject is neither executed nor answered, only counted.

    refused    $...   wasmbus...   {prefix}...   subjects of more than REPLY_BYTES_MAX bytes, and subjects with a CR

A longer subject would make our lines too long for the NATS server, which then closes the connection. A caller's own
line is longer than ours if it contains the whole subject of a function, but a subject mapping can make it shorter. If a
line with a CR in a subject arrives in two reads, the NATS server misreads it, and closes the connection too.
"""

from __future__ import annotations

__all__ = ["CR", "REPLY_BYTES_MAX", "ReplySubjects", "connection_of"]

#: The NATS server's limit for a line is 4,096 bytes. Ours adds less than 96 bytes to the reply subject.
REPLY_BYTES_MAX = 4_000
#: The first byte of `_INBOX.`, with which almost all reply subjects begin.
INBOX_FIRST = ord("_")
FORBIDDEN = (b"$", b"wasmbus.")
CR = b"\r"
#: NATS clients make inboxes from NUIDs. A NUID has 22 characters, of which the first 12 identify the process.
NUID_BYTES, NUID_PREFIX_BYTES = 22, 12


class ReplySubjects:
    """The rule for the reply subjects of one connection.

    :ivar refused: number of messages with a refused reply subject
    :ivar plain_first: the first byte of inboxes, or -1 if a refused subject begins with it
    """

    __slots__ = ("_forbidden", "plain_first", "refused")

    def __init__(self) -> None:
        self.refused = 0
        self.plain_first = INBOX_FIRST
        self._forbidden: tuple[bytes, ...] = FORBIDDEN

    def forbid(self, prefix: str) -> None:
        """Refuse all subjects under a prefix, which are the server's own."""
        self._forbidden += (f"{prefix}.".encode(),)
        if any(forbidden[0] == INBOX_FIRST for forbidden in self._forbidden):
            self.plain_first = -1

    def refuses(self, reply: bytes) -> bool:
        """Return True if a reply subject must not be answered, and count the refusal."""
        refused = not self.allows(reply)
        self.refused += refused
        return refused

    def allows(self, reply: bytes) -> bool:
        """Return True if a reply subject may be answered.

        >>> rule = ReplySubjects()
        >>> rule.forbid("default.kv")
        >>> [rule.allows(reply) for reply in (b"_INBOX.1", b"$JS.API.INFO", b"default.kv.wrpc", b"default.kv2", b"a\\rb")]
        [True, False, False, True, False]
        """
        return len(reply) <= REPLY_BYTES_MAX and CR not in reply and not reply.startswith(self._forbidden)

    def head(self, reply: bytes) -> bytes:
        """Return a start of an allowed reply subject that no refused subject has. Return b"" if there is none.

        >>> rule = ReplySubjects()
        >>> rule.forbid("default.kv")
        >>> rule.head(b"_INBOX.1"), rule.head(b"device.1"), rule.head(b"wasmbus")
        (b'_', b'dev', b'')
        """
        for end in range(1, len(reply) + 1):
            if not any(forbidden.startswith(reply[:end]) for forbidden in self._forbidden):
                return reply[:end]
        return b""


def connection_of(reply: bytes) -> bytes:
    """Return what the reply subjects of one connection have in common, as far as one of them shows it.

    >>> connection_of(b"_INBOX.alice.0123456789abcdefghijkl.7"), connection_of(b"replies.7"), connection_of(b"r")
    (b'_INBOX.alice.0123456789ab', b'replies', b'')
    """
    tokens = reply.split(b".")
    for index, token in enumerate(tokens):
        if len(token) >= NUID_BYTES:
            return b".".join((*tokens[:index], token[:NUID_PREFIX_BYTES]))
    return b".".join(tokens[:-1])
