"""A message to publish."""

from __future__ import annotations

from typing import NamedTuple

from keyvalue_engine.entry import Entry
from keyvalue_replica.layout import NS_PER_MS, ttl_headers

__all__ = ["Outgoing", "after_sequence"]


class Outgoing(NamedTuple):
    """A message to publish.

    :ivar headers: header lines, each with its end of line, or b""
    """

    subject: bytes
    payload: bytes = b""
    headers: bytes = b""

    def frame(self, to_domain: bytes, reply: bytes) -> bytes:
        """Return the frame that publishes the message.

        :param to_domain: the beginning of the subject, for the server of another domain
        :param reply: the subject for the stream's answer
        """
        subject, payload, headers = self
        if not headers:
            return b"PUB %b%b %b %d\r\n%b\r\n" % (to_domain, subject, reply, len(payload), payload)
        block = b"NATS/1.0\r\n%b\r\n" % headers
        sizes = b"%d %d" % (len(block), len(block) + len(payload))
        return b"HPUB %b%b %b %b\r\n%b%b\r\n" % (to_domain, subject, reply, sizes, block, payload)

    @classmethod
    def of(cls, subject: bytes, entry: Entry, now_ns: int, keeps_deadline: bool = False) -> Outgoing:
        """Return the message that sets an entry.

        :param keeps_deadline: True if the key had the same deadline before
        """
        if not isinstance(entry, tuple):
            return cls(subject, entry)
        value, deadline_ns = entry
        ttl_ms = max(1, (deadline_ns - now_ns + NS_PER_MS // 2) // NS_PER_MS)
        return cls(subject, value, ttl_headers(ttl_ms, deadline_ns if keeps_deadline else None))


def after_sequence(message: Outgoing, sequence: int) -> Outgoing:
    """Return a message that is stored only if the last message of its subject has this sequence, 0 for none."""
    condition = b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % sequence
    return message._replace(headers=condition + message.headers)
