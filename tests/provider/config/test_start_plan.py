"""What a provider is started as, where host data and options do not fit together. The rest is tested with whole processes in tests/integration."""

from __future__ import annotations

import pytest

from keyvalue_provider.config.start_plan import launch_of_host, resolve_host
from keyvalue_provider.host.host_data import HostData
from keyvalue_provider.host.secret import Secret


def test_a_token_without_a_seed_is_refused() -> None:
    host_data = HostData(lattice_rpc_user_jwt=Secret("a-token"))
    with pytest.raises(
        ValueError, match=r"^host data: lattice_rpc_user_seed: found none beside lattice_rpc_user_jwt"
    ) as caught:
        launch_of_host(host_data, resolve_host(host_data, {}, {}), {})
    assert "a-token" not in str(caught.value)
