"""The subjects are the providers that a run compares: the bare responder, variants of our provider, and peers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from bench.run import ROOT, SCRIPTS

__all__ = [
    *("ANSWERING", "BARE", "BEFORE", "BUILT", "DIRECT", "HOUR_MS", "OWN", "PLAIN", "REDIS_SERVER", "STUCK"),
    *("Subject", "peer"),
]

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A provider to measure: its command and its configuration. A case may add options to the configuration.

    :ivar command: the command line; a provider that reads no host data can use {nats} and {prefix} instead
    :ivar is_store: True if the provider stores values, so that the content of its answers is checked; otherwise only
        their shape is checked
    :ivar watcher: a component that watches every set
    :ivar is_peer: True for another project's provider; it does not know our options, and the run continues if it fails
    """

    name: str
    command: tuple[str, ...]
    config: Mapping[str, str] = field(default_factory=dict)
    is_store: bool = True
    watcher: Subject | None = None
    is_peer: bool = False


PROVIDER = (str(SCRIPTS / "keyvalue-inmemory"),)
#: The executable of `scripts/build`.
BUILT = (str(ROOT / "build" / "keyvalue-inmemory"),)
UNMETERED = {"transport": "direct"}
METERED = {**UNMETERED, "metrics_address": "127.0.0.1:0"}
REPLICATED = {**METERED, "store": "jetstream"}

BARE = Subject("bare", (sys.executable, "-m", "bench.load.responder"), is_store=False)
#: Components that watch: the bare responder, which also answers a watcher's functions, or does not.
ANSWERING = Subject("watcher", BARE.command)
STUCK = Subject("stuck-watcher", BARE.command, {"is_stuck": "true"})
DIRECT = Subject("direct", PROVIDER, METERED)
PLAIN = Subject("plain", PROVIDER, {**METERED, "transport": "plain"})
REDIS_SERVER = Subject("redis-server", ("redis-server",))
#: The subjects that need no option of the command line, by name.
OWN: Mapping[str, Subject] = {
    subject.name: subject
    for subject in (
        BARE,
        DIRECT,
        PLAIN,
        Subject("direct-unmetered", PROVIDER, UNMETERED),
        Subject("direct-expiring", PROVIDER, {**METERED, "ttl_ms": str(HOUR_MS)}),
        Subject("direct-listening", PROVIDER, {**METERED, "redis_address": "127.0.0.1:0"}),
        Subject("direct-watched", PROVIDER, METERED, watcher=ANSWERING),
        Subject("direct-stuck", PROVIDER, METERED, watcher=STUCK),
        Subject("serve", (*PROVIDER, "serve", "--nats", "{nats}", "--prefix", "{prefix}", "--metrics-address", "0")),
        Subject("executable", BUILT, METERED),
        Subject("executable-unmetered", BUILT, UNMETERED),
        # Each process of the replicated store has a KV bucket of its own, on one server with file storage.
        Subject("replicated", PROVIDER, REPLICATED),
        Subject("replicated-local", PROVIDER, {**REPLICATED, "reads": "local"}),
        REDIS_SERVER,
    )
}
#: The name of the subject that --against adds: this provider as of an earlier revision.
BEFORE = "before"


def peer(text: str) -> Subject:
    """Parse a subject from the text NAME=COMMAND.

    >>> peer("redis=/opt/keyvalue-redis --verbose").command
    ('/opt/keyvalue-redis', '--verbose')

    :raises ValueError: the text is malformed, or one of our subjects has this name
    """
    name, _, command = text.partition("=")
    words = tuple(shlex.split(command))
    if not (name.isascii() and name.replace("-", "").isalnum() and words):
        raise ValueError(f"--peer: found {text!r}, expected NAME=COMMAND; NAME may contain letters, digits and '-'")
    if name in {BEFORE, *OWN}:
        raise ValueError(f"--peer: found the name {name}, which is reserved for one of our subjects")
    return Subject(name, words, is_peer=True)
