"""The subjects on which a wasmCloud host sends messages to a provider.

wasmbus.rpc.{lattice}.{provider}.health                  a health request; answered with {"healthy", "message"}
wasmbus.rpc.{lattice}.{provider}.linkdefs.put|del        a link definition; no answer
wasmbus.rpc.{lattice}.{xkey}.linkdefs.put|del            a link definition, perhaps with secrets; no answer
wasmbus.rpc.{lattice}.{provider}.config.update           the whole configuration; no answer
wasmbus.rpc.{lattice}.{provider}.{link name}.shutdown    a shutdown request; answered at the end of the stop

A host sends a link with secrets only on the xkey subject. It sends other links on the provider subject too.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["HostSubjects", "health_subject", "host_subjects"]


class HostSubjects(NamedTuple):
    """The subjects on which a host sends messages to one provider."""

    health: str
    link_puts: tuple[str, ...]
    link_deletes: tuple[str, ...]
    config_update: str
    shutdown: str


def health_subject(prefix: str) -> str:
    """Return the subject of health requests to the providers with this prefix: {lattice}.{provider key}."""
    return f"wasmbus.rpc.{prefix}.health"


def host_subjects(lattice: str, provider_key: str, link_name: str, xkey: str = "") -> HostSubjects:
    """Return the subjects on which a host sends messages to one provider.

    :param xkey: the provider's public xkey; empty if the host data has no xkeys

    >>> host_subjects("default", "kv", "default").shutdown
    'wasmbus.rpc.default.kv.default.shutdown'
    """
    prefix = f"wasmbus.rpc.{lattice}.{provider_key}"
    prefixes = (prefix, f"wasmbus.rpc.{lattice}.{xkey}") if xkey else (prefix,)
    return HostSubjects(
        health=health_subject(f"{lattice}.{provider_key}"),
        link_puts=tuple(f"{prefix}.linkdefs.put" for prefix in prefixes),
        link_deletes=tuple(f"{prefix}.linkdefs.del" for prefix in prefixes),
        config_update=f"{prefix}.config.update",
        shutdown=f"{prefix}.{link_name}.shutdown",
    )
