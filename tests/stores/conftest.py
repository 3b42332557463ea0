"""Fixtures: a server, an empty bucket on it, and a proxy before it.

Tests that take `server` or `bucket` run once for each server with ranges. Another choice is
`@run_on(*WRITABLE)` or `@run_on("moto")`, with names from `choice.py`.
"""

from collections.abc import Iterator

import pytest

from .choice import WITH_RANGES, choose
from .proxy import FaultProxy
from .server import Bucket, Server
from .servers import MissingServerError, Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """All servers, each started when first asked for."""
    started = Servers(tmp_path_factory.mktemp("servers"))
    yield started
    started.stop()


@pytest.fixture(params=choose(WITH_RANGES))
def server(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """A server that runs; the test is skipped where its program can't be had."""
    try:
        return servers.start(request.param)
    except MissingServerError as error:
        pytest.skip(f"{request.param}: {error}")


@pytest.fixture
def bucket(server: Server, servers: Servers) -> Bucket:
    """An empty bucket of `server`, without the proxy: `bucket.at(proxy.url)` is behind it."""
    return servers.make_bucket(server)


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultProxy]:
    """A proxy before `server`."""
    with FaultProxy(server.url) as started:
        yield started
