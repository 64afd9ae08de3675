"""How buckets and keys are stored in the stream: subjects and headers.

    $KV.<KV bucket>.b<bucket>.k<key>       a key; both names are base64url without padding, so any bytes fit
    $KV.<KV bucket>.i.b.<instance>         the barriers of an instance, which are no keys; `*.*` matches only keys

The payload is the value. A message without headers is a plain write in format 1. The headers of other messages:

    Kv-Ttl-Ms: 1500                        the key expires so long after the message's timestamp
    Nats-TTL: 2s                           the server then removes the message, at the next whole second or later
    Nats-Rollup: sub                       the server removes all earlier messages of the key
    KV-Operation: DEL                      the key is deleted, as NATS clients do it
    Kv-Format: 2                           written by a later version in another format

A key's message that the server will remove must be its only one. Otherwise, the value before it would come back.

`plain_layout.py` has the other layout, in which a KV bucket is one bucket, and the names are not encoded.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping

from keyvalue_engine.errors import Limit, LimitError

__all__ = [
    "BARRIER_BLOCK",
    "BARRIER_S",
    "FORMAT",
    "MARKER_S",
    "SUBJECT_BYTES_MAX",
    "TTL_S_MAX",
    "Layout",
    "barrier_headers",
    "delete_headers",
    "headers_of",
    "is_deletion",
    "is_readable",
    "lifetime_ns",
    "ttl_headers",
]

#: The version of the format that this module reads and writes.
FORMAT = 1
#: A NATS server closes a connection that sends a control line of more than 4,096 bytes.
SUBJECT_BYTES_MAX = 4_000
SUBJECT_BYTES = Limit("bucket and key are {} bytes in a NATS subject", "a fixed limit")
#: The longest time that JetStream takes: it adds this to the message's time in a signed 64-bit number of nanoseconds
#: since 1970. With a longer time, the sum overflows, and the message is removed at once. 2**32 is in the year 2106.
TTL_S_MAX = 2**63 // 10**9 - 2**32
#: Number of bucket names whose tokens are kept.
NAMES_MAX = 1_024
#: How long the server keeps the marker of a deleted key. An instance that was away for longer reads everything again.
MARKER_S = 3600
#: How long the server keeps a barrier, so that none of ended instances stay. If one is removed before it was delivered,
#: the next barrier of its instance answers the same calls.
BARRIER_S = 60
NS_PER_MS, NS_PER_S = 10**6, 10**9
#: No number of more digits is read: text of any length may come from other clients.
DIGITS_MAX = 18
#: A part of a duration as Go writes it in `Nats-TTL`, for example that of `1m30.5s`.
PART = re.compile(rb"(?=[.]?\d)(\d{0,18})(?:[.](\d*))?(ns|us|\xc2\xb5s|\xce\xbcs|ms|s|m|h)")
DURATION = re.compile(rb"[+]?(?:%b)+" % PART.pattern)
#: All units but the microsecond, which has three spellings.
UNITS_NS = {b"h": 3600 * NS_PER_S, b"m": 60 * NS_PER_S, b"s": NS_PER_S, b"ms": NS_PER_MS, b"ns": 1}
NS_PER_US = 10**3
NEVER = b"never"
URL = bytes.maketrans(b"+/", b"-_")
OF_URL = bytes.maketrans(b"-_", b"+/")
BEGIN = b"NATS/1.0\r\n"
DELETES = frozenset({b"DEL", b"PURGE"})


class Layout:
    """The subjects of one KV bucket.

    :param domain: the JetStream domain, or "" for the server's own

    >>> layout = Layout("kv")
    >>> layout.subject(b"b", b"key")
    b'$KV.kv.bYg.ka2V5'
    >>> layout.names(b"$KV.kv.bYg.ka2V5")
    (b'b', b'key')
    """

    #: The bucket that the KV bucket is; None if it holds all buckets.
    bucket: bytes | None = None
    #: False if the stream refuses messages that expire, or atomic batches.
    allows_ttl = allows_batches = True
    #: The age at which the stream removes messages, or 0. Keys expire at this age at the latest.
    max_age_ns = 0

    def __init__(self, kv_bucket: str, domain: str = "") -> None:
        self.domain = domain
        #: The beginning of the subjects for publishing. The server of another domain removes it.
        self.to_domain = f"$JS.{domain}.API.".encode() if domain else b""
        self.stream = f"KV_{kv_bucket}"
        self.subjects = f"$KV.{kv_bucket}.>"
        self.keys = f"$KV.{kv_bucket}.*.*"
        self._prefix = self.prefix = b"$KV.%b." % kv_bucket.encode()
        self.internal = self._prefix + b"i."
        self.barriers = self.internal + b"b."
        #: The header lines of a delete, and the header block of a barrier.
        self.delete_headers = delete_headers(MARKER_S)
        self.barrier_block = BARRIER_BLOCK
        self._tokens: dict[bytes, bytes] = {}
        self._names: dict[bytes, bytes] = {}

    def subject(self, bucket: bytes, key: bytes) -> bytes:
        """Return the subject of a key.

        :raises LimitError: the names do not fit into a subject
        """
        begin = self._tokens.get(bucket) or self._begin(bucket)
        subject = begin + b2a_base64(key, newline=False).translate(URL, b"=")
        if len(subject) > SUBJECT_BYTES_MAX:
            raise LimitError(SUBJECT_BYTES, len(subject), SUBJECT_BYTES_MAX)
        return subject

    def _begin(self, bucket: bytes) -> bytes:
        if len(self._tokens) >= NAMES_MAX:
            self._tokens.clear()
        token = b2a_base64(bucket, newline=False).translate(URL, b"=")
        begin = self._tokens[bucket] = b"%bb%b.k" % (self._prefix, token)
        return begin

    def names(self, subject: bytes) -> tuple[bytes, bytes] | None:
        """Return the bucket and the key of a subject, or None if it is not the subject of a key."""
        bucket_token, _, key_token = subject[len(self._prefix) :].partition(b".")
        try:
            return self.bucket_of(bucket_token), self.key_of(key_token)
        except ValueError:
            return None

    def bucket_of(self, token: bytes) -> bytes:
        """Return the bucket's name that a token holds.

        :raises ValueError: the token holds no bucket's name
        """
        name = self._names.get(token)
        if name is None:
            if token[:1] != b"b":
                raise ValueError
            if len(self._names) >= NAMES_MAX:
                self._names.clear()
            name = self._names[token] = a2b_base64(token[1:].translate(OF_URL) + b"==")
        return name

    def key_of(self, token: bytes) -> bytes:
        """Return the key that a token holds.

        :raises ValueError: the token holds no key
        """
        if token[:1] != b"k":
            raise ValueError
        return a2b_base64(token[1:].translate(OF_URL) + b"==")

    def is_internal(self, subject: bytes) -> bool:
        """Return True if a subject belongs to barriers."""
        return subject.startswith(self.internal)

    def barrier(self, instance: str) -> bytes:
        """Return the subject of an instance's barriers."""
        return self.barriers + instance.encode()


def ttl_headers(ttl_ms: int, deadline_ns: int | None = None) -> bytes:
    """Return the header lines of a key that expires.

    :param deadline_ns: the deadline that the key had before and keeps. Without it, each change would move the deadline by
        the time that the message takes to the server
    """
    seconds = min(-(-ttl_ms // 1000), TTL_S_MAX)
    kept = b"" if deadline_ns is None else b"Kv-Deadline-Ns: %d\r\n" % deadline_ns
    return b"Kv-Ttl-Ms: %d\r\n%bNats-TTL: %ds\r\nNats-Rollup: sub\r\n" % (ttl_ms, kept, seconds)


def delete_headers(kept_s: int) -> bytes:
    """Return the header lines of a delete. The server keeps the message for `kept_s` seconds, for absent instances."""
    return barrier_headers(kept_s) + b"Nats-Rollup: sub\r\n"


def barrier_headers(kept_s: int) -> bytes:
    """Return the header lines of a barrier. It is a delete for other clients of the KV bucket, so they see no key.

    The server removes it after `kept_s` seconds, and leaves no marker.
    """
    return b"KV-Operation: DEL\r\nNats-TTL: %ds\r\nNats-Marker-Reason: Remove\r\n" % kept_s


#: The TTL costs nothing that can be measured with file storage, and a microsecond with memory storage. A rollup would
#: leave one message instead of `jetstream_history`, but takes 1.4 times as long. The payload is the barrier's number.
BARRIER_BLOCK = b"NATS/1.0\r\n%b\r\n" % barrier_headers(BARRIER_S)


def lifetime_ns(headers: Mapping[bytes, bytes], max_age_ns: int = 0) -> int | None:
    """Return the time from a message's timestamp until it expires, in nanoseconds, or None if it does not.

    A server removes a message at the age of the stream even if its own time is longer, but not if that is `never`.

    >>> lifetime_ns({b"nats-ttl": b"5"}), lifetime_ns({b"nats-ttl": b"1m30s"}, 7 * 10**9), lifetime_ns({}, 7 * 10**9)
    (5000000000, 7000000000, 7000000000)
    >>> lifetime_ns({b"nats-ttl": b"never"}, 7 * 10**9), lifetime_ns({})
    (None, None)
    """
    ttl_ns = _ttl_ns_of(headers)
    if ttl_ns is None and headers.get(b"nats-ttl", b"").lower() == NEVER:
        return None
    return min(ttl_ns or max_age_ns, max_age_ns) if max_age_ns else ttl_ns


def _ttl_ns_of(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the time to live that a message's headers set. Other clients set only Nats-TTL."""
    ttl_ms = headers.get(b"kv-ttl-ms", b"")
    if ttl_ms.isdigit() and len(ttl_ms) <= DIGITS_MAX:
        return min(int(ttl_ms) * NS_PER_MS, TTL_S_MAX * NS_PER_S)
    text = headers.get(b"nats-ttl", b"")
    if text.isdigit() and len(text) <= DIGITS_MAX:
        seconds = int(text)
    elif DURATION.fullmatch(text):
        # The server ignores the rest of a second, too.
        seconds = sum(_part_ns(*part) for part in PART.findall(text)) // NS_PER_S
    else:
        return None
    return min(seconds, TTL_S_MAX) * NS_PER_S or None


def _part_ns(whole: bytes, fraction: bytes, unit: bytes) -> int:
    """Return a part of a duration in nanoseconds."""
    unit_ns = UNITS_NS.get(unit, NS_PER_US)
    digits = fraction[:DIGITS_MAX].ljust(DIGITS_MAX, b"0")
    return int(whole or 0) * unit_ns + int(digits) * unit_ns // 10**18


def headers_of(block: bytes) -> dict[bytes, bytes]:
    """Return the headers of a block in lower case, and its status as `status`. Ignore lines that are no headers.

    >>> headers_of(b"NATS/1.0 100 Idle Heartbeat\\r\\nNats-Last-Stream: 7\\r\\n\\r\\n")
    {b'status': b'100', b'nats-last-stream': b'7'}
    """
    first, *lines = block.split(b"\r\n")
    status = first[len(BEGIN) - 1 :].split(b" ", 1)[0]
    headers = {b"status": status} if status else {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().lower()] = value.strip()
    return headers


def is_deletion(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if a message with these headers removes its key."""
    return b"nats-marker-reason" in headers or headers.get(b"kv-operation") in DELETES


def is_readable(headers: Mapping[bytes, bytes]) -> bool:
    """Return True if this version can read a message with these headers."""
    return headers.get(b"kv-format", b"%d" % FORMAT) == b"%d" % FORMAT
