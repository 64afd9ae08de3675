"""What a running provider takes of a new configuration, as far as no connection is needed for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from keyvalue_provider.config.start_plan import plan_hosted, resolve_host
from keyvalue_provider.executable import OuterProcess
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.observe.log import JsonFormatter, PlainFormatter, set_up_log
from keyvalue_provider.process import Provider, _log_form


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize("config", [{}, {"log_level": "info", "structured_logging": "false"}])
def test_the_log_goes_back_to_what_it_was(root: logging.Logger, config: dict[str, str]) -> None:
    host_data = HostData(config=config)
    resolved = resolve_host(host_data, config, {})
    plan = plan_hosted(host_data, resolved, {})
    set_up_log(*_log_form(plan, resolved.options))
    provider = Provider(plan, resolved, OuterProcess())
    for _ in range(2):
        provider.configure({"log_level": "error", "structured_logging": "true"})
        assert root.level == logging.ERROR
        assert isinstance(root.handlers[0].formatter, JsonFormatter)
        provider.configure(config)
        assert root.level == logging.INFO
        assert isinstance(root.handlers[0].formatter, PlainFormatter)


def test_a_certificate_that_cannot_be_used_changes_nothing() -> None:
    host_data = HostData()
    resolved = resolve_host(host_data, {}, {})
    provider = Provider(plan_hosted(host_data, resolved, {}), resolved, OuterProcess())
    provider.configure({"tls_ca": "/of/nobody.pem"})
    fault = provider.ailments()[-1]
    assert fault.startswith("config: tls_ca: ")
    assert "/of/nobody.pem" in fault
    provider.configure({})
    assert fault not in provider.ailments()
