"""Which servers a test runs on."""

import pytest

from helpers import mark_slow

WRITABLE = ("moto", "fake-gcs", "seaweedfs", "azurite")
WITH_RANGES = ("caddy", *WRITABLE)
ALL = ("plain", *WITH_RANGES)
_SLOW_TO_START = ("seaweedfs", "azurite")


def choose(names: tuple[str, ...]) -> list[object]:
    """The names, of which the quick tests leave out those of servers that start slowly."""
    quick = [name for name in names if name not in _SLOW_TO_START]
    return [*quick, *mark_slow(*(name for name in names if name in _SLOW_TO_START))]


def run_on(*names: str) -> pytest.MarkDecorator:
    """Has a test that takes `server`, `bucket` or `proxy` run once on each of these servers."""
    return pytest.mark.parametrize("server", choose(names), indirect=True)
