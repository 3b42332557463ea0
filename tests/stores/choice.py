"""Which servers a test runs on."""

import pytest

from helpers import mark_slow

WRITABLE = ("moto", "fake-gcs", "seaweedfs", "azurite")
WITH_RANGES = ("caddy", *WRITABLE)
ALL = ("plain", *WITH_RANGES)
QUICK = ("plain", "caddy", "moto")


def choose(names: tuple[str, ...], quick: tuple[str, ...] = QUICK) -> list[object]:
    """The names, of which the quick tests leave out those that are not in `quick`."""
    chosen = [name for name in names if name in quick]
    return [*chosen, *mark_slow(*(name for name in names if name not in quick))]


def run_on(*names: str, quick: tuple[str, ...] = QUICK) -> pytest.MarkDecorator:
    """Has a test that takes `server`, `bucket` or `proxy` run once on each of these servers.

    The quick tests are those on the servers of `quick`.
    """
    return pytest.mark.parametrize("server", choose(names, quick), indirect=True)
