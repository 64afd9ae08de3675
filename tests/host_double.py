"""A wasmCloud 1.x host, as a provider sees it: a double for tests.

    HostDouble     one lattice on a NATS server: links, configurations, answers of the lattice
      └─ Hosted    one provider's process, started as a host starts it
    XKey           the key pairs by which a host seals a link's secrets

It is written from the sources of the 1.9 host and of nkeys, and from a capture (tests/vectors/host_1_9_2_spawn.json).
It imports nothing of the provider, so that each checks the other.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nats
from nacl.public import Box, PrivateKey, PublicKey
from nats.aio.client import Client
from nats.aio.msg import Msg

from tests.conftest import (
    DEADLINE_S,
    HOST_CAPTURE,
    HOST_ID,
    Environment,
    Provider,
    in_thread,
)

NUMBERS = itertools.count()

Secrets = Mapping[str, str | bytes]


# Keys


def crc16(raw: bytes) -> int:
    """Return the CRC-16/XMODEM."""
    crc = 0
    for byte in raw:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return crc


def nkey_text(prefix: bytes, key: bytes) -> str:
    """Return the base32 text, without padding, of a prefix, a key and the checksum of both."""
    raw = prefix + key
    return base64.b32encode(raw + crc16(raw).to_bytes(2, "little")).decode().rstrip("=")


class XKey:
    """A key pair of nkeys' kind X. Its texts begin with X (public) and SX (seed)."""

    PUBLIC = bytes([23 << 3])
    SEED = bytes([18 << 3 | 23 >> 2, (23 & 3) << 6])

    def __init__(self, private: PrivateKey) -> None:
        self._private = private
        self.seed = nkey_text(self.SEED, bytes(private))
        self.public_key = nkey_text(self.PUBLIC, bytes(private.public_key))

    @classmethod
    def generate(cls) -> XKey:
        return cls(PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: str) -> XKey:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        key = cls(PrivateKey(raw[len(cls.SEED) : -2]))
        assert key.seed == seed
        return key

    def seal(self, message: bytes, recipient: XKey) -> bytes:
        """Seal a message for the recipient only: "xkv1", a nonce of 24 bytes, and a NaCl box."""
        nonce = os.urandom(Box.NONCE_SIZE)
        return b"xkv1" + nonce + Box(self._private, recipient._public).encrypt(message, nonce).ciphertext

    def open(self, sealed: bytes, sender: XKey) -> bytes:
        assert sealed[:4] == b"xkv1"
        return Box(self._private, sender._public).decrypt(sealed[4 + Box.NONCE_SIZE :], sealed[4:][: Box.NONCE_SIZE])

    @property
    def _public(self) -> PublicKey:
        return self._private.public_key


# Links


def written(secrets: Secrets) -> dict[str, object]:
    """Return secrets as a host writes them: text, or an array of byte numbers."""
    return {
        name: {"kind": "String", "value": value} if isinstance(value, str) else {"kind": "Bytes", "value": list(value)}
        for name, value in secrets.items()
    }


@dataclass(frozen=True)
class Link:
    """A link of the lattice, with the values of its configurations and secrets.

    :ivar reference: prefix of the lattice's names for references to secrets; a host recognizes only `SECRET`
    """

    source_id: str
    target: str
    name: str = "default"
    interfaces: tuple[str, ...] = ("store", "atomics", "batch")
    source_config: Mapping[str, str] = field(default_factory=dict)
    target_config: Mapping[str, str] = field(default_factory=dict)
    source_secrets: Secrets = field(default_factory=dict)
    target_secrets: Secrets = field(default_factory=dict)
    reference: str = "SECRET_"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.source_id, self.target, self.name

    @property
    def has_secrets(self) -> bool:
        return bool(self.source_secrets or self.target_secrets)

    def emptied(self) -> dict[str, object]:
        """Return the link as in `linkdefs.del`, without its configurations."""
        return self._fields(source_config={}, target_config={}, source_secrets=None, target_secrets=None)

    def resolved(self, host: XKey, provider: XKey) -> dict[str, object]:
        """Return the link as in host data and `linkdefs.put`: with configurations, and with secrets sealed for the provider."""

        def sealed(secrets: Secrets) -> list[int] | None:
            return list(host.seal(json.dumps(written(secrets)).encode(), provider)) if secrets else None

        return self._fields(
            source_config=dict(self.source_config),
            target_config=dict(self.target_config),
            source_secrets=sealed(self.source_secrets),
            target_secrets=sealed(self.target_secrets),
        )

    def named(self) -> dict[str, object]:
        """Return the link as in the answer to `link.get`: with the names of configurations, including those of secrets."""
        names = list(self.configurations())
        return self._fields(
            source_config=[name for name in names if name.endswith("-source")],
            target_config=[name for name in names if name.endswith("-target")],
        )

    def configurations(self) -> dict[str, dict[str, str]]:
        """Return the lattice's configurations of this link, by name.

        A reference to a secret names a place, not the value.
        """
        whole = "-".join(self.key)
        found = {}
        for end, config, secrets in (
            ("source", self.source_config, self.source_secrets),
            ("target", self.target_config, self.target_secrets),
        ):
            if config:
                found[f"{whole}-{end}"] = dict(config)
            for name in secrets:
                found[f"{self.reference}{whole}-{name}-{end}"] = {"name": name, "backend": "nats-kv", "key": name}
        return found

    def _fields(self, **configurations: object) -> dict[str, object]:
        source_id, target, name = self.key
        return {
            "source_id": source_id,
            "target": target,
            "name": name,
            "wit_namespace": "wasi",
            "wit_package": "keyvalue",
            "interfaces": list(self.interfaces),
            **configurations,
        }


# The provider's process


class Health(NamedTuple):
    """A provider's answer to a health request."""

    healthy: bool
    message: str

    @classmethod
    def of(cls, payload: bytes) -> Health:
        health = json.loads(payload)
        assert health.keys() == {"healthy", "message"}, health
        assert isinstance(health["healthy"], bool)
        assert isinstance(health["message"], str)
        return cls(**health)


class Stop(NamedTuple):
    """The end of a provider at its host's request."""

    answer: bytes
    exit_code: int


class Hosted(Provider):
    """A provider's process, with an empty environment. Standard input gets one line and is then closed.

    :ivar healths: its answers to the host's health requests
    """

    def __init__(
        self, executable: Path, directory: Path, host_data: Mapping[str, Any], xkey: XKey, environment: Environment
    ) -> None:
        self.executable = executable
        self.directory = directory
        self.xkey = xkey
        self.healths: list[Health] = []
        super().__init__(host_data, directory, environment, (executable,))

    async def ready(self) -> None:
        await in_thread(self.wait_for, "ready: serving")

    def left(self) -> list[str]:
        """Return the remaining processes, and the files in its directory.

        tests/test_build.py checks the files that an executable unpacks.
        """
        processes = [f"process {number}" for number in processes_in(self.directory)]
        return processes + [str(path) for path in self.directory.iterdir()]


def processes_in(directory: Path) -> list[int]:
    """Return the processes in this working directory: a provider and its children, even if their parent has ended."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended, or belongs to another user
            if entry.name.isdigit() and os.path.samefile(entry / "cwd", directory):
                found.append(int(entry.name))
    return found


# The host


class HostDouble:
    """The host of one lattice, which has its own prefix. Open it with `open`.

    :ivar links: the lattice's links, by source, target and name
    :ivar answer: the lattice's answer to a request on this subject; None: no answer
    :ivar asked: the subjects of the requests that the lattice received
    :ivar environment: of the processes
    """

    def __init__(self, client: Client, url: str, directory: Path) -> None:
        self.lattice = f"lattice-{next(NUMBERS)}"
        self.xkey = XKey.generate()
        self.links: dict[tuple[str, str, str], Link] = {}
        self.answer: Callable[[str], bytes | None] = self.lattice_answer
        self.asked: list[str] = []
        self.environment: Environment = {}
        self.client = client
        self._control = f"wasmbus.ctl.v1.{self.lattice}."
        self._url = url
        self._directory = directory
        self._hosted: dict[str, Hosted] = {}

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, directory: Path, *, has_lattice: bool = True) -> AsyncIterator[HostDouble]:
        """Open a host.

        At the end it stops the processes that it started. Without a lattice, nobody listens to requests for links.
        """
        client = await nats.connect(url)
        host = cls(client, url, directory)
        if has_lattice:
            await client.subscribe(f"{host._control}>", cb=host._on_request)
            await client.flush()
        try:
            yield host
        finally:
            for hosted in host._hosted.values():
                hosted.kill()
            await client.close()

    async def start(
        self,
        executable: Path,
        config: Mapping[str, str] | None = None,
        *,
        links: Sequence[Link] = (),
        wait: bool = True,
        **fields: object,
    ) -> Hosted:
        """Start a provider, and wait until it serves.

        :param links: put right after the start, before the provider listens
        :param fields: fields of its host data
        """
        key = str(fields.get("provider_key") or f"kv-{next(NUMBERS)}")
        xkey = XKey.generate()
        host_data = HOST_CAPTURE["host_data"] | {
            "lattice_rpc_prefix": self.lattice,
            "lattice_rpc_url": self._url,
            "provider_key": key,
            "config": dict(config or {}),
            "host_xkey_public_key": self.xkey.public_key,
            "provider_xkey_private_key": xkey.seed,
        }
        directory = self._directory / f"{self.lattice}.{key}"
        directory.mkdir()
        return await self._spawn(executable, directory, host_data | fields, xkey, links, wait)

    async def restart(self, hosted: Hosted) -> Hosted:
        """Restart it after its end, with the same keys and configuration, and with the lattice's present links."""
        assert not hosted.running
        return await self._spawn(hosted.executable, hosted.directory, hosted.host_data, hosted.xkey, (), wait=True)

    async def put(self, *links: Link) -> None:
        """Put links into the lattice.

        Those without secrets are published to the ids of both ends too: their provider gets them twice.
        """
        for link in links:
            self.links[link.key] = link
            xkeys = [hosted.xkey for key, hosted in self._hosted.items() if key in link.key[:2]]
            if not link.has_secrets:
                for end in (link.source_id, link.target):
                    await self._tell(end, "linkdefs.put", link.resolved(self.xkey, self.xkey))
            for xkey in xkeys:
                await self._tell(xkey.public_key, "linkdefs.put", link.resolved(self.xkey, xkey))
        await self.client.flush()

    async def delete(self, link: Link) -> None:
        """Delete a link from the lattice. Its provider is told once."""
        self.links.pop(link.key, None)
        for end in (link.source_id, link.target):
            await self._tell(end, "linkdefs.del", link.emptied())
        await self.client.flush()

    async def configure(self, hosted: Hosted, config: Mapping[str, str]) -> None:
        """Send it its whole new configuration."""
        await self._tell(hosted.key, "config.update", dict(config))
        await self.client.flush()

    async def health(self, hosted: Hosted) -> Health:
        """Return its health, after it has handled all earlier messages."""
        message = await self.client.request(hosted.host_subject("health"), timeout=DEADLINE_S)
        hosted.healths.append(Health.of(message.data))
        return hosted.healths[-1]

    async def ask_to_stop(self, hosted: Hosted, host_id: str = HOST_ID) -> bytes:
        """Return its answer to a stop request."""
        request = json.dumps({"host_id": host_id}).encode()
        return bytes((await self.client.request(hosted.host_subject("default.shutdown"), request, DEADLINE_S)).data)

    async def shutdown(self, hosted: Hosted, *, kill: bool = True) -> Stop:
        """Stop it as a host does, with SIGKILL when it has answered. Without the kill it ends by itself."""
        answer = await self.ask_to_stop(hosted)
        if kill:
            hosted.process.kill()
        return Stop(answer, await in_thread(hosted.wait))

    async def kill(self, hosted: Hosted) -> None:
        """Send SIGKILL without notice. Return when all its processes have closed their output."""
        hosted.process.kill()
        await in_thread(hosted.wait)

    def lattice_answer(self, subject: str) -> bytes | None:
        """Return the answer of a host's control interface."""
        request = subject.removeprefix(self._control)
        answer: dict[str, object] = {"success": True, "message": ""}
        if request == "link.get":
            answer["response"] = [link.named() for link in self.links.values()]
        else:
            configurations: dict[str, dict[str, str]] = {}
            for link in self.links.values():
                configurations |= link.configurations()
            found = configurations.get(request.removeprefix("config.get."))
            answer |= {"message": "Configuration not found"} if found is None else {"response": found}
        return json.dumps(answer).encode()

    async def _spawn(
        self,
        executable: Path,
        directory: Path,
        host_data: Mapping[str, Any],
        xkey: XKey,
        links: Sequence[Link],
        wait: bool,
    ) -> Hosted:
        key = host_data["provider_key"]
        known = [link.resolved(self.xkey, xkey) for link in self.links.values() if key in link.key[:2]]
        hosted = Hosted(executable, directory, {**host_data, "link_definitions": known}, xkey, self.environment)
        self._hosted[key] = hosted
        await self.configure(hosted, host_data["config"])
        await self.put(*links)
        if wait:
            await hosted.ready()
        return hosted

    async def _tell(self, end: str, rest: str, message: object) -> None:
        await self.client.publish(f"wasmbus.rpc.{self.lattice}.{end}.{rest}", json.dumps(message).encode())

    async def _on_request(self, message: Msg) -> None:
        self.asked.append(message.subject)
        answer = self.answer(message.subject)
        if answer is not None and message.reply:
            await self.client.publish(message.reply, answer)
