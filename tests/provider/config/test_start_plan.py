"""The plan of a start: how host data or a command line become a plan, and what prevents it."""

from __future__ import annotations

import pytest

from keyvalue_provider.config.command_line import command_line
from keyvalue_provider.config.start_plan import plan_hosted, read_standalone_plan, resolve_host
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.secret import Secret


def test_a_plan_of_host_data() -> None:
    host_data = HostData(
        lattice_rpc_prefix="lattice", provider_key="kv", lattice_rpc_url="a:1", config={"transport": "plain"}
    )
    plan = plan_hosted(host_data, resolve_host(host_data, host_data.config, {}), {"KEYVALUE_PAGE_KEYS": "7"})
    assert (plan.prefix, plan.host_data, plan.xkeys) == ("lattice.kv", host_data, None)
    assert (plan.connection.urls, plan.connection.name, plan.connection.path) == (("nats://a:1",), "kv", "plain")
    assert plan.resolve({"page_bytes": "8"}).options.page_keys == 7


def test_a_plan_of_a_command_line() -> None:
    arguments = command_line().parse_args(["serve", "--nats", "a:1", "--prefix", "lattice.kv"])
    plan, configuration = read_standalone_plan(arguments, {"KEYVALUE_CONNECT_TIMEOUT_MS": "500"})
    assert (plan.prefix, plan.host_data, plan.connection.urls) == ("lattice.kv", None, ("nats://a:1",))
    assert plan.connection.open_timeout_s == configuration.options.connect_timeout_ms / 1000 == 0.5


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--require-link"], {}, "require_link: without a host there are no links, so this must be false"),
        (["--credentials", "a", "--nkey", "b"], {}, "credentials, nkey: both are set; set only one of them"),
        (
            ["--page-keys", "x"],
            {"KEYVALUE_ACESS": "read-only"},
            "environment: acess: no option has this name; did you mean access?; "
            "command line: page_keys: found 'x', allowed a whole number from 1",
        ),
    ],
)
def test_unusable_options_give_no_plan(flags: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=r"must be|are set|no option") as caught:
        read_standalone_plan(command_line().parse_args(["serve", *flags]), environment)
    assert str(caught.value) == message


def test_a_token_without_a_seed_is_refused() -> None:
    host_data = HostData(lattice_rpc_user_jwt=Secret("a-token"))
    with pytest.raises(
        ValueError, match=r"^host data: lattice_rpc_user_seed: the seed is missing, and lattice_rpc_user_jwt needs it"
    ) as caught:
        plan_hosted(host_data, resolve_host(host_data, {}, {}), {})
    assert "a-token" not in str(caught.value)
