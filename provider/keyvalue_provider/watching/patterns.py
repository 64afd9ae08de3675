r"""The patterns in a watching link. `routes.py` finds the watchers whose patterns report a change.

    pattern                             reports
    SET@key         DEL@key             writes or deletions of this key, in every bucket; expiry counts as a deletion
    SET@text*       DEL@text*           writes or deletions of keys that begin with the text; `*` alone means all keys
    SET@bucket/key  DEL@bucket/text*    writes or deletions in this bucket only

Patterns are separated by commas, and white space around a pattern is ignored. A backslash makes the next character
literal, so a pattern can name any bucket and key: `\,` `\/` `\*` `\\`, and `\ ` for a space at either end. A key must
not be empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from keyvalue_provider.config.options import OptionError, WatchingLinkOptions

__all__ = ["PATTERNS_MAX", "Pattern", "Watch"]

#: The value of the option `watch_bucket` that stands for the bucket's own name.
OWN_NAME = b"{bucket}"
#: Maximum number of patterns in one link. A limit is needed because each write to a watched bucket looks for prefixes
#: of each length that is watched.
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
    :param keys: `encoded` or `plain`, or None for that of the provider
    :param domain: the JetStream domain of KV buckets with plain names, or None for that of the provider
    """

    patterns: tuple[Pattern, ...]
    bucket_argument: bytes | None = field(repr=False)
    keys: str | None = None
    domain: str | None = None

    @classmethod
    def of(cls, options: WatchingLinkOptions) -> Watch | None:
        """Parse the options of a link. Return None if the option `watch` is not set.

        :raises OptionError: a pattern is malformed
        """
        if options.watch is None:
            return None
        argument = None if options.watch_bucket == OWN_NAME else options.watch_bucket
        patterns = _patterns(options.watch)
        if options.bucket is not None:
            patterns = tuple(
                each if each.bucket is not None else replace(each, bucket=options.bucket) for each in patterns
            )
        return cls(patterns, argument, options.keys, options.js_domain)

    def at(self, bucket: bytes) -> Watch:
        """Return the part of it that a bucket needs. Its patterns name no bucket, and match every one. O(patterns)."""
        patterns = (replace(each, bucket=None) for each in self.patterns if each.bucket in (None, bucket))
        argument = bucket if self.bucket_argument is None else self.bucket_argument
        return replace(self, patterns=tuple(patterns), bucket_argument=argument)

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
