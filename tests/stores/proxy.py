"""A proxy before a store: counts what passes, makes it fail, and slows it as a network would.

It changes nothing that it is not told to change. The Host field stays the client's, so that what a
client signed stays valid. A connection to the proxy is one to the store.
"""

from __future__ import annotations

import fnmatch
import itertools
import select
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from . import shaping
from .faults import Answer, DropConnectionError, Exchange, Fault, Rule
from .messages import ConnectionEndedError, Head, Stream

_NO_FAULT = Fault()


class FaultProxy:
    """A proxy on a free port of loopback, in threads of this process.

    Faults are injected for the requests that a rule names, or for every request once. `exchanges`
    holds all requests so far in the order in which they came.

    Example:
        with FaultProxy(server.url) as proxy:
            proxy.inject(Answer(503), method="GET", times=2)
            store = bucket.at(proxy.url).open_store()
            obstore.get(store, "a")
            assert proxy.count("GET") == 3
    """

    def __init__(self, url: str) -> None:
        target = urlsplit(url)
        assert target.hostname is not None
        self._upstream = (target.hostname, target.port or 80)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        host, port = self._listener.getsockname()[:2]
        self.url = f"http://{host}:{port}{target.path}"
        self._lock = threading.Lock()
        self._streams: set[Stream] = set()
        self._closed = False
        self.exchanges: list[Exchange] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._numbers = itertools.count(1)
        self._rules: list[Rule] = []
        self._once: list[Fault] = []
        self._failed_once: set[tuple[str, str, str | None]] = set()
        self._listings: dict[str, bytes] = {}
        self._left: int | None = None
        self._kill_silently = False
        self._lose_last = False
        self._latency_s = 0.0
        self._up: list[shaping.Bandwidth] = []
        self._down: list[shaping.Bandwidth] = []
        self._per_connection: float | None = None
        threading.Thread(target=self._accept, daemon=True).start()

    # What a test says and asks.

    def inject(
        self,
        fault: Fault,
        *,
        method: str | None = None,
        path: str = "*",
        query: str = "*",
        matches: Callable[[Exchange], bool] | None = None,
        skip: int = 0,
        times: int | None = 1,
    ) -> Rule:
        """Has `fault` befall requests; those injected first are tried first.

        Args:
            fault: What happens.
            method: Only requests of this method.
            path: Only requests whose path, without the query, fits this pattern of fnmatch.
            query: Only requests whose query fits this pattern.
            matches: Only requests for which this returns True.
            skip: How many that fit are let through first.
            times: How many it befalls; None for all.

        Returns:
            The rule, whose `hits` counts the requests that fit.
        """
        rule = Rule(fault, method, path, query, matches, skip, times)
        with self._lock:
            self._rules.append(rule)
        return rule

    def fail_each_once(self, *faults: Fault) -> None:
        """Has every request fail when it first comes, with `faults` in turn; a 503 without any.

        Requests are the same if method, target and range are.
        """
        with self._lock:
            self._once = list(faults or [Answer(503)])

    def kill_after(
        self, requests: int, *, silently: bool = False, lose_last_answer: bool = False
    ) -> None:
        """Lets `requests` more requests through; later ones find a store that is gone.

        Args:
            requests: How many are still answered.
            silently: Later connections are accepted and get no answer, in place of a reset.
            lose_last_answer: The last of `requests` reaches the store, and its answer is lost.
        """
        with self._lock:
            self._left = requests
            self._kill_silently = silently
            self._lose_last = lose_last_answer

    def revive(self) -> None:
        """Ends what `kill_after` began."""
        with self._lock:
            self._left = None

    def clear(self) -> None:
        """Forgets faults, kills and the requests so far; keeps the shape of the traffic."""
        self.revive()
        with self._lock:
            self._rules.clear()
            self._once.clear()
            self._failed_once.clear()
            self._listings.clear()
            self.exchanges = []
            self.most_in_flight = 0

    def shape(
        self,
        *,
        latency_ms: float = 0,
        bytes_per_second: float | None = None,
        connection_bytes_per_second: float | None = None,
    ) -> None:
        """Slows traffic from now on.

        Args:
            latency_ms: What each request takes beyond what the store needs.
            bytes_per_second: What all connections carry together, in each of both directions.
            connection_bytes_per_second: What one connection carries, in each direction.
        """
        with self._lock:
            self._latency_s = latency_ms / 1000
            limit = bytes_per_second
            self._up = [] if limit is None else [shaping.Bandwidth(limit)]
            self._down = [] if limit is None else [shaping.Bandwidth(limit)]
            self._per_connection = connection_bytes_per_second

    def count(self, method: str | None = None, path: str = "*") -> int:
        """How many requests of this method had a path that fits this pattern of fnmatch."""
        return len(self.select(method, path))

    def select(self, method: str | None = None, path: str = "*") -> list[Exchange]:
        """The requests of this method whose path fits this pattern of fnmatch."""
        with self._lock:
            return [
                exchange
                for exchange in self.exchanges
                if (method is None or exchange.method == method)
                and fnmatch.fnmatchcase(exchange.path, path)
            ]

    def count_by_method(self) -> dict[str, int]:
        """The number of requests of each method."""
        counts: dict[str, int] = defaultdict(int)
        for exchange in self.select():
            counts[exchange.method] += 1
        return dict(counts)

    def sum_bytes(self, exchanges: Sequence[Exchange] | None = None) -> tuple[int, int]:
        """The bytes of bodies that were sent to the store and received from it."""
        chosen = self.select() if exchanges is None else exchanges
        return sum(e.sent_bytes for e in chosen), sum(e.received_bytes for e in chosen)

    def close(self) -> None:
        """Ends all connections and frees the port."""
        self._closed = True
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for connections
        self._listener.close()
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # What happens on a connection.

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            serve = _Connection(self, Stream(connection)).serve
            threading.Thread(target=serve, daemon=True).start()

    def _begin(self, head: Head) -> Exchange:
        method, target, _ = head.first
        exchange = Exchange(next(self._numbers), method, target, head, time.monotonic())
        with self._lock:
            self.exchanges.append(exchange)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            exchange.fault = self._choose(exchange)
        return exchange

    def _choose(self, exchange: Exchange) -> Fault | None:
        for rule in self._rules:
            if rule.applies(exchange):
                return rule.fault
        if self._once and exchange.identity not in self._failed_once:
            self._failed_once.add(exchange.identity)
            return self._once[(len(self._failed_once) - 1) % len(self._once)]
        return None

    def _end(self, exchange: Exchange) -> None:
        exchange.ended = time.monotonic()
        with self._lock:
            self._in_flight -= 1

    def _admit(self) -> tuple[bool, bool]:
        """Whether the store still answers, and whether that is the last time."""
        with self._lock:
            if self._left is None:
                return True, False
            self._left -= 1
            return self._left >= 0, self._left == 0 and self._lose_last


class _Connection:
    """A client's connection, and the one to the store that belongs to it."""

    def __init__(self, proxy: FaultProxy, client: Stream) -> None:
        self._proxy = proxy
        self._client = client
        self._server: Stream | None = None
        limit = proxy._per_connection
        self._own = [] if limit is None else [shaping.Bandwidth(limit)]

    def serve(self) -> None:
        """Passes requests on until one side ends the connection."""
        proxy, client = self._proxy, self._client
        with proxy._lock:
            proxy._streams.add(client)
        reset = False
        try:
            while (head := client.read_head()) is not None:
                exchange = proxy._begin(head)
                try:
                    goes_on = self._exchange(exchange)
                finally:
                    proxy._end(exchange)
                if not goes_on:
                    break
        except DropConnectionError as drop:
            reset = drop.reset
        except ConnectionEndedError:
            reset = True
        finally:
            client.close(reset=reset)
            self._leave_server()
            with proxy._lock:
                proxy._streams.discard(client)

    def _exchange(self, exchange: Exchange) -> bool:
        """Passes one request on, and the answer back; returns whether the connection goes on."""
        proxy, request, fault = self._proxy, exchange.head, exchange.fault or _NO_FAULT
        lives, is_last = proxy._admit()
        if not lives:
            self._die()
        answer = fault.answer()
        if answer is None and fault.stale and exchange.is_listing:
            answer = proxy._listings.get(exchange.target)
        if answer is not None:
            return self._answer(exchange, answer)
        fault.before_request()
        time.sleep(proxy._latency_s / 2)
        response = self._ask(exchange, request)
        time.sleep(proxy._latency_s / 2)
        response = fault.before_response(response)
        if is_last:
            raise DropConnectionError(reset=True)
        exchange.status = response.status
        self._client.send(response.raw)
        self._give_body(exchange, response, fault)
        if response.is_last:
            self._leave_server()
        return not (response.is_last or request.is_last)

    def _die(self) -> None:
        proxy = self._proxy
        while proxy._kill_silently and proxy._left is not None and not proxy._closed:
            time.sleep(0.01)
        raise DropConnectionError(reset=True)

    def _answer(self, exchange: Exchange, answer: bytes) -> bool:
        expects = exchange.head.find("expect") is not None
        if not expects:
            self._client.relay_body(exchange.head, lambda _: None, is_request=True)
        head, end, body = answer.partition(b"\r\n\r\n")
        exchange.status = Head(head).status
        self._client.send(head + end + (b"" if exchange.method == "HEAD" else body))
        return not expects

    def _ask(self, exchange: Exchange, request: Head) -> Head:
        """Sends the request and its body; returns the head of the answer."""
        server = self._join_server()
        server.send(request.raw)
        if request.find("expect") is not None:
            response = self._read_answer(server)
            if response.status != 100:
                return response.replace("connection", "close")  # the body was not sent
            self._client.send(response.raw)

        def send(piece: memoryview) -> None:
            for part in self._shape(piece, self._proxy._up):
                server.send(part)
                exchange.sent_bytes += len(part)

        self._client.relay_body(request, send, is_request=True)
        while (response := self._read_answer(server)).status < 200:
            self._client.send(response.raw)
        return response

    def _give_body(self, exchange: Exchange, response: Head, fault: Fault) -> None:
        if exchange.method == "HEAD" or response.status in (204, 304):
            return
        assert self._server is not None
        kept = bytearray() if exchange.is_listing and response.status == 200 else None
        position = 0

        def send(piece: memoryview) -> None:
            nonlocal position
            for part in self._shape(piece, self._proxy._down):
                changed = fault.change_body(position, part)
                position += len(part)
                exchange.received_bytes += len(changed)  # before the client can ask for it
                self._client.send(changed)
                if len(changed) < len(part):
                    raise DropConnectionError(reset=fault.reset)
            if kept is not None:
                kept.extend(piece)

        self._server.relay_body(response, send, is_request=False)
        if kept is not None:
            with self._proxy._lock:
                self._proxy._listings.setdefault(exchange.target, response.raw + kept)

    def _shape(self, piece: memoryview, limits: list[shaping.Bandwidth]) -> Iterator[memoryview]:
        limits = limits + self._own
        if not limits:
            yield piece
            return
        for start in range(0, len(piece), shaping.PIECE_BYTES):
            part = piece[start : start + shaping.PIECE_BYTES]
            for limit in limits:
                limit.take(len(part))
            yield part

    def _read_answer(self, server: Stream) -> Head:
        head = server.read_head()
        if head is None:
            raise ConnectionEndedError("the store ended the connection")
        return head

    def _join_server(self) -> Stream:
        """The connection to the store; a new one if there is none, or if the store left it."""
        if self._server is not None and select.select([self._server.socket], [], [], 0)[0]:
            self._leave_server()
        if self._server is None:
            try:
                self._server = Stream(socket.create_connection(self._proxy._upstream))
            except OSError as error:
                raise ConnectionEndedError(str(error)) from error
        return self._server

    def _leave_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
