"""A running provider's handling of a new configuration.

tests/provider/keyvalue/test_policy.py tests its effect on callers.
"""

from __future__ import annotations

import logging

import pytest

from keyvalue_provider.config.start_plan import plan_hosted, resolve_host
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.live_configuration import LiveConfiguration
from keyvalue_provider.observe.log import JsonFormatter, PlainFormatter

pytestmark = pytest.mark.usefixtures("root")


def started(host_data: HostData) -> LiveConfiguration:
    configuration = resolve_host(host_data, host_data.config, {})
    return LiveConfiguration(plan_hosted(host_data, configuration, {}), configuration)


@pytest.mark.parametrize("config", [{}, {"log_level": "info", "structured_logging": "false"}])
def test_the_log_returns_to_its_first_settings(root: logging.Logger, config: dict[str, str]) -> None:
    configuration = started(HostData(config=config))
    for _ in range(2):
        assert configuration.take({"log_level": "error", "structured_logging": "true"}) is not None
        assert root.level == logging.ERROR
        assert isinstance(root.handlers[0].formatter, JsonFormatter)
        assert configuration.take(config) is not None
        assert root.level == logging.INFO
        assert isinstance(root.handlers[0].formatter, PlainFormatter)


def test_an_unusable_certificate_changes_nothing() -> None:
    configuration = started(HostData())
    assert configuration.take({"tls_ca": "/of/nobody.pem", "require_link": "true"}) is None
    assert configuration.fault is not None
    assert configuration.fault.startswith("config: tls_ca: ")
    assert "/of/nobody.pem" in configuration.fault
    options = configuration.take({"require_link": "true"})
    assert options is not None
    assert options.require_link
    assert configuration.fault is None


def test_an_unreadable_configuration_is_a_fault_until_a_readable_one_arrives() -> None:
    configuration = started(HostData())
    configuration.refuse("found an array")
    assert configuration.fault == "config: found an array"
    assert configuration.take({}) is not None
    assert configuration.fault is None


def test_changes_and_corrections_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the options and shows no values, which may be secrets."""
    configuration = started(HostData(config={"ttl_ms": "5"}))
    logging.getLogger().addHandler(caplog.handler)  # `started` has set up the log
    for config in (
        {"ttl_ms": "5"},
        {"access": "read-only", "bucket": "hush"},
        {"access": "none"},
        {"access": "read-only", "bucket": "hush"},
        {"access": "read-only", "bucket": "hush", "page_keys": "7"},
    ):
        configuration.take(config)
    refusal = "config: access: found 'none', allowed read-write or read-only; the previous configuration stays in force"
    assert [record.getMessage() for record in caplog.records] == [
        "config: changed: bucket, access, ttl_ms",
        refusal,
        "config: the last fault is corrected",
        "config: these changes take effect at the next start: page_keys",
    ]


def test_an_option_without_effect_is_logged_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("keyvalue_provider"), "handlers", [caplog.handler])
    started(HostData(config={"keys": "plain"})).take({"keys": "plain", "access": "read-only"})
    assert [record.getMessage() for record in caplog.records] == [
        "config: keys has no effect: it needs store=jetstream",
        "config: changed: access",
    ]
