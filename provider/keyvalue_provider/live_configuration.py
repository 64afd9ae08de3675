"""The current configuration: the startup configuration, updated with the host's later changes."""

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
    """The current configuration. This class also sets up the log, at startup and whenever a log option changes.

    :ivar fault: why the last configuration was refused; None if it was accepted
    """

    def __init__(self, plan: StartPlan, configuration: Configuration) -> None:
        self.fault: str | None = None
        self._plan = plan
        self._at_start = self._current = configuration.options
        self._log_form = self._log_form_of(configuration.options)
        set_up_log(*self._log_form)
        self._unknown: Mapping[str, tuple[str, ...]] = {}
        self._deprecated: tuple[str, ...] = ()
        self._warn_of(configuration)

    def take(self, config: Mapping[str, str]) -> ProviderOptions | None:
        """Return the options of a new configuration, or None if it is refused.

        Only options in LIVE_OPTIONS take effect at once. Log the names of the options that have changed.
        """
        configuration = self._plan.resolve(config)
        options = configuration.options
        faults = list(configuration.faults)
        if not faults:
            try:
                tls_of(configuration)  # refuse TLS options that would make the next start fail
            except ValueError as error:
                faults.append(f"config: {error}")
        if faults:
            self.fault = "; ".join(faults)
            log.error("%s; the previous configuration stays in force", self.fault)
            return None
        if self.fault is not None:
            self.fault = None
            log.info("config: the last fault is corrected")
        log_form = self._log_form_of(options)
        if log_form != self._log_form:
            self._log_form = log_form
            set_up_log(*log_form)
        self._warn_of(configuration)
        changed = [name for name in self._current.changed(options) if name in LIVE_OPTIONS]
        self._current = options
        if changed:
            log.info("config: changed: %s", ", ".join(changed))
        changed_later = [name for name in self._at_start.changed(options) if name not in LIVE_OPTIONS]
        if changed_later:
            log.warning("config: these changes take effect at the next start: %s", ", ".join(changed_later))
        return options

    def refuse(self, reason: str) -> None:
        """Record that a configuration is unreadable. The previous configuration stays in force."""
        self.fault = f"config: {reason}"

    def _warn_of(self, configuration: Configuration) -> None:
        """Log each unknown or deprecated name once."""
        for origin, names in configuration.unknown.items():
            if news := set(names) - set(self._unknown.get(origin, ())):
                log.warning("%s: ignored, since no option has this name: %s", origin, ", ".join(sorted(news)))
        for remark in configuration.deprecated:
            if remark not in self._deprecated:
                log.warning("%s", remark)
        self._unknown, self._deprecated = configuration.unknown, configuration.deprecated

    def _log_form_of(self, options: ProviderOptions) -> tuple[str, bool]:
        """Return the log level, and True if the log is JSON."""
        structured = options.structured_logging
        plan = self._plan
        return options.log_level or plan.log_level, plan.structured_logging if structured is None else structured
