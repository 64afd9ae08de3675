"""The surroundings of a session: the store's calls, the accounts, and the other connections."""

from __future__ import annotations

from collections.abc import Awaitable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from keyvalue_transport.keyvalue.interface import ParameterLimits
from keyvalue_transport.keyvalue.store import ReadsTogether
from keyvalue_transport.redis.revisions import Entry, Revise
from keyvalue_transport.wrpc.handler import Answer, Caller

__all__ = ["Calls", "Client", "MemoryInFlight", "Surroundings", "User"]


class Calls(ReadsTogether, Protocol):
    """The calls of the service. Each may return an awaitable, and may raise an InterfaceError.

    A revision is a pair of entries: before and after.
    """

    @property
    def parameter_limits(self) -> ParameterLimits: ...

    def get(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bytes | None]: ...

    def set(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, /) -> Answer[None]: ...

    def set_at_once(self, caller: Caller, bucket: bytes, entries: Iterable[tuple[bytes, bytes]], /) -> bool:
        """Store entries in turn, as `set` does. Return False if the store does not answer at once; nothing is stored.

        An entry that is refused raises its error, and is the last one that is taken from `entries`.
        """

    def set_for(self, caller: Caller, bucket: bytes, key: bytes, value: bytes, ttl_ms: int, /) -> Answer[None]: ...

    def exists(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[bool]: ...

    def entry(self, caller: Caller, bucket: bytes, key: bytes, /) -> Answer[Entry | None]: ...

    def update(
        self, caller: Caller, bucket: bytes, key: bytes, revise: Revise, /
    ) -> Answer[tuple[Entry | None, Entry | None]]: ...

    def remove(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[int]: ...

    def get_many(self, caller: Caller, bucket: bytes, keys: list[bytes], /) -> Answer[list[bytes | None]]: ...

    def set_many(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[None]: ...

    def set_missing(self, caller: Caller, bucket: bytes, entries: dict[bytes, bytes], /) -> Answer[bool]: ...

    def page(
        self, caller: Caller, bucket: bytes, cursor: int, keys_max: int, bytes_max: int, /
    ) -> Answer[tuple[Sequence[bytes], int | None]]:
        """Return a page of keys, which may be empty, and the cursor of the next one. One key may be larger than the limit."""

    def count_keys(self, caller: Caller, bucket: bytes, /) -> Answer[int]: ...

    def now_ns(self) -> int:
        """Return the time of the store's clock."""

    def entry_bytes(self, key: bytes, entry: Entry, /) -> int:
        """Return the memory that an entry takes."""


class User(NamedTuple):
    """A user: its name, and the caller as whom it calls the service."""

    name: str
    caller: Caller
    is_restricted: bool = False


class Client(Protocol):
    """A connection, as CLIENT LIST shows it."""

    @property
    def number(self) -> int: ...

    @property
    def user(self) -> str: ...

    def describe(self) -> dict[str, object]: ...

    def kill(self) -> None: ...


class MemoryInFlight(Protocol):
    """The memory of the requests that wait for the store, together with that of calls over NATS (wrpc/in_flight.py)."""

    def is_full(self, holder: Hashable, /) -> bool: ...

    def begin(self, holder: Hashable, held_bytes: int, /) -> None: ...

    def end(self, holder: Hashable, held_bytes: int, /) -> None: ...

    @property
    def why_full(self) -> str: ...


class Surroundings(Protocol):
    """The parts of the provider that each session needs."""

    @property
    def in_flight(self) -> MemoryInFlight: ...

    @property
    def calls(self) -> Calls: ...

    @property
    def may_flush(self) -> bool: ...

    @property
    def loads_again(self) -> bool:
        """False if `is_loading` stays False once it is."""

    @property
    def is_loading(self) -> bool: ...

    def account(self, user: str, password: bytes) -> User | None:
        """Return the account with this name and password."""

    def anonymous(self) -> User | None:
        """Return the account of a client that gives no password, or None if it must give one."""

    def bucket(self, database: int) -> bytes | None:
        """Return the bucket of a database, or None."""

    def clients(self) -> list[Client]:
        """Return all connections."""

    def information(self, account: User | None) -> Mapping[str, Mapping[str, object]]:
        """Return the sections of INFO."""

    def settings(self) -> Mapping[str, str]:
        """Return the parameters of CONFIG GET."""

    def unix_offset_ns(self) -> int:
        """Return the Unix time at which the store's clock was 0. It changes only if one of the clocks is adjusted."""

    async def pause(self) -> None:
        """Let other connections have a turn."""

    def start_task(self, work: Awaitable[object]) -> Any:
        """Start a coroutine. Return its task."""

    def count_foreign(self) -> None:
        """Count a connection that was closed because it speaks HTTP."""

    def failed(self, error: Exception) -> None:
        """Record an internal error."""
