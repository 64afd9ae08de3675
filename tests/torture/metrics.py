"""The metrics of a provider that is tortured, over HTTP as Prometheus reads them."""

from __future__ import annotations

import re
from urllib.request import urlopen

__all__ = ["read_metrics"]

TIMEOUT_S = 10.0


def read_metrics(output: str) -> dict[str, float]:
    """Return the metrics without labels, by name.

    :param output: what the provider has logged, which names the address
    :raises AssertionError: it has no metrics endpoint
    :raises OSError: it does not answer
    """
    found = re.search(r"metrics at (http://\S+/metrics)", output)
    assert found is not None, output
    with urlopen(found[1], timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}
