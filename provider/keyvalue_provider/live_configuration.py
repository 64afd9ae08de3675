"""The current configuration: the startup configuration, updated with later changes by the host or in the file."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from keyvalue_provider.config.options import LIVE_OPTIONS, STANDALONE_OPTIONS, ProviderOptions
from keyvalue_provider.config.sources import Configuration
from keyvalue_provider.config.start_plan import StartPlan, redis_of, refuse_links, tls_of, user_of
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
        self._standalone_at_start = configuration.standalone
        self._log_form = self._log_form_of(configuration.options)
        set_up_log(*self._log_form)
        self._unknown: Mapping[str, tuple[str, ...]] = {}
        self._remarks: tuple[str, ...] = ()
        self._warn_of(configuration)

    def take(self, config: Mapping[str, str]) -> ProviderOptions | None:
        """Return the options of a new configuration, or None if it is refused.

        :param config: the host's configuration; without a host, it is ignored and the file is read again

        Only options in LIVE_OPTIONS take effect at once. Log the names of the options that have changed.
        """
        try:
            configuration = self._resolve(config)
        except ValueError as error:
            self.fault = str(error)
            log.error("%s; the previous configuration stays in force", self.fault)
            return None
        options = configuration.options
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
        changed_later = [
            *(name for name in STANDALONE_OPTIONS if self._differs_from_start(configuration, name)),
            *(name for name in self._at_start.changed(options) if name not in LIVE_OPTIONS),
        ]
        if changed_later:
            log.warning("config: these changes take effect at the next start: %s", ", ".join(changed_later))
        if self._plan.host_data is None and not changed and not changed_later:
            log.info("config: nothing has changed")
        return options

    def _resolve(self, config: Mapping[str, str]) -> Configuration:
        """Return the new configuration.

        :raises ValueError: it is malformed, or would make the next start fail
        """
        configuration = self._plan.resolve(config)
        if configuration.faults:
            raise ValueError("; ".join(configuration.faults))
        try:
            tls_of(configuration)
            redis_of(configuration)
            if self._plan.host_data is None:
                refuse_links(configuration)
                user_of(configuration)
        except ValueError as error:
            raise ValueError(f"config: {error}") from None
        return configuration

    def _differs_from_start(self, configuration: Configuration, name: str) -> bool:
        return bool(getattr(configuration.standalone, name) != getattr(self._standalone_at_start, name))

    def refuse(self, reason: str) -> None:
        """Record that a configuration is unreadable. The previous configuration stays in force."""
        self.fault = f"config: {reason}"

    def _warn_of(self, configuration: Configuration) -> None:
        """Log each unknown name and each remark once."""
        for origin, names in configuration.unknown.items():
            if news := set(names) - set(self._unknown.get(origin, ())):
                log.warning("%s: ignored, since no option has this name: %s", origin, ", ".join(sorted(news)))
        for remark in configuration.remarks:
            if remark not in self._remarks:
                log.warning("%s", remark)
        self._unknown, self._remarks = configuration.unknown, configuration.remarks

    def _log_form_of(self, options: ProviderOptions) -> tuple[str, bool]:
        """Return the log level, and True if the log is JSON."""
        structured = options.structured_logging
        plan = self._plan
        return options.log_level or plan.log_level, plan.structured_logging if structured is None else structured
