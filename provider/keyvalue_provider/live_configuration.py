"""The configuration in force: that of the start, and what of a later one may change while the provider runs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from keyvalue_provider.config.options import LIVE_OPTIONS, ProviderOptions
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import StartPlan, tls_of
from keyvalue_provider.observe.log import set_up_log

__all__ = ["LiveConfiguration"]

log = logging.getLogger("keyvalue_provider")


class LiveConfiguration:
    """Takes the host's configurations one after the other. Sets up the log, at the start and whenever its options change.

    :ivar fault: why the last configuration was not taken; None: it was
    """

    def __init__(self, plan: StartPlan, configuration: Configuration) -> None:
        self.fault: str | None = None
        self._plan = plan
        self._at_start = configuration.options
        self._log_form = self._log_form_of(configuration.options)
        set_up_log(*self._log_form)
        self._unknown: Mapping[str, tuple[str, ...]] = {}
        self._deprecated: tuple[str, ...] = ()
        self._warn_of(configuration)

    def take(self, config: Mapping[str, str]) -> ProviderOptions | None:
        """Return the options of a new configuration, of which those in LIVE_OPTIONS take effect; None where it can't be used.

        Warn of the others that it changes: they take effect at the next start.
        """
        configuration = self._plan.resolve(config)
        options = configuration.options
        faults = list(configuration.faults)
        if not faults:
            try:
                tls_of(configuration)  # else the next start would find out
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
        self._warn_of(configuration)
        changed = [name for name in self._at_start.changed(options) if name not in LIVE_OPTIONS]
        if changed:
            log.warning("config: changed at the next start of the provider: %s", ", ".join(changed))
        return options

    def refuse(self, reason: str) -> None:
        """Note a configuration that can't be read. What was in force stays."""
        self.fault = f"config: {reason}"

    def _warn_of(self, configuration: Configuration) -> None:
        """Log once which names are no options, and which are old names."""
        for origin, names in configuration.unknown.items():
            if news := set(names) - set(self._unknown.get(origin, ())):
                log.warning("%s: ignored, since no option has this name: %s", origin, ", ".join(sorted(news)))
        for remark in configuration.deprecated:
            if remark not in self._deprecated:
                log.warning("%s", remark)
        self._unknown, self._deprecated = configuration.unknown, configuration.deprecated

    def _log_form_of(self, options: ProviderOptions) -> tuple[str, bool]:
        """Return the level, and True for a structured log."""
        structured = options.structured_logging
        plan = self._plan
        return options.log_level or plan.log_level, plan.structured_logging if structured is None else structured
