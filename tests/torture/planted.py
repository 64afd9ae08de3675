"""Bugs of the replicated store that its tests must find. They replace methods, so production code knows nothing of them.

- In the tests of the core, use `with planted("direct get")`.
- `python tests/torture/planted.py "direct get"` runs a provider with this bug.
- `scripts/torture replicated --planted "direct get"` records histories of such providers.
"""

from __future__ import annotations

import json
import sys
from bisect import insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partialmethod
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

from keyvalue_provider.__main__ import main
from keyvalue_replica.answers import Barrier
from keyvalue_replica.applier import Applier
from keyvalue_replica.bucket import ReplicaBucket
from keyvalue_replica.core import Core
from keyvalue_replica.errors import NotStoredError
from keyvalue_replica.layout import headers_of
from keyvalue_replica.outgoing import Outgoing
from keyvalue_replica.position import Position
from keyvalue_replica.promise import Promise
from keyvalue_replica.publications import Publications

__all__ = ["BUGS", "UNANSWERED", "command", "planted"]

#: A class, the name of its method, and a function that takes the method's place. It gets the object and the method.
Replaced: TypeAlias = tuple[type, str, Callable[..., Any]]
#: The numbers of publications, or the sequences of their messages that were stored, as text.
Texts: TypeAlias = Sequence[bytes]
#: Numbers of requests to JetStream. Those of publications are lower.
numbers = count(10**15)


def answer_at_once(publications: Publications, stored: Any, numbers: Texts, sequences: Texts, now_s: float) -> None:
    publications.part_all()
    for number in numbers:
        publication = publications._unacknowledged.get(int(number))
        if publication is not None and not publication.is_barrier:
            publication.succeed()
    stored(publications, numbers, sequences, now_s)


def answer_at_the_same_sequence(publications: Publications, _: Any) -> None:
    acknowledged, position = publications._acknowledged, publications._position
    for sequence, _token, publication in acknowledged:
        if position.is_whole and sequence == position.applied:
            publication.succeed()
    publications._acknowledged = type(acknowledged)(entry for entry in acknowledged if not entry[2].done())


def stay_whole(position: Position, advance: Any, *delivery: int) -> bool:
    was_whole = position.is_whole
    is_next: bool = advance(position, *delivery)
    position.is_whole = position.is_whole or (is_next and was_whole)
    return is_next


def skip_to_own_change(publications: Publications, stored: Any, numbers: Texts, sequences: Texts, now_s: float) -> None:
    """Apply a change when it is acknowledged, although earlier ones have not been delivered."""
    publications.part_all()
    for number, sequence in zip(numbers, sequences, strict=True):
        publication, position = publications._unacknowledged.get(int(number)), publications._position
        if publication is not None and publication.change is not None and position.has_passed(0):
            position.applied = max(position.applied, int(sequence) - 1)
        stored(publications, [number], [sequence], now_s)


def send_again(core: Core, tick: Any) -> None:
    """Publish the changes again that have just been called unknown."""
    before_s = core._outside.now_s() - core.timeout_s
    core.publications.part_all()
    late = [each.change for each in core.publications._unacknowledged.values() if each.began_s <= before_s]
    tick(core)
    for change in late:
        if change is not None:
            handle, key, value = change
            subject = core.layout.subject(handle.name, key)
            core.publish_one(core.delete_message(subject) if value is None else Outgoing(subject, value), None, change)


def end_batch_at_once(applier: Applier, apply_all: Any, messages: Any) -> None:
    apply_all(applier, messages)
    applier.end_batch()


# Bugs that ask JetStream.


def ask(core: Core, subject: bytes, act: Callable[[bytes, bytes], None]) -> None:
    """Send a request, and call `act` with the header block and the payload of the answer, or with none if it is late."""
    number, ends_s = next(numbers), core._outside.now_s() + core.timeout_s
    vars(core).setdefault("asked", {})[number] = ends_s, act
    core._outside.write(b"PUB $JS.API.%b %b%d 0\r\n\r\n" % (subject, core._reply, number))


def take_answer(core: Core, acknowledge: Any, subject: bytes, reply: bytes, block: bytes, payload: bytes) -> None:
    _, act = vars(core).get("asked", {}).pop(int(subject[core._reply_at :]), (0, None))
    if act is None:
        acknowledge(core, subject, reply, block, payload)
    else:
        act(block, payload)


def give_up_asking(core: Core, tick: Any) -> None:
    asked, now_s = vars(core).get("asked", {}), core._outside.now_s()
    for number, (ends_s, act) in list(asked.items()):
        if ends_s <= now_s:
            del asked[number]
            act(b"", b"")
    tick(core)


def get_directly(bucket: ReplicaBucket, get: Any, key: bytes) -> Any:
    core, answer = bucket._core, Promise()

    def take(block: bytes, payload: bytes) -> None:
        headers = headers_of(block)
        if answer.done():
            return
        if not block:
            answer.set_exception(NotStoredError("nothing was read in time"))
        else:
            is_missing = b"status" in headers or b"kv-operation" in headers
            answer.set_result(None if is_missing else payload)

    subject = core.layout.subject(bucket._name, key)
    ask(core, b"DIRECT.GET.%b.%b" % (core.layout.stream.encode(), subject), take)
    return answer


def get_apart(*_: Any) -> None:
    """Let each key be read by a `get` of its own."""


def ask_for_last(core: Core, act: Callable[[int], None]) -> None:
    """Ask the leader, or a former one, for the last sequence of the stream."""
    subject = b"STREAM.INFO.%b" % core.layout.stream.encode()
    ask(core, subject, lambda _, payload: act(int(json.loads(payload or b"{}").get("state", {}).get("last_seq", -1))))


def ask_instead_of_barrier(core: Core, _: Any) -> Barrier:
    publications, publication = core.publications, Barrier(core)
    token = publications.add(publication, core._outside.now_s())

    def take(last: int) -> None:
        if last < 0 or publications._unacknowledged.pop(token, None) is None:
            return
        if core.has_passed(last):
            publication.succeed()
        else:
            insort(publications._acknowledged, (last, token, publication))

    ask_for_last(core, take)
    return publication


def mend_by_asking(core: Core, _: Any) -> None:
    position, gaps = core.position, core.position.gaps

    def take(last: int) -> None:
        vars(core)["is_mending"] = False
        if 0 <= last <= position.applied:
            position.mend(gaps)
            core.release()

    if not (position.is_whole or position.trusts_pending or vars(core).get("is_mending")):
        vars(core)["is_mending"] = True
        ask_for_last(core, take)


ASKING: Sequence[Replaced] = [(Core, "acknowledge", take_answer), (Core, "tick", give_up_asking)]
BUGS: dict[str, Sequence[Replaced]] = {
    "answer before apply": [(Publications, "stored", answer_at_once)],
    "wait for exactly S": [(Publications, "release", answer_at_the_same_sequence)],
    "trust across a gap": [(Position, "advance", stay_whole)],
    "direct get": [(ReplicaBucket, "get", get_directly), (ReplicaBucket, "get_each", get_apart), *ASKING],
    "barrier by INFO": [
        (Core, "barrier", ask_instead_of_barrier),
        (Core, "mend", mend_by_asking),
        *ASKING,
    ],
    "apply out of order": [(Publications, "stored", skip_to_own_change)],
    "send again": [(Core, "tick", send_again)],
    "batch in halves": [(Applier, "apply_all", end_batch_at_once)],
}
#: The bugs that leave calls without an answer. The others make answers wrong.
UNANSWERED = ("wait for exactly S",)


@contextmanager
def planted(bug: str) -> Iterator[None]:
    """Plant a bug in this process."""
    with ExitStack() as stack:
        for owner, name, replacement in BUGS[bug]:
            stack.enter_context(patch.object(owner, name, partialmethod(replacement, getattr(owner, name))))
        yield


def command(bug: str) -> tuple[str | Path, ...]:
    """Return the command that starts a provider with a bug."""
    return sys.executable, "-P", Path(__file__).resolve(), bug


if __name__ == "__main__":
    with planted(sys.argv[1]):
        sys.exit(main([]))
