"""The configuration in force: that of the start, and what of a later one may change while the provider runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from keyvalue_provider.config.options import LIVE_OPTIONS, ProviderOptions
from keyvalue_provider.config.sources import Resolved
from keyvalue_provider.config.start_plan import Launch, tls_of
from keyvalue_provider.observe.log import set_up_log

__all__ = ["LiveConfiguration"]

log = logging.getLogger("keyvalue_provider")


class LiveConfiguration:
    """Takes the host's configurations one after the other. Sets up the log, at the start and whenever its options change.

    :ivar fault: why the last configuration was not taken; None: it was
    """

    def __init__(self, launch: Launch, resolved: Resolved) -> None:
        self.fault: str | None = None
        self._launch = launch
        self._at_start = resolved.options
        self._log_form = self._log_form_of(resolved.options)
        set_up_log(*self._log_form)
        self._unknown: Mapping[str, tuple[str, ...]] = {}
        self._warn_of_unknown(resolved.unknown)

    def take(self, config: Mapping[str, str]) -> ProviderOptions | None:
        """Return the options of a new configuration, of which those in LIVE_OPTIONS take effect; None where it can't be used.

        Warn of the others that it changes: they take effect at the next start.
        """
        resolved = self._launch.resolve(config)
        options = resolved.options
        faults = list(resolved.faults)
        if not faults:
            try:
                tls_of(resolved)  # else the next start would find out
            except ValueError as error:
                faults.append(f"config: {error}")
        if faults:
            self.fault = "; ".join(faults)
            log.error("%s; what was in force stays", self.fault)
            return None
        self.fault = None
        log_form = self._log_form_of(options)
        if log_form != self._log_form:
            self._log_form = log_form
            set_up_log(*log_form)
        self._warn_of_unknown(resolved.unknown)
        changed = [name for name in self._at_start.changed(options) if name not in LIVE_OPTIONS]
        if changed:
            log.warning("config: changed at the next start of the provider: %s", ", ".join(changed))
        return options

    def refuse(self, reason: str) -> None:
        """Note a configuration that can't be read. What was in force stays."""
        self.fault = f"config: {reason}"

    def _warn_of_unknown(self, unknown: Mapping[str, tuple[str, ...]]) -> None:
        """Log once which names are no options."""
        for origin, names in unknown.items():
            if news := set(names) - set(self._unknown.get(origin, ())):
                log.warning("%s: ignored, since no option has this name: %s", origin, ", ".join(sorted(news)))
        self._unknown = unknown

    def _log_form_of(self, options: ProviderOptions) -> tuple[str, bool]:
        """Return the level, and True for a structured log."""
        structured = options.structured_logging
        launch = self._launch
        return options.log_level or launch.log_level, launch.structured_logging if structured is None else structured
