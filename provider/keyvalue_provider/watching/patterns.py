r"""The patterns in a watching link, and the observers that report a bucket's changes to watchers.

    pattern                             reports
    SET@key         DEL@key             writes or deletions of this key, in every bucket; expiry counts as a deletion
    SET@text*       DEL@text*           writes or deletions of keys that begin with the text; `*` alone means all keys
    SET@bucket/key  DEL@bucket/text*    writes or deletions in this bucket only

Patterns are separated by commas, and white space around a pattern is ignored. A backslash makes the next character
literal, so a pattern can name any bucket and key: `\,` `\/` `\*` `\\`, and `\ ` for a space at either end. A key must
not be empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from keyvalue_engine import PERSIST, SET, Change, Entry, Observer, ObserverOf
from keyvalue_provider.config.options import OptionError, WatchingLinkOptions
from keyvalue_provider.watching.queue import WatchQueue

__all__ = ["PATTERNS_MAX", "Pattern", "Watch", "observers"]

#: The value of the option `watch_bucket` that stands for the bucket's own name.
OWN_NAME = b"{bucket}"
#: Maximum number of patterns in one link. A limit is needed because each write to a watched bucket compares
#: its key with every prefix.
PATTERNS_MAX = 256


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern. `repr` shows no keys or bucket names.

    :param deletes: True for deletions, False for writes
    :param bucket: the bucket to watch; None for every bucket
    :param is_prefix: True for all keys that begin with `key`
    """

    deletes: bool
    bucket: bytes | None = field(repr=False)
    key: bytes = field(repr=False)
    is_prefix: bool


@dataclass(frozen=True, slots=True)
class Watch:
    """The parsed options of a watching link.

    :param bucket_argument: the bucket argument in calls to the component; None for the bucket's own name
    """

    patterns: tuple[Pattern, ...]
    bucket_argument: bytes | None = field(repr=False)

    @classmethod
    def of(cls, options: WatchingLinkOptions) -> Watch | None:
        """Parse the options of a link. Return None if the option `watch` is not set.

        :raises OptionError: a pattern is malformed
        """
        if options.watch is None:
            return None
        argument = options.watch_bucket
        return cls(_patterns(options.watch), None if argument == OWN_NAME else argument)

    def matches(self, bucket: bytes, key: bytes, deletes: bool) -> bool:
        """Return True if a pattern reports this change. O(patterns)."""
        return any(
            pattern.deletes is deletes
            and pattern.bucket in (None, bucket)
            and (key.startswith(pattern.key) if pattern.is_prefix else key == pattern.key)
            for pattern in self.patterns
        )


def _patterns(text: str) -> tuple[Pattern, ...]:
    parts: list[list[str]] = [[]]
    characters = iter(text)
    for character in characters:
        if character == ",":
            parts.append([])
        elif character == "\\":
            parts[-1].append(character + next(characters, ""))
        else:
            parts[-1].append(character)
    if len(parts) > PATTERNS_MAX:
        raise OptionError(f"watch: found {len(parts)} patterns; the limit is {PATTERNS_MAX}")
    return tuple(_pattern(index, part) for index, part in enumerate(parts))


def _pattern(index: int, units: list[str]) -> Pattern:
    """Parse a pattern. Each unit is one character, with its backslash if it is escaped."""
    begin, end = 0, len(units)
    while begin < end and units[begin].isspace():
        begin += 1
    while begin < end and units[end - 1].isspace():
        end -= 1
    units = units[begin:end]
    verb, rest = "".join(units[:4]), units[4:]
    is_prefix = rest[-1:] == ["*"]
    names = rest[:-1] if is_prefix else rest
    key_at = names.index("/") + 1 if "/" in names else 0
    allowed = ""
    if verb not in ("SET@", "DEL@"):
        allowed = "SET@ or DEL@, followed by a key"
    elif units[-1] == "\\":
        allowed = "a character after the last backslash"
    elif "*" in names:
        allowed = r"* only at the end; \* for the character"
    elif "/" in names[key_at:]:
        allowed = r"only one /, between bucket and key; \/ for the character"
    elif not names[key_at:] and not is_prefix:
        allowed = "a key at the end, or *"
    if allowed:
        raise OptionError.of(f"watch[{index}]", "".join(units), allowed)
    bucket = _plain(names[: key_at - 1]) if key_at else None
    return Pattern(verb == "DEL@", bucket, _plain(names[key_at:]), is_prefix)


def _plain(units: list[str]) -> bytes:
    return "".join(unit[-1] for unit in units).encode()


class Route(NamedTuple):
    """The keys in one bucket that one component watches, either for writes or for deletions."""

    queue: WatchQueue
    keys: frozenset[bytes]
    prefixes: tuple[bytes, ...]

    @classmethod
    def of(cls, queue: WatchQueue, patterns: Iterable[Pattern], deletes: bool) -> Route:
        """Return the route for writes or for deletions.

        A pattern that another pattern's prefix covers is left out, so that no change is reported twice.
        """
        own = [pattern for pattern in patterns if pattern.deletes is deletes]
        prefixes: tuple[bytes, ...] = ()
        for key in sorted(pattern.key for pattern in own if pattern.is_prefix):
            if not key.startswith(prefixes):
                prefixes += (key,)
        keys = (pattern.key for pattern in own if not pattern.is_prefix)
        return cls(queue, frozenset(key for key in keys if not key.startswith(prefixes)), prefixes)

    @property
    def takes_all(self) -> bool:
        """True if every key is watched."""
        return self.prefixes == (b"",)


def observers(watched: Iterable[tuple[Watch, WatchQueue]]) -> ObserverOf | None:
    """Return a function that maps a bucket name to the bucket's observer. Return None if nothing is watched.

    All work that does not depend on a single change is done here, once. Watchers see values, not deadlines. So removing
    a deadline is not reported, and expiry is reported as a deletion.
    """
    everywhere: dict[WatchQueue, list[Pattern]] = {}
    named: dict[bytes, dict[WatchQueue, list[Pattern]]] = {}
    for watch, queue in watched:
        for pattern in watch.patterns:
            place = everywhere if pattern.bucket is None else named.setdefault(pattern.bucket, {})
            place.setdefault(queue, []).append(pattern)
    if not everywhere and not named:
        return None
    of_others = _observer(everywhere) if everywhere else None
    of_named = {}
    for bucket, own in named.items():
        queues = dict.fromkeys([*everywhere, *own])
        of_named[bucket] = _observer({queue: [*everywhere.get(queue, ()), *own.get(queue, ())] for queue in queues})
    return lambda bucket: of_named.get(bucket, of_others)


def _observer(patterns: Mapping[WatchQueue, list[Pattern]]) -> Observer:
    sets = [Route.of(queue, own, deletes=False) for queue, own in patterns.items()]
    deletes = [Route.of(queue, own, deletes=True) for queue, own in patterns.items()]
    if len(patterns) == 1:
        return _observer_for_one(sets[0], deletes[0])
    return _observer_for_many(sets, deletes)


def _observer_for_one(sets: Route, deletes: Route) -> Observer:
    """Return the observer for a single watcher. It does less work for each write than `_observer_for_many`.

    This makes watched writes measurably faster in the end-to-end benchmark.
    """
    queue, set_keys, set_prefixes = sets
    _, delete_keys, delete_prefixes = deletes
    every_set, every_delete = sets.takes_all, deletes.takes_all
    push, waiting, append, small_bytes = queue.push, queue.waiting, queue.waiting.append, queue.small_bytes

    def observe(change: Change, bucket: bytes, key: bytes, entry: Entry | None) -> None:
        if change == SET:
            if every_set or key in set_keys or (set_prefixes and key.startswith(set_prefixes)):
                # `isinstance` would take 40 ns more. SET always has an entry, but mypy does not know that.
                value: bytes = entry[0] if entry.__class__ is tuple else entry  # type: ignore[assignment]
                if len(key) + len(value) > small_bytes:
                    push((bucket, key, value))
                    return
                append((bucket, key, value))  # `push`, inlined
                if len(waiting) >= queue.full_at:
                    queue.settle()
        elif change != PERSIST and (every_delete or key in delete_keys or key.startswith(delete_prefixes)):
            push((bucket, key, None))

    return observe


def _observer_for_many(sets: Sequence[Route], deletes: Sequence[Route]) -> Observer:
    """Return the observer for several watchers. It tries each prefix separately only if at least one prefix matches."""
    set_queues, set_prefixes, set_routes = _joined(sets)
    delete_queues, delete_prefixes, delete_routes = _joined(deletes)

    def observe(change: Change, bucket: bytes, key: bytes, entry: Entry | None) -> None:
        if change == PERSIST:
            return
        value = entry[0] if isinstance(entry, tuple) else entry
        if value is None:
            queues, prefixes, routes = delete_queues.get(key, ()), delete_prefixes, delete_routes
        else:
            queues, prefixes, routes = set_queues.get(key, ()), set_prefixes, set_routes
        for queue in queues:
            queue.push((bucket, key, value))
        if key.startswith(prefixes):
            for queue, _, own_prefixes in routes:
                if key.startswith(own_prefixes):
                    queue.push((bucket, key, value))

    return observe


def _joined(
    routes: Sequence[Route],
) -> tuple[dict[bytes, tuple[WatchQueue, ...]], tuple[bytes, ...], tuple[Route, ...]]:
    """Return the queues for each watched key, all prefixes, and the routes that have prefixes."""
    queues: dict[bytes, tuple[WatchQueue, ...]] = {}
    for route in routes:
        for key in route.keys:
            queues[key] = (*queues.get(key, ()), route.queue)
    wide = tuple(route for route in routes if route.prefixes)
    return queues, tuple({prefix: None for route in wide for prefix in route.prefixes}), wide
