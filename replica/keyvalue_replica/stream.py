"""The stream of a KV bucket: creates it, checks that it fits, and asks about it, through the JetStream API.

The bucket is an ordinary NATS KV bucket (ADR-8) with two more features: messages that expire (`allow_msg_ttl`, server
2.11) and atomic batches (`allow_atomic`, server 2.12). They are switched on in a bucket that lacks them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from secrets import token_bytes
from typing import Any, Protocol

from keyvalue_replica.errors import NoStreamError, StreamError, UnavailableError
from keyvalue_replica.layout import MARKER_S, Layout
from keyvalue_replica.options import ReplicaOptions

__all__ = [
    "AGE_CHANGED",
    "AWAY",
    "Api",
    "ApiError",
    "Requests",
    "StreamState",
    "consumer_config",
    "create_consumer",
    "mark_stream",
    "open_stream",
    "stream_state",
]

REQUEST_TIMEOUT_S = 2.0
SECRET_BYTES = 16
#: The name of the secret in the stream's metadata.
SECRET = "wrpc-keyvalue-secret"
#: The name of the digest of a snapshot whose import has not finished, also in the metadata.
IMPORT = "wrpc-keyvalue-import"
#: The name of the form of names in the metadata, which is missing for encoded names.
KEYS, PLAIN = "wrpc-keyvalue-keys", "plain"
NO_STREAM = 10059
NO_PEERS = 10005
AGE_CHANGED = "max_age of the stream was changed"
AWAY = "the instance was away for too long"
#: The status of errors that may go away.
UNAVAILABLE = 503
NAME_IN_USE = 10058
#: How long the server keeps the marker of an expired key, for watchers. No message can expire sooner.
EXPIRY_MARKER_S = 1
#: Seconds between two heartbeats of an idle consumer.
HEARTBEAT_S = 0.5
#: Seconds after which the server removes a consumer that nobody reads.
INACTIVE_S = 30
#: Number of requests for a consumer.
CREATE_TRIES = 10
NS_PER_S = 10**9


class Requests(Protocol):
    """The part of a NATS connection that this module uses."""

    async def request(self, subject: str, payload: bytes, timeout_s: float) -> bytes: ...


class ApiError(Exception):
    """JetStream refused a request.

    :ivar code: JetStream's code of the error
    """

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Api:
    """The JetStream API of a server, or of a domain.

    :ivar prefix: the beginning of its subjects, without the last point
    """

    def __init__(self, requests: Requests, domain: str = "") -> None:
        self._requests = requests
        self.prefix = f"$JS.{domain}.API" if domain else "$JS.API"

    async def call(self, name: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call a function of the API.

        :raises ApiError: JetStream refused the call
        :raises UnavailableError: there is no JetStream, or it is not ready, or no answer arrived in time
        :raises StreamError: the answer is malformed
        :raises DisconnectedError: the connection is lost
        """
        subject, payload = f"{self.prefix}.{name}", json.dumps(parameters or {}).encode()
        try:
            answer = json.loads(await self._requests.request(subject, payload, REQUEST_TIMEOUT_S))
        except TimeoutError:
            raise UnavailableError(
                "JetStream does not answer: is it switched on (`nats-server -js`) in this account and domain,"
                f" and may this user publish to {subject}?"
            ) from None
        except ValueError as error:
            raise StreamError(f"JetStream answered with malformed JSON: {error}") from None
        if not isinstance(answer, dict):
            raise StreamError("JetStream answered with JSON that is not an object")
        if "error" in answer:
            refusal = answer["error"]
            code, text = int(refusal.get("err_code", 0)), str(refusal.get("description", "unknown error"))
            if refusal.get("code") == UNAVAILABLE or code == NO_PEERS:
                raise UnavailableError(f"JetStream: {text}")
            raise ApiError(code, text)
        return answer


@dataclass(frozen=True, slots=True)
class StreamState:
    """What the server says about a stream.

    :ivar created: when it was created or restored, as text; another text means another stream
    :ivar keys: number of subjects that have a message
    :ivar size: its size in bytes
    :ivar consumers: number of clients that follow the stream
    :ivar replicas: number of servers that have the stream
    :ivar now_ns: the server's time, in Unix time
    :ivar message_bytes_max: the stream's limit for a message, or None
    :ivar secret: the secret of the order of keys
    :ivar importing: the digest of the snapshot whose import has not finished, or ""
    :ivar allows_ttl: True if messages may expire
    :ivar allows_batches: True if atomic batches are allowed
    :ivar max_age_ns: the age at which messages are removed, or 0
    :ivar is_ours: True if a provider has created the stream, or has adopted it
    """

    created: str
    last_sequence: int
    keys: int
    size: int
    consumers: int
    replicas: int
    now_ns: int
    message_bytes_max: int | None
    secret: bytes
    importing: str
    allows_ttl: bool = True
    allows_batches: bool = True
    max_age_ns: int = 0
    is_ours: bool = False

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> StreamState:
        """Read the answer to STREAM.INFO, CREATE or UPDATE.

        :raises StreamError: a field is missing
        """
        try:
            state, config = answer["state"], answer["config"]
            bytes_max = int(config.get("max_msg_size", -1))
            return cls(
                str(answer["created"]),
                int(state["last_seq"]),
                int(state.get("num_subjects", 0)),
                int(state.get("bytes", 0)),
                int(state.get("consumer_count", 0)),
                int(config.get("num_replicas", 1)),
                unix_ns(str(answer["ts"])),
                bytes_max if bytes_max > 0 else None,
                _secret_of(answer),
                str((config.get("metadata") or {}).get(IMPORT, "")),
                bool(config.get("allow_msg_ttl", False)),
                bool(config.get("allow_atomic", False)),
                int(config.get("max_age", 0)),
                _is_ours(answer),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise StreamError(f"JetStream's answer lacks a field or has another form: {error}") from None

    def why_read_again(self, created: str, applied: int, away_s: float, max_age_ns: int) -> str:
        """Return why an instance can't go on from its position, or "" if it can.

        :param applied: the last sequence that it has applied
        :param away_s: seconds since it last followed the stream, at the server
        """
        if self.created != created:
            return "the stream was created again or restored"
        # With several servers, the leader may not have applied yet what another server has delivered. If messages are
        # really lost, the next barrier gets a sequence that was used before.
        if self.last_sequence < applied and self.replicas == 1:
            return f"the stream ends at message {self.last_sequence}, but {applied} was applied"
        if self.has_lost_deletes(away_s):
            return AWAY
        return AGE_CHANGED if self.max_age_ns != max_age_ns else ""

    def has_lost_deletes(self, away_s: float) -> bool:
        """Return True if deletes that were stored since this time may be gone."""
        kept_s = min(MARKER_S, self.max_age_ns / NS_PER_S or MARKER_S)
        return away_s > kept_s / 2


async def open_stream(api: Api, layout: Layout, options: ReplicaOptions, importing: str = "") -> StreamState:
    """Open the KV bucket, or create it. Several instances may do so at once.

    :param importing: the digest of the snapshot that is to be imported, which marks a bucket that is created
    :raises NoStreamError: the bucket is missing and may not be created
    :raises StreamError: the bucket does not fit, the server is too old, or the import of another snapshot has not finished
    :raises UnavailableError: JetStream is not ready
    """
    try:
        answer = await api.call(f"STREAM.INFO.{layout.stream}")
    except ApiError as error:
        if error.code != NO_STREAM:
            raise StreamError(f"{layout.stream}: {error}") from None
        if not options.creates:
            allowing = "jetstream_create" if layout.bucket is None else "enable_bucket_auto_create"
            raise NoStreamError(f"the KV bucket {options.bucket} does not exist, and {allowing} is false") from None
        answer = await _create(api, layout, options, importing)
    state = _fitting(answer, layout, options, importing)
    if layout.bucket is not None and not (options.adopts or _is_ours(answer)):
        return state
    if not _lacking(answer, layout, options):
        return state
    # Read it again just before the change: an import may have begun, and a change would remove its mark and its secret.
    try:
        answer = await api.call(f"STREAM.INFO.{layout.stream}")
    except ApiError as error:
        raise StreamError(f"{layout.stream}: {error}") from None
    _fitting(answer, layout, options, importing)
    return StreamState.of(await _switch_on(api, answer, layout, options))


def _fitting(answer: dict[str, Any], layout: Layout, options: ReplicaOptions, importing: str) -> StreamState:
    """Return the state of a stream.

    :raises StreamError: it does not fit, or the import of another snapshot has not finished
    """
    misfits = list(_misfits(answer["config"], layout))
    if misfits:
        raise StreamError(f"the stream {layout.stream} does not fit: {'; '.join(misfits)}")
    state = StreamState.of(answer)
    if state.importing not in ("", importing):
        raise StreamError(unfinished(options.bucket))
    return state


def unfinished(bucket: str) -> str:
    """Return the error of a bucket that holds a part of a snapshot."""
    return (
        f"the KV bucket {bucket} holds a part of a snapshot: finish it with `keyvalue-inmemory import-snapshot`"
        " and the same file, or delete the bucket"
    )


async def mark_stream(api: Api, layout: Layout, importing: str, secret: bytes | None = None) -> None:
    """Note in the stream's metadata that the import of a snapshot has begun, or, with "", that it has finished.

    :param secret: the new secret of the order of keys; None to keep the old one
    :raises StreamError: JetStream refuses it
    :raises UnavailableError: JetStream is not ready
    """
    try:
        config = (await api.call(f"STREAM.INFO.{layout.stream}"))["config"]
        metadata = {**(config.get("metadata") or {}), IMPORT: importing}
        if not importing:
            del metadata[IMPORT]
        if secret is not None:
            metadata[SECRET] = secret.hex()
        await api.call(f"STREAM.UPDATE.{layout.stream}", {**config, "metadata": metadata})
    except ApiError as error:
        raise StreamError(f"{layout.stream}: {error}") from None


async def stream_state(api: Api, layout: Layout) -> StreamState | None:
    """Return the state of the stream, or None if it is gone.

    :raises StreamError: JetStream refuses to answer
    :raises UnavailableError: JetStream is not ready
    """
    try:
        return StreamState.of(await api.call(f"STREAM.INFO.{layout.stream}"))
    except ApiError as error:
        if error.code == NO_STREAM:
            return None
        raise StreamError(f"{layout.stream}: {error}") from None


def consumer_config(name: str, layout: Layout, begin: int | None) -> dict[str, Any]:
    """Return the configuration of a consumer that an instance follows.

    :param begin: the sequence to begin with; None for the newest message of each key, and then all that follow
    """
    config: dict[str, Any] = {
        "name": name,
        "ack_policy": "none",
        "filter_subject": layout.subjects,
        "idle_heartbeat": int(HEARTBEAT_S * NS_PER_S),
        "flow_control": True,
        "inactive_threshold": INACTIVE_S * NS_PER_S,
        "mem_storage": True,
        "num_replicas": 1,
        "max_deliver": 1,
    }
    if begin is None:
        return config | {"deliver_policy": "last_per_subject"}
    return config | {"deliver_policy": "by_start_sequence", "opt_start_seq": begin}


async def create_consumer(api: Api, layout: Layout, config: dict[str, Any]) -> int:
    """Create a consumer. Return the number of messages that it had to deliver when it was created.

    The server first finds the last message of each key. For a million keys, that takes 1 s, or 3 s if it is busy. So the
    request is repeated for the same consumer: another one would take as long.

    :raises UnavailableError: there is no answer
    :raises ApiError: JetStream refuses it
    """
    name = f"CONSUMER.CREATE.{layout.stream}.{config['name']}.{layout.subjects}"
    request = {"stream_name": layout.stream, "config": config}
    for _ in range(CREATE_TRIES - 1):
        with suppress(UnavailableError):
            return _first_pending(await api.call(name, request))
    return _first_pending(await api.call(name, request))


def _first_pending(answer: Mapping[str, Any]) -> int:
    """Add what the consumer has delivered since, which may be on its way."""
    return int(answer.get("num_pending", 0)) + int((answer.get("delivered") or {}).get("consumer_seq", 0))


async def _create(api: Api, layout: Layout, options: ReplicaOptions, importing: str) -> dict[str, Any]:
    secret = options.secret or token_bytes(SECRET_BYTES)
    config = {
        "name": layout.stream,
        "subjects": [layout.subjects],
        "description": "keys and values of wrpc:keyvalue",
        "retention": "limits",
        "storage": options.storage,
        "num_replicas": options.replicas,
        "max_msgs_per_subject": options.history,
        "max_bytes": -1 if options.bytes_max is None else options.bytes_max,
        "discard": "new",
        "allow_direct": True,
        "allow_rollup_hdrs": True,
        "deny_delete": True,
        "metadata": {SECRET: secret.hex()} | _mark(layout) | ({IMPORT: importing} if importing else {}),
        **_features(options),
    }
    try:
        return await api.call(f"STREAM.CREATE.{layout.stream}", config)
    except ApiError as error:
        if error.code != NAME_IN_USE:
            raise StreamError(f"the KV bucket {options.bucket} could not be created: {error}") from None
    try:
        return await api.call(f"STREAM.INFO.{layout.stream}")  # another instance was faster
    except ApiError as error:
        raise StreamError(f"{layout.stream}: {error}") from None


def _mark(layout: Layout) -> dict[str, str]:
    return {} if layout.bucket is None else {KEYS: PLAIN}


def _is_ours(answer: Mapping[str, Any]) -> bool:
    """Return True if a provider has created a stream, or has adopted it."""
    return bool((answer["config"].get("metadata") or {}).get(SECRET))


def _features(options: ReplicaOptions) -> dict[str, Any]:
    features: dict[str, Any] = {
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        "subject_delete_marker_ttl": EXPIRY_MARKER_S * NS_PER_S,
    }
    if options.is_atomic:
        features["allow_atomic"] = True
    return features


def _misfits(config: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return what keeps a stream from being our store: what was found, and what is needed."""
    found = [
        ("subjects", config.get("subjects"), [layout.subjects]),
        ("retention", config.get("retention", "limits"), "limits"),
        ("max_age", config.get("max_age", 0) if layout.bucket is None else 0, 0),
        ("discard", config.get("discard", "old"), "new"),
        ("sealed", config.get("sealed", False), False),
        ("mirror", (config.get("mirror") or {}).get("name"), None),
        ("sources", config.get("sources") or [], []),
        ("subject_transform", config.get("subject_transform"), None),
    ]
    misfits = [
        f"{name} is {json.dumps(value)}, needed {json.dumps(needed)}"
        for name, value, needed in found
        if value != needed
    ]
    if int(config.get("max_msgs_per_subject", -1)) < 1:
        misfits.append("max_msgs_per_subject has no limit, needed 1 to 64 (a KV bucket's history)")
    metadata = config.get("metadata") or {}
    if layout.bucket is None:
        if metadata.get(KEYS) == PLAIN:
            misfits.append("it holds plain names, needed encoded ones (keys)")
    elif metadata.get(SECRET) and metadata.get(KEYS) != PLAIN:
        misfits.append("it holds encoded names, needed plain ones (keys)")
    elif not config.get("allow_rollup_hdrs", False):
        misfits.append("allow_rollup_hdrs is false, needed true, as every KV bucket has it")
    return misfits


def _lacking(answer: dict[str, Any], layout: Layout, options: ReplicaOptions) -> dict[str, Any]:
    """Return what the store needs and a stream lacks, with the secret if it has none.

    :raises StreamError: the stream lacks something, and the instance may not change it
    """
    config = answer["config"]
    lacking = {name: value for name, value in _features(options).items() if not config.get(name)}
    may_change = options.creates or layout.bucket is not None
    if lacking and not may_change:
        raise StreamError(f"{layout.stream} lacks {', '.join(lacking)}, and jetstream_create is false")
    metadata = config.get("metadata") or {}
    if may_change and not metadata.get(SECRET):  # keep it, because a restored stream has another time of creation
        lacking["metadata"] = {**metadata, SECRET: _secret_of(answer).hex()} | _mark(layout)
    return lacking


async def _switch_on(api: Api, answer: dict[str, Any], layout: Layout, options: ReplicaOptions) -> dict[str, Any]:
    """Switch on what the store needs, and keep the secret. Return the stream's information afterwards.

    :raises StreamError: the server does not know a feature, or refuses it
    """
    lacking = _lacking(answer, layout, options)
    if not lacking:
        return answer
    try:
        answer = await api.call(f"STREAM.UPDATE.{layout.stream}", {**answer["config"], **lacking})
    except ApiError as error:
        raise StreamError(f"{', '.join(lacking)} can't be changed in {layout.stream}: {error}") from None
    missing = [name for name in lacking if not answer["config"].get(name)]
    if missing:
        version = "2.12" if options.is_atomic else "2.11"
        hint = ", or batch=pipelined with 2.11" if options.is_atomic else ""
        raise StreamError(f"the NATS server does not support {', '.join(missing)}: needed is version {version}{hint}")
    return answer


def _secret_of(answer: Mapping[str, Any]) -> bytes:
    """Return the secret in the metadata. A bucket that others created has none: use its time of creation."""
    text = (answer["config"].get("metadata") or {}).get(SECRET, "")
    if text:
        try:
            secret = bytes.fromhex(text)
        except ValueError:
            secret = b""
        if len(secret) != SECRET_BYTES:
            raise StreamError(f"the metadata field {SECRET} is not {SECRET_BYTES} bytes in hexadecimal")
        return secret
    return sha256(f"{answer['config']['name']} {answer['created']}".encode()).digest()[:SECRET_BYTES]


def unix_ns(text: str) -> int:
    """Read a time of the JetStream API, in nanoseconds of Unix time.

    >>> unix_ns("2026-01-02T03:04:05.123456789Z")
    1767323045123456789
    """
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = int(datetime.fromisoformat(f"{whole}+00:00").timestamp())
    return seconds * NS_PER_S + int(f"{fraction:0<9}"[:9])
