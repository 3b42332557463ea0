"""The object store of the measurements: a server of the tests, behind the proxy of the tests.

The proxy has a process of its own, since it would otherwise share an interpreter with what it
delays.
"""

from __future__ import annotations

from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from tests.stores.proxy import FaultProxy
from tests.stores.servers import Servers

from ..measure.processes import ChildProcess


class Traffic(NamedTuple):
    """What passed the proxy.

    Attributes:
        lists: Requests that list names.
        reads: Other requests that read: GET and HEAD.
        writes: PUT and POST; each part of an upload is one, and so are its beginning and its end.
        deletes: DELETE, and POST of a list of names to delete.
        sent: Bytes of bodies that the client sent.
        received: Bytes of bodies that it received, listings included.
    """

    lists: int
    reads: int
    writes: int
    deletes: int
    sent: int
    received: int

    @property
    def requests(self) -> int:
        return self.lists + self.reads + self.writes + self.deletes


class RemoteStore:
    """A server that runs, an empty bucket on it, and a proxy before it.

    Args:
        directory: Where the server keeps its data; must exist.
        name: One of the servers of `tests/stores/servers.py`.

    Attributes:
        direct: The bucket without the proxy.
        bucket: The same bucket behind the proxy.
    """

    def __init__(self, directory: Path, name: str) -> None:
        self._servers = Servers(directory)
        try:
            self.direct = self._servers.make_bucket(self._servers.start(name))
            self._proxy = ChildProcess(_serve_proxy, self.direct.server.url)
            self.bucket = self.direct.at(self._proxy.receive("listens")[1])
        except BaseException:
            self._servers.stop()
            raise

    def shape(self, **limits: float | None) -> None:
        """Slows traffic from now on; takes what `FaultProxy.shape` takes."""
        self._ask("shape", limits)

    def take_traffic(self) -> Traffic:
        """What passed the proxy since the last call, or since it was started."""
        return Traffic(*self._ask("take", {}))

    def close(self) -> None:
        """Ends the server and the proxy."""
        self._proxy.pipe.send(("stop", {}))
        self._proxy.end()
        self._servers.stop()

    def _ask(self, command: str, arguments: dict[str, float | None]) -> tuple[int, ...]:
        self._proxy.pipe.send((command, arguments))
        return self._proxy.receive("done")[1]


def _serve_proxy(pipe: Connection, url: str) -> None:
    with FaultProxy(url) as proxy:
        pipe.send(("listens", proxy.url))
        while (message := pipe.recv())[0] != "stop":
            command, arguments = message
            answer: tuple[int, ...] = ()
            if command == "shape":
                proxy.shape(**arguments)
            else:
                answer = tuple(_count_traffic(proxy))
                proxy.clear()
            pipe.send(("done", answer))


def _count_traffic(proxy: FaultProxy) -> Traffic:
    exchanges = proxy.select()
    lists = sum(e.is_listing for e in exchanges)
    methods = ["DELETE" if e.target.endswith("?delete") else e.method for e in exchanges]
    return Traffic(
        lists,
        methods.count("GET") + methods.count("HEAD") - lists,
        methods.count("PUT") + methods.count("POST"),
        methods.count("DELETE"),
        *proxy.sum_bytes(exchanges),
    )
