"""Fills a KV bucket with the keys of a snapshot, and continues after an interruption at any point.

    wrpc-keyvalue-import: <digest>                 in the stream's metadata, until the import has finished
    $KV.<KV bucket>.i.import                       <digest> <keys> <expired>: how far the import has come

While the mark is in the metadata, no instance serves the bucket. The keys are published in steps. When all messages of
a step are acknowledged, the progress is published, on the condition that nobody else has published it meanwhile. So an
interrupted import repeats one step at most, with the same values. If two imports run at once, one of them stops.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Iterable
from typing import NamedTuple

from keyvalue_engine.errors import LimitError
from keyvalue_replica.bucket import MESSAGE_BYTES
from keyvalue_replica.core import HEADER_BYTES
from keyvalue_replica.errors import StreamError, UnavailableError
from keyvalue_replica.layout import Layout, ttl_headers
from keyvalue_replica.options import ReplicaOptions
from keyvalue_replica.outgoing import Outgoing
from keyvalue_replica.plain_layout import PlainLayout
from keyvalue_replica.publications import STREAM_FULL, WRONG_LAST_SEQUENCE
from keyvalue_replica.stream import Api, ApiError, StreamState, mark_stream, open_stream, stream_state
from keyvalue_transport.nats.connection import Connection
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["Import", "Progress"]

NO_MESSAGE = 10037
#: Header lines of the progress. It replaces the earlier ones, and other clients of the KV bucket see no key.
PROGRESS_HEADERS = b"KV-Operation: PURGE\r\nNats-Rollup: sub\r\nNats-Expected-Last-Subject-Sequence: %d\r\n"


class Progress(NamedTuple):
    """How far an import has come.

    :ivar keys: number of keys of the snapshot that have been dealt with
    :ivar expired: number of those that had expired
    """

    keys: int = 0
    expired: int = 0


class Import:
    """The import of one snapshot into one KV bucket.

    :param options: `secret` is that of the snapshot; None to keep the bucket's, or to create one
    :param digest: names the snapshot
    :param layout: that of a KV bucket with plain names; None for encoded names
    :ivar bucket: the name of the bucket
    """

    def __init__(
        self, connection: Connection, options: ReplicaOptions, digest: str, layout: PlainLayout | None = None
    ) -> None:
        self.bucket = options.bucket
        self._connection = connection
        self._options = options
        self._digest = digest
        self._layout: Layout = layout or Layout(options.bucket, options.domain)
        self._api = Api(connection, options.domain)
        self._subject = self._layout.internal + b"import"
        self._inbox = connection.new_inbox()
        self._value_bytes_max = 0
        self._sequence = 0  # of the last progress
        self._waiting = 0  # number of messages that are not acknowledged
        self._stored = 0  # sequence of the last message that was acknowledged
        self._failure: Exception | None = None
        self._answered = asyncio.Event()  # set when nothing waits, or after a failure

    async def use(self) -> str:
        """Return how the bucket is used, or "" if it is empty or an import into it has not finished.

        :raises StreamError: JetStream's answer is not understood
        :raises UnavailableError: JetStream is not ready
        """
        state = await self._look()
        return "" if state is None or state.importing else await self._use_of(state)

    async def was_done(self) -> bool:
        """Return True if the last import into the bucket was that of this snapshot, and has finished.

        :raises StreamError: JetStream's answer is not understood
        :raises UnavailableError: JetStream is not ready
        """
        state = await self._look()
        return state is not None and not state.importing and (await self._last_progress())[0] == self._digest

    async def look(self) -> None:
        """Check that the bucket can take the snapshot, and learn the limit for values. Change nothing.

        :raises StreamError: the bucket holds other keys, or is in use
        :raises UnavailableError: JetStream is not ready
        """
        state = await self._look()
        if state is not None and not state.importing:
            await self._refuse_used(state)

    async def _look(self) -> StreamState | None:
        state = await stream_state(self._api, self._layout)
        of_server, of_stream = self._connection.max_payload, None if state is None else state.message_bytes_max
        self._value_bytes_max = (of_server if of_stream is None else min(of_server, of_stream)) - HEADER_BYTES
        return state

    async def begin(self) -> Progress:
        """Mark the bucket, after creating it if it is missing. Return how far an earlier run has come.

        :raises StreamError: the bucket does not fit, or another import is at work
        :raises UnavailableError: JetStream is not ready
        :raises DisconnectedError: the connection is lost
        """
        await self._connection.subscribe_frames(self._inbox, self._acknowledge)
        self._connection.on_lost.append(lambda: self._fail(DisconnectedError("the connection to NATS was lost")))
        state = await open_stream(self._api, self._layout, self._options, self._digest)
        digest, progress = await self._last_progress()
        if state.importing:
            if digest not in ("", self._digest):
                raise StreamError("imports of two snapshots have met in this bucket: delete it")
            await self._note(progress)
            return progress
        await self._refuse_used(state)
        await self._note(Progress())  # before the mark, because the bucket may hold the progress of an earlier import
        await mark_stream(self._api, self._layout, self._digest, self._options.secret)
        return Progress()

    def message(self, bucket: bytes, key: bytes, value: bytes, ttl_ms: int | None) -> Outgoing:
        """Return the message that sets a key.

        :raises LimitError: the names or the value do not fit into a message
        :raises UnfitNameError: NATS does not allow the key
        """
        if len(value) > self._value_bytes_max:
            raise LimitError(MESSAGE_BYTES, len(value), self._value_bytes_max)
        return Outgoing(self._layout.subject(bucket, key), value, b"" if ttl_ms is None else ttl_headers(ttl_ms))

    async def put(self, messages: Iterable[Outgoing], progress: Progress) -> None:
        """Store messages, and then the progress.

        :raises StreamError: JetStream refused a message, another import is at work, or the mark is gone
        :raises UnavailableError: JetStream does not answer
        :raises DisconnectedError: the connection is lost
        """
        await self._publish(messages)
        await self._note(progress)
        await self._check_mark()

    async def end(self) -> None:
        """Remove the mark, so that instances serve the bucket.

        :raises StreamError: the mark is gone
        :raises UnavailableError: JetStream is not ready
        """
        await self._check_mark()
        await mark_stream(self._api, self._layout, "")

    async def _check_mark(self) -> None:
        """Check that instances can see that the import has not finished.

        :raises StreamError: the mark is gone
        """
        state = await stream_state(self._api, self._layout)
        if state is None or state.importing != self._digest:
            raise StreamError(
                "the mark of this import is gone: the bucket was deleted, another import has finished, or another program"
                " has changed the metadata. If keys are missing, delete the bucket and import again"
            )

    async def _refuse_used(self, state: StreamState) -> None:
        """Check that a bucket has no keys and no readers.

        :raises StreamError: it has some
        """
        if reason := await self._use_of(state):
            raise StreamError(reason)

    async def _use_of(self, state: StreamState) -> str:
        """Return how a bucket is used, or "" if it has no keys and no readers."""
        bucket, stream = self._options.bucket, self._layout.stream
        if self._layout.bucket is not None and not (state.is_ours or self._options.adopts):
            return f"others have created the KV bucket {bucket}, and an import changes its metadata (jetstream_adopt)"
        try:
            info = await self._api.call(
                f"STREAM.INFO.{stream}", {"subjects_filter": f"{self._layout.internal.decode()}>"}
            )
        except ApiError as error:
            raise StreamError(f"{stream}: {error}") from None
        internal = int(info.get("total", 0))
        if state.keys > internal:
            return (
                f"the KV bucket {bucket} holds {state.keys - internal} keys (a deleted key counts for an hour):"
                " import into a new bucket (jetstream_bucket)"
            )
        if state.consumers:
            return (
                f"{state.consumers} instances or other clients follow the KV bucket {bucket}: stop them first"
                " (the server forgets one that was killed after half a minute)"
            )
        return ""

    async def _last_progress(self) -> tuple[str, Progress]:
        """Return the digest and the progress that the bucket holds, or "" and no progress. Remember the sequence.

        :raises StreamError: the message is malformed
        """
        name, parameters = f"STREAM.MSG.GET.{self._layout.stream}", {"last_by_subj": self._subject.decode()}
        try:
            message = (await self._api.call(name, parameters))["message"]
            self._sequence = int(message["seq"])
            digest, keys, expired = b64decode(message["data"]).decode().split(" ")
            return digest, Progress(int(keys), int(expired))
        except ApiError as error:
            if error.code == NO_MESSAGE:
                return "", Progress()
            raise StreamError(f"{self._layout.stream}: {error}") from None
        except (KeyError, TypeError, ValueError):
            raise StreamError(f"{self._subject.decode()} does not hold the progress of an import") from None

    async def _note(self, progress: Progress) -> None:
        """Publish the progress if nobody else has published it since `_sequence`."""
        payload = f"{self._digest} {progress.keys} {progress.expired}".encode()
        await self._publish([Outgoing(self._subject, payload, PROGRESS_HEADERS % self._sequence)])
        self._sequence = self._stored

    async def _publish(self, messages: Iterable[Outgoing]) -> None:
        """Publish messages, and wait until all are stored."""
        reply, to_domain = self._inbox.encode(), self._layout.to_domain
        frames = [message.frame(to_domain, reply) for message in messages]
        self._waiting = len(frames)
        if frames and not self._connection.write_now(b"".join(frames)):
            raise DisconnectedError("NATS is not connected")
        while self._waiting:
            waiting = self._waiting
            self._answered.clear()
            if self._failure is None:
                try:
                    async with asyncio.timeout(self._options.timeout_s):
                        await self._answered.wait()
                except TimeoutError:
                    if self._waiting == waiting:
                        limit = f"{self._options.timeout_s:g} s (jetstream_timeout_ms)"
                        self._fail(UnavailableError(f"JetStream has confirmed nothing for {limit}"))
            if self._failure is not None:
                raise self._failure

    def _acknowledge(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        """Take the stream's answer to a message, or the server's empty answer if nobody serves the stream."""
        try:
            answer = json.loads(payload) if payload else {}
            if "error" in answer:
                self._fail(_refusal(int(answer["error"]["err_code"]), str(answer["error"]["description"])))
                return
            self._stored = int(answer["seq"])
        except (KeyError, TypeError, ValueError):
            self._fail(UnavailableError("JetStream is off, or the stream has no leader"))
            return
        self._waiting -= 1
        if not self._waiting:
            self._answered.set()

    def _fail(self, error: Exception) -> None:
        self._failure = self._failure or error
        self._answered.set()


def _refusal(code: int, text: str) -> StreamError:
    if code in WRONG_LAST_SEQUENCE:
        return StreamError("another import into this bucket is at work, or has just ended: try again")
    if code in STREAM_FULL:
        return StreamError(f"the KV bucket is full: {text}")
    return StreamError(f"JetStream refused a message: {text}")
