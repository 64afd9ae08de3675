"""A session: what one connection has chosen, its requests, and their answers in order. It does no I/O.

    requests ──> queue ──> command ──┬─ bytes ──────────────────────────> output
                                     └─ Awaited: a slot, until it is done ──┘   in the order of the requests

With the store in memory, every answer comes at once except those of KEYS, RANDOMKEY and FLUSHDB, and of writes while
the user's quota is counted. The replicated store answers later. A client that sends several requests at once expects
that each sees the effect of those before it. The store keeps the order of writes, and a read sees all writes before it.
So a request waits only in these cases:

    a write or an update    after a read that has no answer yet
    a read or a write       after an update that has no answer yet
    a walk, MSETNX, or a    after anything, and everything after it
    change of the session
    anything                after an answer that needs a task: a bucket that is not served yet, or a quota that is counted

Answers that came before those in front of them wait in their slots, and count as output. While the output is full, an
answer that comes is not encoded. If it is a read, its result is dropped, and the read is made again when there is room.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from keyvalue_transport.keyvalue.errors import (
    AccessDeniedError,
    InterfaceError,
    NoSuchStoreError,
    OtherError,
)
from keyvalue_transport.keyvalue.outcomes import ACCESS_DENIED, FAILED, NO_SUCH_STORE, NONE, OK, OTHER, Tally
from keyvalue_transport.redis.answers import NIL, NIL_3, CommandError, error
from keyvalue_transport.redis.effects import AFTER, Awaited, Effect
from keyvalue_transport.redis.requests import Request
from keyvalue_transport.redis.revisions import revision_bytes
from keyvalue_transport.redis.surroundings import Surroundings, User
from keyvalue_transport.wrpc.handler import ANONYMOUS, Again, Derived

__all__ = ["UNKNOWN", "Command", "Commands", "RedisSession"]

#: A session stops when its answers have this size, until they are written.
OUTPUT_BYTES_MAX = 1024 * 1024
#: A session stops when this many answers are missing.
SLOTS_MAX = 1024
#: So it does when the requests without an answer take this much memory. Then answers come one by one.
SLOT_BYTES_MAX = 1024 * 1024
#: The name under which unknown commands are counted.
UNKNOWN = "unknown"
NOAUTH = "NOAUTH Authentication required."
LOADING = "LOADING the store is loading its keys"


#: The memory of a request without an answer, and of each key or option of it, besides their bytes. Measured with 1 and 100
#: keys, by the growth of the process: 1.0 to 1.4 kB, and 3.1 kB for a key of DEL, a change of its own, 0.1 kB for one of MGET.
REQUEST_BYTES, READ_PART_BYTES, WRITE_PART_BYTES, OTHER_PART_BYTES = 1024, 128, 512, 3072


@dataclass(frozen=True, slots=True)
class Command:
    """A command. It is no tuple, because a tuple's fields take four times as long to read.

    :ivar parts_min: least number of parts of a request, with the name
    :ivar kind: its effect; a function of the request if that depends on the options
    :ivar is_always: True if it works while the store loads; its function checks the password, if it needs one
    :ivar is_readonly: True if it changes no key, so that nobody needs its effect once its client has gone
    """

    name: str
    function: Callable[[RedisSession, Request], bytes | Awaited]
    parts_min: int
    parts_max: int
    kind: Effect | Callable[[Request], Effect]
    is_always: bool
    is_readonly: bool
    tally: Tally

    def effect(self, request: Request) -> Effect:
        """Return the effect of a request."""
        return self.kind if isinstance(self.kind, Effect) else self.kind(request)


#: The commands by name, in upper and lower case.
Commands: TypeAlias = Mapping[bytes, Command]


class Slot:
    """The place of an answer in the output.

    :ivar task: a task that only this answer needs
    :ivar resume: makes the answer, which came while the output was full
    :ivar held_bytes: the memory that counts until the answer is made
    :ivar kept_bytes: the size of the result that `resume` keeps
    """

    __slots__ = ("answer", "command", "effect", "held_bytes", "kept_bytes", "request", "resume", "task")

    def __init__(self, command: Command, effect: Effect, request: Request, answer: bytes | None = None) -> None:
        self.command = command
        self.effect = effect
        self.request = request if effect is Effect.READ else None  # it may be made again
        self.answer = answer
        self.task: Any = None
        self.resume: Callable[[], None] | None = None
        self.held_bytes = self.kept_bytes = 0


class RedisSession:
    """One connection's session.

    :param on_output: called when there is output although no request has arrived
    :ivar queue: the requests that wait
    :ivar out: the answers that were not written yet
    :ivar ends: True if the connection must be closed once the output is written
    :ivar is_between: True if no part of a request has arrived that is not complete
    :ivar is_free: True if also no request waits, and the client may use the store
    :ivar get: the command GET; `set` is SET
    """

    __slots__ = (
        *("account", "bucket", "caller", "database", "ends", "library", "name", "nil", "number", "out", "out_bytes"),
        *("queue", "calls", "get", "is_between", "is_free", "resp", "set", "surroundings"),
        *("_commands", "_is_closed", "_is_gated", "_late_bytes", "_on_output", "_slots", "_stuck", "_unanswered"),
        *("_counted_bytes", "_slot_bytes", "_waiting_bytes", "kept_bytes"),
    )

    def __init__(
        self, surroundings: Surroundings, commands: Commands, number: int, on_output: Callable[[], None]
    ) -> None:
        self.surroundings = surroundings
        self.calls = surroundings.calls
        self.number = number
        self.ends = False
        self.out: list[bytes] = []
        self.out_bytes = 0
        self._commands = commands
        self.get, self.set = commands[b"GET"], commands[b"SET"]
        self._on_output = on_output
        self.queue: deque[Request] = deque()
        self._slots: deque[Slot] = deque()
        self._unanswered: Counter[Effect] = Counter()
        self._slot_bytes = 0  # of the requests that have no answer yet
        self._counted_bytes = 0  # what `in_flight` counts of these; one change for many requests costs less
        self._waiting_bytes = 0  # of the answers in slots
        self.kept_bytes = 0  # of the results of updates whose answers wait for room
        self._late_bytes = 0  # of the last answer that came later
        self._stuck = 0  # answers that have come, but wait for room
        self._is_closed = False
        self.is_between = self.is_free = False
        self.library = {"LIB-NAME": b"", "LIB-VER": b""}
        self.reset()

    def reset(self) -> None:
        """Forget what the client has chosen."""
        self.name = b""
        self.resp = 2
        self.nil = NIL
        self.select(0)
        self.log_in(self.surroundings.anonymous())

    def log_in(self, account: User | None) -> None:
        """Act as an account from now on, or as nobody."""
        self.count()
        self.account = account
        self.caller = ANONYMOUS if account is None else account.caller
        self._is_gated = True
        self.is_free = False

    def select(self, database: int) -> bool:
        """Use a database. Return False if there is none."""
        bucket = self.surroundings.bucket(database)
        if bucket is None:
            return False
        self.bucket, self.database = bucket, database
        return True

    def speak(self, resp: int) -> None:
        """Use a version of the protocol."""
        self.resp = resp
        self.nil = NIL if resp == 2 else NIL_3

    @property
    def unanswered(self) -> int:
        """The number of requests that were begun and have no answer yet."""
        return len(self._slots)

    @property
    def held_bytes(self) -> int:
        """The size of the answers that were not written yet."""
        return self.out_bytes + self._waiting_bytes

    @property
    def waits(self) -> bool:
        """True if requests or answers wait until the output is written, or until other answers have come."""
        return bool(self.queue or self._stuck)

    def take_output(self) -> bytes:
        """Return the answers that were not written yet."""
        out = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        self.out_bytes = 0
        return out

    @property
    def may_run(self) -> bool:
        """True if the next request may start at once, without a check. A part of another one may have arrived."""
        return not (self._is_gated or self.ends or self.queue or self._slots)

    def give(self, answers: bytes) -> None:
        """Give answers to the output, while no answer is missing."""
        self.out.append(answers)
        self.out_bytes += len(answers)

    def receive(self, requests: Sequence[Request]) -> None:
        """Execute requests, as far as possible."""
        if self.is_free:
            done = self._execute(requests)
            if done == len(requests):
                return
            requests = requests[done:]
        self.queue.extend(requests)
        self.go_on()

    def _execute(self, requests: Sequence[Request]) -> int:
        """Do the work of `go_on` while the session is free, but faster. Return the number of requests that are done."""
        out, commands = self.out, self._commands
        done, size = 0, self.out_bytes
        for request in requests:
            if not request or size >= OUTPUT_BYTES_MAX:
                break
            command = commands.get(request[0]) or self._find(request)
            if not command.parts_min <= len(request) <= command.parts_max:
                break
            done += 1
            try:
                answer = command.function(self, request)
            except Exception as failure:
                answer = self.refuse(command, failure)
            else:
                if type(answer) is not bytes:
                    self.give_later(command, command.effect(request), request, answer)  # type: ignore[arg-type] # an Awaited
                    break
                command.tally[NONE if answer is self.nil else OK] += 1
            out.append(answer)
            size += len(answer)
            if not self.is_free or self.ends:
                break
        self.out_bytes = size
        return done

    def go_on(self) -> None:
        """Execute requests that wait, until one must go on waiting, or the output is full."""
        if self._stuck:
            self._resume()
        queue, slots, out, commands = self.queue, self._slots, self.out, self._commands
        size = 0
        while queue and self.out_bytes + self._waiting_bytes + size < OUTPUT_BYTES_MAX and not self.ends:
            if slots and not self._may_start(queue[0]):
                break
            request = queue.popleft()
            if not request:
                continue
            command = commands.get(request[0]) or self._find(request)
            try:
                if not command.parts_min <= len(request) <= command.parts_max:
                    raise CommandError(f"ERR wrong number of arguments for '{command.name}' command")
                if self._is_gated and not command.is_always:
                    self._check_gate()
                answer = command.function(self, request)
            except Exception as failure:
                answer = self.refuse(command, failure)
            else:
                if type(answer) is not bytes:
                    self.give_later(command, command.effect(request), request, answer)  # type: ignore[arg-type] # an Awaited
                    continue
                command.tally[NONE if answer is self.nil else OK] += 1
            if slots:
                slots.append(Slot(command, Effect.LOCAL, request, answer))
                self._waiting_bytes += len(answer)
            else:
                out.append(answer)
                size += len(answer)
        self.out_bytes += size
        if self.ends:
            queue.clear()
        self.settle()

    def settle(self) -> None:
        """Find out if the session is free. Call this only if the output is empty, or is written next."""
        self.is_free = self.is_between and self.may_run
        self.count()

    def count(self) -> None:
        """Count the memory of the requests without an answer, which has changed."""
        change = self._slot_bytes - self._counted_bytes
        if change:
            in_flight, self._counted_bytes = self.surroundings.in_flight, self._slot_bytes
            (in_flight.begin if change > 0 else in_flight.end)(self.caller, abs(change))

    def close(self) -> None:
        """End the session, because its connection is closed. Cancel tasks that only read. Writes go on, and count until their end."""
        self._is_closed = True
        self.is_free = False
        self.queue.clear()
        for slot in self._slots:
            if slot.task is not None and slot.command.is_readonly:
                slot.task.cancel()
            if slot.resume is not None:
                self._slot_bytes -= slot.held_bytes
        self._slots.clear()
        self.count()

    def _find(self, request: Request) -> Command:
        return self._commands.get(request[0].upper()) or self._commands[b""]

    def _may_start(self, request: Request) -> bool:
        if self._stuck or len(self._slots) >= SLOTS_MAX or self._slot_bytes >= SLOT_BYTES_MAX:
            return False
        if not request:
            return True
        command = self._commands.get(request[0]) or self._find(request)
        return AFTER[command.effect(request)].issuperset(self._unanswered)

    def check_password(self) -> None:
        """Refuse a command if the client must give a password first."""
        if self.account is None:
            raise CommandError(NOAUTH)

    def _check_gate(self) -> None:
        """Refuse a command if the client must give a password first, the store loads its keys, or too much is in flight.

        Only a store that loads again answers later, so only there each command is checked.
        """
        self.check_password()
        if self.surroundings.is_loading:
            raise CommandError(LOADING)
        self._is_gated = self.surroundings.loads_again
        in_flight = self.surroundings.in_flight
        if in_flight.is_full(self.caller):
            raise CommandError(f"TRYAGAIN {in_flight.why_full}")

    def refuse(self, command: Command, failure: Exception) -> bytes:
        """Return the answer for an error, and count it."""
        tally = command.tally
        if isinstance(failure, CommandError):
            tally[OTHER] += 1
            return error(str(failure))
        if isinstance(failure, AccessDeniedError):
            tally[ACCESS_DENIED] += 1
            return error("NOPERM this user has no permissions to run the command on this database")
        if isinstance(failure, NoSuchStoreError):
            tally[NO_SUCH_STORE] += 1
            return error("ERR no such bucket")
        if isinstance(failure, InterfaceError):
            tally[OTHER] += 1
            return error(f"{'OOM' if isinstance(failure, OtherError) and failure.is_full else 'ERR'} {failure}")
        tally[FAILED] += 1
        self.surroundings.failed(failure)
        return error("ERR internal error")

    def give_later(self, command: Command, effect: Effect, request: Request, later: Awaited) -> bytes:
        """Give an answer to the output when it comes. Return nothing."""
        slot = Slot(command, effect, request)
        other = WRITE_PART_BYTES if effect is Effect.WRITE else OTHER_PART_BYTES
        part_bytes = READ_PART_BYTES if effect is Effect.READ else other  # a dict would call the slow hash of Effect
        slot.held_bytes = REQUEST_BYTES + sum(map(len, request)) + part_bytes * (len(request) - 1)
        self._slot_bytes += slot.held_bytes
        if not self._is_gated:
            self.count()
        self.is_free = False
        self._slots.append(slot)
        self._unanswered[effect] += 1
        self._await(slot, later)
        return b""

    def _await(self, slot: Slot, later: Awaited) -> None:
        source, encode = later
        derive: Callable[[Callable[[], Any]], Any] | None = None
        if isinstance(source, Derived):
            derive, source = source.derive, source.source
        elif isinstance(source, Again):
            derive, source = _ignore, source.source  # the call that is made again raises the error of its barrier
        if not hasattr(source, "add_done_callback"):
            source = slot.task = self.surroundings.start_task(source)
            if slot.effect is not Effect.ALONE:  # the store keeps no order between a task and other calls
                self._forget(slot.effect)
                slot.effect = Effect.ALONE
                self._unanswered[Effect.ALONE] += 1
        source.add_done_callback(partial(self._done, slot, derive, encode))

    def _done(
        self,
        slot: Slot,
        derive: Callable[[Callable[[], Any]], Any] | None,
        encode: Callable[[Any], bytes | Awaited],
        source: Any,
    ) -> None:
        """Encode an answer that has come, if there is room."""
        if self._is_closed:
            if source is slot.task and not source.cancelled():
                source.exception()  # asyncio logs an error that nobody has asked for
            self._slot_bytes -= slot.held_bytes
            self.count()
            return
        if self._has_room(slot):
            self._make(slot, lambda: encode(source.result() if derive is None else derive(source.result)))
            return
        if slot.task is not None:
            slot.task.exception()  # as above, if the connection is closed before there is room
            slot.task = None
        if slot.request is None:
            slot.resume = partial(self._done, slot, derive, encode, source)
            slot.kept_bytes = revision_bytes(source)
            self.kept_bytes += slot.kept_bytes
        else:
            slot.resume = partial(self._make, slot, partial(slot.command.function, self, slot.request))
        self._stuck += 1
        self._on_output()

    def _has_room(self, slot: Slot, expected_bytes: int = 0) -> bool:
        """Return True if the answer of a slot may be made. The first one needs only room in the output itself."""
        if self.held_bytes + expected_bytes < OUTPUT_BYTES_MAX:
            return True
        return slot is self._slots[0] and self.out_bytes < OUTPUT_BYTES_MAX

    def _resume(self) -> None:
        """Make the first answers that wait for room, about as many as there is room for."""
        expected_bytes = 0
        for slot in [*self._slots]:
            if slot.answer is not None:
                continue
            if slot.resume is None or not self._has_room(slot, expected_bytes):
                break
            resume, slot.resume = slot.resume, None
            self._stuck -= 1
            self.kept_bytes -= slot.kept_bytes
            slot.kept_bytes = 0
            resume()
            if slot.answer is None:
                expected_bytes += self._late_bytes

    def _make(self, slot: Slot, make: Callable[[], bytes | Awaited]) -> None:
        """Make an answer. Give the answers that are complete to the output."""
        try:
            answer = make()
        except Exception as failure:
            answer = self.refuse(slot.command, failure)
        else:
            if isinstance(answer, Awaited):
                self._await(slot, answer)
                return
            slot.command.tally[NONE if answer is self.nil else OK] += 1
        self._slot_bytes -= slot.held_bytes
        slot.answer = answer
        self._late_bytes = len(answer)
        self._waiting_bytes += self._late_bytes
        self._forget(slot.effect)
        slots = self._slots
        while slots and (ready := slots[0].answer) is not None:
            slots.popleft()
            self.out.append(ready)
            self.out_bytes += len(ready)
            self._waiting_bytes -= len(ready)
        self._on_output()

    def _forget(self, effect: Effect) -> None:
        """Count one request less that has no answer."""
        self._unanswered[effect] -= 1
        if not self._unanswered[effect]:
            del self._unanswered[effect]


def _ignore(read: Callable[[], object]) -> None:
    """Ignore a result or an error."""
