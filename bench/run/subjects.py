"""The subjects are the providers that a run compares: the bare responder, variants of our provider, and peers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bench.run.paths import ROOT, SCRIPTS
from bench.run.rows import REFERENCE

__all__ = [
    *("BARE", "BEFORE", "DIRECT", "EXECUTABLE", "EXPIRING", "HOUR_MS", "LOCAL", "PLAIN", "REDIS_SERVER", "REPLICATED"),
    *("STANDALONE", "STUCK", "UNMETERED", "UNPACKED", "VARIANTS", "WATCHED", "Subject", "peer"),
]

HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A provider to measure: its command and its configuration. A case may add options to the configuration.

    :ivar command: the command line; a provider that reads no host data can use {nats} and {prefix} instead
    :ivar is_store: True if the provider stores values, so that the content of its answers is checked; otherwise only
        their shape is checked
    :ivar watcher: how the component that watches every set behaves; empty for no watcher
    :ivar is_peer: True for another project's provider; it does not know our options, and the run continues if it fails
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
UNPACKED = Subject("executable-unmetered", EXECUTABLE.command, UNMETERED.config)
#: With the replicated store. Each process has a KV bucket of its own, on one server with file storage.
REPLICATED = Subject("replicated", OURS, {**DIRECT.config, "store": "jetstream"})
LOCAL = Subject("replicated-local", OURS, {**REPLICATED.config, "reads": "local"})
#: The variants that some scenarios compare with DIRECT.
VARIANTS = (UNMETERED, EXPIRING, WATCHED, STUCK, STANDALONE, EXECUTABLE, UNPACKED, REPLICATED, LOCAL)
REDIS_SERVER = Subject("redis-server", ("redis-server",))
#: The name of the subject that --against adds: this provider as of an earlier revision.
BEFORE = "before"
BARE = Subject(REFERENCE, (sys.executable, "-m", "bench.load.responder"), is_store=False)


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
    if name in {BEFORE, *(subject.name for subject in (BARE, DIRECT, PLAIN, REDIS_SERVER, *VARIANTS))}:
        raise ValueError(f"--peer: found the name {name}, which is reserved for one of our subjects")
    return Subject(name, words, is_peer=True)
