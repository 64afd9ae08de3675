"""The health of the provider. The host, the HTTP endpoint and the metrics report the same."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Health"]


class Health(NamedTuple):
    """The faults of the provider, one line for each.

    :ivar ailments: why the provider does not serve as it should
    :ivar unusable: links and KV buckets that are unusable; the provider serves all others
    :ivar remarks: what an operator should know although it is no fault
    """

    ailments: list[str]
    unusable: list[str]
    remarks: list[str]

    @property
    def is_healthy(self) -> bool:
        """Return True if nothing is wrong."""
        return not (self.ailments or self.unusable)

    @property
    def is_ready(self) -> bool:
        """Return True if the provider serves. An unusable link does not stop it from serving the others."""
        return not self.ailments

    @property
    def message(self) -> str:
        """Return everything in one line."""
        return "; ".join([*([*self.ailments, *self.unusable] or ["serving"]), *self.remarks])
