"""What is measured: ours in its variants, the bare responder, and peers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.run.paths import ROOT, SCRIPTS
from bench.run.rows import REFERENCE

__all__ = [
    "BARE",
    "DIRECT",
    "EXECUTABLE",
    "EXPIRING",
    "PLAIN",
    "STANDALONE",
    "STUCK",
    "UNMETERED",
    "VARIANTS",
    "WATCHED",
    "Subject",
    "peer",
]

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A provider to be measured: what is launched, and its configuration, to which a case adds what it wants.

    :ivar command: with {nats} and {prefix} in place of the server's URL and the prefix, where it takes no host data
    :ivar is_store: its answers are checked as a store's; else only their shape is
    :ivar watcher: whether a component watches every set, and answers or never does
    :ivar is_peer: not ours: no option of ours means anything to it, and where it fails the run goes on
    """

    name: str
    command: tuple[str, ...]
    config: Mapping[str, str] = field(default_factory=dict)
    is_store: bool = True
    watcher: Literal["", "answering", "stuck"] = ""
    is_peer: bool = False


OURS = (str(SCRIPTS / "keyvalue-inmemory"),)
METERED = {"metrics_address": "127.0.0.1:0"}
DIRECT = Subject("direct", OURS, {"transport": "direct", **METERED})
PLAIN = Subject("plain", OURS, {"transport": "plain", **METERED})
UNMETERED = Subject("direct-unmetered", OURS, {"transport": "direct"})
EXPIRING = Subject("direct-expiring", OURS, {**DIRECT.config, "ttl_ms": str(HOUR_MS)})
WATCHED = Subject("direct-watched", OURS, DIRECT.config, watcher="answering")
STUCK = Subject("direct-stuck", OURS, DIRECT.config, watcher="stuck")
STANDALONE = Subject("serve", (*OURS, "serve", "--nats", "{nats}", "--prefix", "{prefix}", "--metrics-address", "0"))
EXECUTABLE = Subject("executable", (str(ROOT / "build" / "keyvalue-inmemory"),), DIRECT.config)
#: Of DIRECT, for the scenarios that compare it with them.
VARIANTS = (UNMETERED, EXPIRING, WATCHED, STUCK, STANDALONE, EXECUTABLE)
BARE = Subject(REFERENCE, (sys.executable, "-m", "bench.load.responder"), is_store=False)


def peer(text: str) -> Subject:
    """A subject from NAME=COMMAND.

    >>> peer("redis=/opt/keyvalue-redis --verbose").command
    ('/opt/keyvalue-redis', '--verbose')

    :raises ValueError: it is none, or the name is taken
    """
    name, _, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not (name.isascii() and name.replace("-", "").isalnum() and words):
        raise ValueError(f"--peer: found {text!r}, allowed NAME=COMMAND, the name of letters, digits and '-'")
    if name in {subject.name for subject in (BARE, DIRECT, PLAIN, *VARIANTS)}:
        raise ValueError(f"--peer: found the name {name}, which is taken")
    return Subject(name, words, is_peer=True)
