"""The subjects on which a wasmCloud host speaks to a provider.

wasmbus.rpc.{lattice}.{provider}.health                  answered with {"healthy", "message"}
wasmbus.rpc.{lattice}.{provider}.linkdefs.put|del        a link definition; no answer. Also under the provider's xkey in place of its key,
                                                         where links with secrets come alone, and the others a second time
wasmbus.rpc.{lattice}.{provider}.config.update           the whole configuration; no answer
wasmbus.rpc.{lattice}.{provider}.{link name}.shutdown    for the host that started us: answered last of all
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HostSubjects", "host_subjects"]


class HostSubjects(NamedTuple):
    """The subjects on which a host speaks to one provider."""

    health: str
    link_puts: tuple[str, ...]
    link_deletes: tuple[str, ...]
    config_update: str
    shutdown: str


def host_subjects(lattice: str, provider_key: str, link_name: str, xkey: str = "") -> HostSubjects:
    """Return the subjects that host data says.

    :param xkey: the provider's public one, if the host has given it keys

    >>> host_subjects("default", "kv", "default").shutdown
    'wasmbus.rpc.default.kv.default.shutdown'
    """
    prefix = f"wasmbus.rpc.{lattice}.{provider_key}"
    prefixes = (prefix, f"wasmbus.rpc.{lattice}.{xkey}") if xkey else (prefix,)
    return HostSubjects(
        health=f"{prefix}.health",
        link_puts=tuple(f"{prefix}.linkdefs.put" for prefix in prefixes),
        link_deletes=tuple(f"{prefix}.linkdefs.del" for prefix in prefixes),
        config_update=f"{prefix}.config.update",
        shutdown=f"{prefix}.{link_name}.shutdown",
    )
