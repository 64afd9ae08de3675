"""Names in a configuration: which are options, which are old names of options, which are misspelt, and which are unknown.

A misspelt name is a fault: ignored, it would leave a link that says `acess=read-only` writable. A name that resembles no option is ignored, so
that a link made for another provider works.

A name is a misspelling when at most EDITS_MAX edits turn it into an option's name. An edit inserts, removes or replaces a character, or swaps two
neighbours. Capitals count as small letters, and `-` as `_`. Where either name has fewer than SHORT characters, one edit is the most: two would
take `path` for `nats`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

__all__ = ["EDITS_MAX", "SHORT", "SortedNames", "edits_between", "nearest_names", "sort_names"]

EDITS_MAX = 2
SHORT = 5


class SortedNames(NamedTuple):
    """Names of one configuration, sorted by what they are.

    :ivar options: the option that each name means, by the name as it was given
    :ivar unknown: names that resemble no option
    :ivar deprecated: for each old name a remark
    :ivar faults: for each name that can't be used, what is wrong with it
    """

    options: dict[str, str]
    unknown: list[str]
    deprecated: dict[str, str]
    faults: dict[str, str]


def sort_names(given: Iterable[str], options: Collection[str], old_names: Mapping[str, str]) -> SortedNames:
    """Sort the names of one configuration.

    :param old_names: present names by old ones

    >>> sort_names(["acess", "url"], ["access"], {}).faults
    {'acess': 'acess: no option has this name; did you mean access?'}
    """
    found = SortedNames({}, [], {}, {})
    for name in given:
        if name in options:
            found.options[name] = name
        elif name in old_names:
            found.options[name] = old_names[name]
        elif nearest := nearest_names(name, [*options, *old_names]):
            meant = dict.fromkeys(old_names.get(known, known) for known in nearest)
            found.faults[name] = f"{_shown(name)}: no option has this name; did you mean {' or '.join(meant)}?"
        else:
            found.unknown.append(name)
    for name, option in list(found.options.items()):
        if name != option and option in found.options:
            del found.options[name]
            found.faults[name] = f"{name}: found beside {option}, allowed one of them: it is the old name of the other"
        elif name != option:
            found.deprecated[name] = f"{name} is deprecated (use {option})"
    return found


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that `name` is a misspelling of, with the fewest edits; none where it resembles none.

    >>> nearest_names("bukcet", ["bucket", "buckets", "access"])
    ['bucket']
    """
    plain = name.lower().replace("-", "_")
    letters = set(plain)
    nearest: list[str] = []
    edits_min = EDITS_MAX
    for option in known:
        allowed = edits_min if min(len(plain), len(option)) >= SHORT else min(edits_min, 1)
        if len(letters.symmetric_difference(option)) > 2 * allowed:  # an edit changes at most two: this is quick
            continue
        edits = edits_between(plain, option, allowed)
        if edits > allowed:
            continue
        if edits < edits_min:
            edits_min = edits
            nearest.clear()
        nearest.append(option)
    return nearest


def edits_between(one: str, other: str, edits_max: int) -> int:
    """Return the number of edits that turn one text into the other; `edits_max + 1` where it takes more than `edits_max`.

    No text between two swapped neighbours is edited again (optimal string alignment).

    >>> edits_between("acess", "access", 2), edits_between("bukcet", "bucket", 2), edits_between("url", "ttl_ms", 2)
    (1, 1, 3)
    """
    if abs(len(one) - len(other)) > edits_max:
        return edits_max + 1
    common = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        common += 1
    one, other = one[common:], other[common:]
    if not one or not other:
        return len(one) + len(other)
    if edits_max == 0:
        return 1
    rests = [(one[1:], other), (one, other[1:]), (one[1:], other[1:])]
    if one[:2] == other[1::-1]:
        rests.append((one[2:], other[2:]))
    return 1 + min(edits_between(*rest, edits_max - 1) for rest in rests)


def _shown(name: str) -> str:
    return name if name.isprintable() else repr(name)
