"""The changes of the stream for one watcher, from a durable pull consumer that all instances share.

    stream ──> consumer ──> the pinned instance ──> its listener ── acknowledged, or given back
                   └──────> the others wait, until the pinned one is silent for `PIN_S`, is lost, or lets go

The consumer gives all changes to one instance, which is *pinned*, so that changes of a key are told one after another.
It gives a change again that was not acknowledged within `ACK_WAIT_S`. So the pinned instance tells it every second
which changes it still holds, and an instance that is killed holds nothing for long.

An instance loses the pin if its process stands still, too. It must not go on with what it holds, because another
instance may have told newer changes since. So it begins nothing later than `STALLED_S` after its last sign of life.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from time import monotonic
from typing import NamedTuple, Protocol

from keyvalue_replica.core import Core
from keyvalue_replica.errors import NotStoredError, StreamError, UnavailableError
from keyvalue_replica.layout import Layout, headers_of, is_deletion, is_readable
from keyvalue_replica.position import Delivery
from keyvalue_replica.stream import NO_STREAM, NS_PER_S, Api, ApiError, stream_state
from keyvalue_transport.nats.connection import Connection, Subscription
from keyvalue_transport.wrpc.errors import DisconnectedError

__all__ = ["HELD_MAX", "ChangeFeed", "FeedChange", "Listener", "WatchedStream"]

log = logging.getLogger(__name__)

#: Number of changes that the consumer gives before one of them is acknowledged.
HELD_MAX = 1_000
#: Seconds after which the consumer gives a change again.
ACK_WAIT_S = 5
#: Seconds of silence after which the consumer pins another instance.
PIN_S = 4
#: Seconds after its last sign of life in which the pinned instance may begin calls. It must be less than `PIN_S`.
STALLED_S = 3.0
#: Seconds between two signs of life.
BEAT_S = 1.0
#: Seconds for which the consumer keeps the request of an instance that is pinned, or is not.
ASKING_S, WAITING_S = 2.0, 5.0
#: The pause of a newly pinned instance, while changes of another one are not acknowledged. If the consumer's leader was
#: lost, the other one learns only at its next sign of life that it is not pinned any more.
HANDOVER_S = BEAT_S + 0.25
#: Seconds after which the server removes a consumer that no instance uses. The links may be gone.
INACTIVE_S = 24 * 3600
#: Seconds between two looks whether the consumer still exists.
LOOK_S = 15.0
RETRY_S = 1.0
PAUSE_S = 0.05
DELETE_TRIES = 5
GROUP = "w"
EXISTS, NO_CONSUMER = 10148, 10014
#: The statuses that end a pin or a request, or parts of their texts in lower case.
WRONG_PIN, LEADER_CHANGE, DELETED, NOBODY = b"423", b"leadership change", b"consumer deleted", b"503"
TOO_LARGE = b"exceeds maxbytes"


class FeedChange(NamedTuple):
    """A change of a key.

    :ivar value: the new value, or None if the key was removed
    :ivar is_repeated: True if the consumer has given it before, so that newer changes may have been told already
    :ivar reply: the subject for its acknowledgement
    """

    sequence: int
    bucket: bytes
    key: bytes
    value: bytes | None
    is_repeated: bool
    reply: bytes


class Listener(Protocol):
    """Takes the changes, and acknowledges each when it was told or is superseded."""

    def take(self, change: FeedChange, /) -> None:
        """Take a change, or ignore it: then the consumer gives it again."""

    def replies(self) -> list[bytes]:
        """Return the reply subjects of the changes that are held."""

    def room(self) -> tuple[int, int]:
        """Return how many changes, and how many bytes of them, can be taken."""

    def forget(self) -> list[bytes]:
        """Forget the changes that are not being told now. Return their reply subjects."""

    def wake(self) -> None:
        """Begin calls, because `ChangeFeed.may_tell` may have become true."""

    def begin_again(self) -> None:
        """Note that the sequences begin again, because there is a new stream. No change is held."""


class WatchedStream(Protocol):
    """The stream and its copy, such as `Follower` or `WatchedBucket`.

    :ivar created: when the stream was created, as text; another text means another stream, None that nothing is known
    :ivar served_from: the sequence that was applied when the copy last began to be served
    """

    @property
    def api(self) -> Api: ...

    @property
    def layout(self) -> Layout: ...

    @property
    def is_serving(self) -> bool: ...

    @property
    def core(self) -> Core:
        """Return the core.

        :raises NotStoredError: there is none now
        """

    @property
    def created(self) -> str | None: ...

    @property
    def served_from(self) -> int: ...


class ChangeFeed:
    """The durable consumer of one watcher, as one instance uses it.

    Changes are given from the first one that this instance has not applied when the feed is created.

    :param name: the name of the consumer, the same at all instances
    :param about: what the consumer is for, for people who list the consumers
    :param held_max: number of changes that the listener can hold
    :ivar fault: why it gets no changes, or None
    """

    def __init__(
        self, connection: Connection, replica: WatchedStream, name: str, about: str, listener: Listener, held_max: int
    ) -> None:
        self._connection = connection
        self._replica = replica
        self._stream = replica.layout.stream
        self._name = name
        self.about = about
        self._listener = listener
        self._created = replica.created  # of the stream that `_begin` is for
        self._begin = replica.core.position.applied + 1 if replica.is_serving else 0
        self._inbox = connection.new_inbox().encode()
        self._next = f"{replica.api.prefix}.CONSUMER.MSG.NEXT.{self._stream}.{name}".encode()
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()
        self._pin = self._lost_pin = b""
        self._pins = 0  # number of pins that were lost, which names the requests since then
        self._is_new_pin = self._is_handed_over = False
        self._is_too_large = False  # the next change is larger than all that may be held
        self._beat_s = self._asked_until_s = 0.0
        self._asked = 0  # number of changes that may come without asking again
        self._asked_min = max(1, min(HELD_MAX, held_max) // 2)
        self._is_gone = False
        self._out: list[bytes] = []
        self.fault: str | None = None

    def may_tell(self) -> bool:
        """Return True if this instance may begin calls now."""
        return bool(self._pin) and self._is_handed_over and monotonic() - self._beat_s < STALLED_S

    def start(self, after: asyncio.Task[None] | None = None) -> None:
        """Begin, when the task `after` has ended."""
        self._task = asyncio.create_task(self._run(after))

    def note_missing(self) -> None:
        """Note that the stream does not exist. Everything in a later one is new."""
        self._created = self._created or ""

    def acknowledge(self, reply: bytes) -> None:
        """Acknowledge a change."""
        self._write(b"PUB %b 4\r\n+ACK\r\n" % reply)
        self._ask_more()

    async def is_newest(self, change: FeedChange) -> bool:
        """Return True if nothing has changed the key since.

        A newer change may have been told, but not been applied here yet. Only a barrier excludes that.

        :raises StoreError: this instance does not know it
        """
        core = self._replica.core
        await core.barrier()
        if not self._replica.is_serving:
            raise NotStoredError("the newest values are not known: the stream is read again")
        return core.store.bucket(change.bucket).get(change.key) == change.value

    async def stop(self) -> None:
        """Let another instance go on."""
        await self._end()
        self._give_back([*self._listener.forget(), *self._listener.replies()])
        if self._pin:
            payload = json.dumps({"group": GROUP}).encode()
            subject = f"{self._replica.api.prefix}.CONSUMER.UNPIN.{self._stream}.{self._name}"
            self._write(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload))
        self._pin = b""
        self._flush()

    async def delete(self) -> None:
        """Delete the consumer, because the link is gone."""
        await self._end()
        for _ in range(DELETE_TRIES):
            try:
                await self._replica.api.call(f"CONSUMER.DELETE.{self._stream}.{self._name}")
                return
            except ApiError as error:
                if error.code not in (NO_CONSUMER, NO_STREAM):
                    log.warning("replica: %s could not be deleted: %s", self.about, error)
                return
            except (UnavailableError, StreamError, DisconnectedError) as error:
                reason = error
            await asyncio.sleep(RETRY_S)
        log.warning("replica: %s is deleted when it was unused for a day: %s", self.about, reason)

    async def _end(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        if self._subscription is not None:
            await self._connection.drain([self._subscription], 0.0)

    # The consumer.

    async def _run(self, after: asyncio.Task[None] | None) -> None:
        if after is not None:
            await asyncio.wait((after,))
        while True:
            pause_s = RETRY_S
            try:
                await self._connection.wait_connected()
                if self._replica.is_serving:
                    await self._serve()
                else:
                    self.fault, pause_s = None, PAUSE_S  # health says why the stream is not served
            except (ApiError, UnavailableError, StreamError) as error:
                if str(error) != self.fault:
                    log.warning("replica: %s: %s; trying again", self.about, error)
                self.fault = str(error)
            except DisconnectedError:
                pass  # the connection logs it
            except Exception:  # a fault of ours must not end it for good
                log.exception("replica: %s: trying again", self.about)
                self.fault, pause_s = "an internal error", LOOK_S
            self._lose_pin()
            await asyncio.sleep(pause_s)

    async def _serve(self) -> None:
        if self._subscription is None:
            subject = f"{self._inbox.decode()}.*"
            self._subscription = await self._connection.subscribe_frames(subject, self._on_frame)
        await self._ensure()
        self.fault = None
        await self._follow()

    async def _ensure(self) -> None:
        """Create the consumer if it does not exist.

        :raises StreamError: the stream was created again, and the replica has not noticed that yet
        """
        name, replica = f"{self._stream}.{self._name}", self._replica
        self._is_gone = False
        if replica.is_serving and replica.created != self._created:
            await self._begin_again()
            self._begin = 0 if self._created is None else 1  # a stream that was created since then is new
            self._created = replica.created
        if not replica.is_serving:
            return
        if not self._begin or self._begin > replica.core.position.applied + 1:  # the stream has lost its end
            self._begin = replica.served_from + 1
        try:
            answer = await replica.api.call(f"CONSUMER.INFO.{name}")
        except ApiError as error:
            if error.code != NO_CONSUMER:
                raise
        else:
            self._begin = max(self._begin, int(answer["ack_floor"]["stream_seq"]) + 1)
            return
        state = await stream_state(replica.api, replica.layout)
        if state is None or state.created != self._created:
            raise StreamError("the stream was deleted or created again")
        keys = replica.layout.keys
        config = {
            "name": self._name,
            "durable_name": self._name,
            "description": self.about,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._begin,
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_S * NS_PER_S,
            "filter_subject": keys,
            "max_ack_pending": HELD_MAX,
            "inactive_threshold": INACTIVE_S * NS_PER_S,
            "priority_groups": [GROUP],
            "priority_policy": "pinned_client",
            "priority_timeout": PIN_S * NS_PER_S,
        }
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        try:
            await replica.api.call(f"CONSUMER.CREATE.{name}.{keys}", request)
            log.info("replica: created the consumer %s: %s", self._name, self.about)
        except ApiError as error:
            if error.code != EXISTS:  # another instance was faster
                raise

    async def _begin_again(self) -> None:
        """Forget the changes of the stream before."""
        self._lose_pin()
        while self._listener.replies():  # noqa: ASYNC110 - calls in flight set no event
            await asyncio.sleep(PAUSE_S)
        self._listener.begin_again()

    async def _follow(self) -> None:
        """Ask for changes, until the consumer or the connection is gone, or this instance must not serve."""
        looked_s = monotonic()
        self._asked_until_s = 0.0
        while self._replica.is_serving and self._connection.connected and not self._is_gone:
            self._beat()
            if self._is_new_pin:
                self._is_new_pin = False
                await self._take_over()
            if monotonic() - looked_s > LOOK_S:
                looked_s = monotonic()
                await self._ensure()
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._woken.wait()
            self._woken.clear()
            await asyncio.sleep(PAUSE_S)  # statuses that come at once must not make a busy loop

    def _beat(self) -> None:
        """Give a sign of life."""
        now_s = monotonic()
        if self._pin and now_s - self._beat_s > STALLED_S:
            log.warning("replica: %s: the process stood still for %.1f s", self.about, now_s - self._beat_s)
            self._lose_pin()
        self._beat_s = now_s
        if self._pin:
            for reply in self._listener.replies():
                self._write(b"PUB %b 4\r\n+WPI\r\n" % reply)
            self._ask(ASKING_S)
            self._listener.wake()
        elif now_s >= self._asked_until_s:
            self._ask(WAITING_S)

    def _ask(self, seconds: float) -> None:
        """Ask for as many changes as there is room for. Without room, the request is only a sign of life."""
        changes, size = self._listener.room()
        request: dict[str, object] = {"group": GROUP, "expires": int(seconds * NS_PER_S)}
        if self._is_too_large:
            request["batch"], self._is_too_large = 1, False
        elif changes > 0 and size > 0:
            request |= {"batch": min(HELD_MAX, changes), "max_bytes": size}
        else:
            request |= {"batch": 1, "max_bytes": 1}
        if self._pin:
            request["id"] = self._pin.decode()
        payload = json.dumps(request).encode()
        self._asked, self._asked_until_s = min(HELD_MAX, changes), monotonic() + seconds
        self._write(b"PUB %b %b.%d %d\r\n%b\r\n" % (self._next, self._inbox, self._pins, len(payload), payload))

    def _ask_more(self) -> None:
        if self._pin and self._asked < self._asked_min and self._listener.room()[0] >= self._asked_min:
            self._ask(ASKING_S)

    async def _take_over(self) -> None:
        """Begin calls, but wait while another instance may still tell changes that it got."""
        pin = self._pin
        answer = await self._replica.api.call(f"CONSUMER.INFO.{self._stream}.{self._name}")
        if int(answer.get("num_ack_pending", 0)) > len(self._listener.replies()):
            await asyncio.sleep(HANDOVER_S)
            self._beat()
        if pin == self._pin:
            self._is_handed_over = True
            self._listener.wake()

    def _lose_pin(self) -> None:
        if self._pin:
            self._lost_pin, self._pin = self._pin, b""
            self._pins += 1
            self._is_new_pin = self._is_handed_over = False
            self._give_back(self._listener.forget())
        self._asked_until_s = 0.0

    def _give_back(self, replies: Iterable[bytes]) -> None:
        for reply in replies:
            self._write(b"PUB %b 4\r\n-NAK\r\n" % reply)

    # Frames.

    def _on_frame(self, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
        headers = headers_of(block)
        delivery = Delivery.of(reply) if subject.startswith(b"$KV.") else None
        if delivery is None:
            self._take_status(subject, block)
            return
        pin = headers.get(b"nats-pin-id", b"")
        if pin == self._lost_pin:
            return  # it was sent before the pin was lost
        if pin != self._pin:
            self._lose_pin()
            self._pin, self._is_new_pin = pin, True
            self._woken.set()
        self._asked -= 1
        names = self._replica.layout.names(subject)
        if names is None:
            self.acknowledge(reply)
        elif is_readable(headers):
            bucket, key = names
            value = None if is_deletion(headers) else payload
            self._listener.take(FeedChange(delivery.sequence, bucket, key, value, _times(reply) > 1, reply))
        self._ask_more()

    def _take_status(self, subject: bytes, block: bytes) -> None:
        _, _, text = block.partition(b"\r\n")[0].lower().partition(b" ")
        if text.startswith(WRONG_PIN) or LEADER_CHANGE in text:
            if subject == b"%b.%d" % (self._inbox, self._pins):  # otherwise, it is about a pin that was lost before
                self._lose_pin()
                self._woken.set()
        elif text.startswith(NOBODY) or DELETED in text:
            self._is_gone = True
            self._woken.set()
        elif TOO_LARGE in text and not self._listener.replies():
            self._is_too_large = True
            self._woken.set()

    def _write(self, frame: bytes) -> None:
        if not self._out:
            self._connection.call_soon(self._flush)
        self._out.append(frame)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out:
            self._connection.write_now(b"".join(out))  # what is lost with the connection, is given again


def _times(reply: bytes) -> int:
    """Return how often a message was delivered."""
    words = reply.split(b".")
    return int(words[-6] if len(words) == 12 else words[-5])
