"""Names in a configuration. Each name belongs to an option, is an old name of an option, is misspelt, or is unknown.

A misspelt name is a fault, because a link with `acess=read-only` must not stay writable. An unknown name resembles no
option. It is ignored, so that a link made for another provider still works.

A name is misspelt if at most EDITS_MAX edits turn it into an option's name. An edit inserts, removes or replaces a
character, or swaps two neighbours. Case is ignored, and `-` is read as `_`. If either name has fewer than SHORT
characters, only one edit is allowed, because two edits turn `path` into `nats`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

__all__ = ["EDITS_MAX", "OF_OTHERS", "SHORT", "SortedNames", "edits_between", "nearest_names", "sort_names"]

EDITS_MAX = 2
SHORT = 5
#: Names that configurations of other providers have, and that resemble an option of ours. They are no misspellings.
OF_OTHERS = frozenset({"cluster", "key"})


class SortedNames(NamedTuple):
    """The names in one configuration, by kind.

    :ivar options: the current name of the option, for each valid or old name
    :ivar unknown: names that resemble no option
    :ivar deprecated: a remark for each old name
    :ivar faults: what is wrong with each misspelt or duplicate name
    """

    options: dict[str, str]
    unknown: list[str]
    deprecated: dict[str, str]
    faults: dict[str, str]


def sort_names(
    given: Iterable[str],
    options: Collection[str],
    old_names: Mapping[str, str],
    names_elsewhere: Collection[str] = frozenset(),
) -> SortedNames:
    """Classify the names in one configuration.

    :param old_names: the current name for each old name
    :param names_elsewhere: names of options at other places, which are no misspellings

    >>> sort_names(["acess", "url"], ["access"], {}).faults
    {'acess': 'acess: no option has this name; did you mean access?'}
    """
    found = SortedNames({}, [], {}, {})
    for name in given:
        if name in options:
            found.options[name] = name
        elif name in old_names:
            found.options[name] = old_names[name]
        elif name in names_elsewhere or name in OF_OTHERS:
            found.unknown.append(name)
        elif nearest := nearest_names(name, [*options, *old_names]):
            meant = dict.fromkeys(old_names.get(known, known) for known in nearest)
            found.faults[name] = f"{_shown(name)}: no option has this name; did you mean {' or '.join(meant)}?"
        else:
            found.unknown.append(name)
    for name, option in list(found.options.items()):
        if name != option and option in found.options:
            del found.options[name]
            found.faults[name] = f"{name}: this is the old name of {option}, which is set too; set only {option}"
        elif name != option:
            found.deprecated[name] = f"{name} is deprecated (use {option})"
    return found


def nearest_names(name: str, known: Iterable[str]) -> list[str]:
    """Return the known names that are closest to `name`, or an empty list if none is close.

    >>> nearest_names("bukcet", ["bucket", "buckets", "access"])
    ['bucket']
    """
    plain = name.lower().replace("-", "_")
    letters = set(plain)
    nearest: list[str] = []
    edits_min = EDITS_MAX
    for option in known:
        allowed = edits_min if min(len(plain), len(option)) >= SHORT else min(edits_min, 1)
        if len(letters.symmetric_difference(option)) > 2 * allowed:  # cheap test: an edit changes at most two letters
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
    """Return the edit distance between two texts, or `edits_max + 1` if the distance exceeds `edits_max`.

    This is the optimal string alignment distance: swapped neighbours are not edited again.

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
